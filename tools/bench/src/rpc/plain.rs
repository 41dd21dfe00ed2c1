//! The same bytes through rustls alone, with blocking sockets and nothing above it: what a link can be compared with.

use super::RpcArgs;
use super::members::Member;
use crate::measure::{Meter, Spent, Timing};
use crate::output::{Job, Side};
use crate::stop::Stop;
use crate::units::ns;
use anyhow::{Context, Result, anyhow};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Instant;

/// Copies blocks of `--bs` bytes from one thread to another.
pub fn run(args: &RpcArgs, members: &[Member], stop: &Stop) -> Result<Job> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let (bs, window, stop) = (args.bs as usize, args.window(), stop.clone());
    let server_config = Arc::new(server(&members[0])?);
    let start = Instant::now();
    let sending_stop = stop.clone();
    let client = connect(&members[0])?;
    let sender = std::thread::spawn(move || -> Result<()> {
        let socket = TcpStream::connect(address)?;
        socket.set_nodelay(true)?;
        let mut stream = StreamOwned::new(client, socket);
        stream.conn.set_buffer_limit(Some(kiseki_net::peer::stream::SEND_BUFFER_BYTES));
        let block = vec![7; bs];
        while ns(start.elapsed()) < window.end_ns && !sending_stop.is_set() {
            stream.write_all(&block)?;
        }
        stream.conn.send_close_notify();
        stream.flush()?;
        Ok(())
    });
    let (socket, _) = listener.accept()?;
    let mut stream = StreamOwned::new(ServerConnection::new(server_config)?, socket);
    let (mut meter, mut block) = (Meter::new(window), vec![0; bs]);
    let mut before = None;
    loop {
        let start_ns = ns(start.elapsed());
        if start_ns >= window.start_ns && before.is_none() {
            before = Some(Spent::now());
        }
        match stream.read_exact(&mut block) {
            Ok(()) => {
                let timing = Timing { intended_ns: start_ns, start_ns, end_ns: ns(start.elapsed()) };
                meter.record(timing, bs as u64);
            }
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error).context("reading through rustls"),
        }
    }
    meter.close(ns(start.elapsed()));
    sender.join().map_err(|_| anyhow!("the sending thread died"))??;
    let spent = Spent::now().since(&before.unwrap_or_default());
    Ok(Job {
        name: "rustls alone".to_owned(),
        about: args.bulk_about(1),
        write: Some(Side::of(meter)),
        cpu: spent.own,
        machine: spent.machine,
        ..Job::default()
    })
}

fn pems(member: &Member) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>, RootCertStore)> {
    let chain = vec![CertificateDer::from_pem_slice(member.certificate.as_bytes())?];
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(member.authority.as_bytes())?)?;
    Ok((chain, PrivateKeyDer::from_pem_slice(member.key.as_bytes())?, roots))
}

fn server(member: &Member) -> Result<ServerConfig> {
    let (chain, key, _) = pems(member)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13])?;
    let mut config = builder.with_no_client_auth().with_single_cert(chain, key)?;
    // The sender reads nothing: with tickets unread its socket would close with a reset, and the reader lose what is on its way.
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn connect(member: &Member) -> Result<ClientConnection> {
    let (_, _, roots) = pems(member)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13])?;
    let config = builder.with_root_certificates(roots).with_no_client_auth();
    Ok(ClientConnection::new(Arc::new(config), "localhost".try_into()?)?)
}
