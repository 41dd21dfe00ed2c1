//! The loop of a core.

use crate::busy_poll::{BusyPoll, Look};
use crate::ring::{CoreRing, Rings};
use crate::tasks::{MainWaker, Remote, Tasks};
use crate::timers::Timers;
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::AsRawFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// Tasks run for at most about this long before the ring is looked at again. A single task may hold the core for longer;
/// long loops yield.
const TURN_MAX: Duration = Duration::from_micros(200);

/// After a task that ran for so long there may be others like it: what was queued until then does not wait for them.
const GATHERING_MAX: Duration = Duration::from_micros(20);

/// How long a core that serves looks around before it sleeps: what a drive takes for a small read, and some more. See
/// [`ExecutorOptions::busy_poll`].
pub const BUSY_POLL: Duration = Duration::from_micros(200);

/// How an executor is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExecutorOptions {
    /// The processor that its thread is pinned to.
    pub cpu: Option<usize>,
    /// The ring that it has.
    pub rings: Rings,
    /// For how long it looks for answers, with few operations under way and only when waits were that short lately, before it
    /// sleeps: sooner answers for processor time. Zero: it sleeps at once.
    pub busy_poll: Duration,
}

/// What an executor has done, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExecutorStats {
    /// Task turns: how often a task was run.
    pub polls: u64,
    /// `io_uring_enter` calls.
    pub enters: u64,
    /// Times that it slept.
    pub sleeps: u64,
    /// Times that it looked around before.
    pub busy_polls: u64,
    /// Of these, times that there was something to do before it would have slept.
    pub busy_polls_found: u64,
    /// Time that this took.
    pub busy_poll_time: Duration,
}

/// Everything of one core.
pub(crate) struct Core {
    tasks: Rc<Tasks>,
    ring: Rc<CoreRing>,
    pub timers: RefCell<Timers>,
    polls: Cell<u64>,
    sleeps: Cell<u64>,
    busy_poll: BusyPoll,
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<Core>>> = const { RefCell::new(None) };
}

/// The core of this thread while its executor runs.
pub(crate) fn try_current() -> Option<Rc<Core>> {
    CURRENT.try_with(|current| current.borrow().clone()).ok().flatten()
}

pub(crate) fn current() -> Rc<Core> {
    try_current().expect("called on the thread of a running executor")
}

/// Calls `look` with the tasks of this thread's core, if one runs here.
pub(crate) fn with_current(look: impl FnOnce(&Tasks)) {
    let _thread_ends = CURRENT.try_with(|current| {
        if let Some(core) = &*current.borrow() {
            look(&core.tasks);
        }
    });
}

/// Makes a core this thread's for as long as it lives.
struct Scope;

impl Scope {
    fn enter(core: &Rc<Core>) -> Scope {
        let before = CURRENT.replace(Some(core.clone()));
        assert!(before.is_none(), "one executor runs on a thread at a time");
        Scope
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        let core = CURRENT.take();
        drop(core);
    }
}

/// The executor of one core. It stays on the thread that made it. Dropping it drops its tasks and waits for what the
/// kernel still does with their memory.
pub struct Executor {
    core: Rc<Core>,
    remote: Arc<Remote>,
}

impl Executor {
    /// Makes an executor for this thread. Errors: those of io_uring (a kernel that lacks or forbids it, no memory to
    /// lock), of eventfd, and of pinning.
    pub fn new(options: ExecutorOptions) -> io::Result<Executor> {
        if let Some(cpu) = options.cpu {
            let mut set = rustix::thread::CpuSet::new();
            set.set(cpu);
            rustix::thread::sched_setaffinity(None, &set)?;
        }
        let remote = Remote::new()?;
        let ring = Rc::new(CoreRing::new(remote.bell().as_raw_fd(), options.rings)?);
        let core = Core {
            tasks: Tasks::new(remote.clone()),
            ring,
            timers: RefCell::default(),
            polls: Cell::new(0),
            sleeps: Cell::new(0),
            busy_poll: BusyPoll::new(options.busy_poll),
        };
        Ok(Executor { core: Rc::new(core), remote })
    }

