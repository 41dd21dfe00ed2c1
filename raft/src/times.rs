//! How long the steps of a command take in the Raft of one lane: always on, exported beside the stages of the data path.

use kiseki_types::step_times::StepTimes;

kiseki_types::steps! {
    /// A step of a command. Those of several commands go on at once.
    pub enum RaftStep {
        /// From an append in the log until the flush that makes it durable has returned (I-L2).
        LogFlush = "log_flush",
        /// From an append sent to a peer, with entries, to its answer: its flush and the way there and back.
        Replicate = "replicate",
        /// The state machine's work on one entry.
        Apply = "apply",
    }
}

/// The times of one lane.
pub type RaftTimes = StepTimes<RaftStep>;
