//! Typed calls to shards, wherever they are led: over the mesh when that is here, in a parcel when it is on another node.
//! The caller does not know which.

use crate::api::StoreError;
use crate::control_cache::DISBELIEF_WAIT;
use crate::device_record::DeviceRecord;
use crate::holdings::Holdings;
use crate::message::{
    Closing, ControlRequest, ControlResponse, CoreRequest, DeviceLook, EngineRequest, EngineResponse, HomeRequest,
    HomeResponse, NodeEntry, OpenShard, RequestBody, ResponseBody, ShardRequest, ShardResponse,
};
use crate::metadata_room::MetadataRoom;
use crate::nodes::NodeBoard;
use crate::request_log::{Mark, RequestStamp};
use crate::routes::{Asked, Attempt, Repeat, Routes, copy_of};
use crate::wire;
use crate::without::{Leaving, Without};
use futures::future::{Either, join_all, select};
use kiseki_types::LocalBoxFuture;
use kiseki_types::group::VoterId;
use kiseki_types::ids::{DeviceId, LaneId, Locator, NodeId, RequestId, ShardId};
use kiseki_types::link::Link;
use kiseki_types::peer::{Parcel, PeerCallError, PeerCalls, PeerLane, ServiceId};
use kiseki_types::runtime::{Instant, Ports, RuntimeExt};
use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;
use tracing::debug;
use zeroize::Zeroize;

/// How long somebody who leads the shard is looked for: several elections fit. Nothing has happened when it is over.
const LEADER_WAIT: Duration = Duration::from_secs(10);

/// Another node answers a request that may be asked again within this time, or the next one is asked.
const READ_WITHIN: Duration = Duration::from_secs(3);

/// A change that may be asked again: what is slow is asked again too, and waits for the first time then.
const STAMPED_WITHIN: Duration = Duration::from_secs(5);

/// How long a change is asked for again that may have been made: a leader that is cut off is found to be so and another one elected.
const SETTLE_WAIT: Duration = Duration::from_secs(20);

/// What a shard said so long ago of how far it has counted its requests is asked for anew before a change: no shard carries out as
/// many in that time as it remembers.
const MARK_AGE_MAX: Duration = Duration::from_secs(1);

/// And one that may not be: a commit may wait for a majority that is slow.
const CHANGE_WITHIN: Duration = Duration::from_secs(20);

/// All cores of another node answer within this time.
const CORES_WITHIN: Duration = Duration::from_secs(3);

/// The engine's way to every shard of the cluster, and to every core.
#[derive(Clone)]
pub struct Calls {
    inner: Rc<Inner>,
}

struct Inner {
    ports: Ports,
    link: Rc<dyn Link<EngineRequest, EngineResponse>>,
    lane_count: u16,
    home_count: u16,
    nodes: Rc<NodeBoard>,
    peers: Rc<dyn PeerCalls>,
    routes: Routes,
}

/// What [`Calls`] are made of.
pub struct CallsInputs {
    /// Time.
    pub ports: Ports,
    /// To the lanes of this node.
    pub link: Rc<dyn Link<EngineRequest, EngineResponse>>,
    /// Lanes of this node, fixed when it was formatted.
    pub lane_count: u16,
    /// Homes of the cluster, fixed when it was formed.
    pub home_count: u16,
    /// This node, and the others.
    pub nodes: Rc<NodeBoard>,
    /// To other nodes.
    pub peers: Rc<dyn PeerCalls>,
}

impl Calls {
    /// Calls of one core.
    #[must_use]
    pub fn new(inputs: CallsInputs) -> Calls {
        let CallsInputs { ports, link, lane_count, home_count, nodes, peers } = inputs;
        let routes = Routes::new(nodes.clone());
        Calls { inner: Rc::new(Inner { ports, link, lane_count, home_count, nodes, peers, routes }) }
    }

