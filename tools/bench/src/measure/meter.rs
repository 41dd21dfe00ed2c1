//! Counts operations over a window of time.
//!
//! Two questions, two rules. *How many per second?* An operation counts when it **ended** inside the window, however
//! long before it began: in a steady state as much work hangs over the start as over the end. *How long does one take?*
//! An operation counts when it was **due** inside the window, however late it ended: otherwise the slowest ones would be
//! left out for having been slow.

use super::Latency;
use super::interval::{INTERVAL_NS, Interval, Intervals};

/// The measured part of a run, half open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// End of the warm-up.
    pub start_ns: u64,
    /// Nothing begins from here on.
    pub end_ns: u64,
}

impl Window {
    /// Whether a time lies inside.
    #[must_use]
    pub fn contains(&self, at_ns: u64) -> bool {
        (self.start_ns..self.end_ns).contains(&at_ns)
    }

    /// Its length.
    #[must_use]
    pub fn len_ns(&self) -> u64 {
        self.end_ns.saturating_sub(self.start_ns)
    }
}

/// When one operation happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// When it should have begun: by schedule in an open loop, otherwise when it did begin.
    pub intended_ns: u64,
    /// When it began.
    pub start_ns: u64,
    /// When it was acknowledged.
    pub end_ns: u64,
}

/// Operations of one direction.
#[derive(Clone, Debug)]
pub struct Meter {
    window: Window,
    ops: u64,
    bytes: u64,
    intervals: Intervals,
    last_end_ns: u64,
    /// From the intended start to the actual one.
    pub wait: Latency,
    /// From the actual start to the end.
    pub service: Latency,
    /// From the intended start to the end: what a client that does not wait its turn would see.
    pub corrected: Latency,
}

/// An interval and where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Since the start of the window.
    pub start_ns: u64,
    /// How long.
    pub len_ns: u64,
    /// What ended in it.
    pub interval: Interval,
}

impl Slice {
    /// An amount of this interval as a rate.
    #[must_use]
    pub fn per_second(&self, amount: u64) -> f64 {
        amount as f64 * 1e9 / (self.len_ns as f64).max(1.0)
    }

    /// Joins each `count` neighbors.
    #[must_use]
    pub fn join(slices: &[Slice], count: usize) -> Vec<Slice> {
        let join = |some: &[Slice]| {
            let mut all = some[0].clone();
            for next in &some[1..] {
                all.len_ns += next.len_ns;
                all.interval.merge(&next.interval);
            }
            all
        };
        slices.chunks(count.max(1)).map(join).collect()
    }
}

/// Smallest, largest, mean and standard deviation of the full intervals.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spread {
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
    /// Mean.
    pub mean: f64,
    /// Standard deviation.
    pub stdev: f64,
    /// Intervals.
    pub samples: u64,
}

impl Meter {
    /// Nothing counted yet.
    #[must_use]
    pub fn new(window: Window) -> Meter {
        let latency = Latency::default;
        let (wait, service, corrected) = (latency(), latency(), latency());
        Meter { window, ops: 0, bytes: 0, intervals: Intervals::default(), last_end_ns: 0, wait, service, corrected }
    }

    /// Takes the window that was decided on while the run goes; nothing was counted before it.
    pub fn set_window(&mut self, window: Window) {
        self.window = window;
    }

    /// Counts an acknowledged operation.
    pub fn record(&mut self, timing: Timing, bytes: u64) {
        let Timing { intended_ns, start_ns, end_ns } = timing;
        if self.window.contains(intended_ns) {
            self.wait.record(start_ns.saturating_sub(intended_ns));
            self.service.record(end_ns.saturating_sub(start_ns));
            self.corrected.record(end_ns.saturating_sub(intended_ns));
        }
        if self.window.contains(end_ns) {
            self.last_end_ns = self.last_end_ns.max(end_ns);
            self.ops += 1;
            self.bytes += bytes;
            let latency_ns = end_ns.saturating_sub(intended_ns);
            self.intervals.record(end_ns - self.window.start_ns, bytes, latency_ns);
        }
    }

