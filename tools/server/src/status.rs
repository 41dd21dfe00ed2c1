//! What a node says about itself: to `kiseki status`, to health checks and to metrics. Cores write their part a few
//! times a second, side threads read it; nothing here is on the path of a byte.

use crate::nodes_file::NodeRow;
use crate::shards::ShardReport;
use crate::space::{CoreSpace, PoolReport, SpaceReport};
use crate::upkeep::{CoreUpkeep, RebalanceReport, RepairReport, ScrubReport};
use crate::wear::WearReading;
use kiseki_devices::nvme::path::PathChoice;
use kiseki_gateway::phases::PhaseTimes;
use kiseki_types::fragment::DeviceState;
use kiseki_types::fragment::StripeShape;
use kiseki_types::histogram::Histogram;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

/// A device as `status` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceReport {
    /// Its path.
    pub path: String,
    /// Its id in hex; empty when it could not be opened.
    pub id: String,
    /// Name of its state: what the node sees, and while it works, what is recorded.
    pub state: String,
    /// Why it is not healthy, and what to do.
    pub reason: String,
    /// Bytes for fragments in all.
    pub capacity_bytes: u64,
    /// Bytes that are free.
    pub free_bytes: u64,
    /// How it is driven: `passthrough`, `passthrough_polled`, `block` or `file`; empty when it could not be opened.
    #[serde(default)]
    pub io_path: String,
    /// Why an NVMe drive is not driven by commands.
    #[serde(default)]
    pub io_path_reason: String,
    /// How full it is and how its free space is cut up.
    #[serde(default)]
    pub space: SpaceReport,
    /// Fragments that lie on it, those that are being written included.
    #[serde(default)]
    pub used_fragments: u64,
    /// Bytes of those.
    #[serde(default)]
    pub used_bytes: u64,
    /// When its recorded state began, milliseconds since 1970; 0 when nothing is recorded yet.
    #[serde(default)]
    pub since_unix_ms: u64,
    /// Who changed it then: `operator`, `node` or `wear`.
    #[serde(default)]
    pub actor: String,
    /// The latest changes, the last one last.
    #[serde(default)]
    pub history: Vec<DeviceChangeReport>,
    /// Errors that our reads met on it since its record began.
    #[serde(default)]
    pub read_errors: u64,
    /// What the drive says of its health.
    #[serde(default)]
    pub wear: Option<WearReading>,
    /// Why its drive can't be asked for that; empty when it can, or when there is no such drive.
    #[serde(default)]
    pub wear_problem: String,
    /// What speaks against it though it is used.
    #[serde(default)]
    pub warning: String,
    /// How far it is emptied, when it is to be.
    #[serde(default)]
    pub evacuation: Option<EvacuationReport>,
}

impl DeviceReport {
    /// Whether reads and writes reach it, as far as the node knows.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        DeviceState::from_name(&self.state).is_some_and(DeviceState::is_readable)
    }

    /// Says which way the device is driven.
    pub fn drive_by(&mut self, choice: &PathChoice) {
        choice.in_use.word().clone_into(&mut self.io_path);
        self.io_path_reason.clone_from(&choice.reason);
    }
}

/// A change of a device's state as `status` shows it (I-D2).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceChangeReport {
    /// When, milliseconds since 1970.
    pub at_unix_ms: u64,
    /// The state from then on.
    pub state: String,
    /// Who.
    pub actor: String,
    /// Why.
    pub reason: String,
}

/// How far a device is emptied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvacuationReport {
    /// Since when, milliseconds since 1970.
    pub since_unix_ms: u64,
    /// Who wants it.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// Fragments that still lie on it.
    pub fragments_left: u64,
    /// Whether every core has said how many those are: after a start that takes a moment.
    #[serde(default)]
    pub is_known: bool,
    /// Bytes of those.
    pub bytes_left: u64,
    /// Bytes that left it a second lately.
    pub bytes_per_second: u64,
    /// Seconds that the rest takes at that rate; `None` while nothing moves.
    pub eta_seconds: Option<u64>,
    /// Stripes that can't be moved now.
    pub waiting_stripes: u64,
    /// What those wait for; empty when nothing.
    pub waits_for: String,
}

