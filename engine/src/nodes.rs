//! The nodes of the cluster as one core knows them: what the control shard has recorded, and which of them answer.

use crate::message::{NodeEntry, NodeState};
use crate::racks::Racks;
use kiseki_types::ids::NodeId;
use kiseki_types::peer::{Parcel, PeerCallError, PeerCalls, PeerLane, ServiceId};
use kiseki_types::runtime::{Instant, LocalBoxFuture, Ports};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// A node that has not answered for so long is silent: it is not asked where an answer is waited for.
pub const NODE_SILENT_AFTER: Duration = Duration::from_secs(3);

/// A node that has been silent for so long counts as lost: everything is repaired without it. Before, it is awaited, since
/// most nodes that fall silent are only restarted.
pub const NODE_LOST_AFTER: Duration = Duration::from_secs(300);

/// So long after a start others are waited for before anything is concluded from their silence.
const START_GRACE: Duration = Duration::from_secs(10);

/// Whether a node answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It has answered a moment ago.
    Here,
    /// It is silent and most likely comes back.
    Awaited,
    /// It has been silent for too long.
    Lost,
}

/// One core's view of the nodes.
pub struct NodeBoard {
    own: NodeId,
    entries: RefCell<BTreeMap<NodeId, NodeEntry>>,
    /// What the entries say of racks.
    racks: RefCell<Racks>,
    /// Which change of the records these are.
    version: Cell<u64>,
    /// Whether records were taken up at all.
    is_known: Cell<bool>,
    /// Whether they came from the control shard since this start, and not from a file that may be old.
    is_recorded: Cell<bool>,
    heard: RefCell<BTreeMap<NodeId, Instant>>,
    /// Which version of messages each node said last that it speaks.
    spoken: RefCell<BTreeMap<NodeId, u16>>,
    /// Since when a node is waited for that has never answered.
    waited: RefCell<BTreeMap<NodeId, Instant>>,
    /// How often a node was heard again after a silence.
    returns: Cell<u64>,
}

impl NodeBoard {
    /// `own` alone, nothing recorded yet.
    #[must_use]
    pub fn new(own: NodeId) -> Rc<NodeBoard> {
        Rc::new(NodeBoard {
            own,
            entries: RefCell::default(),
            racks: RefCell::default(),
            version: Cell::new(0),
            is_known: Cell::new(false),
            is_recorded: Cell::new(false),
            heard: RefCell::default(),
            spoken: RefCell::default(),
            waited: RefCell::default(),
            returns: Cell::new(0),
        })
    }

    /// This node.
    #[must_use]
    pub fn own(&self) -> NodeId {
        self.own
    }

