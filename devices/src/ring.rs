//! An io_uring of one core on one device.
//!
//! Callers queue operations; a driver task of the same core hands them to the kernel, all that were queued in a turn
//! with one system call, and reaps completions. While operations are in flight it polls for [`POLL_TIME`], yielding
//! between looks; then it parks until the ring's eventfd says that something completed. The buffers of an operation
//! belong to the ring until the kernel is done with them, whatever becomes of the caller's future.

#![allow(unsafe_code)]

mod driver;
mod flush;
mod operation;
#[cfg(test)]
mod tests;

use crate::pool::BufferPool;
use flush::FlushGate;
use futures::channel::oneshot;
use io_uring::IoUring;
use kiseki_types::runtime::{LocalBoxFuture, Ports};
use kiseki_types::{IoBuf, IoBytes};
use operation::{InFlight, Operation};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

/// Operations that one ring has in flight unless told otherwise.
pub const RING_DEPTH_DEFAULT: u16 = 256;

/// Most operations that wait for room in the ring. Callers bound themselves far below by their credits (I-O5).
pub const RING_WAITING_MAX: usize = 64 * 1024;

/// How long the driver polls after the last completion before it parks: about one access to flash.
pub const POLL_TIME: Duration = Duration::from_micros(100);

/// How a ring is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingOptions {
    /// Operations in flight at once, 1 to 4096.
    pub depth: u16,
}

impl Default for RingOptions {
    fn default() -> Self {
        RingOptions { depth: RING_DEPTH_DEFAULT }
    }
}

/// The ring. Dropping it lets what was queued finish; nothing is cancelled.
pub(crate) struct Ring {
    shared: Rc<Shared>,
}

/// What the handle and the driver have in common.
struct Shared {
    name: String,
    ring: RefCell<IoUring>,
    /// Registered as fixed file 0; held open for as long as the kernel may use it.
    _file: File,
    /// Memory that is registered with the ring; kept alive by it.
    pool: Option<Rc<BufferPool>>,
    /// The kernel counts completions here while the driver is parked.
    eventfd: OwnedFd,
    /// Operations that the kernel has, by their user data. Their buffers live here.
    in_flight: RefCell<Vec<Option<InFlight>>>,
    free: RefCell<Vec<u16>>,
    waiting: RefCell<VecDeque<InFlight>>,
    flush: RefCell<FlushGate>,
    /// The first failed write or flush; nothing is written after it (I-D6).
    failed: RefCell<Option<StoredError>>,
    notify: driver::Notify,
    closed: Cell<bool>,
    ports: Ports,
}

/// An I/O error that can be given to several waiters.
#[derive(Clone, Debug)]
struct StoredError {
    errno: Option<i32>,
    kind: io::ErrorKind,
    text: String,
}

impl StoredError {
    fn of(error: &io::Error) -> StoredError {
        StoredError { errno: error.raw_os_error(), kind: error.kind(), text: error.to_string() }
    }

    fn error(&self) -> io::Error {
        self.errno.map_or_else(|| io::Error::new(self.kind, self.text.clone()), io::Error::from_raw_os_error)
    }

    fn fenced(&self) -> io::Error {
        io::Error::new(self.kind, format!("not tried: an earlier write or flush failed ({}) (I-D6)", self.text))
    }
}

impl Ring {
    /// Makes a ring on `file`, which was opened with O_DIRECT, and starts its tasks on this core.
    pub fn start(
        name: &str,
        file: File,
        options: RingOptions,
        pool: Option<Rc<BufferPool>>,
        ports: Ports,
    ) -> io::Result<Ring> {
        assert!((1..=4096).contains(&options.depth), "I-O5: depth {} of a ring", options.depth);
        let ring = IoUring::new(u32::from(options.depth))?;
        ring.submitter().register_files(&[file.as_raw_fd()])?;
        let pool = pool.filter(|pool| register_buffers(name, &ring, pool));
        let eventfd = driver::new_eventfd()?;
        ring.submitter().register_eventfd(eventfd.as_raw_fd())?;
        let shared = Rc::new(Shared {
            name: name.to_owned(),
            ring: RefCell::new(ring),
            _file: file,
            pool,
            eventfd,
            in_flight: RefCell::new((0..options.depth).map(|_| None).collect()),
            free: RefCell::new((0..options.depth).rev().collect()),
            waiting: RefCell::default(),
            flush: RefCell::default(),
            failed: RefCell::default(),
            notify: driver::Notify::default(),
            closed: Cell::new(false),
            ports,
        });
        driver::start(&shared)?;
        Ok(Ring { shared })
    }

