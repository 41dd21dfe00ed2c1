//! The open loop of one thread: operations become due by a timer, and the first client that is free takes the oldest.

use crate::measure::{Course, Schedule};
use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::sync::Semaphore;

/// Longest sleep: Ctrl-C is looked for this often.
const SLEEP_MAX: Duration = Duration::from_millis(200);

/// Operations that are due and not yet taken.
pub struct DueQueue {
    due: RefCell<VecDeque<u64>>,
    ready: Semaphore,
    /// Whether all operations of a count are due: who takes the last one ends the queue.
    is_full: Cell<bool>,
}

impl DueQueue {
    /// Nothing is due yet.
    pub fn new() -> DueQueue {
        DueQueue { due: RefCell::default(), ready: Semaphore::new(0), is_full: Cell::new(false) }
    }

    /// Waits for an operation; when it was due. `None` when none will come any more.
    pub async fn take(&self) -> Option<u64> {
        self.ready.acquire().await.ok()?.forget();
        let mut due = self.due.borrow_mut();
        let taken = due.pop_front();
        if self.is_full.get() && due.is_empty() {
            self.ready.close();
        }
        taken
    }

    /// Those that nobody took, after the end.
    pub fn left(&self) -> Vec<u64> {
        self.due.take().into()
    }

    /// Lets operations become due: `count` of them, which are all to be taken, or until the course is over, which ends the
    /// queue too.
    pub async fn fill(&self, mut schedule: Schedule, course: &Course, count: Option<u64>) -> Result<()> {
        let timer = Timer::new().context("can't make a timer")?;
        let mut now_ns = course.now_ns();
        while !course.is_over() {
            if count.is_some_and(|count| schedule.number() >= count) {
                self.is_full.set(true);
                if self.due.borrow().is_empty() {
                    self.ready.close();
                }
                return Ok(());
            }
            let (due_ns, end_ns) = (schedule.due_ns(), course.window().end_ns);
            if due_ns > now_ns {
                let left = Duration::from_nanos(due_ns.min(end_ns) - now_ns);
                timer.sleep(left.min(SLEEP_MAX)).await.context("the timer fails")?;
                now_ns = course.now_ns();
                continue;
            }
            self.due.borrow_mut().push_back(due_ns);
            self.ready.add_permits(1);
            schedule.advance();
        }
        self.ready.close();
        Ok(())
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

    use crate::measure::Plan;
    use crate::stop::Stop;

    fn course(runtime_ms: u64, count: Option<u64>) -> Course {
        let runtime = Duration::from_millis(runtime_ms);
        Course::new(&Plan { warmup: Duration::ZERO, runtime, count, steady: None }, &Stop::default())
    }

    #[test]
    fn what_is_due_comes_in_order_and_the_rest_is_told() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        runtime.block_on(async {
            let queue = DueQueue::new();
            let taking = async { [queue.take().await, queue.take().await] };
            let course = course(20, None);
            let (filled, taken) = join(queue.fill(Schedule::share(1000.0, 0, 1), &course, None), taking).await;
            filled.unwrap();
            assert_eq!(taken, [Some(0), Some(1_000_000)]);
            let left = queue.left();
            assert_eq!((left.first(), left.last()), (Some(&2_000_000), Some(&19_000_000)));
            assert_eq!(queue.take().await, None);
        });
    }

    #[test]
    fn all_of_a_count_are_taken_however_late() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        runtime.block_on(async {
            let (queue, course) = (DueQueue::new(), course(0, Some(10)));
            // The second of two threads: it has operations 1, 3, 5, 7 and 9.
            queue.fill(Schedule::share(100_000.0, 1, 2), &course, Some(10)).await.unwrap();
            let mut taken = Vec::new();
            while let Some(due_ns) = queue.take().await {
                taken.push(due_ns);
            }
            assert_eq!(taken, [10_000, 30_000, 50_000, 70_000, 90_000]);
        });
    }
}
