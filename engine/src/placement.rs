//! Which devices hold a stripe: weighted rendezvous hashing of the locator, in integers only.
//!
//! Each device draws a lot from (locator, device), and the draws are ordered so that a device of twice the weight comes
//! first twice as often. Adding or removing a device moves only its own share, and nobody stores a table. The draw of
//! device d is `-log2(u) / weight`, u uniform in (0, 1]: the smallest of such exponential draws is d's with probability
//! weight / sum of weights. The logarithm is computed bit by bit in fixed point, and draws are compared by cross
//! multiplication, so every processor orders alike; floats would not promise that.
//!
//! Several nodes take turns ([`by_turns`]): the draws decide which of a node's devices comes first and which node begins,
//! and a node is taken once more only when every node with a device left has been taken as often. Where that lets a stripe
//! survive the loss of any rack, racks take turns like that, and the nodes of a rack among themselves.

use crate::racks::{Domain, Racks};
use crate::spread::{ByNode, survives_any};
use kiseki_types::fragment::StripeShape;
use kiseki_types::ids::{DeviceId, Locator, NodeId};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

/// A device as a candidate for fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacementCandidate {
    /// Which.
    pub device: DeviceId,
    /// Its share, in any unit that is the same for all (bytes of capacity); 0 takes no fragments.
    pub weight: u64,
}

/// Fraction bits of [`negative_log2`].
const FRACTION_BITS: u32 = 40;

/// All candidates with a weight, in the order in which they hold the stripe of `locator`: the first `width` usable ones.
///
/// Does not depend on the order of `candidates`. Panics when a device is named twice (I-D4): our own bug.
#[must_use]
pub fn order(locator: &Locator, candidates: &[PlacementCandidate]) -> Vec<DeviceId> {
    let distinct: BTreeSet<DeviceId> = candidates.iter().map(|candidate| candidate.device).collect();
    assert_eq!(distinct.len(), candidates.len(), "I-D4: a device is a candidate twice for {locator}");
    let with_weight = candidates.iter().filter(|candidate| candidate.weight > 0);
    let mut draws: Vec<Draw> = with_weight.map(|candidate| Draw::of(locator, candidate)).collect();
    draws.sort_unstable_by(Draw::compare);
    draws.into_iter().map(|draw| draw.device).collect()
}

/// The devices of an [`order`] with their nodes taking turns, so that a node's loss costs a stripe as little as it can (I-D4):
/// no node takes more than a fair share while others have devices left. With one node the order stays as it is.
///
/// Racks come before nodes where a new stripe of `shape` survives the loss of any of them on these devices, and are left out of
/// account where it can't: then nothing is to be gained, and nodes would bear more than their share.
///
/// - `held`: fragments that the stripe has on nodes already; those have had as many turns. `holders`: the devices that have one;
///   they are left out, and take no turn.
///
/// A device that joins displaces at most one of the first `width` where racks don't matter, one that leaves makes room for one; nothing else moves.
#[must_use]
pub fn by_turns(
    order: Vec<DeviceId>,
    node_of: impl Fn(&DeviceId) -> NodeId,
    racks: &Racks,
    (held, holders): (&ByNode, &BTreeSet<DeviceId>),
    shape: StripeShape,
) -> Vec<DeviceId> {
    let mut devices: Vec<(NodeId, DeviceId)> = order.into_iter().map(|device| (node_of(&device), device)).collect();
    let by_nodes = |devices, held: &ByNode| turns(devices, |(node, _)| *node, held.clone());
    let domain = |(node, _): &(NodeId, DeviceId)| racks.domain(*node);
    let by_racks = |devices, held: &ByNode| turns(by_nodes(devices, held), domain, racks.by_domain(held));
    let do_racks_matter = racks.are_named() && {
        let mut counts: BTreeMap<Domain, usize> = BTreeMap::new();
        let placed = by_racks(devices.clone(), &ByNode::new());
        placed.iter().take(shape.width()).for_each(|device| *counts.entry(domain(device)).or_default() += 1);
        survives_any(shape, &counts)
    };
    devices.retain(|(_, device)| !holders.contains(device));
    let devices = if do_racks_matter { by_racks(devices, held) } else { by_nodes(devices, held) };
    devices.into_iter().map(|(_, device)| device).collect()
}

