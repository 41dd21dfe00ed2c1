//! The end of a connection that answers the calls.

use crate::peer::caller::{over_a_limit, parcel_len};
use crate::peer::control::Control;
use crate::peer::counters::{add, take};
use crate::peer::frame::{FrameKind, Head};
use crate::peer::gate::PeerGate;
use crate::peer::reader::Frame;
use crate::peer::services::PeerServices;
use crate::peer::session::{End, Session};
use crate::peer::trust::Proven;
use kiseki_types::ids::{CoreId, LaneId};
use kiseki_types::peer::{Parcel, PeerIdentity, ServiceId};
use kiseki_types::request::{self, RequestId};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

/// Answers that wait to be taken by a slow peer, and those that are expected; with more, no further call of it is read.
pub const BACKLOG_LEN_BYTES_MAX: usize = 16 << 20;

/// How large an answer is expected to be before there were any: all calls that are granted can run.
const ANSWER_LEN_BYTES_FIRST: usize = 64 * 1024;

/// What a peer may have of us at once (I-O5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Unanswered calls.
    pub calls_max: u32,
    /// Bytes of those.
    pub bytes_max: u64,
}

impl Grant {
    /// Nodes send bulk bytes; administrators ask a few short questions.
    #[must_use]
    pub fn to(identity: PeerIdentity) -> Grant {
        match identity {
            PeerIdentity::Node(_) => Grant { calls_max: 128, bytes_max: 32 << 20 },
            PeerIdentity::Admin => Grant { calls_max: 4, bytes_max: 4 << 20 },
        }
    }
}

struct Running {
    len: u64,
    is_wanted: bool,
    since: kiseki_types::Instant,
}

/// The answering end of an open connection.
pub(crate) struct Answerer {
    pub session: Rc<Session>,
    core: CoreId,
    gate: Arc<PeerGate>,
    services: Rc<PeerServices>,
    proven: Proven,
    identity: PeerIdentity,
    grant: Grant,
    running: RefCell<BTreeMap<u64, Running>>,
    bytes_running: Cell<u64>,
    /// How large the next answer is expected to be: as the largest lately.
    answer_len: Cell<usize>,
    last_call: Cell<u64>,
    /// Why calls are refused from now on, when they are.
    leaving: RefCell<Option<String>>,
    /// For handlers, which outlive the borrow of their call.
    this: std::rc::Weak<Answerer>,
}

impl Answerer {
    pub fn new(
        session: Rc<Session>,
        core: CoreId,
        gate: Arc<PeerGate>,
        services: Rc<PeerServices>,
        proven: Proven,
        identity: PeerIdentity,
    ) -> Rc<Answerer> {
        Rc::new_cyclic(|this| Answerer {
            session,
            core,
            gate,
            services,
            proven,
            identity,
            grant: Grant::to(identity),
            running: RefCell::default(),
            bytes_running: Cell::new(0),
            answer_len: Cell::new(ANSWER_LEN_BYTES_FIRST),
            last_call: Cell::new(0),
            leaving: RefCell::default(),
            this: this.clone(),
        })
    }

    /// The connection has ended; what runs goes on, and nobody gets its answer.
    pub fn end(&self) {
        let ended = std::mem::take(&mut *self.running.borrow_mut()).len() as u64;
        take(&self.session.counters.in_flight, ended);
    }

    /// From now on calls are refused: nothing happens then, and the caller can ask elsewhere. What runs is answered.
    pub fn leave(&self, why: &str) {
        self.leaving.borrow_mut().get_or_insert_with(|| why.to_owned());
    }

    /// Whether calls have no answer yet, or answers have not been sent.
    pub fn is_busy(&self) -> bool {
        !self.running.borrow().is_empty() || self.session.backlog() > 0
    }

