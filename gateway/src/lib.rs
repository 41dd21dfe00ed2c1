//! The S3 gateway: S3's requests in S3's own terms over [`kiseki_engine::api::ObjectStore`].
//!
//! It owns everything that is protocol: HTTP, signatures (through `s3s` and its crates), headers, XML, ETags, checksums, conditions
//! on reads, listing tokens, error codes. It does not cut, seal, place or name anything; it holds no object's bytes
//! beyond the chunk in flight; it opens no socket and no TLS session: whoever accepts connections hands them to
//! [`S3Service::serve_connection`].
//!
//! One service per core: nothing here is `Send`, and a connection never changes its executor. `s3s` asks for `Send`
//! futures; the wrappers that say so stand in [`service`] and in `s3/mod.rs` only.
//!
//! Names never reach a log (I-K1): the access log carries operation, status, bytes, time and request id. `s3s` itself
//! logs paths and error details, so a process that embeds this crate must apply [`LOG_DIRECTIVES`].
//!
//! Reading order: [`config`], [`service`], `context`, `auth`, `s3/mod.rs` (one file per family of operations),
//! `s3/plain_read.rs` (the GETs that go past `s3s`), `signature`,
//! `upload`, `md5_queue` and `checksum` (what happens to a body), `errors`, [`counters`].
#![forbid(unsafe_code)]

mod attributes;
mod auth;
mod checksum;
mod conditions;
pub mod config;
mod context;
pub mod counters;
mod errors;
#[doc(hidden)]
pub mod fuzzing;
mod md5_queue;
mod meter;
pub mod phases;
mod range;
mod rt;
mod s3;
pub mod service;
mod signature;
mod token;
mod unsupported;
mod upload;

pub use config::GatewayConfig;
pub use counters::GatewayCounters;
pub use service::{GatewayError, S3Service};

/// Directives for the log filter of the process: `s3s` logs request paths and error details, which carry names
/// (I-K1), and every 404 as an error; hyper warns when an idle connection is closed.
pub const LOG_DIRECTIVES: &[&str] = &["s3s=off", "hyper=error"];
