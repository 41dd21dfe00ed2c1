//! The SMART / Health Information log page (02h): how a drive fares.

use super::page::{Page, PageError, bit};

/// Bytes of the page.
pub const SMART_LEN_BYTES: usize = 512;

/// Bytes of one unit that a drive counts data in: a thousand blocks of 512.
pub const DATA_UNIT_LEN_BYTES: u64 = 512_000;

/// A drive's health. Counters that the drive keeps in 128 bits stay at the highest value of 64.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SmartLog {
    /// What the drive warns of.
    pub critical: CriticalWarnings,
    /// Temperature in kelvin; 0: not reported.
    pub temperature_kelvin: u16,
    /// Spare capacity left, in percent of what there was.
    pub spare_percent: u8,
    /// Below this the drive warns.
    pub spare_threshold_percent: u8,
    /// Life used, by the maker's estimate. May exceed 100, and stays at 255.
    pub used_percent: u8,
    /// Read by the host, in units of [`DATA_UNIT_LEN_BYTES`].
    pub data_units_read: u64,
    /// Written by the host, in units of [`DATA_UNIT_LEN_BYTES`].
    pub data_units_written: u64,
    /// Read commands.
    pub host_reads: u64,
    /// Write commands.
    pub host_writes: u64,
    /// Minutes that it was busy.
    pub busy_minutes: u64,
    /// Power cycles.
    pub power_cycles: u64,
    /// Hours under power.
    pub power_on_hours: u64,
    /// Times that it lost power without notice.
    pub unsafe_shutdowns: u64,
    /// Times that data could not be recovered, or failed its check.
    pub media_errors: u64,
    /// Entries ever made in its error log.
    pub error_log_entries: u64,
    /// Minutes above the warning temperature.
    pub hot_minutes: u32,
    /// Minutes above the critical temperature.
    pub critical_hot_minutes: u32,
}

/// What a drive warns of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CriticalWarnings {
    /// Spare capacity fell below the threshold.
    pub spare_low: bool,
    /// Too hot or too cold.
    pub temperature: bool,
    /// Reliability is degraded by media or internal errors.
    pub unreliable: bool,
    /// It takes no writes any more.
    pub read_only: bool,
    /// What keeps its volatile cache over a power cut has failed.
    pub cache_backup_failed: bool,
    /// Its persistent memory region is read-only or unreliable.
    pub memory_region: bool,
}

impl CriticalWarnings {
    fn parse(bits: u8) -> CriticalWarnings {
        let bits = u32::from(bits);
        CriticalWarnings {
            spare_low: bit(bits, 0),
            temperature: bit(bits, 1),
            unreliable: bit(bits, 2),
            read_only: bit(bits, 3),
            cache_backup_failed: bit(bits, 4),
            memory_region: bit(bits, 5),
        }
    }

    /// The warnings, for people.
    #[must_use]
    pub fn texts(&self) -> Vec<&'static str> {
        let all = [
            (self.spare_low, "spare capacity is below its threshold"),
            (self.temperature, "temperature is out of range"),
            (self.unreliable, "reliability is degraded"),
            (self.read_only, "it takes no writes any more"),
            (self.cache_backup_failed, "the backup of its volatile cache has failed"),
            (self.memory_region, "its persistent memory region is unreliable"),
        ];
        all.into_iter().filter_map(|(is_set, text)| is_set.then_some(text)).collect()
    }
}

impl SmartLog {
    /// Reads the page. Errors: `Truncated`.
    pub fn parse(bytes: &[u8]) -> Result<SmartLog, PageError> {
        let page = Page::new("SMART log", bytes, SMART_LEN_BYTES)?;
        Ok(SmartLog {
            critical: CriticalWarnings::parse(page.u8(0)),
            temperature_kelvin: page.u16(1),
            spare_percent: page.u8(3),
            spare_threshold_percent: page.u8(4),
            used_percent: page.u8(5),
            data_units_read: page.counter(32),
            data_units_written: page.counter(48),
            host_reads: page.counter(64),
            host_writes: page.counter(80),
            busy_minutes: page.counter(96),
            power_cycles: page.counter(112),
            power_on_hours: page.counter(128),
            unsafe_shutdowns: page.counter(144),
            media_errors: page.counter(160),
            error_log_entries: page.counter(176),
            hot_minutes: page.u32(192),
            critical_hot_minutes: page.u32(196),
        })
    }

    /// Temperature in degrees Celsius, where the drive reports one.
    #[must_use]
    pub fn temperature_celsius(&self) -> Option<i32> {
        (self.temperature_kelvin > 0).then(|| i32::from(self.temperature_kelvin) - 273)
    }

    /// Bytes read by the host.
    #[must_use]
    pub fn bytes_read(&self) -> u64 {
        self.data_units_read.saturating_mul(DATA_UNIT_LEN_BYTES)
    }

    /// Bytes written by the host.
    #[must_use]
    pub fn bytes_written(&self) -> u64 {
        self.data_units_written.saturating_mul(DATA_UNIT_LEN_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_read_field_by_field_and_counters_saturate() {
        let mut page = vec![0; SMART_LEN_BYTES];
        page[0] = 0b1_1001;
        page[1..3].copy_from_slice(&323u16.to_le_bytes());
        page[3..6].copy_from_slice(&[97, 10, 91]);
        for (index, value) in (1u128..=10).enumerate() {
            page[32 + 16 * index..48 + 16 * index].copy_from_slice(&(value * 1000).to_le_bytes());
        }
        page[160 + 8] = 1;
        page[192..196].copy_from_slice(&7u32.to_le_bytes());
        let found = SmartLog::parse(&page).unwrap();
        assert_eq!(found.critical.texts().len(), 3);
        assert!(found.critical.spare_low && found.critical.read_only && found.critical.cache_backup_failed);
        assert_eq!((found.temperature_celsius(), found.spare_percent, found.used_percent), (Some(50), 97, 91));
        assert_eq!((found.data_units_read, found.data_units_written), (1000, 2000));
        assert_eq!((found.power_on_hours, found.unsafe_shutdowns, found.error_log_entries), (7000, 8000, 10_000));
        assert_eq!(found.media_errors, u64::MAX, "what does not fit is not made small");
        assert_eq!((found.bytes_written(), found.hot_minutes), (1_024_000_000, 7));
        assert!(matches!(SmartLog::parse(&page[..511]), Err(PageError::Truncated { .. })));
    }
}
