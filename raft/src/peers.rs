//! Raft messages to other nodes: everything of a core's groups that is ready in one turn and goes to the same place
//! travels in one parcel, and the answers come back in one.
//!
//! - A call waits for the next turn of the executor, so that whatever else is ready joins it; heartbeats wait a little longer. What does not fit one
//!   parcel goes with the next; while as many parcels are under way as are allowed, calls gather.
//! - openraft has one append of a group to a peer under way at a time, so a group's appends stay in order.
//! - A call whose caller has gone (its time is over) is not sent any more.
//! - Elections don't wait for appends, nor snapshots for either: each kind has parcels of its own.

use crate::messages::{
    Answer, CALLS_PER_PARCEL_MAX, Call, MESSAGE_VERSION, Question, RESTS_SINCE_VERSION, SnapshotPiece, Weight,
    decode_answers, encode_calls, version_of_answers,
};
use crate::network::{
    AppendRequest, AppendResponse, ElectionRequest, ElectionResponse, PeerError, PeerLink, RestRequest, SnapshotAnswer,
    SnapshotFrames, TransferRequest,
};
use crate::type_config::{Vote, VoterId};
use futures::StreamExt;
use futures::channel::oneshot;
use kiseki_types::buf::BufferSource;
use kiseki_types::peer::{Parcel, PeerCallError, PeerCalls, PeerLane, ServiceId};
use kiseki_types::runtime::{LocalBoxFuture, Ports, RuntimeExt};
use kiseki_types::{NodeId, ShardId};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

/// Parcels of one kind to one place that are under way at once.
pub const PARCELS_IN_FLIGHT_MAX: usize = 8;

/// Calls to one place that wait for a parcel; one more is refused.
pub const CALLS_WAITING_MAX: usize = 8 * CALLS_PER_PARCEL_MAX;

/// Bytes of commands to one place that wait for a parcel; an append beyond them is refused.
pub const WAITING_LEN_BYTES_MAX: usize = 32 * 1024 * 1024;

/// A parcel takes no further call when it holds so many bytes of commands.
const PARCEL_LEN_BYTES: usize = 2 * 1024 * 1024;

/// Heartbeats wait so long for those of other groups, unless an append takes them along: groups that nobody uses cost a
/// few parcels in each heartbeat interval, however many they are. A lease counts from before the wait. A read for which a
/// majority must be asked waits too, since openraft asks by heartbeats: only a leader that is new, or that its followers
/// have not answered for most of an election timeout, asks. So does a follower's news that the last entry is committed.
const HEARTBEATS_WAIT: Duration = Duration::from_millis(40);

/// A frame of a snapshot is taken within this time, or the snapshot is given up and sent anew: with the voter that lacks
/// it a group may lack its majority.
const FRAME_WITHIN: Duration = Duration::from_secs(3);

/// A snapshot is installed within this time behind its last frame. One that takes longer is found installed next time.
const INSTALL_WITHIN: Duration = Duration::from_secs(10);

/// Time that a parcel may be on its way, beside the time for the answers.
const WAY_MAX: Duration = Duration::from_millis(500);

/// Where replicas live.
///
/// To be correct: it answers with a lane of the core that holds the replica which votes as `voter`; with the same lane
/// for all replicas of one core, so that their messages travel together. `None`: not known now, ask again later.
pub trait PeerDirectory {
    /// Where `voter`'s replica of `shard` is.
    fn locate(&self, voter: VoterId, shard: ShardId) -> Option<PeerLane>;
}

/// What travels together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Appends,
    Elections,
    Rests,
}

impl Kind {
    /// How long the other side may gather answers before it sends those that it has.
    fn answer_within(self) -> Duration {
        match self {
            Kind::Appends | Kind::Rests => Duration::from_millis(200),
            Kind::Elections => Duration::from_millis(1_000),
        }
    }
}

/// The Raft messages of one core to other nodes. A clone is another handle.
#[derive(Clone)]
pub struct RaftPeers {
    inner: Rc<Inner>,
}

struct Inner {
    ports: Ports,
    calls: Rc<dyn PeerCalls>,
    directory: Rc<dyn PeerDirectory>,
    buffers: BufferSource,
    queues: RefCell<BTreeMap<(PeerLane, Kind), Rc<Queue>>>,
    /// The newest version of messages that a node has shown to speak.
    versions: RefCell<BTreeMap<NodeId, u16>>,
    parcels: Cell<u64>,
    sent: Cell<u64>,
}

