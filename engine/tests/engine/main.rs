//! Tests of the whole engine, in the simulator.

mod apart;
mod counters;
mod epochs;
mod evacuation;
mod groups;
mod hedged;
mod inline;
mod leaving;
mod nodes;
mod objects;
mod once;
mod parts;
mod promises;
mod rebalance;
mod repair;
mod scrub;
mod split;
mod support;
mod thresholds;
mod unanswered;
mod write_memory;
