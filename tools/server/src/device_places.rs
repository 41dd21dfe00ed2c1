//! Whose a device is, in the records that all nodes share: two nodes may well have a `/dev/nvme0n1` each.
//!
//! A record's path is a hint for people, and says so: `node 3: /dev/nvme0n1`. The node that forms a cluster writes its paths
//! without a name, as it did when it was alone.

use crate::cluster::FIRST_NODE;
use kiseki_engine::device_record::{DeviceRecord, DeviceUpdate};
use kiseki_types::ids::NodeId;

/// A path of this node as it is recorded.
#[must_use]
pub fn recorded(own: NodeId, path: &str) -> String {
    if own == FIRST_NODE { path.to_owned() } else { format!("{own}: {path}") }
}

/// The path of a record, when it is one of this node.
fn path_here(own: NodeId, recorded: &str) -> Option<&str> {
    if own == FIRST_NODE {
        return (!recorded.starts_with("node ")).then_some(recorded);
    }
    recorded.strip_prefix(&format!("{own}: "))
}

/// A change of a record, its path as it is recorded.
#[must_use]
pub fn update(own: NodeId, update: DeviceUpdate) -> DeviceUpdate {
    match update {
        DeviceUpdate::Opened { mut place, actor, reason } => {
            place.path = recorded(own, &place.path);
            DeviceUpdate::Opened { place, actor, reason }
        }
        other => other,
    }
}

/// All records, those of this node with their paths as they are here, all others with the node in front.
#[must_use]
pub fn seen_from(own: NodeId, mut records: Vec<DeviceRecord>) -> Vec<DeviceRecord> {
    for record in &mut records {
        let path = &record.place.path;
        record.place.path = match (path_here(own, path), path_here(FIRST_NODE, path)) {
            (Some(path), _) => path.to_owned(),
            (None, Some(path)) => format!("{FIRST_NODE}: {path}"),
            (None, None) => continue,
        };
    }
    records
}

/// The records of this node's devices, with their paths as they are here.
#[must_use]
pub fn own(own: NodeId, mut records: Vec<DeviceRecord>) -> Vec<DeviceRecord> {
    records.retain(|record| path_here(own, &record.place.path).is_some());
    seen_from(own, records)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiseki_engine::device_record::{DeviceActor, DevicePlace};
    use kiseki_types::ids::{DeviceId, PoolId};

    fn record(node: u64, byte: u8) -> DeviceRecord {
        let place = DevicePlace { path: "/dev/nvme0n1".to_owned(), pool: PoolId(0), class: "nvme".to_owned() };
        let opened = DeviceUpdate::Opened { place, actor: DeviceActor::Node, reason: "opened".to_owned() };
        let opened = update(NodeId(node), opened);
        DeviceRecord::after(None, DeviceId([byte; 16]), opened, 1).unwrap().unwrap()
    }

    #[test]
    fn equal_paths_on_two_nodes_are_two_devices() {
        let records = vec![record(1, 1), record(2, 2), record(12, 3)];
        let paths: Vec<&str> = records.iter().map(|record| record.place.path.as_str()).collect();
        assert_eq!(paths, ["/dev/nvme0n1", "node 2: /dev/nvme0n1", "node 12: /dev/nvme0n1"]);
        for (node, byte) in [(1, 1), (2, 2), (12, 3)] {
            let own = own(NodeId(node), records.clone());
            let found: Vec<_> = own.iter().map(|record| (record.device, record.place.path.as_str())).collect();
            assert_eq!(found, [(DeviceId([byte; 16]), "/dev/nvme0n1")], "node {node}");
        }
        let all = seen_from(NodeId(2), records);
        let paths: Vec<&str> = all.iter().map(|record| record.place.path.as_str()).collect();
        assert_eq!(paths, ["node 1: /dev/nvme0n1", "/dev/nvme0n1", "node 12: /dev/nvme0n1"]);
    }
}
