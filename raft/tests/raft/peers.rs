//! Replicas on several nodes over the production messages and a simulated network: what travels together, who answers
//! whom, leaders and voters that change.

use crate::common::{Node, Running, SHARD, command, count, put};
use futures::future::{Either, select};
use kiseki_raft::group::GroupSettings;
use kiseki_raft::messages::{Answer, Call, Question, decode_answers, encode_calls};
use kiseki_raft::network::{AppendRequest, ElectionRequest, PeerLink};
use kiseki_raft::type_config::{Vote, VoterId, log_id, node_of, voter_after, voter_of};
use kiseki_raft::{GroupStatus, PeerDirectory, RaftError, RaftPeers, Replicas, ShardGroup};
use kiseki_simulator::{NodeId as Machine, Sim, SimNet};
use kiseki_types::buf::{plain_buffers, stale_buffers};
use kiseki_types::group::{ProposeError, RaftGroup};
use kiseki_types::peer::{Parcel, PeerIdentity, PeerLane, ServiceId};
use kiseki_types::runtime::RuntimeExt;
use kiseki_types::{LaneId, NodeId, ShardId};
use std::rc::Rc;
use std::time::Duration;

pub const MAIN: Machine = Machine(100);

struct OneLane;

impl PeerDirectory for OneLane {
    fn locate(&self, voter: VoterId, _shard: ShardId) -> Option<PeerLane> {
        Some(PeerLane { node: node_of(voter), lane: LaneId(0) })
    }
}

pub struct Member {
    pub node: Node,
    pub running: Running,
    pub replicas: Replicas,
    pub peers: RaftPeers,
}

impl Member {
    pub fn id(&self) -> NodeId {
        NodeId(u64::from(self.node.id.0))
    }

    /// Its groups never rest.
    pub async fn start(node: Node, sim: &Sim, net: &SimNet) -> Member {
        Self::start_with(node, sim, net, Duration::from_secs(3_600)).await
    }

    pub async fn start_with(node: Node, sim: &Sim, net: &SimNet, rest_after: Duration) -> Member {
        let id = NodeId(u64::from(node.id.0));
        let mut running = node.start(sim).await.expect("starts");
        let ports = running.ports.clone();
        let calls = net.calls(id, ports.clone());
        let peers = RaftPeers::new(ports.clone(), calls, Rc::new(OneLane), stale_buffers());
        let replicas = Replicas::new(ports.clone());
        net.serve(id, ServiceId::RAFT, ports, replicas.handler());
        running.link = Rc::new(peers.clone());
        let settings = GroupSettings::several_voters();
        running.settings = GroupSettings { snapshot_entries: 60, kept_entries: 10, rest_after, ..settings };
        Member { node, running, replicas, peers }
    }

    async fn join(&mut self, shard: ShardId) {
        let parts = self.node.parts(&mut self.running, shard).await;
        let group = ShardGroup::join(parts, self.id().0).await.expect("joins");
        self.replicas.join(group);
    }

    pub fn group(&self, shard: ShardId) -> ShardGroup {
        self.replicas.get(shard).expect("it has a replica")
    }
}

/// Nodes of which the first three vote in each shard; the first leads all.
async fn cluster(sim: &Sim, net: &SimNet, nodes: u32, shards: &[ShardId]) -> Vec<Member> {
    let mut members = Vec::new();
    for number in 1..=nodes {
        let node = Node::new(sim, number);
        node.format(sim).await;
        members.push(Member::start(node, sim, net).await);
    }
    make_groups(members, shards).await
}

pub async fn make_groups(mut members: Vec<Member>, shards: &[ShardId]) -> Vec<Member> {
    for shard in shards {
        members[1].join(*shard).await;
        members[2].join(*shard).await;
        let first = &mut members[0];
        let parts = first.node.parts(&mut first.running, *shard).await;
        let group = ShardGroup::create(parts, 1, &[1, 2, 3]).await.expect("created");
        first.replicas.join(group);
    }
    members
}

