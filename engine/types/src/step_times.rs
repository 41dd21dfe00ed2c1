//! How long the steps of a piece of work take on one core: a histogram for each, always on.

use crate::histogram::Histogram;
use crate::runtime::{Instant, Ports};
use std::cell::RefCell;
use std::future::Future;
use std::marker::PhantomData;
use std::time::Duration;

/// Steps that are timed: see [`steps!`](crate::steps).
pub trait Step: Copy + 'static {
    /// All of them, in the order in which they are exported.
    const ALL: &'static [Self];

    /// As it is exported.
    fn name(self) -> &'static str;

    /// Its place in [`Step::ALL`].
    fn place(self) -> usize;
}

/// Makes an enum of steps, each with the name that it is exported by.
#[macro_export]
macro_rules! steps {
    ($(#[$about:meta])* pub enum $steps:ident { $($(#[$doc:meta])* $step:ident = $name:literal),+ $(,)? }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $steps {
            $($(#[$doc])* $step),+
        }

        impl $crate::step_times::Step for $steps {
            const ALL: &'static [$steps] = &[$($steps::$step),+];

            fn name(self) -> &'static str {
                match self {
                    $($steps::$step => $name),+
                }
            }

            fn place(self) -> usize {
                self as usize
            }
        }
    };
}

/// The times of all steps of one kind.
#[derive(Debug)]
pub struct StepTimes<S> {
    of: RefCell<Vec<Histogram>>,
    steps: PhantomData<S>,
}

impl<S: Step> Default for StepTimes<S> {
    fn default() -> StepTimes<S> {
        StepTimes { of: RefCell::new(vec![Histogram::default(); S::ALL.len()]), steps: PhantomData }
    }
}

impl<S: Step> StepTimes<S> {
    /// Counts a step that took so long.
    pub fn record(&self, step: S, took: Duration) {
        self.of.borrow_mut()[step.place()].record(took);
    }

    /// Counts a step that began at `since` and has ended.
    pub fn ended(&self, step: S, since: Instant, ports: &Ports) {
        self.record(step, ports.now().since(since));
    }

    /// The same for what is waited for.
    pub async fn time<T>(&self, step: S, ports: &Ports, work: impl Future<Output = T>) -> T {
        let since = ports.now();
        let done = work.await;
        self.ended(step, since, ports);
        done
    }

    /// Counts what another one counted as well.
    pub fn add(&self, other: &StepTimes<S>) {
        self.of.borrow_mut().iter_mut().zip(&*other.of.borrow()).for_each(|(sum, of)| sum.add(of));
    }

    /// What was counted so far, by name.
    #[must_use]
    pub fn by_name(&self) -> Vec<(&'static str, Histogram)> {
        S::ALL.iter().map(|step| step.name()).zip(self.of.borrow().iter().cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::steps! {
        /// Of the test.
        pub enum Of {
            /// The first.
            First = "first",
            /// The second.
            Second = "second",
        }
    }

    #[test]
    fn each_step_counts_for_itself_and_sums_add_up() {
        let (one, other) = (StepTimes::<Of>::default(), StepTimes::default());
        one.record(Of::First, Duration::from_micros(5));
        other.record(Of::Second, Duration::from_micros(7));
        other.record(Of::Second, Duration::from_micros(7));
        one.add(&other);
        let counts: Vec<_> = one.by_name().into_iter().map(|(name, of)| (name, of.count(), of.sum_ns)).collect();
        assert_eq!(counts, [("first", 1, 5_000), ("second", 2, 14_000)]);
    }
}
