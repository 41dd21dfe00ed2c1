//! One core's queue on one device.
//!
//! All devices of a core share its executor's io_uring: what is queued in a turn, on whatever device, goes to the kernel
//! together or a few at a time. The buffers of an operation belong to the queue until the kernel is done with them, whatever becomes of
//! the caller's future.

#![allow(unsafe_code)]

pub(crate) mod backend;
pub(crate) mod cache_watch;
mod flush;
mod operation;
pub(crate) mod patience;
mod reply;
#[cfg(test)]
mod tests;

use crate::nvme::path::PathPreference;
use crate::pool::BufferPool;
use backend::Backend;
use cache_watch::CacheWatch;
use flush::FlushGate;
use futures::future::join_all;
use kiseki_executor::{Completion, CoreRing, FileSlot, core_ring};
use kiseki_types::runtime::LocalBoxFuture;
use kiseki_types::{IoBuf, IoBytes};
use operation::{InFlight, Operation, ReadTarget};
use reply::reply;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::Duration;

/// Operations that one queue has in flight unless told otherwise.
pub const RING_DEPTH_DEFAULT: u16 = 256;

/// Most operations that wait for room in the queue. Callers bound themselves far below by their credits (I-O5).
pub const RING_WAITING_MAX: usize = 64 * 1024;

/// How a queue is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingOptions {
    /// Operations in flight at once, 1 to 4096.
    pub depth: u16,
    /// Which way to a drive, where there are several.
    pub path: PathPreference,
}

impl Default for RingOptions {
    fn default() -> Self {
        RingOptions { depth: RING_DEPTH_DEFAULT, path: PathPreference::Auto }
    }
}

/// The queue. Dropping it lets what was queued finish; nothing is cancelled.
pub(crate) struct Ring {
    shared: Rc<Shared>,
}

/// What the handle and the operations in flight have in common.
struct Shared {
    name: String,
    core: Rc<CoreRing>,
    /// How operations reach the device.
    backend: Backend,
    /// How the ring knows the file.
    slot: FileSlot,
    /// Held open for as long as the kernel may use it.
    _file: File,
    /// Memory that is registered with the ring; kept alive by it.
    pool: Option<Rc<BufferPool>>,
    /// Operations that the kernel has, by their token. Their buffers live here.
    in_flight: RefCell<Vec<Option<InFlight>>>,
    free: RefCell<Vec<u16>>,
    waiting: RefCell<VecDeque<InFlight>>,
    /// Operations that will be submitted again after a while.
    resting: Cell<usize>,
    flush: RefCell<FlushGate>,
    /// Of a drive with a volatile cache.
    cache: Option<CacheWatch>,
    /// The first failed write or flush; nothing is written after it (I-D6).
    failed: RefCell<Option<StoredError>>,
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
    /// Makes a queue on `file`: one that was opened with O_DIRECT, or for commands the character device. Call it on the
    /// executor that will use it, which must have the rings for it.
    pub fn start(
        name: &str,
        file: File,
        backend: Backend,
        options: RingOptions,
        pool: Option<Rc<BufferPool>>,
    ) -> io::Result<Ring> {
        assert!((1..=4096).contains(&options.depth), "I-O5: depth {} of a queue", options.depth);
        let core = core_ring();
        let slot = core.register_file(file.as_raw_fd())?;
        let pool = pool.filter(|pool| register_buffers(name, &core, pool));
        let shared = Rc::new(Shared {
            name: name.to_owned(),
            core,
            cache: backend.cache_watch(),
            backend,
            slot,
            _file: file,
            pool,
            in_flight: RefCell::new((0..options.depth).map(|_| None).collect()),
            free: RefCell::new((0..options.depth).rev().collect()),
            waiting: RefCell::default(),
            resting: Cell::new(0),
            flush: RefCell::default(),
            failed: RefCell::default(),
        });
        Ok(Ring { shared })
    }

