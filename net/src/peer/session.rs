//! One open connection: sends what is queued, takes what arrives, asks a silent peer whether it is there, and ends.

use crate::peer::control::Control;
use crate::peer::counters::{LinkCounters, add};
use crate::peer::frame::{FrameKind, Head};
use crate::peer::outbox::Outbox;
use crate::peer::reader::{Frame, FrameReader, ReadError};
use crate::peer::stream::PeerStream;
use crate::peer::trust::{PeerTrust, Proven};
use futures::future::{Either, poll_fn, select};
use futures::io::AsyncWriteExt;
use kiseki_types::runtime::{Instant, LocalBoxFuture, Ports, RuntimeExt};
use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Between two looks at the clock.
const TICK: Duration = Duration::from_secs(1);

/// A peer that owes answers is asked whether it is there when it has been silent this long; others more rarely.
const PING_BUSY: Duration = Duration::from_secs(2);
const PING_IDLE: Duration = Duration::from_secs(60);

/// A peer that does not answer a ping within this time is gone.
const PONG_PATIENCE: Duration = Duration::from_secs(8);

/// A peer that takes none of the bytes meant for it for this long is gone.
const WRITE_PATIENCE: Duration = Duration::from_secs(20);

/// How long a closing connection tries to say why.
const GOODBYE_PATIENCE: Duration = Duration::from_secs(1);

/// Control frames from the peer between two parcels, or two looks at the clock: more than any honest one has reason for (I-O5).
const CONTROL_FRAMES_MAX: u32 = 4096;

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// We closed it.
    Here(String),
    /// The peer broke the rules, so it was closed.
    Rules(String),
    /// The peer closed it and said why.
    There(String),
    /// It broke.
    Broken(String),
}

impl Ended {
    /// The reason.
    #[must_use]
    pub fn reason(&self) -> &str {
        let (Ended::Here(reason) | Ended::Rules(reason) | Ended::There(reason) | Ended::Broken(reason)) = self;
        reason
    }
}

/// What the two ends of a connection do differently.
pub(crate) trait End {
    /// Decides about a frame by its head; an error is a broken rule.
    fn admit(&self, head: &Head) -> Result<(), String>;
    /// Takes a frame that was admitted; control frames that both ends treat alike do not come here.
    fn take(&self, frame: Frame, control: Option<Control>) -> Result<(), String>;
    /// Whether the peer owes us answers.
    fn is_owed(&self) -> bool;
    /// Whether frames are to be read now.
    fn reads(&self) -> bool;
}

/// What both ends of a connection share.
pub(crate) struct Session {
    pub ports: Ports,
    pub counters: Rc<LinkCounters>,
    outbox: RefCell<Outbox>,
    waker: RefCell<Option<Waker>>,
    /// Set when the connection is to end.
    closing: RefCell<Option<String>>,
    is_over: Cell<bool>,
}

impl Session {
    pub fn new(ports: Ports, counters: Rc<LinkCounters>) -> Rc<Session> {
        Rc::new(Session {
            ports,
            counters,
            outbox: RefCell::default(),
            waker: RefCell::default(),
            closing: RefCell::default(),
            is_over: Cell::new(false),
        })
    }

    /// Changes what is to be sent and sees to it that it is.
    pub fn send<T>(&self, change: impl FnOnce(&mut Outbox) -> T) -> T {
        let changed = change(&mut self.outbox.borrow_mut());
        self.wake();
        changed
    }

    /// Bytes that are not sent yet.
    pub fn backlog(&self) -> usize {
        self.outbox.borrow().bytes()
    }

