//! What the schema's compiler makes.
#![allow(missing_docs, unreachable_pub, clippy::all)]

include!(concat!(env!("OUT_DIR"), "/engine_capnp.rs"));