    /// Reads `buf.len()` bytes at byte `offset`.
    pub fn read(&self, offset: u64, buf: IoBuf) -> LocalBoxFuture<'static, io::Result<IoBuf>> {
        if buf.is_empty() {
            return Box::pin(std::future::ready(Ok(buf)));
        }
        if !self.shared.backend.is_whole(offset, buf.len()) {
            let pieces = self.shared.backend.cut(offset, buf.len());
            return self.read_pieces(offset, buf, pieces);
        }
        let (reply, answer) = reply();
        self.shared.queue(Operation::Read { offset, buf, reply });
        Box::pin(answer)
    }

    fn read_pieces(
        &self,
        offset: u64,
        buf: IoBuf,
        pieces: Vec<Range<usize>>,
    ) -> LocalBoxFuture<'static, io::Result<IoBuf>> {
        let target = ReadTarget::new(buf);
        let start = |piece: Range<usize>| {
            let (reply, answer) = reply();
            let (offset, target) = (offset + piece.start as u64, target.clone());
            self.shared.queue(Operation::ReadPiece { offset, target, piece, reply });
            answer
        };
        let answers: Vec<_> = pieces.into_iter().map(start).collect();
        Box::pin(async move {
            join_all(answers).await.into_iter().collect::<io::Result<()>>()?;
            Ok(target.into_buf())
        })
    }

    /// Writes the parts one after the other from byte `offset` on.
    pub fn write(&self, offset: u64, parts: Vec<IoBytes>) -> LocalBoxFuture<'static, io::Result<()>> {
        let parts: Vec<IoBytes> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        if parts.is_empty() {
            return Box::pin(std::future::ready(Ok(())));
        }
        let len_bytes = parts.iter().map(|part| part.len()).sum();
        if !self.shared.backend.is_whole(offset, len_bytes) {
            let pieces = self.shared.backend.cut(offset, len_bytes);
            let start =
                |piece: Range<usize>| self.write_piece(offset + piece.start as u64, parts_within(&parts, piece));
            let answers: Vec<_> = pieces.into_iter().map(start).collect();
            return Box::pin(async move { join_all(answers).await.into_iter().collect() });
        }
        self.write_piece(offset, parts)
    }

    fn write_piece(&self, offset: u64, parts: Vec<IoBytes>) -> LocalBoxFuture<'static, io::Result<()>> {
        let (reply, answer) = reply();
        self.shared.queue(Operation::write(offset, parts, reply));
        Box::pin(answer)
    }

    /// Whether a completed write may be lost until a flush.
    pub fn needs_flush(&self) -> bool {
        self.shared.backend.needs_flush()
    }

    /// Makes completed writes durable; callers share. Where a completed write is durable there is nothing to do, but a
    /// device that has failed stays untrusted (I-D6).
    pub fn flush(&self) -> LocalBoxFuture<'static, io::Result<()>> {
        if !self.shared.backend.needs_flush() {
            let failed = self.shared.failed.borrow().as_ref().map(StoredError::fenced);
            return Box::pin(std::future::ready(failed.map_or(Ok(()), Err)));
        }
        let (reply, answer) = reply();
        let start = self.shared.flush.borrow_mut().join(reply);
        if start {
            self.shared.queue(Operation::Flush);
        }
        Box::pin(answer)
    }

    /// Gives the range back to the file system or the device.
    pub fn discard(&self, offset: u64, len_bytes: u64) -> LocalBoxFuture<'static, io::Result<()>> {
        if !self.shared.backend.can_discard() {
            return Box::pin(std::future::ready(Ok(())));
        }
        let (reply, answer) = reply();
        self.shared.queue(Operation::Discard { offset, len_bytes, ranges: Vec::new(), reply });
        Box::pin(answer)
    }

    /// Operations that the kernel has now, and that wait.
    #[cfg(test)]
    fn depth_now(&self) -> (usize, usize) {
        (self.shared.in_flight_count(), self.shared.waiting.borrow().len())
    }
}

