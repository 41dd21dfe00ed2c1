//! One io_uring and what waits for room in it; of the width that its submissions need.

#![allow(unsafe_code)]

use crate::held::{Held, kernel_reads_late};
use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{IoUring, Submitter, cqueue, squeue};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::time::Duration;

/// Submissions that a ring holds between two turns. More of them wait in memory for the next turn.
const SUBMISSIONS: u32 = 1024;

/// The same where a submission must not take the place of a command that is not answered: so many go by while a command is
/// under way.
const SUBMISSIONS_HELD: u32 = 16384;

/// Completions that a ring holds; the kernel keeps what goes beyond.
const COMPLETIONS: u32 = 8192;

/// The same of a ring that is polled, on which devices alone are.
const POLLED_SUBMISSIONS: u32 = 512;
const POLLED_COMPLETIONS: u32 = 2048;

/// Operations that are queued before they go to the kernel in the middle of a turn. A drive that is idle would have to wait
/// for the end of the turn, in which every task that is ready runs: with 32 reads of 4 KiB in flight, handing over all at
/// once leaves the drive idle a fifth of the time. The kernel gathers requests (at the cost of starting none) only from the
/// third on. The first of a turn may go alone, see [`Queue::hand_over_at`].
const HANDED_OVER_AT: usize = 2;

/// The same where the drives still have much to do: the kernel tells a drive once of what it gets together, from three on, and
/// telling it is a quarter of the processor time of a write of 4 KiB to a virtual disk.
const HANDED_OVER_AT_MAX: usize = 4;

/// Operations under way for each one that is gathered.
const UNDER_WAY_EACH: usize = 2;

type Plain = IoUring<squeue::Entry, cqueue::Entry>;
type Wide = IoUring<squeue::Entry128, cqueue::Entry32>;

/// What goes to the kernel: an ordinary operation, or one that carries a command to a device.
#[derive(Clone, Debug)]
pub enum Submission {
    /// 64 bytes, for any ring.
    Plain(squeue::Entry),
    /// 128 bytes, for a wide ring.
    Wide(squeue::Entry128),
}

impl From<squeue::Entry> for Submission {
    fn from(entry: squeue::Entry) -> Submission {
        Submission::Plain(entry)
    }
}

impl From<squeue::Entry128> for Submission {
    fn from(entry: squeue::Entry128) -> Submission {
        Submission::Wide(entry)
    }
}

impl Submission {
    pub(crate) fn user_data(self, user_data: u64) -> Submission {
        match self {
            Submission::Plain(entry) => Submission::Plain(entry.user_data(user_data)),
            Submission::Wide(entry) => Submission::Wide(entry.user_data(user_data)),
        }
    }
}

/// What the kernel answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    pub user_data: u64,
    pub result: i32,
    pub flags: u32,
}

enum Ring {
    Plain(Plain),
    Wide(Wide),
}

/// Calls the same code for a ring of either width.
macro_rules! of_any_width {
    ($self:expr, $ring:ident => $body:expr) => {
        match $self {
            Ring::Plain($ring) => $body,
            Ring::Wide($ring) => $body,
        }
    };
}

impl Ring {
    fn submitter(&self) -> Submitter<'_> {
        of_any_width!(self, ring => ring.submitter())
    }
}

/// A ring with its backlog.
pub(crate) struct Queue {
    ring: RefCell<Ring>,
    /// Submissions that found the ring full.
    backlog: RefCell<VecDeque<Submission>>,
    /// On a kernel that reads commands late.
    held: Option<RefCell<Held>>,
    /// Operations queued since the last system call.
    queued: Cell<usize>,
    /// Answers that the turn began with.
    answered: Cell<usize>,
    /// Whether operations went to the kernel in the middle of this turn.
    has_handed_over: Cell<bool>,
    enters: Cell<u64>,
}

impl Queue {
    fn of(ring: Ring) -> Queue {
        let held = (matches!(ring, Ring::Wide(_)) && kernel_reads_late()).then(RefCell::default);
        Queue {
            ring: RefCell::new(ring),
            backlog: RefCell::default(),
            held,
            queued: Cell::new(0),
            answered: Cell::new(0),
            has_handed_over: Cell::new(false),
            enters: Cell::new(0),
        }
    }

    /// A ring for ordinary operations.
    pub fn plain() -> io::Result<Queue> {
        Ok(Queue::of(Ring::Plain(build(SUBMISSIONS, COMPLETIONS)?)))
    }

