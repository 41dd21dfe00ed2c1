//! One call to the fragments of another node.

use crate::wire::{FragmentCall, FragmentReply, decode_fragment_reply, encode_fragment_call};
use kiseki_types::buf::{BufferSource, IoBuf, IoBytes};
use kiseki_types::ids::{LaneId, NodeId};
use kiseki_types::peer::{Parcel, PeerCallError, PeerCalls, PeerLane, ServiceId};
use std::rc::Rc;
use std::time::Duration;

/// Why there is no answer.
pub enum CallFailure {
    /// Nothing was done, and nothing will be.
    NotDone(String),
    /// Its node is silent, so it was not asked: nothing was done, and what the node has is not known.
    Silent(String),
    /// It may have been done, or be done later.
    Unanswered(String),
}

impl CallFailure {
    pub fn reason(&self) -> &str {
        let (CallFailure::NotDone(reason) | CallFailure::Silent(reason) | CallFailure::Unanswered(reason)) = self;
        reason
    }
}

/// The way to the fragments of other nodes.
pub struct Remote {
    peers: Rc<dyn PeerCalls>,
}

impl Remote {
    pub fn new(peers: Rc<dyn PeerCalls>) -> Remote {
        Remote { peers }
    }

    pub async fn call(
        &self,
        node: NodeId,
        lane: LaneId,
        call: &FragmentCall,
        bulk: Vec<IoBuf>,
        deadline: Duration,
    ) -> Result<(FragmentReply, Vec<IoBuf>), CallFailure> {
        let message = encode_fragment_call(call).map_err(|error| CallFailure::NotDone(error.to_string()))?;
        let parcel = Parcel { message, bulk };
        let answer = self.peers.call(PeerLane { node, lane }, ServiceId::FRAGMENTS, parcel, deadline).await;
        let answer = answer.map_err(|error| match error {
            PeerCallError::Refused { .. } | PeerCallError::TooLarge { .. } => CallFailure::NotDone(error.to_string()),
            _ => CallFailure::Unanswered(error.to_string()),
        })?;
        let reply = decode_fragment_reply(&answer.message);
        let reply = reply.map_err(|error| CallFailure::Unanswered(format!("{node}: {error}")))?;
        Ok((reply, answer.bulk))
    }
}

/// A payload in one buffer for the link. This is the one copy on its way: the parts are shared with the writer, which may
/// have to put them elsewhere, while a parcel owns what it carries.
pub fn gathered(buffers: &BufferSource, payload: &[IoBytes]) -> IoBuf {
    let mut whole = buffers(payload.iter().map(|part| part.len()).sum());
    let mut at = 0;
    for part in payload {
        whole[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    whole
}
