//! Groups that nobody uses rest, and wake for whoever needs them: commands, reads, a leader that is gone, a replica that
//! was started meanwhile.

use crate::common::{Node, SHARD, count, put};
use crate::peers::{MAIN, Member, leader, make_groups, until};
use kiseki_raft::ShardGroup;
use kiseki_simulator::{Sim, SimNet};
use kiseki_types::group::RaftGroup;
use kiseki_types::runtime::RuntimeExt;
use kiseki_types::{NodeId, ShardId};
use std::time::Duration;

const REST_AFTER: Duration = Duration::from_secs(2);

async fn cluster(sim: &Sim, net: &SimNet, shards: &[ShardId]) -> Vec<Member> {
    let mut members = Vec::new();
    for number in 1..=3 {
        let node = Node::new(sim, number);
        node.format(sim).await;
        members.push(Member::start_with(node, sim, net, REST_AFTER).await);
    }
    make_groups(members, shards).await
}

fn replicas<'a>(members: &'a [Member], shards: &'a [ShardId]) -> impl Iterator<Item = ShardGroup> + 'a {
    members.iter().flat_map(move |member| shards.iter().filter_map(move |shard| member.replicas.get(*shard)))
}

async fn all_rest(members: &[Member], shards: &[ShardId]) {
    until(members, async || replicas(members, shards).all(|replica| replica.rests())).await;
}

async fn sleep(members: &[Member], seconds: u64) {
    members[0].running.ports.sleep(Duration::from_secs(seconds)).await;
}

fn terms(members: &[Member]) -> Vec<u64> {
    replicas(members, &[SHARD]).map(|replica| replica.metrics().current_term).collect()
}

#[test]
fn groups_that_nobody_uses_rest_and_wake_for_commands_and_reads() {
    let sim = Sim::new(23); // no message is late just then
    let net = SimNet::new(&sim);
    sim.block_on(MAIN, async {
        let shards: Vec<ShardId> = (0..16).map(|number| ShardId(SHARD.0 + number)).collect();
        let members = cluster(&sim, &net, &shards).await;
        for shard in &shards {
            put(&leader(&members, *shard).await, 1, b"value").await;
        }
        all_rest(&members, &shards).await;
        let (before, logs) = (members[0].peers.parcels(), members[0].peers.calls());
        sleep(&members, 30).await;
        assert!(replicas(&members, &shards).all(|replica| replica.rests()), "nothing woke them");
        let (parcels, calls) = (members[0].peers.parcels() - before, members[0].peers.calls() - logs);
        assert!(parcels <= 2 * 101, "{parcels} parcels in 30 s, to two nodes");
        assert!(calls >= 16 * 2 * 90, "{calls} calls: each group is vouched for");
        // A command and a read each wake their group, and no other; they don't wait for the company of heartbeats.
        let ports = members[0].running.ports.clone();
        let start = ports.now();
        assert_eq!(put(&members[0].group(shards[0]), 2, b"again").await, 2);
        members[0].group(shards[1]).read_barrier().await.expect("it leads");
        let taken = ports.now().since(start);
        assert!(taken < Duration::from_millis(60), "{taken:?}");
        let awake: Vec<ShardId> = replicas(&members[..1], &shards)
            .filter(|replica| !replica.rests())
            .map(|replica| replica.shard())
            .collect();
        assert_eq!(awake, shards[..2].to_vec());
        all_rest(&members, &shards).await;
    });
}

#[test]
fn a_leader_that_dies_while_its_group_rests_is_replaced() {
    let sim = Sim::new(23);
    let net = SimNet::new(&sim);
    sim.block_on(MAIN, async {
        let mut members = cluster(&sim, &net, &[SHARD]).await;
        put(&leader(&members, SHARD).await, 1, b"value").await;
        all_rest(&members, &[SHARD]).await;
        let dead = members.remove(0);
        net.unplug(dead.id());
        let Member { node, running, replicas, peers } = dead;
        drop((running, replicas, peers));
        node.power_cut(&sim, 5);
        let ports = members[0].running.ports.clone();
        let start = ports.now();
        let next = leader(&members, SHARD).await;
        let taken = ports.now().since(start);
        assert!(taken < Duration::from_secs(6), "a new leader after {taken:?}");
        assert_eq!(put(&next, 2, b"value").await, 2);
        // A group with a peer that is away does not rest: nobody would notice what it missed.
        sleep(&members, 20).await;
        assert!(!next.rests());
    });
}