    /// A ring that takes commands to devices besides. Kernels before 5.19 have none.
    pub fn wide() -> io::Result<Queue> {
        let submissions = if kernel_reads_late() { SUBMISSIONS_HELD } else { SUBMISSIONS };
        Ok(Queue::of(Ring::Wide(build(submissions, COMPLETIONS.max(submissions))?)))
    }

    /// A wide ring whose completions are looked for on the device, without interrupts.
    pub fn polled() -> io::Result<Queue> {
        let submissions = if kernel_reads_late() { SUBMISSIONS_HELD } else { POLLED_SUBMISSIONS };
        let mut builder = Wide::builder();
        builder.setup_clamp().setup_cqsize(POLLED_COMPLETIONS.max(submissions)).setup_iopoll();
        let mut deferred = builder.clone();
        deferred.setup_single_issuer().setup_defer_taskrun();
        let ring = match deferred.build(submissions) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => builder.build(submissions)?,
            other => other?,
        };
        Ok(Queue::of(Ring::Wide(ring)))
    }

    pub fn is_wide(&self) -> bool {
        matches!(&*self.ring.borrow(), Ring::Wide(_))
    }

    /// Registers files or memory.
    pub fn register<T>(&self, call: impl FnOnce(&Submitter<'_>) -> io::Result<T>) -> io::Result<T> {
        call(&self.ring.borrow().submitter())
    }

    /// Queues a submission. To be correct: the memory that it names stays until its answer came.
    pub fn push(&self, submission: Submission) {
        let mut backlog = self.backlog.borrow_mut();
        if !backlog.is_empty() || !self.try_push(&submission) {
            backlog.push_back(submission);
        }
    }

    /// Queues an operation of a device. `operations`: how many are not answered, with this one and what else is queued.
    pub fn push_operation(&self, submission: Submission, operations: usize) {
        self.push(submission);
        self.queued.set(self.queued.get() + 1);
        if self.queued.get() >= self.hand_over_at(operations.saturating_sub(self.queued.get())) {
            self.hand_over();
        }
    }

    /// Whether operations wait to be handed over.
    pub fn has_gathered(&self) -> bool {
        self.queued.get() > 0
    }

    /// Hands over what is queued in the middle of a turn.
    pub fn hand_over(&self) {
        self.has_handed_over.set(true);
        // Where the kernel wants completions to be taken first, the end of the turn tries again.
        let _taken = self.enter(0, None);
    }

    /// Operations that make a call, with so many under way. Where a turn began with several answers the drive may have nothing
    /// left to do, and several operations will follow: the first starts it. Otherwise there may be one alone: it waits for the
    /// turn's own call, so that depth 1 costs no second one. The more there are under way, the less it hurts to gather.
    fn hand_over_at(&self, under_way: usize) -> usize {
        let is_first = self.answered.get() > 1 && !self.has_handed_over.get();
        if is_first { 1 } else { (under_way / UNDER_WAY_EACH).clamp(HANDED_OVER_AT, HANDED_OVER_AT_MAX) }
    }

    fn try_push(&self, submission: &Submission) -> bool {
        if self.is_held() {
            return false;
        }
        let is_pushed = self.push_into_ring(submission);
        if let Some(held) = self.held.as_ref().filter(|_| is_pushed) {
            let command = match submission {
                Submission::Plain(_) => None,
                Submission::Wide(entry) => Some(entry.get_user_data()),
            };
            held.borrow_mut().put(command);
        }
        is_pushed
    }

    /// Whether the next submission has to wait for the answer to a command.
    fn is_held(&self) -> bool {
        self.held.as_ref().is_some_and(|held| {
            let places = of_any_width!(&mut *self.ring.borrow_mut(), ring => ring.submission().capacity());
            held.borrow().is_full(places as u64)
        })
    }

    fn push_into_ring(&self, submission: &Submission) -> bool {
        let mut ring = self.ring.borrow_mut();
        // SAFETY: whoever queued the submission vouches for the memory that it names, see `CoreRing::submit`.
        unsafe {
            match (&mut *ring, submission) {
                (Ring::Plain(ring), Submission::Plain(entry)) => ring.submission().push(entry).is_ok(),
                (Ring::Wide(ring), Submission::Plain(entry)) => ring.submission().push(&entry.clone().into()).is_ok(),
                (Ring::Wide(ring), Submission::Wide(entry)) => ring.submission().push(entry).is_ok(),
                (Ring::Plain(_), Submission::Wide(_)) => panic!("a command to a device on a core without a wide ring"),
            }
        }
    }

    /// Moves what waits in memory into the ring, as far as it has room.
    fn refill(&self) {
        let mut backlog = self.backlog.borrow_mut();
        while let Some(submission) = backlog.front() {
            if !self.try_push(submission) {
                return;
            }
            backlog.pop_front();
        }
    }

    /// Hands over what is queued and lets the kernel post what is done, if there is any of that; never waits.
    pub fn pass(&self) {
        self.refill();
        while self.has_work() && self.enter(0, None) && !self.backlog.borrow().is_empty() && !self.is_held() {
            self.refill();
        }
    }

    fn has_work(&self) -> bool {
        of_any_width!(&mut *self.ring.borrow_mut(), ring => {
            let queue = ring.submission();
            !queue.is_empty() || queue.taskrun() || queue.cq_overflow()
        })
    }

    /// Whether something is done: posted, or for the kernel to post when it is called.
    pub fn has_answers(&self) -> bool {
        of_any_width!(&mut *self.ring.borrow_mut(), ring => {
            let is_to_be_posted = ring.submission().taskrun();
            is_to_be_posted || !ring.completion().is_empty()
        })
    }

    /// The same, and sleeps until something is done or `span` has passed.
    pub fn wait(&self, span: Option<Duration>) {
        self.refill();
        if self.backlog.borrow().is_empty() || self.is_held() {
            self.enter(1, span);
        } else {
            self.pass();
        }
    }

    /// Hands over what is queued and looks on the devices for what is done; on a polled ring.
    pub fn poll(&self) {
        loop {
            self.refill();
            if !self.enter(0, None) || self.backlog.borrow().is_empty() || self.is_held() {
                return;
            }
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

    /// Takes what the kernel has answered; a new turn begins.
    pub fn take_answers(&self, answers: &mut Vec<Answer>) {
        let first = answers.len();
        of_any_width!(&mut *self.ring.borrow_mut(), ring => answers.extend(ring.completion().map(answer_of)));
        self.answered.set(answers.len() - first);
        self.has_handed_over.set(false);
        if let Some(held) = &self.held {
            let mut held = held.borrow_mut();
            answers[first..].iter().for_each(|answer| held.answer(answer.user_data));
        }
    }

    /// System calls so far.
    pub fn enters(&self) -> u64 {
        self.enters.get()
    }
}

fn answer_of<C: cqueue::EntryMarker>(entry: C) -> Answer {
    let entry: cqueue::Entry = entry.into();
    Answer { user_data: entry.user_data(), result: entry.result(), flags: entry.flags() }
}

/// A ring that works on completions only when we ask for it, so that nothing interrupts a running task; on kernels
/// before 6.1 one that does not.
fn build<S: squeue::EntryMarker, C: cqueue::EntryMarker>(
    submissions: u32,
    completions: u32,
) -> io::Result<IoUring<S, C>> {
    let mut deferred = IoUring::<S, C>::builder();
    deferred.setup_clamp().setup_cqsize(completions).setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
    match deferred.build(submissions) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            IoUring::<S, C>::builder().setup_clamp().setup_cqsize(completions).build(submissions)
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use io_uring::opcode::Nop;

    #[test]
    fn a_drive_without_work_gets_the_first_operation_at_once_and_one_alone_waits_for_the_turn() {
        let queue = Queue::plain().unwrap();
        let calls_under = |under_way: usize, operations: usize| -> Vec<u64> {
            let one = |_| {
                queue.push_operation(Nop::new().build().into(), under_way + queue.queued.get() + 1);
                queue.enters()
            };
            (0..operations).map(one).collect()
        };
        let calls = |operations| calls_under(0, operations);
        let answers = || {
            let mut answers = Vec::new();
            queue.take_answers(&mut answers);
            answers.len()
        };
        assert_eq!(calls(8), [0, 1, 1, 2, 2, 3, 3, 4], "nothing was answered: there may be one alone");
        assert_eq!(answers(), 8);
        assert_eq!(calls(8), [5, 5, 6, 6, 7, 7, 8, 8], "the drive has nothing to do: it starts with the first");
        queue.pass();
        assert_eq!((queue.enters(), answers()), (9, 8));
        assert_eq!((calls(1), answers()), (vec![10], 1));
        assert_eq!(calls(1), [10], "one after one: the call that ends the turn takes it along");
        queue.pass();
        assert_eq!((queue.enters(), answers()), (11, 1));
        assert_eq!(calls_under(6, 6), [11, 11, 12, 12, 12, 13], "the drive has more to do: half as many at a time");
        assert_eq!(calls_under(100, 4), [13, 13, 13, 14], "four at most");
        assert_eq!(answers(), 10);
        assert_eq!(calls_under(100, 5), [15, 15, 15, 15, 16], "the first is never held back");
    }
}
