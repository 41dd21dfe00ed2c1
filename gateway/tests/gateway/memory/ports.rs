//! The ports over the real clock and one thread.

use async_executor::LocalExecutor;
use kiseki_types::runtime::{Clock, Rng, SideThreads, Spawn};
use kiseki_types::{Instant, LocalBoxFuture};
use std::io::Read;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

pub struct TestPorts {
    executor: Rc<LocalExecutor<'static>>,
    origin: std::time::Instant,
}

impl TestPorts {
    pub fn new(executor: Rc<LocalExecutor<'static>>) -> TestPorts {
        TestPorts { executor, origin: std::time::Instant::now() }
    }
}

impl Clock for TestPorts {
    fn now(&self) -> Instant {
        Instant(u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn unix_time_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
        u64::try_from(since.as_millis()).expect("before the year 584 million")
    }

    fn sleep_until(&self, deadline: Instant) -> LocalBoxFuture<'static, ()> {
        let timer = async_io::Timer::at(self.origin + Duration::from_nanos(deadline.0));
        Box::pin(async move {
            timer.await;
        })
    }
}

impl Rng for TestPorts {
    fn fill_random(&self, out: &mut [u8]) {
        std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(out)).expect("random bytes");
    }
}

impl Spawn for TestPorts {
    fn spawn(&self, _name: &'static str, task: LocalBoxFuture<'static, ()>) {
        self.executor.spawn(task).detach();
    }

    fn yield_now(&self) -> LocalBoxFuture<'static, ()> {
        let mut yielded = false;
        Box::pin(std::future::poll_fn(move |context| {
            if yielded {
                return std::task::Poll::Ready(());
            }
            yielded = true;
            context.waker().wake_by_ref();
            std::task::Poll::Pending
        }))
    }
}

impl SideThreads for TestPorts {
    fn offload_job(&self, _queue: u64, job: Box<dyn FnOnce() + Send>) {
        job();
    }
}
