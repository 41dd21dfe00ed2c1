//! The io_uring of a core: what was queued goes to the kernel once a turn, what is done comes back to whoever queued it.

#![allow(unsafe_code)]

use crate::readiness::{Interest, PollState};
use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use rustix::event::PollFlags;
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::time::Duration;

/// Submissions that the ring holds between two turns. More of them wait in memory for the next turn.
const SUBMISSIONS: u32 = 1024;

/// Completions that the ring holds; the kernel keeps what goes beyond.
const COMPLETIONS: u32 = 8192;

/// Files that can be registered: devices and journals of a core (I-O5).
pub const FILES_MAX: u32 = 256;

/// Operations that are queued before they go to the kernel in the middle of a turn. A drive that is idle would have to wait
/// for the end of the turn, in which every task that is ready runs: with 32 reads of 4 KiB in flight, handing over all
/// at once leaves the drive idle a fifth of the time. One alone waits for the turn's own call, so that depth 1 costs no
/// second one; and the kernel gathers requests (at the cost of starting none) only from the third on.
const HANDED_OVER_AT: usize = 2;

/// User data of what nobody waits for, and of the bell. Slots never get that far.
const NOBODY: u64 = u64::MAX;
const BELL: u64 = u64::MAX - 1;

/// Hears of an operation's end. To be correct: whatever memory the operation names belongs to `self` and stays where
/// it is until then.
pub trait Completion {
    /// The kernel is done with the operation that was submitted under `token`; `result` is a count or a negative error
    /// number. May submit more.
    fn complete(self: Rc<Self>, token: u32, result: i32);
}

/// Who waits for a submission.
enum Waiter {
    Operation { owner: Rc<dyn Completion>, token: u32 },
    Poll(Rc<PollState>),
}

/// What the kernel has, by slot. A number of the slot's generation in the user data tells a late answer from the
/// next user's.
#[derive(Default)]
struct Slots {
    waiters: Vec<(u32, Option<Waiter>)>,
    free: Vec<u32>,
}

impl Slots {
    fn take_in(&mut self, waiter: Waiter) -> u64 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.waiters.push((0, None));
            u32::try_from(self.waiters.len() - 1).expect("I-O5: callers bound what they have in flight")
        });
        let (generation, place) = &mut self.waiters[slot as usize];
        *place = Some(waiter);
        u64::from(*generation) << 32 | u64::from(slot)
    }

    fn give_back(&mut self, user_data: u64) -> Waiter {
        let (slot, generation) = (user_data as u32, (user_data >> 32) as u32);
        let (current, place) = &mut self.waiters[slot as usize];
        assert_eq!(*current, generation, "an answer of the kernel to a submission that was answered before");
        // Never all ones: that is NOBODY's.
        *current = (generation + 1) & (u32::MAX >> 1);
        self.free.push(slot);
        place.take().expect("every submission is answered once")
    }
}

/// The ring of one core.
pub struct CoreRing {
    ring: RefCell<IoUring>,
    slots: RefCell<Slots>,
    /// Submissions that found the ring full.
    backlog: RefCell<VecDeque<squeue::Entry>>,
    /// Operations that the kernel has memory for.
    operations: Cell<usize>,
    /// Operations queued since the last system call.
    queued: Cell<usize>,
    completed: RefCell<Vec<(u64, i32, u32)>>,
    files_free: RefCell<Vec<u32>>,
    /// Keeps registered memory alive, and says whose it is.
    buffers: RefCell<Option<Rc<dyn Any>>>,
    bell: RawFd,
    enters: Cell<u64>,
}

/// A registered file.
pub struct FileSlot {
    ring: Rc<CoreRing>,
    index: u32,
}

impl FileSlot {
    /// What to name to the kernel.
    #[must_use]
    pub fn fixed(&self) -> io_uring::types::Fixed {
        io_uring::types::Fixed(self.index)
    }
}

impl Drop for FileSlot {
    fn drop(&mut self) {
        let ring = self.ring.ring.borrow();
        // Whatever is in flight holds the file by itself.
        if ring.submitter().register_files_update(self.index, &[-1]).is_ok() {
            self.ring.files_free.borrow_mut().push(self.index);
        }
    }
}

