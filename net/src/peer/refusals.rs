//! Who was turned away: counted always, logged once for each peer and reason in an hour.

use kiseki_types::runtime::Instant;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Peers and reasons that are remembered (I-O5); further ones are only counted until an hour has passed.
const REMEMBERED_MAX: usize = 1024;

/// How long one is remembered.
const REMEMBERED_FOR: Duration = Duration::from_secs(3600);

/// Turned away, by all cores.
#[derive(Default)]
pub struct Refusals {
    count: AtomicU64,
    logged: Mutex<BTreeMap<(String, String), Instant>>,
}

impl Refusals {
    /// Counts one and says whether it should be logged.
    #[must_use]
    pub fn note(&self, peer: &str, reason: &str, now: Instant) -> bool {
        self.count.fetch_add(1, Ordering::Relaxed);
        let mut logged = self.logged.lock().expect("nothing panics while it holds the refusals");
        logged.retain(|_, at| now.since(*at) < REMEMBERED_FOR);
        if logged.len() >= REMEMBERED_MAX {
            return false;
        }
        logged.insert((peer.to_owned(), reason.to_owned()), now).is_none_or(|at| {
            // Said again would be said for ever: the first time counts.
            logged.insert((peer.to_owned(), reason.to_owned()), at);
            false
        })
    }

    /// How many there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i_o5_each_peer_and_reason_is_logged_once_an_hour_and_all_are_counted() {
        let (refusals, start) = (Refusals::default(), Instant(7));
        assert!(refusals.note("a", "x", start));
        assert!(!refusals.note("a", "x", start + Duration::from_secs(3599)));
        assert!(refusals.note("a", "y", start) && refusals.note("b", "x", start));
        assert!(refusals.note("a", "x", start + REMEMBERED_FOR), "an hour later it is said again");
        for number in 0..2 * REMEMBERED_MAX {
            let _ = refusals.note(&number.to_string(), "x", start + REMEMBERED_FOR);
        }
        assert!(refusals.logged.lock().unwrap().len() <= REMEMBERED_MAX, "I-O5");
        assert_eq!(refusals.count(), 5 + 2 * REMEMBERED_MAX as u64);
    }
}
