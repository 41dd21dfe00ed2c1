//! Wear watch (I-D3): a side thread reads the health of NVMe drives now and then, and a pure function says what is to be
//! done about it. Who records and acts on that is [`crate::device_records`].
//!
//! A drive is emptied while it can still be read: when most of its life is used, when it counts media errors, when it
//! says that it is not reliable any more, or when our own reads met errors on it. An operator may cancel that; then it is
//! not begun again for the same cause, and the device counts as degraded.

use crate::executor::CoreShared;
use crate::smart::{self, SmartAnswer};
use kiseki_devices::nvme::smart::SmartLog;
use kiseki_devices::topology::{KernelRoots, Topology};
use kiseki_engine::device_record::{DeviceActor, DeviceRecord, DeviceUpdate, WearCause};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two looks whether the node stops, or whether it is time to read again.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Worn devices that are emptied at once: drives of one age wear out together, and somewhere their data has to go.
pub const WEAR_EVACUATIONS_MAX: usize = 1;

/// From when on a device is emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WearLimits {
    /// Percent of its life, by the maker's estimate.
    pub used_percent_max: u8,
    /// Media errors that it counts itself.
    pub media_errors_max: u64,
    /// Errors that our own reads met, since its record began.
    pub read_errors_max: u64,
}

/// What a drive says of its health.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WearReading {
    /// Life used, in percent.
    pub used_percent: u8,
    /// Spare capacity left, in percent.
    pub spare_percent: u8,
    /// Media errors.
    pub media_errors: u64,
    /// Degrees Celsius.
    #[serde(default)]
    pub temperature_celsius: Option<i32>,
    /// What it warns of.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Whether one of these means that it is not reliable any more, or takes no writes.
    pub is_critical: bool,
}

impl WearReading {
    /// From a drive's log.
    #[must_use]
    pub fn of(log: &SmartLog) -> WearReading {
        WearReading {
            used_percent: log.used_percent,
            spare_percent: log.spare_percent,
            media_errors: log.media_errors,
            temperature_celsius: log.temperature_celsius(),
            warnings: log.critical.texts().into_iter().map(str::to_owned).collect(),
            is_critical: log.critical.unreliable || log.critical.read_only,
        }
    }

    /// All of it in one line, for people.
    #[must_use]
    pub fn summary(&self) -> String {
        let WearReading { used_percent, spare_percent, media_errors, .. } = self;
        let mut line =
            format!("{used_percent} % of its life used, {spare_percent} % spare, {media_errors} media errors");
        if let Some(celsius) = self.temperature_celsius {
            line.push_str(&format!(", {celsius} °C"));
        }
        if !self.warnings.is_empty() {
            let word = if self.is_critical { "CRITICAL" } else { "warns" };
            line.push_str(&format!("; {word}: {}", self.warnings.join(", ")));
        }
        line
    }
}

/// What speaks against a device, the most urgent first.
#[must_use]
pub fn findings(read_errors: u64, reading: Option<&WearReading>, limits: WearLimits) -> Vec<(WearCause, String)> {
    let mut found = Vec::new();
    if let Some(reading) = reading {
        if reading.is_critical {
            found.push((WearCause::CriticalWarning, format!("it warns: {}", reading.warnings.join(", "))));
        }
        if reading.media_errors > limits.media_errors_max {
            let text =
                format!("it counts {} media errors, {} are allowed", reading.media_errors, limits.media_errors_max);
            found.push((WearCause::MediaErrors, text));
        }
        if reading.used_percent > limits.used_percent_max {
            let text =
                format!("{} % of its life are used, {} are allowed", reading.used_percent, limits.used_percent_max);
            found.push((WearCause::Used, text));
        }
    }
    if read_errors > limits.read_errors_max {
        let text = format!("{read_errors} of our reads met an error on it, {} are allowed", limits.read_errors_max);
        found.push((WearCause::ReadErrors, text));
    }
    found
}

/// What wear watch does about a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WearVerdict {
    /// Nothing.
    Leave,
    /// It is emptied from now on.
    Evacuate(DeviceUpdate),
    /// It is to be emptied when its turn comes, for this reason.
    WaitForTurn(String),
}

/// Decides about one device.
///
/// - `evacuating_by_wear`: devices that are being emptied because wear watch wants it.
#[must_use]
pub fn verdict(
    record: &DeviceRecord,
    reading: Option<&WearReading>,
    limits: WearLimits,
    evacuating_by_wear: usize,
) -> WearVerdict {
    if !record.state().takes_fragments() {
        return WearVerdict::Leave;
    }
    let found = findings(record.read_errors, reading, limits);
    let Some((cause, reason)) = found.into_iter().find(|(cause, _)| !record.is_cancelled(*cause)) else {
        return WearVerdict::Leave;
    };
    if evacuating_by_wear >= WEAR_EVACUATIONS_MAX {
        return WearVerdict::WaitForTurn(reason);
    }
    WearVerdict::Evacuate(DeviceUpdate::Evacuate { actor: DeviceActor::Wear, reason, cause: Some(cause) })
}

