//! Three replicas of the product in one process, on one executor: they hand each other parcels without a socket; everything else
//! is as in a node.

use kiseki_raft::ShardGroup;
use kiseki_raft::type_config::VoterId;
use kiseki_raft_members::{Member, Wires};
use kiseki_types::runtime::Ports;
use kiseki_types::{NodeId, ShardId};
use std::path::Path;

/// Nodes of a cluster.
pub const NODES: u64 = 3;

/// A cluster in this process.
pub struct Cluster {
    members: Vec<Member>,
    /// The replicas that lead, all on the first node.
    pub leaders: Vec<ShardGroup>,
}

impl Cluster {
    /// Makes a cluster of so many groups, with its files below `base`.
    pub async fn start(ports: &Ports, base: &Path, groups: u64) -> Cluster {
        let (wires, mut members) = (Wires::default(), Vec::new());
        for id in (1..=NODES).map(NodeId) {
            let dir = base.join(format!("node{}", id.0));
            let member = Member::start(id, ports, &dir, wires.calls(id)).await.expect("a new member");
            wires.serve(id, member.handler());
            members.push(member);
        }
        let voters: Vec<VoterId> = (1..=NODES).collect();
        let mut leaders = Vec::new();
        for shard in (0..groups).map(|number| ShardId(ShardId::TENANT_FIRST + number)) {
            for member in &members[1..] {
                member.join(shard).await.expect("joins");
            }
            leaders.push(members[0].lead(shard, &voters).await.expect("made"));
        }
        Cluster { members, leaders }
    }

    /// Parcels and calls that the nodes have sent so far.
    pub fn sent(&self) -> (u64, u64) {
        let sent = self.members.iter().map(Member::sent);
        sent.fold((0, 0), |all, more| (all.0 + more.0, all.1 + more.1))
    }

    /// Ends the groups.
    pub async fn close(self) {
        for leader in &self.leaders {
            leader.close().await.expect("it closes");
        }
    }
}
