//! The end of a connection that makes the calls.

use crate::peer::control::{Control, Hello};
use crate::peer::counters::{add, take};
use crate::peer::frame::{FrameKind, Head};
use crate::peer::reader::Frame;
use crate::peer::session::{End, Ended, Session};
use crate::peer::trust::Proven;
use futures::channel::oneshot;
use kiseki_types::ids::LaneId;
use kiseki_types::peer::{BULK_BUFFERS_MAX, BULK_LEN_BYTES_MAX, MESSAGE_LEN_BYTES_MAX, Parcel, ServiceId};
use kiseki_types::request;
use kiseki_types::runtime::Instant;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes are granted and taken in units, so that a count of them fits a semaphore's.
const UNIT_LEN_BYTES: usize = 1024;

/// Most calls that we have in flight on one connection, whatever the peer grants.
const CALLS_IN_FLIGHT_MAX: u32 = 256;

/// Most bytes of those.
const BYTES_IN_FLIGHT_MAX: u64 = 64 << 20;

/// The version from which on the head of a call names the client's request; what is older calls that a broken rule.
const REQUEST_ID_SINCE: u16 = 2;

/// Why a call has no answer.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum CallFailure {
    /// There is no connection; nothing was sent.
    #[error("{0}")]
    Unreachable(String),
    /// The connection ended before the answer came, or the peer gives none: whether it acted on the call is unknown.
    #[error("{0}")]
    Unanswered(String),
    /// The peer does not serve this; nothing happened there.
    #[error("{0}")]
    Refused(String),
    /// The parcel is over a limit; it was not sent.
    #[error("{0}")]
    TooLarge(String),
    /// No answer in time.
    #[error("no answer in time")]
    Deadline,
}

/// Why a parcel can't be sent at all.
pub(crate) fn over_a_limit(parcel: &Parcel) -> Option<String> {
    let bulk_len: usize = parcel.bulk.iter().map(|buf| buf.len()).sum();
    if parcel.message.len() > MESSAGE_LEN_BYTES_MAX {
        return Some(format!("a message of {} bytes, {MESSAGE_LEN_BYTES_MAX} at most", parcel.message.len()));
    }
    if parcel.bulk.len() > BULK_BUFFERS_MAX {
        return Some(format!("{} bulk buffers, {BULK_BUFFERS_MAX} at most", parcel.bulk.len()));
    }
    (bulk_len > BULK_LEN_BYTES_MAX).then(|| format!("{bulk_len} bulk bytes, {BULK_LEN_BYTES_MAX} at most"))
}

/// Bytes of a parcel, as they are counted against what the receiver grants.
pub(crate) fn parcel_len(parcel: &Parcel) -> usize {
    parcel.message.len() + parcel.bulk.iter().map(|buf| buf.len()).sum::<usize>()
}

struct Pending {
    /// Gone when the answer is not wanted any more.
    sender: Option<oneshot::Sender<Result<Parcel, CallFailure>>>,
    since: Instant,
    /// Held until the peer says that the call has ended.
    _credit: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

/// The calling end of an open connection.
pub struct Caller {
    pub(crate) session: Rc<Session>,
    peer: Hello,
    proven: Proven,
    calls: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    units_max: u32,
    pending: RefCell<BTreeMap<u64, Pending>>,
    next_call: Cell<u64>,
}

impl Caller {
    pub(crate) fn new(session: Rc<Session>, peer: Hello, proven: Proven) -> Rc<Caller> {
        let calls = peer.calls_max.min(CALLS_IN_FLIGHT_MAX);
        let units_max = (peer.bytes_max.min(BYTES_IN_FLIGHT_MAX) / UNIT_LEN_BYTES as u64) as u32;
        Rc::new(Caller {
            session,
            peer,
            proven,
            calls: Arc::new(Semaphore::new(calls as usize)),
            bytes: Arc::new(Semaphore::new(units_max as usize)),
            units_max,
            pending: RefCell::default(),
            next_call: Cell::new(1),
        })
    }

    /// What the peer said first.
    #[must_use]
    pub fn peer(&self) -> &Hello {
        &self.peer
    }

    /// Who the peer proved to be.
    #[must_use]
    pub fn proven(&self) -> &Proven {
        &self.proven
    }

    /// Whether calls can be made no more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.session.is_closed()
    }

