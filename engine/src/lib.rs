//! The engine: from plaintext to sealed, coded fragments and back; names, deltas, homes, collection.
#![forbid(unsafe_code)]

pub mod api;
