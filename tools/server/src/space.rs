//! Space: what the configuration says about it, what cores say of it, and what the node makes of that: levels of
//! devices and pools, one event for each crossing.

use crate::config::ConfigError;
use crate::status::NodeReport;
use kiseki_devices::fragment_store::CoreFragmentStore;
use kiseki_devices::space::{DiscardPolicy, FILL_PERCENT_MAX, FillLevel, FillLevels, SpacePolicy};
use kiseki_devices::superblock::DeviceClass;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// What was free at the start is discarded so long after it: a node that is started again and again does not do it each
/// time.
const DISCARD_UNKNOWN_AFTER: Duration = Duration::from_secs(60);

/// Section `[fill]`: how full devices may get, by class.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FillSection {
    /// NVMe flash.
    pub nvme: ClassFill,
    /// Other flash.
    pub ssd: ClassFill,
    /// Disks that turn.
    pub hdd: ClassFill,
    /// Image files.
    pub file: ClassFill,
}

/// Levels of one class, in percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClassFill {
    /// Status and metrics warn from here on.
    pub warn_percent: u8,
    /// A pool this full refuses new data of clients with 507.
    pub critical_percent: u8,
    /// A device this full takes nothing more, repaired fragments neither.
    pub read_only_percent: u8,
}

impl Default for ClassFill {
    fn default() -> ClassFill {
        let FillLevels { warn_percent, critical_percent, read_only_percent } = FillLevels::default();
        ClassFill { warn_percent, critical_percent, read_only_percent }
    }
}

/// Classes of devices, as the configuration names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClassName {
    /// NVMe flash.
    Nvme,
    /// Other flash.
    Ssd,
    /// Disks that turn.
    Hdd,
    /// Image files.
    File,
}

impl ClassName {
    fn of(class: DeviceClass) -> ClassName {
        match class {
            DeviceClass::Nvme => ClassName::Nvme,
            DeviceClass::Ssd => ClassName::Ssd,
            DeviceClass::Hdd => ClassName::Hdd,
            DeviceClass::File => ClassName::File,
        }
    }
}

/// Section `[discard]`: telling devices of freed space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DiscardSection {
    /// Classes that are told; empty for none. Flash works better for it, image files give space back to their file
    /// system, most disks that turn do not know it.
    pub classes: Vec<ClassName>,
    /// MiB a second for each device at most.
    pub mib_per_second_max: u32,
    /// Whether what was free at the start is discarded too, once: a crash forgets what was still to do.
    pub after_start: bool,
}

impl Default for DiscardSection {
    fn default() -> DiscardSection {
        let classes = vec![ClassName::Nvme, ClassName::Ssd, ClassName::File];
        DiscardSection { classes, mib_per_second_max: 512, after_start: true }
    }
}

impl FillSection {
    /// Refuses levels that can't work.
    pub fn check(&self) -> Result<(), ConfigError> {
        let classes =
            [("fill.nvme", self.nvme), ("fill.ssd", self.ssd), ("fill.hdd", self.hdd), ("fill.file", self.file)];
        for (key, ClassFill { warn_percent, critical_percent, read_only_percent }) in classes {
            let value = format!("{warn_percent}, {critical_percent}, {read_only_percent}");
            if warn_percent == 0 || warn_percent > critical_percent || critical_percent > read_only_percent {
                return Err(ConfigError::Value {
                    key,
                    value,
                    reason: "warn, critical, read-only must not fall, nor be 0",
                });
            }
            if read_only_percent > FILL_PERCENT_MAX {
                return Err(ConfigError::Value {
                    key,
                    value,
                    reason: "at most 98: deletes and journals need the rest",
                });
            }
        }
        Ok(())
    }

    fn of_class(&self, class: DeviceClass) -> FillLevels {
        let ClassFill { warn_percent, critical_percent, read_only_percent } = match class {
            DeviceClass::Nvme => self.nvme,
            DeviceClass::Ssd => self.ssd,
            DeviceClass::Hdd => self.hdd,
            DeviceClass::File => self.file,
        };
        FillLevels { warn_percent, critical_percent, read_only_percent }
    }
}

/// How one core of `cores` uses the space of a device of `class`.
#[must_use]
pub fn policy(fill: &FillSection, discard: &DiscardSection, class: DeviceClass, cores: u16) -> SpacePolicy {
    let policy = DiscardPolicy {
        bytes_per_second_max: (u64::from(discard.mib_per_second_max) << 20).div_ceil(u64::from(cores.max(1))),
        unknown_after: discard.after_start.then_some(DISCARD_UNKNOWN_AFTER),
    };
    let is_told = discard.classes.contains(&ClassName::of(class));
    SpacePolicy { fill: fill.of_class(class), discard: is_told.then_some(policy) }
}

