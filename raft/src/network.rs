//! How replicas of a shard reach each other: the port that a cluster's transport implements, and links between
//! replicas of one process.

use crate::append_stream::{Sent, appends};
use crate::group::ShardGroup;
use crate::shard_machine::SmSnapshot;
use crate::snapshot::{SnapshotData, SnapshotSeals, SnapshotSender};
use crate::times::{RaftStep, RaftTimes};
use crate::type_config::{LogId, TypeConfig, Vote, VoterId};
use futures::channel::mpsc;
use futures::future::{Either, select};
use futures::stream::{LocalBoxStream, Stream};
use futures::{SinkExt, StreamExt};
use kiseki_types::ShardId;
use kiseki_types::runtime::{LocalBoxFuture, Ports, RuntimeExt};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse,
};
use openraft::raft::{VoteRequest, VoteResponse};
use openraft::{EmptyNode, OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

/// An append to a peer.
pub type AppendRequest = AppendEntriesRequest<TypeConfig>;
/// Its answer.
pub type AppendResponse = AppendEntriesResponse<TypeConfig>;
/// A request for a vote.
pub type ElectionRequest = VoteRequest<TypeConfig>;
/// Its answer.
pub type ElectionResponse = VoteResponse<TypeConfig>;
/// The answer to a snapshot.
pub type SnapshotAnswer = SnapshotResponse<TypeConfig>;

/// A leader gives its leadership away.
pub type TransferRequest = TransferLeaderRequest<TypeConfig>;

/// Frames of a snapshot on their way, a few at a time.
pub type SnapshotFrames = mpsc::Receiver<Vec<u8>>;

/// Frames of a snapshot that may wait in memory.
const FRAMES_IN_FLIGHT: usize = 4;

/// A snapshot that makes no progress for so long is given up; it may take much longer in all.
const SNAPSHOT_STALL_MAX: Duration = Duration::from_secs(30);

/// Why a peer has not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// It can't be reached now; ask again later.
    #[error("voter {voter} can't be reached")]
    Unreachable {
        /// The peer.
        voter: VoterId,
    },
    /// No replica there votes under that id.
    #[error("there is no voter {voter} where it should be")]
    NoReplica {
        /// The peer.
        voter: VoterId,
    },
    /// It answered with an error.
    #[error("voter {voter} refuses: {reason}")]
    Refused {
        /// The peer.
        voter: VoterId,
        /// Why.
        reason: String,
    },
}

/// Raft messages to other voters of a shard.
///
/// To be correct: messages may be lost or delayed; they are delivered at most once, unchanged, to the replica of
/// `shard` on the node that votes as `to`, and answers belong to their questions. The caller applies timeouts.
pub trait PeerLink {
    /// Entries, or a heartbeat.
    fn append(
        &self,
        to: VoterId,
        shard: ShardId,
        request: AppendRequest,
    ) -> LocalBoxFuture<'static, Result<AppendResponse, PeerError>>;
    /// An election.
    fn vote(
        &self,
        to: VoterId,
        shard: ShardId,
        request: ElectionRequest,
    ) -> LocalBoxFuture<'static, Result<ElectionResponse, PeerError>>;
    /// Whether an election would be won.
    fn pre_vote(
        &self,
        to: VoterId,
        shard: ShardId,
        request: ElectionRequest,
    ) -> LocalBoxFuture<'static, Result<ElectionResponse, PeerError>>;
    /// The leader gives its leadership away; ends when the peer has heard it.
    fn transfer(
        &self,
        to: VoterId,
        shard: ShardId,
        request: TransferRequest,
    ) -> LocalBoxFuture<'static, Result<(), PeerError>>;
    /// A snapshot; ends when the peer has installed or refused it.
    fn snapshot(
        &self,
        to: VoterId,
        shard: ShardId,
        vote: Vote,
        frames: SnapshotFrames,
    ) -> LocalBoxFuture<'static, Result<SnapshotAnswer, PeerError>>;
    /// Asks a peer to rest, and tells it that the leader rests or is about to: see [`crate::rest`]. Whether it does.
    fn rest(
        &self,
        to: VoterId,
        _shard: ShardId,
        _request: RestRequest,
    ) -> LocalBoxFuture<'static, Result<bool, PeerError>> {
        Box::pin(async move { Err(PeerError::Unreachable { voter: to }) })
    }
    /// What waits for company on the way to the peer leaves now.
    fn hurry(&self, _to: VoterId, _shard: ShardId) {}
}

