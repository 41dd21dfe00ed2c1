//! When a difference counts: only beyond what runs of one side differ among themselves.

use std::ops::RangeInclusive;

/// With so many runs on each side ranks are tested; with fewer the ranges have to lie apart.
const RANK_TEST_RUNS_MIN: usize = 4;

/// By chance alone a rank test may call this share of equal sides different.
const CHANCE_MAX: f64 = 0.05;

/// Ranges that lie apart by chance more often than this are weak evidence: two runs against two or three.
const CHANCE_WEAK: f64 = 0.1001;

/// Fewest intervals that tell how a single run varied.
const INTERVALS_MIN: usize = 5;

/// Figures of one side.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    /// One of each run.
    pub runs: Vec<f64>,
    /// Of the intervals of a single run; looked at only when there is no second one.
    pub intervals: Vec<f64>,
}

/// How it was decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// Whether the sides differ by more than the spread.
    pub differs: bool,
    /// The rule, in words.
    pub rule: String,
    /// Why it should not be relied on, if so.
    pub weakness: Option<String>,
}

impl Samples {
    /// The middle one; the mean of the two in the middle.
    #[must_use]
    pub fn median(&self) -> Option<f64> {
        let sorted = sorted(&self.runs);
        let count = sorted.len();
        (count > 0).then(|| (sorted[(count - 1) / 2] + sorted[count / 2]) / 2.0)
    }

    /// Smallest and largest run.
    #[must_use]
    pub fn range(&self) -> Option<RangeInclusive<f64>> {
        let sorted = sorted(&self.runs);
        Some(*sorted.first()?..=*sorted.last()?)
    }

    /// What is known of the spread: the runs, or of a single one the middle four fifths of its intervals.
    fn spread(&self) -> Option<RangeInclusive<f64>> {
        if self.runs.len() > 1 {
            return self.range();
        }
        let (run, intervals) = (*self.runs.first()?, sorted(&self.intervals));
        let cut = intervals.len() / 10;
        let inner = intervals.get(cut..intervals.len() - cut).filter(|_| intervals.len() >= INTERVALS_MIN)?;
        Some(inner.first()?.min(run)..=inner.last()?.max(run))
    }
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values
}

/// Judges. The error says why nothing can be said.
pub fn judge(a: &Samples, b: &Samples) -> Result<Finding, String> {
    let (count_a, count_b) = (a.runs.len(), b.runs.len());
    if count_a == 0 || count_b == 0 {
        return Err("one side has no such figure".to_owned());
    }
    if count_a.min(count_b) >= RANK_TEST_RUNS_MIN {
        let chance = rank_test(&a.runs, &b.runs);
        let rule = format!("rank test of {count_a} and {count_b} runs, p={chance:.3}");
        return Ok(Finding { differs: chance < CHANCE_MAX, rule, weakness: None });
    }
    let (Some(spread_a), Some(spread_b)) = (a.spread(), b.spread()) else {
        return Err("a single run without intervals does not tell how much it varies; give several runs".to_owned());
    };
    let differs = spread_a.end() < spread_b.start() || spread_b.end() < spread_a.start();
    if count_a.min(count_b) > 1 {
        let chance = 2.0 / choose(count_a + count_b, count_a);
        let rule = format!("ranges of {count_a} and {count_b} runs, apart by chance in {:.0} %", chance * 100.0);
        let weakness = (chance > CHANCE_WEAK).then(|| "few runs: give three of each side, better five".to_owned());
        return Ok(Finding { differs, rule, weakness });
    }
    let rule = "single run: the middle 80 % of its intervals".to_owned();
    let weakness = Some("intervals of one run share its luck: give three runs of each side, better five".to_owned());
    Ok(Finding { differs, rule, weakness })
}

fn choose(all: usize, some: usize) -> f64 {
    (0..some).map(|k| (all - k) as f64 / (k + 1) as f64).product()
}

