//! Which client's request is being worked on: carried along to other cores and nodes, so that what all of them log about it
//! has one name.
//!
//! Every poll of a future that works for a request says so for the time of the poll; on a core's one thread that is exact. It is
//! for logs alone: nothing is decided with it.

use std::cell::Cell;
use std::fmt;
use std::future::{Future, poll_fn};

/// The id that the client sees as `x-amz-request-id`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016X}", self.0)
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl RequestId {
    /// As links carry it: 0 is none.
    #[must_use]
    pub fn from_wire(number: u64) -> Option<RequestId> {
        (number != 0).then_some(RequestId(number))
    }

    /// The same, back.
    #[must_use]
    pub fn to_wire(request: Option<RequestId>) -> u64 {
        request.map_or(0, |request| request.0)
    }
}

thread_local! {
    static CURRENT: Cell<Option<RequestId>> = const { Cell::new(None) };
}

/// The request that the running future works for; `None` for what works for nobody in particular.
#[must_use]
pub fn current() -> Option<RequestId> {
    CURRENT.get()
}

/// Says what is worked for as long as it lives; then it is as before.
pub struct Entered(Option<RequestId>);

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.0);
    }
}

/// Works for `request` until the answer is dropped; never held while anything is waited for.
#[must_use]
pub fn enter(request: Option<RequestId>) -> Entered {
    Entered(CURRENT.replace(request))
}

/// Runs a future for a request.
pub async fn within<F: Future + Unpin>(request: Option<RequestId>, mut future: F) -> F::Output {
    poll_fn(|context| {
        let _entered = enter(request);
        std::pin::Pin::new(&mut future).poll(context)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::{Context, Poll, Waker};

    #[test]
    fn a_future_works_for_its_request_while_it_is_polled_and_no_longer() {
        let mut turns = 0;
        let inner = Box::pin(poll_fn(move |_| {
            turns += 1;
            if turns < 3 { Poll::Pending } else { Poll::Ready(current()) }
        }));
        let mut outer = Box::pin(within(Some(RequestId(7)), inner));
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..2 {
            assert!(outer.as_mut().poll(&mut context).is_pending());
            assert_eq!(current(), None, "others run in between");
        }
        assert_eq!(outer.as_mut().poll(&mut context), Poll::Ready(Some(RequestId(7))));
        let _outer = enter(Some(RequestId(1)));
        drop(enter(None));
        assert_eq!(current(), Some(RequestId(1)), "what was before comes back");
        assert_eq!(RequestId(0xA1).to_string(), "00000000000000A1");
    }
}
