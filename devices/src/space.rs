//! Space of a device: how full it may get for whom, what is told to it about free blocks, and what there is to report.

use kiseki_types::PoolId;
use std::time::Duration;

/// How full a class of devices may get, in percent of its zones; each level includes the ones below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FillLevels {
    /// From here on an operator should act.
    pub warn_percent: u8,
    /// A pool this full takes no more fragments of clients (I-C5): the rest is for repair and evacuation.
    pub critical_percent: u8,
    /// A device this full takes no fragments at all; releases and journals still go on.
    pub read_only_percent: u8,
}

/// Highest level that can be asked for: journals and deletes need no zones, but the last blocks are of no use to
/// fragments either, see [`RESERVE_DIVISOR`](crate::lane::RESERVE_DIVISOR).
pub const FILL_PERCENT_MAX: u8 = 98;

/// A level is left only when the fill is this much below it, so that a pool at the edge does not flap.
pub const HYSTERESIS_PERMILLE: u64 = 20;

impl Default for FillLevels {
    fn default() -> FillLevels {
        FillLevels { warn_percent: 80, critical_percent: 90, read_only_percent: 95 }
    }
}

/// What a fill means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum FillLevel {
    /// Room enough.
    #[default]
    Normal,
    /// An operator should act.
    Warn,
    /// Clients are refused.
    Critical,
    /// Everybody is refused.
    ReadOnly,
}

impl FillLevel {
    /// As status shows it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            FillLevel::Normal => "normal",
            FillLevel::Warn => "warn",
            FillLevel::Critical => "critical",
            FillLevel::ReadOnly => "read-only",
        }
    }

    /// The level of a name; normal for any other text.
    #[must_use]
    pub fn of_name(name: &str) -> FillLevel {
        let levels = [FillLevel::Warn, FillLevel::Critical, FillLevel::ReadOnly];
        levels.into_iter().find(|level| level.name() == name).unwrap_or_default()
    }
}

impl FillLevels {
    /// The level at a fill, coming from level `before`: up at once, down only when the fill is clearly below.
    #[must_use]
    pub fn level(&self, fill_permille: u64, before: FillLevel) -> FillLevel {
        let at = |permille: u64| {
            let reaches = |percent: u8| permille >= u64::from(percent) * 10;
            match () {
                () if reaches(self.read_only_percent) => FillLevel::ReadOnly,
                () if reaches(self.critical_percent) => FillLevel::Critical,
                () if reaches(self.warn_percent) => FillLevel::Warn,
                () => FillLevel::Normal,
            }
        };
        let (now, kept) = (at(fill_permille), at(fill_permille + HYSTERESIS_PERMILLE));
        if now >= before { now } else { kept.min(before) }
    }
}

/// For whom a fragment is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutPurpose {
    /// A client's new data: refused when the pool is at its critical fill (I-C5).
    Client,
    /// Repair and evacuation: they may use what clients must leave alone, or a full pool could not heal.
    Upkeep,
}

/// How freed extents are told to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiscardPolicy {
    /// Bytes a second of this core at most, so that reads do not suffer.
    pub bytes_per_second_max: u64,
    /// So long after the start also what was free at the start is discarded, once; `None` for never.
    pub unknown_after: Option<Duration>,
}

/// How the space of a device is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpacePolicy {
    /// How full it may get.
    pub fill: FillLevels,
    /// Whether and how freed extents are discarded.
    pub discard: Option<DiscardPolicy>,
}

/// Space of one device on the lanes of one core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceSpace {
    /// The device's pool.
    pub pool: PoolId,
    /// Its levels.
    pub fill: FillLevels,
    /// Bytes of all zones.
    pub total_bytes: u64,
    /// Bytes that no extent holds, the reserve included.
    pub free_bytes: u64,
    /// Longest free run.
    pub longest_free_run_bytes: u64,
    /// Free runs.
    pub free_runs: u64,
    /// Free bytes that fragments of the largest size can be cut from.
    pub usable_bytes: u64,
    /// Whether a client of this core was refused because the pool is at its critical fill, and it is not clearly below
    /// since. A little is free then: what was missing had no room in it.
    pub refuses_clients: bool,
    /// Bytes freed since the start and not discarded; 0 where nothing is discarded.
    pub discard_queue_bytes: u64,
    /// Bytes that were free at the start and are not discarded since; 0 where that is not done.
    pub discard_unknown_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i_c5_levels_rise_at_once_and_fall_only_when_the_fill_is_clearly_below() {
        let levels = FillLevels::default();
        let mut level = FillLevel::Normal;
        for (permille, wanted) in [
            (799, FillLevel::Normal),
            (800, FillLevel::Warn),
            (790, FillLevel::Warn),
            (780, FillLevel::Warn),
            (779, FillLevel::Normal),
            (960, FillLevel::ReadOnly),
            (931, FillLevel::ReadOnly),
            (929, FillLevel::Critical),
            (881, FillLevel::Critical),
            (879, FillLevel::Warn),
            (100, FillLevel::Normal),
        ] {
            level = levels.level(permille, level);
            assert_eq!(level, wanted, "I-C5: at {permille}");
        }
    }
}
