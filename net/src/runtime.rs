//! The ports of time, chance, spawning and side threads on an executor: one [`CoreRuntime`] per core.

use crate::side::SidePool;
use kiseki_types::ids::CoreId;
use kiseki_types::runtime::{Clock, Instant, LocalBoxFuture, Rng, SideThreads, Spawn};
use rustix::time::{ClockId, clock_gettime};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The ports of one core. Make it on the executor's thread and give it to `kiseki_types::runtime::set_current`.
pub struct CoreRuntime {
    core: CoreId,
    side: Arc<SidePool>,
    tasks: Rc<RefCell<BTreeMap<&'static str, u64>>>,
}

impl CoreRuntime {
    /// The ports of `core`; work that blocks goes to `side`, which all cores of the node share.
    #[must_use]
    pub fn new(core: CoreId, side: Arc<SidePool>) -> CoreRuntime {
        CoreRuntime { core, side, tasks: Rc::default() }
    }

    /// How many tasks of each name are alive on this core, for metrics.
    #[must_use]
    pub fn task_counts(&self) -> BTreeMap<&'static str, u64> {
        self.tasks.borrow().clone()
    }
}

/// The boottime clock in nanoseconds: it goes on while the machine is suspended, so a lease ends in time.
#[must_use]
pub fn boottime() -> Instant {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).expect("the boottime clock is never negative");
    let nanos = u64::try_from(now.tv_nsec).expect("nanoseconds are never negative");
    Instant(seconds * 1_000_000_000 + nanos)
}

impl Clock for CoreRuntime {
    fn now(&self) -> Instant {
        boottime()
    }

    fn unix_time_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    fn sleep_until(&self, deadline: Instant) -> LocalBoxFuture<'static, ()> {
        Box::pin(async move {
            // The timer runs on the monotonic clock and may ring a little early: look again until it is true.
            loop {
                let left = deadline.since(boottime());
                if left.is_zero() {
                    return;
                }
                kiseki_executor::sleep(left).await;
            }
        })
    }
}

impl Rng for CoreRuntime {
    fn fill_random(&self, out: &mut [u8]) {
        // Without the kernel's generator no id and no nonce is safe: there is nothing to go on with.
        getrandom::fill(out).expect("the kernel's random generator answers");
    }
}

/// Counts a task out when it ends, however it ends.
struct Counted {
    name: &'static str,
    tasks: Rc<RefCell<BTreeMap<&'static str, u64>>>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(count) = self.tasks.borrow_mut().get_mut(self.name) {
            *count -= 1;
        }
    }
}

impl Spawn for CoreRuntime {
    fn spawn(&self, name: &'static str, task: LocalBoxFuture<'static, ()>) {
        *self.tasks.borrow_mut().entry(name).or_default() += 1;
        let counted = Counted { name, tasks: self.tasks.clone() };
        let task = async move {
            let _counted = counted;
            task.await;
        };
        kiseki_executor::spawn(task);
    }

    fn yield_now(&self) -> LocalBoxFuture<'static, ()> {
        Box::pin(kiseki_executor::yield_now())
    }
}

impl SideThreads for CoreRuntime {
    fn offload_job(&self, queue: u64, job: Box<dyn FnOnce() + Send>) {
        self.side.run(self.core, queue, job);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiseki_executor::{Executor, ExecutorOptions};
    use kiseki_types::runtime::RuntimeExt;

    #[test]
    fn time_tasks_chance_and_side_threads_work_on_an_executor() {
        let side = SidePool::start(2).unwrap();
        let seen = side.clone();
        let executor = Executor::new(ExecutorOptions::default()).unwrap();
        executor.run(async move {
            let ports = Rc::new(CoreRuntime::new(CoreId(0), seen));
            let before = ports.now();
            ports.sleep(Duration::from_millis(5)).await;
            assert!(ports.now().since(before) >= Duration::from_millis(5), "a sleep never ends early");
            assert!(ports.unix_time_ms() > 1_600_000_000_000);
            assert_ne!(ports.random::<16>(), ports.random::<16>());

            let (sender, receiver) = futures::channel::oneshot::channel();
            ports.spawn(
                "test",
                Box::pin(async move {
                    let _ = sender.send(7);
                }),
            );
            assert_eq!(ports.task_counts()["test"], 1, "a task starts after its spawner has yielded");
            assert_eq!(receiver.await, Ok(7));
            ports.yield_now().await;
            assert_eq!(ports.task_counts()["test"], 0);

            let thread = std::thread::current().id();
            let other = ports.offload(3, move || std::thread::current().id()).await.unwrap();
            assert_ne!(thread, other, "offloaded work leaves the executor");
        });
        side.stop();
    }
}
