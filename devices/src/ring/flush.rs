//! Who waits for which flush: at most one is in flight and one is to come.
//!
//! A flush covers writes that completed before it was *submitted*. So a caller may join only a flush that is not yet
//! submitted; one that is in flight may already have passed over the caller's data.

use super::reply::Reply;

type Waiter = Reply<()>;

/// The waiters of the flush in flight and of the next one.
#[derive(Default)]
pub(super) struct FlushGate {
    running: bool,
    current: Vec<Waiter>,
    next: Vec<Waiter>,
}

impl FlushGate {
    /// Adds a waiter. True: the caller has to queue a flush now.
    pub fn join(&mut self, waiter: Waiter) -> bool {
        if self.running {
            self.next.push(waiter);
            return false;
        }
        self.running = true;
        self.current.push(waiter);
        true
    }

    /// The flush ended. Returns its waiters, and whether the next one has to be queued.
    pub fn done(&mut self) -> (Vec<Waiter>, bool) {
        assert!(self.running, "a flush ended that nobody started");
        let ended = std::mem::replace(&mut self.current, std::mem::take(&mut self.next));
        self.running = !self.current.is_empty();
        (ended, self.running)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i_l2_a_waiter_never_joins_a_flush_that_was_submitted_before_it_called() {
        let mut gate = FlushGate::default();
        let waiter = || crate::ring::reply::reply().0;
        assert!(gate.join(waiter()));
        assert!(!gate.join(waiter()) && !gate.join(waiter()), "one flush at a time");
        let (ended, again) = gate.done();
        assert_eq!((ended.len(), again), (1, true), "I-L2: the two latecomers need another flush");
        let (ended, again) = gate.done();
        assert_eq!((ended.len(), again), (2, false), "and share it");
        assert!(gate.join(waiter()));
    }
}
