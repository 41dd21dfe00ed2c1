//! Up to which length a shard's content lies beside its name (I-SF1): what the voter with the least room can keep of as many objects as
//! are expected. The threshold is a row of the shard, so it changes through its log alone. It falls by itself and rises when an
//! operator says so: what was taken inline stays, so it must not swing.

use crate::inline::InlineSettings;
use kiseki_types::codec::{CodecError, Reader, Writer};

/// Until the voters have said how much room they have, and unless an operator says otherwise, the highest.
pub const THRESHOLD_LEN_BYTES: u32 = 4 * 1024;

/// Lowest threshold unless it is configured: a page of references to one chunk is as long.
pub const FLOOR_LEN_BYTES: u32 = 128;

/// Highest threshold unless it is configured.
pub const CEILING_LEN_BYTES: u32 = 64 * 1024;

/// Objects that are expected of a shard at least. One that has more is expected to get as many again.
pub const OBJECTS_EXPECTED_MIN: u64 = 1 << 14;

/// Leading bits that are kept of a threshold: it changes in steps of an eighth to a quarter.
const STEP_BITS: u32 = 3;

/// Version of the row.
const FORMAT: u8 = 1;

/// Why a threshold is what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThresholdBy {
    /// It was never changed.
    Default,
    /// A voter had no room for more.
    Room,
    /// An operator said so.
    Operator,
}

/// A shard's threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threshold {
    /// Content of at most so many bytes lies inline.
    pub len_bytes: u32,
    /// Why.
    pub by: ThresholdBy,
    /// Since when, milliseconds since 1970; 0: from the start.
    pub since_unix_ms: u64,
}

impl Default for Threshold {
    fn default() -> Threshold {
        Threshold { len_bytes: THRESHOLD_LEN_BYTES, by: ThresholdBy::Default, since_unix_ms: 0 }
    }
}

impl Threshold {
    /// What holds under these settings.
    #[must_use]
    pub fn within(&self, settings: &InlineSettings) -> u32 {
        self.len_bytes.min(settings.ceiling_len_bytes).max(settings.floor_len_bytes)
    }

    /// The row.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u8(FORMAT);
        self.put(&mut writer);
        writer.finish()
    }

    /// Back from a row.
    pub fn decode(bytes: &[u8]) -> Result<Threshold, CodecError> {
        let mut reader = Reader::new("inline threshold", bytes);
        match reader.u8()? {
            FORMAT => {}
            other => return Err(reader.unknown(u64::from(other))),
        }
        let threshold = Threshold::take(&mut reader)?;
        reader.end()?;
        Ok(threshold)
    }

    /// Appends it.
    pub fn put(&self, writer: &mut Writer) {
        let by = match self.by {
            ThresholdBy::Default => 0,
            ThresholdBy::Room => 1,
            ThresholdBy::Operator => 2,
        };
        writer.u32(self.len_bytes).u8(by).u64(self.since_unix_ms);
    }

    /// Reads it.
    pub fn take(reader: &mut Reader<'_>) -> Result<Threshold, CodecError> {
        let len_bytes = reader.u32()?;
        let by = match reader.u8()? {
            0 => ThresholdBy::Default,
            1 => ThresholdBy::Room,
            2 => ThresholdBy::Operator,
            other => return Err(reader.unknown(u64::from(other))),
        };
        Ok(Threshold { len_bytes, by, since_unix_ms: reader.u64()? })
    }
}

/// Objects that a shard with so many is expected to get.
#[must_use]
pub fn objects_expected(objects: u64) -> u64 {
    objects.max(OBJECTS_EXPECTED_MIN)
}

/// I-SF1: the highest threshold for a shard that has so many objects, where the voter with the least room has this much for it.
#[must_use]
pub fn supported(room_bytes: u64, objects: u64, settings: &InlineSettings) -> u32 {
    let each = room_bytes / objects_expected(objects);
    let each = u32::try_from(each).unwrap_or(u32::MAX).min(settings.ceiling_len_bytes);
    let dropped_bits = (u32::BITS - each.leading_zeros()).saturating_sub(STEP_BITS);
    ((each >> dropped_bits) << dropped_bits).max(settings.floor_len_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i_sf1_the_threshold_is_what_there_is_room_for_each_expected_object() {
        let settings = InlineSettings::default();
        let of = |room: u64, objects| supported(room, objects, &settings);
        let (few, many) = (OBJECTS_EXPECTED_MIN, 10 * OBJECTS_EXPECTED_MIN);
        for (room, objects, threshold) in [
            (0, 0, FLOOR_LEN_BYTES),
            (200 * few, 0, 192),
            (4096 * few, 0, 4096),
            (4095 * few, few, 3584),
            (4096 * few, many, 384),
            (5000 * few, 7, 4096),
            (5120 * few, 7, 5120),
            (64 * 1024 * few, 0, CEILING_LEN_BYTES),
            (u64::MAX, 0, CEILING_LEN_BYTES),
            (u64::MAX, u64::MAX, FLOOR_LEN_BYTES),
        ] {
            assert_eq!(of(room, objects), threshold, "{room} bytes for {objects} objects");
        }
        let narrow = InlineSettings { floor_len_bytes: 512, ceiling_len_bytes: 2048, ..settings };
        assert_eq!((supported(0, 0, &narrow), supported(u64::MAX, 0, &narrow)), (512, 2048));
        let row = |len_bytes| Threshold { len_bytes, ..Threshold::default() }.within(&narrow);
        assert_eq!((row(128), row(1000), row(65_536)), (512, 1000, 2048), "what was set under other settings");
    }

    #[test]
    fn a_row_comes_back_and_a_strange_one_does_not() {
        for by in [ThresholdBy::Default, ThresholdBy::Room, ThresholdBy::Operator] {
            let threshold = Threshold { len_bytes: 700, by, since_unix_ms: 9 };
            assert_eq!(Threshold::decode(&threshold.encode()), Ok(threshold));
        }
        let row = Threshold::default().encode();
        for len in 0..row.len() {
            assert!(Threshold::decode(&row[..len]).is_err(), "{len}");
        }
        assert!(Threshold::decode(&[&row[..], &[0]].concat()).is_err());
        for at in [0, 5] {
            let mut strange = row.clone();
            strange[at] = 9;
            assert!(Threshold::decode(&strange).is_err(), "byte {at}");
        }
    }
}