    /// Which change of the records this core knows.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version.get()
    }

    /// Takes up what is recorded; what is older than what is known is passed over. Whether anything was taken up.
    pub fn take_up(&self, version: u64, entries: &[NodeEntry]) -> bool {
        if version < self.version.get() {
            return false;
        }
        self.version.set(version);
        self.is_known.set(true);
        self.entries.replace(entries.iter().map(|entry| (entry.node, entry.clone())).collect());
        self.racks.replace(Racks::of(entries.iter().map(|entry| (entry.node, entry.rack.as_str()))));
        true
    }

    /// The same with what the control shard says.
    pub fn take_up_recorded(&self, version: u64, entries: &[NodeEntry]) {
        self.take_up(version, entries);
        self.is_recorded.set(true);
    }

    /// Whether a node is none of the cluster's: it was removed, or nobody invited it. A node whose list may be old turns only
    /// those away that were removed; they stay so.
    #[must_use]
    pub fn is_stranger(&self, node: NodeId) -> bool {
        match self.entries.borrow().get(&node) {
            Some(entry) => entry.state == NodeState::Removed,
            None => self.is_recorded.get(),
        }
    }

    /// Whether this core has taken up what is recorded, were it nothing. Before, it does not know whether it is alone.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.is_known.get()
    }

    /// All nodes that are recorded, in the order of their numbers.
    #[must_use]
    pub fn entries(&self) -> Vec<NodeEntry> {
        self.entries.borrow().values().cloned().collect()
    }

    /// What is recorded of a node.
    #[must_use]
    pub fn entry(&self, node: NodeId) -> Option<NodeEntry> {
        self.entries.borrow().get(&node).cloned()
    }

    /// Which nodes fail together.
    #[must_use]
    pub fn racks(&self) -> Racks {
        self.racks.borrow().clone()
    }

    /// The other nodes that are members: they may hold replicas and fragments.
    #[must_use]
    pub fn others(&self) -> Vec<NodeEntry> {
        let entries = self.entries.borrow();
        entries.values().filter(|entry| entry.node != self.own && entry.state.is_member()).cloned().collect()
    }

    /// The other members and how many lanes each has.
    #[must_use]
    pub fn members(&self) -> Vec<(NodeId, u16)> {
        let entries = self.entries.borrow();
        let others = entries.values().filter(|entry| entry.node != self.own && entry.state.is_member());
        others.map(|entry| (entry.node, entry.lanes.max(1))).collect()
    }

    /// How many lanes a member has.
    #[must_use]
    pub fn lanes_of(&self, node: NodeId) -> Option<u16> {
        let entries = self.entries.borrow();
        entries.get(&node).filter(|entry| entry.state.is_member()).map(|entry| entry.lanes.max(1))
    }

    /// Whether what a node holds is to move to others.
    #[must_use]
    pub fn is_draining(&self, node: NodeId) -> bool {
        self.entries.borrow().get(&node).is_some_and(|entry| entry.state == NodeState::Draining)
    }

    /// Whether there is no other member.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        !self.entries.borrow().values().any(|entry| entry.node != self.own && entry.state.is_member())
    }

    /// A node has answered.
    pub fn heard(&self, node: NodeId, at: Instant) {
        let before = self.heard.borrow_mut().insert(node, at).or(self.waited.borrow().get(&node).copied());
        if before.is_some_and(|before| at.since(before) >= NODE_SILENT_AFTER) {
            self.returns.set(self.returns.get() + 1);
        }
    }

    /// A node speaks this version of messages.
    pub fn speaks(&self, node: NodeId, version: u16) {
        self.spoken.borrow_mut().insert(node, version);
    }

    /// Which version of messages a node speaks, if it has said so.
    #[must_use]
    pub fn spoken(&self, node: NodeId) -> Option<u16> {
        self.spoken.borrow().get(&node).copied()
    }

    /// The other members that do not speak a version of messages or have not said so, and answer.
    #[must_use]
    pub fn unheard_of(&self, version: u16, now: Instant) -> Vec<NodeId> {
        let others = self.others().into_iter().map(|entry| entry.node);
        others.filter(|node| !self.does_speak(*node, version) && !self.is_silent(*node, now)).collect()
    }

    fn does_speak(&self, node: NodeId, version: u16) -> bool {
        self.spoken(node).is_some_and(|spoken| spoken >= version)
    }

    /// Another member that does not speak a version of messages, or has not said so since this node started.
    #[must_use]
    pub fn lacking(&self, version: u16) -> Option<NodeId> {
        self.others().into_iter().map(|entry| entry.node).find(|node| !self.does_speak(*node, version))
    }

    /// Another member that is known not to speak a version of messages.
    #[must_use]
    pub fn known_to_lack(&self, version: u16) -> Option<NodeId> {
        let mut others = self.others().into_iter().map(|entry| entry.node);
        others.find(|node| self.spoken(*node).is_some_and(|spoken| spoken < version))
    }

    /// How often a node was heard again after a silence: others have led its shards meanwhile.
    #[must_use]
    pub fn returns(&self) -> u64 {
        self.returns.get()
    }

    /// The same where nodes are in racks: while one is away a stripe may be laid so that it needs a rack, which is looked for
    /// when it is back. Without racks nothing of that kind is acknowledged.
    #[must_use]
    pub fn returns_that_matter(&self) -> u64 {
        if self.racks.borrow().are_named() { self.returns() } else { 0 }
    }

    /// Whether a node answers; this one does.
    #[must_use]
    pub fn standing(&self, node: NodeId, now: Instant) -> Standing {
        if node == self.own {
            return Standing::Here;
        }
        let heard = self.last_heard(node);
        let silent = now.since(heard.unwrap_or_else(|| self.waited_since(node, now)));
        match heard {
            Some(_) if silent < NODE_SILENT_AFTER => Standing::Here,
            _ if silent < NODE_LOST_AFTER => Standing::Awaited,
            _ => Standing::Lost,
        }
    }

    /// Whether a node that has answered before does not any more.
    #[must_use]
    pub fn is_silent(&self, node: NodeId, now: Instant) -> bool {
        self.last_heard(node).is_some_and(|heard| now.since(heard) >= NODE_SILENT_AFTER)
    }

    /// Waits until that is so.
    pub async fn until_silent(&self, node: NodeId, ports: &Ports) {
        while !self.is_silent(node, ports.now()) {
            let heard = self.last_heard(node).unwrap_or_else(|| ports.now());
            ports.sleep_until(heard + NODE_SILENT_AFTER).await;
        }
    }

    fn waited_since(&self, node: NodeId, now: Instant) -> Instant {
        *self.waited.borrow_mut().entry(node).or_insert(now)
    }

    /// The members that are awaited.
    #[must_use]
    pub fn awaited(&self, now: Instant) -> Vec<NodeId> {
        let others = self.entries.borrow();
        let members = others.values().filter(|entry| entry.state.is_member()).map(|entry| entry.node);
        members.filter(|node| self.standing(*node, now) == Standing::Awaited).collect()
    }

    /// The members that are awaited and have not answered since this core started: what they have is not known.
    #[must_use]
    pub fn never_heard(&self, now: Instant) -> Vec<NodeId> {
        let mut awaited = self.awaited(now);
        awaited.retain(|node| self.last_heard(*node).is_none());
        awaited
    }

    /// Whether every member has answered since this core started, or has had the time to: before, silence says nothing.
    #[must_use]
    pub fn has_settled(&self, now: Instant) -> bool {
        let is_due = |node: &NodeId| now.since(self.waited_since(*node, now)) >= START_GRACE;
        self.never_heard(now).iter().all(is_due)
    }

    /// When a node answered last; `None`: not since this core started.
    #[must_use]
    pub fn last_heard(&self, node: NodeId) -> Option<Instant> {
        self.heard.borrow().get(&node).copied()
    }
}