    /// Runs until `future` ends; tasks that have not ended by then go on in the next run, or end with the executor.
    pub fn run<F: Future>(&self, future: F) -> F::Output {
        let _scope = Scope::enter(&self.core);
        let main = MainWaker::new(self.remote.clone());
        let waker = Waker::from(main.clone());
        let mut future = pin!(future);
        loop {
            if main.take()
                && let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker))
            {
                return output;
            }
            self.core.turn(&main);
        }
    }
}

impl Core {
    /// One turn: timers, tasks, the kernel.
    fn turn(&self, main: &MainWaker) {
        self.tasks.take_woken();
        let now = self.ring_timers();
        self.run_ready(now);
        self.tasks.take_woken();
        let is_idle = self.tasks.ready_count() == 0 && !main.is_woken();
        // Nothing would wake it for what is on a polled ring.
        if is_idle && !self.ring.is_polling() {
            self.wait(main);
        } else {
            self.ring.pass();
        }
        self.ring.reap(|| self.tasks.remote.answer());
    }

    /// Until something is done, a timer is due or another thread wakes a task. Nothing of this thread can make one ready.
    fn wait(&self, main: &MainWaker) {
        let first = self.timers.borrow().first();
        let watched = self.busy_poll.watches(self.ring.under_way()).then(Instant::now);
        let looks = watched.is_some_and(|now| self.busy_poll.is_due(now));
        if looks && self.look(main, first) == Look::Found {
            self.ring.pass();
        } else if self.tasks.remote.lie_down(main) {
            self.ring.wait(first.map(|at| at.saturating_duration_since(Instant::now())));
            self.tasks.remote.get_up();
            self.sleeps.set(self.sleeps.get() + 1);
        } else {
            self.ring.pass();
        }
        if let Some(since) = watched {
            self.busy_poll.waited(since.elapsed());
        }
    }

    /// Hands over what is queued and looks for answers and wake-ups, without a system call.
    fn look(&self, main: &MainWaker, until: Option<Instant>) -> Look {
        self.ring.pass();
        self.busy_poll.look(until, || self.ring.has_answers() || self.tasks.remote.has_woken() || main.is_woken())
    }

    /// Wakes whose time has come. Returns the time.
    fn ring_timers(&self) -> Instant {
        let now = Instant::now();
        if !self.timers.borrow().is_empty() {
            let due = self.timers.borrow_mut().due(now);
            due.into_iter().for_each(Waker::wake);
        }
        now
    }

    /// Runs the tasks that are ready now; those that they make ready have their turn after the ring.
    fn run_ready(&self, start: Instant) {
        let mut before = start;
        for left in (0..self.tasks.ready_count()).rev() {
            let Some(task) = self.tasks.next_ready() else { return };
            task.run();
            self.polls.set(self.polls.get() + 1);
            if left == 0 {
                return;
            }
            let now = Instant::now();
            if now.duration_since(start) > TURN_MAX {
                return;
            }
            if now.duration_since(before) > GATHERING_MAX && self.ring.has_gathered() {
                self.ring.hand_over();
            }
            before = now;
        }
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        let _scope = Scope::enter(&self.core);
        self.core.tasks.end_all();
        self.core.ring.finish();
        // Answers to what was in flight may have gone to tasks that started meanwhile.
        self.core.tasks.end_all();
    }
}

/// Starts a task on this thread's executor; nobody waits for it. It runs after its spawner has yielded.
pub fn spawn(future: impl Future<Output = ()> + 'static) {
    current().tasks.spawn(future);
}

/// The ring of this thread's executor.
#[must_use]
pub fn core_ring() -> Rc<CoreRing> {
    current().ring.clone()
}

/// What this thread's executor has done.
#[must_use]
pub fn stats() -> ExecutorStats {
    let core = current();
    let (busy_polls, busy_polls_found, busy_poll_time) = core.busy_poll.counts();
    ExecutorStats {
        polls: core.polls.get(),
        enters: core.ring.enters(),
        sleeps: core.sleeps.get(),
        busy_polls,
        busy_polls_found,
        busy_poll_time,
    }
}

/// Lets the other tasks that are ready run, and the ring be looked at.
pub async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
