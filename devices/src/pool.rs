//! Registered buffers of one core: memory that the kernel pins once instead of at every operation.
//!
//! The pool hands out [`IoBuf`]s of a few sizes and takes them back when they are dropped. Every ring of the core
//! registers the same memory, so that a buffer with a slot number can be named to any of them. When a size has run
//! out, callers get ordinary memory of that size, which is kept for the next one up to a bound: slower by the pinning,
//! otherwise the same. Only what is larger than every size is made anew each time.

use kiseki_types::IoBuf;
use kiseki_types::buf::BufHome;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;

/// Most buffers in one pool: kernels before 5.13 register no more.
pub const POOL_SLOTS_MAX: usize = 1024;

/// Buffers of one length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlabClass {
    /// Bytes that each holds.
    pub len_bytes: usize,
    /// How many.
    pub count: usize,
}

/// One buffer's memory while nobody has it, and where it lies.
struct Slot {
    /// `None` while lent.
    slab: Option<Vec<u8>>,
    /// First aligned byte: the registered range starts there.
    address: usize,
    /// Bytes registered.
    len_bytes: usize,
    class: usize,
}

/// Slot numbers from here on are those of ordinary memory: the number of its class behind them. No ring takes such a
/// number for a registered buffer, see [`BufferPool::holds`].
const UNREGISTERED_SLOTS: u16 = 0x8000;
const _: () = assert!(POOL_SLOTS_MAX < UNREGISTERED_SLOTS as usize);

/// Buffers in use and requests that found none, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolUse {
    /// Buffers lent now.
    pub lent: usize,
    /// Requests that got ordinary memory, new or kept.
    pub missed: u64,
    /// Requests that memory had to be made for. Once a load is steady this stands still.
    pub made: u64,
    /// Bytes of ordinary memory that nobody uses and that are kept.
    pub kept_len_bytes: usize,
}

/// The registered buffers of one core.
pub struct BufferPool {
    classes: Vec<SlabClass>,
    slots: RefCell<Vec<Slot>>,
    /// Free slots of each class; the one used last is lent first, while it is in the CPU's cache.
    free: RefCell<Vec<Vec<u16>>>,
    missed: Cell<u64>,
    made: Cell<u64>,
    /// Ordinary memory of each class that came back, and its bytes in all.
    kept: RefCell<Vec<Vec<Vec<u8>>>>,
    kept_len_bytes: Cell<usize>,
    kept_len_bytes_max: usize,
}

impl BufferPool {
    /// A pool of the given classes. Panics over [`POOL_SLOTS_MAX`] buffers in all: a wrong constant.
    #[must_use]
    pub fn new(classes: &[SlabClass]) -> Rc<BufferPool> {
        let mut classes = classes.to_vec();
        classes.sort_unstable_by_key(|class| class.len_bytes);
        assert!(classes.iter().map(|class| class.count).sum::<usize>() <= POOL_SLOTS_MAX, "I-O5: too many buffers");
        let mut slots: Vec<Slot> = Vec::new();
        let mut free = Vec::new();
        for (index, class) in classes.iter().enumerate() {
            let first = slots.len();
            slots.extend((0..class.count).map(|_| Slot::new(class.len_bytes, index)));
            free.push((first..slots.len()).map(|slot| u16::try_from(slot).expect("at most 1024")).collect());
        }
        Rc::new(BufferPool {
            kept: RefCell::new(vec![Vec::new(); classes.len()]),
            kept_len_bytes: Cell::new(0),
            // As much again as is registered: a burst costs no more for good.
            kept_len_bytes_max: classes.iter().map(|class| class.len_bytes * class.count).sum(),
            classes,
            slots: RefCell::new(slots),
            free: RefCell::new(free),
            missed: Cell::new(0),
            made: Cell::new(0),
        })
    }

