//! A byte stream as hyper wants it.

use futures::io::{AsyncRead, AsyncWrite};
use hyper::rt::{Read, ReadBufCursor, Write};
use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// Most bytes taken from a socket in one read: stays in the second-level cache between the two copies.
const READ_LEN_BYTES_MAX: usize = 64 * 1024;

thread_local! {
    /// One per core. hyper lends memory that is not initialized, which safe code can only fill by copying.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_LEN_BYTES_MAX]);
}

/// Adapts a stream of this core to hyper's I/O traits.
///
/// It claims vectored writes: otherwise hyper copies head and body into one buffer first.
pub struct HyperIo<S> {
    stream: S,
}

impl<S> HyperIo<S> {
    /// Adapts `stream`.
    pub fn new(stream: S) -> HyperIo<S> {
        HyperIo { stream }
    }

    /// The stream back.
    pub fn into_inner(self) -> S {
        self.stream
    }
}

impl<S: AsyncRead + Unpin> Read for HyperIo<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let room = buf.remaining().min(scratch.len());
            let len = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut scratch[..room]))?;
            buf.put_slice(&scratch[..len]);
            Poll::Ready(Ok(()))
        })
    }
}

impl<S: AsyncWrite + Unpin> Write for HyperIo<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
}
