//! What stands where a superblock belongs while a device is being formatted. Bytes: `docs/formats/device.md`.

use super::SUPERBLOCK_LEN_BYTES;
use crate::checksum::crc32c;
use kiseki_types::codec::{Reader, Writer};
use kiseki_types::{ClusterId, DeviceId};

const MARKER_MAGIC: [u8; 8] = *b"KISEKI\x00F";
/// The format that this release writes. 1: the first one.
const MARKER_VERSION: u32 = 1;
const CHECKSUM_OFFSET: usize = SUPERBLOCK_LEN_BYTES - 4;

/// Says that a format was begun. What the device carried before is gone, or about to go; it is nobody's yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FormatMarker {
    /// The cluster that it is being formatted for.
    pub cluster: ClusterId,
    /// The id that it was to have.
    pub device: DeviceId,
}

impl FormatMarker {
    /// Its bytes, the same in each place.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.raw(&MARKER_MAGIC).u32(MARKER_VERSION).raw(&self.cluster.0).raw(&self.device.0);
        let mut bytes = writer.finish();
        bytes.resize(CHECKSUM_OFFSET, 0);
        let checksum = crc32c(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// The marker in these bytes; a torn one is none.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<FormatMarker> {
        if bytes.len() != SUPERBLOCK_LEN_BYTES || bytes[..8] != MARKER_MAGIC {
            return None;
        }
        let stored = u32::from_le_bytes(bytes[CHECKSUM_OFFSET..].try_into().expect("four bytes"));
        let mut reader = Reader::new("format marker", &bytes[8..CHECKSUM_OFFSET]);
        if crc32c(&bytes[..CHECKSUM_OFFSET]) != stored || reader.u32().ok()? != MARKER_VERSION {
            return None;
        }
        Some(FormatMarker { cluster: ClusterId(reader.array().ok()?), device: DeviceId(reader.array().ok()?) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_is_read_back_and_a_torn_one_is_none() {
        let marker = FormatMarker { cluster: ClusterId([1; 16]), device: DeviceId([2; 16]) };
        let mut bytes = marker.encode();
        assert_eq!(FormatMarker::decode(&bytes), Some(marker));
        for at in [0, 9, 20, 4000, 4095] {
            bytes[at] ^= 1;
            assert_eq!(FormatMarker::decode(&bytes), None, "byte {at}");
            bytes[at] ^= 1;
        }
        assert_eq!(FormatMarker::decode(&bytes[..512]), None);
    }
}
