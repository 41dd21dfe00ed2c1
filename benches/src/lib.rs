//! Benches of one function alone; a whole machine is measured in `perf`.
//!
//! `cargo bench --profile release --ignore-rust-version -p kiseki-benches` runs them all; a name at the end of
//! the command (`-- cut`) runs those whose names contain it.
#![forbid(unsafe_code)]
