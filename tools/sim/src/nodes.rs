//! Several whole nodes: each with its disks, metadata directories and cores, and a network between them that loses, delays and
//! is cut. Clients put, get, delete and list objects through any node; shards are split under them; nodes lose power at any
//! write and come back.
//!
//! What is checked: everything that is acknowledged is there, through every node, and no read goes back behind another
//! one; and in the end, in peace, every shard has its voters, replicas that say the same, and every stripe is whole and lies as
//! placement demands, also where nodes joined when data were there already.

mod placed;
mod scene;
mod splitter;
mod worker;

pub use scene::{NodesOptions, NodesReport, run_handover, run_nodes};
