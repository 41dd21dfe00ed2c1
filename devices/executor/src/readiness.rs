//! Waits until a file descriptor can be read or written, through the core's ring.

use crate::executor::core_ring;
use crate::ring::CoreRing;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// What to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Bytes, a connection, or the other side's end.
    Readable,
    /// Room, or an error.
    Writable,
}

/// The answer to a poll, on its way.
#[derive(Default)]
pub(crate) struct PollState {
    result: Cell<Option<i32>>,
    waker: RefCell<Option<Waker>>,
}

impl PollState {
    pub fn complete(&self, result: i32) {
        self.result.set(Some(result));
        let waker = self.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// See [`readiness`]. Dropping it takes the request back.
pub struct Readiness {
    ring: Rc<CoreRing>,
    state: Rc<PollState>,
    user_data: u64,
}

/// Starts to wait for `interest` in `fd`. An error or a hang-up counts as ready: the next call on the descriptor says
/// which. The descriptor may be closed while one waits; until the wait is dropped the kernel keeps its file.
#[must_use]
pub fn readiness(fd: BorrowedFd<'_>, interest: Interest) -> Readiness {
    let ring = core_ring();
    let state = Rc::<PollState>::default();
    let user_data = ring.poll_add(fd.as_raw_fd(), interest, state.clone());
    Readiness { ring, state, user_data }
}

impl Future for Readiness {
    type Output = io::Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.state.result.get() {
            Some(result) if result < 0 => Poll::Ready(Err(io::Error::from_raw_os_error(-result))),
            Some(_) => Poll::Ready(Ok(())),
            None => {
                let earlier = self.state.waker.borrow_mut().replace(cx.waker().clone());
                drop(earlier);
                Poll::Pending
            }
        }
    }
}

impl Drop for Readiness {
    fn drop(&mut self) {
        let waker = self.state.waker.borrow_mut().take();
        drop(waker);
        if self.state.result.get().is_none() {
            self.ring.poll_remove(self.user_data);
        }
    }
}