    /// Whether there is no other node.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        self.inner.nodes.is_alone()
    }

    /// Number of homes.
    #[must_use]
    pub fn home_count(&self) -> u16 {
        self.inner.home_count
    }

    /// The home of a chunk.
    #[must_use]
    pub fn home_of(&self, locator: &Locator) -> ShardId {
        locator.home(self.inner.home_count)
    }

    /// Another member that does not speak a version of messages, as far as this core knows.
    #[must_use]
    pub fn lacking(&self, version: u16) -> Option<NodeId> {
        self.inner.nodes.lacking(version)
    }

    /// Another member that is known not to speak a version of messages.
    #[must_use]
    pub fn known_to_lack(&self, version: u16) -> Option<NodeId> {
        self.inner.nodes.known_to_lack(version)
    }

    /// Asks whoever leads a shard. What may have been done and may be asked again is asked of whoever leads next, a change under
    /// one request id, so that it is done once and gets its first answer (`request_log`).
    ///
    /// Errors: `Unavailable` that says that nobody leads the shard: nothing has happened. `Unsettled`: whether it was done is
    /// not known.
    async fn call(&self, shard: ShardId, body: RequestBody) -> EngineResponse {
        self.call_as(shard, body, None).await
    }

    /// The same; a change is the request `id`, whatever else was asked as that.
    async fn call_as(&self, shard: ShardId, body: RequestBody, id: Option<RequestId>) -> EngineResponse {
        let inner = &*self.inner;
        // Who is alone has nobody else to ask, and whoever asked goes down with it.
        let repeat = if inner.nodes.is_alone() { Repeat::Never } else { Repeat::of(&body) };
        let stamp = match repeat {
            Repeat::Stamped => Some(self.stamp(shard, id).await?),
            Repeat::Freely | Repeat::Never => None,
        };
        let mut asked = Asked::Here(body);
        let (mut since, mut unsettled): (Option<Instant>, Option<StoreError>) = (None, None);
        let mut route = inner.routes.begin(shard);
        loop {
            let attempt = match route.node == inner.nodes.own() {
                true => inner.ask_here(shard, &mut asked, repeat, stamp).await,
                false => {
                    let is_again = unsettled.is_some();
                    inner.ask_there(route.node, shard, &mut asked, repeat, stamp, is_again).await
                }
            };
            let leader = match attempt {
                Attempt::Answered(answer) => {
                    inner.routes.found(shard, route.node);
                    if let Ok(ResponseBody::Shard(_, mark) | ResponseBody::Control(_, mark)) = &answer {
                        inner.routes.marked(shard, *mark, inner.ports.now());
                    }
                    return answer;
                }
                Attempt::Failed(error) => {
                    inner.routes.lost(shard, route.node);
                    return Err(error);
                }
                Attempt::Unanswered(error) => {
                    unsettled = Some(error);
                    None
                }
                Attempt::NotThere(leader) => leader,
            };
            inner.routes.lost(shard, route.node);
            let now = inner.ports.now();
            let since = *since.get_or_insert(now);
            let wait = if unsettled.is_some() { SETTLE_WAIT } else { LEADER_WAIT };
            if now.since(since) >= wait {
                let reason = format!("nobody leads shard {shard}; a majority of its voters has to be up");
                return Err(unsettled.unwrap_or(StoreError::Unavailable { reason }));
            }
            if let Some(pause) = route.next(&inner.nodes, leader) {
                inner.ports.sleep(pause).await;
            }
        }
    }

    /// Makes one request of all times that a change will be asked for.
    async fn stamp(&self, shard: ShardId, id: Option<RequestId>) -> Result<RequestStamp, StoreError> {
        let inner = &*self.inner;
        let now = inner.ports.now();
        if inner.routes.mark(shard).is_none_or(|(_, at)| now.since(at) > MARK_AGE_MAX) {
            // An answer says how far the shard has counted. Where nobody answers a question nobody makes a change.
            let ask = match shard {
                ShardId::CONTROL => RequestBody::Control(ControlRequest::Nodes),
                _ => RequestBody::Shard(Box::new(ShardRequest::PinEpoch)),
            };
            Box::pin(self.call(shard, ask)).await.map_err(|error| match error {
                StoreError::Unsettled { reason } => StoreError::Unavailable { reason }, // nothing was changed
                error => error,
            })?;
        }
        let seen = inner.routes.mark(shard).map_or(Mark(0), |(mark, _)| mark);
        Ok(RequestStamp { id: id.unwrap_or_else(|| RequestId(inner.ports.random())), seen })
    }

    /// Asks the control shard.
    pub async fn control(&self, request: ControlRequest) -> Result<ControlResponse, StoreError> {
        match self.call(ShardId::CONTROL, RequestBody::Control(request)).await? {
            ResponseBody::Control(response, _) => Ok(response),
            other => Err(unfit(&other)),
        }
    }

    /// Asks a home.
    pub async fn home(&self, shard: ShardId, request: HomeRequest) -> Result<HomeResponse, StoreError> {
        match self.call(shard, RequestBody::Home(request)).await? {
            ResponseBody::Home(response) => Ok(response),
            other => Err(unfit(&other)),
        }
    }

    /// Asks a tenant's shard.
    pub async fn shard(&self, shard: ShardId, request: ShardRequest) -> Result<ShardResponse, StoreError> {
        match self.call(shard, RequestBody::Shard(Box::new(request))).await? {
            ResponseBody::Shard(response, _) => Ok(response),
            other => Err(unfit(&other)),
        }
    }

    /// Asks a tenant's shard for a change that is done once, whichever of the requests with this id reaches it first.
    pub async fn shard_once(
        &self,
        shard: ShardId,
        request: ShardRequest,
        id: RequestId,
    ) -> Result<ShardResponse, StoreError> {
        match self.call_as(shard, RequestBody::Shard(Box::new(request)), Some(id)).await? {
            ResponseBody::Shard(response, _) => Ok(response),
            other => Err(unfit(&other)),
        }
    }

    /// Asks members something cheap of which it is not known that they speak a version of messages: whatever they answer says so.
    pub async fn ask_what_is_spoken(&self, version: u16) {
        let inner = &self.inner;
        let ask = |node| inner.ask_node(node, ShardId::CONTROL, RequestBody::Control(ControlRequest::Nodes));
        let asked = inner.nodes.unheard_of(version, inner.ports.now()).into_iter().map(ask);
        for answer in join_all(asked).await {
            if let Err(error) = answer {
                debug!(%error, "a node does not say what it speaks");
            }
        }
    }

    /// Has every core of every node forget what it remembers of the control shard. A core of this node that does not answer is
    /// stopping and serves nobody; for a node that does not answer the time is waited out after which it believes nothing any more.
    pub async fn forget_everywhere(&self) {
        let (_, others) = futures::future::join(
            join_all(self.inner.ask_own_cores(&CoreRequest::Forget)),
            join_all(self.inner.ask_other_nodes(&CoreRequest::Forget)),
        )
        .await;
        if others.iter().any(Result::is_err) {
            self.inner.ports.sleep(DISBELIEF_WAIT).await;
        }
    }

    /// Has every core of every node act on what is recorded of the devices. A core that does not answer is stopping, or its node is
    /// away: it reads the records before it places anything, or asks for them again soon.
    pub async fn tell_devices_everywhere(&self, version: u64, records: &[DeviceRecord]) {
        let request = CoreRequest::Devices { version, records: records.to_vec() };
        self.tell_everywhere(&request).await;
    }

    /// Has every core of every node act on what is recorded of the nodes. Who does not answer asks again soon.
    pub async fn tell_nodes_everywhere(&self, version: u64, entries: &[NodeEntry]) {
        self.tell_everywhere(&CoreRequest::Nodes { version, entries: entries.to_vec() }).await;
    }

    async fn tell_everywhere(&self, request: &CoreRequest) {
        let own = join_all(self.inner.ask_own_cores(request));
        futures::future::join(own, join_all(self.inner.ask_other_nodes(request))).await;
    }

    /// What every core of every node knows of a device, each once. Errors: a core that does not answer.
    pub async fn look_at_device(&self, device: DeviceId, closing: Closing) -> Result<Vec<DeviceLook>, StoreError> {
        let request = CoreRequest::LookAtDevice(device, closing);
        let own = join_all(self.inner.ask_own_cores(&request));
        let (own, others) = futures::future::join(own, join_all(self.inner.ask_other_nodes(&request))).await;
        let mut looks = BTreeMap::new();
        for answer in own.into_iter().chain(others) {
            match answer? {
                ResponseBody::Looks(answers) => {
                    looks.extend(answers.into_iter().map(|look| ((look.node, look.core), look)));
                }
                other => return Err(unfit(&other)),
            }
        }
        Ok(looks.into_values().collect())
    }

    /// Asks all cores of this node, and puts their answers together: what a [`RequestBody::Node`] wants.
    pub async fn ask_whole_node(&self, request: &CoreRequest) -> EngineResponse {
        let mut looks = BTreeMap::new();
        let mut holdings = BTreeMap::new();
        let mut without = BTreeMap::new();
        let mut rooms = BTreeMap::new();
        for answer in join_all(self.inner.ask_own_cores(request)).await {
            match answer? {
                ResponseBody::Looks(answers) => looks.extend(answers.into_iter().map(|look| (look.core, look))),
                ResponseBody::Holdings(held) => drop(holdings.insert(held.core, held)),
                ResponseBody::Without(known) => drop(without.insert(known.core, *known)),
                ResponseBody::MetadataRoom(room) => drop(rooms.insert(room.core, room)),
                _ => {}
            }
        }
        if let Some(room) = rooms.into_values().reduce(MetadataRoom::and) {
            return Ok(ResponseBody::MetadataRoom(room));
        }
        if let Some(known) = without.into_values().reduce(Without::and) {
            return Ok(ResponseBody::Without(Box::new(known)));
        }
        Ok(match holdings.into_values().reduce(Holdings::and) {
            Some(held) => ResponseBody::Holdings(held),
            None if looks.is_empty() => ResponseBody::Done,
            None => ResponseBody::Looks(looks.into_values().collect()),
        })
    }

    /// Has a tenant's shard opened on a node, where its lane is there.
    pub async fn open(&self, node: NodeId, shard: ShardId, open: OpenShard) -> Result<(), StoreError> {
        self.inner.ask_node(node, shard, RequestBody::Open(open)).await.map(|_| ())
    }

    /// What would be missing without a node. Errors: a node that does not answer, be it that one or a leader of shards.
    pub async fn holdings(&self, node: NodeId) -> Result<Holdings, StoreError> {
        let request = CoreRequest::Holdings(node);
        let (own, others) =
            futures::future::join(self.ask_whole_node(&request), join_all(self.inner.ask_other_nodes(&request))).await;
        let mut sum: Option<Holdings> = None;
        for answer in std::iter::once(own).chain(others) {
            match answer? {
                ResponseBody::Holdings(held) => sum = Some(sum.map_or(held, |sum| sum.and(held))),
                other => return Err(unfit(&other)),
            }
        }
        sum.ok_or_else(|| StoreError::Unavailable { reason: "no core answers; the node is stopping".to_owned() })
    }

    /// What each member knows of what would be if a node or a rack left now, or why it does not say. A release that does not know the
    /// question refuses it, and that is its answer.
    pub async fn without(&self, leaving: Leaving) -> Vec<(NodeId, Result<Without, StoreError>)> {
        let request = CoreRequest::Without(leaving);
        let others: Vec<NodeId> = self.inner.nodes.others().into_iter().map(|entry| entry.node).collect();
        let asked = join_all(self.inner.ask_other_nodes(&request));
        let (own, answers) = futures::future::join(self.ask_whole_node(&request), asked).await;
        let known = |answer: EngineResponse| match answer? {
            ResponseBody::Without(known) => Ok(*known),
            other => Err(unfit(&other)),
        };
        let nodes = std::iter::once(self.inner.nodes.own()).chain(others);
        nodes.zip(std::iter::once(own).chain(answers).map(known)).collect()
    }

    /// What the metadata directories of these nodes have room for; of those that do not answer soon, nothing.
    pub async fn metadata_rooms(&self, of: BTreeSet<NodeId>, note: impl Fn(NodeId, MetadataRoom)) {
        let (inner, note) = (&self.inner, &note);
        let (own, now) = (inner.nodes.own(), inner.ports.now());
        let knows = |node: NodeId| inner.nodes.spoken(node).is_some_and(|version| version >= wire::ROOM_VERSION);
        let of = of.into_iter().filter(|node| *node == own || (knows(*node) && !inner.nodes.is_silent(*node, now)));
        let ask = |node: NodeId| async move {
            let answer = match node == own {
                true => self.ask_whole_node(&CoreRequest::MetadataRoom).await,
                false => inner.ask_whole_other(node, CoreRequest::MetadataRoom).await,
            };
            match answer {
                Ok(ResponseBody::MetadataRoom(room)) => note(node, room),
                Ok(_) => {}
                Err(error) => debug!(%node, %error, "a node does not say what its metadata directories have room for"),
            }
        };
        join_all(of.map(ask)).await;
    }

    /// Has a node keep a replica of a shard; the voter that it is.
    pub async fn host(&self, node: NodeId, shard: ShardId) -> Result<VoterId, StoreError> {
        match self.inner.ask_node(node, shard, RequestBody::Core(CoreRequest::Host)).await? {
            ResponseBody::Hosted(voter) => Ok(voter),
            other => Err(unfit(&other)),
        }
    }
}