pub async fn leader(members: &[Member], shard: ShardId) -> ShardGroup {
    for _ in 0..2_000 {
        for group in members.iter().filter_map(|member| member.replicas.get(shard)) {
            if group.read_barrier().await.is_ok() {
                return group;
            }
        }
        members[0].running.ports.sleep(Duration::from_millis(50)).await;
    }
    panic!("no leader");
}

pub async fn until(members: &[Member], mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..2_000 {
        if holds().await {
            return;
        }
        members[0].running.ports.sleep(Duration::from_millis(50)).await;
    }
    panic!("it never holds");
}

#[test]
fn what_many_groups_send_to_one_node_travels_together() {
    let sim = Sim::new(1);
    let net = SimNet::new(&sim);
    sim.block_on(MAIN, async {
        let shards: Vec<ShardId> = (0..16).map(|number| ShardId(SHARD.0 + number)).collect();
        let members = cluster(&sim, &net, 3, &shards).await;
        let peers = &members[0].peers;
        let (parcels, calls) = (peers.parcels(), peers.calls());
        let groups: Vec<ShardGroup> = shards.iter().map(|shard| members[0].group(*shard)).collect();
        for round in 0..20 {
            let writes = groups.iter().map(|group| put(group, round, b"value"));
            futures::future::join_all(writes).await;
        }
        let (parcels, calls) = (peers.parcels() - parcels, peers.calls() - calls);
        // A peer that is behind gets several commands in one call.
        assert!(calls >= 16 * 20, "{calls} calls");
        assert!(calls > 3 * parcels, "{calls} calls in {parcels} parcels");
        for group in &groups {
            assert_eq!(count(&*group.tables()).await, 20);
        }
        // Heartbeats of groups that nobody uses wait for one another.
        let (parcels, calls) = (peers.parcels(), peers.calls());
        members[0].running.ports.sleep(Duration::from_secs(10)).await;
        let (parcels, calls) = (peers.parcels() - parcels, peers.calls() - calls);
        assert!(calls > 16 * 2 * 20, "{calls} heartbeats in 10 s");
        assert!(calls > 2 * parcels, "{calls} heartbeats in {parcels} parcels");
    });
}

#[test]
fn news_of_a_commit_holds_no_command_back() {
    let sim = Sim::new(21);
    let net = SimNet::new(&sim);
    sim.block_on(MAIN, async {
        let members = cluster(&sim, &net, 3, &[SHARD]).await;
        let group = leader(&members, SHARD).await;
        put(&group, 1, b"value").await;
        let ports = members[0].running.ports.clone();
        let start = ports.now();
        for number in 0..100 {
            put(&group, number, b"value").await;
        }
        let taken = ports.now().since(start);
        // News waits 40 ms for company.
        assert!(taken < Duration::from_secs(2), "100 commands, one after the other, took {taken:?}");
    });
}

#[test]
fn leadership_moves_and_whoever_does_not_lead_says_whom_to_ask() {
    let sim = Sim::new(2);
    let net = SimNet::new(&sim);
    sim.block_on(MAIN, async {
        let members = cluster(&sim, &net, 3, &[SHARD]).await;
        let old = leader(&members, SHARD).await;
        put(&old, 1, b"before").await;
        until(&members, async || old.transfer_leader(2).await.is_ok()).await;
        let new = leader(&members, SHARD).await;
        assert_eq!((new.voter(), new.leader_node()), (2, Some(NodeId(2))));
        put(&new, 1, b"after").await;
        let refused = old.propose(command(1, b"here?")).await;
        assert!(matches!(refused, Err(ProposeError::NotLeader { leader: Some(NodeId(2)), .. })), "{refused:?}");
        let refused = old.read_barrier().await;
        assert!(matches!(refused, Err(ProposeError::NotLeader { leader: Some(NodeId(2)), .. })), "{refused:?}");
        assert!(matches!(old.transfer_leader(3).await, Err(RaftError::NotLeader { .. })));
        assert!(matches!(new.transfer_leader(7).await, Err(RaftError::Membership { .. })), "no voter");
        // A voter that does not answer would leave the group without a leader for seconds.
        net.cut(NodeId(3), NodeId(2));
        members[0].running.ports.sleep(Duration::from_secs(3)).await;
        let silent = new.transfer_leader(3).await;
        assert!(matches!(silent, Err(RaftError::Membership { .. })), "{silent:?}");
        put(&new, 1, b"it still leads").await;
    });
}

