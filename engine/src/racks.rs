//! Racks: nodes that fail together. What nodes of a rack share, a switch or a supply, takes all of them away at once.
//!
//! Each node says in its configuration which rack it is in (`rack`); a node that names none is a rack of its own, so a cluster
//! without racks is one in which every node fails alone.

use crate::spread::ByNode;
use kiseki_types::ids::NodeId;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// Longest name of a rack.
pub const RACK_LEN_BYTES_MAX: usize = 63;

/// Why a name can't be a rack's.
pub const RACK_NAMES: &str = "a rack is called by 1 to 63 of the characters A-Z a-z 0-9 . _ and -";

/// Whether a rack can be called so.
#[must_use]
pub fn is_rack_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=RACK_LEN_BYTES_MAX).contains(&name.len()) && name.bytes().all(fits)
}

/// What fails together: a rack, or a node that is in none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Domain {
    /// A rack, by its number among the names of one [`Racks`].
    Rack(usize),
    /// A node by itself.
    Node(NodeId),
}

/// Which nodes are in which rack.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Racks {
    numbers: Rc<BTreeMap<NodeId, usize>>,
}

impl Racks {
    /// Of nodes and what they say; an empty name is none.
    #[must_use]
    pub fn of<'a>(nodes: impl Iterator<Item = (NodeId, &'a str)> + Clone) -> Racks {
        let named = nodes.filter(|(_, rack)| !rack.is_empty());
        let names: BTreeSet<&str> = named.clone().map(|(_, rack)| rack).collect();
        let number = |rack| names.iter().position(|name| *name == rack).expect("each was taken up");
        Racks { numbers: Rc::new(named.map(|(node, rack)| (node, number(rack))).collect()) }
    }

    /// Whether any node names a rack.
    #[must_use]
    pub fn are_named(&self) -> bool {
        !self.numbers.is_empty()
    }

    /// What a node fails with.
    #[must_use]
    pub fn domain(&self, node: NodeId) -> Domain {
        self.numbers.get(&node).map_or(Domain::Node(node), |number| Domain::Rack(*number))
    }

    /// The same fragments by what fails together.
    #[must_use]
    pub fn by_domain(&self, by_node: &ByNode) -> BTreeMap<Domain, usize> {
        let mut counts = BTreeMap::new();
        for (node, count) in by_node {
            *counts.entry(self.domain(*node)).or_default() += count;
        }
        counts
    }
}