impl Inner {
    /// A request to a shard that may be led here.
    async fn ask_here(
        &self,
        shard: ShardId,
        asked: &mut Asked,
        repeat: Repeat,
        stamp: Option<RequestStamp>,
    ) -> Attempt {
        let body = match asked.take() {
            Ok(body) => body,
            Err(error) => return Attempt::Failed(error),
        };
        let copy = if repeat == Repeat::Never { None } else { copy_of(&body) };
        match (self.link.call(shard.lane(self.lane_count), EngineRequest { shard, body, stamp }).await, copy) {
            (Ok(Ok(ResponseBody::NotHere { leader, request: Some(request) })), _) => {
                *asked = Asked::Here(*request);
                Attempt::NotThere(leader)
            }
            (Ok(Err(error @ StoreError::Unsettled { .. })), Some(copy)) => {
                *asked = Asked::Here(copy);
                Attempt::Unanswered(error)
            }
            (Ok(answer), _) => Attempt::Answered(answer),
            (Err(error), _) => Attempt::Failed(StoreError::Unavailable { reason: error.to_string() }),
        }
    }

    /// The same on another node. To one that does not know what a request id is a change is sent without, once: it would be done
    /// twice there. One that was asked before is sent with its stamp, so that such a node refuses it.
    async fn ask_there(
        &self,
        node: NodeId,
        shard: ShardId,
        asked: &mut Asked,
        repeat: Repeat,
        stamp: Option<RequestStamp>,
        is_again: bool,
    ) -> Attempt {
        // One that is cut off takes seconds to be missed, and everything that waits for it would wait as long again.
        if self.nodes.is_silent(node, self.ports.now()) {
            return Attempt::NotThere(None);
        }
        let is_old = self.nodes.spoken(node).is_some_and(|version| version < wire::STAMPED_VERSION);
        let stamp = stamp.filter(|_| is_again || !is_old);
        let message = match asked.encode(shard, stamp) {
            Ok(message) => message,
            Err(error) => return Attempt::Failed(error),
        };
        let (within, may_repeat) = match repeat {
            Repeat::Freely => (READ_WITHIN, true),
            Repeat::Stamped if stamp.is_some() => (STAMPED_WITHIN, true),
            Repeat::Stamped | Repeat::Never => (CHANGE_WITHIN, false),
        };
        let answer = self.exchange(node, shard, message, within);
        let answer = match select(pin!(answer), pin!(self.nodes.until_silent(node, &self.ports))).await {
            Either::Left((answer, _)) => answer,
            Either::Right(_) => Err(PeerCallError::Unreachable { node, reason: "it has fallen silent".to_owned() }),
        };
        match answer {
            Ok(Ok(ResponseBody::NotHere { leader, .. })) => Attempt::NotThere(leader),
            Ok(Err(error @ StoreError::Unsettled { .. })) if may_repeat => Attempt::Unanswered(error),
            Ok(answer) => Attempt::Answered(answer),
            Err(PeerCallError::Refused { .. }) => {
                // One that has said more is stopping, or not yet up.
                if stamp.is_some() && self.nodes.spoken(node).is_none() {
                    self.nodes.speaks(node, wire::STAMPED_VERSION - 1); // until it says otherwise
                }
                Attempt::NotThere(None)
            }
            // Also what a replica names that has not heard yet that its leader is gone.
            Err(PeerCallError::NotSent { .. }) => Attempt::NotThere(None),
            Err(PeerCallError::TooLarge { what, .. }) => Attempt::Failed(StoreError::TooLarge { what }),
            Err(error) => {
                let reason = format!("{error}; whether the change was made is not known, ask again");
                match repeat {
                    Repeat::Freely => Attempt::NotThere(None),
                    _ if may_repeat => Attempt::Unanswered(StoreError::Unsettled { reason }),
                    _ => Attempt::Failed(StoreError::Unsettled { reason }),
                }
            }
        }
    }

