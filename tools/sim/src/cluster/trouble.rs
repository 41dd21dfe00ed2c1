//! What goes wrong in a run: one thing after the other, drawn from the seed.

use kiseki_simulator::{NetFaults, SeededRng};
use kiseki_types::NodeId;
use std::ops::Range;
use std::time::Duration;

/// One thing that happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The power of a node fails now.
    Cut(NodeId),
    /// The power of a node fails at its so-manieth write.
    CutAtWrite(NodeId, u64),
    /// The power of all nodes fails.
    CutAll,
    /// A node without power loses the disk of its journal for good.
    LoseJournal(NodeId),
    /// A node without power gets it back.
    Start(NodeId),
    /// Nothing gets from the one to the other.
    OneWay(NodeId, NodeId),
    /// A node reaches nobody, and nobody reaches it.
    Alone(NodeId),
    /// These nodes and the others do not reach each other.
    Split(Vec<NodeId>),
    /// A shard's leader is cut off, and the others lose power at one of their next writes: of votes, as it comes.
    Usurp,
    /// All nodes reach each other.
    Heal,
    /// The network gets so bad.
    Net(NetFaults),
    /// A shard's leader gives its leadership away.
    Transfer,
    /// A voter of a shard is replaced by another node's.
    Replace,
    /// A replica makes a checkpoint and lets its log go.
    Checkpoint,
}

/// Draws what happens next.
pub fn draw(rng: &SeededRng, nodes: &[NodeId], dead: &[NodeId]) -> Trouble {
    if !dead.is_empty() && rng.chance(1, 8) {
        return Trouble::LoseJournal(*rng.pick(dead));
    }
    if !dead.is_empty() && rng.chance(1, 2) {
        return Trouble::Start(*rng.pick(dead));
    }
    let node = *rng.pick(nodes);
    match rng.below(25) {
        0 | 1 => Trouble::Cut(node),
        2..=5 => Trouble::CutAtWrite(node, 1 + rng.below(1 << rng.between(1..8))),
        6 => Trouble::CutAll,
        7 | 8 => Trouble::OneWay(node, *rng.pick(nodes)),
        9 | 10 => Trouble::Alone(node),
        11 => Trouble::Split(nodes.iter().copied().filter(|_| rng.chance(1, 2)).collect()),
        12..=14 => Trouble::Heal,
        15 | 16 => Trouble::Net(faults(rng)),
        17 | 18 => Trouble::Transfer,
        19 | 20 => Trouble::Replace,
        21..=23 => Trouble::Usurp,
        _ => Trouble::Checkpoint,
    }
}

fn faults(rng: &SeededRng) -> NetFaults {
    let delay_us: Range<u64> = if rng.chance(1, 2) { 20..2_000 } else { 1_000..120_000 };
    NetFaults {
        lost_per_mille: *rng.pick(&[0, 5, 50, 200]),
        late_per_mille: *rng.pick(&[0, 5, 30]),
        delay_us,
        late_ms: 300..6_000,
    }
}

/// The pause before the next thing.
pub fn pause(rng: &SeededRng) -> Duration {
    let ms = if rng.chance(1, 3) { rng.between(1..50) } else { rng.between(50..2_500) };
    Duration::from_millis(ms)
}
