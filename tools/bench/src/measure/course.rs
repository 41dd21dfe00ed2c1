//! What all workers of one measurement share: its clock, which part of it is measured, how much is left to do.

use super::Window;
use crate::progress::Tally;
use crate::stop::Stop;
use crate::units::ns;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long to warm up and to measure.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Before it is measured.
    pub warmup: Duration,
    /// The measured part.
    pub runtime: Duration,
    /// Operations to do instead; all of them are measured.
    pub count: Option<u64>,
    /// What ends the warm-up, besides its time.
    pub steady: Option<SteadyPlan>,
}

/// When the warm-up has led to a steady state.
#[derive(Clone, Copy, Debug)]
pub struct SteadyPlan {
    /// Share of the mean by which rounds may differ.
    pub limit: f64,
    /// Time looked back over.
    pub duration: Duration,
    /// Longest wait for it, after the warm-up.
    pub timeout: Duration,
}

/// One measurement.
#[derive(Debug)]
pub struct Course {
    epoch: OnceLock<Instant>,
    start_ns: AtomicU64,
    end_ns: AtomicU64,
    /// Operations that may still begin; `None` without a limit.
    left: Option<AtomicU64>,
    /// What was done so far.
    pub tally: Tally,
    /// Ctrl-C.
    pub stop: Stop,
}

impl Course {
    /// Not yet begun.
    #[must_use]
    pub fn new(plan: &Plan, stop: &Stop) -> Course {
        let start_ns = ns(plan.warmup);
        let (start_ns, end_ns) = match (plan.count, plan.steady) {
            (Some(_), _) => (0, u64::MAX),
            (None, Some(_)) => (u64::MAX, u64::MAX),
            (None, None) => (start_ns, start_ns + ns(plan.runtime)),
        };
        Course {
            epoch: OnceLock::new(),
            start_ns: AtomicU64::new(start_ns),
            end_ns: AtomicU64::new(end_ns),
            left: plan.count.map(AtomicU64::new),
            tally: Tally::default(),
            stop: stop.clone(),
        }
    }

    /// When it began; the first to ask begins it.
    pub fn epoch(&self) -> Instant {
        *self.epoch.get_or_init(Instant::now)
    }

    /// Time since then.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        ns(self.epoch().elapsed())
    }

    /// The measured part; while it is not decided, an empty one that nothing lies in.
    #[must_use]
    pub fn window(&self) -> Window {
        // The end was stored before the start, so whoever sees the start sees its end.
        let start_ns = self.start_ns.load(Ordering::Acquire);
        Window { start_ns, end_ns: self.end_ns.load(Ordering::Relaxed) }
    }

    /// Decides it, for workers that look after every operation: it has to begin a little later than now.
    pub fn decide(&self, window: Window) {
        self.end_ns.store(window.end_ns, Ordering::Relaxed);
        self.start_ns.store(window.start_ns, Ordering::Release);
    }

    /// Whether an operation may begin; takes it from those that are left.
    #[must_use]
    pub fn may_begin(&self) -> bool {
        if self.is_over() {
            return false;
        }
        let take = |left: &AtomicU64| {
            left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
        };
        self.left.as_ref().is_none_or(take)
    }

    /// Whether the time is over, or Ctrl-C was pressed.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.stop.is_set() || self.now_ns() >= self.window().end_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(count: Option<u64>) -> Plan {
        Plan { warmup: Duration::from_secs(1), runtime: Duration::from_secs(3600), count, steady: None }
    }

    #[test]
    fn a_count_is_kept_by_all_together() {
        let course = Course::new(&plan(Some(1000)), &Stop::default());
        let begin = || std::iter::repeat_with(|| course.may_begin()).take_while(|may| *may).count();
        let begun: usize = std::thread::scope(|scope| {
            let handles: Vec<_> = (0..4).map(|_| scope.spawn(begin)).collect();
            handles.into_iter().map(|handle| handle.join().unwrap()).sum()
        });
        assert_eq!((begun, course.window().start_ns), (1000, 0), "no operation is left out of what is measured");
        assert!(Course::new(&plan(None), &Stop::default()).may_begin());
    }

    #[test]
    fn nothing_lies_in_a_window_that_is_not_decided() {
        let steady = SteadyPlan { limit: 0.2, duration: Duration::from_secs(1), timeout: Duration::from_secs(9) };
        let course = Course::new(&Plan { steady: Some(steady), ..plan(None) }, &Stop::default());
        assert!(!course.window().contains(5) && !course.window().contains(u64::MAX) && !course.is_over());
        course.decide(Window { start_ns: 10, end_ns: 20 });
        assert_eq!(course.window(), Window { start_ns: 10, end_ns: 20 });
    }
}
