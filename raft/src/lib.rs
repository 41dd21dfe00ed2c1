//! The Raft room: a shard is one Raft group over ordered table files.
//!
//! It knows openraft, redb and journals; it knows nothing of what a command means, of devices or of links' transport.
//! A shard's logic comes in as a `StateMachine`, its journal, metadata files, time and chance as ports.
//!
//! Reading order: [`group`] (one replica, what the engine holds), [`log_store`] (votes and entries, the durable
//! promise), [`shard_machine`] (committed commands into tables), [`table_set`] and [`table_file`] (the tables),
//! [`snapshot`] and [`network`] (peers), [`messages`], [`peers`] and [`replicas`] (peers on other nodes), [`membership`]
//! (leaders and voters that change), [`rest`] (groups that nobody uses), [`supervisor`] (what happens when a group breaks), [`runtime`] (openraft on the
//! ports).
#![forbid(unsafe_code)]

pub mod error;
#[doc(hidden)]
pub mod fuzzing;
pub mod group;
pub mod log_store;
pub mod membership;
pub mod messages;
pub mod network;
pub mod peers;
pub mod replicas;
pub mod rest;
pub mod runtime;
pub mod runtime_channels;
pub mod shard_machine;
pub mod snapshot;
pub mod supervisor;
pub mod table_file;
pub mod table_set;
pub mod times;
pub mod type_config;

mod append_stream;
mod clear_file;
mod file_header;
mod leadership;
mod overlay;
mod page_ranges;
mod paged_file;
mod raft_capnp;
mod reads;
mod release;
mod sealed_file;
#[cfg(test)]
mod test_support;
mod view;

pub use error::RaftError;
pub use group::{GroupParts, GroupSettings, GroupState, ShardGroup};
pub use log_store::{GroupStatus, LaneLog};
pub use peers::{PeerDirectory, RaftPeers};
pub use replicas::Replicas;
pub use runtime::in_guarded_task;
pub use table_set::TableSet;
pub use times::{RaftStep, RaftTimes};
