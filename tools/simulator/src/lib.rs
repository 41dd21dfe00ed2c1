//! The simulator: every port of `kiseki-types` on one thread, from one seed.
//!
//! The rooms run unchanged on it. Time is virtual, tasks are picked by a seeded generator, devices and metadata files
//! lose, keep, tear and reorder what was not flushed, and the same seed gives the same run ([`Sim::trace_hash`]).
//! This crate knows no room: what a whole node does on it is the business of `kiseki-sim`.
//!
//! Reading order: [`seed`] (chance), [`executor`] (tasks and time), [`ports`] (what a core sees of both), [`cut`] (the
//! moment the power fails), [`disk`] (what a medium remembers), [`device`] (the device port on it), [`recording`] (a cut behind every event of a run), [`unit_file`] and
//! [`meta`] (metadata directories), [`link`] (calls between cores), [`net`] (calls between
//! nodes).
#![forbid(unsafe_code)]

pub mod cut;
pub mod device;
pub mod disk;
pub mod executor;
pub mod link;
pub mod meta;
pub mod net;
pub mod ports;
pub mod recording;
pub mod seed;
pub mod unit_file;

pub use cut::CutSwitch;
pub use device::{DiskOptions, SimDisk};
pub use executor::{Limits, NodeId, Sim, SimHandle, Stalled};
pub use link::SimLink;
pub use meta::SimMetaDir;
pub use net::{NetFaults, SimNet};
pub use recording::Recorder;
pub use seed::SeededRng;
