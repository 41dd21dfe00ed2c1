//! Buffers for chunks whose length nobody knows yet: each is as long as the longest chunk, so making one anew costs more
//! than hashing what comes into it. One core's are used again.

use crate::chunk_write::chunk_buffer_len;
use kiseki_types::buf::{BufHome, IoBuf};
use kiseki_types::fragment::StripeShape;
use std::cell::RefCell;
use std::rc::Rc;

/// A buffer from this length on comes back here; a shorter one is as cheap from the allocator.
const KEPT_LEN_BYTES_MIN: usize = 1 << 20;

/// Buffers kept while nobody uses them: 16 of 4 MiB are 64 MiB a core.
const KEPT_MAX: usize = 16;

/// The chunk buffers of one core.
#[derive(Default)]
pub struct ChunkBuffers {
    free: RefCell<Vec<Vec<u8>>>,
}

impl ChunkBuffers {
    /// None yet.
    #[must_use]
    pub fn new() -> Rc<ChunkBuffers> {
        Rc::default()
    }

    /// An empty buffer that holds a chunk of `len_bytes` and, sealed in place, its envelope with padding. What lies
    /// behind its length is whatever an earlier chunk left; sealing clears what it does not overwrite (I-K1).
    #[must_use]
    pub fn take(self: &Rc<Self>, len_bytes: usize, shape: StripeShape) -> IoBuf {
        let len = chunk_buffer_len(len_bytes, shape);
        if len < KEPT_LEN_BYTES_MIN {
            return IoBuf::zeroed(len).resized(0);
        }
        let slab_len = IoBuf::slab_len_bytes(len);
        let kept = self.free.borrow_mut().pop().filter(|slab| slab.len() == slab_len);
        let slab = kept.unwrap_or_else(|| vec![0; slab_len]);
        IoBuf::in_slab(slab, Some((self.clone(), 0)))
    }
}

impl BufHome for ChunkBuffers {
    fn take_back(&self, slab: Vec<u8>, _slot: u16) {
        let mut free = self.free.borrow_mut();
        if free.len() < KEPT_MAX {
            free.push(slab);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: StripeShape = StripeShape { data: 4, parity: 2 };

    #[test]
    fn a_long_buffer_comes_back_with_the_same_capacity_and_a_short_one_does_not() {
        let buffers = ChunkBuffers::new();
        let first = buffers.take(4 << 20, SHAPE);
        let (capacity, address) = (first.capacity(), first.as_ptr());
        assert!(first.is_empty());
        drop(first);
        let again = buffers.take(4 << 20, SHAPE);
        assert_eq!((again.capacity(), again.as_ptr(), again.len()), (capacity, address, 0));
        drop(buffers.take(1000, SHAPE));
        assert!(buffers.free.borrow().is_empty());
        // Another length finds nothing that fits; what was kept is let go.
        drop(again);
        assert!(buffers.take(2 << 20, SHAPE).capacity() < capacity);
        let many: Vec<IoBuf> = (0..KEPT_MAX + 5).map(|_| buffers.take(4 << 20, SHAPE)).collect();
        drop(many);
        assert_eq!(buffers.free.borrow().len(), KEPT_MAX);
    }
}
