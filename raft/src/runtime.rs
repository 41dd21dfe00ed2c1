//! openraft's runtime on the ports of the core: the same adapter runs on the production executor and in the simulator.
//!
//! openraft calls static functions, so the ports come from `kiseki_types::runtime::current`. Channels are
//! `tokio::sync` types, which need no tokio runtime. Every task that openraft spawns is *guarded*: a panic in it ends
//! that task and marks its Raft group for a rebuild from disk, instead of ending the process.

use crate::runtime_channels::{Channels, LocalMutex};
use kiseki_types::runtime::{self, LocalBoxFuture, Ports};
use openraft::AsyncRuntime;
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{Notify, oneshot};

/// The runtime type that openraft is given.
#[derive(Debug)]
pub struct PortsRuntime;

/// A point on the boottime clock of the ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RaftInstant(pub runtime::Instant);

impl Add<Duration> for RaftInstant {
    type Output = Self;
    fn add(self, rhs: Duration) -> Self {
        RaftInstant(self.0 + rhs)
    }
}

impl AddAssign<Duration> for RaftInstant {
    fn add_assign(&mut self, rhs: Duration) {
        *self = *self + rhs;
    }
}

impl Sub<Duration> for RaftInstant {
    type Output = Self;
    fn sub(self, rhs: Duration) -> Self {
        RaftInstant(self.0 - rhs)
    }
}

impl SubAssign<Duration> for RaftInstant {
    fn sub_assign(&mut self, rhs: Duration) {
        *self = *self - rhs;
    }
}

impl Sub<Self> for RaftInstant {
    type Output = Duration;
    fn sub(self, rhs: Self) -> Duration {
        self.0.since(rhs.0)
    }
}

impl openraft::Instant for RaftInstant {
    fn now() -> Self {
        RaftInstant(runtime::current().now())
    }
}

/// Why a spawned task has no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// It panicked; the panic was caught and its group marked.
    #[error("the task panicked")]
    Panicked,
    /// The executor dropped it: the node is stopping.
    #[error("the task was dropped")]
    Dropped,
}

/// Waits for a spawned task; dropping it leaves the task running.
pub struct JoinHandle<T>(oneshot::Receiver<Result<T, JoinError>>);

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, JoinError>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(|result| result.unwrap_or(Err(JoinError::Dropped)))
    }
}

/// The deadline came first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the deadline has passed")]
pub struct Elapsed;

/// A future with a deadline; the future is looked at first.
pub struct Timeout<F> {
    future: Pin<Box<F>>,
    deadline: LocalBoxFuture<'static, ()>,
}

impl<F: Future> Future for Timeout<F> {
    type Output = Result<F::Output, Elapsed>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(output) = self.future.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        self.deadline.as_mut().poll(cx).map(|()| Err(Elapsed))
    }
}

/// Random numbers from the ports.
#[derive(Debug, Clone, Copy)]
pub struct PortsRng;

impl rand_core::TryRng for PortsRng {
    type Error = Infallible;
    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }
    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        runtime::current().fill_random(out);
        Ok(())
    }
}

impl AsyncRuntime for PortsRuntime {
    type JoinError = JoinError;
    type JoinHandle<T: 'static> = JoinHandle<T>;
    type Sleep = LocalBoxFuture<'static, ()>;
    type Instant = RaftInstant;
    type TimeoutError = Elapsed;
    type Timeout<R, T: Future<Output = R>> = Timeout<T>;
    type ThreadLocalRng = PortsRng;
    type Mpsc = Channels;
    type Watch = Channels;
    type Oneshot = Channels;
    type Mutex<T: 'static> = LocalMutex<T>;

    fn spawn<T>(future: T) -> JoinHandle<T::Output>
    where
        T: Future + 'static,
        T::Output: 'static,
    {
        let (sender, receiver) = oneshot::channel();
        let ports = runtime::current();
        let health = current_health();
        let guarded = Guarded { future: Some(Box::pin(future)), health };
        ports.spawn(
            "raft",
            Box::pin(async move {
                let _ = sender.send(guarded.await);
            }),
        );
        JoinHandle(receiver)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        let ports: Ports = runtime::current();
        ports.sleep_until(ports.now() + duration)
    }

    fn sleep_until(deadline: RaftInstant) -> Self::Sleep {
        runtime::current().sleep_until(deadline.0)
    }

    fn timeout<R, F: Future<Output = R>>(duration: Duration, future: F) -> Timeout<F> {
        Timeout { future: Box::pin(future), deadline: Self::sleep(duration) }
    }

    fn timeout_at<R, F: Future<Output = R>>(deadline: RaftInstant, future: F) -> Timeout<F> {
        Timeout { future: Box::pin(future), deadline: Self::sleep_until(deadline) }
    }