    /// A request to one node, which nobody else can answer.
    async fn ask_node(&self, node: NodeId, shard: ShardId, body: RequestBody) -> EngineResponse {
        let unavailable = |reason: String| StoreError::Unavailable { reason };
        if node == self.nodes.own() {
            let answer = self.link.call(shard.lane(self.lane_count), EngineRequest { shard, body, stamp: None }).await;
            return answer.map_err(|error| unavailable(error.to_string()))?;
        }
        let message = wire::encode_request(&EngineRequest { shard, body, stamp: None });
        let message = message.map_err(|error| unavailable(error.to_string()))?;
        self.exchange(node, shard, message, CHANGE_WITHIN).await.map_err(|error| unavailable(error.to_string()))?
    }

    async fn exchange(
        &self,
        node: NodeId,
        shard: ShardId,
        message: Vec<u8>,
        within: Duration,
    ) -> Result<EngineResponse, PeerCallError> {
        let lanes = self.nodes.entry(node).map_or(1, |entry| entry.lanes.max(1));
        let to = PeerLane { node, lane: shard.lane(lanes) };
        let mut answer = self.peers.call(to, ServiceId::ENGINE, Parcel { message, bulk: Vec::new() }, within).await?;
        self.nodes.heard(node, self.ports.now());
        self.nodes.speaks(node, wire::spoken(&answer.message));
        let decoded = wire::decode_response(&answer.message);
        answer.message.zeroize(); // it may have held a key (I-K8)
        decoded.map_err(|error| PeerCallError::Unreachable { node, reason: format!("its answer is bad: {error}") })
    }

