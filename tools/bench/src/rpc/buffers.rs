//! Buffers that are used again, as those of a node's pool are: memory that is new each time costs more than the bytes in it.

use kiseki_types::buf::{BufHome, BufferSource, IoBuf};
use std::cell::RefCell;
use std::rc::Rc;

struct Shelf(RefCell<Vec<Vec<u8>>>);

impl BufHome for Shelf {
    fn take_back(&self, slab: Vec<u8>, _slot: u16) {
        self.0.borrow_mut().push(slab);
    }
}

/// A source of them for one core.
pub fn reused() -> BufferSource {
    let shelf = Rc::new(Shelf(RefCell::default()));
    Rc::new(move |len| {
        let slab_len = IoBuf::slab_len_bytes(len);
        let slab = shelf.0.borrow_mut().pop().filter(|slab| slab.len() >= slab_len);
        IoBuf::in_slab(slab.unwrap_or_else(|| vec![0; slab_len]), Some((shelf.clone(), 0))).resized(len)
    })
}