    /// Reads `buf.len()` bytes at byte `offset`.
    pub fn read(&self, offset: u64, buf: IoBuf) -> LocalBoxFuture<'static, io::Result<IoBuf>> {
        if buf.is_empty() {
            return Box::pin(std::future::ready(Ok(buf)));
        }
        let (reply, answer) = oneshot::channel();
        self.shared.queue(Operation::Read { offset, buf, reply });
        wait_for(answer)
    }

    /// Writes the parts one after the other from byte `offset` on.
    pub fn write(&self, offset: u64, parts: Vec<IoBytes>) -> LocalBoxFuture<'static, io::Result<()>> {
        let parts: Vec<IoBytes> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        if parts.is_empty() {
            return Box::pin(std::future::ready(Ok(())));
        }
        let (reply, answer) = oneshot::channel();
        self.shared.queue(Operation::write(offset, parts, reply));
        wait_for(answer)
    }

    /// Makes completed writes durable; callers share.
    pub fn flush(&self) -> LocalBoxFuture<'static, io::Result<()>> {
        let (reply, answer) = oneshot::channel();
        let start = self.shared.flush.borrow_mut().join(reply);
        if start {
            self.shared.queue(Operation::Flush);
        }
        wait_for(answer)
    }

    /// Gives the range back to the file system or the device.
    pub fn discard(&self, offset: u64, len_bytes: u64) -> LocalBoxFuture<'static, io::Result<()>> {
        let (reply, answer) = oneshot::channel();
        self.shared.queue(Operation::Discard { offset, len_bytes, reply });
        wait_for(answer)
    }

    /// Operations that the kernel has now, and that wait.
    #[cfg(test)]
    fn depth_now(&self) -> (usize, usize) {
        (self.shared.in_flight_count(), self.shared.waiting.borrow().len())
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.shared.closed.set(true);
        self.shared.notify.wake();
        driver::signal(&self.shared.eventfd);
    }
}

fn wait_for<T: 'static>(answer: oneshot::Receiver<io::Result<T>>) -> LocalBoxFuture<'static, io::Result<T>> {
    Box::pin(async move { answer.await.unwrap_or_else(|_| Err(io::Error::other("the ring of the device was closed"))) })
}

/// Registers the pool's memory. Without it everything works, at the cost of pinning pages for every operation.
fn register_buffers(name: &str, ring: &IoUring, pool: &BufferPool) -> bool {
    let iovecs: Vec<libc::iovec> = pool
        .ranges()
        .into_iter()
        .map(|(address, len)| libc::iovec { iov_base: address as *mut libc::c_void, iov_len: len })
        .collect();
    // SAFETY: the ranges are memory of the pool, which the ring keeps alive (`Shared::pool`) and which never frees or
    // moves a slab while it lives: a lent slab's IoBuf holds the pool too.
    match unsafe { ring.submitter().register_buffers(&iovecs) } {
        Ok(()) => true,
        Err(error) => {
            thread_local!(static WARNED: Cell<bool> = const { Cell::new(false) });
            if !WARNED.replace(true) {
                tracing::warn!(
                    device = name, %error,
                    "buffers not registered; raise the limit of locked memory (LimitMEMLOCK=infinity) for full speed"
                );
            }
            false
        }
    }
}

impl Shared {
    /// Takes an operation: it starts in this turn of the executor, whether or not anyone waits for it.
    fn queue(&self, operation: Operation) {
        let refused = match &*self.failed.borrow() {
            Some(failed) if operation.needs_trust() => Some(failed.fenced()),
            _ if self.waiting.borrow().len() >= RING_WAITING_MAX => Some(io::Error::new(
                io::ErrorKind::ResourceBusy,
                format!("{RING_WAITING_MAX} operations wait already (I-O5)"),
            )),
            _ => None,
        };
        match refused {
            Some(error) => self.finish(operation, Err(error)),
            None => {
                self.waiting.borrow_mut().push_back(InFlight::new(operation));
                self.notify.wake();
            }
        }
    }

