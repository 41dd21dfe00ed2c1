//! Client sockets: a TCP stream whose readiness comes through the core's ring and whose bytes move by plain calls, vectored
//! writes in one `sendmsg`; with or without TLS on top.

use futures::io::{AsyncRead, AsyncWrite};
use futures_rustls::server::TlsStream;
use kiseki_executor::{Interest, Readiness, readiness};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, IoSlice, Read};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// Flags of our own writes: never block the executor, and a client that has gone is an error, not a signal.
const SEND_FLAGS: i32 = (rustix::net::SendFlags::DONTWAIT.bits() | rustix::net::SendFlags::NOSIGNAL.bits()) as i32;

/// A connected TCP socket of this core.
pub struct TcpSocket {
    readable: Option<Readiness>,
    writable: Option<Readiness>,
    /// The last read took all there was: the next one waits before it asks.
    is_drained: bool,
    socket: Socket,
}

impl TcpSocket {
    /// Takes a connected socket over; small answers leave at once (TCP_NODELAY).
    pub fn new(socket: Socket) -> io::Result<TcpSocket> {
        socket.set_tcp_nodelay(true)?;
        socket.set_nonblocking(true)?;
        Ok(TcpSocket { readable: None, writable: None, is_drained: false, socket })
    }

    /// Connects to `address`.
    pub async fn connect(address: SocketAddr) -> io::Result<TcpSocket> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        match socket.connect(&address.into()) {
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {
                readiness(socket.as_fd(), Interest::Writable).await?;
                socket.take_error()?.map_or(Ok(()), Err)?;
            }
            other => other?,
        }
        TcpSocket::new(socket)
    }

    /// The socket itself, to be served on another core.
    pub(crate) fn into_inner(self) -> Socket {
        self.socket
    }

    /// Sends until the socket is full, then waits for room.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        send: impl Fn(&Socket) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            if let Some(writable) = &mut self.writable {
                ready!(Pin::new(writable).poll(cx))?;
                self.writable = None;
            }
            match send(&self.socket) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.writable = Some(readiness(self.socket.as_fd(), Interest::Writable));
                }
                other => return Poll::Ready(other),
            }
        }
    }
}

/// Waits until a connection can be accepted from a listening socket.
pub(crate) fn acceptable(socket: &Socket) -> Readiness {
    readiness(socket.as_fd(), Interest::Readable)
}

impl AsyncRead for TcpSocket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        loop {
            if this.is_drained && this.readable.is_none() {
                this.readable = Some(readiness(this.socket.as_fd(), Interest::Readable));
            }
            if let Some(readable) = &mut this.readable {
                ready!(Pin::new(readable).poll(cx))?;
                this.readable = None;
            }
            match this.socket.read(buf) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => this.is_drained = false,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => this.is_drained = true,
                Ok(len) => {
                    // A read that did not fill the buffer emptied the socket; asking again would cost a call for nothing.
                    this.is_drained = len < buf.len();
                    return Poll::Ready(Ok(len));
                }
                error => return Poll::Ready(error),
            }
        }
    }
}

impl AsyncWrite for TcpSocket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().poll_send(cx, |socket| socket.send_with_flags(buf, SEND_FLAGS))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_send(cx, |socket| socket.send_vectored_with_flags(bufs, SEND_FLAGS))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(())) // nothing is kept back
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.socket.shutdown(Shutdown::Write) {
            // The client was faster.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            other => Poll::Ready(other),
        }
    }
}

/// A client's byte stream.
pub enum Stream {
    /// Plain TCP: for comparisons and behind a TLS terminator.
    Plain(TcpSocket),
    /// TLS.
    Tls(Box<TlsStream<TcpSocket>>),
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(stream) => match ready!(Pin::new(stream).poll_read(cx, buf)) {
                // A client that closes its socket without the closing alert is an ordinary end for HTTP, where lengths
                // are framed; hyper tells a cut-off body by itself.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(0)),
                other => Poll::Ready(other),
            },
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_close(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_close(cx),
        }
    }
}
