//! Rebalancing of one stripe that is whole: which of its fragments lie where placement would not put them today, which of
//! those are worth a move, and the move.
//!
//! - *Spread* (I-D4): a node, or a rack where racks matter, holds more of the stripe than placement gives any. Exactly the surplus moves.
//! - *Balance*: a fragment lies on a device that is not among those that placement would choose, and one that is has much more
//!   room. It moves there.
//!
//! Neither ever undoes the other or itself: a spread move lowers the surplus, a balance move lowers the number of
//! misplaced fragments and never raises the surplus. So it ends, whatever the fill of devices does meanwhile.

use crate::core::Core;
use crate::delta::ChunkName;
use crate::evacuation::{let_go, put_copy};
use crate::home_service::RepairGuard;
use crate::racks::{Domain, Racks};
use crate::repair::{Glance, Silence, StripeRecord, add, placement_order};
use crate::spread::{ByNode, survives_any};
use kiseki_types::buf::IoBytes;
use kiseki_types::fragment::{DeviceStatus, FragmentError, StoredFragment, StripeShape};
use kiseki_types::ids::{DeviceId, NodeId};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use tracing::debug;

/// What a move is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// No node and no rack holds more of a stripe than placement gives any.
    Spread,
    /// Devices are about as full as others.
    Balance {
        /// Thousandths of fill that the source has to be ahead of the target, and more.
        apart_permille: u64,
    },
}

/// A device as a place for fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spot {
    /// Which.
    pub device: DeviceId,
    /// Its node.
    pub node: NodeId,
    /// What that fails with.
    pub domain: Domain,
    /// How full it is; `None` where that is not known.
    pub fill_permille: Option<u64>,
}

impl Spot {
    fn of(device: &DeviceStatus, racks: &Racks) -> Spot {
        let (node, fill_permille) = (device.node, device.fill_permille());
        Spot { device: device.id, node, domain: racks.domain(node), fill_permille }
    }

    /// Whether it is fuller than another one by more than so much.
    fn is_fuller(&self, other: &Spot, apart_permille: u64) -> Option<u64> {
        let ahead = self.fill_permille?.checked_sub(other.fill_permille?)?;
        Some(ahead).filter(|ahead| *ahead > apart_permille)
    }
}

/// One move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Which fragment.
    pub index: u8,
    /// Where it is to go.
    pub to: Spot,
}

/// Where a stripe lies and where placement would put it.
#[derive(Clone, Debug)]
pub struct StripeMap {
    /// By index; those that were moved stay where they are now.
    held: BTreeMap<u8, (Spot, bool)>,
    /// The devices of today, in placement order.
    order: Vec<Spot>,
    shape: StripeShape,
}

/// How many fragments of a stripe lie on each node and in each rack.
struct Counts {
    nodes: ByNode,
    domains: BTreeMap<Domain, usize>,
}

impl Counts {
    fn of<'a>(spots: impl Iterator<Item = &'a Spot>) -> Counts {
        let mut counts = Counts { nodes: ByNode::new(), domains: BTreeMap::new() };
        for spot in spots {
            *counts.nodes.entry(spot.node).or_default() += 1;
            *counts.domains.entry(spot.domain).or_default() += 1;
        }
        counts
    }

    fn on_node(&self, spot: &Spot) -> usize {
        self.nodes.get(&spot.node).copied().unwrap_or_default()
    }

    fn in_domain(&self, spot: &Spot) -> usize {
        self.domains.get(&spot.domain).copied().unwrap_or_default()
    }
}

impl StripeMap {
    /// Looks at a whole stripe, of which `located` can be read. `None` when it is not for rebalancing: a part of it lies on a device that takes no fragments (it
    /// is looked after otherwise), or placement has too few devices for its width.
    #[must_use]
    pub fn at(
        name: ChunkName,
        stripe: &StripeRecord,
        located: &[StoredFragment],
        devices: &[DeviceStatus],
        racks: &Racks,
    ) -> Option<StripeMap> {
        let takes: BTreeMap<DeviceId, &DeviceStatus> = devices
            .iter()
            .filter(|device| device.pool == stripe.pool && device.state.takes_fragments())
            .map(|device| (device.id, device))
            .collect();
        let spot = |found: &StoredFragment| {
            let spot = Spot::of(takes.get(&found.extent.device)?, racks);
            Some((found.meta.key.index, (spot, false)))
        };
        let held = located.iter().map(spot).collect::<Option<BTreeMap<_, _>>>()?;
        let order = placement_order(
            &name.locator,
            takes.values().copied(),
            racks,
            (&ByNode::new(), &BTreeSet::new()),
            stripe.shape,
        );
        StripeMap::of(held, order.iter().map(|device| Spot::of(takes[device], racks)).collect(), stripe.shape)
    }

    fn of(held: BTreeMap<u8, (Spot, bool)>, order: Vec<Spot>, shape: StripeShape) -> Option<StripeMap> {
        let width = shape.width();
        (order.len() >= width && held.len() == width).then_some(StripeMap { held, order, shape })
    }

