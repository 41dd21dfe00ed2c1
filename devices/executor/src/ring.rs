//! The io_uring of a core: what was queued goes to the kernel once a turn, what is done comes back to whoever queued it.
//!
//! The ring is wide where the kernel has that, so that it takes commands to devices too whenever one comes; still a single one
//! for everything. For devices whose driver has queues without interrupts a second one is added beside, for their reads and writes
//! alone: while something is on it the core never sleeps and looks for completions each turn; empty, it costs nothing.

#![allow(unsafe_code)]

use crate::queue::{Answer, Queue, Submission};
use crate::readiness::{Interest, PollState};
use io_uring::types::Fd;
use io_uring::{cqueue, opcode};
use rustix::event::PollFlags;
use std::any::Any;
use std::cell::{Cell, OnceCell, RefCell};
use std::io;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::time::Duration;

/// Files that can be registered: devices and journals of a core (I-O5).
pub const FILES_MAX: u32 = 256;

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

/// Which ring a core has for everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rings {
    /// One that takes commands to devices besides; a plain one where the kernel has none (before 5.19).
    #[default]
    Wide,
    /// One for ordinary operations alone, to compare.
    Plain,
}

/// How an operation goes to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// On the core's ring; the core may sleep meanwhile.
    Interrupt,
    /// On the ring that is polled, see [`CoreRing::add_polled`].
    Polled,
}

/// Who waits for a submission.
enum Waiter {
    Operation { owner: Rc<dyn Completion>, token: u32, way: Way },
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

/// The rings of one core.
pub struct CoreRing {
    main: Queue,
    polled: OnceCell<Queue>,
    slots: RefCell<Slots>,
    /// Operations that the kernel has memory for, and how many of them are on the polled ring.
    operations: Cell<usize>,
    operations_polled: Cell<usize>,
    answers: RefCell<Vec<Answer>>,
    /// Places for files in each ring.
    files: u32,
    files_free: RefCell<Vec<u32>>,
    buffers: RefCell<Option<RegisteredBuffers>>,
    bell: RawFd,
}

/// Memory that the rings know.
struct RegisteredBuffers {
    /// Keeps it alive, and says whose it is.
    owner: Rc<dyn Any>,
    iovecs: Vec<libc::iovec>,
}

/// A file that is registered with all rings that the core had at that time.
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
        // Whatever is in flight holds the file by itself.
        if self.ring.set_file(self.index, -1).is_ok() {
            self.ring.files_free.borrow_mut().push(self.index);
        }
    }
}

impl CoreRing {
    /// Rings of the calling thread; `bell` is an eventfd, whose owner outlives them.
    pub(crate) fn new(bell: RawFd, rings: Rings) -> io::Result<CoreRing> {
        let main = match rings {
            Rings::Plain => Queue::plain()?,
            Rings::Wide => match Queue::wide() {
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Queue::plain()?,
                made => made?,
            },
        };
        // Without room for file numbers (a small RLIMIT_NOFILE) fewer files can be registered.
        let sparse = |count: &u32| main.register(|ring| ring.register_files_sparse(*count)).is_ok();
        let files = [FILES_MAX, 64].into_iter().find(sparse).unwrap_or(0);
        let made = CoreRing {
            main,
            polled: OnceCell::new(),
            slots: RefCell::default(),
            operations: Cell::new(0),
            operations_polled: Cell::new(0),
            answers: RefCell::default(),
            files,
            files_free: RefCell::new((0..files).rev().collect()),
            buffers: RefCell::default(),
            bell,
        };
        made.arm_bell();
        Ok(made)
    }

    /// Whether it takes commands to devices.
    #[must_use]
    pub fn takes_commands(&self) -> bool {
        self.main.is_wide()
    }

