//! What is known about the request in progress, reachable from everything that runs for it.
//!
//! `s3s` hands its authentication hook nothing but the key id, so the request can't be told through arguments. Every
//! poll of a request's future sets it for the time of the poll; on a single-threaded executor that is exact.

use crate::md5_queue::Md5Queue;
use crate::phases::{Phase, PhaseClock};
use kiseki_engine::api::Store;
use kiseki_types::request::{self, RequestId};
use kiseki_types::{Instant, Ports, TenantId};
use s3s::S3Error;
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;

/// One request.
pub(crate) struct RequestContext {
    /// What the client sees as `x-amz-request-id`.
    pub(crate) id: RequestId,
    /// When its head was there.
    pub(crate) started: Instant,
    /// Where its time goes.
    pub(crate) phases: PhaseClock,
    /// S3's name of the operation, once routed.
    pub(crate) operation: Cell<&'static str>,
    /// Whose key signed it, once authenticated.
    pub(crate) tenant: Cell<Option<TenantId>>,
    /// Bytes of object content received.
    pub(crate) bytes_in: Cell<u64>,
    /// Bytes of a body announced by `Expect: 100-continue` that were not read. See `upload::Announced`.
    pub(crate) unread: Cell<u64>,
    /// The answer to give in place of what `s3s` makes of a body that failed.
    pub(crate) body_error: RefCell<Option<S3Error>>,
}

impl RequestContext {
    pub(crate) fn new(id: RequestId, started: Instant) -> RequestContext {
        RequestContext {
            id,
            started,
            phases: PhaseClock::new(started),
            operation: Cell::new("Unknown"),
            tenant: Cell::new(None),
            bytes_in: Cell::new(0),
            unread: Cell::new(0),
            body_error: RefCell::new(None),
        }
    }
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<RequestContext>>> = const { RefCell::new(None) };
}

/// The request that the running future belongs to.
pub(crate) fn current() -> Rc<RequestContext> {
    CURRENT.with(|current| current.borrow().clone()).expect("handlers run inside in_request")
}

struct Entered(Option<Rc<RequestContext>>);

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.with(|current| *current.borrow_mut() = self.0.take());
    }
}

/// Runs `future` for `request`.
pub(crate) async fn in_request<F: Future>(request: Rc<RequestContext>, future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|context| {
        let _entered = Entered(CURRENT.with(|current| current.borrow_mut().replace(request.clone())));
        let _named = request::enter(Some(request.id));
        future.as_mut().poll(context)
    })
    .await
}

/// What every handler needs.
pub(crate) struct Shared {
    pub(crate) ports: Ports,
    pub(crate) store: Store,
    pub(crate) config: crate::GatewayConfig,
    pub(crate) md5_queue: Rc<Md5Queue>,
}

impl Shared {
    /// A phase of `request` has ended.
    pub(crate) fn ended(&self, request: &RequestContext, phase: Phase) {
        request.phases.ended(phase, self.ports.now());
    }
}
