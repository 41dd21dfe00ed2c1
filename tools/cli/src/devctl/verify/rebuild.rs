//! `verify --rebuild-index`: rows made from the devices' bytes, and how they differ from the node's.

use super::{as_json, say};
use kiseki_devices::index_rebuild::{Comparison, NodeRows, RebuiltDevice, compare, rebuild};
use kiseki_devices::verify::Verdict;
use kiseki_types::DeviceId;
use serde_json::{Value, json};

/// Differences that are printed one by one; of the rest the number.
const SHOWN_MAX: usize = 20;

/// Rows made from the bytes of devices.
pub struct Rebuilt {
    /// Devices whose rows could be made.
    pub devices: Vec<RebuiltDevice>,
    /// Devices of a node that no node would take.
    pub unsound: Vec<DeviceId>,
    /// Why there are no rows of a device.
    refused: Vec<String>,
}

/// Makes the rows.
pub fn make(verdicts: &[Verdict]) -> Rebuilt {
    let mut made = Rebuilt { devices: Vec::new(), unsound: Vec::new(), refused: Vec::new() };
    for verdict in verdicts {
        match rebuild(verdict) {
            Ok(device) => made.devices.push(device),
            Err(reason) => {
                made.unsound.extend(verdict.superblock.as_ref().map(|superblock| superblock.device));
                made.refused.push(reason);
            }
        }
    }
    made
}

/// What was found.
pub struct Report {
    /// Whether every device explains every row that the node has of it.
    pub is_explained: bool,
    /// For `--json`.
    pub json: Value,
}

/// Compares with the node's tables, where they are given, and prints.
pub fn report(rebuilt: &Rebuilt, node: Option<&NodeRows>, lists_all: bool, is_json: bool) -> Report {
    let mut is_explained = rebuilt.refused.is_empty();
    let mut devices = Vec::new();
    for device in &rebuilt.devices {
        let rows = device.rows().count();
        let Some(node) = node else {
            devices.push(json!({ "path": device.name, "device": device.device.to_string(), "rows": rows }));
            if !is_json {
                say(&format!("{}: {rows} fragments explain themselves", device.name));
            }
            continue;
        };
        let comparison = compare(device, node);
        is_explained &= comparison.missing.is_empty();
        devices.push(comparison_json(device, rows, &comparison, node));
        if !is_json {
            print_comparison(device, rows, &comparison, lists_all);
        }
    }
    if !is_json {
        rebuilt.refused.iter().for_each(|reason| say(reason));
    }
    Report {
        is_explained,
        json: json!({ "devices": devices, "refused": rebuilt.refused, "is_explained": is_explained }),
    }
}

fn comparison_json(device: &RebuiltDevice, rows: usize, comparison: &Comparison, node: &NodeRows) -> Value {
    let list = |rows: &[(kiseki_devices::index_rebuild::RowTable, kiseki_types::fragment::StoredFragment)]| -> Value {
        let row = |(table, fragment): &(kiseki_devices::index_rebuild::RowTable, _)| {
            let mut value = as_json::fragment(fragment);
            value["table"] = json!(table.name());
            value
        };
        rows.iter().map(row).collect()
    };
    json!({
        "path": device.name,
        "device": device.device.to_string(),
        "rows": rows,
        "same": comparison.same,
        "journaled": comparison.journaled,
        "missing": list(&comparison.missing),
        "surplus": list(&comparison.surplus),
        "node_would_start_with_it": node.holds_all_of(device),
    })
}

fn print_comparison(device: &RebuiltDevice, rows: usize, comparison: &Comparison, lists_all: bool) {
    let Comparison { same, journaled, missing, surplus } = comparison;
    let mut line = format!(
        "{}: {rows} fragments explain themselves; of the node's index rows {same} are the same, {journaled} are with a \
         journal, {} are not explained",
        device.name,
        missing.len()
    );
    if !surplus.is_empty() {
        line.push_str(&format!("; {} more are of released fragments that nothing has overwritten yet", surplus.len()));
    }
    say(&line);
    let shown = if lists_all { usize::MAX } else { SHOWN_MAX };
    for (table, row) in missing.iter().take(shown) {
        say(&format!("  not explained: row of {} for {} at {}", table.name(), row.meta.key.locator, row.extent));
    }
    for (table, row) in surplus.iter().filter(|_| lists_all) {
        say(&format!("  more: row of {} for {} at {}", table.name(), row.meta.key.locator, row.extent));
    }
}
