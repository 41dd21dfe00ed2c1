//! What a node asks that joins a cluster: the system's keys, and who the others are. Any running node answers, over a link on which
//! both have proved who they are; the control shard says whether the caller is invited. And what a node asks that was away: who
//! the others are by now; for that the control shard is not needed, which it may not reach before. Bytes: `docs/formats/join.md`.
//!
//! A number is good for one directory: once a node has started under it, it gets nothing here any more. A replica that lost its
//! vote must never vote under its old number (I-L10), so a node that lost its directory joins under a new one.

use crate::core_node::CoreNode;
use crate::executor::CoreShared;
use crate::key_store::KeyStore;
use crate::nodes_file::{NODES_LEN_BYTES_MAX, NodesFile};
use kiseki_engine::message::{ControlRequest, ControlResponse, NodeEntry, NodeState};
use kiseki_types::codec::{CodecError, Reader, Writer};
use kiseki_types::ids::NodeId;
use kiseki_types::peer::{Parcel, PeerHandler, PeerIdentity};
use std::rc::Rc;
use std::sync::Arc;
use zeroize::Zeroizing;

/// Version of question and answer. 1: the first one.
const VERSION: u16 = 1;

const WELCOME: u8 = 1;
const REFUSED: u8 = 2;
const NODES: u8 = 3;

/// Longest plain keys: as long as a key store can be.
const KEYS_LEN_BYTES_MAX: usize = 64 * 1024;

/// Longest reason.
const REASON_LEN_BYTES_MAX: usize = 4096;

/// The answer to a node that joins.
pub enum JoinAnswer {
    /// It may join.
    Welcome {
        /// The system's keys.
        keys: Box<KeyStore>,
        /// The cluster's nodes.
        nodes: NodesFile,
    },
    /// It may not, and asking again does not help.
    Refused(String),
    /// The cluster's nodes, as this one knows them.
    Nodes(NodesFile),
}

/// What is asked; who asks, its certificate says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JoinQuestion {
    /// To join.
    Join,
    /// Who the others are.
    Nodes,
}

impl JoinQuestion {
    /// As bytes.
    #[must_use]
    pub fn encode(self) -> Vec<u8> {
        let kind = match self {
            JoinQuestion::Join => WELCOME,
            JoinQuestion::Nodes => NODES,
        };
        let mut writer = Writer::new();
        writer.u16(VERSION).u8(kind);
        writer.finish()
    }

    /// From bytes; `None`: another release's.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<JoinQuestion> {
        [JoinQuestion::Join, JoinQuestion::Nodes].into_iter().find(|question| question.encode() == bytes)
    }
}

impl JoinAnswer {
    /// As bytes. They hold keys in clear: for a sealed link only (I-K8).
    #[must_use]
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut head = Writer::new();
        head.u16(VERSION);
        match self {
            JoinAnswer::Refused(reason) => {
                // A longer one would not be read.
                head.u8(REFUSED).str(&reason[..reason.floor_char_boundary(REASON_LEN_BYTES_MAX)]);
                Zeroizing::new(head.finish())
            }
            JoinAnswer::Nodes(nodes) => {
                head.u8(NODES).bytes(&nodes.text());
                Zeroizing::new(head.finish())
            }
            JoinAnswer::Welcome { keys, nodes } => {
                let (keys, nodes) = (keys.encode(), nodes.text());
                head.u8(WELCOME).bytes(&nodes).u32(u32::try_from(keys.len()).expect("a key store is small"));
                let head = head.finish();
                // Of final size: a growing one would leave copies of keys behind.
                let mut bytes = Zeroizing::new(Vec::with_capacity(head.len() + keys.len()));
                bytes.extend_from_slice(&head);
                bytes.extend_from_slice(&keys);
                bytes
            }
        }
    }

    /// From bytes.
    pub fn decode(bytes: &[u8]) -> Result<JoinAnswer, CodecError> {
        let mut reader = Reader::new("answer to a node that joins", bytes);
        match reader.u16()? {
            VERSION => {}
            version => return Err(reader.unknown(u64::from(version))),
        }
        let answer = match reader.u8()? {
            REFUSED => {
                let reason = reader.bytes(REASON_LEN_BYTES_MAX)?;
                JoinAnswer::Refused(String::from_utf8_lossy(reason).into_owned())
            }
            NODES => JoinAnswer::Nodes(read_nodes(&mut reader)?),
            WELCOME => {
                let nodes = read_nodes(&mut reader)?;
                let keys = Box::new(KeyStore::decode(reader.bytes(KEYS_LEN_BYTES_MAX)?)?);
                JoinAnswer::Welcome { keys, nodes }
            }
            kind => return Err(reader.unknown(u64::from(kind))),
        };
        reader.end()?;
        Ok(answer)
    }
}

fn read_nodes(reader: &mut Reader<'_>) -> Result<NodesFile, CodecError> {
    let nodes = reader.bytes(usize::try_from(NODES_LEN_BYTES_MAX).expect("it is a MiB"))?;
    NodesFile::parse(nodes).map_err(|_| reader.unknown(u64::from(NODES)))
}