    /// A pool of about `len_bytes`, divided for the sizes of this system: headers and journal frames; parity of small
    /// objects, and the objects; parity of 1 MiB, and the chunks; the largest chunks.
    #[must_use]
    pub fn with_len_bytes(len_bytes: usize) -> Rc<BufferPool> {
        let share = len_bytes / 16;
        let class = |len_bytes: usize, sixteenths: usize, most: usize| SlabClass {
            len_bytes,
            count: (share * sixteenths / len_bytes).min(most),
        };
        BufferPool::new(&[
            class(4 << 10, 1, 256),
            class(20 << 10, 1, 192),
            class(96 << 10, 2, 192),
            class(388 << 10, 3, 128),
            class((1 << 20) + (64 << 10), 5, 128),
            class((4 << 20) + (64 << 10), 4, 64),
        ])
    }

    /// A buffer of `len_bytes`, from the pool if it can be. **Its contents are whatever the last user left**: the
    /// caller overwrites or zeroes all of it before it goes anywhere.
    #[must_use]
    pub fn alloc(self: &Rc<Self>, len_bytes: usize) -> IoBuf {
        // The class that fits, or the one above it, but no further: small requests must not use up the large ones.
        let fitting = self.classes.iter().position(|class| class.len_bytes >= len_bytes).unwrap_or(self.classes.len());
        for class in (fitting..self.classes.len()).take(2) {
            let Some(slot) = self.free.borrow_mut()[class].pop() else { continue };
            let slab = self.slots.borrow_mut()[usize::from(slot)].slab.take().expect("a free slot has its memory");
            return IoBuf::in_slab(slab, Some((self.clone() as Rc<dyn BufHome>, slot))).resized(len_bytes);
        }
        self.missed.set(self.missed.get() + 1);
        if fitting == self.classes.len() {
            self.made.set(self.made.get() + 1);
            return IoBuf::zeroed(len_bytes);
        }
        let slab_len = IoBuf::slab_len_bytes(self.classes[fitting].len_bytes);
        let slab = match self.kept.borrow_mut()[fitting].pop() {
            Some(slab) => {
                self.kept_len_bytes.set(self.kept_len_bytes.get() - slab_len);
                slab
            }
            None => {
                self.made.set(self.made.get() + 1);
                vec![0; slab_len]
            }
        };
        let home = (self.clone() as Rc<dyn BufHome>, UNREGISTERED_SLOTS + fitting as u16);
        IoBuf::in_slab(slab, Some(home)).resized(len_bytes)
    }

    fn keep(&self, slab: Vec<u8>, class: usize) {
        let kept = self.kept_len_bytes.get() + slab.len();
        if kept <= self.kept_len_bytes_max {
            self.kept_len_bytes.set(kept);
            self.kept.borrow_mut()[class].push(slab);
        }
    }

    /// Use of the pool now.
    #[must_use]
    pub fn usage(&self) -> PoolUse {
        let lent = self.slots.borrow().iter().filter(|slot| slot.slab.is_none()).count();
        PoolUse { lent, missed: self.missed.get(), made: self.made.get(), kept_len_bytes: self.kept_len_bytes.get() }
    }

    /// Address and length of every buffer, by slot: what a ring registers.
    pub(crate) fn ranges(&self) -> Vec<(usize, usize)> {
        self.slots.borrow().iter().map(|slot| (slot.address, slot.len_bytes)).collect()
    }

    /// Whether `bytes` lie in the buffer with that slot. Slot numbers of another pool must not pass as ours.
    pub(crate) fn holds(&self, slot: u16, bytes: &[u8]) -> bool {
        let slots = self.slots.borrow();
        let Some(slot) = slots.get(usize::from(slot)) else { return false };
        let start = bytes.as_ptr() as usize;
        start >= slot.address && start + bytes.len() <= slot.address + slot.len_bytes
    }
}

impl Slot {
    fn new(len_bytes: usize, class: usize) -> Slot {
        // Measured as `IoBuf::in_slab` does; moving the vector does not move its memory.
        let slab = vec![0; IoBuf::slab_len_bytes(len_bytes)];
        let start = slab.as_ptr().align_offset(kiseki_types::limits::DEVICE_BLOCK_BYTES_MAX);
        Slot { address: slab.as_ptr() as usize + start, len_bytes, class, slab: Some(slab) }
    }
}

