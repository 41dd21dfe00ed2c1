//! What happened in each interval of a run: counts, and latencies to within two percent.
//!
//! A meter has one row of counters, used again for each interval; when an interval is over, what was counted is kept as pairs.
//! So an operation allocates nothing, and thousands of clients can have a meter each.

/// fio averages bandwidth over this time before it looks for the smallest and the largest.
pub const INTERVAL_NS: u64 = 500_000_000;

/// Each power of two is split in 32: a value is told to within 1.6 %.
const SPLIT_BITS: u32 = 5;
const SPLIT: u64 = 1 << SPLIT_BITS;
const BUCKETS: usize = ((64 - SPLIT_BITS as usize) + 1) << SPLIT_BITS;

fn bucket(latency_ns: u64) -> usize {
    let shift = (64 - latency_ns.leading_zeros()).saturating_sub(SPLIT_BITS + 1);
    ((latency_ns >> shift) + u64::from(shift) * SPLIT) as usize
}

/// The middle of a bucket.
fn value_ns(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let shift = (bucket / SPLIT).saturating_sub(1);
    let low = (bucket - shift * SPLIT) << shift;
    low + ((1 << shift) - 1) / 2
}

/// Operations of one direction that ended in one interval.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interval {
    /// How many.
    pub ops: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The longest, from the intended start to the end.
    pub max_ns: u64,
    /// Buckets and counts, by bucket.
    latencies: Vec<(u16, u32)>,
}

impl Interval {
    /// The value that `percent` of the latencies are at or below; 0 when there are none.
    #[must_use]
    pub fn percentile_ns(&self, percent: f64) -> u64 {
        let rank = ((percent / 100.0 * self.ops as f64).ceil() as u64).max(1);
        let mut seen = 0;
        for (bucket, count) in &self.latencies {
            seen += u64::from(*count);
            if seen >= rank {
                return value_ns(usize::from(*bucket)).min(self.max_ns);
            }
        }
        self.max_ns
    }

    /// Adds another one: of another thread, or the next.
    pub fn merge(&mut self, other: &Interval) {
        self.ops += other.ops;
        self.bytes += other.bytes;
        self.max_ns = self.max_ns.max(other.max_ns);
        if self.latencies.is_empty() {
            self.latencies.clone_from(&other.latencies);
        } else {
            other.latencies.iter().for_each(|(bucket, count)| self.add(*bucket, *count));
        }
    }

    fn add(&mut self, bucket: u16, count: u32) {
        match self.latencies.binary_search_by_key(&bucket, |pair| pair.0) {
            Ok(at) => self.latencies[at].1 = self.latencies[at].1.saturating_add(count),
            Err(at) => self.latencies.insert(at, (bucket, count)),
        }
    }
}

/// The intervals of a run so far.
#[derive(Clone, Debug)]
pub struct Intervals {
    done: Vec<Interval>,
    /// The interval whose operations are in `counts`.
    current: usize,
    counts: Box<[u32]>,
    /// First and last bucket in use.
    used: (usize, usize),
}

impl Default for Intervals {
    fn default() -> Intervals {
        Intervals { done: Vec::new(), current: 0, counts: vec![0; BUCKETS].into(), used: (BUCKETS, 0) }
    }
}

impl Intervals {
    /// Counts an operation that ended so long after the start of the window.
    pub fn record(&mut self, end_ns: u64, bytes: u64, latency_ns: u64) {
        let interval = (end_ns / INTERVAL_NS) as usize;
        if self.done.len() <= interval {
            self.done.resize_with(interval + 1, Interval::default);
        }
        let row = &mut self.done[interval];
        row.ops += 1;
        row.bytes += bytes;
        row.max_ns = row.max_ns.max(latency_ns);
        let bucket = bucket(latency_ns);
        if interval < self.current {
            // Threads of one meter may end their operations a little out of order.
            self.done[interval].add(bucket as u16, 1);
            return;
        }
        if interval > self.current {
            self.put_by();
            self.current = interval;
        }
        self.counts[bucket] = self.counts[bucket].saturating_add(1);
        self.used = (self.used.0.min(bucket), self.used.1.max(bucket + 1));
    }

    /// Moves the row of counters into the interval that it belongs to.
    fn put_by(&mut self) {
        let (first, end) = std::mem::replace(&mut self.used, (BUCKETS, 0));
        for bucket in first..end {
            let count = std::mem::take(&mut self.counts[bucket]);
            if count > 0 {
                self.done[self.current].add(bucket as u16, count);
            }
        }
    }

    /// Adds what another thread counted.
    pub fn merge(&mut self, other: &Intervals) {
        self.put_by();
        let others = other.all();
        if self.done.len() < others.len() {
            self.done.resize_with(others.len(), Interval::default);
        }
        self.done.iter_mut().zip(&others).for_each(|(mine, theirs)| mine.merge(theirs));
        self.current = self.current.max(self.done.len().saturating_sub(1));
    }

    /// All of them, up to the last in which an operation ended.
    #[must_use]
    pub fn all(&self) -> Vec<Interval> {
        let mut all = self.clone();
        all.put_by();
        all.done
    }

    /// Operations and bytes of one.
    #[must_use]
    pub fn amounts(&self, interval: usize) -> (u64, u64) {
        self.done.get(interval).map_or((0, 0), |interval| (interval.ops, interval.bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_told_to_within_two_percent() {
        let mut noise = crate::noise::Noise::new(3);
        for _ in 0..100_000 {
            let shift = noise.below(64);
            let value = noise.word() >> shift;
            let found = value_ns(bucket(value));
            assert!(value.abs_diff(found) as f64 <= value as f64 * 0.016, "{value} became {found}");
        }
        for edge in [0, 1, 31, 32, 33, 63, 64, 65, u64::MAX] {
            assert!(bucket(edge) < BUCKETS && edge.abs_diff(value_ns(bucket(edge))) as f64 <= edge as f64 * 0.016);
        }
    }

    #[test]
    fn an_interval_has_what_ended_in_it_whoever_counted() {
        let (mut mine, mut theirs) = (Intervals::default(), Intervals::default());
        (1..=100).for_each(|latency| mine.record(latency, 10, latency * 1000));
        mine.record(2 * INTERVAL_NS, 1, 7_000_000);
        mine.record(5, 1, 9_000_000); // late, out of order
        theirs.record(INTERVAL_NS, 5, 40_000);
        (0..50).for_each(|_| theirs.record(INTERVAL_NS / 2, 0, 1_000_000));
        mine.merge(&theirs);
        mine.record(2 * INTERVAL_NS + 1, 1, 8_000_000);
        let all = mine.all();
        let amounts: Vec<_> = all.iter().map(|interval| (interval.ops, interval.bytes, interval.max_ns)).collect();
        assert_eq!(amounts, [(151, 1001, 9_000_000), (1, 5, 40_000), (2, 2, 8_000_000)]);
        let near = |found: u64, wanted: f64| (found as f64 - wanted).abs() <= wanted * 0.02;
        assert!(near(all[0].percentile_ns(50.0), 76_000.0), "{}", all[0].percentile_ns(50.0));
        assert!(near(all[0].percentile_ns(99.0), 1_000_000.0), "{}", all[0].percentile_ns(99.0));
        assert_eq!((all[0].percentile_ns(100.0), Interval::default().percentile_ns(99.0)), (9_000_000, 0));
        assert!(near(all[1].percentile_ns(50.0), 40_000.0), "{}", all[1].percentile_ns(50.0));
    }
}
