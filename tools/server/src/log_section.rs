//! Section `[log]` of the configuration: what is logged, and how.

use crate::milliseconds::Milliseconds;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Section `[log]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogSection {
    /// Filter in the syntax of `tracing`: `info`, or `info,kiseki_raft=debug`.
    pub filter: String,
    /// Text or JSON.
    pub format: LogFormat,
    /// A request, and a call to another node that is made for one, is told of with the request's id when it takes longer, in
    /// milliseconds (0.2 is 200 µs); 0: none is.
    pub slow_request_ms: Milliseconds,
}

impl LogSection {
    /// From when on something is slow.
    #[must_use]
    pub fn slow_request(&self) -> Option<Duration> {
        let Milliseconds(after) = self.slow_request_ms;
        (!after.is_zero()).then_some(after)
    }
}

impl Default for LogSection {
    fn default() -> LogSection {
        LogSection {
            filter: "info".to_owned(),
            format: LogFormat::Text,
            slow_request_ms: Milliseconds(Duration::from_secs(1)),
        }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For collectors.
    Json,
}
