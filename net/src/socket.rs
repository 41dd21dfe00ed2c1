//! Client sockets: a TCP stream whose readiness comes through the executor's ring and whose vectored writes go out in
//! one `sendmsg`; with or without TLS on top.

use futures::io::{AsyncRead, AsyncWrite};
use futures_rustls::server::TlsStream;
use glommio::net::TcpStream;
use socket2::Socket;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// Flags of our own writes: never block the executor, and a client that has gone is an error, not a signal.
const SEND_FLAGS: i32 = (rustix::net::SendFlags::DONTWAIT.bits() | rustix::net::SendFlags::NOSIGNAL.bits()) as i32;

/// A connected TCP socket of this core.
///
/// The executor's stream offers no vectored write, and without one a head and a body would be two segments or one
/// copied buffer. So the same socket is held twice: `stream` for reads and readiness, `socket` for `sendmsg`.
pub struct TcpSocket {
    stream: TcpStream,
    socket: Socket,
}

impl TcpSocket {
    /// Takes a connected socket over; small answers leave at once (TCP_NODELAY).
    pub fn new(socket: Socket) -> io::Result<TcpSocket> {
        socket.set_tcp_nodelay(true)?;
        Ok(TcpSocket { stream: executor_stream(&socket)?, socket })
    }
}

/// A duplicate of `socket` as a stream of this executor, which starts polling it for readability at once.
pub(crate) fn executor_stream(socket: &Socket) -> io::Result<TcpStream> {
    let duplicate = std::net::TcpStream::from(socket.try_clone()?);
    Ok(TcpStream::from(socket2_of_glommio::Socket::from(duplicate)))
}

impl AsyncRead for TcpSocket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for TcpSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            match self.socket.send_vectored_with_flags(bufs, SEND_FLAGS) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                other => return Poll::Ready(other),
            }
        }
        // The socket is full. The stream's own write tries once more and then registers for readiness.
        let first = bufs.iter().find(|buf| !buf.is_empty()).map_or(&[][..], |buf| buf);
        Pin::new(&mut self.stream).poll_write(cx, first)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}

/// A client's byte stream.
pub enum Stream {
    /// Plain TCP: for comparisons and behind a TLS terminator.
    Plain(TcpSocket),
    /// TLS.
    Tls(Box<TlsStream<TcpSocket>>),
}

impl Stream {
    /// Whether the client has chosen HTTP/2 (by ALPN).
    #[must_use]
    pub fn is_http2(&self) -> bool {
        match self {
            Stream::Plain(_) => false,
            Stream::Tls(stream) => stream.get_ref().1.alpn_protocol() == Some(b"h2"),
        }
    }
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
