//! Tests of the whole engine, in the simulator.

mod apart;
mod epochs;
mod evacuation;
mod groups;
mod leaving;
mod nodes;
mod objects;
mod promises;
mod rebalance;
mod repair;
mod scrub;
mod support;
mod write_memory;
