//! What `tools/fuzz` needs of this room's private decoders, and nothing else does.
//!
//! Each function decodes bytes and gives back what the encoder makes of the result (`None`: refused), so that no private
//! type leaves the room.

use crate::home_service::{fuzz_generation, fuzz_generation_seed, fuzz_pin_key};

/// A home's record of a generation.
#[must_use]
pub fn generation_record(bytes: &[u8]) -> Option<Vec<u8>> {
    fuzz_generation(bytes)
}

/// Such a record.
#[must_use]
pub fn generation_record_seed() -> Vec<u8> {
    fuzz_generation_seed()
}

/// The key of a pin.
#[must_use]
pub fn pin_key(bytes: &[u8]) -> Option<Vec<u8>> {
    fuzz_pin_key(bytes)
}