    /// Counts an operation that was due and never began. How long it would have taken nobody knows; at least until
    /// `now_ns`, and leaving it out would hide a server that stopped.
    pub fn record_never_begun(&mut self, intended_ns: u64, now_ns: u64) {
        if self.window.contains(intended_ns) {
            let waited = now_ns.saturating_sub(intended_ns);
            self.wait.record(waited);
            self.corrected.record(waited);
        }
    }

    /// Adds what another thread counted in the same window.
    pub fn merge(&mut self, other: &Meter) {
        self.ops += other.ops;
        self.bytes += other.bytes;
        self.last_end_ns = self.last_end_ns.max(other.last_end_ns);
        self.intervals.merge(&other.intervals);
        self.wait.merge(&other.wait);
        self.service.merge(&other.service);
        self.corrected.merge(&other.corrected);
    }

    /// Ends the window early, when the run was interrupted.
    pub fn close(&mut self, end_ns: u64) {
        self.window.end_ns = self.window.end_ns.min(end_ns.max(self.window.start_ns));
    }

    /// When the last operation of the window ended.
    #[must_use]
    pub fn last_end_ns(&self) -> u64 {
        self.last_end_ns
    }

    /// Operations that ended in the window.
    #[must_use]
    pub fn ops(&self) -> u64 {
        self.ops
    }

    /// Their bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Length of the window.
    #[must_use]
    pub fn runtime_ns(&self) -> u64 {
        self.window.len_ns()
    }

    /// Operations a second.
    #[must_use]
    pub fn iops(&self) -> f64 {
        self.per_second(self.ops)
    }

    /// Bytes a second.
    #[must_use]
    pub fn bandwidth_bytes(&self) -> f64 {
        self.per_second(self.bytes)
    }

    fn per_second(&self, amount: u64) -> f64 {
        match self.runtime_ns() {
            0 => 0.0,
            ns => amount as f64 * 1e9 / ns as f64,
        }
    }

    /// How operations a second varied.
    #[must_use]
    pub fn iops_spread(&self) -> Spread {
        self.spread(|interval| interval.0)
    }

    /// How bytes a second varied.
    #[must_use]
    pub fn bandwidth_spread(&self) -> Spread {
        self.spread(|interval| interval.1)
    }

    /// The intervals of the window with their begin and length; the last one may be short.
    #[must_use]
    pub fn timeline(&self) -> Vec<Slice> {
        let mut intervals = self.intervals.all();
        let count = self.runtime_ns().div_ceil(INTERVAL_NS) as usize;
        intervals.resize_with(count, Interval::default);
        let slice = |(number, interval): (usize, Interval)| {
            let start_ns = number as u64 * INTERVAL_NS;
            Slice { start_ns, len_ns: INTERVAL_NS.min(self.runtime_ns() - start_ns), interval }
        };
        intervals.into_iter().enumerate().map(slice).collect()
    }

