//! Decoding and encoding again, for `crate::fuzzing`.

use super::{
    decode_fragment_call, decode_fragment_reply, decode_request, decode_response, encode_fragment_call,
    encode_fragment_reply, encode_request, encode_response, samples,
};

/// A message of each kind, by name.
pub type Seeds = Vec<(&'static str, Vec<u8>)>;

const FITS: &str = "what came in a message fits one";

/// A request, decoded as a receiver does and encoded again.
#[must_use]
pub fn fuzz_request(message: &[u8]) -> Option<Vec<u8>> {
    decode_request(message).ok().map(|request| encode_request(&request).expect(FITS))
}

/// A response, decoded as whoever asked does and encoded again.
#[must_use]
pub fn fuzz_response(message: &[u8]) -> Option<Vec<u8>> {
    decode_response(message).ok().map(|response| encode_response(&response).expect(FITS))
}

/// A call for fragments, decoded as a receiver does and encoded again.
#[must_use]
pub fn fuzz_fragment_call(message: &[u8]) -> Option<Vec<u8>> {
    decode_fragment_call(message).ok().map(|call| encode_fragment_call(&call).expect(FITS))
}

/// A reply to such a call.
#[must_use]
pub fn fuzz_fragment_reply(message: &[u8]) -> Option<Vec<u8>> {
    decode_fragment_reply(message).ok().map(|reply| encode_fragment_reply(&reply).expect(FITS))
}

/// Requests of each kind.
#[must_use]
pub fn request_seeds() -> Seeds {
    samples::requests().iter().map(|(name, request)| (*name, encode_request(request).expect(FITS))).collect()
}

/// Responses of each kind.
#[must_use]
pub fn response_seeds() -> Seeds {
    samples::responses().iter().map(|(name, response)| (*name, encode_response(response).expect(FITS))).collect()
}

/// Calls for fragments of each kind.
#[must_use]
pub fn fragment_call_seeds() -> Seeds {
    samples::fragment_calls().iter().map(|(name, call)| (*name, encode_fragment_call(call).expect(FITS))).collect()
}

/// Replies of each kind.
#[must_use]
pub fn fragment_reply_seeds() -> Seeds {
    samples::fragment_replies().iter().map(|(name, reply)| (*name, encode_fragment_reply(reply).expect(FITS))).collect()
}
