//! What an operator asks of the cluster's nodes: a number for a new one, who they are, that one is emptied or removed. Answered on
//! core 0.

use crate::admin::{AdminRequest, AdminResponse, NodeChange};
use crate::admin_store::not_done;
use crate::cluster::own_addresses;
use crate::core_node::CoreNode;
use crate::executor::CoreShared;
use crate::health;
use crate::join::{Invitation, Seed};
use crate::nodes_file::NodeRow;
use crate::outcome::{NodeError, Outcome};
use kiseki_engine::holdings::Holdings;
use kiseki_engine::message::{ControlRequest, ControlResponse, NodeEntry, NodeState};
use kiseki_engine::without::Leaving;
use kiseki_types::ids::NodeId;
use std::rc::Rc;
use std::sync::Arc;

/// The answering part.
pub struct NodeAdmin {
    shared: Arc<CoreShared>,
    node: Rc<CoreNode>,
}

fn refused(message: String) -> NodeError {
    NodeError { message, outcome: Outcome::Refused }
}

impl NodeAdmin {
    /// For core 0.
    #[must_use]
    pub fn new(shared: Arc<CoreShared>, node: Rc<CoreNode>) -> Rc<NodeAdmin> {
        Rc::new(NodeAdmin { shared, node })
    }

    /// Whether a request is one of these.
    #[must_use]
    pub fn answers(request: &AdminRequest) -> bool {
        matches!(
            request,
            AdminRequest::Health { .. }
                | AdminRequest::NodeInvite
                | AdminRequest::NodeList
                | AdminRequest::NodeSet { .. }
        )
    }

    /// Answers it.
    pub async fn answer(&self, request: AdminRequest) -> AdminResponse {
        let answer = match request {
            AdminRequest::Health { node, rack } => {
                let node = Leaving::Node(node.map_or(self.shared.membership.own, NodeId));
                let about = rack.map_or(node, Leaving::Rack);
                let now = self.node.engine().core().ports.now();
                Ok(AdminResponse::Health(health::look(&self.shared, &self.node, about, now).await))
            }
            AdminRequest::NodeInvite => self.invite().await.map(|it| AdminResponse::Invited(Box::new(it))),
            AdminRequest::NodeList => {
                let rows = self.entries().await.map(|entries| entries.iter().map(NodeRow::from).collect());
                rows.map(|nodes| AdminResponse::Nodes { nodes })
            }
            AdminRequest::NodeSet { node, change } => {
                self.set(NodeId(node), change).await.map(|entry| AdminResponse::Node(NodeRow::from(&entry)))
            }
            other => Err(refused(format!("{other:?} is answered elsewhere"))),
        };
        answer.unwrap_or_else(AdminResponse::not_done)
    }

    async fn control(&self, request: ControlRequest) -> Result<ControlResponse, NodeError> {
        self.node.engine().calls().control(request).await.map_err(|error| not_done(&error))
    }

    async fn entries(&self) -> Result<Vec<NodeEntry>, NodeError> {
        match self.control(ControlRequest::Nodes).await? {
            ControlResponse::Nodes(_, entries) => Ok(entries),
            _ => unreachable!("the control shard answers each request in kind"),
        }
    }

    async fn invite(&self) -> Result<Invitation, NodeError> {
        if self.shared.peer.is_none() {
            return Err(refused(
                "no other node could reach this one: set `listen` in [peer] of its kiseki.toml and restart it (`kiseki status` \
                 says whether the port is open)"
                    .to_owned(),
            ));
        }
        let own = own_addresses(&self.shared);
        if own.is_empty() {
            return Err(refused(
                "this node listens at any address, so nobody knows where to call it: set `addresses = [\"HOST:PORT\"]` in [peer] of \
                 its kiseki.toml and restart it"
                    .to_owned(),
            ));
        }
        let entries = self.entries().await?;
        let seeds = seeds(self.shared.membership.own, &own, &entries);
        match self.control(ControlRequest::InviteNode).await? {
            ControlResponse::Node(entry) => {
                Ok(Invitation { cluster: self.shared.keys.cluster.to_string(), node: entry.node.0, seeds })
            }
            _ => unreachable!("the control shard answers each request in kind"),
        }
    }

    async fn set(&self, node: NodeId, change: NodeChange) -> Result<NodeEntry, NodeError> {
        let entries = self.entries().await?;
        let state = entries.iter().find(|entry| entry.node == node).map(|entry| entry.state);
        let next = next_state(node, state, change).map_err(refused)?;
        if state == Some(NodeState::Draining) && change == (NodeChange::Remove { lost: false }) {
            self.check_empty(node).await?;
        }
        // A lost node is to be emptied like any other: repair does so from what the others hold.
        if state == Some(NodeState::Active) && next == NodeState::Removed {
            self.record(node, NodeState::Draining).await?;
        }
        self.record(node, next).await
    }

