//! A client's connection end to end: listener, TLS or plain, hyper on the executor, a clean stop.

use futures::channel::oneshot;
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use kiseki_executor::{Executor, ExecutorOptions};
use kiseki_net::{CoreRuntime, Listener, NetError, ServeLimits, SidePool, Stopper, TlsAcceptor, serve};
use kiseki_types::ids::CoreId;
use kiseki_types::runtime::Ports;
use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc;
use std::task::{Context, Poll};

/// A body that says how many bytes it has got, then sends `len` bytes in pieces.
struct Pieces {
    left: usize,
}

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;
    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let len = self.left.min(1 << 20);
        let start = self.left;
        self.left -= len;
        let bytes: Vec<u8> = (0..len).map(|index| (start - index) as u8).collect();
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(bytes)))))
    }
    fn size_hint(&self) -> hyper::body::SizeHint {
        hyper::body::SizeHint::with_exact(self.left as u64)
    }
}

async fn answer(mut request: Request<Incoming>) -> Result<Response<Pieces>, hyper::Error> {
    let mut len = 0;
    while let Some(frame) =
        std::future::poll_fn(|cx| hyper::body::Body::poll_frame(Pin::new(request.body_mut()), cx)).await
    {
        len += frame?.data_ref().map_or(0, Bytes::len);
    }
    Ok(Response::new(Pieces { left: len }))
}

/// Runs a server on an executor, gives its address to `client`, then stops it cleanly.
fn with_server(tls: Option<TlsAcceptor>, client: impl FnOnce(SocketAddr)) {
    let side = SidePool::start(1).unwrap();
    let (sender, address) = mpsc::channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let core_side = side.clone();
    let server = std::thread::spawn(move || {
        Executor::new(ExecutorOptions::default()).unwrap().run(async move {
            let ports: Ports = Rc::new(CoreRuntime::new(CoreId(0), core_side));
            let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
            sender.send(listener.address()).unwrap();
            let (stopper, signal) = Stopper::new();
            ports.spawn(
                "stop",
                Box::pin(async move {
                    let _ = stopped.await;
                    stopper.stop();
                }),
            );
            let handler = Rc::new(|connection: kiseki_net::Connection| {
                Box::pin(async move {
                    let http = hyper::server::conn::http1::Builder::new();
                    let _ = http.serve_connection(connection.io, service_fn(answer)).await;
                }) as kiseki_types::runtime::LocalBoxFuture<'static, ()>
            });
            serve(listener, tls, ports, ServeLimits::default(), signal, handler).await;
        });
    });
    client(address.recv().unwrap());
    stop.send(()).unwrap();
    server.join().unwrap();
    side.stop();
}

fn exchange(stream: &mut (impl Read + Write), len: usize) {
    write!(stream, "PUT / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len}\r\n\r\n").unwrap();
    let body = vec![7; len];
    // The server reads all of it before it answers, so one after the other can't block for ever.
    stream.write_all(&body).unwrap();
    stream.flush().unwrap();
    let mut response = Vec::new();
    match stream.read_to_end(&mut response) {
        Err(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => panic!("{error}"),
        _ => {}
    }
    let head_end = response.windows(4).position(|part| part == b"\r\n\r\n").expect("a head") + 4;
    assert!(response.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&response[..head_end]));
    let got = &response[head_end..];
    assert_eq!(got.len(), len, "every byte comes back");
    let mut left = len;
    while left > 0 {
        let piece = left.min(1 << 20);
        let from = len - left;
        for index in [0, piece / 2, piece - 1] {
            assert_eq!(got[from + index], (left - index) as u8, "at {}", from + index);
        }
        left -= piece;
    }
}

#[test]
fn plain_bodies_of_many_sizes_go_both_ways() {
    with_server(None, |address| {
        for len in [0, 1, 4096, 1 << 20, 10 << 20] {
            exchange(&mut TcpStream::connect(address).unwrap(), len);
        }
    });
}

#[test]
fn tls_bodies_go_both_ways_and_plain_text_is_refused() {
    let name = "localhost".to_string();
    let made = rcgen::generate_simple_self_signed(vec![name]).unwrap();
    let (cert, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let acceptor = TlsAcceptor::from_pem(cert.as_bytes(), key.as_bytes()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let config = Arc::new(config);
    with_server(Some(acceptor), |address| {
        for len in [0, 1, 1 << 20, 5 << 20] {
            let server_name = "localhost".try_into().unwrap();
            let session = rustls::ClientConnection::new(config.clone(), server_name).unwrap();
            let socket = TcpStream::connect(address).unwrap();
            exchange(&mut rustls::StreamOwned::new(session, socket), len);
        }
        let mut plain = TcpStream::connect(address).unwrap();
        write!(plain, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        let _ = plain.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP"), "a TLS port answers no plain request");
    });
}

#[test]
fn a_port_in_use_is_told_before_it_is_shared() {
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap();
    assert!(matches!(Listener::probe(address), Err(NetError::AddressInUse { .. })));
    drop(other);
    Listener::probe(address).unwrap();
    let first = Listener::bind(address).unwrap();
    let _second = Listener::bind(address).expect("cores of one process share the port");
    assert!(matches!(Listener::probe(first.address()), Err(NetError::AddressInUse { .. })));
}

#[test]
fn a_key_that_is_none_is_refused_without_quoting_it() {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_string()]).unwrap();
    let error = TlsAcceptor::from_pem(made.cert.pem().as_bytes(), b"very secret text").err().unwrap();
    assert!(!error.to_string().contains("secret"), "I-K8: {error}");
}
