//! When a stripe is durable on several nodes: what is acknowledged survives the loss of any one device and, from three nodes
//! on, of any one node.
//!
//! The rule is about where fragments lie, not about their number: `data` fragments have to be left without the node that
//! holds the most. A pool whose shape can't promise that on the nodes that there are (8+3 on three nodes, or none of the
//! parity) promises what it did on one node, and wants its full width for it.

use kiseki_types::fragment::{DeviceState, DeviceStatus, StripeShape};
use kiseki_types::ids::{NodeId, PoolId};
use std::collections::BTreeMap;

/// From so many nodes on a stripe has to survive the loss of one.
const NODES_MIN: usize = 3;

/// Fragments by node.
pub type ByNode = BTreeMap<NodeId, usize>;

/// Whether a stripe can be read without any one of what its fragments are counted by.
#[must_use]
pub fn survives_any<K>(shape: StripeShape, counts: &BTreeMap<K, usize>) -> bool {
    let (in_all, most) = (counts.values().sum::<usize>(), counts.values().copied().max().unwrap_or(0));
    in_all >= usize::from(shape.data) + most
}

/// What a pool has on which nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spread {
    /// Devices by node: those that take fragments, and those of nodes that are awaited.
    devices: ByNode,
    /// Awaited nodes of which it is not known what they have.
    unknown: usize,
}

impl Spread {
    /// - `is_awaited`: whether a node is silent and expected back; what such a node has counts, since it is part of the
    ///   cluster whose loss is to be survived.
    /// - `unknown`: awaited nodes of which it is not known what they have.
    #[must_use]
    pub fn of(devices: &[DeviceStatus], pool: PoolId, is_awaited: impl Fn(NodeId) -> bool, unknown: usize) -> Spread {
        let counts = |device: &&DeviceStatus| {
            let comes_back = device.state == DeviceState::Unreachable && is_awaited(device.node);
            device.pool == pool && (device.state.takes_fragments() || comes_back)
        };
        let mut by_node = ByNode::new();
        for device in devices.iter().filter(counts) {
            *by_node.entry(device.node).or_default() += 1;
        }
        Spread { devices: by_node, unknown }
    }

    /// Whether a stripe of which `durable` fragments lie so may be acknowledged.
    #[must_use]
    pub fn is_enough(&self, shape: StripeShape, durable: &ByNode) -> bool {
        durable.values().sum::<usize>() >= shape.ack_width() && self.survives_a_node(shape, durable)
    }

    /// Whether the loss of any one node leaves enough of it, as far as that is promised.
    #[must_use]
    pub fn survives_a_node(&self, shape: StripeShape, durable: &ByNode) -> bool {
        self.devices.len() + self.unknown < NODES_MIN
            || survives_any(shape, durable)
            || (durable.values().sum::<usize>() == shape.width() && !self.could_survive_a_node(shape))
    }

    /// How a stripe is made that is to be written now: as its pool wants it, or as copies that survive the loss of as many devices,
    /// where only these could be acknowledged. It stays as it is written.
    ///
    /// - `placed`: how many fragments of a stripe of some shape each node would take.
    #[must_use]
    pub fn shape_now(&self, wanted: StripeShape, placed: impl Fn(StripeShape) -> ByNode) -> StripeShape {
        if wanted.data == 1 || wanted.parity == 0 || self.is_enough(wanted, &placed(wanted)) {
            return wanted;
        }
        let copies = wanted.as_copies();
        if self.is_enough(copies, &placed(copies)) { copies } else { wanted }
    }

