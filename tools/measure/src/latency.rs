//! A histogram of latencies, three digits exact from nanoseconds to hours.

use hdrhistogram::Histogram;
use std::io::{self, Write};

/// The percentiles that every output shows; the maximum stands beside them.
pub const PERCENTILES: [f64; 5] = [50.0, 90.0, 99.0, 99.9, 99.99];

/// Significant digits: enough to tell 1.01 from 1.02 ms, at 2 KiB of counters for each power of two.
const DIGITS: u8 = 3;

/// Leading bits by which the bins of a distribution are told apart.
const BIN_BITS: u32 = 8;

/// Steps of the `.hgrm` output for each halving of the distance to 100 %, as HdrHistogram's own tools use.
const HGRM_TICKS: u32 = 5;

/// Latencies of one kind of operation.
#[derive(Clone, Debug)]
pub struct Latency {
    histogram: Histogram<u64>,
    /// Smallest and largest to the nanosecond; the histogram knows three digits.
    min_ns: u64,
    max_ns: u64,
}

impl Default for Latency {
    fn default() -> Latency {
        let histogram = Histogram::new(DIGITS).expect("three digits are within the limits of the histogram");
        Latency { histogram, min_ns: u64::MAX, max_ns: 0 }
    }
}

impl Latency {
    /// Counts one.
    pub fn record(&mut self, latency_ns: u64) {
        // The histogram grows as needed, so that nothing is refused.
        let _ = self.histogram.record(latency_ns);
        self.min_ns = self.min_ns.min(latency_ns);
        self.max_ns = self.max_ns.max(latency_ns);
    }

    /// Adds all of another one: the same as if all had been recorded here.
    pub fn merge(&mut self, other: &Latency) {
        self.histogram.add(&other.histogram).expect("a histogram that resizes takes every other one");
        self.min_ns = self.min_ns.min(other.min_ns);
        self.max_ns = self.max_ns.max(other.max_ns);
    }

    /// How many were recorded.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// The smallest; 0 when there is none.
    #[must_use]
    pub fn min_ns(&self) -> u64 {
        if self.count() == 0 { 0 } else { self.min_ns }
    }

    /// The largest.
    #[must_use]
    pub fn max_ns(&self) -> u64 {
        self.max_ns
    }

    /// The mean.
    #[must_use]
    pub fn mean_ns(&self) -> f64 {
        self.histogram.mean()
    }

    /// The standard deviation.
    #[must_use]
    pub fn stdev_ns(&self) -> f64 {
        self.histogram.stdev()
    }

    /// The value that `percent` of all are at or below, never above the largest.
    #[must_use]
    pub fn percentile_ns(&self, percent: f64) -> u64 {
        self.histogram.value_at_quantile(percent / 100.0).min(self.max_ns)
    }

    /// The whole distribution as values and how often they came, smallest first. Values closer to each other than 0.8 % are
    /// told as the largest of them, so that there are at most 128 for each power of two.
    #[must_use]
    pub fn bins(&self) -> Vec<(u64, u64)> {
        let bin_of = |value: u64| value >> (64 - value.leading_zeros()).saturating_sub(BIN_BITS);
        let magnitude = |value: u64| value.leading_zeros();
        let mut bins: Vec<(u64, u64)> = Vec::new();
        for step in self.histogram.iter_recorded() {
            let value = step.value_iterated_to().min(self.max_ns);
            match bins.last_mut() {
                Some(bin) if magnitude(bin.0) == magnitude(value) && bin_of(bin.0) == bin_of(value) => {
                    *bin = (value, bin.1 + step.count_since_last_iteration());
                }
                _ => bins.push((value, step.count_since_last_iteration())),
            }
        }
        bins
    }

    /// Writes the distribution as HdrHistogram's plotters read it, in milliseconds.
    pub fn write_hgrm(&self, out: &mut dyn Write) -> io::Result<()> {
        let ms = |ns: u64| ns as f64 / 1e6;
        writeln!(out, "{:>16} {:>20} {:>12} {:>16}\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)")?;
        let mut total = 0;
        for step in self.histogram.iter_quantiles(HGRM_TICKS) {
            total += step.count_since_last_iteration();
            let quantile = step.quantile_iterated_to();
            write!(out, "{:>16.6} {quantile:>20.12} {total:>12}", ms(step.value_iterated_to().min(self.max_ns())))?;
            match quantile < 1.0 {
                true => writeln!(out, " {:>16.2}", 1.0 / (1.0 - quantile))?,
                false => writeln!(out)?,
            }
        }
        let (mean, stdev) = (self.mean_ns() / 1e6, self.stdev_ns() / 1e6);
        writeln!(out, "#[Mean    = {mean:>16.6}, StdDeviation   = {stdev:>16.6}]")?;
        writeln!(out, "#[Max     = {:>16.6}, Total count    = {:>16}]", ms(self.max_ns()), self.count())?;
        writeln!(out, "#[Buckets = {:>16}, SubBuckets     = {:>16}]", self.histogram.buckets(), 2048)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: impl Iterator<Item = u64>) -> Latency {
        let mut latency = Latency::default();
        values.for_each(|value| latency.record(value));
        latency
    }

