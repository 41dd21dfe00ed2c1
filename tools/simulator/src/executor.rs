//! Tasks and time: a single-threaded executor whose every choice comes from one seed.
//!
//! Whenever several tasks can run, the seeded generator picks one. Time is virtual and moves only when nothing can
//! run, straight to the next timer. A node's tasks can be dropped at any point between two polls, which is what a
//! power cut does to a process.

use crate::cut::CutSwitch;
use crate::ports::Core;
use crate::seed::{SeededRng, mix64};
use futures::task::{ArcWake, waker};
use kiseki_types::ids::CoreId;
use kiseki_types::runtime::{Instant, LocalBoxFuture, Ports, set_current};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// A simulated machine: what [`Sim::kill`] ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u32);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node{}", self.0)
    }
}

/// Boottime at which every run starts: late enough that subtracting a lease never reaches zero.
const START: Instant = Instant(1_000_000_000_000);

/// How far one [`Sim::block_on`] may go before it is called stalled.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Polls of tasks.
    pub steps: u64,
    /// Virtual time.
    pub time: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { steps: 50_000_000, time: Duration::from_secs(3600) }
    }
}

/// Why a future did not end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StallReason {
    /// Nothing can run and no timer is set: a deadlock.
    Deadlock,
    /// [`Limits::steps`] polls were made.
    Steps,
    /// [`Limits::time`] of virtual time went by.
    Time,
}

/// A future that did not end, and who was waiting then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stalled {
    /// Why.
    pub reason: StallReason,
    /// Virtual time when it was given up.
    pub now: Instant,
    /// Node, name and number of the tasks that had not ended.
    pub pending: Vec<(NodeId, &'static str, usize)>,
}

impl fmt::Display for Stalled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stalled ({:?}) at {} ns; tasks that wait:", self.reason, self.now.0)?;
        self.pending.iter().try_for_each(|(node, name, count)| write!(f, " {node}/{name} x{count}"))
    }
}

impl std::error::Error for Stalled {}

/// Why [`Sim::block_on_or_cut`] has no result.
#[derive(Debug)]
pub enum Interrupted {
    /// The switch fired: the power is gone. Kill the node now.
    PowerCut,
    /// The future did not end.
    Stalled(Stalled),
}

type TaskId = u64;

/// Number of the future that `block_on` itself runs.
const MAIN_TASK: TaskId = 0;

/// Tasks that were woken. Wakers may be called from anywhere, so this is the one thing behind a mutex.
#[derive(Default)]
struct Ready(Mutex<Vec<TaskId>>);

