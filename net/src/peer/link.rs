//! A kept connection to one core of a peer: made when it is first needed, made again when it broke, later and later while that
//! fails.

use crate::peer::caller::{CallFailure, Caller};
use crate::peer::counters::{LinkCounters, LinkFigures, add};
use crate::peer::open::{self, OpenError, Opened};
use crate::peer::session::Session;
use crate::peer::trust::{Expect, PeerTrust};
use futures::future::{Either, FutureExt, Shared, select};
use kiseki_types::buf::BufferSource;
use kiseki_types::ids::LaneId;
use kiseki_types::peer::{Parcel, ServiceId};
use kiseki_types::runtime::{Instant, LocalBoxFuture, Ports, RuntimeExt};
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Pause after the first attempt that failed; it doubles with each further one.
const PAUSE_MIN: Duration = Duration::from_millis(50);

/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// A connection that ended sooner than this counts as an attempt that failed.
const LIVED_MIN: Duration = Duration::from_secs(1);

/// Where a link goes.
#[derive(Clone, Debug)]
pub struct LinkTarget {
    /// Its addresses, tried in this order.
    pub addresses: Vec<SocketAddr>,
    /// Who must answer there.
    pub expect: Expect,
    /// A lane of the core that is wanted.
    pub lane: LaneId,
}

/// What links are made with.
#[derive(Clone)]
pub struct LinkInputs {
    /// Time, chance, tasks.
    pub ports: Ports,
    /// Who we are and whom we believe.
    pub trust: Arc<PeerTrust>,
    /// Where bulk bytes of answers land.
    pub buffers: BufferSource,
}

type Connecting = Shared<LocalBoxFuture<'static, Result<Rc<Caller>, CallFailure>>>;

enum State {
    Down { retry_at: Instant, failure: Option<CallFailure> },
    Connecting(Connecting),
    Up(Rc<Caller>),
}

/// One link.
pub struct Link {
    inputs: LinkInputs,
    target: LinkTarget,
    counters: Rc<LinkCounters>,
    state: RefCell<State>,
    /// The attempt that the state is about: what becomes of an older one changes nothing any more.
    attempt: Cell<u64>,
    /// Attempts that failed one after the other.
    failures: Cell<u32>,
}

impl Link {
    /// A link that connects when it is first needed.
    #[must_use]
    pub fn new(inputs: LinkInputs, target: LinkTarget) -> Rc<Link> {
        let state = RefCell::new(State::Down { retry_at: Instant(0), failure: None });
        let (attempt, failures) = (Cell::new(0), Cell::new(0));
        Rc::new(Link { inputs, target, counters: Rc::default(), state, attempt, failures })
    }

    /// What was counted.
    #[must_use]
    pub fn figures(&self) -> LinkFigures {
        self.counters.snapshot()
    }

    /// Makes a call to a lane of the core at the other end; all of it within `deadline`.
    pub async fn call(
        self: Rc<Self>,
        service: ServiceId,
        lane: LaneId,
        parcel: Parcel,
        deadline: Duration,
    ) -> Result<Parcel, CallFailure> {
        let late = self.inputs.ports.sleep(deadline);
        let calling = async { self.connected().await?.call(service, lane, parcel).await };
        match select(std::pin::pin!(calling), late).await {
            Either::Left((outcome, _)) => outcome,
            Either::Right(_) => Err(CallFailure::Deadline),
        }
    }

    /// An open connection. While the pause after a failure lasts, that failure is the answer at once.
    pub async fn connected(self: &Rc<Self>) -> Result<Rc<Caller>, CallFailure> {
        let connecting = {
            let mut state = self.state.borrow_mut();
            match &*state {
                State::Up(caller) if !caller.is_closed() => return Ok(caller.clone()),
                State::Connecting(connecting) => connecting.clone(),
                State::Down { retry_at, failure: Some(failure) } if self.inputs.ports.now() < *retry_at => {
                    return Err(failure.clone());
                }
                State::Down { .. } | State::Up(_) => {
                    let (link, number) = (self.clone(), self.next_attempt());
                    let attempt: LocalBoxFuture<'static, _> = Box::pin(async move { link.connect(number).await });
                    let connecting = attempt.shared();
                    *state = State::Connecting(connecting.clone());
                    // It goes on when whoever asked for it goes away.
                    let driven = connecting.clone();
                    self.inputs.ports.spawn("peer connecting", Box::pin(async move { drop(driven.await) }));
                    connecting
                }
            }
        };
        connecting.await
    }

    /// Ends the connection, if there is one or one is being made.
    pub fn close(&self, reason: &str) {
        let mut state = self.state.borrow_mut();
        match &*state {
            State::Up(caller) => caller.session.close(reason),
            State::Connecting(_) => {
                self.next_attempt();
                *state = State::Down { retry_at: Instant(0), failure: None };
            }
            State::Down { .. } => {}
        }
    }

    fn next_attempt(&self) -> u64 {
        self.attempt.set(self.attempt.get() + 1);
        self.attempt.get()
    }

    async fn connect(self: Rc<Self>, attempt: u64) -> Result<Rc<Caller>, CallFailure> {
        let LinkInputs { ports, trust, buffers } = self.inputs.clone();
        let LinkTarget { addresses, expect, lane } = self.target.clone();
        let opened = open::dial(&ports, &trust, buffers, &addresses, lane, expect).await;
        let Opened { stream, reader, proven, peer } = match opened {
            Ok(opened) => opened,
            Err(error) => {
                add(&self.counters.connect_failures, 1);
                let failure = match error {
                    OpenError::Failed(reason) => CallFailure::Unreachable(reason),
                    OpenError::Refused(reason) => CallFailure::Refused(reason),
                };
                self.down(attempt, failure.clone());
                return Err(failure);
            }
        };
        if self.attempt.get() != attempt {
            return Err(CallFailure::Unreachable("the link was closed meanwhile".to_owned()));
        }
        add(&self.counters.connects, 1);
        let session = Session::new(ports.clone(), self.counters.clone());
        let caller = Caller::new(session.clone(), peer, proven.clone());
        *self.state.borrow_mut() = State::Up(caller.clone());
        let (link, end) = (self.clone(), caller.clone());
        let carrying = async move {
            let since = link.inputs.ports.now();
            let ended = session.carry(stream, reader, &*end, &trust, &proven).await;
            tracing::debug!(peer = %proven.name.role, reason = ended.reason(), "link ended");
            if link.inputs.ports.now().since(since) >= LIVED_MIN && link.attempt.get() == attempt {
                link.failures.set(0);
            }
            link.down(attempt, CallFailure::Unreachable(ended.reason().to_owned()));
            end.end(&ended);
        };
        ports.spawn("peer link", Box::pin(carrying));
        Ok(caller)
    }

    /// Notes a failure and when to try again: within half of the pause and all of it, so that peers of one that comes back do
    /// not all come at once.
    fn down(&self, attempt: u64, failure: CallFailure) {
        if self.attempt.get() != attempt {
            return; // a newer connection took its place while it was ending
        }
        let failures = self.failures.get();
        self.failures.set(failures.saturating_add(1));
        let pause = PAUSE_MIN.saturating_mul(1 << failures.min(16)).min(PAUSE_MAX);
        let chance = f64::from(u32::from_le_bytes(self.inputs.ports.random())) / f64::from(u32::MAX);
        let retry_at = self.inputs.ports.now() + pause.mul_f64(0.5 + chance / 2.0);
        *self.state.borrow_mut() = State::Down { retry_at, failure: Some(failure) };
    }
}
