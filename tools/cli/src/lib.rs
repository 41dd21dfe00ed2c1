//! Command line tools: `kiseki` administers a running node, `kiseki-devctl` formats and inspects devices.
//!
//! `kiseki` speaks to the node's admin socket, or over TLS to a node elsewhere, and opens no file of the node; `kiseki ca` works on
//! certificates alone, `kiseki node` on both. `kiseki-devctl` opens devices directly
//! and needs no node; it never touches one that carries someone's signature without being told so by name (I-D7).
#![forbid(unsafe_code)]

pub mod ca;
pub mod devctl;
pub mod health;
pub mod node;
pub mod shard;
pub mod shards;
pub mod top;
