//! The raft scenario: several nodes with several shards, over the production Raft room and its messages, on simulated
//! disks and a simulated network; nodes lose power at any write, the network is cut and heals, leaders and voters
//! change, snapshots break off.
//!
//! Reading order: [`machine`] (what a shard does), [`judge`] (what must never happen), [`member`] (one node), [`worker`]
//! (what clients do), [`trouble`] (what goes wrong), [`scene`] (a run).

pub mod judge;
pub mod machine;
pub mod member;
pub mod scene;
pub mod trouble;
pub mod worker;

pub use scene::{ClusterOptions, ClusterReport, run_cluster};
