//! The first bytes of a connection, in clear: where it wants to go. They carry no trust, they only route.

use kiseki_types::codec::{CodecError, Reader, Writer};
use kiseki_types::ids::LaneId;
use kiseki_types::limits::LANES_MAX;

/// Bytes of a preamble.
pub const PREAMBLE_LEN_BYTES: usize = 16;

const MAGIC: &[u8; 8] = b"KISEKIPL";

/// Version of what follows up to the hello; it has versions of its own.
const VERSION: u16 = 1;

/// The preamble of a connection to the core that holds `lane`.
#[must_use]
pub fn encode(lane: LaneId) -> [u8; PREAMBLE_LEN_BYTES] {
    let mut writer = Writer::new();
    writer.raw(MAGIC).u16(VERSION).u16(lane.0).u32(0);
    writer.finish().try_into().expect("a preamble has a fixed length")
}

/// The lane that a preamble names.
pub fn decode(bytes: &[u8; PREAMBLE_LEN_BYTES]) -> Result<LaneId, CodecError> {
    let mut reader = Reader::new("preamble", bytes);
    if reader.array::<8>()? != *MAGIC {
        return Err(reader.unknown(0));
    }
    match reader.u16()? {
        VERSION => {}
        version => return Err(reader.unknown(u64::from(version))),
    }
    let lane = reader.u16()?;
    if lane >= LANES_MAX {
        return Err(reader.unknown(u64::from(lane)));
    }
    match reader.u32()? {
        0 => {}
        reserved => return Err(reader.unknown(u64::from(reserved))),
    }
    reader.end()?;
    Ok(LaneId(lane))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_preambles_are_taken() {
        let good = encode(LaneId(3));
        assert_eq!(decode(&good), Ok(LaneId(3)));
        for at in 0..PREAMBLE_LEN_BYTES {
            let mut bad = good;
            bad[at] ^= 0x80;
            // Bytes 10 and 11 are the lane: 131 and 32771.
            assert_eq!(decode(&bad).is_ok(), at == 10, "byte {at}");
        }
        assert!(decode(b"GET / HTTP/1.1\r\n").is_err());
    }
}
