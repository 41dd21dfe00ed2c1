//! Three voters in one process: election, replication, a lost leader, catch-up by log and by snapshot.

use crate::common::{Node, Running, SHARD, all_values, command, count, put};
use kiseki_raft::group::GroupSettings;
use kiseki_raft::network::ProcessLinks;
use kiseki_raft::snapshot::{KeyedRowSeal, SnapshotReceiver, SnapshotSeals, SnapshotSender};
use kiseki_raft::{GroupStatus, ShardGroup};
use kiseki_simulator::Sim;
use kiseki_types::group::{ProposeError, RaftGroup};
use kiseki_types::runtime::RuntimeExt;
use std::rc::Rc;
use std::time::Duration;

struct Voter {
    node: Node,
    running: Running,
    group: ShardGroup,
}

fn settings() -> GroupSettings {
    GroupSettings { snapshot_entries: 60, kept_entries: 10, ..GroupSettings::several_voters() }
}

async fn start(node: Node, sim: &Sim, links: &Rc<ProcessLinks>) -> Voter {
    let voter = u64::from(node.id.0);
    let mut running = node.start(sim).await.expect("starts");
    running.link = links.link(voter);
    running.settings = settings();
    let parts = node.parts(&mut running, SHARD).await;
    let group = ShardGroup::join(parts, voter).await.expect("joins");
    links.join(voter, group.clone());
    Voter { node, running, group }
}

async fn cluster(sim: &Sim, links: &Rc<ProcessLinks>) -> Vec<Voter> {
    let mut voters = Vec::new();
    for number in 1..=3 {
        let node = Node::new(sim, number);
        node.format(sim).await;
        voters.push(node);
    }
    let mut started = Vec::new();
    let mut nodes = voters.into_iter();
    let first = nodes.next().expect("three");
    for node in nodes {
        started.push(start(node, sim, links).await);
    }
    let mut running = first.start(sim).await.expect("starts");
    running.link = links.link(1);
    running.settings = settings();
    let parts = first.parts(&mut running, SHARD).await;
    // The first replica is reachable only once it is made; it stands for election and asks the others.
    let creating = ShardGroup::create(parts, 1, &[1]);
    let group = creating.await.expect("created");
    links.join(1, group.clone());
    group.change_voters(&[1, 2, 3]).await.expect("the others are added");
    started.insert(0, Voter { node: first, running, group });
    started
}

async fn leader<'a>(voters: &[&'a Voter]) -> &'a Voter {
    for _ in 0..2_000 {
        for voter in voters {
            if voter.group.read_barrier().await.is_ok() {
                return voter;
            }
        }
        voters[0].running.ports.sleep(Duration::from_millis(50)).await;
    }
    panic!("no leader");
}

async fn caught_up(voter: &Voter, wanted: u64) {
    for _ in 0..2_000 {
        if count(&*voter.group.tables()).await == wanted {
            return;
        }
        voter.running.ports.sleep(Duration::from_millis(50)).await;
    }
    panic!("voter {} stays at {}: {:?}", voter.node.id, count(&*voter.group.tables()).await, voter.group.metrics());
}

#[test]
fn the_steps_of_commands_are_timed_on_leaders_and_followers() {
    let sim = Sim::new(3);
    let links = ProcessLinks::new();
    sim.block_on(kiseki_simulator::NodeId(100), async {
        let voters = cluster(&sim, &links).await;
        let led = leader(&voters.iter().collect::<Vec<_>>()).await.node.id;
        for n in 0..30 {
            put(&voters.iter().find(|voter| voter.node.id == led).expect("there").group, n, b"timed").await;
        }
        for voter in &voters {
            caught_up(voter, 30).await;
            let times = voter.running.log.times().by_name();
            let of = |name: &str| &times.iter().find(|(step, _)| *step == name).expect("it is exported").1;
            let (flushes, sends, applied) = (of("log_flush"), of("replicate"), of("apply"));
            assert!(flushes.count() > 0 && flushes.sum_ns > 0, "appends waited for flushes (I-L2): {flushes:?}");
            assert!(applied.count() >= 30);
            // Two followers, and the entries of several commands may go in one append.
            assert_eq!(sends.count() > 0, voter.node.id == led, "a leader alone sends entries");
        }
    });
}