    /// Adds the polled ring, unless the core has it. Memory that is registered is known to it too; files only from now on.
    ///
    /// Errors: those of io_uring; then nothing has changed.
    pub fn add_polled(&self) -> io::Result<()> {
        if self.polled.get().is_some() {
            return Ok(());
        }
        let polled = Queue::polled()?;
        if self.files > 0 {
            polled.register(|ring| ring.register_files_sparse(self.files))?;
        }
        if let Some(buffers) = &*self.buffers.borrow() {
            // SAFETY: whoever registered them vouched for them, and their owner is kept until the rings are gone.
            polled.register(|ring| unsafe { ring.register_buffers(&buffers.iovecs) })?;
        }
        assert!(self.polled.set(polled).is_ok(), "looked above");
        Ok(())
    }

    fn queues(&self) -> impl Iterator<Item = &Queue> {
        std::iter::once(&self.main).chain(self.polled.get())
    }

    fn set_file(&self, index: u32, fd: RawFd) -> io::Result<()> {
        self.queues().try_for_each(|queue| queue.register(|ring| ring.register_files_update(index, &[fd])).map(drop))
    }

    /// Registers an open file with the rings until the slot is dropped; with the polled one if it is there by now.
    pub fn register_file(self: &Rc<Self>, fd: RawFd) -> io::Result<FileSlot> {
        let index = self.files_free.borrow_mut().pop().ok_or_else(|| {
            let text = format!("a core has room for {FILES_MAX} files (I-O5), or fewer where RLIMIT_NOFILE is small");
            io::Error::new(io::ErrorKind::QuotaExceeded, text)
        })?;
        let slot = FileSlot { ring: self.clone(), index };
        self.set_file(index, fd).map(|()| slot)
    }

    /// Registers memory with the rings, once in their life: buffer `n` is `ranges[n]`, address and length. True when it is
    /// registered, now or by an earlier call for the same owner; false when another owner's memory is.
    ///
    /// # Safety
    /// The ranges are memory that stays where it is for as long as `owner` lives.
    pub unsafe fn register_buffers(&self, owner: Rc<dyn Any>, ranges: &[(usize, usize)]) -> io::Result<bool> {
        if let Some(first) = &*self.buffers.borrow() {
            return Ok(std::ptr::addr_eq(Rc::as_ptr(&first.owner), Rc::as_ptr(&owner)));
        }
        let iovecs: Vec<_> = ranges
            .iter()
            .map(|(address, len)| libc::iovec { iov_base: *address as *mut libc::c_void, iov_len: *len })
            .collect();
        for (done, queue) in self.queues().enumerate() {
            // SAFETY: the caller vouches for the ranges; the rings keep their owner until they are gone themselves.
            if let Err(error) = queue.register(|ring| unsafe { ring.register_buffers(&iovecs) }) {
                // All or none: an operation need not know which ring it will be on.
                self.queues().take(done).for_each(|queue| drop(queue.register(|ring| ring.unregister_buffers())));
                return Err(error);
            }
        }
        *self.buffers.borrow_mut() = Some(RegisteredBuffers { owner, iovecs });
        Ok(true)
    }

    /// Queues an operation; it goes to the kernel at the end of this turn at the latest, whether or not anyone waits. A wide
    /// submission needs a ring that [takes commands](Self::takes_commands), [`Way::Polled`] the polled one, with its file
    /// registered since that was added.
    ///
    /// # Safety
    /// All memory that `submission` names belongs to `owner` and stays where it is until `owner` hears of the end; the
    /// ring keeps `owner` until then.
    pub unsafe fn submit(&self, submission: Submission, way: Way, owner: Rc<dyn Completion>, token: u32) {
        let user_data = self.slots.borrow_mut().take_in(Waiter::Operation { owner, token, way });
        self.operations.set(self.operations.get() + 1);
        let submission = submission.user_data(user_data);
        match way {
            Way::Interrupt => {
                self.main.push_operation(submission, self.operations.get() - self.operations_polled.get());
            }
            Way::Polled => {
                self.operations_polled.set(self.operations_polled.get() + 1);
                let polled = self.polled.get().expect("whoever polls has added the ring");
                polled.push_operation(submission, self.operations_polled.get());
            }
        }
    }

