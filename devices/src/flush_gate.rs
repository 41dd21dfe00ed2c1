//! One flush of a device for everybody who waits, and the fence behind it.
//!
//! A waiter joins the first flush that is *submitted after* it came (so after its own writes completed), never one
//! that is already under way. A failed flush or write fences the gate: every waiter, present and future, gets an error
//! until the device is reopened and checked (I-D6).

use crate::device_times::{DeviceStep, DeviceTimes};
use futures::channel::oneshot;
use futures::future::select;
use kiseki_types::device::Device;
use kiseki_types::runtime::{Ports, RuntimeExt};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;
use thiserror::Error;

/// How long a flush waits for writes that will ask for one: about what a write to flash takes, and a fraction of a flush.
const GATHER_MAX: Duration = Duration::from_micros(200);

/// The device behind a gate is fenced.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error("device {device} is fenced until it is reopened and checked: {reason}")]
pub struct DeviceFenced {
    /// Path or name of the device.
    pub device: String,
    /// What failed first.
    pub reason: String,
}

/// Hears of a fence, once.
pub type OnFenced = Rc<dyn Fn(&DeviceFenced)>;

type Waiter = oneshot::Sender<Result<(), DeviceFenced>>;

#[derive(Default)]
struct GateState {
    flush_runs: bool,
    waiting: Vec<Waiter>,
    /// Ends the wait for the writes that are on their way.
    gathered: Option<oneshot::Sender<()>>,
    fenced: Option<DeviceFenced>,
    on_fenced: Vec<OnFenced>,
}

struct GateInner {
    device: Rc<dyn Device>,
    ports: Ports,
    times: Rc<DeviceTimes>,
    state: RefCell<GateState>,
    /// Writes that will ask for a flush.
    coming: Cell<usize>,
    flushes: Cell<u64>,
    waiters: Cell<u64>,
}

/// A write on its way to asking for a flush; drop it before asking.
pub struct Coming {
    inner: Rc<GateInner>,
}

impl Drop for Coming {
    fn drop(&mut self) {
        self.inner.coming.set(self.inner.coming.get() - 1);
        if self.inner.coming.get() == 0
            && let Some(gathered) = self.inner.state.borrow_mut().gathered.take()
        {
            let _not_waited_for = gathered.send(());
        }
    }
}

/// Shares flushes of one device among the waiters of one core. Cheap to clone.
#[derive(Clone)]
pub struct FlushGate {
    inner: Rc<GateInner>,
}

impl FlushGate {
    /// A gate in front of `device`.
    #[must_use]
    pub fn new(ports: Ports, device: Rc<dyn Device>) -> FlushGate {
        FlushGate::timed(ports, device, Rc::default())
    }

    /// A gate in front of `device` that counts in `times` how long flushes take.
    #[must_use]
    pub fn timed(ports: Ports, device: Rc<dyn Device>, times: Rc<DeviceTimes>) -> FlushGate {
        FlushGate {
            inner: Rc::new(GateInner {
                device,
                ports,
                times,
                state: RefCell::default(),
                coming: Cell::new(0),
                flushes: Cell::new(0),
                waiters: Cell::new(0),
            }),
        }
    }

    /// Announces a write that will ask for a flush when it is done.
    #[must_use]
    pub fn coming(&self) -> Coming {
        self.inner.coming.set(self.inner.coming.get() + 1);
        Coming { inner: self.inner.clone() }
    }

    /// Makes every write durable that has completed before this call. Dropping the future cancels only the waiting.
    pub fn flush(&self) -> impl Future<Output = Result<(), DeviceFenced>> + 'static {
        let (sender, receiver) = oneshot::channel();
        let inner = self.inner.clone();
        inner.waiters.set(inner.waiters.get() + 1);
        let start = {
            let mut state = inner.state.borrow_mut();
            state.waiting.push(sender);
            state.fenced.is_some() || !std::mem::replace(&mut state.flush_runs, true)
        };
        if start {
            let fenced = inner.state.borrow().fenced.clone();
            match fenced {
                Some(fenced) => inner.fail_waiting(&fenced),
                None => inner.ports.spawn("flush", Box::pin(inner.clone().run())),
            }
        }
        async move { receiver.await.expect("a gate answers every waiter") }
    }

    /// Fences the device: nothing is written or flushed through this gate any more. The first reason stays.
    pub fn fence(&self, reason: &str) {
        self.inner.fence(reason);
    }

    /// Why the device is fenced, if it is.
    #[must_use]
    pub fn fenced(&self) -> Option<DeviceFenced> {
        self.inner.state.borrow().fenced.clone()
    }

    /// Calls `listener` once when the device is fenced (at once if it is already).
    pub fn on_fenced(&self, listener: OnFenced) {
        match self.fenced() {
            Some(fenced) => listener(&fenced),
            None => self.inner.state.borrow_mut().on_fenced.push(listener),
        }
    }

    /// Flushes submitted so far.
    #[must_use]
    pub fn flush_count(&self) -> u64 {
        self.inner.flushes.get()
    }

    /// Waiters served so far; over [`FlushGate::flush_count`] it says how well flushes are shared.
    #[must_use]
    pub fn waiter_count(&self) -> u64 {
        self.inner.waiters.get()
    }
}

impl GateInner {
    async fn run(self: Rc<Self>) {
        loop {
            self.gather().await;
            let joined = {
                let mut state = self.state.borrow_mut();
                if state.waiting.is_empty() || state.fenced.is_some() {
                    state.flush_runs = false;
                    break;
                }
                std::mem::take(&mut state.waiting)
            };
            self.flushes.set(self.flushes.get() + 1);
            let began = self.ports.now();
            match self.device.flush().await {
                Ok(()) => self.times.record(DeviceStep::Flush, self.ports.now().since(began)),
                Err(error) => self.fence(&format!("flush failed: {error}")),
            }
            // I-D6: a fence that fell while the flush ran fails its waiters too; what the flush covered is unknown.
            let fenced = self.state.borrow().fenced.clone();
            for waiter in joined {
                let _ = waiter.send(fenced.clone().map_or(Ok(()), Err));
            }
        }
        let fenced = self.state.borrow().fenced.clone();
        if let Some(fenced) = fenced {
            self.fail_waiting(&fenced);
        }
    }

    /// Waits for the writes that are on their way, but not for long.
    async fn gather(&self) {
        let gathered = {
            let mut state = self.state.borrow_mut();
            // Where a completed write is durable there is nothing to share, and waiting would be all that it costs.
            if self.device.is_flush_free()
                || self.coming.get() == 0
                || state.waiting.is_empty()
                || state.fenced.is_some()
            {
                return;
            }
            let (sender, receiver) = oneshot::channel();
            state.gathered = Some(sender);
            receiver
        };
        select(gathered, self.ports.sleep(GATHER_MAX)).await;
    }

    fn fence(&self, reason: &str) {
        let listeners = {
            let mut state = self.state.borrow_mut();
            if state.fenced.is_some() {
                return;
            }
            state.fenced = Some(DeviceFenced { device: self.device.name().to_string(), reason: reason.to_string() });
            std::mem::take(&mut state.on_fenced)
        };
        let fenced = self.state.borrow().fenced.clone().expect("set above");
        self.fail_waiting(&fenced);
        for listener in listeners {
            listener(&fenced);
        }
    }

    fn fail_waiting(&self, fenced: &DeviceFenced) {
        let waiting = std::mem::take(&mut self.state.borrow_mut().waiting);
        for waiter in waiting {
            let _ = waiter.send(Err(fenced.clone()));
        }
    }
}