impl RaftPeers {
    /// The messages of the core whose ports are `ports`.
    #[must_use]
    pub fn new(
        ports: Ports,
        calls: Rc<dyn PeerCalls>,
        directory: Rc<dyn PeerDirectory>,
        buffers: BufferSource,
    ) -> RaftPeers {
        let (queues, versions) = (RefCell::default(), RefCell::default());
        let (parcels, sent) = (Cell::new(0), Cell::new(0));
        RaftPeers { inner: Rc::new(Inner { ports, calls, directory, buffers, queues, versions, parcels, sent }) }
    }

    /// Parcels sent so far.
    #[must_use]
    pub fn parcels(&self) -> u64 {
        self.inner.parcels.get()
    }

    /// Calls sent so far; the ratio to [`RaftPeers::parcels`] is what travels together.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.inner.sent.get()
    }

    /// Queues a call; the answer comes later.
    fn ask(
        &self,
        kind: Kind,
        to: VoterId,
        shard: ShardId,
        question: Question,
    ) -> LocalBoxFuture<'static, Result<Answer, PeerError>> {
        let inner = &self.inner;
        let Some(lane) = inner.directory.locate(to, shard) else {
            return Box::pin(async move { Err(PeerError::Unreachable { voter: to }) });
        };
        let queue =
            inner.queues.borrow_mut().entry((lane, kind)).or_insert_with(|| Rc::new(Queue::new(lane, kind))).clone();
        let answer = queue.push(inner, Call { shard, to, question });
        Box::pin(async move {
            match answer.await {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(error)) => Err(as_peer_error(to, error)),
                Err(oneshot::Canceled) => Err(PeerError::Unreachable { voter: to }),
            }
        })
    }
}

fn as_peer_error(voter: VoterId, error: PeerCallError) -> PeerError {
    match error {
        PeerCallError::NotSent { .. } | PeerCallError::Unreachable { .. } | PeerCallError::Deadline { .. } => {
            PeerError::Unreachable { voter }
        }
        other => PeerError::Refused { voter, reason: other.to_string() },
    }
}

/// An answer of a kind that was not asked for, or none.
fn unfit<T>(voter: VoterId, answer: Answer) -> Result<T, PeerError> {
    match answer {
        Answer::NoReplica => Err(PeerError::NoReplica { voter }),
        Answer::Late => Err(PeerError::Refused { voter, reason: "it is late with its answer".to_owned() }),
        Answer::Refused(reason) => Err(PeerError::Refused { voter, reason }),
        other => Err(PeerError::Refused { voter, reason: format!("it answers something else: {other:?}") }),
    }
}

struct Waiting {
    call: Call,
    weight: Weight,
    answer: oneshot::Sender<Result<Answer, PeerCallError>>,
}

/// Calls to one place that wait for a parcel.
struct Queue {
    lane: PeerLane,
    kind: Kind,
    waiting: RefCell<VecDeque<Waiting>>,
    waiting_len_bytes: Cell<usize>,
    /// Something waits that is not to wait for others.
    is_urgent: Cell<bool>,
    /// A task will gather a parcel.
    gathering: Cell<bool>,
    /// A task will look after the heartbeats that wait.
    later: Cell<bool>,
    in_flight: Cell<usize>,
}

impl Queue {
    fn new(lane: PeerLane, kind: Kind) -> Queue {
        Queue {
            lane,
            kind,
            waiting: RefCell::default(),
            waiting_len_bytes: Cell::new(0),
            is_urgent: Cell::new(false),
            gathering: Cell::new(false),
            later: Cell::new(false),
            in_flight: Cell::new(0),
        }
    }

    fn push(self: &Rc<Self>, inner: &Rc<Inner>, call: Call) -> oneshot::Receiver<Result<Answer, PeerCallError>> {
        let (sender, receiver) = oneshot::channel();
        let weight = Weight::of(&call);
        let len_bytes = self.waiting_len_bytes.get() + weight.bulk_len_bytes;
        let over = if !weight.fits() {
            Some("one Raft message is longer than a parcel")
        } else if self.waiting.borrow().len() >= CALLS_WAITING_MAX || len_bytes > WAITING_LEN_BYTES_MAX {
            Some("too many Raft messages wait for this node already")
        } else {
            None
        };
        if let Some(what) = over {
            let refused = PeerCallError::TooLarge { node: self.lane.node, what: what.to_owned() };
            let _ = sender.send(Err(refused)); // the receiver is here
            return receiver;
        }
        self.waiting_len_bytes.set(len_bytes);
        let is_heartbeat = matches!(&call.question, Question::Append(request) if request.entries.is_empty());
        self.waiting.borrow_mut().push_back(Waiting { call, weight, answer: sender });
        if is_heartbeat {
            self.gather_later(inner);
        } else {
            self.is_urgent.set(true);
            self.gather(inner);
        }
        receiver
    }