impl BufHome for BufferPool {
    fn take_back(&self, slab: Vec<u8>, slot: u16) {
        if slot >= UNREGISTERED_SLOTS {
            return self.keep(slab, usize::from(slot - UNREGISTERED_SLOTS));
        }
        let mut slots = self.slots.borrow_mut();
        let home = &mut slots[usize::from(slot)];
        assert!(home.slab.is_none(), "slot {slot} came back twice");
        let range = slab.as_ptr() as usize..slab.as_ptr() as usize + slab.len();
        assert!(range.contains(&home.address), "slot {slot} came back with other memory");
        home.slab = Some(slab);
        self.free.borrow_mut()[home.class].push(slot);
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BufferPool({:?})", self.classes) // contents may be plaintext: never printed (I-K1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> Rc<BufferPool> {
        BufferPool::new(&[SlabClass { len_bytes: 8192, count: 1 }, SlabClass { len_bytes: 4096, count: 2 }])
    }

    #[test]
    fn buffers_come_from_the_pool_go_back_and_fall_back_to_plain_memory() {
        let pool = pool();
        let first = pool.alloc(4096);
        let second = pool.alloc(100);
        let third = pool.alloc(4096); // the class above
        let fourth = pool.alloc(4096);
        let usage = PoolUse { lent: 3, missed: 1, made: 1, kept_len_bytes: 0 };
        assert_eq!(pool.usage(), usage);
        assert!(first.slot().is_some() && second.slot().is_some() && third.slot().is_some());
        assert!(
            !pool.holds(fourth.slot().unwrap(), &fourth) && fourth.len() == 4096,
            "no ring takes it for registered"
        );
        for buf in [&first, &second, &third] {
            assert!(pool.holds(buf.slot().unwrap(), buf), "{buf:?}");
        }
        assert!(!pool.holds(first.slot().unwrap(), &second), "another slot's memory");
        assert!(!pool.holds(999, &first));
        assert_eq!(pool.alloc(1 << 20).slot(), None);
        drop((first, second, third, fourth));
        assert_eq!(pool.usage().lent, 0);
        assert!(pool.alloc(8192).slot().is_some());
    }

    #[test]
    fn ordinary_memory_is_kept_up_to_a_bound_and_used_again() {
        let pool = pool();
        let registered: Vec<IoBuf> = (0..3).map(|_| pool.alloc(4096)).collect();
        let first = pool.alloc(3000);
        let (address, slab_len) = (first.as_ptr(), IoBuf::slab_len_bytes(4096));
        drop(first);
        assert_eq!(pool.usage().kept_len_bytes, slab_len);
        let again = pool.alloc(4096);
        assert_eq!((again.as_ptr(), again.len()), (address, 4096));
        assert_eq!((pool.usage().made, pool.usage().missed, pool.usage().kept_len_bytes), (1, 2, 0));
        drop(again);
        // As many bytes are kept as are registered: 16 KiB, two slabs of the small class, none of the other beside one.
        let many: Vec<IoBuf> = (0..5).map(|_| pool.alloc(8192)).collect();
        drop(many);
        assert_eq!(pool.usage().kept_len_bytes, slab_len);
        let many: Vec<IoBuf> = (0..5).map(|_| pool.alloc(4096)).collect();
        drop(many);
        assert_eq!(pool.usage().kept_len_bytes, 2 * slab_len);
        drop(pool.alloc(8193));
        assert_eq!((pool.usage().kept_len_bytes, pool.usage().lent), (2 * slab_len, registered.len()));
    }

    #[test]
    fn the_usual_division_fits_the_limits() {
        for mib in [1, 16, 64, 1024] {
            let pool = BufferPool::with_len_bytes(mib << 20);
            let held: usize = pool.ranges().iter().map(|(_, len)| len).sum();
            assert!(held <= mib << 20, "{mib} MiB: {held}");
        }
    }
}