    /// The slow, obvious answer: sort and count.
    fn exact(values: &mut [u64], percent: f64) -> u64 {
        values.sort_unstable();
        let rank = (percent / 100.0 * values.len() as f64).ceil() as usize;
        values[rank.clamp(1, values.len()) - 1]
    }

    #[test]
    fn percentiles_are_right_to_three_digits() {
        let mut noise = crate::noise::Noise::new(5);
        let mut draw = || {
            let magnitude = 10 + noise.below(25);
            1_000 + noise.below(1 << magnitude)
        };
        let mut values: Vec<u64> = (0..50_000).map(|_| draw()).collect();
        let latency = of(values.iter().copied());
        for percent in PERCENTILES {
            let (found, wanted) = (latency.percentile_ns(percent), exact(&mut values, percent));
            let off = (found as f64 - wanted as f64).abs() / wanted as f64;
            assert!(off < 0.001, "p{percent}: {found} instead of {wanted}");
        }
        assert_eq!((latency.min_ns(), latency.count()), (values[0], 50_000));
        assert!(latency.percentile_ns(100.0) <= latency.max_ns());
    }

    #[test]
    fn merged_is_the_same_as_recorded_together() {
        let (low, high) = (1..=900u64, (1..=100u64).map(|i| i * 1_000_000_000));
        let mut merged = of(low.clone());
        merged.merge(&of(high.clone()));
        let together = of(low.chain(high));
        for percent in PERCENTILES {
            assert_eq!(merged.percentile_ns(percent), together.percentile_ns(percent), "p{percent}");
        }
        assert_eq!((merged.count(), merged.max_ns()), (1000, together.max_ns()));
    }

    #[test]
    fn bins_hold_all_and_are_few() {
        let mut noise = crate::noise::Noise::new(9);
        let mut values: Vec<u64> = (0..100_000).map(|_| 10_000 + noise.below(1 << 24)).collect();
        let latency = of(values.iter().copied());
        let bins = latency.bins();
        assert!(bins.len() <= 128 * 12 && bins.is_sorted(), "{}", bins.len());
        assert_eq!(bins.iter().map(|bin| bin.1).sum::<u64>(), 100_000);
        assert_eq!(bins.last().map(|bin| bin.0), Some(latency.max_ns()));
        for percent in PERCENTILES {
            let wanted = exact(&mut values, percent);
            let mut left = (percent / 100.0 * 100_000.0).ceil() as u64;
            let found = bins.iter().find(|bin| {
                let enough = bin.1 >= left;
                left = left.saturating_sub(bin.1);
                enough
            });
            let off = found.map_or(1.0, |bin| bin.0.abs_diff(wanted) as f64 / wanted as f64);
            assert!(off < 0.009, "p{percent}: {found:?} instead of {wanted}");
        }
        assert!(of(std::iter::empty()).bins().is_empty());
    }

    #[test]
    fn an_empty_one_is_all_zeros() {
        let latency = Latency::default();
        assert_eq!((latency.min_ns(), latency.max_ns(), latency.percentile_ns(99.0), latency.count()), (0, 0, 0, 0));
    }

    #[test]
    fn hgrm_ends_with_all_of_them() {
        let mut text = Vec::new();
        of((1..=1000).map(|i| i * 1_000_000)).write_hgrm(&mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        let rows: Vec<Vec<&str>> = text
            .lines()
            .skip(2)
            .take_while(|line| !line.starts_with('#'))
            .map(|line| line.split_whitespace().collect())
            .collect();
        let last = rows.last().unwrap();
        assert_eq!((last[1], last[2], last.len()), ("1.000000000000", "1000", 3), "{text}");
        assert!(rows[0][0].parse::<f64>().unwrap() < 1.1 && text.contains("Total count    =             1000"));
    }
}
