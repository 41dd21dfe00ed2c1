//! How long to wait before a drive is told the same again, and when it was told often enough.

use std::time::Duration;

/// The first wait where the drive names none; each is twice the one before, up to [`WAIT_MAX`].
const WAIT_MIN: Duration = Duration::from_millis(10);

/// The longest of these: a drive that is back is noticed after a second at the latest.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// How long a drive that asks for patience gets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RetryLimits {
    /// All waits of one operation together.
    pub span_max: Duration,
    /// Waits that the drive names by the numbers 1 to 3 (CRDT1 to CRDT3); zero: it does not say.
    pub named: [Duration; 3],
}

/// The waits of one operation so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Patience {
    waits: u32,
    waited: Duration,
}

impl Patience {
    /// The wait before the next try; `None`: there were enough (I-O5). `number` is the wait that the drive named with its
    /// answer, 0 for none.
    pub fn next(&mut self, limits: &RetryLimits, number: u8) -> Option<Duration> {
        let left = limits.span_max.saturating_sub(self.waited);
        if left.is_zero() {
            return None;
        }
        let named = usize::from(number).checked_sub(1).and_then(|index| limits.named.get(index));
        let grown = || WAIT_MIN.saturating_mul(1 << self.waits.min(16)).min(WAIT_MAX);
        let wait = named.copied().filter(|wait| !wait.is_zero()).unwrap_or_else(grown);
        // One that is longer than what is left gets a last try at the end.
        let wait = wait.min(left);
        (self.waits, self.waited) = (self.waits + 1, self.waited + wait);
        Some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: RetryLimits = RetryLimits {
        span_max: Duration::from_secs(30),
        named: [Duration::from_millis(300), Duration::ZERO, Duration::from_secs(3600)],
    };

    fn waits(numbers: impl Iterator<Item = u8>) -> Vec<u128> {
        let mut patience = Patience::default();
        numbers.map_while(|number| patience.next(&LIMITS, number)).map(|wait| wait.as_millis()).collect()
    }

    #[test]
    fn i_o5_waits_grow_and_end_with_the_span() {
        let all = waits(std::iter::repeat(0));
        assert_eq!(all[..9], [10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
        assert_eq!(all.iter().sum::<u128>(), 30_000, "I-O5: no more than the span, and all of it");
        assert!((30..40).contains(&all.len()), "I-O5: {} tries", all.len());
    }

    #[test]
    fn a_wait_that_the_drive_names_is_kept() {
        assert_eq!(waits([1, 0, 1, 2].into_iter()), [300, 20, 300, 80], "0 and an empty place name none");
        assert_eq!(waits(std::iter::repeat(3)), [30_000], "what is far too long gets its last try in time");
        assert_eq!(waits(std::iter::repeat(1)).len(), 100);
    }
}