impl CoreRing {
    /// A ring of the calling thread; `bell` is an eventfd, whose owner outlives the ring.
    pub(crate) fn new(bell: RawFd) -> io::Result<CoreRing> {
        let ring = build()?;
        // Without room for file numbers (a small RLIMIT_NOFILE) fewer files can be registered.
        let files = [FILES_MAX, 64].into_iter().find(|count| ring.submitter().register_files_sparse(*count).is_ok());
        let made = CoreRing {
            ring: RefCell::new(ring),
            slots: RefCell::default(),
            backlog: RefCell::default(),
            operations: Cell::new(0),
            queued: Cell::new(0),
            completed: RefCell::default(),
            files_free: RefCell::new((0..files.unwrap_or(0)).rev().collect()),
            buffers: RefCell::default(),
            bell,
            enters: Cell::new(0),
        };
        made.arm_bell();
        Ok(made)
    }

    /// Registers an open file with the ring until the slot is dropped.
    pub fn register_file(self: &Rc<Self>, fd: RawFd) -> io::Result<FileSlot> {
        let index = self.files_free.borrow_mut().pop().ok_or_else(|| {
            let text = format!("a core has room for {FILES_MAX} files (I-O5), or fewer where RLIMIT_NOFILE is small");
            io::Error::new(io::ErrorKind::QuotaExceeded, text)
        })?;
        match self.ring.borrow().submitter().register_files_update(index, &[fd]) {
            Ok(_) => Ok(FileSlot { ring: self.clone(), index }),
            Err(error) => {
                self.files_free.borrow_mut().push(index);
                Err(error)
            }
        }
    }

    /// Registers memory with the ring, once in its life: buffer `n` is `ranges[n]`, address and length. True when it is
    /// registered, now or by an earlier call for the same owner; false when another owner's memory is.
    ///
    /// # Safety
    /// The ranges are memory that stays where it is for as long as `owner` lives.
    pub unsafe fn register_buffers(&self, owner: Rc<dyn Any>, ranges: &[(usize, usize)]) -> io::Result<bool> {
        if let Some(first) = &*self.buffers.borrow() {
            return Ok(std::ptr::addr_eq(Rc::as_ptr(first), Rc::as_ptr(&owner)));
        }
        let iovecs: Vec<_> = ranges
            .iter()
            .map(|(address, len)| libc::iovec { iov_base: *address as *mut libc::c_void, iov_len: *len })
            .collect();
        // SAFETY: the caller vouches for the ranges; the ring keeps their owner until it is gone itself.
        unsafe { self.ring.borrow().submitter().register_buffers(&iovecs)? };
        *self.buffers.borrow_mut() = Some(owner);
        Ok(true)
    }

    /// Queues an operation; it goes to the kernel at the end of this turn at the latest, whether or not anyone waits.
    ///
    /// # Safety
    /// All memory that `entry` names belongs to `owner` and stays where it is until `owner` hears of the end; the ring
    /// keeps `owner` until then.
    pub unsafe fn submit(&self, entry: squeue::Entry, owner: Rc<dyn Completion>, token: u32) {
        let user_data = self.slots.borrow_mut().take_in(Waiter::Operation { owner, token });
        self.operations.set(self.operations.get() + 1);
        self.push(entry.user_data(user_data));
        self.queued.set(self.queued.get() + 1);
        if self.queued.get() >= HANDED_OVER_AT {
            // Where the kernel wants completions to be taken first, the end of the turn tries again.
            let _taken = self.enter(0, None);
        }
    }

    pub(crate) fn poll_add(&self, fd: RawFd, interest: Interest, state: Rc<PollState>) -> u64 {
        let flags = match interest {
            Interest::Readable => PollFlags::IN | PollFlags::RDHUP,
            Interest::Writable => PollFlags::OUT,
        };
        let user_data = self.slots.borrow_mut().take_in(Waiter::Poll(state));
        self.push(opcode::PollAdd::new(Fd(fd), u32::from(flags.bits())).build().user_data(user_data));
        user_data
    }

    pub(crate) fn poll_remove(&self, user_data: u64) {
        self.push(opcode::PollRemove::new(user_data).build().user_data(NOBODY));
    }

    fn arm_bell(&self) {
        let poll = opcode::PollAdd::new(Fd(self.bell), u32::from(PollFlags::IN.bits())).multi(true);
        self.push(poll.build().user_data(BELL));
    }