    fn spread(&self, amount: impl Fn(&(u64, u64)) -> u64) -> Spread {
        // Only whole intervals; one without any operation counts as well.
        let whole = (self.runtime_ns() / INTERVAL_NS) as usize;
        let rate = |at: usize| amount(&self.intervals.amounts(at)) as f64 * 1e9 / INTERVAL_NS as f64;
        let rates: Vec<f64> = (0..whole).map(rate).collect();
        if rates.is_empty() {
            return Spread::default();
        }
        let mean = rates.iter().sum::<f64>() / rates.len() as f64;
        let variance = rates.iter().map(|rate| (rate - mean).powi(2)).sum::<f64>() / rates.len() as f64;
        Spread {
            min: rates.iter().copied().fold(f64::INFINITY, f64::min),
            max: rates.iter().copied().fold(0.0, f64::max),
            mean,
            stdev: variance.sqrt(),
            samples: rates.len() as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn window() -> Window {
        Window { start_ns: 1000 * MS, end_ns: 3000 * MS }
    }

    fn closed(start_ms: u64, end_ms: u64) -> Timing {
        Timing { intended_ns: start_ms * MS, start_ns: start_ms * MS, end_ns: end_ms * MS }
    }

    #[test]
    fn rates_count_what_ended_inside_and_latencies_what_began_inside() {
        let mut meter = Meter::new(window());
        meter.record(closed(900, 999), 1); // neither
        meter.record(closed(900, 1100), 10); // ended inside
        meter.record(closed(1500, 1600), 100); // both
        meter.record(closed(2900, 9000), 1000); // began inside
        meter.record(closed(3000, 3001), 10_000); // neither
        assert_eq!((meter.ops(), meter.bytes()), (2, 110));
        assert_eq!((meter.service.count(), meter.service.max_ns() / MS / 10), (2, 610), "the slowest is not left out");
        assert!((meter.iops() - 1.0).abs() < 1e-9 && (meter.bandwidth_bytes() - 55.0).abs() < 1e-9);
    }

    #[test]
    fn a_stall_shows_in_the_corrected_latencies() {
        // Due every 10 ms and done in 1 ms, but one operation takes a second; the others wait for it.
        let mut meter = Meter::new(Window { start_ns: 0, end_ns: 2000 * MS });
        let mut free_at = 0;
        for number in 0..200 {
            let intended_ns = number * 10 * MS;
            let start_ns = intended_ns.max(free_at);
            let end_ns = start_ns + if number == 50 { 1000 * MS } else { MS };
            meter.record(Timing { intended_ns, start_ns, end_ns }, 1);
            free_at = end_ns;
        }
        assert!(meter.service.percentile_ns(99.0) < 2 * MS, "the servers's own time hides it");
        assert!(meter.corrected.percentile_ns(90.0) > 500 * MS, "{}", meter.corrected.percentile_ns(90.0));
        assert!(meter.wait.max_ns() > 900 * MS);
    }

    #[test]
    fn what_never_began_counts_as_waiting() {
        let mut meter = Meter::new(Window { start_ns: 0, end_ns: 1000 * MS });
        meter.record(closed(0, 1), 1);
        (1..100).for_each(|number| meter.record_never_begun(number * 10 * MS, 1000 * MS));
        assert_eq!((meter.ops(), meter.service.count(), meter.corrected.count()), (1, 1, 100));
        assert!(meter.corrected.percentile_ns(50.0) > 400 * MS);
    }

    #[test]
    fn merging_adds_and_closing_shortens() {
        let (mut a, mut b) = (Meter::new(window()), Meter::new(window()));
        a.record(closed(1000, 1100), 5);
        b.record(closed(1000, 2700), 7);
        a.merge(&b);
        assert_eq!((a.ops(), a.bytes(), a.service.count()), (2, 12, 2));
        let spread = a.iops_spread();
        assert_eq!((spread.samples, spread.min, spread.max), (4, 0.0, 2.0), "an interval without operations counts");
        let timeline: Vec<_> = a.timeline().iter().map(|slice| (slice.len_ns / MS, slice.interval.ops)).collect();
        assert_eq!(timeline, [(500, 1), (500, 0), (500, 0), (500, 1)]);
        let joined = Slice::join(&a.timeline(), 3);
        assert_eq!((joined[0].len_ns / MS, joined[1].start_ns / MS, joined[1].interval.bytes), (1500, 1500, 7));
        a.close(2700 * MS);
        assert_eq!(a.timeline().last().map(|slice| slice.len_ns), Some(200 * MS), "the last one may be short");
        a.close(2000 * MS);
        assert_eq!(a.runtime_ns(), 1000 * MS);
        a.close(0);
        assert_eq!((a.runtime_ns(), a.iops()), (0, 0.0));
    }
}
