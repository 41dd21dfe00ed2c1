//! Fuzzing of everything that decodes bytes from a disk, a socket, a file or an operator.
//!
//! What this crate does: one function for each parser, a mutator, and a judge that calls panics, allocations beyond a
//! stated multiple of the input and values that do not survive encoding failures. What it does not: it brings no
//! coverage feedback and no sanitizer; it runs on the stable toolchain, in `make test` too.
//!
//! Reading order: [`target`] (what a target is), [`targets`] (all of them), [`mutate`], [`judge`], [`corpus`]
//! (`tools/fuzz/corpus/`), [`run`]. How to use it and how to add a target: `docs/fuzzing.md`.
#![forbid(unsafe_code)]

pub mod corpus;
pub mod judge;
pub mod mend;
pub mod mutate;
pub mod run;
pub mod target;
pub mod targets;

pub use target::{Target, Verdict};
pub use targets::TARGETS;
