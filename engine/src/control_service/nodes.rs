//! Records of nodes: numbers given out, where nodes are, what they are to the cluster; told to every core of every node.

use super::{ControlService, read_be};
use crate::api::StoreError;
use crate::control_rows::{
    NODE_ADDRESS_LEN_BYTES_MAX, NODE_ADDRESSES_MAX, NODE_VERSION_LEN_BYTES_MAX, NODES, NODES_MAX, decode_node,
    encode_node,
};
use crate::delta::RowChange;
use crate::latch::Hold;
use crate::leader::{CommitError, Draft, row_damaged};
use crate::message::{NodeEntry, NodeState};
use crate::racks::{RACK_NAMES, is_rack_name};
use crate::wire::RACK_VERSION;
use kiseki_types::ids::{NodeId, RequestId};
use tracing::{debug, info};

/// Every change of a node's record holds this latch: cores hear of changes in the order in which they are made.
const NODE_CHANGES: &[u8] = b"node changes";

/// The counter that numbers changes of the records.
const VERSION_COUNTER: &str = "node changes";

/// The counter of nodes' numbers.
const NODE_COUNTER: &str = "node";

/// The node that formed the cluster: nobody invited it.
const FORMING_NODE: NodeId = NodeId(1);

/// All records, and which change of them this is.
type Entries = (u64, Vec<NodeEntry>);

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Presence {
    /// Where its links are.
    pub(super) addresses: Vec<String>,
    /// Its lanes.
    pub(super) lanes: u16,
    /// Its cores.
    pub(super) cores: u16,
    /// The version of its program.
    pub(super) version: String,
    /// Its rack; empty: none.
    pub(super) rack: String,
}

impl ControlService {
    /// All records, in the order of the nodes' numbers.
    pub(super) async fn node_entries(&self) -> Result<Entries, StoreError> {
        let version = self.next_number(VERSION_COUNTER, 1).await?;
        let mut entries = Vec::new();
        for (key, value) in self.leader.rows(NODES, &[], NODES_MAX).await? {
            entries.push(decode_node(NodeId(read_be(&key)?), &value).map_err(row_damaged)?);
        }
        Ok((version, entries))
    }

    /// Gives out the next number.
    pub(super) async fn invite_node(&self, request: Option<RequestId>) -> Result<NodeEntry, StoreError> {
        self.change_nodes(request, async |draft, entries, now| {
            draft.rows.extend(make_room(entries)?);
            let node = NodeId(self.count(draft, NODE_COUNTER, 1, FORMING_NODE.0 + 1).await?);
            Ok(NodeEntry::invited(node, now))
        })
        .await
    }

    /// A node joins, or is back. The first rack is taken up when every node knows what racks are: one that does not could not
    /// read the record. Until then a record names none, which the node sees in the answer, and says it again.
    pub(super) async fn node_here(&self, node: NodeId, here: Presence) -> Result<NodeEntry, StoreError> {
        check(&here)?;
        let takes_first = !here.rack.is_empty() && self.all_know_racks().await?;
        self.change_nodes(None, async |_, entries, now| {
            let takes_racks = takes_first || entries.iter().any(|entry| !entry.rack.is_empty());
            let after = after_presence(entries, node, &here, now)?;
            let rack = if takes_racks { after.rack } else { String::new() };
            Ok(NodeEntry { rack, ..after })
        })
        .await
    }

    /// Whether every member knows racks. A member says what it speaks when it is asked something, and this core may never have
    /// asked it anything: so it is told of the nodes.
    async fn all_know_racks(&self) -> Result<bool, StoreError> {
        if self.calls.lacking(RACK_VERSION).is_some() {
            let (version, entries) = self.node_entries().await?;
            if entries.iter().any(|entry| !entry.rack.is_empty()) {
                return Ok(true); // it was found out before
            }
            self.calls.tell_nodes_everywhere(version, &entries).await;
        }
        let lacking = self.calls.lacking(RACK_VERSION);
        if let Some(node) = lacking {
            debug!(%node, "no rack is recorded: a node does not know racks, or does not answer");
        }
        Ok(lacking.is_none())
    }

