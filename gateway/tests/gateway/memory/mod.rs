//! An S3 server over a store in memory, for tests only: the gateway's own code, a fake engine behind it, real sockets.

// Each test uses the part that it needs.
#![allow(dead_code)]

pub mod io;
pub mod ports;
pub mod store;

use async_io::Async;
use kiseki_gateway::{GatewayConfig, S3Service};
use std::net::TcpListener;
use std::rc::Rc;

/// Settings with limits that a test reaches soon.
pub fn config() -> GatewayConfig {
    GatewayConfig {
        header_timeout: std::time::Duration::from_secs(3),
        body_idle_timeout: std::time::Duration::from_secs(2),
        aws_chunk_len_bytes_max: 1024 * 1024,
        ..GatewayConfig::default()
    }
}

/// Serves `listener` on this thread for ever. Two keys of two tenants are known, see [`store::MemoryStore::new`].
pub fn serve(listener: TcpListener, config: GatewayConfig) {
    let executor = Rc::new(async_executor::LocalExecutor::new());
    let ports = Rc::new(ports::TestPorts::new(executor.clone()));
    let store = Rc::new(store::MemoryStore::new(ports.clone()));
    let service = S3Service::new(ports, store, config);
    let listener = Async::new(listener).expect("the listener can be polled");
    let accepting = async {
        loop {
            let (socket, _) = listener.accept().await.expect("accept");
            socket.get_ref().set_nodelay(true).expect("nodelay");
            let service = service.clone();
            executor
                .spawn(async move {
                    // A broken connection is the client's business; the tests look at what it left behind.
                    let _ = service.serve_connection(io::Socket(socket)).await;
                })
                .detach();
        }
    };
    async_io::block_on(executor.run(accepting));
}
