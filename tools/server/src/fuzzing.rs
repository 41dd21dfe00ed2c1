//! What `tools/fuzz` needs of this crate's private decoders, and nothing else does.

use crate::key_store::{fuzz_header, fuzz_plain};

/// The opened part of a key store decoded and encoded again; `None`: refused.
#[must_use]
pub fn key_store_plain(bytes: &[u8]) -> Option<Vec<u8>> {
    fuzz_plain(bytes)
}

/// Whether a key derivation would follow on the head of such a key store file: what stands in front of the cipher.
#[must_use]
pub fn key_store_head(bytes: &[u8]) -> bool {
    fuzz_header(bytes)
}