/// Reads the drives in turn from a thread of its own until the node stops.
pub fn start(shared: Arc<CoreShared>) -> std::io::Result<()> {
    let interval = Duration::from_secs(u64::from(shared.config.health.smart_interval_s));
    let watch = move || {
        let mut failed: BTreeMap<PathBuf, String> = BTreeMap::new();
        let mut next = Instant::now();
        while !shared.stop.is_stopped() {
            if Instant::now() >= next {
                read_all(&shared, &mut failed);
                next = Instant::now() + interval;
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    };
    std::thread::Builder::new().name("kiseki-wear".to_owned()).spawn(watch).map(drop)
}

/// `failed` are the drives that could not be read at the last turn, and why: told once.
fn read_all(shared: &CoreShared, failed: &mut BTreeMap<PathBuf, String>) {
    let roots = KernelRoots::default();
    let listed = Topology::read(&roots);
    for device in shared.devices.all() {
        let (reading, problem) = match smart::ask_listed(&device.path, &listed, &roots) {
            SmartAnswer::Log(log) => (Some(WearReading::of(&log)), None),
            SmartAnswer::None => (None, None),
            SmartAnswer::Failed(reason) => (None, Some(reason)),
        };
        match &problem {
            None => drop(failed.remove(&device.path)),
            Some(reason) => {
                if failed.get(&device.path) != Some(reason) {
                    tracing::warn!(device = %device.path.display(), %reason, "the drive's health can't be read");
                }
                failed.insert(device.path.clone(), reason.clone());
            }
        }
        let id = device.superblock.device.to_string();
        let mut board = shared.board.lock();
        for report in board.devices.iter_mut().filter(|report| report.id == id) {
            // What was read last counts until it is read again.
            report.wear = reading.clone().or(report.wear.take());
            report.wear_problem = problem.clone().unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiseki_engine::device_record::DevicePlace;
    use kiseki_types::ids::{DeviceId, PoolId};

    const LIMITS: WearLimits = WearLimits { used_percent_max: 90, media_errors_max: 100, read_errors_max: 100 };

    fn record(updates: Vec<DeviceUpdate>) -> DeviceRecord {
        let place = DevicePlace { path: "/dev/nvme0n1".to_owned(), pool: PoolId(0), class: "nvme".to_owned() };
        let opened = DeviceUpdate::Opened { place, actor: DeviceActor::Node, reason: "opened".to_owned() };
        let mut record = None;
        for update in std::iter::once(opened).chain(updates) {
            record = DeviceRecord::after(record.as_ref(), DeviceId([1; 16]), update, 1).unwrap().or(record);
        }
        record.unwrap()
    }

    fn cause(verdict: &WearVerdict) -> Option<WearCause> {
        match verdict {
            WearVerdict::Evacuate(DeviceUpdate::Evacuate { actor: DeviceActor::Wear, cause, .. }) => *cause,
            _ => None,
        }
    }

    #[test]
    fn i_d3_wear_over_the_limit_or_errors_over_the_limit_start_an_evacuation() {
        let reading = |used_percent, media_errors, is_critical| WearReading {
            used_percent,
            media_errors,
            is_critical,
            ..WearReading::default()
        };
        for (read_errors, reading, wanted) in [
            (0, None, None),
            (100, None, None),
            (101, None, Some(WearCause::ReadErrors)),
            (0, Some(reading(90, 100, false)), None),
            (0, Some(reading(91, 0, false)), Some(WearCause::Used)),
            (0, Some(reading(255, 0, false)), Some(WearCause::Used)),
            (0, Some(reading(5, 101, false)), Some(WearCause::MediaErrors)),
            (0, Some(reading(5, 0, true)), Some(WearCause::CriticalWarning)),
            (500, Some(reading(95, 200, true)), Some(WearCause::CriticalWarning)),
        ] {
            let record = record(vec![DeviceUpdate::ReadErrors(read_errors)]);
            let verdict = verdict(&record, reading.as_ref(), LIMITS, 0);
            assert_eq!(cause(&verdict), wanted, "I-D3: {read_errors} read errors, {reading:?}");
        }
    }

    #[test]
    fn i_d3_what_an_operator_cancelled_is_left_alone_and_another_cause_is_news() {
        let worn = WearReading { used_percent: 97, ..WearReading::default() };
        let WearVerdict::Evacuate(begin) = verdict(&record(Vec::new()), Some(&worn), LIMITS, 0) else {
            panic!("a worn device is emptied");
        };
        let cancel = DeviceUpdate::CancelEvacuation { reason: "it stays".to_owned() };
        let kept = record(vec![begin.clone(), cancel]);
        assert_eq!(verdict(&kept, Some(&worn), LIMITS, 0), WearVerdict::Leave, "I-D3: not for the same cause");
        let worse = WearReading { media_errors: 500, ..worn.clone() };
        assert_eq!(cause(&verdict(&kept, Some(&worse), LIMITS, 0)), Some(WearCause::MediaErrors), "I-D3");
        assert_eq!(verdict(&record(vec![begin]), Some(&worn), LIMITS, 0), WearVerdict::Leave, "it is on its way");
    }

    #[test]
    fn a_reading_says_all_that_counts_in_one_line() {
        let mut reading =
            WearReading { used_percent: 12, spare_percent: 100, media_errors: 3, ..WearReading::default() };
        assert_eq!(reading.summary(), "12 % of its life used, 100 % spare, 3 media errors");
        reading.temperature_celsius = Some(41);
        reading.warnings = vec!["spare capacity is below its threshold".to_owned()];
        assert!(reading.summary().ends_with("3 media errors, 41 °C; warns: spare capacity is below its threshold"));
        reading.is_critical = true;
        assert!(reading.summary().contains("; CRITICAL: spare"));
    }

    #[test]
    fn worn_devices_are_emptied_one_after_the_other() {
        let worn = WearReading { used_percent: 97, ..WearReading::default() };
        let waits = verdict(&record(Vec::new()), Some(&worn), LIMITS, WEAR_EVACUATIONS_MAX);
        assert!(matches!(waits, WearVerdict::WaitForTurn(_)), "{waits:?}");
    }
}
