//! Work that goes on behind the answers, and its end: a clean stop cuts off what repeats itself, waits for what ends by
//! itself, and only then are the groups closed.

use futures::channel::oneshot;
use futures::future::select;
use kiseki_types::runtime::{LocalBoxFuture, Ports, RuntimeExt};
use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;
use tracing::warn;

/// How long a stop waits for work that ends by itself. What is cut off is settled at the next start.
const STOP_MAX: Duration = Duration::from_secs(5);

/// Between two looks whether everything has ended.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// The background work of one core.
pub struct Background {
    ports: Ports,
    stopping: Cell<bool>,
    stoppers: RefCell<Vec<oneshot::Sender<()>>>,
    running: Cell<usize>,
}

/// Counts a task for as long as it lives.
struct Running(Rc<Background>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.set(self.0.running.get() - 1);
    }
}

impl Background {
    /// None yet.
    #[must_use]
    pub fn new(ports: Ports) -> Rc<Background> {
        let (stopping, stoppers, running) = (Cell::new(false), RefCell::default(), Cell::new(0));
        Rc::new(Background { ports, stopping, stoppers, running })
    }

    /// Runs a task that goes on for as long as the node does. It is dropped at a stop, at whichever point it waits, so
    /// it has to leave what a crash may leave, and no more.
    pub fn repeat(self: &Rc<Self>, name: &'static str, task: LocalBoxFuture<'static, ()>) {
        if self.stopping.get() {
            return;
        }
        let (stopper, stopped) = oneshot::channel();
        let mut stoppers = self.stoppers.borrow_mut();
        stoppers.retain(|stopper| !stopper.is_canceled());
        stoppers.push(stopper);
        let running = self.count();
        let task = async move {
            let _running = running;
            select(pin!(stopped), pin!(task)).await;
        };
        self.ports.spawn(name, Box::pin(task));
    }

    /// Runs a task that ends by itself, soon; a stop waits for it.
    pub fn finish(self: &Rc<Self>, name: &'static str, task: impl Future<Output = ()> + 'static) {
        let running = self.count();
        let task = async move {
            let _running = running;
            task.await;
        };
        self.ports.spawn(name, Box::pin(task));
    }

    fn count(self: &Rc<Self>) -> Running {
        self.running.set(self.running.get() + 1);
        Running(self.clone())
    }

    /// Ends everything. Groups must still answer.
    pub async fn stop(&self) {
        self.stopping.set(true);
        for stopper in self.stoppers.take() {
            let _ended_already = stopper.send(());
        }
        let deadline = self.ports.now() + STOP_MAX;
        while self.running.get() > 0 {
            if self.ports.now() >= deadline {
                warn!(tasks = self.running.get(), "background work did not end in time; the next start settles it");
                return;
            }
            self.ports.sleep(LOOK_INTERVAL).await;
        }
    }
}