    /// Whether the nodes, all of them answering, could hold a stripe so that it survives the loss of any of them.
    fn could_survive_a_node(&self, shape: StripeShape) -> bool {
        let width = shape.width();
        let placed = |most: usize| -> usize {
            self.devices.values().map(|has| *has.min(&most)).sum::<usize>() + self.unknown * most
        };
        let most = (1..=width).find(|most| placed(*most) >= width).unwrap_or(width);
        let most_held = match self.unknown {
            0 => self.devices.values().copied().max().unwrap_or(0).min(most),
            _ => most,
        };
        placed(most).min(width) >= usize::from(shape.data) + most_held
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use kiseki_types::ids::DeviceId;

    /// Devices of nodes 1, 2 and so on, as many as is said; those of nodes that are `away` don't answer.
    pub(crate) fn devices(by_node: &[usize], away: &[u64]) -> Vec<DeviceStatus> {
        let of_node = |(node, count): (u64, &usize)| {
            let state = if away.contains(&node) { DeviceState::Unreachable } else { DeviceState::Healthy };
            let make = move |number: usize| DeviceStatus {
                id: DeviceId([node as u8 * 16 + number as u8; 16]),
                node: NodeId(node),
                name: String::new(),
                pool: PoolId(0),
                capacity_bytes: 1,
                free_bytes: 1,
                lanes_bytes: 0,
                state,
                read_errors: 0,
            };
            (0..*count).map(make).collect::<Vec<_>>()
        };
        (1..).zip(by_node).flat_map(of_node).collect()
    }

    fn durable(by_node: &[usize]) -> ByNode {
        (1..).map(NodeId).zip(by_node.iter().copied()).filter(|(_, count)| *count > 0).collect()
    }

    #[test]
    fn what_is_acknowledged_survives_a_device_and_from_three_nodes_on_a_node() {
        // (shape, devices by node, nodes that are away, fragments by node, acknowledged)
        type Case = ((u8, u8), &'static [usize], &'static [u64], &'static [usize], bool);
        let cases: &[Case] = &[
            ((4, 2), &[8], &[], &[6], true),
            ((4, 2), &[8], &[], &[5], true),
            ((4, 2), &[8], &[], &[4], false),
            ((4, 2), &[4, 4], &[], &[3, 3], true),
            ((4, 2), &[4, 4], &[], &[3, 2], true),
            ((4, 2), &[4, 4, 4], &[], &[2, 2, 2], true),
            ((4, 2), &[4, 4, 4], &[], &[2, 2, 1], false),
            ((4, 2), &[4, 4, 4], &[], &[3, 2, 1], false),
            ((4, 2), &[4, 4, 4], &[3], &[3, 3, 0], false),
            ((4, 2), &[1, 1, 1, 1, 1, 1], &[6], &[1, 1, 1, 1, 1], true),
            ((4, 2), &[1, 1, 1, 1, 1, 1], &[6], &[1, 1, 1, 1], false),
            ((4, 2), &[2, 2, 2, 2, 2, 2], &[6], &[2, 1, 1, 1, 1], true),
            ((1, 2), &[2, 2, 2], &[3], &[2, 1], true),
            ((1, 2), &[2, 2, 2], &[3], &[1, 1], true),
            ((1, 2), &[2, 2, 2], &[], &[2, 0], false),
            ((8, 3), &[4, 4, 4], &[], &[4, 4, 3], true),
            ((8, 3), &[4, 4, 4], &[], &[4, 4, 2], false),
            ((4, 0), &[4, 4, 4], &[], &[2, 1, 1], true),
            ((4, 2), &[8, 1, 1], &[], &[4, 1, 1], true),
            ((4, 2), &[8, 1, 1], &[], &[4, 1, 0], false),
        ];
        for (shape, by_node, away, fragments, expected) in cases {
            let shape = StripeShape { data: shape.0, parity: shape.1 };
            let spread = Spread::of(&devices(by_node, away), PoolId(0), |_| true, 0);
            let case = format!("{shape:?} on {by_node:?} without {away:?}: {fragments:?}");
            assert_eq!(spread.is_enough(shape, &durable(fragments)), *expected, "{case}");
        }
    }

    #[test]
    fn a_stripe_is_copies_where_only_these_could_be_acknowledged() {
        // (shape, devices by node, nodes that are away, whether they are awaited, shape of now)
        type Case = ((u8, u8), &'static [usize], &'static [u64], bool, (u8, u8));
        let cases: &[Case] = &[
            ((4, 2), &[4, 4, 4], &[], true, (4, 2)),
            ((4, 2), &[4, 4, 4], &[3], true, (1, 2)),
            ((4, 2), &[4, 4, 4], &[3], false, (4, 2)), // on two nodes a device is all that a stripe has to survive
            ((4, 2), &[2, 2, 2], &[3], false, (1, 2)),
            ((4, 2), &[2, 2, 2, 2], &[3], true, (4, 2)),
            ((4, 2), &[1, 1, 1, 1, 1, 1], &[6], true, (4, 2)),
            ((4, 2), &[1, 1, 1, 1, 1, 1], &[5, 6], true, (1, 2)),
            ((4, 2), &[4, 4, 4], &[2, 3], true, (4, 2)), // not even copies
            ((8, 3), &[4, 4, 4], &[], true, (8, 3)),
            ((8, 3), &[4, 4, 4], &[1], true, (1, 3)),
            ((1, 2), &[2, 2, 2], &[3], true, (1, 2)),
            ((4, 0), &[4, 4, 4], &[2, 3], true, (4, 0)),
        ];
        for (shape, by_node, away, is_awaited, expected) in cases {
            let shape_of = |shape: (u8, u8)| StripeShape { data: shape.0, parity: shape.1 };
            let (devices, alone) = (devices(by_node, away), crate::racks::Racks::default());
            let spread = Spread::of(&devices, PoolId(0), |_| *is_awaited, 0);
            let now =
                spread.shape_now(shape_of(*shape), |shape| crate::without::placed(&devices, &alone, PoolId(0), shape));
            assert_eq!(now, shape_of(*expected), "{shape:?} on {by_node:?} without {away:?}, awaited: {is_awaited}");
        }
    }

    #[test]
    fn lost_nodes_and_other_pools_do_not_count_and_unknown_ones_do() {
        let shape = StripeShape { data: 4, parity: 2 };
        let all = devices(&[4, 4, 4], &[3]);
        let halves = durable(&[3, 3]);
        let awaited = Spread::of(&all, PoolId(0), |_| true, 0);
        let lost = Spread::of(&all, PoolId(0), |_| false, 0);
        assert!(!awaited.is_enough(shape, &halves) && lost.is_enough(shape, &halves));
        assert!(Spread::of(&all, PoolId(1), |_| true, 0).is_enough(shape, &halves), "no node has devices of it");
        // Just started: two others are recorded and have not said yet what they have.
        let unknown = Spread::of(&devices(&[8], &[]), PoolId(0), |_| true, 2);
        assert!(!unknown.is_enough(shape, &durable(&[6])) && unknown.is_enough(shape, &durable(&[2, 2, 2])));
    }
}