    /// Changes what a node is to the cluster.
    pub(super) async fn set_node_state(
        &self,
        request: Option<RequestId>,
        node: NodeId,
        state: NodeState,
    ) -> Result<NodeEntry, StoreError> {
        self.change_nodes(request, async |_, entries, now| after_order(entries, node, state, now)).await
    }

    /// Changes or makes a record as `change` says. Answered when the change is committed and every core that can be reached
    /// acts on it.
    async fn change_nodes(
        &self,
        request: Option<RequestId>,
        change: impl AsyncFn(&mut Draft, &[NodeEntry], u64) -> Result<NodeEntry, StoreError>,
    ) -> Result<NodeEntry, StoreError> {
        let _guard = self.leader.latches.hold(NODE_CHANGES.to_vec(), Hold::Exclusive).await;
        let now = self.leader.ports().unix_time_ms();
        let (before, after) = self
            .decide(async |term| {
                let (_, entries) = self.node_entries().await?;
                let mut draft = Draft::default();
                let after = change(&mut draft, &entries, now).await?;
                let before = entry_of(&entries, after.node).cloned();
                if before.as_ref() != Some(&after) {
                    self.count(&mut draft, VERSION_COUNTER, 1, 1).await?;
                    draft.rows.push(RowChange::put(NODES, after.node.0.to_be_bytes().to_vec(), encode_node(&after)));
                    (draft.request, draft.answer) = (request, after.node.0.to_be_bytes().to_vec());
                    self.leader.commit(term, draft).await?;
                }
                Ok::<_, CommitError>((before, after))
            })
            .await?;
        if before.as_ref() != Some(&after) {
            log(before.as_ref(), &after);
            let (version, entries) = self.node_entries().await?;
            self.calls.tell_nodes_everywhere(version, &entries).await;
        }
        Ok(after)
    }
}

fn entry_of(entries: &[NodeEntry], node: NodeId) -> Option<&NodeEntry> {
    entries.iter().find(|entry| entry.node == node)
}

/// Lets the record of the node go that was removed first, when there are as many as there may be (I-O5). Who is not recorded
/// is refused as who was removed is.
fn make_room(entries: &[NodeEntry]) -> Result<Option<RowChange>, StoreError> {
    if entries.len() < NODES_MAX {
        return Ok(None);
    }
    let removed = entries.iter().filter(|entry| entry.state == NodeState::Removed && entry.node != FORMING_NODE);
    match removed.min_by_key(|entry| entry.since_unix_ms) {
        Some(oldest) => Ok(Some(RowChange::remove(NODES, oldest.node.0.to_be_bytes().to_vec()))),
        None => {
            Err(invalid(format!("the cluster has {NODES_MAX} nodes already; remove one that is invited or drained")))
        }
    }
}

/// Refuses what a record does not hold.
fn check(here: &Presence) -> Result<(), StoreError> {
    let fits = |text: &String, limit: usize| !text.is_empty() && text.len() <= limit;
    if here.addresses.len() > NODE_ADDRESSES_MAX
        || !here.addresses.iter().all(|address| fits(address, NODE_ADDRESS_LEN_BYTES_MAX))
    {
        return Err(invalid(format!(
            "a node has at most {NODE_ADDRESSES_MAX} addresses of 1 to {NODE_ADDRESS_LEN_BYTES_MAX} bytes"
        )));
    }
    if !fits(&here.version, NODE_VERSION_LEN_BYTES_MAX) {
        return Err(invalid(format!("a version has 1 to {NODE_VERSION_LEN_BYTES_MAX} bytes")));
    }
    if !here.rack.is_empty() && !is_rack_name(&here.rack) {
        return Err(invalid(RACK_NAMES.to_owned()));
    }
    if here.lanes == 0 || here.cores == 0 {
        return Err(invalid("a node has at least one lane and one core".to_owned()));
    }
    Ok(())
}

