//! The tests of this room that need more than one module: one binary, because each links openraft anew.

mod common;
mod guards;
mod i_l2_unflushed;
mod long_folds;
mod peers;
mod power_cut;
mod rest;
mod runtime_suite;
mod single_voter;
mod three_voters;
