//! What an operator may set, checked by whoever parses it.

use std::time::Duration;

/// Longest key in bytes of UTF-8, as in AWS.
pub const KEY_LEN_BYTES_MAX: usize = kiseki_types::limits::KEY_LEN_BYTES_MAX;

/// Most bytes of user metadata (names and values together), as in AWS.
pub const USER_METADATA_LEN_BYTES_MAX: usize = 2048;

/// Most keys in one multi-delete, as in AWS.
pub const DELETE_KEYS_MAX: usize = 1000;

/// Most entries in one page of any listing, as in AWS.
pub const LIST_LIMIT_MAX: usize = 1000;

/// Highest part number, as in AWS.
pub const PART_NUMBER_MAX: u16 = 10_000;

/// Largest source of a server-side copy in one request, as in AWS (larger ones are copied part by part).
pub const COPY_LEN_BYTES_MAX: u64 = 5 * 1024 * 1024 * 1024;

/// Largest body of one PUT or one part, as in AWS.
pub const BODY_LEN_BYTES_MAX: u64 = 5 * 1024 * 1024 * 1024;

/// Largest XML request body. A multi-delete of 1,000 longest keys, fully escaped, and a completion of 10,000 parts
/// with checksums both stay below.
pub const XML_LEN_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Settings of the gateway of one core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayConfig {
    /// The region that buckets say they are in. Requests signed for any region are accepted.
    pub region: String,
    /// How long a connection may take to send a request head, and how long it may idle between two requests.
    pub header_timeout: Duration,
    /// How long a body may pause in either direction before the connection is dropped.
    pub body_idle_timeout: Duration,
    /// Largest signed chunk of an aws-chunked body: it is kept in memory until its signature is checked.
    pub aws_chunk_len_bytes_max: usize,
    /// Smallest part of a multipart upload but for the last one.
    pub part_len_bytes_min: u64,
    /// A request that takes longer, or fails on our side, is told of in the log; `None`: none is.
    pub slow_request: Option<Duration>,
}

impl Default for GatewayConfig {
    fn default() -> GatewayConfig {
        GatewayConfig {
            region: "us-east-1".to_owned(),
            header_timeout: Duration::from_secs(60),
            body_idle_timeout: Duration::from_secs(60),
            aws_chunk_len_bytes_max: 16 * 1024 * 1024,
            part_len_bytes_min: 5 * 1024 * 1024,
            slow_request: None,
        }
    }
}