    fn dispatch(&self, call: u64, service: ServiceId, lane: LaneId, request: Option<RequestId>, parcel: Parcel) {
        let leaving = self.leaving.borrow().clone();
        if let Some(why) = leaving {
            return self.answer(call, Err(why));
        }
        let shape = self.gate.shape();
        let held_by = shape.core_of(lane);
        let found = match lane.0 < shape.lane_count && held_by == self.core {
            true => self.services.find(service, self.identity),
            false => Err(format!("lane {lane} is not held by core {} here; connect to its own core", self.core)),
        };
        match found {
            Ok(handler) => {
                let answer = {
                    let _entered = request::enter(request);
                    handler(self.identity, lane, parcel)
                };
                let this = self.this.upgrade().expect("a connection holds its end");
                let answering = async move { this.answer(call, request::within(request, answer).await) };
                self.session.ports.spawn("peer call", Box::pin(answering));
            }
            Err(why) => {
                self.gate.refused(&self.proven.name.role.to_string(), &why);
                self.answer(call, Err(why));
            }
        }
    }

    fn answer(&self, call: u64, answer: Result<Parcel, String>) {
        let Some(running) = self.running.borrow_mut().remove(&call) else { return };
        let counters = &self.session.counters;
        self.bytes_running.set(self.bytes_running.get() - running.len);
        take(&counters.in_flight, 1);
        counters.answered(self.session.ports.now().since(running.since));
        // It was run, so it is not refused any more.
        let over = answer.as_ref().ok().and_then(over_a_limit);
        let len = if over.is_some() { 0 } else { answer.as_ref().map_or(0, parcel_len) };
        if let Some(what) = &over {
            let peer = &self.proven.name.role;
            tracing::error!(%peer, call, what, "an answer is over a limit and can't be sent; that is our own fault");
        }
        self.answer_len.set(len.max(self.answer_len.get() - self.answer_len.get() / 8));
        self.session.send(|outbox| match answer {
            _ if over.is_some() || !running.is_wanted => outbox.drop_call(call),
            Ok(parcel) => outbox.answer(call, parcel),
            Err(why) => {
                add(&counters.refused, 1);
                outbox.refuse(call, &why);
            }
        });
    }
}

impl End for Answerer {
    fn admit(&self, head: &Head) -> Result<(), String> {
        match head.kind {
            FrameKind::Control => Ok(()),
            FrameKind::Call => {
                let len = head.content_len() as u64;
                if head.call <= self.last_call.get() {
                    return Err(format!("call {} comes again or out of turn", head.call));
                }
                if self.running.borrow().len() >= self.grant.calls_max as usize
                    || self.bytes_running.get() + len > self.grant.bytes_max
                {
                    let Grant { calls_max, bytes_max } = self.grant;
                    return Err(format!("more than the {calls_max} calls or {bytes_max} bytes that were granted"));
                }
                self.last_call.set(head.call);
                Ok(())
            }
            FrameKind::Answer | FrameKind::Refused | FrameKind::Dropped => Err("an answer to no call".to_owned()),
        }
    }

    fn take(&self, frame: Frame, control: Option<Control>) -> Result<(), String> {
        if let Some(Control::Cancel(call)) = control {
            if let Some(running) = self.running.borrow_mut().get_mut(&call) {
                running.is_wanted = false;
            }
            return Ok(());
        }
        let Frame { head, message, bulk } = frame;
        let parcel = Parcel { message, bulk };
        let len = parcel_len(&parcel) as u64;
        self.bytes_running.set(self.bytes_running.get() + len);
        let running = Running { len, is_wanted: true, since: self.session.ports.now() };
        self.running.borrow_mut().insert(head.call, running);
        add(&self.session.counters.calls, 1);
        add(&self.session.counters.in_flight, 1);
        self.dispatch(head.call, head.service, head.lane, head.request, parcel);
        Ok(())
    }

    fn is_owed(&self) -> bool {
        false
    }

    fn reads(&self) -> bool {
        let expected = self.running.borrow().len() * self.answer_len.get();
        self.session.backlog() + expected < BACKLOG_LEN_BYTES_MAX
    }
}
