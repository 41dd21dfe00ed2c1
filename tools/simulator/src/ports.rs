//! What one core sees of the run: clock, chance, spawning, side threads.

use crate::executor::{NodeId, World};
use crate::seed::SeededRng;
use kiseki_types::runtime::{Clock, Instant, LocalBoxFuture, Rng, SideThreads, Spawn};
use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};

/// Wall clock at the start of every run, milliseconds since 1970.
const UNIX_START_MS: u64 = 1_790_000_000_000;

/// One incarnation of one simulated core. After its node is killed it spawns nothing and its timers never fire.
pub(crate) struct Core {
    world: Rc<World>,
    node: NodeId,
    rng: SeededRng,
    alive: Cell<bool>,
    this: Weak<Core>,
}

impl Core {
    pub(crate) fn new(world: Rc<World>, node: NodeId, rng: SeededRng) -> Rc<Core> {
        Rc::new_cyclic(|this| Core { world, node, rng, alive: Cell::new(true), this: this.clone() })
    }

    pub(crate) fn node(&self) -> NodeId {
        self.node
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.alive.get()
    }

    pub(crate) fn die(&self) {
        self.alive.set(false);
    }

    fn me(&self) -> Rc<Core> {
        self.this.upgrade().expect("the core exists while it is called")
    }
}

impl Clock for Core {
    fn now(&self) -> Instant {
        self.world.now()
    }

    fn unix_time_ms(&self) -> u64 {
        UNIX_START_MS + self.world.now().0 / 1_000_000
    }

    fn sleep_until(&self, deadline: Instant) -> LocalBoxFuture<'static, ()> {
        Box::pin(Sleep { core: self.me(), deadline, timer: None })
    }
}

impl Rng for Core {
    fn fill_random(&self, out: &mut [u8]) {
        self.rng.fill(out);
    }
}

impl Spawn for Core {
    fn spawn(&self, name: &'static str, task: LocalBoxFuture<'static, ()>) {
        if self.alive.get() {
            self.world.spawn(self.me(), name, task);
        }
    }

    fn yield_now(&self) -> LocalBoxFuture<'static, ()> {
        let mut yielded = false;
        Box::pin(std::future::poll_fn(move |context| {
            if yielded {
                return Poll::Ready(());
            }
            yielded = true;
            context.waker().wake_by_ref();
            Poll::Pending
        }))
    }
}

impl SideThreads for Core {
    fn offload_job(&self, queue: u64, job: Box<dyn FnOnce() + Send>) {
        if self.alive.get() {
            self.world.mix(queue ^ 0x6f66_666c);
            job();
        }
    }
}

/// A timer. Dropping it takes it out of the run's list.
struct Sleep {
    core: Rc<Core>,
    deadline: Instant,
    timer: Option<(Instant, u64)>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if !self.core.is_alive() {
            return Poll::Pending;
        }
        if self.core.world.now() >= self.deadline {
            return Poll::Ready(());
        }
        let known = self.timer.is_some_and(|timer| self.core.world.rewake(timer, context.waker()));
        if !known {
            self.timer = Some(self.core.world.wake_at(self.deadline, context.waker().clone()));
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(timer) = self.timer.take() {
            self.core.world.forget_event(timer);
        }
    }
}