    /// Where placement puts the stripe today.
    fn placed(&self) -> &[Spot] {
        &self.order[..self.shape.width()]
    }

    /// The most that placement gives any node, and any rack where racks matter: where the stripe can't survive the loss of one
    /// anyhow, they hold what they hold.
    fn most(&self) -> (usize, usize) {
        let placed = Counts::of(self.placed().iter());
        let most_on_node = placed.nodes.values().copied().max().unwrap_or_default();
        let most_in_domain = match survives_any(self.shape, &placed.domains) {
            true => placed.domains.values().copied().max().unwrap_or_default(),
            false => self.shape.width(),
        };
        (most_on_node, most_in_domain)
    }

    /// The next fragment that is to move for `goal`, to none of the `refused` devices; `None` when no (further) one is.
    #[must_use]
    pub fn next(&self, goal: Goal, refused: &BTreeSet<DeviceId>) -> Option<Step> {
        match goal {
            Goal::Spread => self.next_spread(refused),
            Goal::Balance { apart_permille } => self.next_balance(apart_permille, refused),
        }
    }

    /// How many moves reach `goal`.
    #[must_use]
    pub fn count(mut self, goal: Goal) -> usize {
        let mut count = 0;
        while let Some(step) = self.next(goal, &BTreeSet::new()) {
            self.moved(step);
            count += 1;
        }
        count
    }

    /// A move was made. Its fragment does not move again.
    pub fn moved(&mut self, step: Step) {
        self.held.insert(step.index, (step.to, true));
    }

    fn next_spread(&self, refused: &BTreeSet<DeviceId>) -> Option<Step> {
        let counts = Counts::of(self.held.values().map(|(spot, _)| spot));
        let (most_on_node, most_in_domain) = self.most();
        let over_domain = |spot: &Spot| counts.in_domain(spot).saturating_sub(most_in_domain);
        let is_over = |spot: &Spot| over_domain(spot) > 0 || counts.on_node(spot) > most_on_node;
        let mut movable: Vec<(u8, Spot)> = self.held.iter().map(|(index, (spot, _))| (*index, *spot)).collect();
        movable.retain(|(index, spot)| !self.held[index].1 && is_over(spot));
        // The fullest rack first, then the fullest node, and of its fragments the one whose device comes last in the order, or not at all.
        movable.sort_by_key(|(_, spot)| {
            let on_node = counts.on_node(spot);
            (over_domain(spot), on_node.saturating_sub(most_on_node), on_node, self.rank(&spot.device))
        });
        let target = |from: &Spot| {
            let takes = |to: &Spot| {
                let fits_node = to.node == from.node || counts.on_node(to) < most_on_node;
                let fits_domain = to.domain == from.domain || counts.in_domain(to) < most_in_domain;
                let helps = if over_domain(from) > 0 { to.domain != from.domain } else { to.node != from.node };
                fits_node && fits_domain && helps
            };
            let free = self.order.iter().enumerate().filter(|(_, spot)| !self.holds(&spot.device));
            let free = free.filter(|(_, spot)| !refused.contains(&spot.device) && takes(spot));
            // Where placement would put one comes first: then it never has to move again.
            let best = free.min_by_key(|(rank, spot)| {
                (*rank >= self.shape.width(), counts.in_domain(spot), counts.on_node(spot), *rank)
            });
            best.map(|(_, to)| *to)
        };
        // One for which there is no room just now is no reason to leave another where it is.
        movable.iter().rev().find_map(|(index, from)| Some(Step { index: *index, to: target(from)? }))
    }

    fn next_balance(&self, apart_permille: u64, refused: &BTreeSet<DeviceId>) -> Option<Step> {
        let placed = self.placed();
        let (counts, wanted) = (Counts::of(self.held.values().map(|(spot, _)| spot)), Counts::of(placed.iter()));
        let (_, most_in_domain) = self.most();
        let free = || placed.iter().filter(|spot| !self.holds(&spot.device) && !refused.contains(&spot.device));
        // I-D4: no node and no rack gets more than placement gives it.
        let may_come = |from: &Spot, to: &Spot| {
            (from.node == to.node || counts.on_node(to) < wanted.on_node(to))
                && (from.domain == to.domain || counts.in_domain(to) < most_in_domain)
        };
        let misplaced = self.held.iter().filter(|(_, (spot, moved))| !moved && self.rank(&spot.device) >= placed.len());
        let pairs = misplaced.flat_map(|(index, (from, _))| {
            let pair = move |to: &Spot| {
                let ahead = from.is_fuller(to, apart_permille).filter(|_| may_come(from, to))?;
                Some((ahead, Step { index: *index, to: *to }))
            };
            free().filter_map(pair)
        });
        pairs.max_by_key(|(ahead, step)| (*ahead, step.index, step.to.device)).map(|(_, step)| step)
    }

