//! What NVMe adds to a device: what a drive says of itself, how it fares, and commands to its controller.
//!
//! Pages are parsed by pure functions from bytes to checked types ([`identify`], [`smart`]); [`admin`] makes commands that
//! can be shown before they are run, [`status`] gives a drive's refusals a name, [`node`] knows the device nodes.
//! [`path`] chooses how a device is driven: by commands to its character device (`command`) where that can be done, or
//! through the block device.

pub mod admin;
pub(crate) mod command;
pub mod identify;
pub mod node;
mod page;
pub mod path;
mod queue_facts;
pub mod smart;
pub mod status;

pub use page::PageError;
