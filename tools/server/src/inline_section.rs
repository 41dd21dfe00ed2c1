//! Section `[inline]` of the configuration: small objects that lie beside their names.

use crate::config::{ConfigError, Overrides};
use kiseki_engine::inline::{INLINE_LEN_BYTES_MAX, InlineSettings};
use serde::{Deserialize, Serialize};

/// Fuller directories have no room for what a node can't do without.
const METADATA_FILL_PERCENT_LIMIT: u8 = 95;

/// Bytes of a MB.
const MB: u64 = 1_000_000;

/// Section `[inline]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InlineSection {
    /// MB a second of small objects that a shard takes beside its names; 0: none.
    pub mb_per_second_max: u32,
    /// The lowest threshold of a shard.
    pub floor_bytes: u32,
    /// The highest one.
    pub ceiling_bytes: u32,
    /// How full, in percent, metadata directories may be before thresholds fall faster; absent: 50, or where the next one is lower, as that.
    pub metadata_soft_percent_max: Option<u8>,
    /// And before they are at the floor.
    pub metadata_fill_percent_max: u8,
}

impl Default for InlineSection {
    fn default() -> InlineSection {
        let settings = InlineSettings::default();
        InlineSection {
            mb_per_second_max: u32::try_from(settings.bytes_per_second_max / MB).unwrap_or(u32::MAX),
            floor_bytes: settings.floor_len_bytes,
            ceiling_bytes: settings.ceiling_len_bytes,
            metadata_soft_percent_max: None,
            metadata_fill_percent_max: settings.metadata_fill_percent_max,
        }
    }
}

impl InlineSection {
    /// As the engine takes them.
    #[must_use]
    pub fn settings(&self) -> InlineSettings {
        InlineSettings {
            bytes_per_second_max: u64::from(self.mb_per_second_max) * MB,
            metadata_soft_percent_max: self.soft(),
            metadata_fill_percent_max: self.metadata_fill_percent_max,
            floor_len_bytes: self.floor_bytes,
            ceiling_len_bytes: self.ceiling_bytes,
        }
    }

    fn soft(&self) -> u8 {
        let first = InlineSettings::default().metadata_soft_percent_max;
        self.metadata_soft_percent_max.unwrap_or_else(|| first.min(self.metadata_fill_percent_max))
    }

    /// With what flags and environment say. A hard limit of theirs takes a soft one of the file down with it.
    #[must_use]
    pub fn overridden(self, overrides: &Overrides) -> InlineSection {
        let soft = match overrides.meta_hard_limit_pct {
            Some(hard) => self.metadata_soft_percent_max.map(|soft| soft.min(hard)),
            None => self.metadata_soft_percent_max,
        };
        InlineSection {
            mb_per_second_max: overrides.raft_inline_mbps.unwrap_or(self.mb_per_second_max),
            metadata_soft_percent_max: overrides.meta_soft_limit_pct.or(soft),
            metadata_fill_percent_max: overrides.meta_hard_limit_pct.unwrap_or(self.metadata_fill_percent_max),
            ..self
        }
    }

    /// Errors: a value out of its limits.
    pub fn check(&self) -> Result<(), ConfigError> {
        let wrong = |key, value: u32, reason| Err(ConfigError::Value { key, value: value.to_string(), reason });
        if !(1..=METADATA_FILL_PERCENT_LIMIT).contains(&self.metadata_fill_percent_max) {
            let reason = "1 to 95; to store no small objects beside their names, set inline.mb_per_second_max = 0";
            return wrong("inline.metadata_fill_percent_max", self.metadata_fill_percent_max.into(), reason);
        }
        if self.soft() > self.metadata_fill_percent_max {
            let reason = "at most inline.metadata_fill_percent_max, which is the hard limit";
            return wrong("inline.metadata_soft_percent_max", self.soft().into(), reason);
        }
        if !(1..=INLINE_LEN_BYTES_MAX as u32).contains(&self.ceiling_bytes) {
            let reason = "1 to 65536; to store no small objects beside their names, set inline.mb_per_second_max = 0";
            return wrong("inline.ceiling_bytes", self.ceiling_bytes, reason);
        }
        if !(1..=self.ceiling_bytes).contains(&self.floor_bytes) {
            return wrong("inline.floor_bytes", self.floor_bytes, "1 to inline.ceiling_bytes");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_those_of_the_engine_and_a_full_directory_is_none() {
        assert_eq!(InlineSection::default().settings(), InlineSettings::default());
        let with = |soft, hard| {
            let overrides = Overrides { meta_soft_limit_pct: soft, meta_hard_limit_pct: hard, ..Overrides::default() };
            InlineSection::default().overridden(&overrides)
        };
        assert_eq!(with(None, None), InlineSection::default());
        let off = Overrides { raft_inline_mbps: Some(0), ..Overrides::default() };
        assert_eq!(InlineSection::default().overridden(&off).settings(), InlineSettings::off());
        for (soft, hard, fits) in [
            (None, Some(0), false),
            (None, Some(1), true),
            (None, Some(95), true),
            (None, Some(96), false),
            (None, Some(255), false),
            (Some(0), None, true),
            (Some(75), None, true),
            (Some(76), None, false),
            (Some(60), Some(50), false),
        ] {
            assert_eq!(with(soft, hard).check().is_ok(), fits, "{soft:?} {hard:?}");
        }
        assert_eq!(with(None, Some(30)).settings().metadata_soft_percent_max, 30);
        let of_file = InlineSection { metadata_soft_percent_max: Some(50), ..InlineSection::default() };
        let flag = Overrides { meta_hard_limit_pct: Some(30), ..Overrides::default() };
        assert_eq!(of_file.overridden(&flag).settings().metadata_soft_percent_max, 30, "the file says 50");
        let written_before = InlineSection { metadata_fill_percent_max: 40, ..InlineSection::default() };
        written_before.check().expect("a file that names the hard limit alone");
        assert_eq!(written_before.settings().metadata_soft_percent_max, 40);
    }

    #[test]
    fn thresholds_have_bounds() {
        for (floor_bytes, ceiling_bytes, fits) in
            [(128, 65_536, true), (1, 1, true), (0, 10, false), (11, 10, false), (1, 65_537, false), (1, 0, false)]
        {
            let section = InlineSection { floor_bytes, ceiling_bytes, ..InlineSection::default() };
            assert_eq!(section.check().is_ok(), fits, "{floor_bytes} to {ceiling_bytes}");
        }
    }
}