/// The record of a node that says where it is.
fn after_presence(
    entries: &[NodeEntry],
    node: NodeId,
    here: &Presence,
    now_unix_ms: u64,
) -> Result<NodeEntry, StoreError> {
    let mut entry = match entry_of(entries, node) {
        Some(entry) => entry.clone(),
        None if node == FORMING_NODE => NodeEntry::invited(node, now_unix_ms),
        None => {
            return Err(invalid(format!("{node} was never invited to this cluster; invite a node and join as that")));
        }
    };
    match entry.state {
        NodeState::Invited => (entry.state, entry.since_unix_ms) = (NodeState::Active, now_unix_ms),
        NodeState::Active | NodeState::Draining if entry.lanes != here.lanes => {
            return Err(invalid(format!(
                "{node} has {} lanes in the cluster's records and comes with {}; the lanes of a node never change: \
                 start it on the metadata that it joined with, or join as a new node",
                entry.lanes, here.lanes
            )));
        }
        NodeState::Active | NodeState::Draining => {}
        NodeState::Removed => {
            return Err(invalid(format!(
                "{node} was removed from this cluster for good; invite it and join as a new node"
            )));
        }
    }
    let Presence { addresses, lanes, cores, version, rack } = here.clone();
    Ok(NodeEntry { addresses, lanes, cores, version, rack, ..entry })
}

/// The record of a node that an operator gives another state.
fn after_order(
    entries: &[NodeEntry],
    node: NodeId,
    state: NodeState,
    now_unix_ms: u64,
) -> Result<NodeEntry, StoreError> {
    let Some(entry) = entry_of(entries, node) else {
        return Err(StoreError::NotFound { what: format!("a record of {node}") });
    };
    if entry.state == state {
        return Ok(entry.clone());
    }
    let is_other = |other: &&NodeEntry| other.node != node;
    let has_other_active = entries.iter().filter(is_other).any(|other| other.state == NodeState::Active);
    let refused = match (entry.state, state) {
        (NodeState::Draining, NodeState::Active) | (NodeState::Invited, NodeState::Removed) => None,
        (NodeState::Active, NodeState::Draining) | (NodeState::Draining, NodeState::Removed) if has_other_active => {
            None
        }
        (NodeState::Active, NodeState::Draining) | (NodeState::Draining, NodeState::Removed) => {
            Some("no other node is active, so nothing could take what it holds; add a node first")
        }
        (NodeState::Active, NodeState::Removed) => Some("it is active; drain it first"),
        (NodeState::Removed, _) => Some("it was removed for good; invite it as a new node"),
        (NodeState::Invited, _) => Some("it has not joined yet; start it with its invitation"),
        (_, _) => Some("only a number that was never used is invited"),
    };
    match refused {
        Some(reason) => Err(invalid(format!("{node} can't become {}: {reason}", state.name()))),
        None => Ok(NodeEntry { state, since_unix_ms: now_unix_ms, ..entry.clone() }),
    }
}

fn invalid(what: String) -> StoreError {
    StoreError::Invalid { what }
}