    pub(crate) fn poll_add(&self, fd: RawFd, interest: Interest, state: Rc<PollState>) -> u64 {
        let flags = match interest {
            Interest::Readable => PollFlags::IN | PollFlags::RDHUP,
            Interest::Writable => PollFlags::OUT,
        };
        let user_data = self.slots.borrow_mut().take_in(Waiter::Poll(state));
        self.main.push(opcode::PollAdd::new(Fd(fd), u32::from(flags.bits())).build().user_data(user_data).into());
        user_data
    }

    pub(crate) fn poll_remove(&self, user_data: u64) {
        self.main.push(opcode::PollRemove::new(user_data).build().user_data(NOBODY).into());
    }

    fn arm_bell(&self) {
        let poll = opcode::PollAdd::new(Fd(self.bell), u32::from(PollFlags::IN.bits())).multi(true);
        self.main.push(poll.build().user_data(BELL).into());
    }

    /// Whether something is on the polled ring, so that nothing wakes a core that sleeps when it is done.
    pub(crate) fn is_polling(&self) -> bool {
        self.operations_polled.get() > 0
    }

    /// Operations that the core would sleep over.
    pub(crate) fn under_way(&self) -> usize {
        self.operations.get() - self.operations_polled.get()
    }

    /// Whether something is done, as far as that shows without a system call.
    pub(crate) fn has_answers(&self) -> bool {
        self.main.has_answers()
    }

    /// Whether operations wait to be handed over.
    pub(crate) fn has_gathered(&self) -> bool {
        self.queues().any(Queue::has_gathered)
    }

    /// Hands over operations in the middle of a turn.
    pub(crate) fn hand_over(&self) {
        self.queues().filter(|queue| queue.has_gathered()).for_each(Queue::hand_over);
    }

    /// Hands over what is queued and lets the kernel post what is done, if there is any of that; never waits.
    pub(crate) fn pass(&self) {
        self.main.pass();
        if let Some(polled) = self.polled.get().filter(|_| self.is_polling()) {
            polled.poll();
        }
    }

    /// The same, and sleeps until something is done or `span` has passed. Not while it [polls](Self::is_polling).
    pub(crate) fn wait(&self, span: Option<Duration>) {
        assert!(!self.is_polling(), "a core slept over its polled ring");
        self.main.wait(span);
    }

    /// Answers everybody whose submission is done. Returns how many there were.
    pub(crate) fn reap(&self, on_bell: impl Fn()) -> usize {
        let mut answers = std::mem::take(&mut *self.answers.borrow_mut());
        // All of them first: answering may submit more, so the rings are not held meanwhile.
        self.main.take_answers(&mut answers);
        if let Some(polled) = self.polled.get().filter(|_| self.is_polling()) {
            polled.take_answers(&mut answers);
        }
        let count = answers.len();
        for answer in answers.drain(..) {
            match answer.user_data {
                NOBODY => {}
                BELL => {
                    on_bell();
                    if !cqueue::more(answer.flags) {
                        self.arm_bell();
                    }
                }
                user_data => self.answer(user_data, answer.result),
            }
        }
        *self.answers.borrow_mut() = answers;
        count
    }

    fn answer(&self, user_data: u64, result: i32) {
        let waiter = self.slots.borrow_mut().give_back(user_data);
        match waiter {
            Waiter::Operation { owner, token, way } => {
                self.operations.set(self.operations.get() - 1);
                if way == Way::Polled {
                    self.operations_polled.set(self.operations_polled.get() - 1);
                }
                owner.complete(token, result);
            }
            Waiter::Poll(state) => state.complete(result),
        }
    }

    /// Waits until the kernel has no memory of ours any more.
    pub(crate) fn finish(&self) {
        while self.operations.get() > 0 {
            if self.is_polling() {
                self.pass();
            } else {
                self.wait(None);
            }
            self.reap(|| {});
        }
    }

    /// System calls so far.
    pub(crate) fn enters(&self) -> u64 {
        self.queues().map(Queue::enters).sum()
    }
}