/// A leader asks its peers to rest with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestRequest {
    /// The leader's vote.
    pub vote: Vote,
    /// Its last entry: committed, and all that there is.
    pub last: LogId,
}

/// The link of a node without peers.
pub struct NoPeers;

impl PeerLink for NoPeers {
    fn append(
        &self,
        to: VoterId,
        _shard: ShardId,
        _request: AppendRequest,
    ) -> LocalBoxFuture<'static, Result<AppendResponse, PeerError>> {
        Box::pin(async move { Err(PeerError::Unreachable { voter: to }) })
    }
    fn vote(
        &self,
        to: VoterId,
        _shard: ShardId,
        _request: ElectionRequest,
    ) -> LocalBoxFuture<'static, Result<ElectionResponse, PeerError>> {
        Box::pin(async move { Err(PeerError::Unreachable { voter: to }) })
    }
    fn pre_vote(
        &self,
        to: VoterId,
        shard: ShardId,
        request: ElectionRequest,
    ) -> LocalBoxFuture<'static, Result<ElectionResponse, PeerError>> {
        self.vote(to, shard, request)
    }
    fn transfer(
        &self,
        to: VoterId,
        _shard: ShardId,
        _request: TransferRequest,
    ) -> LocalBoxFuture<'static, Result<(), PeerError>> {
        Box::pin(async move { Err(PeerError::Unreachable { voter: to }) })
    }
    fn snapshot(
        &self,
        to: VoterId,
        _shard: ShardId,
        _vote: Vote,
        _frames: SnapshotFrames,
    ) -> LocalBoxFuture<'static, Result<SnapshotAnswer, PeerError>> {
        Box::pin(async move { Err(PeerError::Unreachable { voter: to }) })
    }
}

/// Makes openraft's clients for the peers of one group.
#[derive(Clone)]
pub struct PeerNetwork {
    /// Ports of the core.
    pub ports: Ports,
    /// The shard.
    pub shard: ShardId,
    /// Who carries the messages.
    pub link: Rc<dyn PeerLink>,
    /// How files travel in a snapshot.
    pub seals: SnapshotSeals,
    /// Snapshots that peers have taken.
    pub snapshots_sent: Rc<Cell<u64>>,
    /// How long appends took.
    pub times: Rc<RaftTimes>,
    /// So many wait for a majority to answer a heartbeat.
    pub hurries: Rc<Cell<u32>>,
}

/// openraft's client for one peer.
pub struct PeerClient {
    network: PeerNetwork,
    target: VoterId,
}

impl RaftNetworkFactory<TypeConfig> for PeerNetwork {
    type Network = PeerClient;

    async fn new_client(&mut self, target: VoterId, _node: &EmptyNode) -> PeerClient {
        PeerClient { network: self.clone(), target }
    }
}

fn as_rpc_error(error: &PeerError) -> RPCError<TypeConfig> {
    match error {
        PeerError::Unreachable { .. } | PeerError::NoReplica { .. } => RPCError::Unreachable(Unreachable::new(error)),
        PeerError::Refused { .. } => RPCError::Network(NetworkError::new(error)),
    }
}

/// Answers to appends, in the order of these.
type AppendAnswers<'s> = LocalBoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>;

impl PeerClient {
    /// Sends one append. Whoever waits for a heartbeat of the group does not wait for others' as well.
    pub(crate) async fn append(
        &self,
        request: AppendRequest,
        within: Duration,
    ) -> Result<AppendResponse, RPCError<TypeConfig>> {
        let network = &self.network;
        let (sent, has_entries, since) = (Sent::of(&request), !request.entries.is_empty(), network.ports.now());
        let call = network.link.append(self.target, network.shard, request);
        if network.hurries.get() > 0 {
            network.link.hurry(self.target, network.shard);
        }
        let response = self.within(within, call).await?;
        if has_entries {
            network.times.ended(RaftStep::Replicate, since, &network.ports);
        }
        if sent.explains(&response) {
            return Ok(response);
        }
        let reason = format!("its answer {response} does not fit what was sent");
        let refused = PeerError::Refused { voter: self.target, reason };
        Err(RPCError::Network(NetworkError::new(&refused)))
    }