    fn is_panic(join_error: &JoinError) -> bool {
        *join_error == JoinError::Panicked
    }

    fn thread_rng() -> PortsRng {
        PortsRng
    }

    fn new(_threads: usize) -> Self {
        PortsRuntime
    }

    /// The executor belongs to the process. openraft calls this in its own tests alone.
    fn block_on<F, T>(&mut self, _future: F) -> T
    where
        F: Future<Output = T>,
    {
        panic!("a core's executor is started by the process, never by a Raft group");
    }
}

/// Whether one Raft group's tasks are sound. Shared by all tasks of the group, its supervisor and its callers.
#[derive(Default)]
pub struct GroupHealth {
    panicked: Cell<bool>,
    given_up: Cell<bool>,
    told: Notify,
}

impl GroupHealth {
    /// A sound group.
    #[must_use]
    pub fn new() -> Rc<GroupHealth> {
        Rc::new(GroupHealth::default())
    }

    /// Whether a task of the group panicked since the group was built.
    #[must_use]
    pub fn panicked(&self) -> bool {
        self.panicked.get()
    }

    /// The group is to be built again, though no task of it panicked.
    pub fn give_up(&self) {
        self.given_up.set(true);
        self.told.notify_waiters();
    }

    /// Ends when a task of the group panics, or the group is given up. Any number may wait.
    pub async fn until_over(&self) {
        let told = self.told.notified(); // made before the look, so nothing told in between is missed
        if !self.panicked.get() && !self.given_up.get() {
            told.await;
        }
    }

    fn mark(&self) {
        self.panicked.set(true);
        self.told.notify_waiters();
    }
}

thread_local! {
    static GUARD_DEPTH: Cell<u32> = const { Cell::new(0) };
    static HEALTH: RefCell<Option<Rc<GroupHealth>>> = const { RefCell::new(None) };
}

/// Whether this thread runs a guarded task just now. The process's panic hook asks: a panic here is caught and its
/// group rebuilt, any other panic must end the process.
#[must_use]
pub fn in_guarded_task() -> bool {
    GUARD_DEPTH.with(Cell::get) > 0
}

fn current_health() -> Option<Rc<GroupHealth>> {
    HEALTH.with(|health| health.borrow().clone())
}

/// Restores what was current before, also when the poll panics.
struct HealthScope(Option<Rc<GroupHealth>>);

impl HealthScope {
    fn enter(health: Option<Rc<GroupHealth>>) -> HealthScope {
        HealthScope(HEALTH.with(|current| current.replace(health)))
    }
}

impl Drop for HealthScope {
    fn drop(&mut self) {
        let before = self.0.take();
        HEALTH.with(|current| current.replace(before));
    }
}

struct GuardDepth;

impl GuardDepth {
    fn enter() -> GuardDepth {
        GUARD_DEPTH.with(|depth| depth.set(depth.get() + 1));
        GuardDepth
    }
}

impl Drop for GuardDepth {
    fn drop(&mut self) {
        GUARD_DEPTH.with(|depth| depth.set(depth.get() - 1));
    }
}

/// Runs `body` guarded: a panic in it is caught and given back.
fn guarded<T>(health: &Option<Rc<GroupHealth>>, body: impl FnOnce() -> T) -> Result<T, Box<dyn Any + Send>> {
    let _scope = HealthScope::enter(health.clone());
    let _depth = GuardDepth::enter();
    catch_unwind(AssertUnwindSafe(body))
}

/// A task whose panics end it alone. Tasks that it spawns belong to the same group.
struct Guarded<F: Future> {
    future: Option<Pin<Box<F>>>,
    health: Option<Rc<GroupHealth>>,
}

impl<F: Future> Future for Guarded<F> {
    type Output = Result<F::Output, JoinError>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let future = this.future.as_mut().expect("not polled after its end");
        let polled = guarded(&this.health, || future.as_mut().poll(cx));
        let ended = match polled {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(output)) => Ok(output),
            Err(_) => Err(JoinError::Panicked),
        };
        let future = this.future.take();
        let dropped = guarded(&this.health, || drop(future));
        if (ended.is_err() || dropped.is_err())
            && let Some(health) = &this.health
        {
            health.mark();
        }
        Poll::Ready(ended)
    }
}

/// Runs `future` so that every task spawned in it belongs to the group of `health`, and a panic in it is caught.
///
/// Errors: [`JoinError::Panicked`].
pub fn in_group<F: Future>(health: Rc<GroupHealth>, future: F) -> impl Future<Output = Result<F::Output, JoinError>> {
    Guarded { future: Some(Box::pin(future)), health: Some(health) }
}

impl fmt::Debug for GroupHealth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupHealth").field("panicked", &self.panicked.get()).finish()
    }
}