impl Ready {
    fn with<T>(&self, act: impl FnOnce(&mut Vec<TaskId>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Wakes one task. It knows the task by number only, so after the task is dropped waking it does nothing.
struct TaskWaker {
    task: TaskId,
    queued: AtomicBool,
    ready: Arc<Ready>,
}

impl ArcWake for TaskWaker {
    fn wake_by_ref(this: &Arc<Self>) {
        if !this.queued.swap(true, Ordering::Relaxed) {
            this.ready.with(|ready| ready.push(this.task));
        }
    }
}

struct Task {
    name: &'static str,
    core: Rc<Core>,
    future: LocalBoxFuture<'static, ()>,
    wake: Arc<TaskWaker>,
}

/// What happens at a point in time.
enum Event {
    Wake(Waker),
    Run(Box<dyn FnOnce()>),
}

/// The state that the executor, the ports and the simulated media share.
pub(crate) struct World {
    seed: u64,
    /// Decides which task runs next and nothing else.
    schedule: SeededRng,
    /// Decides latencies and delays.
    pub(crate) chance: SeededRng,
    now: Cell<Instant>,
    trace: Cell<u64>,
    steps: Cell<u64>,
    next_task: Cell<TaskId>,
    next_event: Cell<u64>,
    ready: Arc<Ready>,
    tasks: RefCell<BTreeMap<TaskId, Task>>,
    events: RefCell<BTreeMap<(Instant, u64), Event>>,
    cores: RefCell<BTreeMap<(NodeId, CoreId), Rc<Core>>>,
    incarnations: Cell<u64>,
}

impl World {
    pub(crate) fn now(&self) -> Instant {
        self.now.get()
    }

    /// Takes a decision into the trace hash.
    pub(crate) fn mix(&self, value: u64) {
        self.trace.set(mix64(self.trace.get() ^ value));
    }

    pub(crate) fn spawn(&self, core: Rc<Core>, name: &'static str, future: LocalBoxFuture<'static, ()>) {
        let id = self.next_task.get();
        self.next_task.set(id + 1);
        let wake = Arc::new(TaskWaker { task: id, queued: AtomicBool::new(true), ready: self.ready.clone() });
        self.tasks.borrow_mut().insert(id, Task { name, core, future, wake });
        self.ready.with(|ready| ready.push(id));
    }

    fn add_event(&self, at: Instant, event: Event) -> (Instant, u64) {
        let key = (at.max(self.now()), self.next_event.get());
        self.next_event.set(key.1 + 1);
        self.events.borrow_mut().insert(key, event);
        key
    }

    pub(crate) fn wake_at(&self, at: Instant, waker: Waker) -> (Instant, u64) {
        self.add_event(at, Event::Wake(waker))
    }

    pub(crate) fn run_at(&self, at: Instant, act: impl FnOnce() + 'static) {
        self.add_event(at, Event::Run(Box::new(act)));
    }

    /// Replaces the waker of a timer; false when it has fired.
    pub(crate) fn rewake(&self, key: (Instant, u64), waker: &Waker) -> bool {
        match self.events.borrow_mut().get_mut(&key) {
            Some(Event::Wake(old)) => {
                old.clone_from(waker);
                true
            }
            _ => false,
        }
    }

    pub(crate) fn forget_event(&self, key: (Instant, u64)) {
        let event = self.events.borrow_mut().remove(&key);
        drop(event); // outside of the borrow: dropping a waker may drop a task's last hold on something
    }

    /// Moves time to the next event and lets everything due happen; false when there is no event.
    fn advance(&self) -> bool {
        let Some(next) = self.events.borrow().keys().next().map(|(at, _)| *at) else { return false };
        self.now.set(next);
        self.mix(next.0);
        loop {
            let due = {
                let mut events = self.events.borrow_mut();
                match events.first_key_value() {
                    Some(((at, _), _)) if *at <= next => events.pop_first().map(|(_, event)| event),
                    _ => None,
                }
            };
            match due {
                Some(Event::Wake(waker)) => waker.wake(),
                Some(Event::Run(act)) => act(),
                None => return true,
            }
        }
    }

    /// Takes one of the tasks that can run.
    fn pick(&self) -> Option<TaskId> {
        let id = self.ready.with(|ready| match ready.len() {
            0 => None,
            len => Some(ready.swap_remove(self.schedule.index(len))),
        })?;
        self.mix(id);
        Some(id)
    }

    /// Polls a spawned task once.
    fn run_task(&self, id: TaskId) {
        // The task is out of the map while it runs, so it may spawn, kill and wake as it likes.
        let Some(mut task) = self.tasks.borrow_mut().remove(&id) else { return };
        if !task.core.is_alive() {
            return;
        }
        task.wake.queued.store(false, Ordering::Relaxed);
        let waker = waker(task.wake.clone());
        let _current = Current::set(&task.core);
        let done = task.future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        if !done && task.core.is_alive() {
            self.tasks.borrow_mut().insert(id, task);
        } else {
            drop(task); // here, while its ports are still the current ones
        }
    }

    fn pending(&self) -> Vec<(NodeId, &'static str, usize)> {
        let mut counts = BTreeMap::new();
        for task in self.tasks.borrow().values() {
            *counts.entry((task.core.node(), task.name)).or_insert(0) += 1;
        }
        counts.into_iter().map(|((node, name), count)| (node, name, count)).collect()
    }

    fn drop_tasks(&self, which: impl Fn(&Task) -> bool) {
        // A destructor may spawn (ignored for a dead core) or wake; it never finds the map borrowed.
        loop {
            let doomed = {
                let mut tasks = self.tasks.borrow_mut();
                let id = tasks.iter().find(|(_, task)| which(task)).map(|(id, _)| *id);
                id.and_then(|id| tasks.remove(&id))
            };
            let Some(task) = doomed else { return };
            let _current = Current::set(&task.core.clone());
            drop(task);
        }
    }
}

/// Sets the ports of this thread, and puts back on drop what was there.
struct Current(Option<Ports>);

impl Current {
    fn set(core: &Rc<Core>) -> Current {
        Current(set_current(Some(core.clone())))
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        set_current(self.0.take());
    }
}

/// A run from one seed. Dropping it drops all tasks.
pub struct Sim {
    world: Rc<World>,
    limits: Cell<Limits>,
    running: Cell<bool>,
}

/// What simulated media and links hold of a run: its time, its chance, its trace.
#[derive(Clone)]
pub struct SimHandle {
    pub(crate) world: Rc<World>,
}

impl SimHandle {
    /// Virtual time.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.world.now()
    }
}

impl Sim {
    /// A run in which nothing has happened yet.
    #[must_use]
    pub fn new(seed: u64) -> Sim {
        let world = World {
            seed,
            schedule: SeededRng::for_part(seed, 1),
            chance: SeededRng::for_part(seed, 2),
            now: Cell::new(START),
            trace: Cell::new(mix64(seed)),
            steps: Cell::new(0),
            next_task: Cell::new(MAIN_TASK + 1),
            next_event: Cell::new(0),
            ready: Arc::default(),
            tasks: RefCell::default(),
            events: RefCell::default(),
            cores: RefCell::default(),
            incarnations: Cell::new(0),
        };
        Sim { world: Rc::new(world), limits: Cell::default(), running: Cell::new(false) }
    }

    /// The seed.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.world.seed
    }

    /// For media and links.
    #[must_use]
    pub fn handle(&self) -> SimHandle {
        SimHandle { world: self.world.clone() }
    }

    /// Sets how far each `block_on` may go.
    pub fn set_limits(&self, limits: Limits) {
        self.limits.set(limits);
    }

    /// The ports of core 0 of a node, see [`Sim::core_ports`].
    #[must_use]
    pub fn ports(&self, node: NodeId) -> Ports {
        self.core_ports(node, CoreId(0))
    }

    /// The ports of a core: the same until the node is killed, then those of its next incarnation.
    #[must_use]
    pub fn core_ports(&self, node: NodeId, core: CoreId) -> Ports {
        self.core(node, core)
    }

    fn core(&self, node: NodeId, core: CoreId) -> Rc<Core> {
        let mut cores = self.world.cores.borrow_mut();
        let fresh = || {
            let incarnation = self.world.incarnations.get();
            self.world.incarnations.set(incarnation + 1);
            let label = (u64::from(node.0) << 32 | u64::from(core.0)) ^ incarnation.rotate_left(48);
            let rng = SeededRng::for_part(self.world.seed, mix64(label));
            Core::new(self.world.clone(), node, rng)
        };
        cores.entry((node, core)).or_insert_with(fresh).clone()
    }

    /// Virtual time.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.world.now()
    }