    /// Makes a call; waits first while the peer grants no more. Dropped before the answer came, the call is taken back, or
    /// the peer told that the answer is not wanted.
    pub async fn call(self: Rc<Self>, service: ServiceId, lane: LaneId, parcel: Parcel) -> Result<Parcel, CallFailure> {
        if let Some(what) = over_a_limit(&parcel) {
            return Err(CallFailure::TooLarge(what));
        }
        // Rounded up, so that what we count is never less than what the peer counts.
        let units = u32::try_from(parcel_len(&parcel).div_ceil(UNIT_LEN_BYTES)).expect("a parcel has a limit");
        if units > self.units_max {
            let granted = u64::from(self.units_max) * UNIT_LEN_BYTES as u64;
            return Err(CallFailure::TooLarge(format!("{} bytes, the peer takes {granted}", parcel_len(&parcel))));
        }
        let ended = |_| CallFailure::Unreachable("the connection ended".to_owned());
        let call_credit = self.calls.clone().acquire_owned().await.map_err(ended)?;
        let byte_credit = self.bytes.clone().acquire_many_owned(units).await.map_err(ended)?;
        if self.is_closed() {
            return Err(CallFailure::Unreachable("the connection is closing".to_owned()));
        }
        let (sender, receiver) = oneshot::channel();
        let call = self.next_call.get();
        self.next_call.set(call + 1);
        let since = self.session.ports.now();
        let pending = Pending { sender: Some(sender), since, _credit: (call_credit, byte_credit) };
        self.pending.borrow_mut().insert(call, pending);
        add(&self.session.counters.calls, 1);
        add(&self.session.counters.in_flight, 1);
        let request = request::current().filter(|_| self.peer.version_max >= REQUEST_ID_SINCE);
        self.session.send(|outbox| outbox.call(call, service, lane, request, parcel));
        let _taken_back = TakeBack { caller: &self, call };
        receiver.await.unwrap_or_else(|_| Err(CallFailure::Unanswered("the connection ended".to_owned())))
    }

    /// The connection has ended: so have its calls.
    pub(crate) fn end(&self, ended: &Ended) {
        self.calls.close();
        self.bytes.close();
        let failure = CallFailure::Unanswered(ended.reason().to_owned());
        for (_, pending) in std::mem::take(&mut *self.pending.borrow_mut()) {
            take(&self.session.counters.in_flight, 1);
            if let Some(sender) = pending.sender {
                let _caller_gone = sender.send(Err(failure.clone()));
            }
        }
    }

    fn settle(&self, call: u64, outcome: Result<Parcel, CallFailure>) -> Result<(), String> {
        let pending = self.pending.borrow_mut().remove(&call);
        let pending = pending.ok_or_else(|| format!("an answer to call {call}, which nobody made"))?;
        take(&self.session.counters.in_flight, 1);
        self.session.counters.answered(self.session.ports.now().since(pending.since));
        if let Some(sender) = pending.sender {
            let _caller_gone = sender.send(outcome);
        }
        Ok(())
    }
}

/// Ends a call whose caller goes away.
struct TakeBack<'a> {
    caller: &'a Caller,
    call: u64,
}

impl Drop for TakeBack<'_> {
    fn drop(&mut self) {
        let Caller { session, pending, .. } = self.caller;
        let mut pending = pending.borrow_mut();
        let Some(waiting) = pending.get_mut(&self.call) else { return };
        if session.send(|outbox| outbox.take_back(self.call)) {
            pending.remove(&self.call);
            take(&session.counters.in_flight, 1);
        } else if waiting.sender.take().is_some() {
            session.send(|outbox| outbox.control(&Control::Cancel(self.call)));
        }
    }
}

impl End for Caller {
    fn admit(&self, head: &Head) -> Result<(), String> {
        match head.kind {
            FrameKind::Control => Ok(()),
            FrameKind::Call => Err("a call on a connection that is for ours".to_owned()),
            FrameKind::Answer | FrameKind::Refused | FrameKind::Dropped => {
                match self.pending.borrow().contains_key(&head.call) {
                    true => Ok(()),
                    false => Err(format!("an answer to call {}, which nobody made", head.call)),
                }
            }
        }
    }

    fn take(&self, frame: Frame, _control: Option<Control>) -> Result<(), String> {
        let Frame { head, message, bulk } = frame;
        match head.kind {
            FrameKind::Answer => self.settle(head.call, Ok(Parcel { message, bulk })),
            FrameKind::Refused => {
                add(&self.session.counters.refused, 1);
                let why = String::from_utf8_lossy(&message).into_owned();
                self.settle(head.call, Err(CallFailure::Refused(why)))
            }
            FrameKind::Dropped => {
                let why = "the call was run, and its answer can't be sent; the log there says why".to_owned();
                self.settle(head.call, Err(CallFailure::Unanswered(why)))
            }
            FrameKind::Control | FrameKind::Call => Err("a frame that is for the answering end".to_owned()),
        }
    }

    fn is_owed(&self) -> bool {
        !self.pending.borrow().is_empty()
    }

    fn reads(&self) -> bool {
        true // whoever waits for answers takes them
    }
}
