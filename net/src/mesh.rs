//! Calls between the cores of a node: bounded queues that hand messages over without copying them.
//!
//! Every ordered pair of cores has a queue. A core's inbox task empties the queues towards it, runs each call in a task
//! of its own and puts the answer into the queue back. The task polls while there is work and parks when there is none:
//! a parked core costs a wake-up of tens of microseconds, a polling one about one.
//!
//! Bounds (I-O5): a core has at most [`CALLS_IN_FLIGHT_MAX`] unanswered calls to each other core and further callers
//! wait. A queue has room for those calls and as many answers, so a push never fails.

use crossbeam::queue::ArrayQueue;
use futures::channel::oneshot;
use futures::task::AtomicWaker;
use kiseki_types::ids::{CoreId, LaneId};
use kiseki_types::link::{Link, LinkError};
use kiseki_types::request::{self, RequestId};
use kiseki_types::runtime::{Instant, LocalBoxFuture, Ports};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Most unanswered calls from one core to one other core.
pub const CALLS_IN_FLIGHT_MAX: usize = 256;

/// Messages taken from the queues before other tasks of the core run.
const INBOX_BATCH: usize = 64;

/// How long an inbox polls after its last message before it parks: longer than a call to a polling core takes, shorter
/// than anybody waits for a socket meanwhile.
const POLL_SPAN: Duration = Duration::from_micros(30);

/// Who holds what on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MeshShape {
    /// Cores of the node.
    pub core_count: u16,
    /// Lanes of the node; lane `l` is held by core `l % core_count`.
    pub lane_count: u16,
}

impl MeshShape {
    /// The core that holds `lane`.
    #[must_use]
    pub fn core_of(&self, lane: LaneId) -> CoreId {
        CoreId(lane.0 % self.core_count)
    }
}

enum Frame<Request, Response> {
    Call { call: u64, to: LaneId, origin: Option<RequestId>, request: Request },
    Answer { call: u64, response: Response },
}

struct Shared<Request, Response> {
    shape: MeshShape,
    /// `queues[from * core_count + to]`.
    queues: Vec<ArrayQueue<Frame<Request, Response>>>,
    /// One per core: wakes its inbox.
    wakers: Vec<AtomicWaker>,
    /// One per core: it takes no more calls and answers none.
    stopped: Vec<AtomicBool>,
}

impl<Request, Response> Shared<Request, Response> {
    fn push(&self, from: CoreId, to: CoreId, frame: Frame<Request, Response>) {
        let queue = &self.queues[usize::from(from.0) * usize::from(self.shape.core_count) + usize::from(to.0)];
        assert!(queue.push(frame).is_ok(), "I-O5: the queue from core {from} to core {to} overflows its credits");
        self.wakers[usize::from(to.0)].wake();
    }

    fn pop(&self, from: CoreId, to: CoreId) -> Option<Frame<Request, Response>> {
        self.queues[usize::from(from.0) * usize::from(self.shape.core_count) + usize::from(to.0)].pop()
    }

    fn is_stopped(&self, core: CoreId) -> bool {
        self.stopped[usize::from(core.0)].load(Ordering::Acquire)
    }
}

/// The mesh of a node for one kind of call. Made before the cores start; each core connects to it once.
pub struct Mesh<Request, Response> {
    shared: Arc<Shared<Request, Response>>,
}

impl<Request, Response> Clone for Mesh<Request, Response> {
    fn clone(&self) -> Self {
        Mesh { shared: self.shared.clone() }
    }
}

impl<Request: Send + 'static, Response: Send + 'static> Mesh<Request, Response> {
    /// A mesh between `shape.core_count` cores (at least one).
    #[must_use]
    pub fn new(shape: MeshShape) -> Mesh<Request, Response> {
        assert!(shape.core_count > 0 && shape.lane_count > 0, "a node has cores and lanes: {shape:?}");
        let cores = usize::from(shape.core_count);
        Mesh {
            shared: Arc::new(Shared {
                shape,
                queues: (0..cores * cores).map(|_| ArrayQueue::new(2 * CALLS_IN_FLIGHT_MAX)).collect(),
                wakers: (0..cores).map(|_| AtomicWaker::new()).collect(),
                stopped: (0..cores).map(|_| AtomicBool::new(false)).collect(),
            }),
        }
    }

