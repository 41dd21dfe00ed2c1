//! Devices that join, come back to, or leave a node that runs.
//!
//! All of it blocks and runs on a thread of its own (the admin socket's, the watch's), one change at a time. A device
//! joins in steps, each of which is undone when a later one fails:
//!
//! 1. It is locked, read and checked; nothing is written to it before.
//! 2. Its incarnation is raised, and the newest metadata-set epoch written to it: from now on it is a witness.
//! 3. Every core opens its lanes on it. What lies on it can be read from now on.
//! 4. `kiseki.toml` names it, durably: a restart finds it.
//! 5. Every core places fragments on it. Only now anything is written that a restart without it would miss.
//!
//! A crash after step 2 or 3 leaves a device that is not in the configuration, as if nothing had happened; one after step 4 a
//! device that the next start opens like any other. Repair starts by itself: the usable devices have changed (I-D1).

use crate::config_edit::{ConfigFile, DevicesChange};
use crate::device_name::{self, Candidate, Standing};
use crate::device_orders::DeviceOrder;
use crate::device_records::parse_id;
use crate::device_table::OpenDevice;
use crate::devices::{ClaimedDevice, Identity, describe, with_causes};
use crate::executor::CoreShared;
use crate::outcome::{NodeError, Outcome};
use crate::status::{DeviceReport, Phase};
use kiseki_devices::nvme::path::PathChoice;
use kiseki_devices::superblock::{Enrolled, Superblock};
use kiseki_engine::control_service::FIRST_POOL;
use kiseki_engine::device_record::{DeviceActor, DevicePlace, DeviceUpdate};
use kiseki_types::fragment::DeviceState;
use kiseki_types::ids::{ClusterId, DeviceId};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A device of less than one part in so many of what the others hold is worth a warning.
const SMALL_DIVISOR: u64 = 2;

/// Who takes devices back that were away.
pub const NODE_ACTOR: &str = "node";

/// Whether a change is made or only tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangeMode {
    /// Make it.
    #[default]
    Make,
    /// Check everything that can be checked without changing anything.
    DryRun,
}

/// A device that joined.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinedDevice {
    /// Its id in hex.
    pub device: String,
    /// Its path.
    pub path: String,
    /// Bytes that fragments can use.
    pub capacity_bytes: u64,
    /// What happened, or would happen.
    pub kind: JoinKind,
    /// Id or path of the one whose place it took.
    #[serde(default)]
    pub replaced: Option<String>,
    /// What an operator should know.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// How a device joins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JoinKind {
    /// It was not part of the node.
    #[default]
    New,
    /// It was, and could not be used for a while: it is reopened and checked (I-D6).
    Returned,
    /// It takes the place of another one.
    Replaced,
}

/// What has been done, to be undone when a later step fails.
enum Done {
    Joined { device: DeviceId, enrolled: Enrolled },
    Added(DeviceId),
    Configured(DevicesChange),
    Recorded(DeviceId),
}

/// One change of a node's devices; nobody else makes one meanwhile.
struct Change<'a> {
    shared: &'a CoreShared,
    config: ConfigFile,
    mode: ChangeMode,
    done: Vec<Done>,
}

/// Takes a device into the node, or back into it. `actor` says who wanted it. Errors are for an operator; nothing has
/// changed then.
pub fn enroll(shared: &CoreShared, path: &Path, actor: &str, mode: ChangeMode) -> Result<JoinedDevice, NodeError> {
    let _one_at_a_time = shared.devices.change();
    Change::begin(shared, mode).map_err(refused)?.enroll(path, None, actor)
}

fn refused(message: String) -> NodeError {
    NodeError { message, outcome: Outcome::Refused }
}

