//! Other nodes as one core sees them: where their replicas are, and when they answered last.

use crate::slow_calls::{SlowCalls, Way};
use kiseki_engine::nodes::NodeBoard;
use kiseki_raft::PeerDirectory;
use kiseki_types::ShardId;
use kiseki_types::group::{VoterId, node_of};
use kiseki_types::peer::{Parcel, PeerCallError, PeerCalls, PeerLane, ServiceId};
use kiseki_types::runtime::{LocalBoxFuture, Ports};
use std::rc::Rc;
use std::time::Duration;

/// Finds voters by what is recorded of their nodes. A node's lanes never change, its cores do, so only the shard's own
/// lane is sure to be on the core that holds the replica.
pub struct RecordedNodes(pub Rc<NodeBoard>);

impl PeerDirectory for RecordedNodes {
    fn locate(&self, voter: VoterId, shard: ShardId) -> Option<PeerLane> {
        let node = node_of(voter);
        let lanes = self.0.entry(node)?.lanes;
        (lanes > 0).then(|| PeerLane { node, lane: shard.lane(lanes) })
    }
}

/// Calls that note on the board who answered.
pub struct NotedCalls {
    /// The way to other nodes.
    pub calls: Rc<dyn PeerCalls>,
    /// The board.
    pub nodes: Rc<NodeBoard>,
    /// The core's clock.
    pub ports: Ports,
    /// Tells of calls that are slow or fail.
    pub slow: Rc<SlowCalls>,
}

impl PeerCalls for NotedCalls {
    fn call(
        &self,
        to: PeerLane,
        service: ServiceId,
        parcel: Parcel,
        deadline: Duration,
    ) -> LocalBoxFuture<'static, Result<Parcel, PeerCallError>> {
        let asked = self.calls.call(to, service, parcel, deadline);
        let (nodes, ports, slow) = (self.nodes.clone(), self.ports.clone(), self.slow.clone());
        Box::pin(async move {
            let began = ports.now();
            let answer = asked.await;
            slow.note(Way::Out, to.node, service, began, answer.as_ref().err());
            if matches!(answer, Ok(_) | Err(PeerCallError::Refused { .. })) {
                nodes.heard(to.node, ports.now());
            }
            answer
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiseki_engine::message::{NodeEntry, NodeState};
    use kiseki_types::ids::{LaneId, NodeId};

    #[test]
    fn a_voter_is_in_the_lane_that_its_own_node_has_for_the_shard() {
        let entry = |node, lanes| NodeEntry {
            state: NodeState::Active,
            lanes,
            cores: 1,
            ..NodeEntry::invited(NodeId(node), 0)
        };
        let board = NodeBoard::new(NodeId(1));
        board.take_up(1, &[entry(1, 4), entry(2, 3), entry(3, 0)]);
        let nodes = RecordedNodes(board);
        let again = (1 << 48) + 2;
        for (voter, expected) in [(1, Some((1, 2))), (2, Some((2, 1))), (again, Some((2, 1))), (3, None), (4, None)] {
            let found = nodes.locate(voter, ShardId(10)).map(|place| (place.node, place.lane));
            assert_eq!(found, expected.map(|(node, lane)| (NodeId(node), LaneId(lane))), "voter {voter}");
        }
    }
}
