//! Stripes whose fragments went to other devices than they should, since a put failed or was not answered in time. They are whole, so
//! while no device comes or goes nobody looks at them: they are looked at here some time later. A fragment that landed all the
//! same, when another device had it, is freed by repair; one that a node has too many of is moved by the next survey.

use crate::core::Core;
use crate::delta::ChunkName;
use crate::repair_queue::{Margin, RepairCause};
use crate::repairer;
use crate::spread::{ByNode, survives_any};
use crate::without::would_survive_any_rack;
use kiseki_types::fragment::{StoredFragment, StripeShape};
use kiseki_types::ids::{DeviceId, NodeId, PoolId};
use kiseki_types::runtime::{Instant, RuntimeExt};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

/// What a node has not begun of a put after this time it never begins: its connection has broken, or the message was refused.
const LANDED_AFTER: Duration = Duration::from_secs(60);

/// Between two looks.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Stripes that are remembered (I-O5); with more the oldest are left to the next walk.
const STRIPES_MAX: usize = 16_384;

/// Stripes of which one core is not sure that each fragment lies where it should, and nowhere else.
#[derive(Default)]
pub(crate) struct LatePuts {
    waiting: RefCell<VecDeque<(Instant, ChunkName, StripeShape, PoolId)>>,
}

impl LatePuts {
    /// A stripe is whole, and a put of it failed.
    pub(crate) fn note(&self, name: ChunkName, shape: StripeShape, pool: PoolId, now: Instant) {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.len() >= STRIPES_MAX {
            waiting.pop_front();
        }
        waiting.push_back((now, name, shape, pool));
    }

    fn due(&self, now: Instant) -> Option<(ChunkName, StripeShape, PoolId)> {
        let mut waiting = self.waiting.borrow_mut();
        let (_, name, shape, pool) = waiting.pop_front_if(|(at, ..)| now.since(*at) >= LANDED_AFTER)?;
        Some((name, shape, pool))
    }
}

/// Looks for fragments that landed late, for as long as the node runs.
pub(crate) fn start(core: &Rc<Core>) {
    let looking = core.clone();
    let task = async move {
        loop {
            looking.ports.sleep(LOOK_INTERVAL).await;
            while let Some((name, shape, pool)) = looking.late_puts.due(looking.ports.now()) {
                // A node that does not answer is walked over when it is back.
                if let Ok(located) = looking.fragments.locate(name.locator, name.generation).await
                    && (located.found.len() > shape.width() || is_uneven(&looking, pool, shape, &located.found))
                {
                    repairer::report(&looking, name, Margin::from(shape.parity), RepairCause::Unreadable);
                }
            }
        }
    };
    core.background.repeat("late puts", Box::pin(task));
}

/// Whether a node has more of a stripe than it would have to, or a rack more than the stripe can lose.
fn is_uneven(core: &Core, pool: PoolId, shape: StripeShape, found: &[StoredFragment]) -> bool {
    let (devices, racks) = (core.devices.devices(), core.nodes.racks());
    let node_of: BTreeMap<DeviceId, NodeId> = devices.iter().map(|device| (device.id, device.node)).collect();
    let takes = devices.iter().filter(|device| device.pool == pool && device.state.takes_fragments());
    let nodes: BTreeSet<NodeId> = takes.map(|device| device.node).collect();
    let mut by_node = ByNode::new();
    for node in found.iter().filter_map(|fragment| node_of.get(&fragment.extent.device)) {
        *by_node.entry(*node).or_default() += 1;
    }
    let is_uneven_over_racks = || {
        racks.are_named()
            && !survives_any(shape, &racks.by_domain(&by_node))
            && would_survive_any_rack(&devices, &racks, pool, shape)
    };
    by_node.values().any(|has| *has > found.len().div_ceil(nodes.len().max(1))) || is_uneven_over_racks()
}