/// Puts the device at `path` into the place of one that can't be used any more, named by its path or by the first digits
/// of its id. Errors are for an operator; nothing has changed then.
pub fn replace(
    shared: &CoreShared,
    device: &str,
    path: &Path,
    actor: &str,
    mode: ChangeMode,
) -> Result<JoinedDevice, NodeError> {
    let _one_at_a_time = shared.devices.change();
    let change = Change::begin(shared, mode).map_err(refused)?;
    let old = find(shared, device).map_err(refused)?;
    if old.is_usable() {
        return Err(refused(format!(
            "{} works, so nothing has to be rebuilt from the others: `kiseki-devctl enroll {}` first, then \
             `kiseki-devctl drain {}`, and `kiseki-devctl retire {}` when it is empty",
            old.path,
            path.display(),
            old.path,
            old.path
        )));
    }
    check_dispensable(shared, &old).map_err(refused)?;
    change.enroll(path, Some(old), actor)
}

/// What a replaced device held counts as gone, so first it must be known that the others have enough of every stripe.
fn check_dispensable(shared: &CoreShared, old: &DeviceReport) -> Result<(), String> {
    let board = shared.board.lock();
    let beside = format!("to add a device without giving {} up, `kiseki-devctl enroll` it", old.path);
    if board.nodes.len() > 1 {
        // What other nodes' stripes have there only they can say: retirement asks them (I-D5).
        return Err(format!(
            "this node is one of several: `kiseki-devctl enroll` the new device, then `kiseki-devctl retire {}`, which asks all \
             nodes whether they need what it held",
            old.path
        ));
    }
    match board.repair.lost_stripes {
        0 if crate::upkeep::is_walked(&board) => Ok(()),
        0 => Err(format!(
            "repair has not looked at every stripe without {} yet; try again in a moment; {beside}",
            old.path
        )),
        lost => Err(format!("{lost} stripes can't be read without what {} holds; bring it back; {beside}", old.path)),
    }
}

/// Lets go of a device on which nothing lives any more (I-D5): no core uses it, its files are closed, its lock is
/// given back and the configuration does not name it. Errors are messages for an operator.
pub fn release(shared: &CoreShared, device: DeviceId, actor: &str) -> Result<(), String> {
    let _one_at_a_time = shared.devices.change();
    let mut change = Change::begin(shared, ChangeMode::Make)?;
    let report = find(shared, &device.to_string())?;
    let path = PathBuf::from(&report.path);
    if change.config.names(&path) {
        change.config.check_writable().map_err(|error| with_causes(&error))?;
    }
    let known = shared.meta.dir.epoch();
    shared.orders.give(&DeviceOrder::Remove(device))?;
    shared.devices.leave_for_good(device, &known, Enrolled::Changes).map_err(|error| error.to_string())?;
    if change.config.names(&path) {
        change.config.change(&DevicesChange::Remove(path)).map_err(|error| with_causes(&error))?;
    }
    {
        let mut board = shared.board.lock();
        board.devices.retain(|known| known.id != report.id);
        board.devices_changed();
    }
    tracing::info!(device = %report.id, path = %report.path, actor, "device released");
    Ok(())
}