/// What keeps a core from emptying a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoreEvacuation {
    /// Stripes that wait for devices.
    pub waiting_stripes: u64,
    /// Devices that the widest of those needs.
    pub devices_wanted: u64,
    /// Whether devices had no room.
    pub no_room: bool,
}

/// A metadata directory as `status` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetadataDirReport {
    /// Its path.
    pub path: String,
    /// `current`, `stale` or `absent`.
    pub state: String,
    /// Why it is not current, and what to do.
    #[serde(default)]
    pub reason: String,
}

/// One core's part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoreReport {
    /// Boottime nanoseconds of this report: a core that stops reporting hangs.
    pub reported_at: u64,
    /// Client connections.
    pub connections: u64,
    /// Counters and gauges by name; a name that ends in `_total` is a counter.
    pub values: BTreeMap<String, u64>,
    /// Free bytes on this core's lanes, by device id.
    pub device_free_bytes: BTreeMap<String, u64>,
    /// Space on this core's lanes, by device id.
    #[serde(default)]
    pub device_space: BTreeMap<String, CoreSpace>,
    /// Fragments that this core's lanes hold, by device id; nothing where that is not known.
    #[serde(default)]
    pub device_fragments: BTreeMap<String, u64>,
    /// Bytes of those.
    #[serde(default)]
    pub device_used_bytes: BTreeMap<String, u64>,
    /// Reads that a device failed on this core since it was opened, by device id.
    #[serde(default)]
    pub device_read_errors: BTreeMap<String, u64>,
    /// What keeps devices that are to be emptied from being so, by device id.
    #[serde(default)]
    pub evacuations: BTreeMap<String, CoreEvacuation>,
    /// Repair and scrub.
    #[serde(default)]
    pub upkeep: CoreUpkeep,
    /// Links of this core.
    #[serde(default)]
    pub links: Vec<LinkReport>,
    /// Replicas of shards on this core.
    #[serde(default)]
    pub shards: Vec<ShardReport>,
    /// Further ones that are not told of.
    #[serde(default)]
    pub shards_not_told: u64,
    /// What this core has read and written, by device id.
    #[serde(default)]
    pub device_io: BTreeMap<String, DeviceIoReport>,
    /// When other nodes answered this core last, boottime nanoseconds by number: for the node itself, which makes of it what
    /// it says of each node.
    #[serde(skip)]
    pub heard: BTreeMap<u64, u64>,
    /// Where time goes: for `/stages` alone.
    #[serde(skip)]
    pub times: CoreTimes,
}

/// What has taken how long on a core since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CoreTimes {
    /// Pieces of work of the data path.
    pub stages: Vec<(&'static str, Histogram)>,
    /// Phases of requests, by S3's name of the operation.
    pub operations: Vec<(&'static str, PhaseTimes)>,
}

/// What a core has read of a device, and written to it, since it opened it: of fragments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceIoReport {
    /// Reads.
    pub reads: u64,
    /// Bytes of those.
    pub read_bytes: u64,
    /// Time that they took in all, in microseconds.
    pub read_us: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes of those.
    pub write_bytes: u64,
    /// Time that they took in all, in microseconds, until they were durable.
    pub write_us: u64,
}

/// What is counted of a link: to or from another member of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkReport {
    /// `node/3` or `admin/alice`.
    pub peer: String,
    /// `in` when the peer calls, `out` when this node does.
    pub way: String,
    /// Calls.
    pub calls: u64,
    /// Calls without an answer yet.
    pub in_flight: u64,
    /// Bytes of frames received.
    pub bytes_in: u64,
    /// Bytes of frames sent.
    pub bytes_out: u64,
    /// Connections made; one more than reconnects.
    pub connects: u64,
    /// Attempts to connect that failed.
    pub connect_failures: u64,
    /// Calls that were refused.
    pub refused: u64,
    /// Answered calls by time; the classes end at `kiseki_net::peer::counters::LATENCY_US`.
    pub latency: Vec<u64>,
    /// Sum of those times in microseconds.
    pub latency_sum_us: u64,
}

/// A node of the cluster as `status` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSeen {
    /// What is recorded of it.
    #[serde(flatten)]
    pub row: NodeRow,
    /// Whether it is the one that says this.
    pub is_here: bool,
    /// When it answered last, in milliseconds before this report; `None`: not since this node started.
    pub heard_ms_ago: Option<u64>,
    /// Devices of it that work, where that is known.
    pub devices: Option<u64>,
}