#[test]
fn a_group_whose_leader_stopped_alone_wakes_while_others_of_its_core_rest() {
    let sim = Sim::new(24);
    let net = SimNet::new(&sim);
    sim.block_on(MAIN, async {
        let shards = [SHARD, ShardId(SHARD.0 + 1)];
        let members = cluster(&sim, &net, &shards).await;
        for shard in shards {
            put(&leader(&members, shard).await, 1, b"value").await;
        }
        all_rest(&members, &shards).await;
        members[0].group(SHARD).close().await.expect("it closes");
        sleep(&members, 10).await;
        let leads = |member: &Member| member.group(SHARD).leads();
        assert!(members[1..].iter().any(leads), "the beats for the other group vouch for this one no more");
        assert!(replicas(&members, &shards[1..]).all(|replica| replica.rests()));
    });
}

#[test]
fn a_replica_that_starts_while_its_group_rests_deposes_no_leader() {
    let sim = Sim::new(25);
    let net = SimNet::new(&sim);
    sim.block_on(MAIN, async {
        let mut members = cluster(&sim, &net, &[SHARD]).await;
        put(&leader(&members, SHARD).await, 1, b"value").await;
        all_rest(&members, &[SHARD]).await;
        let before = terms(&members);
        let Member { node, running, replicas, peers } = members.remove(2);
        net.unplug(NodeId(3));
        drop((running, replicas, peers));
        node.power_cut(&sim, 6);
        let mut back = Member::start_with(node, &sim, &net, REST_AFTER).await;
        let parts = back.node.parts(&mut back.running, SHARD).await;
        back.replicas.join(ShardGroup::rejoin(parts).await.expect("opens"));
        members.push(back);
        sleep(&members, 10).await;
        assert_eq!(terms(&members), before, "no election");
        assert_eq!(put(&members[0].group(SHARD), 2, b"value").await, 2);
        until(&members, async || count(&*members[2].group(SHARD).tables()).await == 2).await;
        all_rest(&members, &[SHARD]).await;
    });
}

#[test]
fn a_peer_that_hears_no_leader_while_its_group_rests_deposes_none_that_the_others_hear() {
    let sim = Sim::new(26);
    let net = SimNet::new(&sim);
    sim.block_on(MAIN, async {
        let members = cluster(&sim, &net, &[SHARD]).await;
        put(&leader(&members, SHARD).await, 1, b"value").await;
        all_rest(&members, &[SHARD]).await;
        let before = terms(&members);
        net.cut(NodeId(1), NodeId(3));
        sleep(&members, 20).await;
        assert!(!members[2].group(SHARD).rests(), "it asks who leads");
        assert_eq!(terms(&members), before, "no election");
        assert_eq!(put(&members[0].group(SHARD), 2, b"value").await, 2);
        net.heal();
        all_rest(&members, &[SHARD]).await;
        assert_eq!(terms(&members), before, "no election");
    });
}

#[test]
fn i_cs1_a_leader_that_rested_behind_a_partition_answers_no_read() {
    let sim = Sim::new(27);
    let net = SimNet::new(&sim);
    sim.block_on(MAIN, async {
        let members = cluster(&sim, &net, &[SHARD]).await;
        put(&leader(&members, SHARD).await, 1, b"value").await;
        all_rest(&members, &[SHARD]).await;
        sleep(&members, 2).await; // the lease that it had when it began to rest is over
        for other in [NodeId(2), NodeId(3)] {
            net.cut(NodeId(1), other);
            net.cut(other, NodeId(1));
        }
        let early = members[0].group(SHARD).read_barrier().await;
        assert!(early.is_err(), "a lease of before: {early:?}");
        until(&members, async || members[1..].iter().any(|member| member.group(SHARD).leads())).await;
        let next = leader(&members[1..], SHARD).await;
        assert_eq!(put(&next, 2, b"value").await, 2);
        let late = members[0].group(SHARD).read_barrier().await;
        assert!(late.is_err(), "{late:?}");
    });
}

#[test]
fn leadership_and_voters_change_in_a_group_that_rests() {
    let sim = Sim::new(28);
    let net = SimNet::new(&sim);
    sim.block_on(MAIN, async {
        let members = cluster(&sim, &net, &[SHARD]).await;
        put(&leader(&members, SHARD).await, 1, b"value").await;
        all_rest(&members, &[SHARD]).await;
        members[0].group(SHARD).transfer_leader(2).await.expect("2 rests, and is well");
        let next = leader(&members, SHARD).await;
        assert_eq!(next.voter(), 2);
        assert_eq!(put(&next, 2, b"value").await, 2);
        all_rest(&members, &[SHARD]).await;
        next.change_voters(&[1, 2]).await.expect("it leads");
        assert_eq!(put(&next, 3, b"value").await, 3);
    });
}
