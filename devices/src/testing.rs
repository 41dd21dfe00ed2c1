//! What this room's tests share: an executor, and ports on it.

use kiseki_executor::{Executor, ExecutorOptions};
use kiseki_types::runtime::{Clock, Instant, LocalBoxFuture, Ports, Rng, SideThreads, Spawn};
use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

struct TestPorts {
    start: std::time::Instant,
    random: Cell<u64>,
}

impl Clock for TestPorts {
    fn now(&self) -> Instant {
        Instant::default() + self.start.elapsed()
    }
    fn unix_time_ms(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
    }
    fn sleep_until(&self, deadline: Instant) -> LocalBoxFuture<'static, ()> {
        let span = deadline.since(self.now());
        Box::pin(async move {
            kiseki_executor::sleep(span).await;
        })
    }
}

impl Rng for TestPorts {
    fn fill_random(&self, out: &mut [u8]) {
        for byte in out {
            let next =
                self.random.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            self.random.set(next);
            *byte = (next >> 56) as u8;
        }
    }
}

impl Spawn for TestPorts {
    fn spawn(&self, _name: &'static str, task: LocalBoxFuture<'static, ()>) {
        kiseki_executor::spawn(task);
    }
    fn yield_now(&self) -> LocalBoxFuture<'static, ()> {
        Box::pin(kiseki_executor::yield_now())
    }
}

impl SideThreads for TestPorts {
    fn offload_job(&self, _queue: u64, job: Box<dyn FnOnce() + Send>) {
        job();
    }
}

/// Ports on the executor that runs the caller.
pub(crate) fn test_ports() -> Ports {
    Rc::new(TestPorts { start: std::time::Instant::now(), random: Cell::new(1) })
}

/// Runs `task` on an executor of its own and returns what it returns.
pub(crate) fn on_executor<T>(task: impl Future<Output = T>) -> T {
    Executor::new(ExecutorOptions::default()).expect("an executor").run(task)
}
