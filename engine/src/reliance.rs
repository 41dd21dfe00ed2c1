//! Which nodes and racks stripes can't do without, as a walk over them finds it.

use crate::home_service::HeldGeneration;
use crate::racks::{Domain, Racks};
use crate::spread::ByNode;
use kiseki_types::fragment::{StoredFragment, StripeShape};
use kiseki_types::ids::{DeviceId, NodeId, PoolId};
use std::collections::{BTreeMap, BTreeSet};

/// How stripes lie on the nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reliance {
    /// Stripes that can't be read without a node, by node: written when there were fewer nodes, or not whole.
    pub stripes: BTreeMap<NodeId, u64>,
    /// Most fragments that one node holds of a stripe.
    pub most_on_a_node: usize,
    /// Stripes that can't be read without a rack, by rack.
    pub racks: BTreeMap<Domain, u64>,
    /// Most fragments that one rack holds of a stripe.
    pub most_in_a_rack: usize,
    /// Pools and shapes of stripes that can't be read without some rack.
    pub shapes: BTreeSet<(PoolId, StripeShape)>,
}

impl Reliance {
    /// Counts a stripe whose fragments lie so. `silent` are nodes that did not say what they have: a stripe that can't be read
    /// from the others is taken to need each of them.
    pub(crate) fn count(
        &mut self,
        pool: PoolId,
        shape: StripeShape,
        by_node: &ByNode,
        silent: &[NodeId],
        racks: &Racks,
    ) {
        let (needed, good) = (usize::from(shape.data), by_node.values().sum::<usize>());
        let relies_on = |held: usize| good >= needed && good - held < needed;
        for (node, held) in by_node {
            self.most_on_a_node = self.most_on_a_node.max(*held);
            if relies_on(*held) {
                *self.stripes.entry(*node).or_default() += 1;
            }
        }
        if good < needed {
            silent.iter().for_each(|node| *self.stripes.entry(*node).or_default() += 1);
        }
        if racks.are_named() {
            let mut domains = racks.by_domain(by_node);
            self.most_in_a_rack = self.most_in_a_rack.max(domains.values().copied().max().unwrap_or_default());
            domains.retain(|_, held| relies_on(*held));
            if good < needed {
                domains.extend(silent.iter().map(|node| (racks.domain(*node), 0)));
            }
            if !domains.is_empty() {
                self.shapes.insert((pool, shape));
            }
            domains.into_keys().for_each(|domain| *self.racks.entry(domain).or_default() += 1);
        }
    }
}

/// Fragments of a stripe by node, each index once.
pub(crate) fn by_node(
    held: &HeldGeneration,
    located: &[StoredFragment],
    usable: &BTreeSet<DeviceId>,
    nodes: &BTreeMap<DeviceId, NodeId>,
) -> BTreeMap<NodeId, usize> {
    let fits =
        |found: &&StoredFragment| usable.contains(&found.extent.device) && held.stripe.fits(held.name, &found.meta);
    let indices: BTreeMap<u8, DeviceId> =
        located.iter().filter(fits).map(|found| (found.meta.key.index, found.extent.device)).collect();
    let mut by_node = BTreeMap::new();
    for node in indices.values().filter_map(|device| nodes.get(device)) {
        *by_node.entry(*node).or_default() += 1;
    }
    by_node
}

#[cfg(test)]
mod tests {
    use super::Reliance;
    use crate::racks::{Domain, Racks};
    use kiseki_types::fragment::StripeShape;
    use kiseki_types::ids::{NodeId, PoolId};
    use std::collections::BTreeMap;

    fn counted(data: u8, by_node: &[(u64, usize)], silent: &[u64]) -> BTreeMap<NodeId, u64> {
        in_racks(data, by_node, silent, &Racks::default()).stripes
    }

    fn in_racks(data: u8, by_node: &[(u64, usize)], silent: &[u64], racks: &Racks) -> Reliance {
        let mut reliance = Reliance::default();
        let by_node = by_node.iter().map(|(node, held)| (NodeId(*node), *held)).collect();
        let silent: Vec<NodeId> = silent.iter().copied().map(NodeId).collect();
        reliance.count(PoolId(0), StripeShape { data, parity: 2 }, &by_node, &silent, racks);
        reliance
    }

    #[test]
    fn a_stripe_needs_a_rack_without_whose_nodes_too_few_fragments_are_left() {
        let racks = Racks::of([(NodeId(1), "a"), (NodeId(2), "a"), (NodeId(3), "b"), (NodeId(4), "")].into_iter());
        let reliance = in_racks(2, &[(1, 1), (2, 1), (3, 1)], &[], &racks);
        assert!(reliance.stripes.is_empty() && reliance.most_in_a_rack == 2, "{reliance:?}");
        assert_eq!(reliance.racks, BTreeMap::from([(Domain::Rack(0), 1)]), "its two nodes together");
        assert!(in_racks(2, &[(1, 1), (3, 1), (4, 1)], &[], &racks).racks.is_empty(), "one in each");
        assert_eq!(in_racks(2, &[(1, 1)], &[2, 3], &racks).racks.len(), 2, "nobody knows which of them has it");
    }

    #[test]
    fn a_stripe_needs_a_node_without_which_too_few_fragments_are_left() {
        assert!(counted(2, &[(1, 1), (2, 1), (3, 1)], &[]).is_empty(), "any two of three do");
        assert_eq!(counted(2, &[(1, 2), (2, 1)], &[]), BTreeMap::from([(NodeId(1), 1)]), "one holds too much");
        assert_eq!(counted(1, &[(2, 1)], &[]), BTreeMap::from([(NodeId(2), 1)]), "one holds all");
    }

    #[test]
    fn a_stripe_that_the_others_can_not_read_needs_the_node_that_is_silent() {
        assert!(counted(1, &[(1, 1), (2, 1)], &[3]).is_empty(), "two copies are left");
        assert_eq!(counted(2, &[(1, 1)], &[3]), BTreeMap::from([(NodeId(3), 1)]), "health must not say that it may go");
        assert_eq!(counted(1, &[], &[2, 3]).len(), 2, "nobody knows which of them has it");
    }
}