impl<'a> Change<'a> {
    fn begin(shared: &'a CoreShared, mode: ChangeMode) -> Result<Change<'a>, String> {
        match shared.board.lock().phase {
            Phase::Serving => {}
            Phase::Starting | Phase::Stopping => return Err("the node is starting or stopping; try again".to_owned()),
        }
        let config = ConfigFile::open(&shared.config.dir).map_err(|error| with_causes(&error))?;
        Ok(Change { shared, config, mode, done: Vec::new() })
    }

    fn enroll(mut self, path: &Path, old: Option<DeviceReport>, actor: &str) -> Result<JoinedDevice, NodeError> {
        let path = self.shared.config.dir.resolve(path);
        let shown = path.display().to_string();
        let named = |message: String| if message.contains(&shown) { message } else { format!("{shown}: {message}") };
        let plan = self.plan(&path, old).map_err(named).map_err(refused)?;
        if self.mode == ChangeMode::DryRun {
            return Ok(plan.joined);
        }
        match self.carry_out(plan, &path, actor) {
            Ok(joined) => {
                tracing::info!(device = %joined.device, path = %shown, actor, kind = ?joined.kind, "device enrolled");
                Ok(joined)
            }
            Err(message) => {
                self.undo();
                Err(NodeError { message: format!("{}; nothing was changed", named(message)), outcome: Outcome::Failed })
            }
        }
    }

    /// Everything that can be known before anything is changed.
    fn plan(&self, path: &Path, old: Option<DeviceReport>) -> Result<Plan, String> {
        self.check_not_in_use(path)?;
        // An opening of ours that is not used any more still has the lock; the claim comes when it is closed.
        let stale = self.shared.devices.by_path(path);
        let (claimed, superblock) = match &stale {
            Some(_) => (None, describe(path).map_err(|error| with_causes(&error))?.superblock),
            None => {
                let claimed = ClaimedDevice::open(path, self.shared.keys.cluster)?;
                let superblock = claimed.superblock.clone();
                (Some(claimed), superblock)
            }
        };
        let reports = self.shared.board.lock().devices.clone();
        check(&superblock, self.shared.keys.cluster, self.shared.lanes, self.shared.meta.dir.epoch().epoch)?;
        let id = superblock.device.to_string();
        let same = reports.iter().find(|report| report.id == id);
        if let Some(twin) = same.filter(|report| report.is_usable()) {
            return Err(format!("it is a copy of {}, which is in use; format it anew to use it", twin.path));
        }
        let place = match (&old, same) {
            (Some(old), _) if self.config.names(path) && Path::new(&old.path) != path => {
                return Err(format!(
                    "it is in `devices` already, so it can't take the place of {}: `kiseki-devctl enroll {}` takes it back",
                    old.path,
                    path.display()
                ));
            }
            (Some(old), _) => Place::Of(PathBuf::from(&old.path)),
            (None, _) if self.config.names(path) => Place::Own,
            // The same device under another path.
            (None, Some(same)) => Place::Of(PathBuf::from(&same.path)),
            (None, None) => Place::New,
        };
        if place != Place::Own {
            self.config.check_writable().map_err(|error| with_causes(&error))?;
        }
        let replaced = old.as_ref().filter(|old| old.id != id);
        let kind = match (replaced, &place) {
            (Some(_), _) => JoinKind::Replaced,
            (None, Place::New) => JoinKind::New,
            (None, _) => JoinKind::Returned,
        };
        let capacity_bytes = superblock.layout.capacity_bytes();
        let others = reports.iter().filter(|report| report.is_usable()).map(|report| report.capacity_bytes).collect();
        let joined = JoinedDevice {
            device: id,
            path: path.display().to_string(),
            capacity_bytes,
            kind,
            replaced: replaced.map(|old| if old.id.is_empty() { old.path.clone() } else { old.id.clone() }),
            warnings: size_warning(capacity_bytes, others).into_iter().collect(),
        };
        let leaving: Vec<OpenDevice> = [
            stale,
            self.shared.devices.by_id(superblock.device),
            replaced.and_then(|old| self.shared.devices.by_path(Path::new(&old.path))),
        ]
        .into_iter()
        .flatten()
        .collect();
        Ok(Plan { claimed, leaving, place, joined, replaced: replaced.cloned() })
    }

    /// The device itself, under whatever name, is not in use.
    fn check_not_in_use(&self, path: &Path) -> Result<(), String> {
        let Some(identity) = Identity::of(path) else { return Ok(()) };
        let reports = self.shared.board.lock().devices.clone();
        for open in self.shared.devices.all() {
            let id = open.superblock.device.to_string();
            let is_used = reports.iter().any(|report| report.id == id && report.is_usable());
            if is_used && open.identity.is_some_and(|other| other.is_same_device(identity)) {
                let name =
                    if open.path == path { "by this node".to_owned() } else { format!("as {}", open.path.display()) };
                return Err(format!("it is in use already, {name}"));
            }
        }
        Ok(())
    }

    fn carry_out(&mut self, mut plan: Plan, path: &Path, actor: &str) -> Result<JoinedDevice, String> {
        let shared = self.shared;
        let known = shared.meta.dir.epoch();
        for open in &plan.leaving {
            // It was not used any more, so this is no loss, and is not undone.
            shared.orders.give(&DeviceOrder::Remove(open.superblock.device))?;
            let left = shared.devices.leave(open.superblock.device, &known, Enrolled::Stays);
            left.map_err(|error| error.to_string())?;
        }
        let claimed = match plan.claimed.take() {
            Some(claimed) => claimed,
            None => ClaimedDevice::open(path, shared.keys.cluster)?,
        };
        let id = claimed.superblock.device;
        if id.to_string() != plan.joined.device {
            return Err("another device took its place just now; try again".to_owned());
        }
        let way = claimed.choose_path(shared.config.device_path.into())?;
        let device = claimed.take_up()?;
        let superblock = Box::new(device.superblock.clone());
        let enrolled = if plan.place == Place::New { Enrolled::Changes } else { Enrolled::Stays };
        shared.devices.join(device, &known, enrolled).map_err(|error| with_causes(&error))?;
        self.done.push(Done::Joined { device: id, enrolled });
        self.done.push(Done::Added(id)); // by some cores, whatever comes out
        shared.orders.give(&DeviceOrder::Add { path: path.to_owned(), superblock: superblock.clone() })?;
        if let Some((change, back)) = plan.place.config_change(path) {
            self.config.change(&change).map_err(|error| with_causes(&error))?;
            self.done.push(Done::Configured(back));
        }
        self.record(&plan, &superblock, actor)?;
        let before = self.put_on_board(&plan, path, &way);
        if let Err(message) = shared.orders.give(&DeviceOrder::Admit(id)) {
            let mut board = shared.board.lock();
            board.devices = before;
            board.devices_changed();
            return Err(message);
        }
        if let Some(old) = &plan.replaced {
            let device = parse_id(&old.id);
            let reason = format!("device {} took its place", plan.joined.device);
            let record = DeviceOrder::RecordRemoved { device, path: old.path.clone(), by: id, reason };
            if let Err(message) = shared.orders.give_first(record) {
                let warning = format!("{} is replaced, but that could not be recorded: {message}", old.path);
                plan.joined.warnings.push(warning);
            }
        }
        Ok(plan.joined)
    }

    /// The control shard knows that the device is used (I-D2); it refuses one that has left for good.
    fn record(&mut self, plan: &Plan, superblock: &Superblock, actor: &str) -> Result<(), String> {
        let place = DevicePlace {
            path: plan.joined.path.clone(),
            pool: superblock.pool,
            class: superblock.class.name().to_owned(),
        };
        let reason = match plan.joined.kind {
            JoinKind::New => format!("enrolled by {actor}"),
            JoinKind::Returned => format!("reopened and checked, asked for by {actor}"),
            JoinKind::Replaced => format!("enrolled by {actor} in place of another one"),
        };
        let by = if actor == NODE_ACTOR { DeviceActor::Node } else { DeviceActor::Operator };
        let update = Box::new(DeviceUpdate::Opened { place, actor: by, reason });
        self.shared.orders.give_first(DeviceOrder::Record { device: superblock.device, update })?;
        self.done.push(Done::Recorded(superblock.device));
        Ok(())
    }

    /// Status knows it, in its place; returns what status knew before.
    fn put_on_board(&self, plan: &Plan, path: &Path, way: &PathChoice) -> Vec<DeviceReport> {
        let mut board = self.shared.board.lock();
        let before = board.devices.clone();
        let mut report = DeviceReport {
            path: plan.joined.path.clone(),
            id: plan.joined.device.clone(),
            state: "healthy".to_owned(),
            capacity_bytes: plan.joined.capacity_bytes,
            ..DeviceReport::default()
        };
        report.drive_by(way);
        let place = match &plan.place {
            Place::Of(old) => old.as_path(),
            Place::Own | Place::New => path,
        };
        match board.devices.iter().position(|known| Path::new(&known.path) == place) {
            Some(at) => board.devices[at] = report,
            None => board.devices.push(report),
        }
        board.devices_changed();
        before
    }

    /// Back to what was, last step first. What can't be undone is told: the operator's next step depends on it.
    fn undo(&mut self) {
        let known = self.shared.meta.dir.epoch();
        while let Some(done) = self.done.pop() {
            let undone = match done {
                Done::Configured(back) => self.config.change(&back).map_err(|error| with_causes(&error)),
                Done::Recorded(device) => {
                    let reason = "it could not be enrolled".to_owned();
                    let update = Box::new(DeviceUpdate::Lost { state: DeviceState::Unreachable, reason });
                    self.shared.orders.give_first(DeviceOrder::Record { device, update })
                }
                Done::Added(device) => self.shared.orders.give(&DeviceOrder::Remove(device)),
                Done::Joined { device, enrolled } => {
                    self.shared.devices.leave(device, &known, enrolled).map_err(|error| error.to_string())
                }
            };
            if let Err(reason) = undone {
                tracing::error!(%reason, "a device that could not be enrolled was not let go of; restart the node");
            }
        }
    }
}

/// What a change will do.
struct Plan {
    /// The device, locked; `None` while an opening of ours has the lock.
    claimed: Option<ClaimedDevice>,
    /// Openings that are not used any more and go first.
    leaving: Vec<OpenDevice>,
    place: Place,
    joined: JoinedDevice,
    /// The one whose place it takes.
    replaced: Option<DeviceReport>,
}

/// Where in the configuration a device belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// Where it is named already.
    Own,
    /// Behind the others.
    New,
    /// Where another path stands.
    Of(PathBuf),
}

