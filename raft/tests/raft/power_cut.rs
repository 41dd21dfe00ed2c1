//! Power cuts at random writes: what was acknowledged is there afterwards, and nothing that was never proposed.

use crate::common::{Node, Running, SHARD, put, value};
use kiseki_raft::{GroupStatus, ShardGroup};
use kiseki_simulator::executor::Interrupted;
use kiseki_simulator::{SeededRng, Sim};
use kiseki_types::ShardId;
use kiseki_types::group::RaftGroup;
use std::cell::RefCell;
use std::collections::BTreeMap;

const SHARDS: u64 = 3;
const ROUNDS: u64 = 6;

/// What the client knows of a key.
#[derive(Clone, Default, Debug)]
struct Known {
    acknowledged: Option<u64>,
    /// Proposed after that, without an answer.
    open: Vec<u64>,
}

type Book = RefCell<BTreeMap<(u64, u64), Known>>;

async fn open_groups(node: &Node, sim: &Sim) -> (Running, Vec<ShardGroup>) {
    let mut running = node.start(sim).await.expect("starts");
    running.settings.snapshot_entries = 40;
    running.settings.kept_entries = 10;
    let mut groups = Vec::new();
    for shard in 0..SHARDS {
        let shard = ShardId(SHARD.0 + shard);
        let parts = node.parts(&mut running, shard).await;
        let group = match running.log.status(shard) {
            GroupStatus::Absent | GroupStatus::Fresh => ShardGroup::create(parts, 1, &[1]).await,
            GroupStatus::Live | GroupStatus::Lost(_) => ShardGroup::open(parts).await,
        };
        groups.push(group.unwrap_or_else(|error| panic!("seed {}: {error}", sim.seed())));
    }
    (running, groups)
}

async fn check(sim: &Sim, groups: &[ShardGroup], book: &Book) {
    let book = book.borrow().clone();
    for ((shard, key), known) in &book {
        let group = &groups[*shard as usize];
        group.read_barrier().await.expect("leads");
        let tables = group.tables();
        let found = value(&*tables, *key).await.map(|bytes| u64::from_le_bytes(bytes[..8].try_into().expect("8")));
        let allowed = found == known.acknowledged || found.is_some_and(|found| known.open.contains(&found));
        assert!(allowed, "I-L2: seed {} shard {shard} key {key}: found {found:?}, knew {known:?}", sim.seed());
    }
}

/// What is there now is what later reads must show.
async fn settle(groups: &[ShardGroup], book: &Book) {
    let keys: Vec<(u64, u64)> = book.borrow().keys().copied().collect();
    for (shard, key) in keys {
        let found = value(&*groups[shard as usize].tables(), key).await;
        let found = found.map(|bytes| u64::from_le_bytes(bytes[..8].try_into().expect("8")));
        book.borrow_mut().insert((shard, key), Known { acknowledged: found, open: Vec::new() });
    }
}

async fn client(group: &ShardGroup, book: &Book, rng: &SeededRng, shard: u64, number: &RefCell<u64>) {
    for _ in 0..60 {
        let key = rng.below(20);
        let n = {
            let mut number = number.borrow_mut();
            *number += 1;
            *number
        };
        book.borrow_mut().entry((shard, key)).or_default().open.push(n);
        let mut bytes = n.to_le_bytes().to_vec();
        bytes.resize(8 + rng.below(6_000) as usize, 5);
        put(group, key, &bytes).await;
        let mut book = book.borrow_mut();
        let known = book.get_mut(&(shard, key)).expect("entered");
        let at = known.open.iter().position(|open| *open == n).expect("open");
        known.open.drain(..=at);
        known.acknowledged = Some(n);
    }
}

fn run(seed: u64) {
    let sim = Sim::new(seed);
    let node = Node::new(&sim, 1);
    let rng = SeededRng::for_part(seed, 77);
    let book = Book::default();
    let number = RefCell::new(0);
    sim.block_on(node.id, node.format(&sim));
    for round in 0..ROUNDS {
        node.switch.arm(1 + rng.below(250));
        let work = async {
            let (running, groups) = open_groups(&node, &sim).await;
            check(&sim, &groups, &book).await;
            settle(&groups, &book).await;
            // One client a shard: the order of its commands is known.
            let clients = (0..SHARDS).map(|shard| client(&groups[shard as usize], &book, &rng, shard, &number));
            let folds = async {
                for _ in 0..4 {
                    running.ports.yield_now().await;
                    running.log.fold().await.expect("folds");
                }
            };
            futures::future::join(futures::future::join_all(clients), folds).await;
        };
        match sim.block_on_or_cut(node.id, work, &node.switch) {
            Ok(()) => node.switch.cut_now(),
            Err(Interrupted::PowerCut) => {}
            Err(Interrupted::Stalled(stalled)) => panic!("seed {seed} round {round}: {stalled}"),
        }
        node.power_cut(&sim, seed * 100 + round);
    }
    sim.block_on(node.id, async {
        let (_running, groups) = open_groups(&node, &sim).await;
        check(&sim, &groups, &book).await;
        settle(&groups, &book).await;
        for (shard, group) in groups.iter().enumerate() {
            put(group, 9_999, &(shard as u64).to_le_bytes()).await;
        }
    });
}

#[test]
fn i_l2_acknowledged_commands_survive_power_cuts() {
    for seed in 0..60 {
        run(seed);
    }
}

/// The control: with flushes that save nothing the same run must fail.
#[test]
fn i_l2_a_missing_flush_is_seen() {
    let caught = (0..10).any(|seed| {
        std::panic::catch_unwind(|| {
            let sim = Sim::new(seed);
            let node = Node::new(&sim, 1);
            sim.block_on(node.id, async {
                node.format(&sim).await;
                let (_running, groups) = open_groups(&node, &sim).await;
                node.disks.iter().for_each(|disk| disk.set_flush_is_a_lie(true));
                for n in 0..20 {
                    put(&groups[0], n, &n.to_le_bytes()).await;
                }
            });
            node.power_cut(&sim, seed);
            sim.block_on(node.id, async {
                let (_running, groups) = open_groups(&node, &sim).await;
                for n in 0..20 {
                    assert!(value(&*groups[0].tables(), n).await.is_some());
                }
            });
        })
        .is_err()
    });
    assert!(caught, "power cuts without flushes must lose something");
}