/// One core's part of a device's space.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoreSpace {
    /// The device's pool.
    pub pool: u16,
    /// Levels of the device: warn, critical, read-only.
    pub levels_percent: [u8; 3],
    /// Whether a client of this core was refused for lack of space, and the pool is not clearly below since.
    #[serde(default)]
    pub refuses_clients: bool,
    /// Bytes of all zones.
    pub total_bytes: u64,
    /// Bytes that no extent holds.
    pub free_bytes: u64,
    /// Longest free run.
    pub longest_free_run_bytes: u64,
    /// Free runs.
    pub free_runs: u64,
    /// Free bytes that the largest fragments can be cut from.
    pub usable_bytes: u64,
    /// Bytes freed and not discarded.
    pub discard_queue_bytes: u64,
}

/// Space of a device, as `status` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpaceReport {
    /// `normal`, `warn`, `critical` or `read-only`; empty before every core has reported.
    pub level: String,
    /// Thousandths of the zones that extents hold.
    pub fill_permille: u64,
    /// Longest free run.
    pub longest_free_run_bytes: u64,
    /// Free runs.
    pub free_runs: u64,
    /// Thousandths of the free space that the largest fragments can be cut from.
    pub usable_permille: u64,
    /// Bytes freed and not discarded.
    pub discard_queue_bytes: u64,
}

/// Fill of a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolReport {
    /// Which.
    pub pool: u16,
    /// `normal`, `warn`, `critical` (clients are refused with 507) or `read-only` (repair too).
    pub level: String,
    /// Thousandths of the zones of its usable devices that extents hold.
    pub fill_permille: u64,
}

/// What a core says of space: by device, and counters into `values`.
pub fn of_core(fragments: &CoreFragmentStore, values: &mut BTreeMap<String, u64>) -> BTreeMap<String, CoreSpace> {
    let counters = fragments.counters();
    let spaces = fragments.space();
    for (name, value) in [
        ("discarded_bytes_total", counters.discarded_bytes.get()),
        ("discards_total", counters.discards.get()),
        ("discard_errors_total", counters.discard_errors.get()),
        ("discard_queue_bytes", spaces.values().map(|space| space.discard_queue_bytes).sum()),
        ("discard_unknown_bytes", spaces.values().map(|space| space.discard_unknown_bytes).sum()),
    ] {
        *values.entry(name.to_owned()).or_default() += value;
    }
    let row = |space: &kiseki_devices::space::DeviceSpace| CoreSpace {
        pool: space.pool.0,
        refuses_clients: space.refuses_clients,
        levels_percent: [space.fill.warn_percent, space.fill.critical_percent, space.fill.read_only_percent],
        total_bytes: space.total_bytes,
        free_bytes: space.free_bytes,
        longest_free_run_bytes: space.longest_free_run_bytes,
        free_runs: space.free_runs,
        usable_bytes: space.usable_bytes,
        discard_queue_bytes: space.discard_queue_bytes,
    };
    spaces.iter().map(|(id, space)| (id.to_string(), row(space))).collect()
}

/// Levels and sums, and the fill of what they are sums of.
#[derive(Clone, Copy, Default)]
struct Fill {
    total: u64,
    free: u64,
    /// Levels by weight: sums of percent times bytes.
    weighted: [u128; 3],
    /// Of a pool: clients were refused, because what they brought had no room below the critical fill.
    refuses_clients: bool,
}

impl Fill {
    fn add(&mut self, space: &CoreSpace) {
        self.total += space.total_bytes;
        self.free += space.free_bytes;
        for (sum, percent) in self.weighted.iter_mut().zip(space.levels_percent) {
            *sum += u128::from(percent) * u128::from(space.total_bytes);
        }
    }

    fn permille(&self) -> u64 {
        permille(self.total.saturating_sub(self.free), self.total)
    }

    fn level(&self, before: FillLevel) -> FillLevel {
        let percent = |at: usize| (self.weighted[at] / u128::from(self.total.max(1))) as u8;
        let levels =
            FillLevels { warn_percent: percent(0), critical_percent: percent(1), read_only_percent: percent(2) };
        let level = levels.level(self.permille(), before);
        if self.refuses_clients { level.max(FillLevel::Critical) } else { level }
    }
}

fn permille(part: u64, whole: u64) -> u64 {
    (u128::from(part) * 1000 / u128::from(whole.max(1))) as u64
}

/// What the node says of space, once all its cores have reported. Logs every crossing of a level, once.
pub fn settle(report: &mut NodeReport) {
    if report.core_reports.len() != usize::from(report.cores) {
        return;
    }
    let cores = &report.core_reports;
    let mut pools = BTreeMap::<u16, Fill>::new();
    for device in report.devices.iter_mut().filter(|device| device.is_usable()) {
        let parts: Vec<&CoreSpace> = cores.values().filter_map(|core| core.device_space.get(&device.id)).collect();
        let Some(first) = parts.first() else { continue };
        let (mut fill, pool) = (Fill::default(), pools.entry(first.pool).or_default());
        for part in &parts {
            fill.add(part);
            pool.add(part);
        }
        let level = cross(&format!("device {}", device.path), &device.space.level, &fill);
        let sum = |value: fn(&CoreSpace) -> u64| parts.iter().map(|part| value(part)).sum::<u64>();
        device.space = SpaceReport {
            level,
            fill_permille: fill.permille(),
            longest_free_run_bytes: parts.iter().map(|part| part.longest_free_run_bytes).max().unwrap_or_default(),
            free_runs: sum(|part| part.free_runs),
            usable_permille: permille(sum(|part| part.usable_bytes), fill.free),
            discard_queue_bytes: sum(|part| part.discard_queue_bytes),
        };
    }
    let refuses = |pool: u16| {
        let mut spaces = report.core_reports.values().flat_map(|core| core.device_space.values());
        spaces.any(|space| space.pool == pool && space.refuses_clients)
    };
    let before = std::mem::take(&mut report.pools);
    for (pool, mut fill) in pools {
        fill.refuses_clients = refuses(pool);
        let known = before.iter().find(|known| known.pool == pool).map_or("", |known| &known.level);
        let level = cross(&format!("pool {pool}"), known, &fill);
        report.pools.push(PoolReport { pool, level, fill_permille: fill.permille() });
    }
}

