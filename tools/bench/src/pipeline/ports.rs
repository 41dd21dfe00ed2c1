//! The engine's ports on a plain thread, for the parts of the data path that take turns: a pool of local tasks stands in for
//! the executor of a core, so that no socket, timer or device of one disturbs the figures. It gives tasks their turns in
//! the order in which they woke, as the executor does, so that as many chunks meet in the hash lanes as would there.

use futures::executor::LocalSpawner;
use futures::task::LocalSpawnExt;
use kiseki_types::runtime::{Clock, Instant, LocalBoxFuture, Rng, SideThreads, Spawn};
use std::task::Poll;
use std::time::{SystemTime, UNIX_EPOCH};

/// Ports of the calling thread; tasks run in the pool that the spawner belongs to.
pub struct ThreadPorts {
    epoch: std::time::Instant,
    spawner: LocalSpawner,
}

impl ThreadPorts {
    /// Time begins now.
    pub fn new(spawner: LocalSpawner) -> ThreadPorts {
        ThreadPorts { epoch: std::time::Instant::now(), spawner }
    }
}

impl Clock for ThreadPorts {
    fn now(&self) -> Instant {
        Instant::default() + self.epoch.elapsed()
    }

    fn unix_time_ms(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
    }

    fn sleep_until(&self, deadline: Instant) -> LocalBoxFuture<'static, ()> {
        let left = deadline.since(self.now());
        // Nothing on this path sleeps; if something comes to, the figures show it.
        Box::pin(async move { std::thread::sleep(left) })
    }
}

impl Rng for ThreadPorts {
    fn fill_random(&self, out: &mut [u8]) {
        getrandom::fill(out).expect("the kernel's random generator answers");
    }
}

impl Spawn for ThreadPorts {
    fn spawn(&self, _name: &'static str, task: LocalBoxFuture<'static, ()>) {
        self.spawner.spawn_local(task).expect("the pool outlives what runs in it");
    }

    fn yield_now(&self) -> LocalBoxFuture<'static, ()> {
        let mut has_yielded = false;
        Box::pin(std::future::poll_fn(move |context| {
            if std::mem::replace(&mut has_yielded, true) {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        }))
    }
}

impl SideThreads for ThreadPorts {
    fn offload_job(&self, _queue: u64, job: Box<dyn FnOnce() + Send>) {
        job();
    }
}
