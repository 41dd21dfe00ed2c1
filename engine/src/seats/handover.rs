//! A node that stops gives the shards that it leads to other voters before it goes, so that nobody has to learn of its going from
//! its silence.
//!
//! One shard after the other, many at once: new requests wait at the door; those inside end, and with them what they have
//! begun (a home commits pins behind its answer); then the voter that the lots prefer leads, and who waits at the door is sent there.
//! Everything has its time. A shard that nobody can take is served until the node goes, and its voters elect a leader then.

use super::{Seat, Seats, Service};
use crate::message::{HomeRequest, RequestBody};
use crate::replica_keeper::{PassOn, heirs};
use futures::StreamExt;
use futures::future::select;
use kiseki_types::group::{ReplicasError, VoterId};
use kiseki_types::ids::ShardId;
use kiseki_types::runtime::{Instant, Ports, RuntimeExt};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;
use tracing::{debug, info};

/// Shards that are handed over at once (I-O5).
const AT_ONCE: usize = 64;

/// How long requests that are inside are waited for. A new leader does not know what they have begun, so they would fail.
const DRAIN_MAX: Duration = Duration::from_millis(1_500);

/// How long a request waits at the door before it is told to ask elsewhere. Less than any caller waits for its answer.
const DOOR_WAIT_MAX: Duration = Duration::from_millis(500);

/// Between two looks whether everybody has left.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);

/// Before a shard that nobody could take is offered again.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// What became of a request at the door of a shard.
pub(crate) enum Entered {
    /// It is served by this, and counts for as long as the second lives.
    Served(Service, Busy),
    /// The shard is being handed over: wait outside, then try again.
    Shut,
    /// Nobody serves the shard here.
    Nobody,
}

/// A request that is inside.
pub(crate) struct Busy(Rc<Seat>);

impl Busy {
    fn of(seat: &Rc<Seat>) -> Busy {
        seat.busy.set(seat.busy.get() + 1);
        Busy(seat.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.set(self.0.busy.get() - 1);
    }
}

/// Keeps a door shut; a keeper and a node that stops may both.
struct Shut<'a>(&'a Seat);

impl<'a> Shut<'a> {
    fn the(seat: &'a Seat) -> Shut<'a> {
        seat.shut_by.set(seat.shut_by.get() + 1);
        Shut(seat)
    }
}

impl Drop for Shut<'_> {
    fn drop(&mut self) {
        self.0.shut_by.set(self.0.shut_by.get() - 1);
    }
}

impl Seats {
    /// Lets a request in.
    pub(crate) fn enter(&self, shard: ShardId, body: &RequestBody) -> Entered {
        // These ask a core, not the service, and whoever is inside may wait for their answer.
        if matches!(body, RequestBody::Open(_) | RequestBody::Core(_) | RequestBody::Node(_)) {
            return Entered::Nobody;
        }
        let seats = self.seats.borrow();
        let Some(seat) = seats.get(&shard) else { return Entered::Nobody };
        let serving = seat.serving.borrow();
        match serving.as_ref() {
            None => Entered::Nobody,
            // It ends what is inside.
            Some(_) if seat.shut_by.get() > 0 && !matches!(body, RequestBody::Home(HomeRequest::Confirm(_))) => {
                Entered::Shut
            }
            Some(serving) => Entered::Served(serving.service.clone(), Busy::of(seat)),
        }
    }

    /// Waits until a shard that is being handed over is led elsewhere, but not for long.
    pub(crate) async fn wait_outside(&self, shard: ShardId) {
        let Some(group) = self.group(shard) else { return };
        let moved = async {
            let mut now = group.leadership();
            while now.is_here {
                now = group.leadership_after(now).await;
            }
        };
        select(pin!(moved), pin!(self.core.ports.sleep(DOOR_WAIT_MAX))).await;
    }

    /// Gives away what is led here; ends when nothing is left that anybody could take, or when the time is over. Each shard is given
    /// away once: nodes that stop at the same time do not pass them round.
    pub(crate) async fn hand_over(&self, within: Duration) {
        let until = self.core.ports.now() + within;
        let seats: Vec<Rc<Seat>> = self.seats.borrow().values().cloned().collect();
        let led = || seats.iter().filter(|seat| seat.group.leadership().is_here).count();
        let before = led();
        let all = futures::stream::iter(&seats).for_each_concurrent(AT_ONCE, |seat| self.give_away(seat, until));
        select(pin!(all), pin!(self.core.ports.sleep_until(until))).await;
        if before > 0 && !self.core.nodes.is_alone() {
            info!(led_before = before, led_still = led(), "this node stops and has given its shards to others");
        }
    }

    async fn give_away(&self, seat: &Rc<Seat>, until: Instant) {
        let (ports, group, nodes) = (&self.core.ports, &seat.group, &self.core.nodes);
        while group.leadership().is_here && ports.now() < until {
            let heirs = heirs(group.shard(), nodes, &group.voters(), ports.now());
            if heirs.is_empty() {
                return;
            }
            for heir in heirs {
                match pass_on(ports, seat, heir, until).await {
                    Ok(()) => return,
                    Err(error) => debug!(shard = %group.shard(), heir, %error, "a voter does not take a shard over"),
                }
            }
            ports.sleep(RETRY_PAUSE).await;
        }
    }
}

/// Gives a shard to a voter: shuts its door, waits until it is empty, and opens it again when another voter leads, or none did in time.
async fn pass_on(ports: &Ports, seat: &Rc<Seat>, heir: VoterId, until: Instant) -> Result<(), ReplicasError> {
    let _shut = Shut::the(seat);
    until_empty(ports, seat, until.min(ports.now() + DRAIN_MAX)).await;
    seat.group.transfer_leader(heir).await
}

/// The same for a keeper, which moves leadership when nobody is in a hurry.
pub(super) fn passing(ports: Ports, seat: &Rc<Seat>) -> PassOn {
    let seat = Rc::downgrade(seat);
    Rc::new(move |heir| {
        let (ports, seat) = (ports.clone(), seat.upgrade());
        Box::pin(async move {
            match seat {
                Some(seat) => pass_on(&ports, &seat, heir, ports.now() + DRAIN_MAX).await,
                None => Ok(()), // the core ends
            }
        })
    })
}

async fn until_empty(ports: &Ports, seat: &Seat, until: Instant) {
    let pins = || match seat.serving.borrow().as_ref().map(|serving| &serving.service) {
        Some(Service::Home(home)) => home.unconfirmed(),
        _ => 0,
    };
    while (seat.busy.get() > 0 || pins() > 0) && ports.now() < until {
        ports.sleep(LOOK_INTERVAL).await;
    }
}
