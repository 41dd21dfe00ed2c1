//! The replicas of one core as other nodes reach them: answers parcels of the Raft service.
//!
//! A node speaks for its own voters only, and is answered only by the replica that votes under the id that it asked
//! for: one that came back under a new id (I-L10) never answers for its old one.

use crate::error::RaftError;
use crate::group::ShardGroup;
use crate::messages::{Answer, Call, Question, SnapshotPiece, decode_calls, encode_answers};
use crate::network::SnapshotAnswer;
use crate::rest;
use crate::type_config::{Vote, VoterId, node_of};
use futures::channel::{mpsc, oneshot};
use futures::future::{Either, select};
use futures::stream::{FuturesUnordered, LocalBoxStream};
use futures::{SinkExt, StreamExt, stream};
use kiseki_types::peer::{Parcel, PeerHandler, PeerIdentity};
use kiseki_types::runtime::{Ports, RuntimeExt};
use kiseki_types::{NodeId, ShardId};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Snapshots that one core receives and installs at once; further ones are refused and come later.
pub const SNAPSHOTS_RECEIVED_MAX: usize = 4;

/// A snapshot of which no piece comes for so long is given up.
const PIECE_WAIT_MAX: Duration = Duration::from_secs(10);

/// A snapshot that is being received.
struct Receiving {
    from: NodeId,
    stream: u64,
    next: u32,
    frames: mpsc::Sender<Vec<u8>>,
    installed: oneshot::Receiver<Result<SnapshotAnswer, RaftError>>,
}

/// The replicas of one core. A clone is another handle.
#[derive(Clone)]
pub struct Replicas {
    inner: Rc<Inner>,
}

/// The replicas of a core by shard.
pub(crate) type ReplicaMap = RefCell<BTreeMap<ShardId, ShardGroup>>;

struct Inner {
    ports: Ports,
    groups: Rc<ReplicaMap>,
    receiving: RefCell<BTreeMap<ShardId, Receiving>>,
    /// A permit is held for each snapshot until it is installed or given up, whether pieces of it still come or not.
    installs: Arc<Semaphore>,
}

impl Replicas {
    /// None yet. Those that come rest when nobody uses them ([`crate::rest`]).
    #[must_use]
    pub fn new(ports: Ports) -> Replicas {
        let installs = Arc::new(Semaphore::new(SNAPSHOTS_RECEIVED_MAX));
        let groups = Rc::<ReplicaMap>::default();
        ports.spawn("raft-rest", Box::pin(rest::look_after(ports.clone(), Rc::downgrade(&groups))));
        let inner = Inner { ports, groups, receiving: RefCell::default(), installs };
        Replicas { inner: Rc::new(inner) }
    }

    /// Messages to this replica are answered from now on; the one that stood in its place is given back.
    pub fn join(&self, group: ShardGroup) -> Option<ShardGroup> {
        self.inner.groups.borrow_mut().insert(group.shard_id(), group)
    }

    /// Messages to the replica are answered no more.
    pub fn leave(&self, shard: ShardId) -> Option<ShardGroup> {
        self.inner.receiving.borrow_mut().remove(&shard);
        self.inner.groups.borrow_mut().remove(&shard)
    }

    /// The replica of `shard`.
    #[must_use]
    pub fn get(&self, shard: ShardId) -> Option<ShardGroup> {
        self.inner.groups.borrow().get(&shard).cloned()
    }

    /// Answers the parcels of the Raft service that come to this core, whichever of its lanes they name.
    #[must_use]
    pub fn handler(&self) -> PeerHandler {
        let replicas = self.clone();
        Rc::new(move |from, _lane, parcel| {
            let replicas = replicas.clone();
            Box::pin(async move { replicas.serve(from, parcel).await })
        })
    }

    async fn serve(&self, from: PeerIdentity, parcel: Parcel) -> Result<Parcel, String> {
        let PeerIdentity::Node(from) = from else {
            return Err("only nodes of the cluster take part in Raft".to_owned());
        };
        let (calls, within) = decode_calls(&parcel).map_err(|error| error.to_string())?;
        drop(parcel);
        let mut answers = vec![Answer::Late; calls.len()];
        let mut running: FuturesUnordered<_> = calls
            .into_iter()
            .enumerate()
            .map(|(number, call)| async move { (number, self.answer(from, call).await) })
            .collect();
        // One slow group must not hold back the answers of the others: what is not there in time is told as late.
        let mut deadline = self.inner.ports.sleep(within);
        loop {
            match select(running.next(), &mut deadline).await {
                Either::Left((Some((number, answer)), _)) => answers[number] = answer,
                Either::Left((None, _)) | Either::Right(_) => return Ok(encode_answers(&answers)),
            }
        }
    }