    pub fn wake(&self) {
        let waker = self.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Ends the connection; the peer is told why.
    pub fn close(&self, reason: &str) {
        self.closing.borrow_mut().get_or_insert_with(|| reason.to_owned());
        self.wake();
    }

    /// Whether it has ended or is about to.
    pub fn is_closed(&self) -> bool {
        self.is_over.get() || self.closing.borrow().is_some()
    }

    /// Carries frames until the connection ends.
    pub async fn carry(
        self: &Rc<Self>,
        mut stream: PeerStream,
        reader: FrameReader,
        end: &dyn End,
        trust: &Arc<PeerTrust>,
        proven: &Proven,
    ) -> Ended {
        let mut changes = trust.changes();
        let mut carrying = Carrying {
            session: self,
            reader,
            end,
            tick: self.ports.sleep(TICK),
            heard_at: self.ports.now(),
            moved_at: self.ports.now(),
            asked_at: None,
            pings: 0,
            control_frames: 0,
        };
        let ended = loop {
            let changed = async {
                if changes.changed().await.is_err() {
                    std::future::pending::<()>().await; // nobody replaces it any more
                }
            };
            let ended = match select(poll_fn(|cx| carrying.poll(cx, &mut stream)), pin!(changed)).await {
                Either::Left((Turn::Ended(ended), _)) => Some(ended),
                Either::Left((Turn::Tick, _)) | Either::Right(_) => None,
            };
            let now = self.ports.unix_time_ms() / 1000;
            let ended = ended.or_else(|| trust.still_trusts(proven, now).err().map(|why| Ended::Here(why.to_owned())));
            if let Some(ended) = ended {
                break ended;
            }
        };
        self.is_over.set(true);
        if let Ended::Here(reason) | Ended::Rules(reason) = &ended {
            let left = self.outbox.take().last_words(&Control::Goodbye(reason.clone()));
            self.outbox.replace(left);
        }
        let parting = async {
            let mut sent = 0;
            let told = poll_fn(|cx| self.outbox.borrow_mut().poll_send(cx, &mut stream, &mut sent)).await;
            // It is over either way.
            let _closed = (told, stream.close().await);
        };
        let _in_time = select(pin!(parting), self.ports.sleep(GOODBYE_PATIENCE)).await;
        self.outbox.take();
        ended
    }
}

/// Why a turn of the connection is over.
enum Turn {
    Tick,
    Ended(Ended),
}

/// The state of [`Session::carry`].
struct Carrying<'a> {
    session: &'a Rc<Session>,
    reader: FrameReader,
    end: &'a dyn End,
    tick: LocalBoxFuture<'static, ()>,
    /// When the last byte came.
    heard_at: Instant,
    /// When the peer last took a byte, or had nothing to take.
    moved_at: Instant,
    /// When a ping left that is not answered.
    asked_at: Option<Instant>,
    pings: u64,
    /// Since the last parcel or look at the clock.
    control_frames: u32,
}

