//! Sets checksums and lengths right, so that mutated inputs get behind them; and the packing of inputs of many parts.

use kiseki_devices::crc32c;

/// Bytes of a superblock copy, a fragment header and a header copy of a table file, and of a journal's page.
pub const BLOCK_BYTES: usize = 4096;

/// Bytes of a CRC32C.
const SUM_BYTES: usize = 4;

/// A block padded with zeros whose last four bytes are the CRC32C of the rest.
#[must_use]
pub fn block(bytes: &[u8]) -> Vec<u8> {
    let mut block = bytes[..bytes.len().min(BLOCK_BYTES - SUM_BYTES)].to_vec();
    block.resize(BLOCK_BYTES - SUM_BYTES, 0);
    let sum = crc32c(&block);
    block.extend_from_slice(&sum.to_le_bytes());
    block
}

/// The body of a block without the zeros behind it: what a corpus keeps.
#[must_use]
pub fn block_body(block: &[u8]) -> Vec<u8> {
    without_zeros(&block[..block.len().min(BLOCK_BYTES - SUM_BYTES)])
}

/// Without the zeros at the end.
#[must_use]
pub fn without_zeros(bytes: &[u8]) -> Vec<u8> {
    bytes[..bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1)].to_vec()
}

/// The last four bytes become the CRC32C of those in front.
#[must_use]
pub fn tail(bytes: &[u8]) -> Vec<u8> {
    let body = &bytes[..bytes.len().saturating_sub(SUM_BYTES)];
    [body, &crc32c(body).to_le_bytes()].concat()
}

/// The first four bytes become the length of the rest.
#[must_use]
pub fn length(bytes: &[u8]) -> Vec<u8> {
    let rest = bytes.get(SUM_BYTES..).unwrap_or_default();
    [&(rest.len() as u32).to_le_bytes(), rest].concat()
}

/// Parts in one input, each behind its length (u16).
#[must_use]
pub fn pack<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut packed = Vec::new();
    for part in parts {
        packed.extend_from_slice(&u16::try_from(part.len()).expect("parts are short").to_le_bytes());
        packed.extend_from_slice(part);
    }
    packed
}

/// The parts of an input, at most `count_max`; one that is cut off is as long as it is.
#[must_use]
pub fn unpack(mut packed: &[u8], count_max: usize) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    while let Some((len, rest)) = packed.split_first_chunk::<2>().filter(|_| parts.len() < count_max) {
        let (part, behind) = rest.split_at(rest.len().min(usize::from(u16::from_le_bytes(*len))));
        parts.push(part);
        packed = behind;
    }
    parts
}

/// The first part gets its checksum: see [`tail`].
#[must_use]
pub fn first_part_tail(packed: &[u8]) -> Vec<u8> {
    let parts = unpack(packed, usize::MAX);
    let Some((first, rest)) = parts.split_first() else { return Vec::new() };
    let first = tail(first);
    pack(std::iter::once(&first[..]).chain(rest.iter().copied()))
}