impl Place {
    /// The change of the configuration, and the one that takes it back.
    fn config_change(&self, path: &Path) -> Option<(DevicesChange, DevicesChange)> {
        let new = path.to_owned();
        match self {
            Place::Own => None,
            Place::Of(old) if *old == new => None,
            Place::New => Some((DevicesChange::Add(new.clone()), DevicesChange::Remove(new))),
            Place::Of(old) => Some((
                DevicesChange::Replace { old: old.clone(), new: new.clone() },
                DevicesChange::Replace { old: new, new: old.clone() },
            )),
        }
    }
}

/// Whether a superblock is one that the node can take: also for tools, while no node runs.
pub fn check(superblock: &Superblock, cluster: ClusterId, lanes: u16, epoch: u64) -> Result<(), String> {
    if superblock.cluster != cluster {
        return Err(format!(
            "it belongs to cluster {}, this node to {cluster}; to use it here, format it anew with `kiseki-devctl \
             format`, naming that cluster with --wipe: its data is lost then",
            superblock.cluster
        ));
    }
    if superblock.layout.lanes() != lanes {
        return Err(format!(
            "it was formatted with {} lanes, the node has {lanes}; format it again with `kiseki-devctl format`",
            superblock.layout.lanes()
        ));
    }
    if superblock.pool != FIRST_POOL {
        return Err(format!("it belongs to pool {}, which this node does not have", superblock.pool));
    }
    if superblock.metadata.epoch > epoch {
        return Err(format!(
            "it knows metadata-set epoch {}, this node {epoch}: it is of another node of the cluster, or the metadata of \
             this one is an old copy; enroll it where it came from, or format it anew",
            superblock.metadata.epoch
        ));
    }
    Ok(())
}

