//! The open loop of one thread: operations become due by a timer, and the first client that is free takes the oldest.

use crate::measure::Schedule;
use crate::stop::Stop;
use crate::units::ns;
use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use tokio::io::unix::AsyncFd;
use tokio::sync::Semaphore;

/// Longest sleep: Ctrl-C is looked for this often.
const SLEEP_MAX: Duration = Duration::from_millis(200);

/// Operations that are due and not yet taken.
pub struct DueQueue {
    due: RefCell<VecDeque<u64>>,
    ready: Semaphore,
}

impl DueQueue {
    /// Nothing is due yet.
    pub fn new() -> DueQueue {
        DueQueue { due: RefCell::default(), ready: Semaphore::new(0) }
    }

    /// Waits for an operation; when it was due. `None` when none will come any more.
    pub async fn take(&self) -> Option<u64> {
        self.ready.acquire().await.ok()?.forget();
        self.due.borrow_mut().pop_front()
    }

    /// Lets operations become due until the end, which ends the queue too. Returns those that nobody took.
    pub async fn fill(&self, mut schedule: Schedule, epoch: Instant, end_ns: u64, stop: &Stop) -> Result<Vec<u64>> {
        let timer = Timer::new().context("can't make a timer")?;
        let mut now_ns = ns(epoch.elapsed());
        while now_ns < end_ns && !stop.is_set() {
            let due_ns = schedule.due_ns();
            if due_ns > now_ns {
                let left = Duration::from_nanos(due_ns.min(end_ns) - now_ns);
                timer.sleep(left.min(SLEEP_MAX)).await.context("the timer fails")?;
                now_ns = ns(epoch.elapsed());
                continue;
            }
            self.due.borrow_mut().push_back(due_ns);
            self.ready.add_permits(1);
            schedule.advance();
        }
        self.ready.close();
        Ok(self.due.take().into())
    }
}

/// A timer of the kernel: the runtime's own counts in milliseconds, which would be added to every latency.
struct Timer(AsyncFd<OwnedFd>);

impl Timer {
    fn new() -> std::io::Result<Timer> {
        let fd = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        // Deprecated for types that may close their descriptor behind its back, which an `OwnedFd` can't; what replaces
        // it needs unsafe code.
        #[allow(deprecated)]
        let timer = AsyncFd::new(fd)?;
        Ok(Timer(timer))
    }

    async fn sleep(&self, span: Duration) -> std::io::Result<()> {
        let never = Timespec { tv_sec: 0, tv_nsec: 0 };
        let at = Timespec { tv_sec: span.as_secs() as i64, tv_nsec: i64::from(span.subsec_nanos().max(1)) };
        let once = Itimerspec { it_interval: never, it_value: at };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once)?;
        loop {
            let mut ready = self.0.readable().await?;
            match rustix::io::read(&self.0, &mut [0u8; 8]) {
                Ok(_) => return Ok(()),
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::future::join;

    #[test]
    fn what_is_due_comes_in_order_and_the_rest_is_told() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        runtime.block_on(async {
            let queue = DueQueue::new();
            let (epoch, stop) = (Instant::now(), Stop::default());
            let taking = async { [queue.take().await, queue.take().await] };
            let (left, taken) = join(queue.fill(Schedule::share(1000.0, 0, 1), epoch, 20_000_000, &stop), taking).await;
            assert_eq!(taken, [Some(0), Some(1_000_000)]);
            let left = left.unwrap();
            assert_eq!((left.first(), left.last()), (Some(&2_000_000), Some(&19_000_000)));
            assert_eq!(queue.take().await, None);
        });
    }
}