#[test]
fn a_leader_whose_transfer_nobody_answered_does_not_stay_one() {
    let sim = Sim::new(20);
    let net = SimNet::new(&sim);
    sim.block_on(MAIN, async {
        let members = cluster(&sim, &net, 3, &[SHARD]).await;
        until(&members, async || {
            let led = leader(&members, SHARD).await;
            led.voter() == 1 || led.transfer_leader(1).await.is_ok()
        })
        .await;
        let (old, heir) = (members[0].group(SHARD), members[1].group(SHARD));
        until(&members, async || old.read_barrier().await.is_ok()).await;
        put(&old, 1, b"before").await;
        // It is heard, and hears nobody: the heir leads, and lets it go.
        net.cut(NodeId(2), NodeId(1));
        net.cut(NodeId(3), NodeId(1));
        assert!(old.transfer_leader(2).await.is_err());
        until(&members, async || heir.change_voters(&[2, 3]).await.is_ok()).await;
        net.heal();
        assert!(old.leadership_now().is_here, "it knows nothing of that");
        members[0].running.ports.sleep(Duration::from_secs(30)).await;
        assert!(!old.leadership_now().is_here, "nobody tells it, and it asks nobody");
        assert_eq!(old.state(), kiseki_raft::group::GroupState::Running, "it works all the same");
        put(&heir, 2, b"after").await;
    });
}

/// openraft calls a learner caught up when few entries are missing: in a short log that is all of them.
#[test]
fn a_voter_is_replaced_only_by_one_that_has_caught_up() {
    let sim = Sim::new(3);
    let net = SimNet::new(&sim);
    sim.block_on(MAIN, async {
        let mut members = cluster(&sim, &net, 4, &[SHARD]).await;
        let group = leader(&members, SHARD).await;
        put(&group, 1, b"value").await;
        let old = if group.voter() == 3 { 2 } else { 3 };
        let early = group.replace_voter(old, 4).await;
        assert!(matches!(early, Err(RaftError::Membership { .. })), "nothing has joined there: {early:?}");
        assert!(group.voters().contains(&old) && !group.voters().contains(&4));
        members[3].join(SHARD).await;
        let group = leader(&members, SHARD).await;
        group.replace_voter(old, 4).await.expect("replaced");
        assert!(!group.voters().contains(&old) && group.voters().contains(&4) && group.voters().len() == 3);
        let new = members[3].group(SHARD);
        until(&members, async || count(&*new.tables()).await == 1).await;
        let twice = voter_of(NodeId(4), 1).expect("a number");
        let refused = group.replace_voter(1, twice).await;
        assert!(matches!(refused, Err(RaftError::Membership { .. })), "one node votes once: {refused:?}");
    });
}