/// The level now, by name; a line in the log when it is another than before.
fn cross(what: &str, before: &str, fill: &Fill) -> String {
    let (was, fill_permille) = (FillLevel::of_name(before), fill.permille());
    let level = fill.level(was);
    let name = level.name();
    if level > was {
        let advice = match level {
            FillLevel::Critical => "new data of clients is refused once the pool is there; add devices or delete data",
            FillLevel::ReadOnly => "it takes nothing more; add devices or delete data",
            _ => "add devices or delete data soon",
        };
        tracing::warn!(what, level = name, was = was.name(), fill_permille, advice, "fill level crossed");
    } else if level < was {
        tracing::info!(what, level = name, was = was.name(), fill_permille, "fill level crossed");
    }
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{CoreReport, DeviceReport};

    fn report(free: [u64; 2]) -> NodeReport {
        let space = |free_bytes| CoreSpace {
            levels_percent: [80, 90, 95],
            total_bytes: 1000,
            free_bytes,
            longest_free_run_bytes: free_bytes,
            free_runs: 1,
            usable_bytes: free_bytes / 2,
            ..CoreSpace::default()
        };
        let device = |id: &str| DeviceReport { id: id.to_owned(), state: "healthy".to_owned(), ..Default::default() };
        let spaces = BTreeMap::from([("a".to_owned(), space(free[0])), ("b".to_owned(), space(free[1]))]);
        let core = CoreReport { device_space: spaces, ..CoreReport::default() };
        NodeReport {
            cores: 1,
            devices: vec![device("a"), device("b")],
            core_reports: BTreeMap::from([("0".to_owned(), core)]),
            ..NodeReport::default()
        }
    }

    #[test]
    fn i_c5_devices_and_pools_have_levels_and_keep_them_at_the_edge() {
        let mut node = report([40, 300]);
        settle(&mut node);
        assert_eq!(
            (node.devices[0].space.level.as_str(), node.devices[1].space.level.as_str()),
            ("read-only", "normal")
        );
        assert_eq!((node.pools[0].level.as_str(), node.pools[0].fill_permille), ("warn", 830));
        assert_eq!(node.devices[1].space.usable_permille, 500);
        for (free, device, pool) in
            [([60, 340], "read-only", "warn"), ([80, 350], "critical", "warn"), ([400, 900], "normal", "normal")]
        {
            node.core_reports = report(free).core_reports;
            settle(&mut node);
            assert_eq!(
                (node.devices[0].space.level.as_str(), node.pools[0].level.as_str()),
                (device, pool),
                "{free:?}"
            );
        }
        let core = node.core_reports.get_mut("0").unwrap();
        core.device_space.values_mut().for_each(|space| space.refuses_clients = true);
        settle(&mut node);
        assert_eq!(node.pools[0].level, "critical", "I-C5: clients are refused, whatever the last percent says");
        node.core_reports = report([400, 900]).core_reports;
        settle(&mut node);
        node.cores = 2;
        node.core_reports = report([0, 0]).core_reports;
        settle(&mut node);
        assert_eq!(node.pools[0].level, "normal", "half of the node has not reported");
    }

    #[test]
    fn levels_that_can_not_work_are_refused_and_classes_have_their_own() {
        FillSection::default().check().unwrap();
        let file = |warn_percent, critical_percent, read_only_percent| FillSection {
            file: ClassFill { warn_percent, critical_percent, read_only_percent },
            ..FillSection::default()
        };
        for (bad, word) in
            [(file(0, 90, 95), "0"), (file(91, 90, 95), "fall"), (file(50, 96, 95), "fall"), (file(80, 90, 99), "98")]
        {
            let error = bad.check().unwrap_err().to_string();
            assert!(error.starts_with("fill.file") && error.contains(word), "{error}");
        }
        let (fill, discard) = (file(10, 20, 30), DiscardSection::default());
        let of_file = policy(&fill, &discard, DeviceClass::File, 2);
        assert_eq!((of_file.fill.critical_percent, of_file.discard.unwrap().bytes_per_second_max), (20, 256 << 20));
        let of_hdd = policy(&fill, &discard, DeviceClass::Hdd, 2);
        assert_eq!((of_hdd.fill, of_hdd.discard), (FillLevels::default(), None));
    }
}
