//! Ports of time, chance, spawning and side threads. One object per core implements all of them.
//!
//! Production implements them on the cores' executors, the simulator on a seeded single-thread executor with virtual time. Nothing
//! outside an implementation reads a clock, draws a random number, spawns a task or a thread.

use futures::channel::oneshot;
use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::ops::{Add, Sub};
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

/// A boxed future of one core.
pub type LocalBoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// A point on the boottime clock (it goes on during suspend), in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(pub u64);

impl Instant {
    /// Time since `earlier`; zero when `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;
    fn add(self, rhs: Duration) -> Instant {
        Instant(self.0.saturating_add(u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Instant {
    type Output = Instant;
    fn sub(self, rhs: Duration) -> Instant {
        Instant(self.0.saturating_sub(u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// Time. To be correct: `now` never goes back; `sleep_until` never ends before its instant.
pub trait Clock {
    /// The boottime clock.
    fn now(&self) -> Instant;
    /// The wall clock, milliseconds since 1970, for what users see. It may jump: nothing may depend on its order.
    fn unix_time_ms(&self) -> u64;
    /// Ends at `deadline` or soon after.
    fn sleep_until(&self, deadline: Instant) -> LocalBoxFuture<'static, ()>;
}

/// Chance. To be correct: in production the bytes come from the kernel's generator; salts and ids are made of them.
pub trait Rng {
    /// Fills `out` with random bytes.
    fn fill_random(&self, out: &mut [u8]);
}

/// Tasks of this core.
pub trait Spawn {
    /// Runs `task` on this core until it ends; nobody waits for it. A panic in it ends the process (a Raft group's
    /// tasks excepted, which the Raft room guards itself).
    fn spawn(&self, name: &'static str, task: LocalBoxFuture<'static, ()>);
    /// Lets other tasks of this core run; long loops call it every 100 µs or so.
    fn yield_now(&self) -> LocalBoxFuture<'static, ()>;
}

/// Threads for work that blocks: redb transactions, files, external services.
pub trait SideThreads {
    /// Runs `job` off the executor. Jobs of one core with one `queue` number run in order, one at a time. The
    /// simulator runs the job at once, in the caller.
    fn offload_job(&self, queue: u64, job: Box<dyn FnOnce() + Send>);
}

/// All ports of one core.
pub trait Runtime: Clock + Rng + Spawn + SideThreads {}
impl<T: Clock + Rng + Spawn + SideThreads> Runtime for T {}

/// The ports as everyone holds them.
pub type Ports = Rc<dyn Runtime>;

/// The side thread that was to run a job has ended: the node is stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the side thread ended before its job was done; the node is stopping")]
pub struct Stopping;

/// What every room does with the ports beyond the bare traits.
pub trait RuntimeExt: Runtime {
    /// Sleeps for `span`.
    fn sleep(&self, span: Duration) -> LocalBoxFuture<'static, ()> {
        self.sleep_until(self.now() + span)
    }

    /// Runs `job` on a side thread and hands its result back.
    fn offload<T: Send + 'static>(
        &self,
        queue: u64,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> LocalBoxFuture<'static, Result<T, Stopping>> {
        let (sender, receiver) = oneshot::channel();
        self.offload_job(
            queue,
            Box::new(move || {
                let _ = sender.send(job());
            }),
        );
        Box::pin(async move { receiver.await.map_err(|_| Stopping) })
    }

    /// `N` random bytes.
    fn random<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.fill_random(&mut bytes);
        bytes
    }
}
impl<T: Runtime + ?Sized> RuntimeExt for T {}

thread_local! {
    static CURRENT: RefCell<Option<Ports>> = const { RefCell::new(None) };
}

/// Makes `ports` the ports of this thread and returns what was set before. An executor calls it once per core; the
/// simulator around every poll. It exists for code that can only call static functions (openraft's runtime).
pub fn set_current(ports: Option<Ports>) -> Option<Ports> {
    CURRENT.with(|current| current.replace(ports))
}

/// The ports of this thread. Panics when none are set: that is our own bug.
#[must_use]
pub fn current() -> Ports {
    CURRENT.with(|current| current.borrow().clone()).expect("set_current is called before any task runs")
}

impl fmt::Debug for dyn Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Runtime")
    }
}
