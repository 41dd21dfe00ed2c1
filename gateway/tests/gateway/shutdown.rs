//! A service that is told to stop ends idle connections at once and busy ones after their request.

use async_io::Async;
use kiseki_gateway::S3Service;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::mpsc;
use std::time::Duration;

#[test]
fn idle_connections_end_and_the_service_drains() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (answered, was_answered) = mpsc::channel();
    let client = std::thread::spawn(move || {
        let mut socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        socket.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
        let mut head = [0; 12];
        socket.read_exact(&mut head).unwrap();
        answered.send(head).unwrap();
        let mut rest = Vec::new();
        socket.read_to_end(&mut rest).unwrap();
    });
    let executor = Rc::new(async_executor::LocalExecutor::new());
    let ports = Rc::new(crate::memory::ports::TestPorts::new(executor.clone()));
    let store = Rc::new(crate::memory::store::MemoryStore::new(ports.clone()));
    let service = S3Service::new(ports, store, kiseki_gateway::GatewayConfig::default());
    let listener = Async::new(listener).unwrap();
    async_io::block_on(executor.run(async {
        let (socket, _) = listener.accept().await.unwrap();
        let connection = service.serve_connection(crate::memory::io::Socket(socket));
        let serving = executor.spawn(connection);
        while was_answered.try_recv().map(|head| assert_eq!(&head, b"HTTP/1.1 403")).is_err() {
            async_io::Timer::after(Duration::from_millis(10)).await;
        }
        assert_eq!(service.counters().connections, 1);
        service.begin_shutdown();
        service.drained().await;
        serving.await.unwrap();
    }));
    client.join().unwrap();
    let counters = service.counters();
    assert_eq!((counters.connections, counters.connections_total), (0, 1));
    assert_eq!(counters.operations["ListBuckets"].answers_by_class, [0, 0, 0, 1, 0]);
}
