//! How long something took, counted in classes: cheap enough to be always on, close enough for p99.9.
//!
//! Classes grow by an eighth of a power of two from a microsecond to two minutes, so a percentile is at most 12.5 % off.
//! Counting takes some instructions and no memory.

use std::time::Duration;

/// Values below `1 << SMALLEST_BITS` nanoseconds are one class.
const SMALLEST_BITS: u32 = 10;

/// Classes of each power of two, as bits.
const STEP_BITS: u32 = 3;

/// Powers of two that are told apart: up to 137 s.
const POWERS: u32 = 27;

/// Classes of a histogram.
pub const CLASSES: usize = 1 + (POWERS << STEP_BITS) as usize;

/// The class of a time.
#[must_use]
pub fn class_of(time: Duration) -> usize {
    let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    if ns < 1 << SMALLEST_BITS {
        return 0;
    }
    let power = u64::BITS - 1 - ns.leading_zeros();
    let step = (ns >> (power - STEP_BITS)) & ((1 << STEP_BITS) - 1);
    let class = 1 + u64::from((power - SMALLEST_BITS) << STEP_BITS) + step;
    (class as usize).min(CLASSES - 1)
}

/// Nanoseconds that no time of a class reaches; the last class has none.
#[must_use]
pub fn class_end_ns(class: usize) -> u64 {
    match class as u32 {
        0 => 1 << SMALLEST_BITS,
        last if last as usize >= CLASSES - 1 => u64::MAX,
        class => {
            let (power, step) = ((class - 1) >> STEP_BITS, (class - 1) & ((1 << STEP_BITS) - 1));
            u64::from((1 << STEP_BITS) + step + 1) << (power + SMALLEST_BITS - STEP_BITS)
        }
    }
}

/// Times of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    /// How many of each class.
    pub counts: Box<[u64; CLASSES]>,
    /// The sum of all.
    pub sum_ns: u64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { counts: Box::new([0; CLASSES]), sum_ns: 0 }
    }
}

impl Histogram {
    /// Counts one.
    pub fn record(&mut self, time: Duration) {
        self.counts[class_of(time)] += 1;
        self.sum_ns = self.sum_ns.saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Adds all that another one counted.
    pub fn add(&mut self, other: &Histogram) {
        self.counts.iter_mut().zip(&other.counts[..]).for_each(|(ours, theirs)| *ours += theirs);
        self.sum_ns = self.sum_ns.saturating_add(other.sum_ns);
    }

    /// How many were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The classes that hold something, with the nanoseconds that none of their times reaches.
    pub fn filled(&self) -> impl Iterator<Item = (u64, u64)> {
        let counts = self.counts.iter().enumerate();
        counts.filter(|(_, count)| **count > 0).map(|(class, count)| (class_end_ns(class), *count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_follow_each_other_and_are_an_eighth_wide() {
        for class in 0..CLASSES - 1 {
            let end = class_end_ns(class);
            assert_eq!(class_of(Duration::from_nanos(end - 1)), class, "below {end}");
            assert_eq!(class_of(Duration::from_nanos(end)), class + 1, "at {end}");
            let width = class_end_ns(class) - if class == 0 { 0 } else { class_end_ns(class - 1) };
            assert!(class == 0 || width * 8 <= end, "class {class} ends at {end}");
        }
        assert_eq!((class_of(Duration::ZERO), class_of(Duration::MAX)), (0, CLASSES - 1));
        assert!(class_end_ns(CLASSES - 2) > 120_000_000_000, "two minutes are told apart");
    }

    #[test]
    fn what_is_counted_is_found_in_its_class() {
        let mut histogram = Histogram::default();
        [5, 5, 1_000_000].iter().for_each(|ns| histogram.record(Duration::from_nanos(*ns)));
        assert_eq!((histogram.count(), histogram.sum_ns), (3, 1_000_010));
        assert_eq!(histogram.filled().map(|(_, count)| count).collect::<Vec<u64>>(), [2, 1]);
        let mut sum = histogram.clone();
        sum.add(&histogram);
        assert_eq!((sum.count(), sum.sum_ns), (6, 2_000_020));
    }
}
