//! Calls between cores (and, with a cluster, between nodes).

use crate::ids::LaneId;
use crate::runtime::LocalBoxFuture;
use thiserror::Error;

/// Why a call has no answer. Whether the other side acted on it is unknown.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum LinkError {
    /// The core that holds the lane has stopped or does not answer.
    #[error("lane {lane} does not answer; the node is stopping or overloaded")]
    Unreachable {
        /// The lane that was called.
        lane: LaneId,
    },
}

/// Calls to the core that holds a lane.
///
/// To be correct: a call to a lane of the calling core is delivered too (directly); each call is delivered at most
/// once; calls in flight are bounded, a caller over the bound waits. A caller does not know how far away the lane is.
pub trait Link<Request, Response> {
    /// Sends a request to the core that holds `to` and waits for its answer.
    fn call(&self, to: LaneId, request: Request) -> LocalBoxFuture<'static, Result<Response, LinkError>>;
}
