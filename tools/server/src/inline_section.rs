//! Section `[inline]` of the configuration: small objects that lie beside their names.

use crate::config::ConfigError;
use kiseki_engine::inline::{BYTES_PER_SECOND_MAX, InlineSettings, METADATA_FILL_PERCENT_MAX};
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
    /// How full, in percent, metadata directories may be for that.
    pub metadata_fill_percent_max: u8,
}

impl Default for InlineSection {
    fn default() -> InlineSection {
        let mb_per_second_max = u32::try_from(BYTES_PER_SECOND_MAX / MB).unwrap_or(u32::MAX);
        InlineSection { mb_per_second_max, metadata_fill_percent_max: METADATA_FILL_PERCENT_MAX }
    }
}

impl InlineSection {
    /// As the engine takes them.
    #[must_use]
    pub fn settings(&self) -> InlineSettings {
        InlineSettings {
            bytes_per_second_max: u64::from(self.mb_per_second_max) * MB,
            metadata_fill_percent_max: self.metadata_fill_percent_max,
        }
    }

    /// With what flags and environment say.
    #[must_use]
    pub fn overridden(self, mb_per_second_max: Option<u32>, metadata_fill_percent_max: Option<u8>) -> InlineSection {
        InlineSection {
            mb_per_second_max: mb_per_second_max.unwrap_or(self.mb_per_second_max),
            metadata_fill_percent_max: metadata_fill_percent_max.unwrap_or(self.metadata_fill_percent_max),
        }
    }

    /// Errors: a value out of its limits.
    pub fn check(&self) -> Result<(), ConfigError> {
        if (1..=METADATA_FILL_PERCENT_LIMIT).contains(&self.metadata_fill_percent_max) {
            return Ok(());
        }
        Err(ConfigError::Value {
            key: "inline.metadata_fill_percent_max",
            value: self.metadata_fill_percent_max.to_string(),
            reason: "1 to 95; to store no small objects beside their names, set inline.mb_per_second_max = 0",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_those_of_the_engine_and_a_full_directory_is_none() {
        assert_eq!(InlineSection::default().settings(), InlineSettings::default());
        let with = |percent| InlineSection::default().overridden(Some(0), Some(percent));
        assert_eq!(with(50).settings(), InlineSettings { metadata_fill_percent_max: 50, ..InlineSettings::off() });
        for (percent, fits) in [(0, false), (1, true), (95, true), (96, false), (255, false)] {
            assert_eq!(with(percent).check().is_ok(), fits, "{percent}");
        }
    }
}
