//! The crash run: a whole node on simulated disks, clients that work on it, a power cut at a random write, and then
//! the question that matters: is every acknowledged object back, byte for byte?
//!
//! What this crate does: it drives any [`node::NodeUnderTest`] from one seed, keeps a model of what may be true
//! ([`register`]), and reports what contradicts it. What it does not: it knows nothing of how a node stores objects.
//!
//! Reading order: [`content`] (objects made of a seed), [`register`] (what a key may hold), [`model`] (all keys and
//! uploads), [`node`] (what is driven), [`real`] (the real one), [`client`] (one client's operations), [`listing`] (checked listings),
//! [`verify`] (after a cut), [`run`] (rounds of work, cut, recovery); [`cluster`] (Raft groups on several
//! nodes), [`nodes`] (several whole nodes).
#![forbid(unsafe_code)]

pub mod client;
pub mod cluster;
pub mod content;
pub mod listing;
pub mod model;
pub mod multipart;
pub mod node;
pub mod nodes;
pub mod real;
pub mod register;
pub mod run;
mod splitting;
pub mod verify;

pub use cluster::{ClusterOptions, ClusterReport, run_cluster};
pub use node::{NodeUnderTest, OpenCore, OpenError};
pub use nodes::{NodesOptions, NodesReport, run_handover, run_nodes};
pub use run::{Report, RunOptions, run_seed};
