//! The vocabulary of Kiseki: ids, units, buffers and the port traits that every room is written against.
//!
//! This room names no other room and no executor, device library or consensus library. A port is a trait whose
//! doc comment lists what an implementation must guarantee; production and the simulator each bring one.
//!
//! Reading order: [`ids`], [`units`], [`buf`], [`codec`], [`secret`], then the ports: [`runtime`] (time, chance,
//! spawning, side threads), [`device`], [`journal`], [`meta`], [`table`], [`fragment`], [`group`], [`link`].
#![forbid(unsafe_code)]

pub mod buf;
pub mod codec;
pub mod device;
pub mod fragment;
pub mod group;
pub mod histogram;
pub mod ids;
pub mod journal;
pub mod limits;
pub mod link;
pub mod meta;
pub mod peer;
pub mod request;
pub mod runtime;
pub mod secret;
pub mod step_times;
pub mod table;
pub mod units;

pub use buf::{IoBuf, IoBytes};
pub use ids::*;
pub use runtime::{Instant, LocalBoxFuture, Ports};
pub use units::{BlockCount, BlockIndex, Extent};
