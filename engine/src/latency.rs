//! How long reads of each device, and answers of each node, take lately: when an answer counts as late, who is slow, and how
//! often somebody else may be asked because of it.
//!
//! What is usual is the middle of what all sources of a kind do, so that one slow device does not look usual. Everything
//! here is a hint: it decides who is asked, never what is believed.

use kiseki_types::ids::{DeviceId, NodeId};
use kiseki_types::runtime::Instant;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

/// No answer is late before this: below it waiting costs less than asking somebody else.
pub const LATE_MIN: Duration = Duration::from_millis(5);

/// Every answer is late after this.
pub const LATE_MAX: Duration = Duration::from_secs(1);

/// An answer of a source of which little is known is late after this.
const LATE_UNKNOWN: Duration = Duration::from_millis(250);

/// Answers before a source's times count.
const SAMPLES_MIN: u32 = 16;

/// Answers that are remembered; with more all count half.
const SAMPLES_MAX: u32 = 256;

/// Answers between two looks at what is usual.
const LOOK_EVERY: u32 = 8;

/// A source is slow that takes so many times as long as usual.
const SLOW_FACTOR: u64 = 4;

/// So many times one after the other.
const SLOW_STREAK: u32 = 3;

/// A slow source is tried again after this time without an answer of it.
const SLOW_FOR: Duration = Duration::from_secs(5);

/// Of so many reads one may be asked for a second time, because the first one is late.
pub const READS_PER_HEDGE: u32 = 20;

/// Second reads that may be asked in a row when none were asked for long.
pub const HEDGES_AT_ONCE: u32 = 16;

/// Sources that are remembered; with more all are forgotten (I-O5).
const SOURCES_MAX: usize = 4_096;

/// Times are counted in classes that grow by a quarter of a power of two, from 64 µs to 16 s.
const CLASSES: usize = 72;

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// A device, a few blocks.
    SmallRead(DeviceId),
    /// A device, more than that.
    LargeRead(DeviceId),
    /// A node that is asked where fragments lie.
    Locate(NodeId),
}

impl Source {
    /// A read of so many bytes.
    #[must_use]
    pub fn read(device: DeviceId, len_bytes: usize) -> Source {
        if len_bytes <= 64 << 10 { Source::SmallRead(device) } else { Source::LargeRead(device) }
    }

    fn kind(&self) -> usize {
        match self {
            Source::SmallRead(_) => 0,
            Source::LargeRead(_) => 1,
            Source::Locate(_) => 2,
        }
    }
}

struct Times {
    classes: [u16; CLASSES],
    count: u32,
    /// Times that half and 95 % of the answers stay within, in microseconds.
    half_us: u64,
    most_us: u64,
    slow_streak: u32,
    last: Instant,
}

impl Times {
    fn new() -> Times {
        Times { classes: [0; CLASSES], count: 0, half_us: 0, most_us: 0, slow_streak: 0, last: Instant(0) }
    }

    fn add(&mut self, us: u64) {
        if self.count >= SAMPLES_MAX {
            self.classes.iter_mut().for_each(|count| *count /= 2);
            self.count = self.classes.iter().map(|count| u32::from(*count)).sum();
        }
        self.classes[class_of(us)] += 1;
        self.count += 1;
    }

    fn within(&self, percent: u32) -> u64 {
        let wanted = (self.count * percent).div_ceil(100);
        let mut seen = 0;
        for (class, count) in self.classes.iter().enumerate() {
            seen += u32::from(*count);
            if seen >= wanted {
                return end_of(class);
            }
        }
        end_of(CLASSES - 1)
    }
}

fn class_of(us: u64) -> usize {
    let us = us.max(64);
    let power = us.ilog2() as usize;
    let quarter = (us >> (power - 2)) & 3;
    ((power - 6) * 4 + quarter as usize).min(CLASSES - 1)
}

fn end_of(class: usize) -> u64 {
    (5 + class as u64 % 4) << (class / 4 + 4)
}

/// What is usual for a kind of source.
#[derive(Clone, Copy, Default)]
struct Usual {
    half_us: u64,
    most_us: u64,
    /// Sources that it was made of; one alone says nothing about itself.
    sources: usize,
}

/// The times of all sources, as one core sees them.
#[derive(Default)]
pub struct Latencies {
    by: RefCell<BTreeMap<Source, Times>>,
    usual: Cell<[Usual; 3]>,
    looks: Cell<u32>,
}

