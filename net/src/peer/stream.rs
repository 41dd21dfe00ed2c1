//! The byte stream of a link: TLS over a socket that is read ahead.

use crate::socket::TcpSocket;
use futures::io::{AsyncRead, AsyncWrite};
use futures_rustls::TlsStream;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// rustls asks the socket for 4 KiB at a time: four system calls a record. So much is read at once instead.
const READ_AHEAD_LEN_BYTES: usize = 128 * 1024;

/// Plaintext that rustls may hold for one connection before it takes no more: a few records, so that bulk bytes go out in few
/// system calls.
pub const SEND_BUFFER_BYTES: usize = 256 * 1024;

/// An authenticated connection.
pub type PeerStream = TlsStream<ReadAhead>;

/// A socket that is read in large pieces and handed on in small ones.
pub struct ReadAhead {
    socket: TcpSocket,
    buffer: Box<[u8]>,
    unread: Range<usize>,
}

impl ReadAhead {
    /// Reads `socket` ahead.
    #[must_use]
    pub fn new(socket: TcpSocket) -> ReadAhead {
        ReadAhead { socket, buffer: vec![0; READ_AHEAD_LEN_BYTES].into(), unread: 0..0 }
    }
}

impl AsyncRead for ReadAhead {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.unread.is_empty() {
            let read = ready!(Pin::new(&mut this.socket).poll_read(cx, &mut this.buffer))?;
            this.unread = 0..read;
        }
        let len = buf.len().min(this.unread.len());
        buf[..len].copy_from_slice(&this.buffer[this.unread.start..this.unread.start + len]);
        this.unread.start += len;
        Poll::Ready(Ok(len))
    }
}

impl AsyncWrite for ReadAhead {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write_vectored(cx, bufs)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_close(cx)
    }
}
