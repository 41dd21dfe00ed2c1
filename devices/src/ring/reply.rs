//! The answer to one operation, from the queue to whoever asked. Both live on one core, so nothing here is locked, as
//! a channel between threads has to be.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// How far an answer is.
enum State<T> {
    /// Not there, and nobody waits for it yet.
    Open,
    /// Not there; who waits for it.
    Awaited(Waker),
    /// There.
    Sent(io::Result<T>),
    /// Taken, or nobody will send it or wait for it any more.
    Ended,
}

/// Takes the answer.
pub(super) struct Reply<T>(Rc<RefCell<State<T>>>);

/// Gives the answer, once.
pub(super) struct Answer<T>(Rc<RefCell<State<T>>>);

/// Both ends of an answer.
pub(super) fn reply<T>() -> (Reply<T>, Answer<T>) {
    let state = Rc::new(RefCell::new(State::Open));
    (Reply(state.clone()), Answer(state))
}

impl<T> Reply<T> {
    /// Answers. Whoever asked may have gone away, and with it the answer.
    pub fn send(self, result: io::Result<T>) {
        change(&self.0, State::Sent(result));
    }
}

/// Puts a state in place of one that waits for an answer, and wakes who waits. Waker and result are dropped outside: their
/// owners may come back here.
fn change<T>(state: &RefCell<State<T>>, next: State<T>) {
    let mut state = state.borrow_mut();
    let unused = match &*state {
        State::Open | State::Awaited(_) => std::mem::replace(&mut *state, next),
        State::Sent(_) | State::Ended => next,
    };
    drop(state);
    if let State::Awaited(waker) = unused {
        waker.wake();
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        // Without an answer: the executor ends, and drops what was in flight.
        if !matches!(&*self.0.borrow(), State::Sent(_) | State::Ended) {
            let ended = io::Error::other("the executor of the device has ended");
            change(&self.0, State::Sent(Err(ended)));
        }
    }
}

impl<T> Drop for Answer<T> {
    fn drop(&mut self) {
        let left = self.0.replace(State::Ended);
        drop(left);
    }
}

impl<T> Future for Answer<T> {
    type Output = io::Result<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        let mut state = self.0.borrow_mut();
        let before = match &*state {
            State::Awaited(waker) if waker.will_wake(cx.waker()) => return Poll::Pending,
            State::Open | State::Awaited(_) => std::mem::replace(&mut *state, State::Awaited(cx.waker().clone())),
            State::Sent(_) | State::Ended => std::mem::replace(&mut *state, State::Ended),
        };
        drop(state);
        match before {
            State::Open | State::Awaited(_) => Poll::Pending,
            State::Sent(result) => Poll::Ready(result),
            State::Ended => panic!("an answer was awaited after it was taken"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use futures::task::{ArcWake, waker};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[derive(Default)]
    struct Count(AtomicU32);

    impl ArcWake for Count {
        fn wake_by_ref(count: &Arc<Self>) {
            count.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn an_answer_wakes_the_last_one_who_asked_and_comes_once() {
        let (first, second) = (Arc::new(Count::default()), Arc::new(Count::default()));
        let (reply, mut answer) = reply::<u8>();
        for count in [&first, &first, &second] {
            let waker = waker(count.clone());
            assert!(answer.poll_unpin(&mut Context::from_waker(&waker)).is_pending());
        }
        reply.send(Ok(7));
        assert_eq!((first.0.load(Ordering::SeqCst), second.0.load(Ordering::SeqCst)), (0, 1));
        assert_eq!(answer.now_or_never().unwrap().unwrap(), 7);
    }

    #[test]
    fn an_answer_that_is_there_needs_no_waker_and_one_that_never_comes_is_an_error() {
        let (sent, answer) = reply::<u8>();
        sent.send(Ok(1));
        assert_eq!(answer.now_or_never().unwrap().unwrap(), 1);
        let count = Arc::new(Count::default());
        let (dropped, mut answer) = reply::<u8>();
        let waker = waker(count.clone());
        assert!(answer.poll_unpin(&mut Context::from_waker(&waker)).is_pending());
        drop(dropped);
        assert_eq!(count.0.load(Ordering::SeqCst), 1, "whoever waits hears of the end");
        answer.now_or_never().unwrap().unwrap_err();
    }

    #[test]
    fn whoever_has_gone_away_holds_nothing_and_is_not_woken() {
        let count = Arc::new(Count::default());
        let held = Rc::new(());
        let (sent, mut answer) = reply::<Rc<()>>();
        let waker = waker(count.clone());
        assert!(answer.poll_unpin(&mut Context::from_waker(&waker)).is_pending());
        drop(answer);
        sent.send(Ok(held.clone()));
        assert_eq!((Rc::strong_count(&held), count.0.load(Ordering::SeqCst)), (1, 0));
        let (sent, answer) = reply::<Rc<()>>();
        sent.send(Ok(held.clone()));
        drop(answer);
        assert_eq!(Rc::strong_count(&held), 1);
    }
}