/// Mann and Whitney's test, exact and two-sided, ties sharing their ranks: how often a random division of all runs into two
/// sides would have ranks at least as far apart.
fn rank_test(a: &[f64], b: &[f64]) -> f64 {
    let all = sorted(&[a, b].concat());
    // Twice the rank, so that shared ones are whole numbers.
    let double_rank = |value: f64| {
        let below = all.iter().filter(|other| **other < value).count();
        let equal = all.iter().filter(|other| **other == value).count();
        2 * below + equal + 1
    };
    let ranks: Vec<usize> = all.iter().map(|value| double_rank(*value)).collect();
    let total: usize = ranks.iter().sum();
    // ways[k][s]: how many choices of k runs have ranks that add up to s.
    let mut ways = vec![vec![0.0f64; total + 1]; a.len() + 1];
    ways[0][0] = 1.0;
    for rank in &ranks {
        for k in (1..=a.len()).rev() {
            let (less, more) = ways.split_at_mut(k);
            for sum in *rank..=total {
                more[0][sum] += less[k - 1][sum - rank];
            }
        }
    }
    let expected = total as f64 * a.len() as f64 / all.len() as f64;
    let found: usize = a.iter().map(|value| double_rank(*value)).sum();
    let far = (found as f64 - expected).abs() - 1e-9;
    let sums = ways[a.len()].iter().enumerate();
    let extreme: f64 = sums.filter(|(sum, _)| (*sum as f64 - expected).abs() >= far).map(|(_, ways)| ways).sum();
    extreme / choose(all.len(), a.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(values: &[f64]) -> Samples {
        Samples { runs: values.to_vec(), intervals: Vec::new() }
    }

    #[test]
    fn the_rank_test_gives_the_values_of_the_tables() {
        // Exact two-sided values, by hand: 2/C(8,4), 2/C(10,5), 4/C(8,4), and no difference at all.
        let close = |found: f64, wanted: f64| assert!((found - wanted).abs() < 1e-9, "{found} instead of {wanted}");
        close(rank_test(&[1.0, 2.0, 3.0, 4.0], &[5.0, 6.0, 7.0, 8.0]), 2.0 / 70.0);
        close(rank_test(&[9.0, 8.0, 7.0, 6.0, 5.5], &[1.0, 2.0, 3.0, 4.0, 5.0]), 2.0 / 252.0);
        close(rank_test(&[1.0, 2.0, 3.0, 5.0], &[4.0, 6.0, 7.0, 8.0]), 4.0 / 70.0);
        close(rank_test(&[1.0, 1.0, 1.0, 1.0], &[1.0, 1.0, 1.0, 1.0]), 1.0);
        close(rank_test(&[1.0, 4.0, 5.0, 8.0], &[2.0, 3.0, 6.0, 7.0]), 1.0);
    }

    #[test]
    fn only_what_exceeds_the_spread_differs() {
        for (a, b, differs, is_weak) in [
            (&[10.0, 11.0, 12.0][..], &[12.1, 13.0, 14.0][..], true, false),
            (&[10.0, 11.0, 12.0], &[11.9, 13.0, 14.0], false, false),
            (&[10.0, 11.0], &[12.0, 13.0], true, true),
            (&[1.0, 2.0, 3.0, 4.0], &[5.0, 6.0, 7.0, 8.0], true, false),
            (&[1.0, 2.0, 3.0, 5.0], &[4.0, 6.0, 7.0, 8.0], false, false),
        ] {
            let finding = judge(&runs(a), &runs(b)).unwrap();
            assert_eq!((finding.differs, finding.weakness.is_some()), (differs, is_weak), "{a:?} {b:?} {finding:?}");
        }
        assert!(judge(&runs(&[]), &runs(&[1.0])).is_err());
    }

    #[test]
    fn a_single_run_is_judged_by_its_intervals_and_called_weak() {
        let single = |run: f64, from: f64| Samples {
            runs: vec![run],
            intervals: (0..10).map(|i| from + f64::from(i)).collect(),
        };
        let apart = judge(&single(104.0, 100.0), &single(124.0, 120.0)).unwrap();
        let near = judge(&single(104.0, 100.0), &single(107.0, 103.0)).unwrap();
        assert!(apart.differs && apart.weakness.is_some() && !near.differs && near.weakness.is_some());
        // A percentile of the run may lie beyond that of most of its intervals.
        assert!(!judge(&single(125.0, 100.0), &single(124.0, 120.0)).unwrap().differs);
        assert!(judge(&runs(&[1.0]), &single(104.0, 100.0)).is_err(), "nothing tells how much the first one varies");
    }

    #[test]
    fn medians_are_in_the_middle() {
        assert_eq!(
            (runs(&[3.0, 1.0, 2.0]).median(), runs(&[4.0, 1.0]).median(), runs(&[]).median()),
            (Some(2.0), Some(2.5), None)
        );
    }
}