    /// This core's end. Calls from other cores wait until [`MeshLink::serve`] has named their handler.
    #[must_use]
    pub fn connect(&self, core: CoreId, ports: Ports) -> Rc<MeshLink<Request, Response>> {
        assert!(core.0 < self.shared.shape.core_count, "core {core} is not of this mesh");
        let credits = (0..self.shared.shape.core_count).map(|_| Arc::new(Semaphore::new(CALLS_IN_FLIGHT_MAX)));
        Rc::new(MeshLink {
            shared: self.shared.clone(),
            core,
            ports,
            credits: credits.collect(),
            pending: RefCell::default(),
            next_call: Cell::new(0),
            handler: RefCell::new(None),
        })
    }
}

/// Handles a call to a lane of this core.
pub type Handler<Request, Response> = Rc<dyn Fn(LaneId, Request) -> LocalBoxFuture<'static, Response>>;

struct Pending<Response> {
    to: CoreId,
    sender: oneshot::Sender<Response>,
    /// Held until the answer is there, even if the caller has gone: the queue back must have room for it.
    _credit: OwnedSemaphorePermit,
}

/// One core's end of a mesh.
pub struct MeshLink<Request, Response> {
    shared: Arc<Shared<Request, Response>>,
    core: CoreId,
    ports: Ports,
    credits: Vec<Arc<Semaphore>>,
    pending: RefCell<BTreeMap<u64, Pending<Response>>>,
    next_call: Cell<u64>,
    handler: RefCell<Option<Handler<Request, Response>>>,
}

impl<Request: Send + 'static, Response: Send + 'static> MeshLink<Request, Response> {
    /// Names the handler and starts the inbox task.
    pub fn serve(self: &Rc<Self>, handler: Handler<Request, Response>) {
        let earlier = self.handler.replace(Some(handler));
        assert!(earlier.is_none(), "core {} serves a mesh once", self.core);
        let link = self.clone();
        self.ports.spawn("mesh inbox", Box::pin(async move { link.run_inbox().await }));
    }

    /// Stops this core's end: calls to it and from it end with `Unreachable`.
    pub fn stop(&self) {
        self.shared.stopped[usize::from(self.core.0)].store(true, Ordering::Release);
        self.shared.wakers.iter().for_each(AtomicWaker::wake);
    }

    async fn run_inbox(self: Rc<Self>) {
        let mut busy_until = self.ports.now();
        while !self.shared.is_stopped(self.core) {
            self.fail_calls_to_stopped_cores();
            if self.drain() {
                busy_until = self.ports.now() + POLL_SPAN;
                self.ports.yield_now().await;
            } else if self.may_poll(busy_until) {
                self.ports.yield_now().await;
            } else {
                self.park().await;
            }
        }
        // The waker belongs to this executor; nobody may hold it when the executor ends.
        drop(self.shared.wakers[usize::from(self.core.0)].take());
        self.pending.borrow_mut().clear();
        self.handler.replace(None);
    }

    fn may_poll(&self, busy_until: Instant) -> bool {
        self.shared.shape.core_count > 1 && self.ports.now() < busy_until
    }

    /// Takes a batch of messages; false when there were none.
    fn drain(self: &Rc<Self>) -> bool {
        let mut taken = 0;
        for from in (0..self.shared.shape.core_count).map(CoreId) {
            while taken < INBOX_BATCH {
                let Some(frame) = self.shared.pop(from, self.core) else { break };
                taken += 1;
                match frame {
                    Frame::Call { call, to, origin, request } => self.dispatch(from, call, to, origin, request),
                    Frame::Answer { call, response } => {
                        let pending = self.pending.borrow_mut().remove(&call);
                        let pending = pending.expect("each call is answered once");
                        let _caller_gone = pending.sender.send(response);
                    }
                }
            }
        }
        taken > 0
    }

