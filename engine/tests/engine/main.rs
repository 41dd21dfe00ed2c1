//! Tests of the whole engine, in the simulator.

mod epochs;
mod evacuation;
mod leaving;
mod objects;
mod promises;
mod repair;
mod scrub;
mod support;
mod write_memory;