    /// Has a task gather what is ready by the next turn, and send it, if anything waits that must not.
    fn gather(self: &Rc<Self>, inner: &Rc<Inner>) {
        let busy = self.gathering.get() || self.in_flight.get() >= PARCELS_IN_FLIGHT_MAX;
        if busy || !self.is_urgent.get() {
            return;
        }
        self.gathering.set(true);
        let (queue, inner) = (self.clone(), inner.clone());
        inner.ports.clone().spawn(
            "raft-peers",
            Box::pin(async move {
                inner.ports.yield_now().await;
                let batch = queue.take_batch();
                queue.gathering.set(false);
                queue.is_urgent.set(!queue.waiting.borrow().is_empty()); // what did not fit
                queue.in_flight.set(queue.in_flight.get() + 1);
                queue.gather(&inner);
                queue.send(&inner, batch).await;
                queue.in_flight.set(queue.in_flight.get() - 1);
                queue.gather(&inner);
            }),
        );
    }

    /// Has heartbeats wait for others, or for an append that takes them along.
    fn gather_later(self: &Rc<Self>, inner: &Rc<Inner>) {
        if self.gathering.get() || self.later.replace(true) {
            return;
        }
        let (queue, inner) = (self.clone(), inner.clone());
        inner.ports.clone().spawn(
            "raft-peers",
            Box::pin(async move {
                inner.ports.sleep(HEARTBEATS_WAIT).await;
                queue.later.set(false);
                queue.is_urgent.set(!queue.waiting.borrow().is_empty());
                queue.gather(&inner);
            }),
        );
    }

    /// The calls of one parcel, in order, without those that nobody waits for any more.
    fn take_batch(&self) -> Vec<Waiting> {
        let mut waiting = self.waiting.borrow_mut();
        let mut batch: Vec<Waiting> = Vec::new();
        let mut total = Weight::default();
        while let Some(next) = waiting.front() {
            let with_next = total.plus(next.weight);
            let full = batch.len() >= CALLS_PER_PARCEL_MAX
                || !with_next.fits()
                || (with_next.bulk_len_bytes > PARCEL_LEN_BYTES && next.weight.bulk_len_bytes > 0);
            if full && !batch.is_empty() {
                break;
            }
            let Some(next) = waiting.pop_front() else { break };
            self.waiting_len_bytes.set(self.waiting_len_bytes.get() - next.weight.bulk_len_bytes);
            if !next.answer.is_canceled() {
                total = with_next;
                batch.push(next);
            }
        }
        batch
    }

    async fn send(&self, inner: &Inner, batch: Vec<Waiting>) {
        if batch.is_empty() {
            return;
        }
        let (calls, senders): (Vec<Call>, Vec<_>) = batch.into_iter().map(|one| (one.call, one.answer)).unzip();
        let answered = inner.exchange(self.lane, &calls, self.kind.answer_within()).await;
        match answered {
            Ok(answers) => {
                for (sender, answer) in senders.into_iter().zip(answers) {
                    let _ = sender.send(Ok(answer)); // whoever asked may have given up
                }
            }
            Err(error) => {
                for sender in senders {
                    let _ = sender.send(Err(error.clone())); // likewise
                }
            }
        }
    }
}

impl Inner {
    /// Sends one parcel and reads its answers.
    async fn exchange(
        &self,
        lane: PeerLane,
        calls: &[Call],
        answer_within: Duration,
    ) -> Result<Vec<Answer>, PeerCallError> {
        let node = lane.node;
        let parcel = encode_calls(calls, answer_within, &self.buffers)
            .map_err(|error| PeerCallError::TooLarge { node, what: error.to_string() })?;
        self.parcels.set(self.parcels.get() + 1);
        self.sent.set(self.sent.get() + calls.len() as u64);
        let deadline = answer_within + WAY_MAX;
        let answered = self.calls.call(lane, ServiceId::RAFT, parcel, deadline).await;
        if let Err(PeerCallError::Refused { .. }) = &answered {
            self.versions.borrow_mut().remove(&node); // another release may run there now
        }
        let answer: Parcel = answered?;
        if !self.speaks(node, MESSAGE_VERSION)
            && let Ok(version) = version_of_answers(&answer)
        {
            self.versions.borrow_mut().insert(node, version);
        }
        decode_answers(&answer, calls.len())
            .map_err(|error| PeerCallError::Refused { node, reason: format!("its answer is bad: {error}") })
    }

