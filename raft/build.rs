//! Makes the readers and builders of the messages between replicas from their schema. Needs the program `capnp`
//! (Debian's package `capnproto`).

fn main() {
    println!("cargo:rerun-if-changed=schema/raft.capnp");
    let made = capnpc::CompilerCommand::new().src_prefix("schema").file("schema/raft.capnp").run();
    if let Err(error) = made {
        panic!("schema/raft.capnp is not compiled ({error}); is capnproto installed? scripts/deps.sh installs it");
    }
}
