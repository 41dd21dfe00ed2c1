//! Compiles the Cap'n Proto schemas of this room.

fn main() {
    let parent = vec!["peer".to_owned(), "control".to_owned()];
    let mut compiler = capnpc::CompilerCommand::new();
    let compiled = compiler.src_prefix("schema").default_parent_module(parent).file("schema/link.capnp").run();
    if let Err(error) = compiled {
        // As a warning of cargo this would be easy to miss; the build can't go on without.
        panic!("the schemas can't be compiled ({error}); install the compiler: apt-get install capnproto");
    }
}
