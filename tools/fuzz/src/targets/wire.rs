//! What engines of different nodes say to each other.

use crate::target::{Seed, Target, Verdict, bytes_settle};
use kiseki_engine::fuzzing;

/// A request to a shard or core. A list of empty texts or names takes few bytes, and each of its elements has a header.
pub const REQUEST: Target = Target::new("engine_request", request, request_seeds).allowed(256 * 1024, 64);
/// The response to one.
pub const RESPONSE: Target = Target::new("engine_response", response, response_seeds).allowed(256 * 1024, 64);
/// A call for fragments.
pub const FRAGMENT_CALL: Target = Target::new("fragment_call", call, call_seeds);
/// The reply to one.
pub const FRAGMENT_REPLY: Target = Target::new("fragment_reply", reply, reply_seeds).allowed(256 * 1024, 64);

fn request(bytes: &[u8]) -> Verdict {
    bytes_settle(bytes, fuzzing::engine_request)
}

fn request_seeds() -> Vec<Seed> {
    fuzzing::engine_request_seeds()
}

fn response(bytes: &[u8]) -> Verdict {
    bytes_settle(bytes, fuzzing::engine_response)
}

fn response_seeds() -> Vec<Seed> {
    fuzzing::engine_response_seeds()
}

fn call(bytes: &[u8]) -> Verdict {
    bytes_settle(bytes, fuzzing::fragment_call)
}

fn call_seeds() -> Vec<Seed> {
    fuzzing::fragment_call_seeds()
}

fn reply(bytes: &[u8]) -> Verdict {
    bytes_settle(bytes, fuzzing::fragment_reply)
}

fn reply_seeds() -> Vec<Seed> {
    fuzzing::fragment_reply_seeds()
}
