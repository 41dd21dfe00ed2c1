//! `kiseki-sim`: crash runs of a whole node, from given or fresh seeds.
#![forbid(unsafe_code)]

fn main() {}