impl Latencies {
    /// A source has answered after this time, or has not answered for as long.
    pub fn record(&self, source: Source, took: Duration, now: Instant) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let usual = self.usual.get()[source.kind()];
        let slow_us = (usual.half_us * SLOW_FACTOR).max(LATE_MIN.as_micros() as u64);
        let mut by = self.by.borrow_mut();
        if by.len() >= SOURCES_MAX && !by.contains_key(&source) {
            by.clear();
        }
        let times = by.entry(source).or_insert_with(Times::new);
        times.add(us);
        times.last = now;
        times.slow_streak = if us >= slow_us { times.slow_streak.saturating_add(1) } else { 0 };
        if times.count.is_multiple_of(LOOK_EVERY) {
            (times.half_us, times.most_us) = (times.within(50), times.within(95));
        }
        drop(by);
        self.looks.set((self.looks.get() + 1) % LOOK_EVERY);
        if self.looks.get().is_multiple_of(LOOK_EVERY) {
            self.look();
        }
    }

    /// Looks at what is usual: the middle of what the sources do.
    fn look(&self) {
        let by = self.by.borrow();
        let mut usual = [Usual::default(); 3];
        for (kind, usual) in usual.iter_mut().enumerate() {
            let known = || by.iter().filter(|(source, times)| source.kind() == kind && times.count >= SAMPLES_MIN);
            let middle = |value: fn(&Times) -> u64| {
                let mut values: Vec<u64> = known().map(|(_, times)| value(times)).collect();
                values.sort_unstable();
                values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or_default()
            };
            let (half_us, most_us) = (middle(|times| times.half_us), middle(|times| times.most_us));
            *usual = Usual { half_us, most_us, sources: known().count() };
        }
        self.usual.set(usual);
    }

    /// After which time an answer is late: when 95 % of the source's own would have come, or twice what 95 % of the usual
    /// ones take, whichever is sooner.
    #[must_use]
    pub fn late_after(&self, source: Source) -> Duration {
        let by = self.by.borrow();
        let usual = self.usual.get()[source.kind()];
        let own = by.get(&source).filter(|times| times.count >= SAMPLES_MIN).map(|times| times.most_us);
        let others = (usual.sources >= 2).then_some(usual.most_us * 2);
        match own.into_iter().chain(others).min() {
            Some(us) => Duration::from_micros(us).clamp(LATE_MIN, LATE_MAX),
            None => LATE_UNKNOWN,
        }
    }

    /// Whether a source has been much slower than usual lately, so that others are asked first.
    #[must_use]
    pub fn is_slow(&self, source: Source, now: Instant) -> bool {
        if self.usual.get()[source.kind()].sources < 2 {
            return false;
        }
        let by = self.by.borrow();
        by.get(&source).is_some_and(|times| times.slow_streak >= SLOW_STREAK && now.since(times.last) < SLOW_FOR)
    }
}

/// How many reads may be asked for a second time.
pub struct HedgeBudget {
    credit: Cell<u32>,
}

impl Default for HedgeBudget {
    fn default() -> HedgeBudget {
        HedgeBudget { credit: Cell::new(HEDGES_AT_ONCE * READS_PER_HEDGE) }
    }
}

impl HedgeBudget {
    /// Reads that had to be asked in any case.
    pub fn earn(&self, reads: usize) {
        let reads = u32::try_from(reads).unwrap_or(u32::MAX);
        self.credit.set(self.credit.get().saturating_add(reads).min(HEDGES_AT_ONCE * READS_PER_HEDGE));
    }

    /// Whether so many more may be asked now; then they are paid for.
    #[must_use]
    pub fn spend(&self, reads: usize) -> bool {
        let price = u32::try_from(reads).unwrap_or(u32::MAX).saturating_mul(READS_PER_HEDGE);
        let left = self.credit.get().checked_sub(price);
        left.inspect(|left| self.credit.set(*left)).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(number: u8) -> Source {
        Source::LargeRead(DeviceId([number; 16]))
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn every_time_falls_into_the_class_that_ends_behind_it() {
        for us in (0..2_000).chain([4_095, 4_096, 70_001, 1 << 20, (1 << 20) - 1, 15_999_999]) {
            let class = class_of(us);
            assert!(us < end_of(class) && (class == 0 || us >= end_of(class - 1)), "{us} µs in class {class}");
        }
        assert_eq!((class_of(u64::MAX), class_of(0)), (CLASSES - 1, 0));
    }

    #[test]
    fn one_slow_device_is_late_by_what_the_others_take_and_others_are_asked_first() {
        let times = Latencies::default();
        assert_eq!(times.late_after(source(1)), LATE_UNKNOWN);
        let mut now = Instant(0);
        for _ in 0..40 {
            now = now + ms(10);
            (1..=5).for_each(|number| times.record(source(number), ms(4), now));
            times.record(source(6), ms(300), now);
        }
        for number in [1, 6] {
            let late = times.late_after(source(number));
            assert!(late >= LATE_MIN && late <= ms(12), "device {number}: {late:?}");
        }
        assert!(times.is_slow(source(6), now) && !times.is_slow(source(1), now));
        assert!(!times.is_slow(source(6), now + SLOW_FOR), "it is tried again");
        times.record(source(6), ms(4), now + SLOW_FOR);
        assert!(!times.is_slow(source(6), now + SLOW_FOR), "and is as good as the others");
    }

    #[test]
    fn where_all_are_slow_none_is() {
        let times = Latencies::default();
        for round in 0..40 {
            (1..=6).for_each(|number| times.record(source(number), ms(200), Instant(round)));
        }
        assert!(!(1..=6).any(|number| times.is_slow(source(number), Instant(41))));
        assert!(times.late_after(source(1)) >= ms(200));
    }

    #[test]
    fn i_o5_second_reads_are_bounded() {
        let budget = HedgeBudget::default();
        let mut granted = (0..100).filter(|_| budget.spend(1)).count();
        assert_eq!(granted, HEDGES_AT_ONCE as usize, "I-O5");
        for _ in 0..1_000 {
            budget.earn(4);
            granted += usize::from(budget.spend(1));
        }
        assert_eq!(granted, HEDGES_AT_ONCE as usize + 4_000 / READS_PER_HEDGE as usize);
    }
}
