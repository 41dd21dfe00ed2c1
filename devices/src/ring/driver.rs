//! The two tasks behind a ring: the driver submits and reaps, the listener turns the eventfd into a wake-up.
//!
//! The kernel counts into the eventfd only while the driver is parked, so a busy ring costs no extra system call. The
//! listener's read of the eventfd goes through the executor's own ring and stays there while nothing happens.

use super::{POLL_TIME, Shared};
use glommio::io::BufferedFile;
use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::rc::Rc;
use std::task::{Poll, Waker};

/// Wakes the driver from tasks of its own core.
#[derive(Default)]
pub(super) struct Notify {
    raised: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Notify {
    pub fn wake(&self) {
        self.raised.set(true);
        let waker = self.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    async fn wait(&self) {
        std::future::poll_fn(|context| {
            if self.raised.replace(false) {
                return Poll::Ready(());
            }
            *self.waker.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// A counter that the kernel adds to.
pub(super) fn new_eventfd() -> io::Result<OwnedFd> {
    // SAFETY: the call takes no pointers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Adds one to the counter, so that the listener looks up.
pub(super) fn signal(eventfd: &OwnedFd) {
    let one = 1u64.to_ne_bytes();
    // SAFETY: eight bytes that live across the call; a full counter (the only failure) wakes the listener as well.
    let _ = unsafe { libc::write(eventfd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
}

/// Starts both tasks on this core.
pub(super) fn start(shared: &Rc<Shared>) -> io::Result<()> {
    let copy = shared.eventfd.try_clone()?.into_raw_fd();
    // SAFETY: the descriptor is a fresh duplicate that the file now owns and closes.
    let counter = unsafe { BufferedFile::from_raw_fd(copy) };
    shared.ring.borrow_mut().completion().disable_eventfd();
    shared.ports.spawn("device ring", Box::pin(drive(shared.clone())));
    shared.ports.spawn("device ring events", Box::pin(listen(shared.clone(), counter)));
    Ok(())
}

/// Submits and reaps until the ring is closed and everything in it is done.
async fn drive(shared: Rc<Shared>) {
    let mut last_progress = shared.ports.now();
    loop {
        shared.submit();
        if shared.reap() > 0 {
            last_progress = shared.ports.now();
            continue; // answering may have queued more
        }
        if shared.is_idle() {
            if shared.closed.get() {
                break;
            }
            shared.notify.wait().await;
            last_progress = shared.ports.now();
        } else if shared.ports.now().since(last_progress) < POLL_TIME {
            shared.ports.yield_now().await;
        } else {
            park(&shared).await;
        }
    }
    signal(&shared.eventfd); // the listener ends too
}

/// Waits for a completion or for something to submit.
async fn park(shared: &Shared) {
    shared.ring.borrow_mut().completion().enable_eventfd();
    // What completed before the kernel saw the flag was not counted: look once more before going to sleep. The fence
    // orders our store of the flag before our look at the completion queue's tail.
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    if shared.ring.borrow_mut().completion().is_empty() {
        shared.notify.wait().await;
    }
    shared.ring.borrow_mut().completion().disable_eventfd();
}

/// Wakes the driver whenever the kernel counted something.
async fn listen(shared: Rc<Shared>, counter: BufferedFile) {
    while !(shared.closed.get() && shared.is_idle()) {
        if let Err(error) = counter.read_at(0, 8).await {
            // Without wake-ups the ring would hang: the process can't go on.
            panic!("device {}: reading the eventfd failed: {error}", shared.name);
        }
        shared.notify.wake();
    }
    if let Err(error) = counter.close().await {
        tracing::warn!(device = %shared.name, %error, "closing an eventfd failed");
    }
}
