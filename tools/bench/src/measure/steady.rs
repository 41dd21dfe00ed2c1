//! Whether a load has come to a steady state: throughput and latency no longer move in one direction, and no longer far.
//!
//! The rule is that of SNIA's performance test specification: over the last five rounds the largest and the smallest
//! value are at most a limit (20 % of the mean) apart, and a straight line through them rises or falls by at most half
//! of that. It must hold for operations a second and for the mean latency: in a closed loop they say nearly the same, in
//! an open one the first is the rate as long as the server keeps up.

use super::course::SteadyPlan;
use crate::progress::Totals;
use crate::units::ns;
use serde_json::{Value, json};
use std::collections::VecDeque;

/// Rounds that are looked at together.
const ROUNDS: usize = 5;

/// How far apart values are, in parts of their mean.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Deviation {
    /// The largest less the smallest.
    pub range: f64,
    /// By how much the line of least squares differs between its ends; with its sign.
    pub slope: f64,
}

impl Deviation {
    /// Of at least two values; `None` when their mean is zero.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Deviation> {
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        if values.len() < 2 || mean.is_nan() || mean <= 0.0 {
            return None;
        }
        let middle = (count - 1.0) / 2.0;
        let (mut rise, mut run) = (0.0, 0.0);
        for (at, value) in values.iter().enumerate() {
            let from_middle = at as f64 - middle;
            rise += from_middle * (value - mean);
            run += from_middle * from_middle;
        }
        let largest = values.iter().copied().fold(f64::MIN, f64::max);
        let smallest = values.iter().copied().fold(f64::MAX, f64::min);
        Some(Deviation { range: (largest - smallest) / mean, slope: rise / run * (count - 1.0) / mean })
    }

    fn is_within(self, limit: f64) -> bool {
        self.range <= limit && self.slope.abs() <= limit / 2.0
    }

    fn json(self) -> Value {
        json!({"range": self.range, "slope": self.slope})
    }
}

/// What a search for a steady state has found.
#[derive(Clone, Copy, Debug)]
pub struct SteadyState {
    /// Whether it was reached; otherwise the wait became too long.
    pub attained: bool,
    /// How long it took from the end of the warm-up.
    pub waited_ns: u64,
    /// Of operations a second, in the last rounds.
    pub iops: Deviation,
    /// Of mean latencies.
    pub latency: Deviation,
    plan: SteadyPlan,
}

impl SteadyState {
    /// As the JSON output shows it, with fio's words where it has them.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "attained": self.attained,
            "criterion": format!("{}%", self.plan.limit * 100.0),
            "duration": self.plan.duration.as_secs_f64(),
            "waited_ns": self.waited_ns,
            "iops": self.iops.json(),
            "lat": self.latency.json(),
        })
    }

    /// The same for people.
    #[must_use]
    pub fn line(&self) -> String {
        let percent = |part: f64| part * 100.0;
        let (iops, latency) = (self.iops, self.latency);
        format!(
            "steadystate: {} after {:.1}s; IOPS range {:.1}%, slope {:+.1}%; lat range {:.1}%, slope {:+.1}%",
            if self.attained { "attained" } else { "NOT attained" },
            self.waited_ns as f64 / 1e9,
            percent(iops.range),
            percent(iops.slope),
            percent(latency.range),
            percent(latency.slope),
        )
    }
}

/// The search, fed with what was done so far.
#[derive(Debug)]
pub struct SteadySearch {
    plan: SteadyPlan,
    begin_ns: u64,
    /// When the present round ends.
    pub next_ns: u64,
    round_begin_ns: u64,
    before: Option<Totals>,
    /// Operations a second and mean latency of each round.
    rounds: VecDeque<(f64, f64)>,
}

impl SteadySearch {
    /// From `begin_ns` on.
    #[must_use]
    pub fn new(plan: SteadyPlan, begin_ns: u64) -> SteadySearch {
        SteadySearch {
            plan,
            begin_ns,
            next_ns: begin_ns,
            round_begin_ns: begin_ns,
            before: None,
            rounds: VecDeque::with_capacity(ROUNDS + 1),
        }
    }

