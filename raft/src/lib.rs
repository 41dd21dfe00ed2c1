//! kiseki-raft
