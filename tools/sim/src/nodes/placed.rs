//! The checker of I-D4 over nodes: how the stripes of a core's homes lie, counted here anew from what every node says that it holds.

use kiseki_engine::core::Core;
use kiseki_types::ids::NodeId;
use std::collections::{BTreeMap, BTreeSet};

/// Generations that are looked at in one go.
const STEP: usize = 64;

/// Complete stripes of this core's homes that are not whole, or of which one of `nodes` nodes (all with as many devices), or one
/// of the racks, holds more than its fair share.
pub async fn badly_placed(core: &Core, nodes: usize, racks: &BTreeMap<NodeId, String>) -> Vec<String> {
    let rack_count = racks.values().collect::<BTreeSet<_>>().len();
    let mut wrong = Vec::new();
    for home in core.homes.all() {
        let mut after = None;
        loop {
            let batch = match home.generations_after(after, STEP).await {
                Ok(batch) => batch,
                Err(error) => {
                    wrong.push(format!("I-D4: {} does not list its generations in peace: {error}", home.shard()));
                    break;
                }
            };
            for held in batch.held.iter().filter(|held| held.is_complete) {
                let located = core.fragments.locate(held.name.locator, held.name.generation).await;
                let found = match located.and_then(|located| located.all()) {
                    Ok(found) => found,
                    Err(error) => {
                        wrong.push(format!("I-D4: {:?} is not located in peace: {error}", held.name));
                        continue;
                    }
                };
                let width = held.stripe.shape.width();
                let indices: BTreeSet<u8> = found.iter().map(|fragment| fragment.meta.key.index).collect();
                let devices: BTreeSet<_> = found.iter().map(|fragment| fragment.extent.device).collect();
                if (found.len(), indices.len(), devices.len()) != (width, width, width) {
                    wrong.push(format!("I-D4: {:?} is not whole: {found:?}", held.name));
                }
                let statuses = core.fragments.devices();
                let mut by_node = BTreeMap::<_, usize>::new();
                for status in statuses.iter().filter(|status| devices.contains(&status.id)) {
                    *by_node.entry(status.node).or_default() += 1;
                }
                if by_node.values().any(|count| *count > width.div_ceil(nodes)) {
                    wrong.push(format!("I-D4: {:?} lies on {by_node:?} of {nodes} nodes", held.name));
                }
                let mut by_rack = BTreeMap::<_, usize>::new();
                for (node, count) in &by_node {
                    *by_rack.entry(racks.get(node)).or_default() += count;
                }
                if rack_count > 0 && by_rack.values().any(|count| *count > width.div_ceil(rack_count)) {
                    wrong.push(format!("I-D4: {:?} lies on {by_rack:?} of {rack_count} racks", held.name));
                }
            }
            after = batch.next;
            if after.is_none() {
                break;
            }
        }
    }
    wrong
}