/// Lets what `of` says of them take turns, in the order in which they come; `had` are turns that were taken before.
pub(crate) fn turns<T, K: Ord>(items: Vec<T>, of: impl Fn(&T) -> K, mut had: BTreeMap<K, usize>) -> Vec<T> {
    let mut take = |item: T| {
        let turn = had.entry(of(&item)).or_default();
        *turn += 1;
        (*turn, item)
    };
    let mut items: Vec<(usize, T)> = items.into_iter().map(&mut take).collect();
    items.sort_by_key(|(turn, _)| *turn); // stable: within a turn the order before decides
    items.into_iter().map(|(_, item)| item).collect()
}

/// The first `width` devices of an [`order`] that are usable; fewer when there are not enough.
///
/// The position in the result is the fragment index. I-D4: all are different devices.
#[must_use]
pub fn choose(order: &[DeviceId], width: usize, usable: impl Fn(DeviceId) -> bool) -> Vec<DeviceId> {
    let chosen: Vec<DeviceId> = order.iter().copied().filter(|device| usable(*device)).take(width).collect();
    let distinct: BTreeSet<DeviceId> = chosen.iter().copied().collect();
    assert_eq!(distinct.len(), chosen.len(), "I-D4: a stripe repeats a device: {chosen:?}");
    chosen
}

/// One device's draw: `cost / weight`, the smallest first.
struct Draw {
    device: DeviceId,
    cost: u64,
    weight: u64,
}

impl Draw {
    fn of(locator: &Locator, candidate: &PlacementCandidate) -> Draw {
        let cost = negative_log2(hash(locator, candidate.device));
        Draw { device: candidate.device, cost, weight: candidate.weight }
    }

    /// a/b < c/d exactly when a*d < c*b; 46 + 64 bits fit in 128. Equal draws go by device id.
    fn compare(&self, other: &Draw) -> Ordering {
        let (left, right) =
            (u128::from(self.cost) * u128::from(other.weight), u128::from(other.cost) * u128::from(self.weight));
        left.cmp(&right).then_with(|| self.device.cmp(&other.device))
    }
}

/// -log2((hash + 1) / 2^64) with [`FRACTION_BITS`] fraction bits, rounded up; at most 64 << 40.
///
/// Integer part of log2 from the leading zeros; then each squaring of the mantissa yields one more bit.
fn negative_log2(hash: u64) -> u64 {
    let value = u128::from(hash) + 1; // 1..=2^64
    let integer = 127 - value.leading_zeros();
    let mut mantissa = (value << (64 - integer)) >> 1; // [2^63, 2^64): 1.0 <= m < 2.0 in 1.63 fixed point
    let mut fraction = 0u64;
    for _ in 0..FRACTION_BITS {
        mantissa = (mantissa * mantissa) >> 63;
        let bit = mantissa >> 64;
        fraction = fraction << 1 | bit as u64;
        mantissa >>= bit;
    }
    (64 << FRACTION_BITS) - ((u64::from(integer) << FRACTION_BITS) | fraction)
}

/// A well mixed number of both; part of the placement format, never changed.
fn hash(locator: &Locator, device: DeviceId) -> u64 {
    let words =
        |bytes: &[u8]| bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect::<Vec<_>>();
    let all = words(&locator.0).into_iter().chain(words(&device.0));
    all.fold(0x6b69_7365_6b69_2131, |state, word| mix(state ^ word))
}

/// A bijection of 64 bits in which every input bit moves every output bit: two rounds of shift and multiply by odd
/// constants (the 64-bit finalizer of MurmurHash3).
fn mix(mut value: u64) -> u64 {
    value ^= value >> 33;
    value = value.wrapping_mul(0xff51_afd7_ed55_8ccd);
    value ^= value >> 33;
    value = value.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    value ^ value >> 33
}

#[cfg(test)]
mod tests;