/// The port for members of the cluster as `status` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerReport {
    /// Where it listens.
    pub listen: String,
    /// The name in the node's certificate.
    pub name: String,
    /// When that ends, seconds since 1970.
    pub not_after_unix: u64,
    /// Revoked certificates that are known.
    pub revoked: u64,
    /// Connections and calls that were turned away since the start.
    pub refused: u64,
    /// Why the files of certificates were not taken when they changed, and what to do.
    pub problem: String,
}

/// What the node is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Opening devices and shards.
    #[default]
    Starting,
    /// Answering requests.
    Serving,
    /// Ending what is in flight.
    Stopping,
}

/// Everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    /// Version of the server.
    pub version: String,
    /// What it is doing.
    pub phase: Phase,
    /// Boottime nanoseconds when it started.
    pub started_at: u64,
    /// Where S3 is served.
    pub endpoint: String,
    /// The cluster's id.
    #[serde(default)]
    pub cluster: String,
    /// The number of this node.
    #[serde(default)]
    pub node: u64,
    /// The cluster's nodes, as far as this one knows.
    #[serde(default)]
    pub nodes: Vec<NodeSeen>,
    /// While it starts: the members that have not answered lately, without whom there may be no majority.
    #[serde(default)]
    pub waits_for: String,
    /// While it starts: why it does not serve yet.
    #[serde(default)]
    pub waits_because: String,
    /// The port for members of the cluster, where it is open.
    #[serde(default)]
    pub peer: Option<PeerReport>,
    /// Executors.
    pub cores: u16,
    /// Lanes that its devices are formatted with.
    pub lanes: u16,
    /// How chunks are protected, for people: `EC 4+2`.
    pub durability: String,
    /// The shape behind it: data and parity of a stripe.
    #[serde(default)]
    pub pool_shape: Option<(u8, u8)>,
    /// Whether the configuration says how a new cluster's first pool is to be.
    #[serde(default)]
    pub pool_is_chosen: bool,
    /// Which I/O and CPU paths are in use.
    pub paths_in_use: BTreeMap<String, String>,
    /// Devices, in the order of the configuration.
    pub devices: Vec<DeviceReport>,
    /// Devices that are recorded and not configured any more, the latest first.
    #[serde(default)]
    pub former_devices: Vec<DeviceReport>,
    /// How full the pools are.
    #[serde(default)]
    pub pools: Vec<PoolReport>,
    /// The metadata set.
    pub metadata_dirs: Vec<MetadataDirReport>,
    /// Settings that weaken durability or secrecy (I-O1).
    pub unsafe_settings: Vec<String>,
    /// What an operator should know.
    pub warnings: Vec<String>,
    /// What an operator should look at now, the worst first.
    #[serde(default)]
    pub alerts: Vec<String>,
    /// Whether stripes have their full width, and what is being done about it.
    #[serde(default)]
    pub repair: RepairReport,
    /// Whether stripes lie where placement would put them, and what is being done about it.
    #[serde(default)]
    pub rebalance: RebalanceReport,
    /// How far everything has been read and checked.
    #[serde(default)]
    pub scrub: ScrubReport,
    /// By number of the core.
    pub core_reports: BTreeMap<String, CoreReport>,
}

/// A core that has not reported for this long hangs.
pub const CORE_SILENT_NS_MAX: u64 = 10_000_000_000;

impl NodeReport {
    /// Sum of a value over all cores.
    #[must_use]
    pub fn total(&self, name: &str) -> u64 {
        self.core_reports.values().filter_map(|core| core.values.get(name)).sum()
    }

    /// Replicas of all cores.
    pub fn shards(&self) -> impl Iterator<Item = &ShardReport> {
        self.core_reports.values().flat_map(|core| &core.shards)
    }

    /// What all cores have read of a device, and written to it.
    #[must_use]
    pub fn device_io(&self, id: &str) -> DeviceIoReport {
        let mut sum = DeviceIoReport::default();
        for io in self.core_reports.values().filter_map(|core| core.device_io.get(id)) {
            sum.reads += io.reads;
            sum.read_bytes += io.read_bytes;
            sum.read_us += io.read_us;
            sum.writes += io.writes;
            sum.write_bytes += io.write_bytes;
            sum.write_us += io.write_us;
        }
        sum
    }

