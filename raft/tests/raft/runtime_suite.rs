//! openraft's own suite for runtimes, on two implementations of the ports: a core's executor and the simulator.

use futures::future::LocalBoxFuture;
use kiseki_raft::runtime::{Elapsed, JoinError, JoinHandle, PortsRng, PortsRuntime, RaftInstant, Timeout};
use kiseki_raft::runtime_channels::{Channels, LocalMutex};
use kiseki_simulator::{NodeId, Sim};
use kiseki_types::runtime::{self, Clock, Instant, Rng, SideThreads, Spawn};
use openraft::AsyncRuntime;
use openraft_rt::testing::Suite;
use std::fmt::Debug;
use std::future::Future;
use std::marker::PhantomData;
use std::rc::Rc;
use std::time::Duration;

/// Something that can run a future to its end with the ports set.
trait Executor: Debug + 'static {
    fn run<T>(future: impl Future<Output = T>) -> T;
}

/// [`PortsRuntime`] with an executor of its own, which the suite needs.
#[derive(Debug)]
struct Standalone<E>(PhantomData<E>);

impl<E: Executor> AsyncRuntime for Standalone<E> {
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
        PortsRuntime::spawn(future)
    }
    fn sleep(duration: Duration) -> Self::Sleep {
        PortsRuntime::sleep(duration)
    }
    fn sleep_until(deadline: RaftInstant) -> Self::Sleep {
        PortsRuntime::sleep_until(deadline)
    }
    fn timeout<R, F: Future<Output = R>>(duration: Duration, future: F) -> Timeout<F> {
        PortsRuntime::timeout(duration, future)
    }
    fn timeout_at<R, F: Future<Output = R>>(deadline: RaftInstant, future: F) -> Timeout<F> {
        PortsRuntime::timeout_at(deadline, future)
    }
    fn is_panic(join_error: &JoinError) -> bool {
        PortsRuntime::is_panic(join_error)
    }
    fn thread_rng() -> PortsRng {
        PortsRuntime::thread_rng()
    }
    fn new(_threads: usize) -> Self {
        Standalone(PhantomData)
    }
    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        E::run(future)
    }
}

#[derive(Debug)]
struct Simulated;

impl Executor for Simulated {
    fn run<T>(future: impl Future<Output = T>) -> T {
        Sim::new(1).block_on(NodeId(1), future)
    }
}

#[derive(Debug)]
struct OneCore;

struct CorePorts(std::time::Instant);

impl Clock for CorePorts {
    fn now(&self) -> Instant {
        Instant(1_000_000_000_000 + self.0.elapsed().as_nanos() as u64)
    }
    fn unix_time_ms(&self) -> u64 {
        0
    }
    fn sleep_until(&self, deadline: Instant) -> LocalBoxFuture<'static, ()> {
        Box::pin(kiseki_executor::sleep(deadline.since(self.now())))
    }
}

impl Rng for CorePorts {
    fn fill_random(&self, out: &mut [u8]) {
        getrandom::fill(out).expect("the kernel's generator");
    }
}

impl Spawn for CorePorts {
    fn spawn(&self, _name: &'static str, task: LocalBoxFuture<'static, ()>) {
        kiseki_executor::spawn(task);
    }
    fn yield_now(&self) -> LocalBoxFuture<'static, ()> {
        Box::pin(kiseki_executor::yield_now())
    }
}

impl SideThreads for CorePorts {
    fn offload_job(&self, _queue: u64, job: Box<dyn FnOnce() + Send>) {
        std::thread::spawn(job);
    }
}

impl Executor for OneCore {
    fn run<T>(future: impl Future<Output = T>) -> T {
        let executor = kiseki_executor::Executor::new(Default::default()).expect("an executor");
        executor.run(async {
            let before = runtime::set_current(Some(Rc::new(CorePorts(std::time::Instant::now()))));
            let value = future.await;
            runtime::set_current(before);
            value
        })
    }
}

#[test]
fn the_suite_passes_on_an_executor() {
    Suite::<Standalone<OneCore>>::test_all();
}

#[test]
fn the_suite_passes_in_the_simulator() {
    Suite::<Standalone<Simulated>>::test_all();
}

#[test]
fn a_panicking_task_ends_alone() {
    crate::common::only_guarded_tasks_may_panic();
    Sim::new(1).block_on(NodeId(1), async {
        let bad = PortsRuntime::spawn(async { panic!("a bug") });
        let good = PortsRuntime::spawn(async { 7 });
        let error: Result<(), JoinError> = bad.await;
        assert_eq!(error, Err(JoinError::Panicked));
        assert_eq!(good.await, Ok(7));
        assert!(!kiseki_raft::in_guarded_task());
    });
    let _ended = std::panic::take_hook();
}