/// A change that removes voter 3 ends half-way: the voters of before and after decide together. Whoever takes the place of
/// another then must not bring voter 3 back.
#[test]
fn replacing_a_voter_goes_on_from_where_a_change_that_was_cut_off_led() {
    let sim = Sim::new(8);
    let net = SimNet::new(&sim);
    sim.block_on(MAIN, async {
        let mut members = cluster(&sim, &net, 4, &[SHARD]).await;
        members[3].join(SHARD).await;
        until(&members, async || {
            let led = leader(&members, SHARD).await;
            led.voter() == 1 || led.transfer_leader(1).await.is_ok()
        })
        .await;
        let group = members[0].group(SHARD);
        let configs = || group.metrics().membership_config.membership().get_joint_config().len();
        let mut change = Box::pin(group.change_voters(&[1, 2]));
        while configs() == 1 {
            let moment = members[0].running.ports.sleep(Duration::from_micros(50));
            match select(change, moment).await {
                Either::Left((ended, _)) => panic!("it was not cut off: {ended:?}"),
                Either::Right((_, going_on)) => change = going_on,
            }
        }
        drop(change);
        assert_eq!(configs(), 2, "voters of before and after");
        until(&members, async || leader(&members, SHARD).await.replace_voter(2, 4).await.is_ok()).await;
        let led = leader(&members, SHARD).await;
        assert_eq!(led.voters().into_iter().collect::<Vec<_>>(), [1, 4], "voter 3 stays removed");
        put(&led, 1, b"after").await;
    });
}

/// The follower was promised to the leader, whose lease still runs when the follower is back without its memory of it.
#[test]
fn i_v2_a_voter_gives_no_vote_for_one_election_timeout_after_a_start() {
    let sim = Sim::new(4);
    let net = SimNet::new(&sim);
    sim.block_on(MAIN, async {
        let mut members = cluster(&sim, &net, 3, &[SHARD]).await;
        put(&leader(&members, SHARD).await, 1, b"value").await;
        let follower = members.remove(2);
        let term = follower.group(SHARD).metrics().current_term;
        let last = Some(log_id(term, 1_000)); // no log is longer
        net.unplug(follower.id());
        let Member { node, running, replicas, peers } = follower;
        drop((running, replicas, peers));
        node.power_cut(&sim, 5);
        let mut back = Member::start(node, &sim, &net).await;
        net.unplug(back.id()); // no leader reaches it
        let parts = back.node.parts(&mut back.running, SHARD).await;
        let group = ShardGroup::rejoin(parts).await.expect("opens");
        let ask = ElectionRequest::new(Vote::new(term + 1, 2), last);
        let early = group.handle_vote(ask.clone()).await.expect("it answers");
        assert!(!early.vote_granted, "a leader may still answer reads on the word of this voter");
        assert!(!group.handle_pre_vote(ask.clone()).await.expect("it answers").vote_granted);
        back.running.ports.sleep(back.running.settings.quiet()).await;
        let later = group.handle_vote(ElectionRequest::new(Vote::new(term + 9, 2), last)).await.expect("it answers");
        assert!(later.vote_granted, "{later:?}");
    });
}

#[test]
fn i_l10_a_replica_answers_only_under_its_own_id_and_only_to_whom_a_voter_belongs() {
    let sim = Sim::new(5);
    let net = SimNet::new(&sim);
    sim.block_on(MAIN, async {
        let members = cluster(&sim, &net, 3, &[SHARD]).await;
        let handler = members[1].replicas.handler();
        let vote = members[0].group(SHARD).metrics().vote;
        let heartbeat = AppendRequest { vote, prev_log_id: None, entries: Vec::new(), leader_commit: None };
        let ask = async |from: PeerIdentity, shard, to| {
            let call = Call { shard, to, question: Question::Append(heartbeat.clone()) };
            let parcel = encode_calls(&[call], Duration::from_secs(1), &plain_buffers()).expect("one fits");
            let answer = handler(from, LaneId(0), parcel).await;
            answer.map(|parcel| decode_answers(&parcel, 1).expect("one answer").remove(0))
        };
        let node = PeerIdentity::Node;
        assert!(matches!(ask(node(NodeId(1)), SHARD, 2).await, Ok(Answer::Append(_))));
        let reborn = voter_after(2).expect("a number");
        assert_eq!(ask(node(NodeId(1)), SHARD, reborn).await, Ok(Answer::NoReplica), "another voter of this node");
        assert_eq!(ask(node(NodeId(1)), ShardId(9), 2).await, Ok(Answer::NoReplica), "another shard");
        assert!(matches!(ask(node(NodeId(3)), SHARD, 2).await, Ok(Answer::Refused(_))), "3 speaks for voter 1");
        assert!(ask(PeerIdentity::Admin, SHARD, 2).await.is_err());
        let garbage = Parcel { message: vec![1, 2, 3], bulk: Vec::new() };
        assert!(handler(node(NodeId(1)), LaneId(0), garbage).await.is_err());
    });
}