    /// A request to all cores of another node.
    async fn ask_whole_other(&self, node: NodeId, request: CoreRequest) -> EngineResponse {
        let unavailable = |reason: String| StoreError::Unavailable { reason };
        let body = RequestBody::Node(request);
        let message = wire::encode_request(&EngineRequest { shard: ShardId::CONTROL, body, stamp: None });
        let message = message.map_err(|error| unavailable(error.to_string()))?;
        let answer = self.exchange(node, ShardId::CONTROL, message, CORES_WITHIN).await;
        answer.map_err(|error| unavailable(error.to_string()))?
    }

    /// Asks the core of each lane of this node.
    fn ask_own_cores(&self, request: &CoreRequest) -> Vec<LocalBoxFuture<'static, EngineResponse>> {
        let ask = |lane| -> LocalBoxFuture<'static, EngineResponse> {
            let body = RequestBody::Core(request.clone());
            let asked = self.link.call(LaneId(lane), EngineRequest { shard: ShardId::CONTROL, body, stamp: None });
            Box::pin(async move {
                asked.await.unwrap_or_else(|error| Err(StoreError::Unavailable { reason: error.to_string() }))
            })
        };
        (0..self.lane_count).map(ask).collect()
    }

    /// Asks all cores of each other member.
    fn ask_other_nodes(self: &Rc<Self>, request: &CoreRequest) -> Vec<LocalBoxFuture<'static, EngineResponse>> {
        let ask = |entry: NodeEntry| -> LocalBoxFuture<'static, EngineResponse> {
            let (inner, request) = (self.clone(), request.clone());
            Box::pin(async move { inner.ask_whole_other(entry.node, request).await })
        };
        self.nodes.others().into_iter().map(ask).collect()
    }
}

/// Whoever answers something else than was asked runs another program.
fn unfit(_answer: &ResponseBody) -> StoreError {
    StoreError::Unavailable {
        reason: "the answer is none to the question: do all nodes run the same version?".to_owned(),
    }
}

#[cfg(test)]
mod tests;
