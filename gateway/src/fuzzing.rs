//! What `tools/fuzz` needs of this room's private parsers of requests and stored attributes, and nothing else does.
//! `s3s` takes requests apart (XML, aws-chunked bodies, signatures); here is what is parsed behind it.

use crate::attributes::Described;
use crate::checksum::{self, Kind, Plan, Sums};
use crate::range::{resolve, resolve_copy};
use crate::unsupported::check_query;
use crate::upload::content_md5;
use crate::{s3, token};
use http::HeaderMap;
use kiseki_engine::api::Attributes;
use s3s::dto::Range;

/// What a continuation token goes on behind, and the token for it.
#[must_use]
pub fn continuation_token(text: &str) -> Option<(String, String)> {
    token::decode(text).map(|last| (token::encode(&last), last))
}

/// A name as listings with `encoding-type=url` write it.
#[must_use]
pub fn url_encoded(text: &str) -> String {
    token::url_encode(text)
}

/// The bytes of an object that a `Range` header asks for.
#[must_use]
pub fn range(header: &str, len_bytes: u64) -> Option<std::ops::Range<u64>> {
    let range = Range::parse(header).ok()?;
    resolve(Some(&range), None, len_bytes, &[]).ok().map(|slice| slice.bytes)
}

/// The bytes of the part of that number.
#[must_use]
pub fn part_range(number: i32, len_bytes: u64, part_lens_bytes: &[u64]) -> Option<std::ops::Range<u64>> {
    resolve(None, Some(number), len_bytes, part_lens_bytes).ok().map(|slice| slice.bytes)
}

/// The bytes of a source that a copy asks for.
#[must_use]
pub fn copy_range(header: &str, len_bytes: u64) -> Option<std::ops::Range<u64>> {
    resolve_copy(header, len_bytes).ok()
}

/// The checksum headers of a request: `None` when they are refused, else whether `computed` is what they promise.
#[must_use]
pub fn checksum_headers(headers: &HeaderMap, computed: &[u8]) -> Option<bool> {
    content_md5(headers).ok()?;
    Plan::from_headers(headers).ok()?.map(|plan| plan.verify(computed, None).is_ok())
}

/// Attributes as they are stored, through headers and checksums and back, and the checksum of an object of such parts.
#[must_use]
pub fn attributes(stored: &Attributes, len_bytes: u64) -> Attributes {
    let sums = Sums::load(stored);
    if let Some(algorithm) = sums.algorithm()
        && let Some(digest) = sums.digest(algorithm)
    {
        let parts = [(digest.clone(), len_bytes), (digest, len_bytes)];
        for kind in [Kind::FullObject, Kind::Composite].into_iter().filter(|kind| algorithm.allows(*kind)) {
            let _sum = checksum::of_parts(algorithm, kind, &parts);
        }
    }
    let mut again = Described::load(stored).into_attributes().unwrap_or_default();
    sums.store(&mut again);
    again
}

/// An upload id as clients bring it back.
#[must_use]
pub fn upload_id(text: &str) -> Option<[u8; 16]> {
    s3::fuzz_upload_id(text)
}

/// Whether a query is refused for what it names.
#[must_use]
pub fn query_is_refused(query: &str) -> bool {
    ["GetObject", "PutObject"].into_iter().any(|operation| check_query(operation, query).is_err())
}
