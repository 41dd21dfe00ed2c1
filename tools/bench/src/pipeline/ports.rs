//! The engine's ports on a plain thread, for the parts of the data path that take turns: tokio's local tasks stand in for
//! the executor of a core, so that no socket, timer or device of one disturbs the figures.

use kiseki_types::runtime::{Clock, Instant, LocalBoxFuture, Rng, SideThreads, Spawn};
use std::time::{SystemTime, UNIX_EPOCH};

/// Ports of the calling thread; tasks run inside a `LocalSet`.
pub struct ThreadPorts {
    epoch: std::time::Instant,
}

impl ThreadPorts {
    /// Time begins now.
    pub fn new() -> ThreadPorts {
        ThreadPorts { epoch: std::time::Instant::now() }
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
        drop(tokio::task::spawn_local(task)); // detached: it runs on
    }

    fn yield_now(&self) -> LocalBoxFuture<'static, ()> {
        Box::pin(tokio::task::yield_now())
    }
}

impl SideThreads for ThreadPorts {
    fn offload_job(&self, _queue: u64, job: Box<dyn FnOnce() + Send>) {
        job();
    }
}
