//! The engine: from plaintext to sealed, coded fragments and back; names, deltas, homes, collection.
//!
//! It knows nothing of devices, Raft, sockets or protocols: it meets them through the ports of `kiseki-types` and
//! offers [`api`] to gateways. Reading order: [`api`]; the write path [`writer`], [`chunk_write`]; the read path
//! [`reader`], [`chunk_read`]; what they are made of ([`chunker`], [`chunk_id`], [`keys`], [`envelope`], [`stripe`],
//! [`placement`], [`spread`], [`cluster_fragments`]; [`inline`] for small objects); then what shards do: [`delta`], [`machine`], [`leader`],
//! [`shard_service`], [`home_service`], [`control_service`]; how nodes ask each other: [`message`], [`wire`]; what keeps it
//! whole: [`device_record`], [`device_board`],
//! [`repairer`], [`repair`], [`evacuation`], [`rebalancer`], [`rebalance`], [`retirement`], [`scrubber`]; and [`engine`], which puts one core
//! together.
#![forbid(unsafe_code)]

pub mod api;
pub mod background;
pub mod calls;
pub mod chunk_id;
pub mod chunk_read;
pub mod chunk_write;
pub mod chunker;
pub mod cluster_fragments;
pub mod composition;
pub mod control_cache;
pub mod control_rows;
pub mod control_service;
pub mod core;
pub mod delta;
pub mod device_board;
pub mod device_record;
pub mod engine;
pub mod envelope;
pub mod evacuation;
#[doc(hidden)]
pub mod fuzzing;
pub mod hash_queue;
pub mod holdings;
pub mod home_service;
pub mod homes;
pub mod host;
pub mod inline;
pub mod inline_message;
pub mod inline_threshold;
pub mod key_ranges;
pub mod keyring;
pub mod keys;
pub mod latch;
mod late_puts;
pub mod latency;
pub mod leader;
pub mod machine;
pub mod message;
pub mod metadata_room;
pub mod names;
pub mod nodes;
pub mod orphans;
pub mod pace;
pub mod placement;
pub mod racks;
pub mod reader;
pub mod rebalance;
pub mod rebalancer;
pub mod reliance;
pub mod repair;
pub mod repair_queue;
pub mod repairer;
pub mod replica_keeper;
pub mod request_log;
pub mod retirement;
mod routes;
pub mod scrubber;
mod seats;
pub mod shard_service;
pub mod shard_tables;
pub mod split_message;
pub mod spread;
pub mod stages;
pub mod store;
pub mod stripe;
pub mod stripe_read;
pub mod throttle;
pub mod upkeep_pace;
pub mod walk;
pub mod wire;
pub mod without;
pub mod write_budget;
pub mod writer;

mod engine_capnp;