    async fn within<T>(
        &self,
        span: Duration,
        call: LocalBoxFuture<'static, Result<T, PeerError>>,
    ) -> Result<T, RPCError<TypeConfig>> {
        match select(call, self.network.ports.sleep(span)).await {
            Either::Left((answer, _)) => answer.map_err(|error| as_rpc_error(&error)),
            Either::Right(_) => Err(as_rpc_error(&PeerError::Unreachable { voter: self.target })),
        }
    }

    async fn send_snapshot(
        &self,
        vote: Vote,
        snapshot: SmSnapshot,
    ) -> Result<SnapshotAnswer, StreamingError<TypeConfig>> {
        let network = &self.network;
        let broken = |reason: String| StreamingError::from(RPCError::Network(NetworkError::from_string(reason)));
        let SnapshotData::Local(tables) = &snapshot.snapshot else {
            return Err(broken("a received snapshot is not sent on".to_owned()));
        };
        let (mut frames, receiver) = mpsc::channel(FRAMES_IN_FLIGHT);
        let answer = network.link.snapshot(self.target, network.shard, vote, receiver);
        let sending = async {
            let mut sender = SnapshotSender::start(&network.ports, network.shard, tables, network.seals.clone())
                .await
                .map_err(|error| error.to_string())?;
            while let Some(frame) = sender.next_frame().await.map_err(|error| error.to_string())? {
                let stalled = network.ports.sleep(SNAPSHOT_STALL_MAX);
                match select(pin!(frames.send(frame)), stalled).await {
                    Either::Left((Ok(()), _)) => {}
                    Either::Left((Err(_), _)) => return Ok(()), // the peer's answer says why
                    Either::Right(_) => return Err("the peer takes no more of the snapshot".to_owned()),
                }
            }
            drop(frames);
            Ok(())
        };
        match select(pin!(sending), answer).await {
            Either::Left((Err(reason), _)) => Err(broken(reason)),
            Either::Left((Ok(()), answer)) => {
                self.within(SNAPSHOT_STALL_MAX, answer).await.map_err(StreamingError::from)
            }
            Either::Right((answer, _)) => answer.map_err(|error| as_rpc_error(&error).into()),
        }
    }
}

