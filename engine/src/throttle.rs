//! Repeats of one warning held back: a device whose content is noise fails every read, and a line for each would bury
//! everything else.

use kiseki_types::runtime::Instant;
use std::cell::Cell;
use std::time::Duration;

/// One line in this time.
const INTERVAL: Duration = Duration::from_secs(5);

/// Lets one line through in each interval.
#[derive(Default)]
pub struct Throttle {
    last: Cell<Option<Instant>>,
    held: Cell<u64>,
}

impl Throttle {
    /// Whether to say it now; if so, how many were held back since the last one.
    pub fn pass(&self, now: Instant) -> Option<u64> {
        if self.last.get().is_some_and(|last| now.since(last) < INTERVAL) {
            self.held.set(self.held.get() + 1);
            return None;
        }
        self.last.set(Some(now));
        Some(self.held.replace(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_in_each_interval_says_how_many_were_held_back() {
        let throttle = Throttle::default();
        let at = |seconds: u64| Instant(seconds * 1_000_000_000);
        assert_eq!(throttle.pass(at(10)), Some(0));
        assert_eq!((11..15).filter_map(|second| throttle.pass(at(second))).next(), None);
        assert_eq!(throttle.pass(at(15)), Some(4));
        assert_eq!(throttle.pass(at(40)), Some(0));
    }
}