    /// Polls made so far.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.world.steps.get()
    }

    /// A number that every decision so far went into: equal for equal runs.
    #[must_use]
    pub fn trace_hash(&self) -> u64 {
        self.world.trace.get()
    }

    /// Takes an observation of the harness (a result, a digest) into the trace hash.
    pub fn note(&self, value: u64) {
        self.world.mix(value);
    }

    /// Drops all tasks of a node at once, as a power cut or `kill -9` does. Its old ports never wake anyone again;
    /// [`Sim::ports`] hands out new ones. What its devices had in flight goes on: cut their power too where that is
    /// meant.
    pub fn kill(&self, node: NodeId) {
        self.world.mix(u64::from(node.0) ^ 0x6b69_6c6c);
        let doomed: Vec<Rc<Core>> = {
            let mut cores = self.world.cores.borrow_mut();
            let keys: Vec<_> = cores.keys().filter(|(of, _)| *of == node).copied().collect();
            keys.iter().filter_map(|key| cores.remove(key)).collect()
        };
        doomed.iter().for_each(|core| core.die());
        self.world.drop_tasks(|task| task.core.node() == node && !task.core.is_alive());
    }

    /// Runs everything until `future` ends. Panics with a report when it does not: see [`Sim::try_block_on`].
    pub fn block_on<T>(&self, node: NodeId, future: impl Future<Output = T>) -> T {
        match self.try_block_on(node, future) {
            Ok(value) => value,
            Err(stalled) => panic!("seed {}: {stalled}", self.seed()),
        }
    }

    /// Runs everything until `future` ends, or nothing can make it end within the limits. The future runs with the
    /// ports of core 0 of `node`, is scheduled like a task, but is not ended by [`Sim::kill`].
    pub fn try_block_on<T>(&self, node: NodeId, future: impl Future<Output = T>) -> Result<T, Stalled> {
        match self.drive(node, future, &[]) {
            Ok(value) => Ok(value),
            Err(Interrupted::Stalled(stalled)) => Err(stalled),
            Err(Interrupted::PowerCut) => unreachable!("there is no switch"),
        }
    }

    /// As [`Sim::try_block_on`], but stops right behind the poll in which `switch` fires. A panic of a task that saw
    /// its metadata files fail because the power is gone counts as a power cut too: in the real world that code would
    /// not have run.
    pub fn block_on_or_cut<T>(
        &self,
        node: NodeId,
        future: impl Future<Output = T>,
        switch: &CutSwitch,
    ) -> Result<T, Interrupted> {
        self.drive(node, future, &[switch])
    }

    /// As [`Sim::block_on_or_cut`], with the power of several machines: it stops when any of `switches` has fired.
    pub fn block_on_or_any_cut<T>(
        &self,
        node: NodeId,
        future: impl Future<Output = T>,
        switches: &[&CutSwitch],
    ) -> Result<T, Interrupted> {
        self.drive(node, future, switches)
    }

    fn drive<T>(
        &self,
        node: NodeId,
        future: impl Future<Output = T>,
        switches: &[&CutSwitch],
    ) -> Result<T, Interrupted> {
        assert!(!self.running.replace(true), "block_on is called inside of block_on");
        let _running = Running(&self.running);
        let mut main = Main { core: self.core(node, CoreId(0)), future: pin!(future), wake: self.main_waker() };
        let (limits, first_step, deadline) =
            (self.limits.get(), self.world.steps.get(), self.world.now() + self.limits.get().time);
        loop {
            let turn = catch_unwind(AssertUnwindSafe(|| self.turn(&mut main)));
            let is_cut = switches.iter().any(|switch| switch.is_cut());
            let stalled = |reason| {
                let (now, pending) = (self.world.now(), self.world.pending());
                Err(Interrupted::Stalled(Stalled { reason, now, pending }))
            };
            match turn {
                Ok(Turn::Done(value)) => return Ok(value),
                _ if is_cut => return Err(Interrupted::PowerCut),
                Ok(Turn::More) => {}
                Ok(Turn::Nothing) => return stalled(StallReason::Deadlock),
                Err(panic) => resume_unwind(panic),
            }
            if self.world.steps.get() - first_step >= limits.steps {
                return stalled(StallReason::Steps);
            }
            if self.world.now() > deadline {
                return stalled(StallReason::Time);
            }
        }
    }

    fn main_waker(&self) -> Arc<TaskWaker> {
        let ready = &self.world.ready;
        ready.with(|tasks| {
            tasks.retain(|task| *task != MAIN_TASK); // a stale wake-up of an earlier call
            tasks.push(MAIN_TASK);
        });
        Arc::new(TaskWaker { task: MAIN_TASK, queued: AtomicBool::new(true), ready: ready.clone() })
    }

    /// One decision: run one task, or move time.
    fn turn<T, F: Future<Output = T>>(&self, main: &mut Main<'_, F>) -> Turn<T> {
        match self.world.pick() {
            Some(MAIN_TASK) => {
                self.world.steps.set(self.world.steps.get() + 1);
                main.wake.queued.store(false, Ordering::Relaxed);
                let waker = waker(main.wake.clone());
                let _current = Current::set(&main.core);
                match main.future.as_mut().poll(&mut Context::from_waker(&waker)) {
                    Poll::Ready(value) => Turn::Done(value),
                    Poll::Pending => Turn::More,
                }
            }
            Some(task) => {
                self.world.steps.set(self.world.steps.get() + 1);
                self.world.run_task(task);
                Turn::More
            }
            None if self.world.advance() => Turn::More,
            None => Turn::Nothing,
        }
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        // Ports hold the world and tasks hold ports: the circle is opened here.
        let cores = std::mem::take(&mut *self.world.cores.borrow_mut());
        cores.values().for_each(|core| core.die());
        self.world.drop_tasks(|_| true);
        let events = std::mem::take(&mut *self.world.events.borrow_mut());
        drop(events);
    }
}

/// The future that `block_on` runs.
struct Main<'a, F> {
    core: Rc<Core>,
    future: std::pin::Pin<&'a mut F>,
    wake: Arc<TaskWaker>,
}

enum Turn<T> {
    Done(T),
    More,
    Nothing,
}

struct Running<'a>(&'a Cell<bool>);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

#[cfg(test)]
mod tests;