#[test]
fn a_lost_leader_is_replaced_and_catches_up_by_snapshot() {
    for seed in 0..6 {
        let sim = Sim::new(seed);
        let links = ProcessLinks::new();
        let main = kiseki_simulator::NodeId(100);
        let (dead, mut alive) = sim.block_on(main, async {
            let mut voters = cluster(&sim, &links).await;
            let led = leader(&voters.iter().collect::<Vec<_>>()).await.node.id;
            for n in 0..30 {
                let leader = voters.iter().find(|voter| voter.node.id == led).expect("there");
                put(&leader.group, n, b"first").await;
            }
            for voter in &voters {
                caught_up(voter, 30).await;
                if voter.node.id != led {
                    let refused = voter.group.propose(command(1, b"here?")).await;
                    assert!(matches!(refused, Err(ProposeError::NotLeader { .. })), "{refused:?}");
                    assert!(voter.group.read_barrier().await.is_err());
                }
            }
            let dead = voters.remove(voters.iter().position(|voter| voter.node.id == led).expect("there"));
            (dead, voters)
        });
        // The leader's machine loses power.
        links.leave(u64::from(dead.node.id.0));
        let Voter { node: dead, running, group } = dead;
        drop((running, group));
        dead.power_cut(&sim, seed);
        sim.block_on(main, async {
            let leader = leader(&alive.iter().collect::<Vec<_>>()).await;
            for n in 0..300 {
                put(&leader.group, n, &[n as u8; 2_000]).await;
            }
            leader.group.checkpoint().await.expect("checkpoints");
            leader.running.ports.sleep(Duration::from_secs(5)).await;
            let metrics = leader.group.metrics();
            assert!(metrics.purged.expect("purged").index > 100, "seed {seed}: {metrics:?}");
        });
        // It comes back; what it misses is purged, so a snapshot brings it up to date.
        let back = sim.block_on(main, async {
            let mut running = dead.start(&sim).await.expect("starts");
            running.link = links.link(u64::from(dead.id.0));
            running.settings = settings();
            assert_eq!(running.log.status(SHARD), GroupStatus::Live);
            let parts = dead.parts(&mut running, SHARD).await;
            let group = ShardGroup::rejoin(parts).await.expect("opens");
            links.join(u64::from(dead.id.0), group.clone());
            let back = Voter { node: dead, running, group };
            caught_up(&back, 330).await;
            assert!(back.group.metrics().purged.is_some(), "it came by snapshot");
            assert!(back.group.view().snapshots_installed > 0, "and is counted");
            back
        });
        alive.push(back);
        sim.block_on(main, async {
            let leader = leader(&alive.iter().collect::<Vec<_>>()).await;
            let wanted = all_values(&*leader.group.tables()).await;
            put(&leader.group, 7, b"last").await;
            for voter in &alive {
                caught_up(voter, 331).await;
                let values = all_values(&*voter.group.tables()).await;
                assert_eq!(values.len(), wanted.len());
                assert_eq!(values, all_values(&*leader.group.tables()).await);
            }
        });
        // All three lose power at once, the one with the snapshot included.
        for voter in &alive {
            links.leave(u64::from(voter.node.id.0));
        }
        let nodes: Vec<Node> = alive.into_iter().map(|voter| voter.node).collect();
        for node in &nodes {
            node.power_cut(&sim, seed + 10);
        }
        sim.block_on(main, async {
            let starting = nodes.into_iter().map(|node| async {
                let mut running = node.start(&sim).await.expect("starts");
                running.link = links.link(u64::from(node.id.0));
                running.settings = settings();
                let parts = node.parts(&mut running, SHARD).await;
                let group = ShardGroup::rejoin(parts).await.expect("opens");
                links.join(u64::from(node.id.0), group.clone());
                Voter { node, running, group }
            });
            let voters = futures::future::join_all(starting).await;
            let leader = leader(&voters.iter().collect::<Vec<_>>()).await;
            assert_eq!(count(&*leader.group.tables()).await, 331);
            assert_eq!(put(&leader.group, 8, b"after").await, 332);
        });
    }
}

