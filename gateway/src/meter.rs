//! The body of an answer, counted until its last byte is handed over or the client is gone.

use crate::context::RequestContext;
use crate::counters::{Answered, GatewayCounters};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use kiseki_types::{Ports, request};
use s3s::StdError;
use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

/// A request that moves fewer bytes in a millisecond is slow.
const BYTES_PER_MS_MIN: u64 = 4096;

/// Counts and logs one answer when it ends.
pub(crate) struct MeteredBody {
    body: s3s::Body,
    request: Rc<RequestContext>,
    counters: Rc<RefCell<GatewayCounters>>,
    ports: Ports,
    slow_request: Option<Duration>,
    status: u16,
    bytes_out: u64,
    ended: bool,
}

impl MeteredBody {
    pub(crate) fn new(
        body: s3s::Body,
        status: u16,
        request: Rc<RequestContext>,
        counters: Rc<RefCell<GatewayCounters>>,
        ports: Ports,
        slow_request: Option<Duration>,
    ) -> MeteredBody {
        MeteredBody { body, request, counters, ports, slow_request, status, bytes_out: 0, ended: false }
    }

    /// Whether an answer took longer than is worth a line: more is allowed for what was moved.
    fn is_slow(&self, latency: Duration) -> bool {
        let moved = self.request.bytes_in.get() + self.bytes_out;
        let allowed = Duration::from_millis(moved / BYTES_PER_MS_MIN);
        self.slow_request.is_some_and(|slow| latency > slow + allowed)
    }
}

impl Body for MeteredBody {
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let _named = request::enter(Some(self.request.id));
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => self.bytes_out += frame.data_ref().map_or(0, |bytes| bytes.len() as u64),
            Some(Err(_)) => {}
            None => self.ended = true,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for MeteredBody {
    fn drop(&mut self) {
        let latency = self.ports.now().since(self.request.started);
        let answered = Answered {
            operation: self.request.operation.get(),
            status: self.status,
            bytes_in: self.request.bytes_in.get(),
            bytes_out: self.bytes_out,
            latency,
            aborted: !self.ended && !self.body.is_end_stream(),
        };
        self.counters.borrow_mut().count(&answered);
        if self.status >= 500 || self.is_slow(latency) {
            // I-K1: no name of a bucket or an object, no key id.
            tracing::warn!(
                target: "kiseki_gateway::slow",
                operation = answered.operation,
                status = answered.status,
                bytes_in = answered.bytes_in,
                bytes_out = answered.bytes_out,
                took_ms = latency.as_millis() as u64,
                request = %self.request.id,
                "a request was slow, or failed on our side"
            );
        }
        // I-K1: no name of a bucket or an object, no key id.
        tracing::debug!(
            target: "kiseki_gateway::access",
            operation = answered.operation,
            status = answered.status,
            bytes_in = answered.bytes_in,
            bytes_out = answered.bytes_out,
            latency_us = latency.as_micros() as u64,
            aborted = answered.aborted,
            request_id = %self.request.id,
            "answered"
        );
    }
}