    fn dispatch(self: &Rc<Self>, from: CoreId, call: u64, to: LaneId, origin: Option<RequestId>, request: Request) {
        let handler = self.handler.borrow().clone().expect("the inbox runs after serve");
        let shared = self.shared.clone();
        let core = self.core;
        let answer = handler(to, request);
        self.ports.spawn(
            "mesh call",
            Box::pin(async move {
                let response = request::within(origin, answer).await;
                shared.push(core, from, Frame::Answer { call, response });
            }),
        );
    }

    /// Sleeps until a queue towards this core has something or some core has stopped.
    async fn park(&self) {
        let stopped = || self.shared.stopped.iter().filter(|flag| flag.load(Ordering::Acquire)).count();
        let stopped_before = stopped();
        let waker = &self.shared.wakers[usize::from(self.core.0)];
        let cores = usize::from(self.shared.shape.core_count);
        poll_fn(|cx| {
            // Register first, then look: a message pushed in between wakes us.
            waker.register(cx.waker());
            let waiting =
                (0..cores).any(|from| !self.shared.queues[from * cores + usize::from(self.core.0)].is_empty());
            if waiting || stopped() != stopped_before { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    fn fail_calls_to_stopped_cores(&self) {
        if self.shared.stopped.iter().any(|flag| flag.load(Ordering::Acquire)) {
            // Dropping the sender is the caller's `Unreachable`.
            self.pending.borrow_mut().retain(|_, pending| !self.shared.is_stopped(pending.to));
        }
    }

    async fn call_here(&self, to: LaneId, request: Request) -> Result<Response, LinkError> {
        let handler = self.handler.borrow().clone().ok_or(LinkError::Unreachable { lane: to })?;
        let mut answer = handler(to, request);
        if let Poll::Ready(response) = poll_fn(|cx| Poll::Ready(answer.as_mut().poll(cx))).await {
            return Ok(response);
        }
        // What waits goes on in a task of its own: as with a call to another core, a caller that goes away does not
        // stop it half way.
        let (sender, receiver) = oneshot::channel();
        let origin = request::current();
        self.ports.spawn(
            "mesh call",
            Box::pin(async move {
                let _caller_gone = sender.send(request::within(origin, answer).await);
            }),
        );
        receiver.await.map_err(|_| LinkError::Unreachable { lane: to })
    }

    async fn call_there(&self, core: CoreId, to: LaneId, request: Request) -> Result<Response, LinkError> {
        let unreachable = LinkError::Unreachable { lane: to };
        let credits = self.credits[usize::from(core.0)].clone();
        let credit = credits.acquire_owned().await.expect("the semaphore is never closed");
        if self.shared.is_stopped(core) || self.shared.is_stopped(self.core) {
            return Err(unreachable);
        }
        let call = self.next_call.get();
        self.next_call.set(call + 1);
        let (sender, receiver) = oneshot::channel();
        self.pending.borrow_mut().insert(call, Pending { to: core, sender, _credit: credit });
        self.shared.push(self.core, core, Frame::Call { call, to, origin: request::current(), request });
        if self.shared.is_stopped(core) {
            // It may have stopped between the look above and the push, its inbox gone: then nobody will tell.
            self.pending.borrow_mut().remove(&call);
            return Err(unreachable);
        }
        receiver.await.map_err(|_| unreachable)
    }
}

/// A handle that callers share.
pub struct MeshCaller<Request, Response>(pub Rc<MeshLink<Request, Response>>);

impl<Request: Send + 'static, Response: Send + 'static> Link<Request, Response> for MeshCaller<Request, Response> {
    fn call(&self, to: LaneId, request: Request) -> LocalBoxFuture<'static, Result<Response, LinkError>> {
        let link = self.0.clone();
        Box::pin(async move {
            let core = link.shared.shape.core_of(to);
            if core == link.core { link.call_here(to, request).await } else { link.call_there(core, to, request).await }
        })
    }
}
