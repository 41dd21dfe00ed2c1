//! Latches of a leader: who decides about an entry holds its latch until the decision is applied, so that what a delta
//! drops is exact. Shared or exclusive, granted in the order of asking; on one core, so no atomics.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use futures::channel::oneshot;

/// How a latch is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Together with other shared holders.
    Shared,
    /// Alone.
    Exclusive,
}

#[derive(Default)]
struct Latch {
    shared: usize,
    exclusive: bool,
    waiting: VecDeque<(Hold, oneshot::Sender<()>)>,
}

impl Latch {
    fn admits(&self, hold: Hold) -> bool {
        match hold {
            Hold::Shared => !self.exclusive,
            Hold::Exclusive => !self.exclusive && self.shared == 0,
        }
    }

    fn grant(&mut self, hold: Hold) {
        match hold {
            Hold::Shared => self.shared += 1,
            Hold::Exclusive => self.exclusive = true,
        }
    }

    fn release(&mut self, hold: Hold) {
        match hold {
            Hold::Shared => self.shared -= 1,
            Hold::Exclusive => self.exclusive = false,
        }
        while let Some((next, _)) = self.waiting.front() {
            let next = *next;
            if !self.admits(next) {
                break;
            }
            let (_, sender) = self.waiting.pop_front().expect("front was there");
            if !sender.is_canceled() && sender.send(()).is_ok() {
                self.grant(next);
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.shared == 0 && !self.exclusive && self.waiting.is_empty()
    }
}

/// All latches of one shard, by key.
#[derive(Clone, Default)]
pub struct Latches {
    table: Rc<RefCell<BTreeMap<Vec<u8>, Latch>>>,
}

impl Latches {
    /// Waits for the latch of `key`.
    pub async fn hold(&self, key: Vec<u8>, hold: Hold) -> LatchGuard {
        let waiting = {
            let mut table = self.table.borrow_mut();
            let latch = table.entry(key.clone()).or_default();
            if latch.waiting.is_empty() && latch.admits(hold) {
                latch.grant(hold);
                None
            } else {
                let (sender, receiver) = oneshot::channel();
                latch.waiting.push_back((hold, sender));
                Some(receiver)
            }
        };
        let Some(receiver) = waiting else {
            return LatchGuard { table: self.table.clone(), key, hold };
        };
        let mut ticket = Ticket { table: self.table.clone(), key, hold, receiver: Some(receiver) };
        ticket.receiver.as_mut().expect("just set").await.expect("latches outlive their waiters");
        ticket.into_guard()
    }

    /// Latches held or waited for.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.borrow().len()
    }

    /// Whether nobody holds anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A waiter whose future may be dropped just after its latch was granted: then the grant must be given back.
struct Ticket {
    table: Rc<RefCell<BTreeMap<Vec<u8>, Latch>>>,
    key: Vec<u8>,
    hold: Hold,
    receiver: Option<oneshot::Receiver<()>>,
}

impl Ticket {
    fn into_guard(mut self) -> LatchGuard {
        self.receiver = None;
        LatchGuard { table: self.table.clone(), key: std::mem::take(&mut self.key), hold: self.hold }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let Some(mut receiver) = self.receiver.take() else { return };
        receiver.close();
        let granted = matches!(receiver.try_recv(), Ok(Some(())));
        if granted {
            release(&self.table, &self.key, self.hold);
        }
    }
}

fn release(table: &RefCell<BTreeMap<Vec<u8>, Latch>>, key: &[u8], hold: Hold) {
    let mut table = table.borrow_mut();
    let latch = table.get_mut(key).expect("a held latch is in the table");
    latch.release(hold);
    if latch.is_idle() {
        table.remove(key);
    }
}

/// Holds a latch until dropped.
pub struct LatchGuard {
    table: Rc<RefCell<BTreeMap<Vec<u8>, Latch>>>,
    key: Vec<u8>,
    hold: Hold,
}

impl Drop for LatchGuard {
    fn drop(&mut self) {
        release(&self.table, &self.key, self.hold);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use futures::executor::block_on;

    #[test]
    fn exclusive_waits_for_shared_and_order_is_kept() {
        let latches = Latches::default();
        let first = block_on(latches.hold(b"k".to_vec(), Hold::Shared));
        let second = block_on(latches.hold(b"k".to_vec(), Hold::Shared));
        let mut writer = Box::pin(latches.hold(b"k".to_vec(), Hold::Exclusive));
        assert!((&mut writer).now_or_never().is_none());
        let mut late = Box::pin(latches.hold(b"k".to_vec(), Hold::Shared));
        assert!((&mut late).now_or_never().is_none(), "a late reader does not overtake the writer");
        drop(first);
        assert!((&mut writer).now_or_never().is_none());
        drop(second);
        let held = (&mut writer).now_or_never().expect("the writer's turn");
        assert!((&mut late).now_or_never().is_none());
        drop(held);
        let held = (&mut late).now_or_never().expect("the reader's turn");
        drop(held);
        drop((writer, late));
        assert!(latches.is_empty());
    }

    #[test]
    fn a_dropped_waiter_blocks_nobody() {
        let latches = Latches::default();
        let first = block_on(latches.hold(b"k".to_vec(), Hold::Exclusive));
        let mut gone = Box::pin(latches.hold(b"k".to_vec(), Hold::Exclusive));
        let mut granted = Box::pin(latches.hold(b"k".to_vec(), Hold::Exclusive));
        assert!((&mut gone).now_or_never().is_none());
        assert!((&mut granted).now_or_never().is_none());
        drop(gone);
        drop(first);
        drop(granted); // granted, but never polled again: the latch must come back
        assert!(block_on(latches.hold(b"k".to_vec(), Hold::Exclusive).map(|_| true)));
        assert!(latches.is_empty());
    }
}
