//! Named limits that more than one room must agree on (I-O5). Limits of one room live in that room.

/// Alignment of every buffer that goes to a device, and the largest device block supported.
pub const DEVICE_BLOCK_BYTES_MAX: usize = 4096;

/// Smallest device block supported.
pub const DEVICE_BLOCK_BYTES_MIN: usize = 512;

/// Plaintext bytes sealed under one authentication tag; a range read opens whole segments.
pub const SEGMENT_LEN_BYTES: usize = 64 * 1024;

/// Bytes of one authentication tag.
pub const TAG_LEN_BYTES: usize = 16;

/// Longest chunk that a namespace may ask for.
pub const CHUNK_LEN_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Longest envelope: the longest chunk and one tag for each of its segments.
pub const ENVELOPE_LEN_BYTES_MAX: usize =
    CHUNK_LEN_BYTES_MAX + CHUNK_LEN_BYTES_MAX.div_ceil(SEGMENT_LEN_BYTES) * TAG_LEN_BYTES;

/// Bytes of the header in front of every fragment on a device.
pub const FRAGMENT_HEADER_BYTES: usize = 4096;

/// Most fragments in one stripe (data and parity, or copies).
pub const STRIPE_WIDTH_MAX: usize = 32;

/// Most devices that one node opens.
pub const DEVICES_PER_NODE_MAX: usize = 256;

/// Most lanes that a device can be formatted with.
pub const LANES_MAX: u16 = 256;

/// Longest S3 key, in bytes of UTF-8, as in AWS.
pub const KEY_LEN_BYTES_MAX: usize = 1024;

/// Longest command in a Raft log. A naming delta with a full page of chunk references stays well below.
pub const COMMAND_LEN_BYTES_MAX: usize = 1024 * 1024;

/// Longest record in a journal: a command and its envelope.
pub const JOURNAL_RECORD_LEN_BYTES_MAX: usize = COMMAND_LEN_BYTES_MAX + 64 * 1024;

/// Highest counter (a generation, an incarnation, an epoch, a sequence, a term, an index) that is believed when it comes
/// from a disk or a peer. One that is raised by one each time never gets there, and whoever reads it can raise it.
pub const COUNTER_MAX: u64 = u64::MAX / 2;

const _: () = assert!(FRAGMENT_HEADER_BYTES.is_multiple_of(DEVICE_BLOCK_BYTES_MAX));
const _: () = assert!(CHUNK_LEN_BYTES_MAX.is_multiple_of(SEGMENT_LEN_BYTES));
