//! The server: wires the rooms into a node and runs it.
//!
//! What this crate does: configuration, the key store, making a first node ready ([`init`]), checking a machine
//! ([`doctor`]), opening devices, lanes and shards on every core ([`node`], [`core_node`]), the admin socket and the
//! read-only HTTP port. What it does not: it decides nothing about data; that is the engine's.
//!
//! Reading order: [`paths`], [`config`], [`key_store`], [`init`], [`core_node`] (one core, generic over its ports, so
//! that the simulator runs the same code), [`node`] (all cores), [`enroll`] (devices that join and leave), [`admin`] and
//! its ends, [`pki`] and [`peer_port`] (links of members), [`join`] and [`cluster`] (a node among others).
#![forbid(unsafe_code)]

pub mod admin;
pub mod admin_client;
pub mod admin_remote;
pub mod admin_store;
pub mod alerts;
pub mod banner;
pub mod certificates;
pub mod cluster;
pub mod config;
pub mod config_edit;
pub mod core_node;
pub mod credentials;
pub mod device_admin;
pub mod device_name;
pub mod device_orders;
pub mod device_places;
pub mod device_records;
pub mod device_table;
pub mod devices;
pub mod doctor;
pub mod ending;
pub mod enroll;
pub mod enroll_offline;
pub mod executor;
pub mod files;
pub mod first_tenant;
pub mod format;
pub mod format_plan;
#[doc(hidden)]
pub mod fuzzing;
pub mod group_host;
pub mod health;
pub mod heap;
pub mod init;
pub mod inline_section;
pub mod join;
pub mod join_service;
pub mod key_store;
pub mod log_section;
pub mod logging;
pub mod machine;
pub mod metadata;
pub mod milliseconds;
pub mod node;
pub mod node_admin;
pub mod nodes_file;
pub mod outcome;
pub mod paths;
pub mod peer_directory;
pub mod peer_port;
pub mod peer_section;
pub mod pki;
pub mod pool_shape;
pub mod replaced;
pub mod report;
pub mod scratch_dir;
pub mod shard_admin;
pub mod shard_inline;
pub mod shards;
pub mod slow_calls;
pub mod smart;
pub mod space;
pub mod status;
pub mod steps;
pub mod stopped_node;
pub mod upkeep;
pub mod watch;
pub mod wear;
