//! Serves the gateway over a store in memory, to try clients against its protocol alone. Nothing is kept.
//!
//! `cargo run --release --example memory_s3 -- 127.0.0.1:9100`; the key is `memory-key`, its secret
//! `memory-key-secret`.
#![allow(missing_docs)]

#[path = "../tests/gateway/memory/mod.rs"]
mod memory;

fn main() {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let listener = std::net::TcpListener::bind(&address).expect("the address is free");
    println!("http://{}", listener.local_addr().expect("a bound socket has an address"));
    memory::serve(listener, memory::config());
}
