//! How long the steps of a command take in the Raft of one lane: always on, exported beside the stages of the data path.

use kiseki_types::histogram::Histogram;
use kiseki_types::runtime::{Instant, Ports};
use std::cell::RefCell;

/// A step of a command. Those of several commands go on at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RaftStep {
    /// From an append in the log until the flush that makes it durable has returned (I-L2).
    LogFlush,
    /// From an append sent to a peer, with entries, to its answer: its flush and the way there and back.
    Replicate,
    /// The state machine's work on one entry.
    Apply,
}

impl RaftStep {
    /// All of them.
    pub const ALL: [RaftStep; 3] = [RaftStep::LogFlush, RaftStep::Replicate, RaftStep::Apply];

    /// As it is exported.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            RaftStep::LogFlush => "log_flush",
            RaftStep::Replicate => "replicate",
            RaftStep::Apply => "apply",
        }
    }
}

/// The times of one lane.
pub struct RaftTimes {
    of: RefCell<[Histogram; RaftStep::ALL.len()]>,
}

impl Default for RaftTimes {
    fn default() -> RaftTimes {
        RaftTimes { of: RefCell::new(std::array::from_fn(|_| Histogram::default())) }
    }
}

impl RaftTimes {
    /// Counts a step that began at `since` and has ended.
    pub fn ended(&self, step: RaftStep, since: Instant, ports: &Ports) {
        self.of.borrow_mut()[step as usize].record(ports.now().since(since));
    }

    /// Adds what was counted so far to `sum`, one histogram for each of [`RaftStep::ALL`].
    pub fn add_to(&self, sum: &mut [Histogram; RaftStep::ALL.len()]) {
        sum.iter_mut().zip(&*self.of.borrow()).for_each(|(sum, of)| sum.add(of));
    }
}