    fn in_flight_count(&self) -> usize {
        self.in_flight.borrow().len() - self.free.borrow().len()
    }

    fn is_idle(&self) -> bool {
        self.waiting.borrow().is_empty() && self.in_flight_count() == 0
    }

    /// Moves waiting operations into the ring as far as it has room, and tells the kernel.
    fn submit(&self) {
        let mut ring = self.ring.borrow_mut();
        loop {
            if self.free.borrow().is_empty() {
                break;
            }
            let Some(operation) = self.waiting.borrow_mut().pop_front() else { break };
            let slot = self.free.borrow_mut().pop().expect("looked above");
            let mut table = self.in_flight.borrow_mut();
            let placed = table[usize::from(slot)].insert(operation);
            let entry = placed.entry(self.pool.as_deref()).user_data(u64::from(slot));
            // SAFETY: everything that the entry points to (buffers, the list of parts) is owned by the table, on the
            // heap, and stays there unmoved until the completion is reaped; `Drop for Shared` waits for that too.
            let pushed = unsafe { ring.submission().push(&entry) };
            // The ring has as many entries as the table, and `submit` below takes all of them or leaves them queued.
            if pushed.is_err() {
                let operation = table[usize::from(slot)].take().expect("placed above");
                self.free.borrow_mut().push(slot);
                self.waiting.borrow_mut().push_front(operation);
                break;
            }
        }
        if ring.submission().is_empty() {
            return;
        }
        match ring.submit() {
            Ok(_) => {}
            // What was not taken stays in the queue; the driver comes back after it reaped something.
            Err(error) if is_passing(&error) => {}
            Err(error) => panic!("device {}: io_uring_enter failed: {error}", self.name),
        }
    }

    /// Takes completions and answers their callers. Returns how many there were.
    fn reap(&self) -> usize {
        let mut count = 0;
        loop {
            // One at a time: answering may queue more, so the ring is not held meanwhile.
            let Some((slot, result)) =
                self.ring.borrow_mut().completion().next().map(|entry| (entry.user_data(), entry.result()))
            else {
                return count;
            };
            count += 1;
            let slot = u16::try_from(slot).expect("user data is a slot number");
            let taken = self.in_flight.borrow_mut()[usize::from(slot)].take();
            self.free.borrow_mut().push(slot);
            let mut operation = taken.expect("a completion belongs to an operation in flight");
            match operation.progress(result) {
                operation::Progress::Continue => self.waiting.borrow_mut().push_front(operation),
                operation::Progress::Done => self.finish(operation.into_operation(), Ok(())),
                operation::Progress::Failed(error) => self.finish(operation.into_operation(), Err(error)),
            }
        }
    }

    /// Answers the caller of an operation. A caller that has gone away is no error.
    fn finish(&self, operation: Operation, result: io::Result<()>) {
        if let Err(error) = &result
            && operation.needs_trust()
        {
            self.failed.borrow_mut().get_or_insert_with(|| StoredError::of(error));
        }
        match operation {
            Operation::Read { buf, reply, .. } => drop(reply.send(result.map(|()| buf))),
            Operation::Write { reply, .. } | Operation::Discard { reply, .. } => drop(reply.send(result)),
            Operation::Flush => {
                let (waiters, again) = self.flush.borrow_mut().done();
                let stored = result.err().map(|error| StoredError::of(&error));
                for waiter in waiters {
                    drop(waiter.send(stored.as_ref().map_or(Ok(()), |stored| Err(stored.error()))));
                }
                if again {
                    self.queue(Operation::Flush);
                }
            }
        }
    }
}

impl Drop for Shared {
    /// The kernel may still write into our buffers: wait until it is done with every one of them.
    fn drop(&mut self) {
        loop {
            self.submit();
            self.reap();
            if self.is_idle() {
                return;
            }
            match self.ring.borrow().submitter().submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if is_passing(&error) => {}
                // Nothing may be freed while the kernel has it, and there is no way to learn when it is done.
                Err(error) => {
                    tracing::error!(device = %self.name, %error, "io_uring_enter failed while closing");
                    std::process::abort();
                }
            }
        }
    }
}

/// Errors of io_uring_enter that go away by reaping or trying again.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
}