/// One event for each change of a state.
fn log(before: Option<&NodeEntry>, after: &NodeEntry) {
    if before.map(|entry| entry.state) != Some(after.state) {
        let (node, to) = (after.node, after.state.name());
        let from = before.map_or("new", |entry| entry.state.name());
        info!(%node, from, to, "node state changed");
    }
    if before.is_some_and(|before| before.rack != after.rack) {
        info!(node = %after.node, rack = after.rack, "a node is in another rack");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(node: u64, state: NodeState) -> NodeEntry {
        let lanes = if state == NodeState::Invited { 0 } else { 4 };
        NodeEntry { state, lanes, ..NodeEntry::invited(NodeId(node), 10) }
    }

    fn here(lanes: u16) -> Presence {
        Presence { addresses: vec!["a:1".to_owned()], lanes, cores: 2, version: "1".to_owned(), rack: "a".to_owned() }
    }

    #[test]
    fn who_was_not_invited_or_was_removed_does_not_join() {
        use NodeState::{Active, Draining, Invited, Removed};
        for (before, node, lanes, expected) in [
            (None, 1, 4, Some((Active, 99))),
            (None, 2, 4, None),
            (Some(entry(2, Invited)), 2, 8, Some((Active, 99))),
            (Some(entry(2, Active)), 2, 4, Some((Active, 10))),
            (Some(entry(2, Active)), 2, 8, None),
            (Some(entry(2, Draining)), 2, 4, Some((Draining, 10))),
            (Some(entry(2, Removed)), 2, 4, None),
        ] {
            let after = after_presence(before.as_slice(), NodeId(node), &here(lanes), 99);
            let state = after.as_ref().ok().map(|entry| (entry.state, entry.since_unix_ms));
            assert_eq!(state, expected, "{before:?} {node} {lanes}");
            if let Ok(after) = after {
                assert_eq!((after.lanes, after.cores, after.addresses), (lanes, 2, vec!["a:1".to_owned()]));
            }
        }
    }

    #[test]
    fn a_node_leaves_when_it_was_drained_and_never_the_last() {
        use NodeState::{Active, Draining, Invited, Removed};
        for (other, before, to, allowed) in [
            (Active, Active, Draining, true),
            (Active, Active, Active, true),
            (Active, Draining, Active, true),
            (Active, Draining, Removed, true),
            (Active, Invited, Removed, true),
            (Active, Active, Removed, false),
            (Active, Active, Invited, false),
            (Active, Draining, Invited, false),
            (Active, Invited, Active, false),
            (Active, Invited, Draining, false),
            (Active, Removed, Active, false),
            (Active, Removed, Draining, false),
            (Draining, Active, Draining, false),
            (Invited, Active, Draining, false),
            (Removed, Draining, Removed, false),
            (Draining, Draining, Active, true),
        ] {
            let entries = [entry(1, other), entry(2, before)];
            let after = after_order(&entries, NodeId(2), to, 99);
            assert_eq!(after.is_ok(), allowed, "{before:?} to {to:?} beside {other:?}: {after:?}");
            assert!(after.is_err() || after.as_ref().is_ok_and(|entry| entry.state == to));
        }
        assert!(after_order(&[], NodeId(2), Removed, 99).is_err(), "never heard of");
    }

    #[test]
    fn i_o5_records_are_bounded_and_those_removed_first_go_first() {
        let mut entries: Vec<NodeEntry> = (1..NODES_MAX as u64).map(|node| entry(node, NodeState::Active)).collect();
        assert_eq!(make_room(&entries).ok(), Some(None));
        entries.push(entry(5_000, NodeState::Active));
        assert!(make_room(&entries).is_err());
        entries[7].state = NodeState::Removed;
        entries[9].state = NodeState::Removed;
        entries[9].since_unix_ms = 5;
        let gone = RowChange::remove(NODES, entries[9].node.0.to_be_bytes().to_vec());
        assert_eq!(make_room(&entries).ok(), Some(Some(gone)));
    }

    #[test]
    fn a_node_says_no_more_than_a_record_holds() {
        assert!(check(&here(4)).is_ok());
        assert!(check(&here(0)).is_err());
        let addresses = vec!["a:1".to_owned(); NODE_ADDRESSES_MAX + 1];
        assert!(check(&Presence { addresses, ..here(4) }).is_err());
        for address in [String::new(), "a".repeat(NODE_ADDRESS_LEN_BYTES_MAX + 1)] {
            assert!(check(&Presence { addresses: vec![address], ..here(4) }).is_err());
        }
        let version = "1".repeat(NODE_VERSION_LEN_BYTES_MAX + 1);
        assert!(check(&Presence { version, ..here(4) }).is_err());
        for (rack, fits) in
            [("", true), ("row-3.rack_12", true), ("a b", false), ("é", false), (&"r".repeat(64), false)]
        {
            assert_eq!(check(&Presence { rack: rack.to_owned(), ..here(4) }).is_ok(), fits, "{rack:?}");
        }
    }
}