    async fn answer(&self, from: NodeId, call: Call) -> Answer {
        let (shard, to) = (call.shard, call.to);
        let Some(group) = self.get(shard).filter(|group| group.voter() == to) else { return Answer::NoReplica };
        let speaker = speaker_of(&call.question);
        if node_of(speaker) != from {
            return Answer::Refused(format!("{from} speaks for voter {speaker}, which is not its own"));
        }
        let answered = match call.question {
            Question::Append(request) => group.handle_append(request).await.map(Answer::Append),
            Question::Vote(request) => group.handle_vote(request).await.map(Answer::Election),
            Question::PreVote(request) => group.handle_pre_vote(request).await.map(Answer::Election),
            Question::Transfer(request) => group.handle_transfer(request).await.map(|()| Answer::TransferTaken),
            Question::Snapshot(piece) => self.take_piece(from, &group, piece).await,
            Question::Rest(request) => Ok(Answer::Rests(group.handle_rest(request))),
        };
        answered.unwrap_or_else(|error| Answer::Refused(error.to_string()))
    }

    /// Takes a piece of a snapshot; behind the last the snapshot is installed.
    async fn take_piece(&self, from: NodeId, group: &ShardGroup, piece: SnapshotPiece) -> Result<Answer, RaftError> {
        let shard = group.shard_id();
        let refused = |reason: &str| RaftError::Snapshot { shard, reason: reason.to_owned() };
        let SnapshotPiece { vote, stream, number, frame } = piece;
        if number == 0 {
            self.begin(from, group, vote, stream)?;
        }
        let mut receiving = {
            let mut all = self.inner.receiving.borrow_mut();
            let fits = |it: &Receiving| it.from == from && it.stream == stream && it.next == number;
            if !all.get(&shard).is_some_and(fits) {
                return Err(refused("a piece of it is missing"));
            }
            all.remove(&shard).ok_or_else(|| refused("a piece of it is missing"))?
        };
        let Some(frame) = frame else {
            drop(receiving.frames);
            return match receiving.installed.await {
                Ok(installed) => installed.map(Answer::Installed),
                Err(oneshot::Canceled) => Err(refused("the node is stopping")),
            };
        };
        if receiving.frames.send(frame).await.is_err() {
            // Whoever took the frames gave up, and says why.
            return match receiving.installed.await {
                Ok(Err(error)) => Err(error),
                Ok(Ok(_)) | Err(oneshot::Canceled) => Err(refused("it was given up")),
            };
        }
        receiving.next += 1;
        // A new stream may have begun meanwhile: then this one is over.
        self.inner.receiving.borrow_mut().entry(shard).or_insert(receiving);
        Ok(Answer::PieceTaken)
    }

    /// Begins to receive a snapshot; one that was on its way is given up.
    fn begin(&self, from: NodeId, group: &ShardGroup, vote: Vote, stream: u64) -> Result<(), RaftError> {
        let shard = group.shard_id();
        let mut all = self.inner.receiving.borrow_mut();
        // Without its frames the one before ends soon, and lets go of its permit.
        all.retain(|of, receiving| *of != shard && !receiving.frames.is_closed());
        let Ok(permit) = self.inner.installs.clone().try_acquire_owned() else {
            let reason = format!("{SNAPSHOTS_RECEIVED_MAX} are received or installed by this core already");
            return Err(RaftError::Snapshot { shard, reason });
        };
        let (frames, receiver) = mpsc::channel(1);
        let (told, installed) = oneshot::channel();
        let (group, frames_of) = (group.clone(), with_patience(self.inner.ports.clone(), receiver));
        self.inner.ports.spawn(
            "raft-snapshot",
            Box::pin(async move {
                let outcome = group.handle_snapshot(vote, frames_of).await;
                drop(permit); // before the sender hears of it, and sends the next one
                let _ = told.send(outcome); // it may have gone
            }),
        );
        all.insert(shard, Receiving { from, stream, next: 0, frames, installed });
        Ok(())
    }
}

/// The frames, which end when none comes for [`PIECE_WAIT_MAX`].
fn with_patience(ports: Ports, frames: mpsc::Receiver<Vec<u8>>) -> LocalBoxStream<'static, Vec<u8>> {
    let next = |(ports, mut frames): (Ports, mpsc::Receiver<Vec<u8>>)| async move {
        let frame = match select(frames.next(), pin!(ports.sleep(PIECE_WAIT_MAX))).await {
            Either::Left((frame, _)) => frame?,
            Either::Right(_) => return None,
        };
        Some((frame, (ports, frames)))
    };
    stream::unfold((ports, frames), next).boxed_local()
}

/// The voter in whose name a question is asked.
fn speaker_of(question: &Question) -> VoterId {
    match question {
        Question::Append(request) => request.vote.leader_id.voted_for,
        Question::Vote(request) | Question::PreVote(request) => request.vote.leader_id.voted_for,
        Question::Transfer(request) => request.from_leader().leader_id.voted_for,
        Question::Snapshot(piece) => piece.vote.leader_id.voted_for,
        Question::Rest(request) => request.vote.leader_id.voted_for,
    }
}
