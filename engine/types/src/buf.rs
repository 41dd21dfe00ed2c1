//! Buffers that devices read into and write from: aligned to [`DEVICE_BLOCK_BYTES_MAX`], so any of them suits O_DIRECT.

use crate::limits::DEVICE_BLOCK_BYTES_MAX;
use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::rc::Rc;

/// Takes a buffer's memory back when the buffer is dropped: a pool of registered memory.
pub trait BufHome {
    /// `slab` is the memory as it was handed out, `slot` the pool's own number for it.
    fn take_back(&self, slab: Vec<u8>, slot: u16);
}

/// Gives buffers of the length asked for: a pool, or [`plain_buffers`] without one. **Their content is whatever an earlier
/// user left**: whoever takes one overwrites or zeroes all of it before it reaches a device (I-K1).
pub type BufferSource = Rc<dyn Fn(usize) -> IoBuf>;

/// Fresh, zeroed buffers.
#[must_use]
pub fn plain_buffers() -> BufferSource {
    Rc::new(IoBuf::zeroed)
}

/// For tests: buffers full of [`STALE_BYTE`], as those of a pool may be.
#[must_use]
pub fn stale_buffers() -> BufferSource {
    Rc::new(|len_bytes| {
        let mut buf = IoBuf::zeroed(len_bytes);
        buf.fill(STALE_BYTE);
        buf
    })
}

/// What [`stale_buffers`] are full of.
pub const STALE_BYTE: u8 = 0xd7;

/// An owned, aligned, zero-initialized buffer.
///
/// Alignment comes from over-allocating and skipping to the first aligned byte, so no unsafe code is needed; the
/// memory is never reallocated, so its address stays.
pub struct IoBuf {
    slab: Vec<u8>,
    start: usize,
    len: usize,
    capacity: usize,
    home: Option<(Rc<dyn BufHome>, u16)>,
}

impl IoBuf {
    /// A buffer of `len_bytes` zeros.
    #[must_use]
    pub fn zeroed(len_bytes: usize) -> IoBuf {
        IoBuf::in_slab(vec![0; IoBuf::slab_len_bytes(len_bytes)], None).resized(len_bytes)
    }

    /// Bytes of memory that a slab needs to hold an aligned buffer of `len_bytes`.
    #[must_use]
    pub fn slab_len_bytes(len_bytes: usize) -> usize {
        len_bytes + DEVICE_BLOCK_BYTES_MAX
    }

    /// A buffer in memory that a pool lends; it starts with length 0 and goes back to `home` on drop.
    ///
    /// The slab is not cleared: what an earlier user left is still in it.
    #[must_use]
    pub fn in_slab(slab: Vec<u8>, home: Option<(Rc<dyn BufHome>, u16)>) -> IoBuf {
        let start = slab.as_ptr().align_offset(DEVICE_BLOCK_BYTES_MAX).min(slab.len());
        // Not what alignment happens to leave: the capacity must not depend on where the memory lies, or a run under a
        // seed would not repeat.
        let capacity = (slab.len() - start).min(slab.len().saturating_sub(DEVICE_BLOCK_BYTES_MAX));
        IoBuf { slab, start, len: 0, capacity, home }
    }

    /// A copy of `bytes` in aligned memory.
    #[must_use]
    pub fn copy_of(bytes: &[u8]) -> IoBuf {
        let mut buf = IoBuf::zeroed(bytes.len());
        buf.copy_from_slice(bytes);
        buf
    }

    /// Bytes that fit without another allocation.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The pool's number for this memory, when it comes from a pool (the index of a registered buffer).
    #[must_use]
    pub fn slot(&self) -> Option<u16> {
        self.home.as_ref().map(|(_, slot)| *slot)
    }

    /// Sets the length; bytes that come into view are whatever the memory holds.
    ///
    /// Panics when `len_bytes` is over the capacity: that is our own bug.
    pub fn set_len(&mut self, len_bytes: usize) {
        assert!(len_bytes <= self.capacity, "buffer of {} bytes asked to hold {len_bytes}", self.capacity);
        self.len = len_bytes;
    }

    /// [`IoBuf::set_len`] by value.
    #[must_use]
    pub fn resized(mut self, len_bytes: usize) -> IoBuf {
        self.set_len(len_bytes);
        self
    }

    /// Makes the buffer `padded_len_bytes` long and zeroes from `from` on: no stale byte reaches a device.
    pub fn zero_tail(&mut self, from: usize, padded_len_bytes: usize) {
        self.set_len(padded_len_bytes);
        self[from..].fill(0);
    }