    fn rank(&self, device: &DeviceId) -> usize {
        self.order.iter().position(|spot| spot.device == *device).unwrap_or(usize::MAX)
    }

    fn holds(&self, device: &DeviceId) -> bool {
        self.held.values().any(|(spot, _)| spot.device == *device)
    }
}

/// How the rebalancing of a stripe ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relocated {
    /// Nothing of it is left to move.
    Done,
    /// Devices that it should move to took nothing, most likely because they are full.
    NoRoom,
    /// It has to be repaired first.
    NotWhole,
    /// It is looked after otherwise, or a node is awaited that may hold more of it.
    Later,
}

/// What was moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Fragments.
    pub fragments: u64,
    /// Payload bytes of those.
    pub bytes: u64,
}

impl Amount {
    /// So many fragments of one stripe.
    #[must_use]
    pub fn of(stripe: &StripeRecord, fragments: usize) -> Amount {
        let fragments = fragments as u64;
        Amount { fragments, bytes: fragments * u64::from(stripe.payload_len_bytes()) }
    }

    /// With as much more.
    #[must_use]
    pub fn plus(self, other: Amount) -> Amount {
        Amount { fragments: self.fragments + other.fragments, bytes: self.bytes + other.bytes }
    }

    /// Without what is done; what was counted may have changed since.
    #[must_use]
    pub fn minus(self, other: Amount) -> Amount {
        Amount {
            fragments: self.fragments.saturating_sub(other.fragments),
            bytes: self.bytes.saturating_sub(other.bytes),
        }
    }

    /// No more than another.
    #[must_use]
    pub fn at_most(self, other: Amount) -> Amount {
        Amount { fragments: self.fragments.min(other.fragments), bytes: self.bytes.min(other.bytes) }
    }
}

/// What one relocation has cost and reached, however it ends.
#[derive(Default)]
pub struct Work {
    /// Payload bytes read and written: what the pace counts.
    pub touched: Cell<u64>,
    /// Fragments that are where they should be now.
    pub moved: Cell<Amount>,
}

/// Moves what a whole stripe has where `goal` does not want it; `devices` say how full they are. The copy is durable and indexed before the fragment is freed, and
/// `guard` keeps the stripe from collection and other repairs. Cut off anywhere, it leaves a stripe that is whole, at worst
/// with a fragment twice, of which repair frees one.
///
/// Errors mean "unknown": the stripe has to be looked at by repair.
pub async fn relocate(
    core: &Core,
    name: ChunkName,
    stripe: &StripeRecord,
    goal: Goal,
    devices: &[DeviceStatus],
    work: &Work,
    guard: &RepairGuard,
) -> Result<Relocated, FragmentError> {
    let _placement = core.devices.place();
    let located = core.fragments.locate(name.locator, name.generation).await?;
    if Silence::of(core, &located)? != Silence::None {
        return Ok(Relocated::Later);
    }
    // What lies on a device that can't be read now may come back: then repair frees one of the two.
    let (mut located, readable) = (located.found, core.devices.readable());
    located.retain(|found| readable.contains(&found.extent.device));
    if !Glance::at(name, stripe, &located, &readable).is_whole {
        return Ok(Relocated::NotWhole);
    }
    let Some(mut map) = StripeMap::at(name, stripe, &located, devices, &core.nodes.racks()) else {
        return Ok(Relocated::Later);
    };
    let mut held_by: BTreeMap<u8, DeviceId> =
        located.iter().map(|found| (found.meta.key.index, found.extent.device)).collect();
    let (mut refused, mut read) = (BTreeSet::new(), None::<(u8, IoBytes)>);
    while let Some(step) = map.next(goal, &refused) {
        let found = located.iter().find(|found| found.meta.key.index == step.index).expect("it was looked at");
        let len = found.meta.payload_len_bytes;
        let payload = match read.take().filter(|(index, _)| *index == step.index) {
            Some((_, payload)) => payload,
            None => match core.fragments.read(found, 0..len).await {
                Ok(payload) => {
                    add(&work.touched, u64::from(len));
                    payload
                }
                Err(FragmentError::Corrupt { .. } | FragmentError::DeviceFailed { .. }) => {
                    return Ok(Relocated::NotWhole);
                }
                Err(unknown) => return Err(unknown),
            },
        };
        if !put_copy(core, name, stripe, step.index, step.to.device, &payload, &mut held_by).await? {
            refused.insert(step.to.device);
            read = Some((step.index, payload));
            continue;
        }
        add(&work.touched, u64::from(len));
        let_go(core, found, guard).await?;
        map.moved(step);
        work.moved.set(work.moved.get().plus(Amount { fragments: 1, bytes: u64::from(len) }));
        debug!(locator = %name.locator, from = %found.extent.device, to = %step.to.device, ?goal, "fragment moved");
    }
    Ok(if map.next(goal, &BTreeSet::new()).is_some() { Relocated::NoRoom } else { Relocated::Done })
}

#[cfg(test)]
mod tests;