#[test]
fn i_cs1_a_minority_never_acknowledges() {
    let sim = Sim::new(11);
    let links = ProcessLinks::new();
    let main = kiseki_simulator::NodeId(100);
    sim.block_on(main, async {
        let voters = cluster(&sim, &links).await;
        let old = leader(&voters.iter().collect::<Vec<_>>()).await;
        put(&old.group, 1, b"before").await;
        links.cut_off(u64::from(old.node.id.0));
        let others: Vec<&Voter> = voters.iter().filter(|voter| voter.node.id != old.node.id).collect();
        let lonely = old.group.propose(command(1, b"lost?"));
        let new = async {
            let new = leader(&others).await;
            put(&new.group, 1, b"after").await;
            links.heal(u64::from(old.node.id.0));
        };
        let (lonely, ()) = futures::future::join(lonely, new).await;
        assert!(matches!(lonely, Err(ProposeError::Unavailable { .. })), "{lonely:?}");
        caught_up(old, 2).await;
        let value = crate::common::value(&*old.group.tables(), 1).await;
        assert_eq!(value.as_deref(), Some(&b"after"[..]));
    });
}

/// Names stand in file 0, which is sealed: nothing of them is on the way, and no damage on the way gets installed.
#[test]
fn i_k1_a_snapshot_shows_no_name_and_damage_is_refused() {
    let sim = Sim::new(12);
    let (from, to) = (Node::new(&sim, 1), Node::new(&sim, 2));
    let seals = || SnapshotSeals::none().with(0, Rc::new(KeyedRowSeal::new(crate::common::key())));
    sim.block_on(from.id, async {
        from.format(&sim).await;
        let mut running = from.start(&sim).await.expect("starts");
        let parts = from.parts(&mut running, SHARD).await;
        let tables = parts.tables.clone();
        let group = ShardGroup::create(parts, 1, &[1]).await.expect("created");
        for n in 0..2_000 {
            put(&group, n, b"a name that nobody may see").await;
        }
        let started = SnapshotSender::start(&running.ports, SHARD, &tables, seals()).await;
        let mut sender = started.expect("starts");
        let meta = sender.meta().expect("has one");
        let mut frames = Vec::new();
        while let Some(frame) = sender.next_frame().await.expect("reads") {
            frames.push(frame);
        }
        let text = frames.concat();
        let shown = |what: &[u8]| text.windows(what.len()).any(|part| part == what);
        use base64::Engine;
        let encoded = base64::engine::general_purpose::STANDARD.encode(b"a name that nobody may see");
        assert!(!shown(b"nobody may see") && !shown(&encoded.as_bytes()[4..24]), "I-K1: a name is in the stream");
        assert!(shown(b"\"position\":") && shown(b"\"count\":"), "ids and counts are readable");

        let receiving = to.open_tables(&running.ports, SHARD).await;
        let receive = async |frames: &[Vec<u8>]| {
            let mut receiver = SnapshotReceiver::new(SHARD, receiving.clone(), seals());
            for frame in frames {
                receiver.push(frame).await?;
            }
            receiver.finish()
        };
        assert!(receive(&frames[..frames.len() - 1]).await.is_err(), "cut off");
        let mut fewer = frames.clone();
        fewer.remove(1);
        assert!(receive(&fewer).await.is_err(), "one record is missing");
        for (number, frame) in frames.iter().enumerate() {
            for at in [0, frame.len() / 2, frame.len() - 2] {
                let mut bad = frames.clone();
                bad[number][at] ^= 1;
                assert!(receive(&bad).await.is_err(), "record {number}, byte {at}");
            }
        }
        let (received, _) = receive(&frames).await.expect("whole");
        assert_eq!(received, meta);
    });
}

/// What never becomes a voter would be sent everything for as long as the group lives.
#[test]
fn a_learner_that_did_not_become_a_voter_is_let_go_by_the_next_change() {
    let sim = Sim::new(13);
    let links = ProcessLinks::new();
    let main = kiseki_simulator::NodeId(100);
    sim.block_on(main, async {
        let voters = cluster(&sim, &links).await;
        let led = leader(&voters.iter().collect::<Vec<_>>()).await;
        assert!(led.group.add_learner(4).await.is_err(), "nobody is there");
        let members = || led.group.metrics().membership_config.membership().nodes().count();
        assert_eq!(members(), 4);
        led.group.change_voters(&[1, 2, 3]).await.expect("nothing to change, but to let go");
        assert_eq!(members(), 3);
    });
}
