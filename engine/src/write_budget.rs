//! Memory that the writes of one core may hold, so that any number of clients costs no more than that.
//!
//! Three budgets, because their owners end in different ways. A chunk *in flight* is done soon, whatever its client does; a
//! chunk that is being *filled* waits for its client, up to the gateway's idle timeout. So what is in flight never waits
//! for what is being filled, and somebody always makes room. Longer content that is *named* with its entry waits for its
//! shard's leader, however long that takes: nobody waits for that room, it is there or is done without.

use futures::channel::oneshot;
use futures::future::{Either, select};
use kiseki_types::Ports;
use kiseki_types::runtime::RuntimeExt;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

/// Bytes of chunks between cut and durable: some times what a core stores while one of them is written (I-O5).
pub const IN_FLIGHT_BYTES_MAX: usize = 64 << 20;

/// Bytes of content that lies inline and is being named, with its copies: 200 of the longest at once (I-O5).
pub const NAMING_BYTES_MAX: usize = 64 << 20;

/// Bytes of chunks that are being filled: 64 large uploads at once, or any number of small objects below that (I-O5).
pub const FILLING_BYTES_MAX: usize = 256 << 20;

/// Longest wait of an upload for its turn. Clients give up after a minute; they had better hear of it.
pub const TURN_WAIT_MAX: Duration = Duration::from_secs(20);

/// Bytes that are shared, in the order in which they were asked for.
pub struct Budget {
    limit: usize,
    free: Cell<usize>,
    waiting: RefCell<VecDeque<(usize, oneshot::Sender<Grant>)>>,
    /// Requests that had to wait.
    pub waits: Cell<u64>,
}

/// A share of a [`Budget`]; dropping it gives it back.
pub struct Grant {
    budget: Rc<Budget>,
    bytes: usize,
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.budget.free.set(self.budget.free.get() + self.bytes);
        self.budget.serve();
    }
}

impl Budget {
    fn new(limit: usize) -> Rc<Budget> {
        Rc::new(Budget { limit, free: Cell::new(limit), waiting: RefCell::default(), waits: Cell::new(0) })
    }

    /// Bytes that are taken.
    #[must_use]
    pub fn used(&self) -> usize {
        self.limit - self.free.get()
    }

    /// A share, if one is free and nobody waits. More than there is in all counts as all of it.
    pub fn try_take(self: &Rc<Self>, bytes: usize) -> Option<Grant> {
        let bytes = bytes.min(self.limit);
        if !self.waiting.borrow().is_empty() || self.free.get() < bytes {
            return None;
        }
        self.free.set(self.free.get() - bytes);
        Some(Grant { budget: self.clone(), bytes })
    }

    /// A share, in turn.
    pub async fn take(self: &Rc<Self>, bytes: usize) -> Grant {
        if let Some(grant) = self.try_take(bytes) {
            return grant;
        }
        self.waits.set(self.waits.get() + 1);
        let (sender, granted) = oneshot::channel();
        self.waiting.borrow_mut().push_back((bytes.min(self.limit), sender));
        granted.await.expect("whoever waits is served as long as the budget lives")
    }

    fn serve(self: &Rc<Self>) {
        loop {
            let sender = {
                let mut waiting = self.waiting.borrow_mut();
                // Who went away leaves no gap: the next one is as good.
                while waiting.front().is_some_and(|(_, sender)| sender.is_canceled()) {
                    waiting.pop_front();
                }
                let Some((bytes, _)) = waiting.front() else { return };
                if self.free.get() < *bytes {
                    return;
                }
                let (bytes, sender) = waiting.pop_front().expect("looked above");
                self.free.set(self.free.get() - bytes);
                (sender, Grant { budget: self.clone(), bytes })
            };
            // A grant that finds nobody comes back by its drop.
            let _gone = sender.0.send(sender.1);
        }
    }
}

/// The budgets of one core.
pub struct WriteBudget {
    ports: Ports,
    /// Of chunks in flight.
    pub in_flight: Rc<Budget>,
    /// Of chunks that are being filled.
    pub filling: Rc<Budget>,
    /// Of content that is named.
    pub naming: Rc<Budget>,
}

impl WriteBudget {
    /// With nothing taken.
    #[must_use]
    pub fn new(ports: Ports) -> WriteBudget {
        WriteBudget {
            ports,
            in_flight: Budget::new(IN_FLIGHT_BYTES_MAX),
            filling: Budget::new(FILLING_BYTES_MAX),
            naming: Budget::new(NAMING_BYTES_MAX),
        }
    }

    /// Room to fill a chunk of `bytes`; `None` when there was none for [`TURN_WAIT_MAX`].
    pub async fn fill(&self, bytes: usize) -> Option<Grant> {
        if let Some(grant) = self.filling.try_take(bytes) {
            return Some(grant);
        }
        let turn = Box::pin(self.filling.take(bytes));
        match select(turn, self.ports.sleep(TURN_WAIT_MAX)).await {
            Either::Left((grant, _)) => Some(grant),
            Either::Right(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn i_o5_shares_are_bounded_and_given_in_turn() {
        let budget = Budget::new(10);
        let (large, small) = (budget.try_take(8).unwrap(), budget.try_take(2).unwrap());
        assert!(budget.try_take(1).is_none() && budget.used() == 10);
        let mut first = Box::pin(budget.take(5));
        let mut second = Box::pin(budget.take(1));
        assert!(first.as_mut().now_or_never().is_none() && second.as_mut().now_or_never().is_none());
        drop(small);
        assert!(second.as_mut().now_or_never().is_none(), "no small one overtakes a large one for ever");
        drop(large);
        let (first, second) = (first.now_or_never().unwrap(), second.now_or_never().unwrap());
        assert_eq!((budget.used(), budget.waits.get()), (6, 2));
        drop((first, second));
        assert_eq!(budget.used(), 0);
        assert_eq!(budget.try_take(99).map(|grant| grant.bytes), Some(10), "more than all is all");
    }

    #[test]
    fn a_waiter_that_goes_away_loses_nothing_of_the_budget() {
        let budget = Budget::new(10);
        let all = budget.try_take(10).unwrap();
        let mut gone = Box::pin(budget.take(10));
        let mut late = Box::pin(budget.take(4));
        assert!(gone.as_mut().now_or_never().is_none() && late.as_mut().now_or_never().is_none());
        let mut granted = Box::pin(budget.take(3));
        assert!(granted.as_mut().now_or_never().is_none());
        drop(gone);
        drop(all);
        drop(late); // granted by now, and never looked at
        assert_eq!(budget.used(), 3);
        drop(granted.now_or_never().unwrap());
        assert_eq!(budget.used(), 0);
    }
}