    /// Looks at the sums when a round is over; says when the search is.
    pub fn look(&mut self, now_ns: u64, totals: Totals) -> Option<SteadyState> {
        if now_ns < self.next_ns {
            return None;
        }
        if let Some(before) = self.before {
            let ops = totals.ops.saturating_sub(before.ops) as f64;
            let waited_ns = totals.latency_ns.saturating_sub(before.latency_ns) as f64;
            let len_ns = now_ns.saturating_sub(self.round_begin_ns).max(1) as f64;
            self.rounds.push_back((ops * 1e9 / len_ns, waited_ns / ops.max(1.0)));
            if self.rounds.len() > ROUNDS {
                self.rounds.pop_front();
            }
        }
        self.before = Some(totals);
        self.round_begin_ns = now_ns;
        self.next_ns = now_ns + (ns(self.plan.duration) / ROUNDS as u64).max(1);
        self.judge(now_ns)
    }

    fn judge(&self, now_ns: u64) -> Option<SteadyState> {
        let waited_ns = now_ns.saturating_sub(self.begin_ns);
        let iops = Deviation::of(&self.rounds.iter().map(|round| round.0).collect::<Vec<f64>>());
        let latency = Deviation::of(&self.rounds.iter().map(|round| round.1).collect::<Vec<f64>>());
        let limit = self.plan.limit;
        let attained = self.rounds.len() == ROUNDS
            && iops.is_some_and(|iops| iops.is_within(limit))
            && latency.is_some_and(|latency| latency.is_within(limit));
        let state = SteadyState {
            attained,
            waited_ns,
            iops: iops.unwrap_or_default(),
            latency: latency.unwrap_or_default(),
            plan: self.plan,
        };
        (attained || waited_ns >= ns(self.plan.timeout)).then_some(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const SECOND_NS: u64 = 1_000_000_000;

    /// Feeds rounds of a second with so many operations and such a mean latency; when the search ended, and how.
    fn search(rounds: impl Iterator<Item = (u64, u64)>) -> Option<(u64, bool)> {
        let (duration, timeout) = (Duration::from_secs(5), Duration::from_secs(60));
        let mut search = SteadySearch::new(SteadyPlan { limit: 0.2, duration, timeout }, 0);
        let mut totals = Totals::default();
        assert!(search.look(0, totals).is_none());
        for (number, (ops, latency_ns)) in rounds.enumerate() {
            totals.ops += ops;
            totals.latency_ns += ops * latency_ns;
            let second = number as u64 + 1;
            if let Some(state) = search.look(second * SECOND_NS, totals) {
                return Some((second, state.attained));
            }
        }
        None
    }

    #[test]
    fn a_load_is_steady_once_it_neither_moves_nor_jumps() {
        assert_eq!(search([(1000, 50)].into_iter().cycle().take(9)), Some((5, true)), "flat");
        let noisy = [(1000, 50), (1040, 49), (960, 52), (1010, 51)];
        assert_eq!(search(noisy.into_iter().cycle().take(9)), Some((5, true)), "a few percent of noise");
        // A cache fills: throughput falls for ten seconds and then stays.
        let falling = (0..40).map(|second| (3000 - 200 * u64::min(second, 10), 50));
        let (second, attained) = search(falling).unwrap();
        assert!(attained && (12..=16).contains(&second), "{second}");
    }

    #[test]
    fn one_that_is_not_steady_ends_with_the_longest_wait() {
        let (slowly, jumps) = ((0..99).map(|second| (1000 + 40 * second, 50)), [(1000, 50), (600, 50)]);
        assert_eq!(search(slowly.take(10)), None, "rises by 16 % in five rounds");
        assert_eq!(search(jumps.into_iter().cycle().take(99)), Some((60, false)), "jumps");
        let latency_only = (0..99).map(|second| (1000, 1000 + 100 * second));
        assert_eq!(search(latency_only.take(10)), None, "an open loop whose queue grows");
        assert_eq!(search([(0, 0)].into_iter().cycle().take(99)), Some((60, false)), "nothing ends at all");
    }

    #[test]
    fn a_deviation_is_in_parts_of_the_mean() {
        let line = Deviation::of(&[90.0, 95.0, 100.0, 105.0, 110.0]).unwrap();
        assert!((line.range - 0.2).abs() < 1e-9 && (line.slope - 0.2).abs() < 1e-9, "{line:?}");
        assert_eq!(Deviation::of(&[5.0, 5.0]), Some(Deviation { range: 0.0, slope: 0.0 }));
        assert_eq!(Deviation::of(&[0.0, 0.0]), None);
        assert_eq!(Deviation::of(&[1.0]), None);
    }
}
