//! Which nodes stripes can't do without, as a walk over them finds it.

use crate::home_service::HeldGeneration;
use kiseki_types::fragment::StoredFragment;
use kiseki_types::ids::{DeviceId, NodeId};
use std::collections::{BTreeMap, BTreeSet};

/// How stripes lie on the nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reliance {
    /// Stripes that can't be read without a node, by node: written when there were fewer nodes, or not whole.
    pub stripes: BTreeMap<NodeId, u64>,
    /// Most fragments that one node holds of a stripe.
    pub most_on_a_node: usize,
}

impl Reliance {
    /// Counts a stripe that needs `data` fragments of those that lie so. `silent` are nodes that did not say what they have: a
    /// stripe that can't be read from the others is taken to need each of them.
    pub(crate) fn count(&mut self, data: u8, by_node: &BTreeMap<NodeId, usize>, silent: &[NodeId]) {
        let (needed, good) = (usize::from(data), by_node.values().sum::<usize>());
        for (node, held) in by_node {
            self.most_on_a_node = self.most_on_a_node.max(*held);
            if good >= needed && good - held < needed {
                *self.stripes.entry(*node).or_default() += 1;
            }
        }
        if good < needed {
            silent.iter().for_each(|node| *self.stripes.entry(*node).or_default() += 1);
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
    use kiseki_types::ids::NodeId;
    use std::collections::BTreeMap;

    fn counted(data: u8, by_node: &[(u64, usize)], silent: &[u64]) -> BTreeMap<NodeId, u64> {
        let mut reliance = Reliance::default();
        let by_node = by_node.iter().map(|(node, held)| (NodeId(*node), *held)).collect();
        let silent: Vec<NodeId> = silent.iter().copied().map(NodeId).collect();
        reliance.count(data, &by_node, &silent);
        reliance.stripes
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