    /// Whether the node has shown that it understands messages of this version.
    fn speaks(&self, node: NodeId, version: u16) -> bool {
        self.versions.borrow().get(&node).is_some_and(|spoken| *spoken >= version)
    }

    /// Sends a snapshot piece by piece, each when the one before was taken.
    async fn send_snapshot(
        &self,
        to: VoterId,
        shard: ShardId,
        vote: Vote,
        mut frames: SnapshotFrames,
    ) -> Result<SnapshotAnswer, PeerError> {
        let lane = self.directory.locate(to, shard).ok_or(PeerError::Unreachable { voter: to })?;
        let stream = u64::from_le_bytes(self.ports.random());
        let mut number = 0;
        loop {
            let frame = frames.next().await;
            let is_last = frame.is_none();
            let piece = Question::Snapshot(SnapshotPiece { vote, stream, number, frame });
            let call = [Call { shard, to, question: piece }];
            let within = if is_last { INSTALL_WITHIN } else { FRAME_WITHIN };
            let mut answers = self.exchange(lane, &call, within).await.map_err(|error| as_peer_error(to, error))?;
            match answers.pop() {
                Some(Answer::PieceTaken) if !is_last => {}
                Some(Answer::Installed(answer)) if is_last => return Ok(answer),
                Some(other) => return unfit(to, other),
                None => return Err(PeerError::Unreachable { voter: to }),
            }
            number += 1;
        }
    }
}

impl PeerLink for RaftPeers {
    fn append(
        &self,
        to: VoterId,
        shard: ShardId,
        request: AppendRequest,
    ) -> LocalBoxFuture<'static, Result<AppendResponse, PeerError>> {
        let answer = self.ask(Kind::Appends, to, shard, Question::Append(request));
        Box::pin(async move {
            match answer.await? {
                Answer::Append(response) => Ok(response),
                other => unfit(to, other),
            }
        })
    }

    fn vote(
        &self,
        to: VoterId,
        shard: ShardId,
        request: ElectionRequest,
    ) -> LocalBoxFuture<'static, Result<ElectionResponse, PeerError>> {
        let answer = self.ask(Kind::Elections, to, shard, Question::Vote(request));
        Box::pin(async move { as_election(to, answer.await?) })
    }

    fn pre_vote(
        &self,
        to: VoterId,
        shard: ShardId,
        request: ElectionRequest,
    ) -> LocalBoxFuture<'static, Result<ElectionResponse, PeerError>> {
        let answer = self.ask(Kind::Elections, to, shard, Question::PreVote(request));
        Box::pin(async move { as_election(to, answer.await?) })
    }

    fn transfer(
        &self,
        to: VoterId,
        shard: ShardId,
        request: TransferRequest,
    ) -> LocalBoxFuture<'static, Result<(), PeerError>> {
        let answer = self.ask(Kind::Elections, to, shard, Question::Transfer(request));
        Box::pin(async move {
            match answer.await? {
                Answer::TransferTaken => Ok(()),
                other => unfit(to, other),
            }
        })
    }

    fn snapshot(
        &self,
        to: VoterId,
        shard: ShardId,
        vote: Vote,
        frames: SnapshotFrames,
    ) -> LocalBoxFuture<'static, Result<SnapshotAnswer, PeerError>> {
        let inner = self.inner.clone();
        Box::pin(async move { inner.send_snapshot(to, shard, vote, frames).await })
    }

    fn rest(
        &self,
        to: VoterId,
        shard: ShardId,
        request: RestRequest,
    ) -> LocalBoxFuture<'static, Result<bool, PeerError>> {
        let lane = self.inner.directory.locate(to, shard);
        if !lane.is_some_and(|lane| self.inner.speaks(lane.node, RESTS_SINCE_VERSION)) {
            return Box::pin(async move { Err(PeerError::Unreachable { voter: to }) });
        }
        let answer = self.ask(Kind::Rests, to, shard, Question::Rest(request));
        Box::pin(async move {
            match answer.await? {
                Answer::Rests(rests) => Ok(rests),
                other => unfit(to, other),
            }
        })
    }

    fn hurry(&self, to: VoterId, shard: ShardId) {
        let inner = &self.inner;
        let Some(lane) = inner.directory.locate(to, shard) else { return };
        let queue = inner.queues.borrow().get(&(lane, Kind::Appends)).cloned();
        if let Some(queue) = queue {
            queue.is_urgent.set(true);
            queue.gather(inner);
        }
    }
}

fn as_election(to: VoterId, answer: Answer) -> Result<ElectionResponse, PeerError> {
    match answer {
        Answer::Election(response) => Ok(response),
        other => unfit(to, other),
    }
}