/// Answers nodes that join. An error is for now only: the caller asks again, here or elsewhere.
#[must_use]
pub fn handler(shared: Arc<CoreShared>, node: Rc<CoreNode>) -> PeerHandler {
    Rc::new(move |caller, _, parcel: Parcel| {
        let (shared, node) = (shared.clone(), node.clone());
        Box::pin(async move {
            let PeerIdentity::Node(caller) = caller else { return Err("only nodes join".to_owned()) };
            let answer = match JoinQuestion::decode(&parcel.message) {
                Some(JoinQuestion::Join) => answer(&shared, &node, caller).await?,
                Some(JoinQuestion::Nodes) => JoinAnswer::Nodes(shared.neighbours.file(&shared)),
                None => return Err("another release asks in another way: join with the same release".to_owned()),
            };
            if let JoinAnswer::Welcome { .. } = answer {
                tracing::info!(node = caller.0, "a node that joins has been given the system's keys");
            }
            let mut message = answer.encode();
            Ok(Parcel { message: std::mem::take(&mut *message), bulk: Vec::new() })
        })
    })
}

async fn answer(shared: &CoreShared, node: &CoreNode, caller: NodeId) -> Result<JoinAnswer, String> {
    let calls = node.engine().calls();
    let (version, entries) = match calls.control(ControlRequest::Nodes).await {
        Ok(ControlResponse::Nodes(version, entries)) => (version, entries),
        Ok(_) => return Err("the control shard answers something else; that is our own fault".to_owned()),
        Err(error) => return Err(format!("the cluster can't be asked whether you are invited: {error}")),
    };
    if let Some(reason) = why_not(&entries, caller) {
        return Ok(JoinAnswer::Refused(reason));
    }
    let keys = Box::new(shared.keys.duplicate());
    Ok(JoinAnswer::Welcome { keys, nodes: NodesFile::of(shared.keys.cluster, calls.home_count(), version, &entries) })
}

/// Why a node gets no keys.
fn why_not(entries: &[NodeEntry], caller: NodeId) -> Option<String> {
    match entries.iter().find(|entry| entry.node == caller).map(|entry| entry.state) {
        Some(NodeState::Invited) => None,
        Some(NodeState::Active | NodeState::Draining) => Some(format!(
            "{caller} has joined already; a node that lost its directory joins under a new number: `kiseki node add`, and \
             `kiseki node remove {} --lost` for the one that is gone",
            caller.0
        )),
        Some(NodeState::Removed) => {
            Some(format!("{caller} was removed from the cluster; join under a new number: `kiseki node add`"))
        }
        None => Some(format!("{caller} is not invited; `kiseki node add` gives out a number and what belongs to it")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiseki_types::ids::ClusterId;

    fn entry(node: u64, state: NodeState) -> NodeEntry {
        NodeEntry { state, ..NodeEntry::invited(NodeId(node), 0) }
    }

    #[test]
    fn i_l10_a_number_is_good_for_one_directory() {
        let entries = [
            entry(1, NodeState::Active),
            entry(2, NodeState::Invited),
            entry(3, NodeState::Removed),
            entry(4, NodeState::Draining),
        ];
        assert_eq!(why_not(&entries, NodeId(2)), None);
        for (node, words) in [(1, "joined already"), (4, "new number"), (3, "removed"), (9, "not invited")] {
            let reason = why_not(&entries, NodeId(node)).unwrap_or_else(|| panic!("node {node} gets keys"));
            assert!(reason.contains(words), "{node}: {reason}");
        }
    }

    #[test]
    fn keys_and_nodes_arrive_as_they_were_sent() {
        let keys = KeyStore::generate(|bytes| getrandom::fill(bytes).unwrap());
        let plain = keys.encode();
        let nodes = NodesFile::of(ClusterId([7; 16]), 4, 9, &[entry(1, NodeState::Active)]);
        let bytes = JoinAnswer::Welcome { keys: Box::new(keys), nodes: nodes.clone() }.encode();
        let Ok(JoinAnswer::Welcome { keys: again, nodes: known }) = JoinAnswer::decode(&bytes) else {
            panic!("what was encoded is decoded")
        };
        assert!(*again.encode() == *plain && known == nodes);
        for end in 0..bytes.len() {
            assert!(JoinAnswer::decode(&bytes[..end]).is_err(), "cut at {end}");
        }
        let Ok(JoinAnswer::Nodes(again)) = JoinAnswer::decode(&JoinAnswer::Nodes(nodes.clone()).encode()) else {
            panic!("what was encoded is decoded")
        };
        assert_eq!(again, nodes);
        for question in [JoinQuestion::Join, JoinQuestion::Nodes] {
            assert_eq!(JoinQuestion::decode(&question.encode()), Some(question));
        }
        assert_eq!(JoinQuestion::decode(&[2, 0, 1]), None, "another version");
        let refused = JoinAnswer::Refused("no".to_owned()).encode();
        assert!(matches!(JoinAnswer::decode(&refused), Ok(JoinAnswer::Refused(reason)) if reason == "no"));
        let long = JoinAnswer::Refused("é".repeat(REASON_LEN_BYTES_MAX)).encode();
        assert!(
            matches!(JoinAnswer::decode(&long), Ok(JoinAnswer::Refused(reason)) if reason.len() == REASON_LEN_BYTES_MAX)
        );
        assert!(JoinAnswer::decode(&[9, 0, 1]).is_err(), "another version");
    }
}
