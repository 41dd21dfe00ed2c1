//! Whether a core that has nothing to do looks around for a moment before it sleeps.
//!
//! A processor that sleeps is late: it has to be interrupted, and as a guest or in a deep state it takes tens of microseconds to be
//! there again, which is half of what a drive takes. So where few operations are under way and the last waits were short, the core looks at
//! its ring and at the queue of foreign wake-ups in place of sleeping. It costs what it wins: the processor is at work
//! meanwhile. So it ends after a while, is not done after a wait that turned out long, not where a loaded core waits for one of many, and
//! not while something else wants the processor, which shows as a look that comes late.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Waits in a row that were short enough before the next one begins with looking. Where flushes come between reads or writes there are
/// hardly ever so many: a flush takes longer than anyone should look.
const SHORT_IN_ROW: u8 = 8;

/// Operations under way up to which a core is waiting for one of them; with more it has its answers in batches.
const UNDER_WAY_MAX: usize = 4;

/// Two looks so far apart: another thread had the processor. The interrupt of the answer itself takes some of that in a guest.
const DISTURBED: Duration = Duration::from_micros(200);

/// No looking after that; doubled each time up to the longest, and short again when looking went on for as long undisturbed.
const PAUSE: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// How looking ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// There is something to do.
    Found,
    /// Nothing came.
    Nothing,
}

/// The state of one core.
pub(crate) struct BusyPoll {
    longest: Duration,
    /// Short waits since the last long one.
    short: Cell<u8>,
    /// The last disturbance, and how long nothing is looked for after it.
    paused: Cell<Option<(Instant, Duration)>>,
    looks: Cell<u64>,
    found: Cell<u64>,
    spent: Cell<Duration>,
}

impl BusyPoll {
    /// - `longest`: how long it looks at most; zero: never.
    pub fn new(longest: Duration) -> BusyPoll {
        BusyPoll {
            longest,
            short: Cell::new(0),
            paused: Cell::new(None),
            looks: Cell::new(0),
            found: Cell::new(0),
            spent: Cell::new(Duration::ZERO),
        }
    }

    /// Whether waits with so many operations under way are any of its business.
    pub fn watches(&self, under_way: usize) -> bool {
        !self.longest.is_zero() && (1..=UNDER_WAY_MAX).contains(&under_way)
    }

    /// Whether the next wait begins with looking.
    pub fn is_due(&self, now: Instant) -> bool {
        let is_paused = self.paused.get().is_some_and(|(since, pause)| now.duration_since(since) < pause);
        self.short.get() >= SHORT_IN_ROW && !is_paused
    }

    /// Looks until `is_there` or the time is over, at `until` at the latest.
    pub fn look(&self, until: Option<Instant>, is_there: impl Fn() -> bool) -> Look {
        let start = Instant::now();
        let end = until.map_or(start + self.longest, |until| until.min(start + self.longest));
        let mut before = start;
        let look = loop {
            if is_there() {
                break Look::Found;
            }
            std::hint::spin_loop();
            let now = Instant::now();
            if now.duration_since(before) > DISTURBED {
                self.disturbed(now);
                break if is_there() { Look::Found } else { Look::Nothing };
            }
            before = now;
            if now >= end {
                break Look::Nothing;
            }
        };
        self.looks.set(self.looks.get() + 1);
        self.found.set(self.found.get() + u64::from(look == Look::Found));
        self.spent.set(self.spent.get() + before.duration_since(start));
        look
    }

    fn disturbed(&self, now: Instant) {
        let pause = match self.paused.get() {
            Some((since, pause)) if now.duration_since(since) < pause * 2 => (pause * 2).min(PAUSE_MAX),
            _ => PAUSE,
        };
        self.paused.set(Some((now, pause)));
    }

    /// A wait that it watches has ended, looked at or slept through.
    pub fn waited(&self, took: Duration) {
        let is_short = took <= self.longest;
        self.short.set(if is_short { self.short.get().saturating_add(1) } else { 0 });
    }

    /// Times that it looked, times that it found something, and the time that it took.
    pub fn counts(&self) -> (u64, u64, Duration) {
        (self.looks.get(), self.found.get(), self.spent.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_millis(50);

    fn after_short_waits() -> BusyPoll {
        let poll = BusyPoll::new(LONGEST);
        (0..SHORT_IN_ROW).for_each(|_| poll.waited(LONGEST));
        poll
    }

    #[test]
    fn it_looks_after_short_waits_and_a_long_one_ends_that() {
        let (poll, now) = (BusyPoll::new(LONGEST), Instant::now());
        for _ in 0..SHORT_IN_ROW {
            assert!(!poll.is_due(now));
            poll.waited(Duration::from_micros(60));
        }
        assert!(poll.is_due(now));
        poll.waited(LONGEST + Duration::from_nanos(1));
        assert!(!poll.is_due(now));
    }

    #[test]
    fn only_waits_for_few_operations_count_and_none_where_it_is_turned_off() {
        let poll = BusyPoll::new(LONGEST);
        assert_eq!([0, 1, 4, 5].map(|under_way| poll.watches(under_way)), [false, true, true, false]);
        assert!(!BusyPoll::new(Duration::ZERO).watches(1));
    }

    #[test]
    fn a_look_ends_when_something_is_there_and_else_in_time() {
        let poll = after_short_waits();
        assert_eq!(poll.look(None, || true), Look::Found);
        let (start, before) = (Instant::now(), Cell::new(0));
        let third = || before.replace(before.get() + 1) == 2;
        // A machine that is busy may take the processor away at any time; then it ends sooner.
        let _either = poll.look(Some(start + Duration::from_millis(1)), third);
        assert!(before.get() <= 3);
        poll.look(Some(start), || false);
        let (looks, found, spent) = poll.counts();
        assert!(looks == 3 && found >= 1 && spent <= LONGEST * 2, "{looks} {found} {spent:?}");
    }

    #[test]
    fn whoever_is_disturbed_pauses_longer_each_time() {
        let poll = after_short_waits();
        let late = || {
            std::thread::sleep(DISTURBED * 2);
            false
        };
        assert_eq!(poll.look(None, late), Look::Nothing);
        let pause = |poll: &BusyPoll| poll.paused.get().expect("it was disturbed").1;
        assert_eq!(pause(&poll), PAUSE);
        let (since, _) = poll.paused.get().expect("it was disturbed");
        assert!(!poll.is_due(since + PAUSE / 2) && poll.is_due(since + PAUSE));
        for expected in [2, 4, 8, 16, 32, 64, 100, 100] {
            let (since, before) = poll.paused.get().expect("as above");
            poll.disturbed(since + before);
            assert_eq!(pause(&poll), PAUSE * expected);
        }
        let (since, before) = poll.paused.get().expect("as above");
        poll.disturbed(since + before * 2);
        assert_eq!(pause(&poll), PAUSE, "it was left alone for long enough");
    }
}