/// The bytes of `parts` in `piece`, counted from the start of the first part.
fn parts_within(parts: &[IoBytes], piece: Range<usize>) -> Vec<IoBytes> {
    let mut found = Vec::new();
    let mut start = 0;
    for part in parts {
        let from = piece.start.max(start);
        let to = piece.end.min(start + part.len());
        if from < to {
            found.push(part.slice(from - start..to - start));
        }
        start += part.len();
    }
    found
}

/// Registers the pool's memory. Without it everything works, at the cost of pinning pages for every operation.
fn register_buffers(name: &str, core: &CoreRing, pool: &Rc<BufferPool>) -> bool {
    // SAFETY: the ranges are memory of the pool, which the ring keeps alive and which never frees or moves a slab while
    // it lives: a lent slab's IoBuf holds the pool too.
    match unsafe { core.register_buffers(pool.clone(), &pool.ranges()) } {
        Ok(registered) => registered,
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

impl Completion for Shared {
    fn complete(self: Rc<Self>, token: u32, result: i32) {
        let slot = u16::try_from(token).expect("a token is a slot number");
        let taken = self.in_flight.borrow_mut()[usize::from(slot)].take();
        self.free.borrow_mut().push(slot);
        let mut operation = taken.expect("a completion belongs to an operation in flight");
        self.look_for_reset(result);
        match operation.progress(&self.backend, result) {
            operation::Progress::Continue => self.waiting.borrow_mut().push_front(operation),
            operation::Progress::After(wait, error) => self.start_later(operation, wait, &error),
            operation::Progress::Done => {
                let kept = self.is_kept(&operation);
                self.finish(operation.into_operation(), kept);
            }
            operation::Progress::Failed(error) => self.finish(operation.into_operation(), Err(error)),
        }
        self.start_waiting();
    }
}

impl Shared {
    /// Takes an operation: it starts in this turn of the executor, whether or not anyone waits for it.
    fn queue(self: &Rc<Self>, operation: Operation) {
        let refused = match self.refusal(&operation) {
            Some(refusal) => Some(refusal),
            _ if self.waiting.borrow().len() + self.resting.get() >= RING_WAITING_MAX => Some(io::Error::new(
                io::ErrorKind::ResourceBusy,
                format!("{RING_WAITING_MAX} operations wait already (I-O5)"),
            )),
            _ => None,
        };
        match refused {
            Some(error) => self.finish(operation, Err(error)),
            None => self.start(InFlight::new(operation)),
        }
    }

    #[cfg(test)]
    fn in_flight_count(&self) -> usize {
        self.in_flight.borrow().len() - self.free.borrow().len()
    }

    /// Gives an operation to the core's ring, or lets it wait for its turn.
    fn start(self: &Rc<Self>, operation: InFlight) {
        let is_first = self.waiting.borrow().is_empty();
        let slot = if is_first { self.free.borrow_mut().pop() } else { None };
        match slot {
            Some(slot) => self.submit(slot, operation),
            None => self.waiting.borrow_mut().push_back(operation),
        }
    }

    /// Why an operation is not tried any more: it needs trust, and the device has failed (I-D6).
    fn refusal(&self, operation: &Operation) -> Option<io::Error> {
        let failed = self.failed.borrow();
        failed.as_ref().filter(|_| operation.needs_trust()).map(StoredError::fenced)
    }

    /// Gives waiting operations to the core's ring as far as the queue has room. What waited while the device failed is not
    /// tried: it has been out of trust since (I-D6).
    fn start_waiting(self: &Rc<Self>) {
        while !self.waiting.borrow().is_empty() {
            let Some(slot) = self.free.borrow_mut().pop() else { return };
            let next = self.waiting.borrow_mut().pop_front().expect("looked above");
            match self.refusal(next.operation()) {
                None => self.submit(slot, next),
                Some(error) => {
                    self.free.borrow_mut().push(slot);
                    self.finish(next.into_operation(), Err(error));
                }
            }
        }
    }

    /// A reset of the drive counts against the device when its cache may have held writes: others would rest on a flush that
    /// can't know of them (I-D6).
    fn look_for_reset(&self, result: i32) {
        let Some(cache) = &self.cache else { return };
        if self.backend.tells_of_reset(result) && cache.reset_seen() && self.failed.borrow().is_none() {
            let error = operation::cache_lost();
            tracing::warn!(device = %self.name, %error, "nothing is written to it any more until it is reopened (I-D6)");
            *self.failed.borrow_mut() = Some(StoredError::of(&error));
        }
    }

    /// Whether what the drive has done can be believed after all that was seen meanwhile.
    fn is_kept(&self, done: &InFlight) -> io::Result<()> {
        let Some(cache) = &self.cache else { return Ok(()) };
        let is_kept = match done.operation() {
            Operation::Write { .. } => cache.is_write_kept(done.stamp),
            Operation::Flush => cache.is_flush_kept(),
            Operation::Read { .. } | Operation::ReadPiece { .. } | Operation::Discard { .. } => true,
        };
        if is_kept { Ok(()) } else { Err(operation::cache_lost()) }
    }

    /// Submits an operation again when `wait` has passed, unless the device has failed meanwhile. The kernel has none of its
    /// memory until then, so it may end with the executor.
    fn start_later(self: &Rc<Self>, operation: InFlight, wait: Duration, error: &io::Error) {
        if self.resting.get() == 0 {
            tracing::warn!(device = %self.name, %error, wait_ms = wait.as_millis(), "the drive is told again after a while");
        }
        self.resting.set(self.resting.get() + 1);
        let shared = self.clone();
        kiseki_executor::spawn(async move {
            kiseki_executor::sleep(wait).await;
            shared.resting.set(shared.resting.get() - 1);
            match shared.refusal(operation.operation()) {
                Some(error) => shared.finish(operation.into_operation(), Err(error)),
                None => {
                    shared.waiting.borrow_mut().push_front(operation);
                    shared.start_waiting();
                }
            }
        });
    }

    fn submit(self: &Rc<Self>, slot: u16, operation: InFlight) {
        let mut table = self.in_flight.borrow_mut();
        let placed = table[usize::from(slot)].insert(operation);
        if let Some(cache) = &self.cache {
            placed.stamp = cache.stamp();
            if matches!(placed.operation(), Operation::Flush) {
                cache.flush_starts();
            }
        }
        let (submission, way) = placed.submission(&self.backend, self.slot.fixed(), self.pool.as_deref());
        // SAFETY: everything that the submission points to (buffers, lists of parts and of ranges) is owned by the
        // table, on the heap, and stays there unmoved until `complete` takes it out; the ring keeps us until then.
        unsafe { self.core.submit(submission, way, self.clone(), u32::from(slot)) };
    }

    /// Answers the caller of an operation. A caller that has gone away is no error.
    fn finish(self: &Rc<Self>, operation: Operation, result: io::Result<()>) {
        if let Err(error) = &result
            && operation.needs_trust()
        {
            self.failed.borrow_mut().get_or_insert_with(|| StoredError::of(error));
        }
        match operation {
            Operation::Read { buf, reply, .. } => reply.send(result.map(|()| buf)),
            Operation::ReadPiece { target, reply, .. } => {
                drop(target);
                reply.send(result);
            }
            Operation::Write { reply, .. } | Operation::Discard { reply, .. } => reply.send(result),
            Operation::Flush => {
                let (waiters, again) = self.flush.borrow_mut().done();
                let stored = result.err().map(|error| StoredError::of(&error));
                for waiter in waiters {
                    waiter.send(stored.as_ref().map_or(Ok(()), |stored| Err(stored.error())));
                }
                if again {
                    self.queue(Operation::Flush);
                }
            }
        }
    }
}