/// For a node that has no others to call.
pub struct NobodyElse;

impl PeerCalls for NobodyElse {
    fn call(
        &self,
        to: PeerLane,
        _service: ServiceId,
        _parcel: Parcel,
        _deadline: Duration,
    ) -> LocalBoxFuture<'static, Result<Parcel, PeerCallError>> {
        let reason = "this node is not connected to others".to_owned();
        Box::pin(async move { Err(PeerCallError::NotSent { node: to.node, reason }) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::NodeState;

    fn at(seconds: u64) -> Instant {
        Instant(seconds * 1_000_000_000)
    }

    fn entry(node: u64, state: NodeState) -> NodeEntry {
        NodeEntry { state, lanes: 2, cores: 1, ..NodeEntry::invited(NodeId(node), 0) }
    }

    #[test]
    fn a_silent_node_is_awaited_then_lost_and_its_return_is_counted() {
        let board = NodeBoard::new(NodeId(1));
        let entries = [entry(1, NodeState::Active), entry(2, NodeState::Active), entry(3, NodeState::Removed)];
        assert!(!board.is_known());
        assert!(board.take_up(1, &entries) && board.is_known() && !board.is_alone());
        assert_eq!(board.standing(NodeId(1), at(900)), Standing::Here, "this node");
        assert_eq!((board.never_heard(at(0)), board.has_settled(at(0))), (vec![NodeId(2)], false));
        assert!(board.has_settled(at(10)), "its time to answer is over");
        board.heard(NodeId(2), at(11));
        assert_eq!(board.returns(), 1, "it was away when this core started");
        assert!(board.never_heard(at(400)).is_empty() && board.has_settled(at(11)));
        for (seconds, standing) in [
            (11, Standing::Here),
            (13, Standing::Here),
            (14, Standing::Awaited),
            (310, Standing::Awaited),
            (311, Standing::Lost),
        ] {
            assert_eq!(board.standing(NodeId(2), at(seconds)), standing, "after {seconds} s");
        }
        assert_eq!((board.awaited(at(20)), board.awaited(at(311))), (vec![NodeId(2)], Vec::new()));
        board.heard(NodeId(2), at(320));
        board.heard(NodeId(2), at(321));
        assert_eq!((board.returns(), board.standing(NodeId(2), at(322))), (2, Standing::Here));
    }
}