impl RaftNetworkV2<TypeConfig> for PeerClient {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        request: AppendRequest,
        option: RPCOption,
    ) -> Result<AppendResponse, RPCError<TypeConfig>> {
        self.append(request, option.hard_ttl()).await
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> LocalBoxFuture<'s, Result<AppendAnswers<'s>, RPCError<TypeConfig>>>
    where
        S: Stream<Item = AppendRequest> + OptionalSend + Unpin + 'static,
    {
        let answers = appends(self, input, option.hard_ttl());
        Box::pin(async move { Ok(answers) })
    }

    async fn vote(
        &mut self,
        request: ElectionRequest,
        option: RPCOption,
    ) -> Result<ElectionResponse, RPCError<TypeConfig>> {
        let call = self.network.link.vote(self.target, self.network.shard, request);
        self.within(option.hard_ttl(), call).await
    }

    async fn pre_vote(
        &mut self,
        request: ElectionRequest,
        option: RPCOption,
    ) -> Result<ElectionResponse, RPCError<TypeConfig>> {
        let call = self.network.link.pre_vote(self.target, self.network.shard, request);
        self.within(option.hard_ttl(), call).await
    }

    async fn transfer_leader(
        &mut self,
        request: TransferRequest,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let call = self.network.link.transfer(self.target, self.network.shard, request);
        self.within(option.hard_ttl(), call).await.map(Ok)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SmSnapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotAnswer, StreamingError<TypeConfig>> {
        match select(pin!(self.send_snapshot(vote, snapshot)), pin!(cancel)).await {
            Either::Left((answer, _)) => {
                let sent = &self.network.snapshots_sent;
                sent.set(sent.get() + u64::from(answer.is_ok()));
                answer
            }
            Either::Right((closed, _)) => Err(StreamingError::Closed(closed)),
        }
    }
}

/// Links between replicas of one process: each voter is a node of its own, which can be cut off.
#[derive(Default)]
pub struct ProcessLinks {
    groups: RefCell<BTreeMap<(VoterId, ShardId), ShardGroup>>,
    cut_off: RefCell<BTreeSet<VoterId>>,
}

impl ProcessLinks {
    /// No node yet.
    #[must_use]
    pub fn new() -> Rc<ProcessLinks> {
        Rc::new(ProcessLinks::default())
    }

    /// Messages to this replica are delivered from now on.
    pub fn join(&self, voter: VoterId, group: ShardGroup) {
        self.groups.borrow_mut().insert((voter, group.shard_id()), group);
    }

    /// The node is gone; the replicas are given back.
    pub fn leave(&self, voter: VoterId) -> Vec<ShardGroup> {
        let mut groups = self.groups.borrow_mut();
        let keys: Vec<_> = groups.keys().filter(|(of, _)| *of == voter).copied().collect();
        keys.into_iter().filter_map(|key| groups.remove(&key)).collect()
    }

    /// Nothing reaches or leaves the node any more.
    pub fn cut_off(&self, voter: VoterId) {
        self.cut_off.borrow_mut().insert(voter);
    }

    /// The node is back.
    pub fn heal(&self, voter: VoterId) {
        self.cut_off.borrow_mut().remove(&voter);
    }

    /// The link that the node of `from` sends on.
    #[must_use]
    pub fn link(self: &Rc<Self>, from: VoterId) -> Rc<dyn PeerLink> {
        Rc::new(ProcessLink { links: self.clone(), from })
    }

    fn reach(&self, from: VoterId, to: VoterId, shard: ShardId) -> Result<ShardGroup, PeerError> {
        let cut_off = self.cut_off.borrow();
        let groups = self.groups.borrow();
        match groups.get(&(to, shard)) {
            Some(group) if !cut_off.contains(&from) && !cut_off.contains(&to) => Ok(group.clone()),
            _ => Err(PeerError::Unreachable { voter: to }),
        }
    }
}

struct ProcessLink {
    links: Rc<ProcessLinks>,
    from: VoterId,
}

impl ProcessLink {
    /// Calls the peer; an answer of a node that was cut off meanwhile is lost.
    fn call<T: 'static, F, A>(
        &self,
        to: VoterId,
        shard: ShardId,
        ask: F,
    ) -> LocalBoxFuture<'static, Result<T, PeerError>>
    where
        F: FnOnce(ShardGroup) -> A + 'static,
        A: Future<Output = Result<T, crate::error::RaftError>> + 'static,
    {
        let (links, from) = (self.links.clone(), self.from);
        Box::pin(async move {
            let group = links.reach(from, to, shard)?;
            let answer = ask(group).await;
            links.reach(from, to, shard)?;
            answer.map_err(|error| PeerError::Refused { voter: to, reason: error.to_string() })
        })
    }
}

impl PeerLink for ProcessLink {
    fn append(
        &self,
        to: VoterId,
        shard: ShardId,
        request: AppendRequest,
    ) -> LocalBoxFuture<'static, Result<AppendResponse, PeerError>> {
        self.call(to, shard, |group| async move { group.handle_append(request).await })
    }
    fn vote(
        &self,
        to: VoterId,
        shard: ShardId,
        request: ElectionRequest,
    ) -> LocalBoxFuture<'static, Result<ElectionResponse, PeerError>> {
        self.call(to, shard, |group| async move { group.handle_vote(request).await })
    }
    fn pre_vote(
        &self,
        to: VoterId,
        shard: ShardId,
        request: ElectionRequest,
    ) -> LocalBoxFuture<'static, Result<ElectionResponse, PeerError>> {
        self.call(to, shard, |group| async move { group.handle_pre_vote(request).await })
    }
    fn transfer(
        &self,
        to: VoterId,
        shard: ShardId,
        request: TransferRequest,
    ) -> LocalBoxFuture<'static, Result<(), PeerError>> {
        self.call(to, shard, |group| async move { group.handle_transfer(request).await })
    }
    fn snapshot(
        &self,
        to: VoterId,
        shard: ShardId,
        vote: Vote,
        frames: SnapshotFrames,
    ) -> LocalBoxFuture<'static, Result<SnapshotAnswer, PeerError>> {
        let frames = frames.boxed_local();
        self.call(to, shard, move |group| async move { group.handle_snapshot(vote, frames).await })
    }
    fn rest(
        &self,
        to: VoterId,
        shard: ShardId,
        request: RestRequest,
    ) -> LocalBoxFuture<'static, Result<bool, PeerError>> {
        self.call(to, shard, move |group| async move { Ok(group.handle_rest(request)) })
    }
}