impl Carrying<'_> {
    fn poll(&mut self, cx: &mut Context<'_>, stream: &mut PeerStream) -> Poll<Turn> {
        *self.session.waker.borrow_mut() = Some(cx.waker().clone());
        if let Some(reason) = self.session.closing.borrow().clone() {
            return Poll::Ready(Turn::Ended(Ended::Here(reason)));
        }
        self.reader.begin_turn();
        let was_reading = self.end.reads();
        if let Poll::Ready(ended) = self.poll_read(cx, stream) {
            return Poll::Ready(Turn::Ended(ended));
        }
        if let Err(error) = self.poll_write(cx, stream) {
            return Poll::Ready(Turn::Ended(Ended::Broken(super::open::failure_text(&error))));
        }
        if !was_reading && self.end.reads() {
            cx.waker().wake_by_ref(); // there is room now for what was not read for want of it
        }
        if self.tick.as_mut().poll(cx).is_ready() {
            self.tick = self.session.ports.sleep(TICK);
            // A rate: an idle link lives on pings for as long as it likes.
            self.control_frames = 0;
            return Poll::Ready(match self.look_at_clock() {
                Some(silent) => Turn::Ended(Ended::Broken(silent)),
                None => Turn::Tick,
            });
        }
        Poll::Pending
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, stream: &mut PeerStream) -> Poll<Ended> {
        while self.end.reads() {
            let before = self.reader.bytes_read();
            let end = self.end;
            let frame = self.reader.poll_frame(cx, stream, &mut |head| end.admit(head));
            let read = self.reader.bytes_read() - before;
            if read > 0 {
                add(&self.session.counters.bytes_in, read);
                self.heard_at = self.session.ports.now();
                self.asked_at = None;
            }
            let taken = match frame {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(frame)) => self.take(frame),
                Poll::Ready(Err(ReadError::Rules(rule))) => Err(Ended::Rules(rule)),
                Poll::Ready(Err(ReadError::Closed)) => Err(Ended::Broken("the peer closed the connection".to_owned())),
                Poll::Ready(Err(ReadError::Io(error))) => Err(Ended::Broken(super::open::failure_text(&error))),
            };
            if let Err(ended) = taken {
                return Poll::Ready(ended);
            }
        }
        Poll::Pending
    }

    fn take(&mut self, frame: Frame) -> Result<(), Ended> {
        if frame.head.kind != FrameKind::Control {
            self.control_frames = 0;
            return self.end.take(frame, None).map_err(Ended::Rules);
        }
        self.control_frames += 1;
        if self.control_frames > CONTROL_FRAMES_MAX {
            return Err(Ended::Rules("too many control frames".to_owned()));
        }
        match Control::decode(&frame.message).map_err(|error| Ended::Rules(error.to_string()))? {
            Control::Goodbye(reason) => Err(Ended::There(reason)),
            Control::Hello(_) => Err(Ended::Rules("a second hello".to_owned())),
            // A peer that asks and never reads the answers: they must not pile up.
            Control::Ping(number) if self.session.backlog() < super::answerer::BACKLOG_LEN_BYTES_MAX => {
                self.session.outbox.borrow_mut().control(&Control::Pong(number));
                Ok(())
            }
            Control::Ping(_) | Control::Pong(_) => Ok(()),
            cancel @ Control::Cancel(_) => self.end.take(frame, Some(cancel)).map_err(Ended::Rules),
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, stream: &mut PeerStream) -> std::io::Result<()> {
        let mut outbox = self.session.outbox.borrow_mut();
        if !outbox.wants_write() {
            self.moved_at = self.session.ports.now();
            return Ok(());
        }
        let mut sent = 0;
        let polled = outbox.poll_send(cx, stream, &mut sent);
        if sent > 0 {
            add(&self.session.counters.bytes_out, sent as u64);
            self.moved_at = self.session.ports.now();
        }
        match polled {
            Poll::Ready(result) => result,
            Poll::Pending => Ok(()),
        }
    }

    /// Asks a silent peer; what it is to be given up for.
    fn look_at_clock(&mut self) -> Option<String> {
        let now = self.session.ports.now();
        if self.session.backlog() > 0 && now.since(self.moved_at) >= WRITE_PATIENCE {
            return Some(format!("the peer took nothing for {} s", WRITE_PATIENCE.as_secs()));
        }
        // It may ask whether we are here, and we do not read the question: it is told before it gives us up.
        if !self.end.reads() {
            self.session.send(|outbox| outbox.control(&Control::Pong(0)));
        }
        match self.asked_at {
            Some(at) if self.end.reads() && now.since(at) >= PONG_PATIENCE => {
                return Some(format!("the peer was silent for {} s", now.since(self.heard_at).as_secs()));
            }
            Some(_) => return None,
            None => {}
        }
        let patience = if self.end.is_owed() { PING_BUSY } else { PING_IDLE };
        if self.end.reads() && now.since(self.heard_at) >= patience {
            self.pings += 1;
            self.asked_at = Some(now);
            let ping = Control::Ping(self.pings);
            self.session.send(|outbox| outbox.control(&ping));
        }
        None
    }
}
