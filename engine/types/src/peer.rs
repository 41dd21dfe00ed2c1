//! Calls between nodes: what the carrier implements and every room that talks to another node uses.
//!
//! A parcel is a message, encoded by the room that sends it, and bulk bytes beside it that are never copied into the message:
//! they leave from the buffers that hold them and arrive in aligned buffers that can go to a device as they are.

use crate::buf::IoBuf;
use crate::ids::{LaneId, NodeId};
use crate::runtime::LocalBoxFuture;
use std::rc::Rc;
use std::time::Duration;
use thiserror::Error;

/// Longest message of a parcel, without its bulk bytes (I-O5).
pub const MESSAGE_LEN_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Most bulk buffers of a parcel.
pub const BULK_BUFFERS_MAX: usize = 32;

/// Most bulk bytes of a parcel, all buffers together: an envelope and the headers of its fragments fit.
pub const BULK_LEN_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Which room's messages a parcel holds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ServiceId(pub u16);

impl ServiceId {
    /// Raft messages between replicas of shards.
    pub const RAFT: ServiceId = ServiceId(1);
    /// Administration: what `kiseki` asks a node.
    pub const ADMIN: ServiceId = ServiceId(2);
    /// Requests to shards and cores.
    pub const ENGINE: ServiceId = ServiceId(3);
    /// Fragments on a node's devices.
    pub const FRAGMENTS: ServiceId = ServiceId(4);
    /// What a node asks that joins.
    pub const JOIN: ServiceId = ServiceId(5);
}

/// A message and the bulk bytes that belong to it.
#[derive(Default)]
pub struct Parcel {
    /// The encoded message, at most [`MESSAGE_LEN_BYTES_MAX`].
    pub message: Vec<u8>,
    /// Bulk bytes, within [`BULK_BUFFERS_MAX`] and [`BULK_LEN_BYTES_MAX`].
    pub bulk: Vec<IoBuf>,
}

/// Who is called: whatever holds a lane of a node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PeerLane {
    /// The node.
    pub node: NodeId,
    /// One of its lanes.
    pub lane: LaneId,
}

/// Why a call to another node has no answer. But for `Refused` and `TooLarge`, whether the other side acted on it is unknown.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PeerCallError {
    /// There is no connection and none can be made now: nothing was sent.
    #[error("{node} can't be reached: {reason}")]
    NotSent {
        /// The node.
        node: NodeId,
        /// What happened.
        reason: String,
    },
    /// The connection broke before the answer came: whether anything happened there is not known.
    #[error("{node} can't be reached: {reason}")]
    Unreachable {
        /// The node.
        node: NodeId,
        /// What happened.
        reason: String,
    },
    /// No answer within the deadline.
    #[error("{node} has not answered within {} ms", waited.as_millis())]
    Deadline {
        /// The node.
        node: NodeId,
        /// How long the caller waited.
        waited: Duration,
    },
    /// The node does not serve this to this caller; nothing happened there.
    #[error("{node} refuses: {reason}")]
    Refused {
        /// The node.
        node: NodeId,
        /// Why.
        reason: String,
    },
    /// The parcel is over a limit; it was not sent.
    #[error("a parcel for {node} is over a limit: {what}")]
    TooLarge {
        /// The node.
        node: NodeId,
        /// Which limit.
        what: String,
    },
}

/// Carries parcels to other nodes.
///
/// To be correct: a parcel is delivered at most once, unchanged, to the node that proved to be `to.node`; the answer belongs to
/// its question; calls and bytes in flight are bounded, a caller over the bound waits, and the wait counts towards `deadline`.
/// A caller that goes away does not stop what the other side does.
pub trait PeerCalls {
    /// Sends a parcel and waits for the answer.
    fn call(
        &self,
        to: PeerLane,
        service: ServiceId,
        parcel: Parcel,
        deadline: Duration,
    ) -> LocalBoxFuture<'static, Result<Parcel, PeerCallError>>;
}

/// Who sent a parcel, as its certificate proved.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum PeerIdentity {
    /// A node of this cluster.
    Node(NodeId),
    /// An administrator.
    Admin,
}

/// Answers the parcels of one service on one core. `Err` is told to the caller as [`PeerCallError::Refused`].
pub type PeerHandler = Rc<dyn Fn(PeerIdentity, LaneId, Parcel) -> LocalBoxFuture<'static, Result<Parcel, String>>>;