    /// A node leaves when it holds nothing any more that would be missing.
    async fn check_empty(&self, node: NodeId) -> Result<(), NodeError> {
        let lost = "; if it will not come back, --lost gives up what only it holds";
        let held = self.node.engine().calls().holdings(node).await;
        let held = held.map_err(|error| {
            refused(format!("what {node} holds is not known, since a node does not answer ({error}){lost}"))
        })?;
        let Holdings { fragments, bytes, votes, led, shards, is_whole, .. } = held;
        if !is_whole {
            return Err(refused(format!("a device of {node} can't be looked at: mend or retire it first{lost}")));
        }
        if led != shards {
            let reason = format!(
                "{led} of {shards} shards are led just now, so whether {node} votes in the others is not known; try again"
            );
            return Err(refused(reason));
        }
        match fragments + votes {
            0 => Ok(()),
            _ => Err(refused(format!(
                "{node} still holds {fragments} fragments ({bytes} bytes) and has a vote in {votes} shards: they move to other nodes \
                 while it is drained, as far as those have room{lost}"
            ))),
        }
    }

    async fn record(&self, node: NodeId, state: NodeState) -> Result<NodeEntry, NodeError> {
        match self.control(ControlRequest::SetNodeState { node, state }).await? {
            ControlResponse::Node(entry) => Ok(entry),
            _ => unreachable!("the control shard answers each request in kind"),
        }
    }
}

/// Whom a new node asks: this one first, then the other members.
fn seeds(own: NodeId, addresses: &[String], entries: &[NodeEntry]) -> Vec<Seed> {
    let own_seeds = addresses.iter().map(|address| Seed { node: own.0, address: address.clone() });
    let of_entry = |entry: &NodeEntry| {
        let node = entry.node.0;
        entry.addresses.iter().map(move |address| Seed { node, address: address.clone() }).collect::<Vec<_>>()
    };
    let others = entries.iter().filter(|entry| entry.node != own && entry.state.is_member());
    own_seeds.chain(others.flat_map(of_entry)).collect()
}

/// What a node becomes, or why it does not.
fn next_state(node: NodeId, state: Option<NodeState>, change: NodeChange) -> Result<NodeState, String> {
    let Some(state) = state else {
        return Err(format!("{node} is not recorded; `kiseki node list` shows those that are"));
    };
    match (state, change) {
        (NodeState::Removed, NodeChange::Remove { .. }) => Ok(NodeState::Removed),
        (NodeState::Removed, _) => {
            Err(format!("{node} was removed, for good; what comes back joins under a new number"))
        }
        (NodeState::Invited, NodeChange::Remove { .. }) => Ok(NodeState::Removed),
        (NodeState::Invited, _) => Err(format!("{node} has not joined yet")),
        (_, NodeChange::Drain) => Ok(NodeState::Draining),
        (_, NodeChange::Keep) => Ok(NodeState::Active),
        (NodeState::Active, NodeChange::Remove { lost: false }) => Err(format!(
            "{node} is in use: `kiseki node drain {0}` moves what it holds to others; if it will not come back, --lost gives up what \
             only it holds",
            node.0
        )),
        (NodeState::Active | NodeState::Draining, NodeChange::Remove { .. }) => Ok(NodeState::Removed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_in_use_is_removed_only_when_it_is_drained_or_lost() {
        use NodeState::{Active, Draining, Invited, Removed};
        let (drain, keep) = (NodeChange::Drain, NodeChange::Keep);
        let (remove, lose) = (NodeChange::Remove { lost: false }, NodeChange::Remove { lost: true });
        for (state, change, next) in [
            (Some(Active), drain, Some(Draining)),
            (Some(Draining), keep, Some(Active)),
            (Some(Active), remove, None),
            (Some(Active), lose, Some(Removed)),
            (Some(Draining), remove, Some(Removed)),
            (Some(Invited), remove, Some(Removed)),
            (Some(Invited), drain, None),
            (Some(Removed), keep, None),
            (None, lose, None),
        ] {
            assert_eq!(next_state(NodeId(2), state, change).ok(), next, "{state:?} {change:?}");
        }
    }

    #[test]
    fn a_new_node_is_told_of_members_only() {
        let entry = |node, state| NodeEntry {
            state,
            addresses: vec![format!("n{node}:1")],
            lanes: 1,
            cores: 1,
            ..NodeEntry::invited(NodeId(node), 0)
        };
        let entries = [
            entry(1, NodeState::Active),
            entry(2, NodeState::Removed),
            entry(3, NodeState::Draining),
            entry(4, NodeState::Invited),
        ];
        let found = seeds(NodeId(1), &["here:1".to_owned()], &entries);
        let found: Vec<_> = found.iter().map(|seed| (seed.node, seed.address.as_str())).collect();
        assert_eq!(found, [(1, "here:1"), (3, "n3:1")]);
    }
}
