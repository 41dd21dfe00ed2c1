//! A byte stream as hyper wants it.

use futures::io::{AsyncRead, AsyncWrite};
use hyper::rt::{Read, ReadBufCursor, Write};
use kiseki_types::runtime::{LocalBoxFuture, Ports, RuntimeExt};
use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

/// Most bytes taken from a socket in one read: stays in the second-level cache between the two copies.
const READ_LEN_BYTES_MAX: usize = 64 * 1024;

/// How long we throw away what a client still sends after we have closed our side: while bytes come, and in all. Closing
/// while bytes arrive resets the connection, and the client loses the answer that told it why its request was refused;
/// most clients send their whole body before they look at the answer.
const LINGER_IDLE: Duration = Duration::from_secs(2);
const LINGER_MAX: Duration = Duration::from_secs(30);

/// Reads of a lingering connection between two turns of other tasks.
const LINGER_READS_PER_TURN: u32 = 16;

thread_local! {
    /// One per core. hyper lends memory that is not initialized, which safe code can only fill by copying.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_LEN_BYTES_MAX]);
}

/// Adapts a stream of this core to hyper's I/O traits.
///
/// It claims vectored writes: otherwise hyper copies head and body into one buffer first.
pub struct HyperIo<S> {
    stream: S,
    ports: Ports,
    lingering: Option<Lingering>,
}

/// Our side is closed, the client's is not yet.
struct Lingering {
    idle: LocalBoxFuture<'static, ()>,
    deadline: LocalBoxFuture<'static, ()>,
    heard: bool,
    is_over: bool,
}

impl<S> HyperIo<S> {
    /// Adapts `stream`.
    pub fn new(stream: S, ports: Ports) -> HyperIo<S> {
        HyperIo { stream, ports, lingering: None }
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

impl<S: AsyncRead + Unpin> HyperIo<S> {
    /// Throws away what the client still sends, until it closes too, for a bounded time.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let lingering = self.lingering.get_or_insert_with(|| Lingering {
            idle: self.ports.sleep(LINGER_IDLE),
            deadline: self.ports.sleep(LINGER_MAX),
            heard: false,
            is_over: false,
        });
        let ports = &self.ports;
        SCRATCH.with_borrow_mut(|scratch| {
            let mut reads = 0;
            while !lingering.is_over && lingering.deadline.as_mut().poll(cx).is_pending() {
                match Pin::new(&mut self.stream).poll_read(cx, scratch) {
                    Poll::Ready(Ok(len)) if len > 0 => lingering.heard = true,
                    Poll::Ready(_) => break,
                    Poll::Pending => {
                        // Only bytes after a pause start the time anew, so that a fast client costs no timer a read.
                        if std::mem::take(&mut lingering.heard) {
                            lingering.idle = ports.sleep(LINGER_IDLE);
                        }
                        ready!(lingering.idle.as_mut().poll(cx));
                        break;
                    }
                }
                reads += 1;
                if reads == LINGER_READS_PER_TURN {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
            }
            lingering.is_over = true; // whatever ended it
            Poll::Ready(())
        })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Write for HyperIo<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingering.is_none() {
            ready!(Pin::new(&mut self.stream).poll_close(cx))?;
        }
        self.poll_linger(cx).map(Ok)
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