    /// Turns the buffer into a shared, read-only one.
    #[must_use]
    pub fn freeze(self) -> IoBytes {
        let len = self.len;
        IoBytes { buf: Rc::new(self), range: 0..len }
    }
}

impl Deref for IoBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.slab[self.start..self.start + self.len]
    }
}

impl DerefMut for IoBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.slab[self.start..self.start + self.len]
    }
}

impl Drop for IoBuf {
    fn drop(&mut self) {
        if let Some((home, slot)) = self.home.take() {
            home.take_back(std::mem::take(&mut self.slab), slot);
        }
    }
}

impl fmt::Debug for IoBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IoBuf({} bytes)", self.len) // contents may be plaintext: never printed (I-K1)
    }
}

/// A shared, read-only part of an [`IoBuf`]; cheap to clone and to slice, of one core.
#[derive(Clone)]
pub struct IoBytes {
    buf: Rc<IoBuf>,
    range: Range<usize>,
}

impl IoBytes {
    /// A part of this part. Panics when the range is not inside: that is our own bug.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> IoBytes {
        assert!(range.start <= range.end && range.end <= self.range.len(), "slice {range:?} of {}", self.range.len());
        IoBytes { buf: self.buf.clone(), range: self.range.start + range.start..self.range.start + range.end }
    }

    /// The pool's number for the memory below, see [`IoBuf::slot`].
    #[must_use]
    pub fn slot(&self) -> Option<u16> {
        self.buf.slot()
    }

    /// The part as a buffer of its own, for a link: without a copy when nobody else holds a part of the memory. It begins
    /// where the part does, so it need not be aligned.
    #[must_use]
    pub fn into_part(self) -> IoBuf {
        let range = self.range;
        match Rc::try_unwrap(self.buf) {
            Ok(mut buf) => {
                (buf.start, buf.capacity) = (buf.start + range.start, buf.capacity - range.start);
                buf.resized(range.len())
            }
            Err(buf) => IoBuf::copy_of(&buf[range]),
        }
    }

    /// The buffer back, when nobody else holds a part of it.
    pub fn into_buf(self) -> Result<IoBuf, IoBytes> {
        let range = self.range;
        Rc::try_unwrap(self.buf).map_err(|buf| IoBytes { buf, range })
    }
}

impl Deref for IoBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.buf[self.range.clone()]
    }
}

impl AsRef<[u8]> for IoBytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for IoBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IoBytes({} bytes)", self.range.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn i_c7_buffers_are_aligned_and_zeroed() {
        for len in [0, 1, 511, 4096, 4097, 1 << 20] {
            let buf = IoBuf::zeroed(len);
            assert_eq!(buf.len(), len);
            assert!(buf.iter().all(|byte| *byte == 0), "len {len}");
            assert_eq!(buf.as_ptr().align_offset(DEVICE_BLOCK_BYTES_MAX), 0, "len {len}");
        }
    }

    #[test]
    fn zero_tail_hides_what_an_earlier_user_left() {
        let mut buf = IoBuf::in_slab(vec![7; IoBuf::slab_len_bytes(8192)], None);
        buf.zero_tail(10, 4096);
        assert_eq!(buf.iter().filter(|byte| **byte == 7).count(), 10);
    }

    #[test]
    fn pooled_memory_goes_home_once() {
        #[derive(Default)]
        struct Home(RefCell<Vec<u16>>);
        impl BufHome for Home {
            fn take_back(&self, _slab: Vec<u8>, slot: u16) {
                self.0.borrow_mut().push(slot);
            }
        }
        let home = Rc::new(Home::default());
        let buf = IoBuf::in_slab(vec![0; 8192], Some((home.clone(), 3))).resized(4096);
        let bytes = buf.freeze();
        let part = bytes.slice(1..3);
        drop(bytes);
        assert!(home.0.borrow().is_empty(), "a part still lives");
        drop(part);
        assert_eq!(*home.0.borrow(), [3]);
    }

    #[test]
    fn a_part_becomes_a_buffer_without_a_copy_when_nobody_else_holds_one() {
        let bytes = IoBuf::copy_of(&(0..=255).collect::<Vec<u8>>()).freeze();
        let (first, last) = (bytes.slice(0..10), bytes.slice(200..256));
        let at = last.as_ptr();
        drop(bytes);
        assert_eq!(*first.clone().into_part(), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        drop(first);
        let last = last.into_part();
        assert_eq!((last.as_ptr(), last.len(), last[0], last[55]), (at, 56, 200, 255));
        assert!(last.capacity() >= 56);
    }
}
