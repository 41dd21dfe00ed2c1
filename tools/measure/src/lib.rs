//! What everything that measures shares: latencies, numbers without structure, and figures as they are typed and printed.
//!
//! `kiseki-bench` and `kiseki-devctl bench` build on it. It knows no device and no runtime.
#![forbid(unsafe_code)]

pub mod latency;
pub mod noise;
pub mod units;