    fn push(&self, entry: squeue::Entry) {
        let mut backlog = self.backlog.borrow_mut();
        // SAFETY: `submit` vouches for operations; polls and their removal name no memory.
        if !backlog.is_empty() || unsafe { self.ring.borrow_mut().submission().push(&entry) }.is_err() {
            backlog.push_back(entry);
        }
    }

    /// Moves what waits in memory into the ring, as far as it has room.
    fn refill(&self) {
        let mut backlog = self.backlog.borrow_mut();
        let mut ring = self.ring.borrow_mut();
        while let Some(entry) = backlog.front() {
            // SAFETY: as in `push`.
            if unsafe { ring.submission().push(entry) }.is_err() {
                return;
            }
            backlog.pop_front();
        }
    }

    /// Hands over what is queued and lets the kernel post what is done, if there is any of that; never waits.
    pub(crate) fn pass(&self) {
        self.refill();
        loop {
            let has_work = {
                let mut ring = self.ring.borrow_mut();
                let queue = ring.submission();
                !queue.is_empty() || queue.taskrun() || queue.cq_overflow()
            };
            if !has_work || !self.enter(0, None) || self.backlog.borrow().is_empty() {
                return;
            }
            self.refill();
        }
    }

    /// The same, and sleeps until something is done or `span` has passed.
    pub(crate) fn wait(&self, span: Option<Duration>) {
        self.refill();
        if self.backlog.borrow().is_empty() {
            self.enter(1, span);
        } else {
            self.pass();
        }
    }

    /// One system call. False: the kernel took nothing and wants completions to be taken first.
    fn enter(&self, want: usize, span: Option<Duration>) -> bool {
        self.enters.set(self.enters.get() + 1);
        self.queued.set(0);
        let ring = self.ring.borrow();
        let result = match span {
            None => ring.submitter().submit_and_wait(want),
            Some(span) => {
                let span = Timespec::from(span);
                ring.submitter().submit_with_args(want, &SubmitArgs::new().timespec(&span))
            }
        };
        match result {
            Ok(_) => true,
            Err(error) => match error.raw_os_error() {
                Some(libc::ETIME | libc::EINTR) => true,
                Some(libc::EAGAIN | libc::EBUSY) => false,
                _ => panic!("io_uring_enter failed: {error}"),
            },
        }
    }

    /// Answers everybody whose submission is done. Returns how many there were.
    pub(crate) fn reap(&self, on_bell: impl Fn()) -> usize {
        let mut completed = std::mem::take(&mut *self.completed.borrow_mut());
        // All of them first: answering may submit more, so the ring is not held meanwhile.
        completed.extend(
            self.ring.borrow_mut().completion().map(|entry| (entry.user_data(), entry.result(), entry.flags())),
        );
        let count = completed.len();
        for (user_data, result, flags) in completed.drain(..) {
            match user_data {
                NOBODY => {}
                BELL => {
                    on_bell();
                    if !cqueue::more(flags) {
                        self.arm_bell();
                    }
                }
                _ => {
                    let waiter = self.slots.borrow_mut().give_back(user_data);
                    match waiter {
                        Waiter::Operation { owner, token } => {
                            self.operations.set(self.operations.get() - 1);
                            owner.complete(token, result);
                        }
                        Waiter::Poll(state) => state.complete(result),
                    }
                }
            }
        }
        *self.completed.borrow_mut() = completed;
        count
    }

    /// Waits until the kernel has no memory of ours any more.
    pub(crate) fn finish(&self) {
        while self.operations.get() > 0 {
            self.wait(None);
            self.reap(|| {});
        }
    }

    /// System calls so far.
    pub(crate) fn enters(&self) -> u64 {
        self.enters.get()
    }
}

/// A ring that works on completions only when we ask for it, so that nothing interrupts a running task; on kernels
/// before 6.1 a plain one.
fn build() -> io::Result<IoUring> {
    let deferred = IoUring::builder()
        .setup_clamp()
        .setup_cqsize(COMPLETIONS)
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .build(SUBMISSIONS);
    match deferred {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            IoUring::builder().setup_clamp().setup_cqsize(COMPLETIONS).build(SUBMISSIONS)
        }
        other => other,
    }
}
