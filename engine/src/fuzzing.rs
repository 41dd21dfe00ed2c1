//! What `tools/fuzz` needs of this room's private decoders, and nothing else does.
//!
//! Each function decodes bytes and gives back what the encoder makes of the result (`None`: refused), so that no private
//! type leaves the room.

pub use crate::wire::fuzz::{
    fragment_call_seeds, fragment_reply_seeds, fuzz_fragment_call as fragment_call,
    fuzz_fragment_reply as fragment_reply, fuzz_request as engine_request, fuzz_response as engine_response,
    request_seeds as engine_request_seeds, response_seeds as engine_response_seeds,
};

use crate::home_service::{fuzz_generation, fuzz_generation_seed, fuzz_pin_key};
use crate::request_log::{fuzz_remembered, fuzz_remembered_seed};

/// A home's record of a generation.
#[must_use]
pub fn generation_record(bytes: &[u8]) -> Option<Vec<u8>> {
    fuzz_generation(bytes)
}

/// What a shard remembers of a request.
#[must_use]
pub fn remembered_request(bytes: &[u8]) -> Option<Vec<u8>> {
    fuzz_remembered(bytes)
}

/// Such a row.
#[must_use]
pub fn remembered_request_seed() -> Vec<u8> {
    fuzz_remembered_seed()
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
