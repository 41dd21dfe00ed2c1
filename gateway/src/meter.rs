//! The body of an answer, counted until its last byte is handed over or the client is gone.

use crate::context::RequestContext;
use crate::counters::{Answered, GatewayCounters};
use crate::phases::Phase;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use kiseki_engine::throttle::Throttle;
use kiseki_types::{Ports, request};
use s3s::StdError;
use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

/// A request that moves fewer bytes in a millisecond is slow.
const BYTES_PER_MS_MIN: u64 = 4096;

/// Which answers are worth a warning.
pub(crate) struct SlowRequests {
    /// What takes longer; `None`: none is.
    after: Option<Duration>,
    throttle: Throttle,
}

impl SlowRequests {
    pub(crate) fn new(after: Option<Duration>) -> Rc<SlowRequests> {
        Rc::new(SlowRequests { after, throttle: Throttle::default() })
    }

    /// Whether an answer failed on our side, or took longer than is worth a line: more is allowed for what was moved. What is not
    /// implemented is no failure.
    fn is_worth_it(&self, answered: &Answered) -> bool {
        let allowed = Duration::from_millis((answered.bytes_in + answered.bytes_out) / BYTES_PER_MS_MIN);
        let failed = answered.status >= 500 && answered.status != 501;
        self.after.is_some_and(|slow| failed || answered.latency > slow + allowed)
    }
}

/// Counts and logs one answer when it ends.
pub(crate) struct MeteredBody {
    body: s3s::Body,
    request: Rc<RequestContext>,
    counters: Rc<RefCell<GatewayCounters>>,
    ports: Ports,
    slow: Rc<SlowRequests>,
    status: u16,
    bytes_out: u64,
    ended: bool,
    /// Whether the connection has been told to wait for bytes.
    is_waiting: bool,
}

impl MeteredBody {
    pub(crate) fn new(
        body: s3s::Body,
        status: u16,
        request: Rc<RequestContext>,
        counters: Rc<RefCell<GatewayCounters>>,
        ports: Ports,
        slow: Rc<SlowRequests>,
    ) -> MeteredBody {
        MeteredBody { body, request, counters, ports, slow, status, bytes_out: 0, ended: false, is_waiting: false }
    }

    fn phase_ended(&self, phase: Phase) {
        self.request.phases.ended(phase, self.ports.now());
    }
}

impl Body for MeteredBody {
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let _named = request::enter(Some(self.request.id));
        if !self.is_waiting {
            self.phase_ended(Phase::Send);
        }
        let frame = Pin::new(&mut self.body).poll_frame(context);
        self.is_waiting = frame.is_pending();
        let frame = std::task::ready!(frame);
        self.phase_ended(Phase::Read);
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
        let now = self.ports.now();
        self.request.phases.ended(Phase::Send, now);
        let latency = now.since(self.request.started);
        let answered = Answered {
            operation: self.request.operation.get(),
            status: self.status,
            bytes_in: self.request.bytes_in.get(),
            bytes_out: self.bytes_out,
            latency,
            spent_ns: self.request.phases.spent_ns(),
            aborted: !self.ended && !self.body.is_end_stream(),
        };
        self.counters.borrow_mut().count(&answered);
        // Where many are, one line in five seconds; each is among those of `debug` below.
        if self.slow.is_worth_it(&answered)
            && let Some(more) = self.slow.throttle.pass(self.ports.now())
        {
            // I-K1: no name of a bucket or an object, no key id.
            tracing::warn!(
                target: "kiseki_gateway::slow",
                operation = answered.operation,
                status = answered.status,
                bytes_in = answered.bytes_in,
                bytes_out = answered.bytes_out,
                took_ms = latency.as_millis() as u64,
                request = %self.request.id,
                more,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::phases::PHASES;

    #[test]
    fn failures_of_ours_and_slow_answers_are_worth_a_line_unless_none_is_wanted() {
        let answered = |status: u16, ms: u64, bytes: u64| Answered {
            operation: "GetObject",
            status,
            bytes_in: 0,
            bytes_out: bytes,
            latency: Duration::from_millis(ms),
            spent_ns: [0; PHASES],
            aborted: false,
        };
        let slow = SlowRequests::new(Some(Duration::from_secs(1)));
        for (is_worth_it, case) in [
            (true, answered(503, 1, 0)),
            (false, answered(501, 1, 0)),
            (false, answered(404, 999, 0)),
            (true, answered(200, 1001, 0)),
            (false, answered(200, 2000, 8 << 20)),
        ] {
            assert_eq!(slow.is_worth_it(&case), is_worth_it, "{} after {:?}", case.status, case.latency);
        }
        assert!(!SlowRequests::new(None).is_worth_it(&answered(503, 5000, 0)));
    }
}
