//! The tests of this room that talk to a service over sockets, in one binary: each links the crates below anew.
#![allow(missing_docs)]

mod conformance;
mod memory;
mod shutdown;
