//! Timers of a core, on the monotonic clock.

use crate::executor::current;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// Sleeps longer than this are not told from endless ones.
const SLEEP_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// What waits for its time.
#[derive(Default)]
pub(crate) struct Timers {
    waiting: BTreeMap<(Instant, u64), Waker>,
    next: u64,
}

impl Timers {
    /// When the first one rings.
    pub fn first(&self) -> Option<Instant> {
        self.waiting.first_key_value().map(|((at, _), _)| *at)
    }

    /// Takes those out whose time has come.
    pub fn due(&mut self, now: Instant) -> Vec<Waker> {
        let mut due = Vec::new();
        while let Some(entry) = self.waiting.first_entry()
            && entry.key().0 <= now
        {
            due.push(entry.remove());
        }
        due
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

/// See [`sleep`].
pub struct Sleep {
    deadline: Instant,
    number: Option<u64>,
}

/// Ends after `span`, never before. Must be polled on an executor.
#[must_use]
pub fn sleep(span: Duration) -> Sleep {
    Sleep { deadline: Instant::now() + span.min(SLEEP_MAX), number: None }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if Instant::now() >= self.deadline {
            return Poll::Ready(());
        }
        let core = current();
        let mut timers = core.timers.borrow_mut();
        let number = *self.number.get_or_insert_with(|| {
            timers.next += 1;
            timers.next
        });
        let earlier = timers.waiting.insert((self.deadline, number), cx.waker().clone());
        drop(timers);
        drop(earlier);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        let Some(number) = self.number else { return };
        // Without an executor the timers are gone already.
        let waker = crate::executor::try_current()
            .and_then(|core| core.timers.borrow_mut().waiting.remove(&(self.deadline, number)));
        drop(waker);
    }
}