/// What to say of a device that is much smaller than the others.
#[must_use]
pub fn size_warning(capacity_bytes: u64, mut others: Vec<u64>) -> Option<String> {
    others.sort_unstable();
    let usual = *others.get(others.len() / 2)?;
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    (capacity_bytes < usual / SMALL_DIVISOR).then(|| {
        format!(
            "it holds {:.1} GiB, the others {:.1}: it takes its share by size, and is full when they are; \
             stripes as wide as the pool has devices end there",
            gib(capacity_bytes),
            gib(usual)
        )
    })
}

/// The device that an operator means.
fn find(shared: &CoreShared, device: &str) -> Result<DeviceReport, String> {
    let path = shared.config.dir.resolve(Path::new(device));
    let reports = shared.board.lock().devices.clone();
    let at = device_name::find(device, &path, &candidates(&reports))?;
    Ok(reports[at].clone())
}

/// The devices of status, to be named.
#[must_use]
pub fn candidates(reports: &[DeviceReport]) -> Vec<Candidate<'_>> {
    reports
        .iter()
        .map(|report| Candidate { id: &report.id, path: Path::new(&report.path), standing: Standing::Configured })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiseki_devices::layout::DeviceLayout;
    use kiseki_devices::superblock::{DeviceClass, MetadataEpoch};
    use kiseki_types::BlockCount;
    use kiseki_types::device::DeviceGeometry;
    use kiseki_types::ids::PoolId;

    #[test]
    fn a_much_smaller_device_is_told_and_an_equal_one_is_not() {
        let gib = 1 << 30;
        assert_eq!(size_warning(4 * gib, vec![4 * gib, 8 * gib, 4 * gib]), None);
        assert_eq!(size_warning(gib, Vec::new()), None);
        let warning = size_warning(gib, vec![4 * gib, 4 * gib]).unwrap();
        assert!(warning.contains("1.0 GiB, the others 4.0"), "{warning}");
    }

    #[test]
    fn i_d7_a_device_of_another_cluster_pool_or_node_or_of_other_lanes_is_refused() {
        let (cluster, epoch) = (ClusterId([1; 16]), 7);
        let geometry = DeviceGeometry { block_len_bytes: 4096, block_count: BlockCount(16 << 8) };
        let ours = Superblock {
            cluster,
            device: DeviceId([2; 16]),
            pool: FIRST_POOL,
            class: DeviceClass::File,
            layout: DeviceLayout::compute(geometry, 4).unwrap(),
            generation: 1,
            incarnation: 1,
            metadata: MetadataEpoch { epoch, members: Vec::new() },
        };
        assert_eq!(check(&ours, cluster, 4, epoch), Ok(()));
        let newer = MetadataEpoch { epoch: epoch + 1, members: Vec::new() };
        for (found, lanes, words) in [
            (Superblock { cluster: ClusterId([3; 16]), ..ours.clone() }, 4, "naming that cluster with --wipe"),
            (ours.clone(), 2, "formatted with 4 lanes"),
            (Superblock { pool: PoolId(FIRST_POOL.0 + 1), ..ours.clone() }, 4, "belongs to pool"),
            (Superblock { metadata: newer, ..ours.clone() }, 4, "knows metadata-set epoch 8, this node 7"),
        ] {
            let refused = check(&found, cluster, lanes, epoch).expect_err(words);
            assert!(refused.contains(words), "I-D7: {refused}");
        }
    }

    #[test]
    fn a_change_of_the_configuration_has_one_that_takes_it_back() {
        let new = Path::new("/dev/new");
        assert_eq!(Place::Own.config_change(new), None);
        assert_eq!(Place::Of(new.to_owned()).config_change(new), None, "the device comes back to its place");
        let (there, back) = Place::Of("/dev/old".into()).config_change(new).unwrap();
        assert_eq!(there, DevicesChange::Replace { old: "/dev/old".into(), new: new.to_owned() });
        assert_eq!(back, DevicesChange::Replace { old: new.to_owned(), new: "/dev/old".into() });
    }
}