#[test]
fn a_peer_that_is_not_there_is_told_from_one_that_is_silent() {
    let sim = Sim::new(6);
    let net = SimNet::new(&sim);
    sim.block_on(MAIN, async {
        let members = cluster(&sim, &net, 3, &[SHARD]).await;
        let request = ElectionRequest::new(Vote::new(1, 1), None);
        let absent = members[0].peers.vote(2, ShardId(9), request.clone()).await;
        assert!(matches!(absent, Err(kiseki_raft::network::PeerError::NoReplica { voter: 2 })), "{absent:?}");
        net.unplug(NodeId(2));
        let silent = members[0].peers.vote(2, SHARD, request).await;
        assert!(matches!(silent, Err(kiseki_raft::network::PeerError::Unreachable { voter: 2 })), "{silent:?}");
    });
}

/// The journal of a voter is gone for good. Under its old id it never votes again; under a new one it learns, and gets the
/// vote that the old one loses.
#[test]
fn i_l10_a_voter_whose_log_is_lost_comes_back_as_another() {
    let sim = Sim::new(7);
    let net = SimNet::new(&sim);
    sim.block_on(MAIN, async {
        let mut members = cluster(&sim, &net, 3, &[SHARD]).await;
        let first = leader(&members, SHARD).await;
        for n in 0..30 {
            put(&first, n, b"value").await;
        }
        drop(first);
        let lost = members.remove(2);
        lost.running.log.fold().await.expect("folds"); // so that the row says how far the old journal went
        net.unplug(lost.id());
        let Member { mut node, running, replicas, peers } = lost;
        drop((running, replicas, peers));
        node.power_cut(&sim, 8);
        node.disks = Node::new(&sim, 3).disks;
        node.switch = Node::new(&sim, 3).switch;
        node.format(&sim).await;
        let mut back = Member::start(node, &sim, &net).await;
        assert!(matches!(back.running.log.status(SHARD), GroupStatus::Lost(_)));
        let parts = back.node.parts(&mut back.running, SHARD).await;
        assert!(matches!(ShardGroup::rejoin(parts.clone()).await, Err(RaftError::Lost { .. })));
        let group = ShardGroup::begin_anew(parts).await.expect("begins anew");
        let new = voter_after(3).expect("a number");
        assert_eq!(group.voter(), new);
        back.replicas.join(group);
        leader(&members, SHARD).await.replace_voter(3, new).await.expect("replaced");
        put(&leader(&members, SHARD).await, 1, b"after").await;
        // A second start finds the new voter whole, though the new journal counts from below what was folded before.
        net.unplug(back.id());
        let Member { node, running, replicas, peers } = back;
        drop((running, replicas, peers));
        node.power_cut(&sim, 9);
        let mut back = Member::start(node, &sim, &net).await;
        assert_eq!(back.running.log.status(SHARD), GroupStatus::Live);
        let parts = back.node.parts(&mut back.running, SHARD).await;
        let group = ShardGroup::rejoin(parts.clone()).await.expect("opens");
        assert_eq!(group.voter(), new);
        back.replicas.join(group.clone());
        members.push(back);
        until(&members, async || count(&*group.tables()).await == 31).await;
        let again = ShardGroup::begin_anew(parts).await;
        assert!(matches!(again, Err(RaftError::Membership { .. })), "nothing is lost now");
        assert_eq!(put(&leader(&members, SHARD).await, 2, b"last").await, 32);
    });
}
