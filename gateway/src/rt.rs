//! hyper's runtime traits over the ports: virtual or real time.

use hyper::rt::{ReadBufCursor, Sleep, Timer};
use kiseki_types::runtime::RuntimeExt;
use kiseki_types::{Instant, LocalBoxFuture, Ports};
use send_wrapper::SendWrapper;
use std::cell::Cell;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

/// hyper's clock. hyper counts in `std::time::Instant`, which can't be made from a number, so one real instant is
/// taken at the start and everything after it is told in distances on the ports' clock.
pub(crate) struct PortsTimer {
    ports: SendWrapper<Ports>,
    origin: Instant,
    origin_std: std::time::Instant,
}

impl PortsTimer {
    pub(crate) fn new(ports: Ports) -> PortsTimer {
        let origin = ports.now();
        PortsTimer { ports: SendWrapper::new(ports), origin, origin_std: std::time::Instant::now() }
    }
}

impl Timer for PortsTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        Box::pin(PortsSleep(SendWrapper::new(self.ports.sleep(duration))))
    }

    fn sleep_until(&self, deadline: std::time::Instant) -> Pin<Box<dyn Sleep>> {
        let deadline = self.origin + deadline.saturating_duration_since(self.origin_std);
        Box::pin(PortsSleep(SendWrapper::new(self.ports.sleep_until(deadline))))
    }

    fn now(&self) -> std::time::Instant {
        self.origin_std + self.ports.now().since(self.origin)
    }
}

struct PortsSleep(SendWrapper<LocalBoxFuture<'static, ()>>);

impl Future for PortsSleep {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(context)
    }
}

impl Sleep for PortsSleep {}

/// Since when a connection's peer has not taken what we have to say.
#[derive(Default)]
pub(crate) struct WriteStall(Cell<Option<Instant>>);

impl WriteStall {
    /// Whether a write has been waiting for longer than `limit`.
    pub(crate) fn is_longer_than(&self, limit: Duration, now: Instant) -> bool {
        self.0.get().is_some_and(|since| now.since(since) > limit)
    }
}

/// A connection that remembers since when its writes are stuck: hyper bounds the time of a request's head only, and a
/// client that never reads its answer would hold its buffers for ever.
pub(crate) struct WatchedIo<IO> {
    pub(crate) io: IO,
    pub(crate) ports: Ports,
    pub(crate) stall: Rc<WriteStall>,
}

impl<IO> WatchedIo<IO> {
    fn note<T>(&self, poll: Poll<T>) -> Poll<T> {
        let since = match poll {
            Poll::Ready(_) => None,
            Poll::Pending => self.stall.0.get().or_else(|| Some(self.ports.now())),
        };
        self.stall.0.set(since);
        poll
    }
}

impl<IO: hyper::rt::Read + Unpin> hyper::rt::Read for WatchedIo<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl<IO: hyper::rt::Write + Unpin> hyper::rt::Write for WatchedIo<IO> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.io).poll_write(context, bytes);
        self.note(poll)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.io).poll_shutdown(context);
        self.note(poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.io).poll_write_vectored(context, slices);
        self.note(poll)
    }
}
