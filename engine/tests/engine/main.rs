//! Tests of the whole engine, in the simulator.

mod objects;
mod promises;
mod support;
