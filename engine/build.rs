//! Makes the readers and builders of the messages between engines from their schema. Needs the program `capnp`
//! (Debian's package `capnproto`).

fn main() {
    println!("cargo:rerun-if-changed=schema/engine.capnp");
    let made = capnpc::CompilerCommand::new().src_prefix("schema").file("schema/engine.capnp").run();
    if let Err(error) = made {
        panic!("schema/engine.capnp is not compiled ({error}); is capnproto installed? scripts/deps.sh installs it");
    }
}
