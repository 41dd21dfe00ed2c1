//! Where the time of a request goes: phases that follow each other, so that their sum is its latency.
//!
//! They are summed up for each class of latency. So it can be said what the slowest thousandth of all requests
//! waited for, which the distributions of single stages do not tell.

use kiseki_types::histogram::{CLASSES, class_end_ns, class_of};
use kiseki_types::runtime::Instant;
use std::cell::Cell;
use std::time::Duration;

/// A part of the time of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// From its head to the handler: parsing, signature, whose key it is.
    Authenticate,
    /// Where the bucket and the object are; of a GET with the answer of the shard.
    Lookup,
    /// Waiting for the client's bytes.
    Receive,
    /// Checksums and MD5 of the body.
    Digest,
    /// Taking bytes in: cutting, and waiting for chunks on their way and for memory.
    Store,
    /// Until the shard has committed the name.
    Commit,
    /// Waiting for the bytes of the object.
    Read,
    /// Waiting for the client to take the answer.
    Send,
    /// The rest of the handler; of an operation without phases of its own all of it.
    Other,
}

/// How many there are.
pub const PHASES: usize = 9;

impl Phase {
    /// All of them, in the order in which they come.
    pub const ALL: [Phase; PHASES] = [
        Phase::Authenticate,
        Phase::Lookup,
        Phase::Receive,
        Phase::Digest,
        Phase::Store,
        Phase::Commit,
        Phase::Read,
        Phase::Send,
        Phase::Other,
    ];

    /// As it is exported.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Phase::Authenticate => "authenticate",
            Phase::Lookup => "lookup",
            Phase::Receive => "receive",
            Phase::Digest => "digest",
            Phase::Store => "store",
            Phase::Commit => "commit",
            Phase::Read => "read",
            Phase::Send => "send",
            Phase::Other => "other",
        }
    }
}

/// The phases of one request that is going on.
pub(crate) struct PhaseClock {
    since: Cell<Instant>,
    spent_ns: [Cell<u64>; PHASES],
}

impl PhaseClock {
    pub(crate) fn new(now: Instant) -> PhaseClock {
        PhaseClock { since: Cell::new(now), spent_ns: Default::default() }
    }

    /// What has passed since the last phase ended was this one.
    pub(crate) fn ended(&self, phase: Phase, now: Instant) {
        let spent = &self.spent_ns[phase as usize];
        spent.set(spent.get() + now.since(self.since.get()).as_nanos() as u64);
        self.since.set(now);
    }

    /// The time of each so far.
    pub(crate) fn spent_ns(&self) -> [u64; PHASES] {
        std::array::from_fn(|phase| self.spent_ns[phase].get())
    }
}

/// The phases of all requests of one class of latency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PhaseSums {
    /// Requests.
    pub requests: u64,
    /// The time of each phase, of all of them together.
    pub spent_ns: [u64; PHASES],
}

/// The phases of the requests of one operation, by class of latency.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PhaseTimes {
    by_class: Box<[PhaseSums; CLASSES]>,
}

impl Default for PhaseTimes {
    fn default() -> PhaseTimes {
        PhaseTimes { by_class: Box::new([PhaseSums::default(); CLASSES]) }
    }
}

impl PhaseTimes {
    pub(crate) fn count(&mut self, latency: Duration, spent_ns: &[u64; PHASES]) {
        let sums = &mut self.by_class[class_of(latency)];
        sums.requests += 1;
        sums.spent_ns.iter_mut().zip(spent_ns).for_each(|(sum, ns)| *sum += ns);
    }

    pub(crate) fn add(&mut self, other: &PhaseTimes) {
        for (ours, theirs) in self.by_class.iter_mut().zip(&other.by_class[..]) {
            ours.requests += theirs.requests;
            ours.spent_ns.iter_mut().zip(theirs.spent_ns).for_each(|(a, b)| *a += b);
        }
    }

    /// The classes that hold something, with the nanoseconds that no latency of theirs reaches.
    pub fn filled(&self) -> impl Iterator<Item = (u64, &PhaseSums)> {
        let classes = self.by_class.iter().enumerate();
        classes.filter(|(_, sums)| sums.requests > 0).map(|(class, sums)| (class_end_ns(class), sums))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_follow_each_other_and_make_up_the_latency() {
        let clock = PhaseClock::new(Instant(1_000));
        clock.ended(Phase::Authenticate, Instant(3_000));
        clock.ended(Phase::Store, Instant(10_000));
        clock.ended(Phase::Authenticate, Instant(10_500));
        let spent = clock.spent_ns();
        assert_eq!((spent[Phase::Authenticate as usize], spent[Phase::Store as usize]), (2_500, 7_000));
        assert_eq!(spent.iter().sum::<u64>(), 9_500);
        let mut times = PhaseTimes::default();
        times.count(Duration::from_nanos(9_500), &spent);
        times.count(Duration::from_secs(1), &spent);
        let mut sum = times.clone();
        sum.add(&times);
        let filled: Vec<_> = sum.filled().collect();
        assert_eq!(filled.len(), 2, "the slow one is told apart");
        assert_eq!((filled[0].1.requests, filled[0].1.spent_ns[Phase::Store as usize]), (2, 14_000));
    }
}