    /// Cores that have reported once and then fell silent, as of `now` (boottime nanoseconds).
    #[must_use]
    pub fn silent_cores(&self, now: u64) -> Vec<String> {
        let silent = |report: &CoreReport| now.saturating_sub(report.reported_at) > CORE_SILENT_NS_MAX;
        self.core_reports.iter().filter(|(_, report)| silent(report)).map(|(core, _)| core.clone()).collect()
    }

    /// How the pool protects chunks. It was decided when the cluster was made and stays, whatever devices join or leave;
    /// where a new cluster would do otherwise, that is said.
    pub fn set_pool_shape(&mut self, shape: StripeShape) {
        self.pool_shape = Some((shape.data, shape.parity));
        self.settle_durability();
    }

    fn settle_durability(&mut self) {
        let Some((data, parity)) = self.pool_shape else { return };
        let (shape, count) = (StripeShape { data, parity }, self.devices.len());
        let fitting = shape_for(count);
        self.durability = shape_text(shape);
        // The devices here say nothing about a cluster's.
        let is_told = self.pool_is_chosen || self.nodes.len() > 1;
        if fitting != shape && !is_told {
            let fitting = shape_text(fitting);
            self.durability
                .push_str(&format!(" (as the pool was made; a new cluster on {count} devices would have {fitting})"));
        }
    }

    /// The list of devices has changed.
    pub fn devices_changed(&mut self) {
        self.settle_durability();
        self.settle_upkeep();
    }

    /// A device is not used any more. What was said of repair counted on it, so that is said anew (I-O2).
    pub fn lose_device(&mut self, id: &str, state: &str, reason: &str) {
        for device in self.devices.iter_mut().filter(|device| device.id == id && device.is_usable()) {
            device.state = state.to_owned();
            device.reason = reason.to_owned();
        }
        self.settle_upkeep();
    }

    /// What the node says of repair and scrub, from what its cores say and the devices that are healthy.
    pub fn settle_upkeep(&mut self) {
        let healthy = self.devices.iter().filter(|device| device.is_usable()).count();
        (self.repair, self.scrub) = crate::upkeep::of_node(&self.core_reports, self.cores, healthy);
        self.rebalance = crate::upkeep::rebalance_of_node(&self.core_reports, self.cores);
    }

    /// Whether every device and directory is as it should be, or on its way there, and no data is lost.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.phase == Phase::Serving
            && self.devices.iter().all(|device| ["healthy", "evacuating"].contains(&device.state.as_str()))
            && self.metadata_dirs.iter().all(|dir| dir.state == "current")
            && self.repair.lost_stripes == 0
    }
}

/// How the pool of a new cluster on so many devices protects chunks.
#[must_use]
pub fn shape_for(devices: usize) -> StripeShape {
    match devices {
        0 | 1 => StripeShape { data: 1, parity: 0 },
        2 => StripeShape { data: 1, parity: 1 },
        3..=5 => StripeShape { data: 1, parity: 2 },
        _ => StripeShape { data: 4, parity: 2 },
    }
}

fn shape_text(shape: StripeShape) -> String {
    match (shape.data, shape.width()) {
        (1, 1) => "1 copy".to_owned(),
        (1, copies) => format!("{copies} copies"),
        (data, _) => format!("EC {data}+{}", shape.parity),
    }
}

/// The report that all threads share.
#[derive(Debug, Default)]
pub struct StatusBoard(Mutex<NodeReport>);

impl StatusBoard {
    /// For writing a part; never held while waiting for anything.
    pub fn lock(&self) -> MutexGuard<'_, NodeReport> {
        self.0.lock().expect("nothing panics while it holds the status board")
    }

    /// A copy for reading.
    #[must_use]
    pub fn snapshot(&self) -> NodeReport {
        self.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shape_of_the_pool_stays_when_devices_join_and_status_says_so() {
        let mut node = NodeReport { devices: vec![DeviceReport::default(); 4], ..NodeReport::default() };
        node.set_pool_shape(shape_for(4));
        assert_eq!(node.durability, "3 copies");
        node.devices.extend(vec![DeviceReport::default(); 2]);
        node.devices_changed();
        let wanted = "3 copies (as the pool was made; a new cluster on 6 devices would have EC 4+2)";
        assert_eq!(node.durability, wanted);
    }
}
