//! Acknowledgements in order: a group's append is answered when its record is durable, never before (I-L2), never out
//! of order, and never with success after a failure.

use super::Flushed;
use crate::times::{RaftStep, RaftTimes};
use futures::StreamExt;
use futures::channel::mpsc;
use futures::stream::FuturesOrdered;
use kiseki_types::journal::{Journal, JournalError, Sequence};
use kiseki_types::runtime::{LocalBoxFuture, Ports};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::Poll;
use tokio::sync::Notify;

type Waiting = LocalBoxFuture<'static, (Sequence, Result<(), JournalError>, Flushed)>;

/// The queue of appends that wait for their flush.
pub struct Acks {
    queue: mpsc::UnboundedSender<Waiting>,
    /// Highest sequence that was ever queued.
    queued: Cell<Sequence>,
    progress: Rc<Progress>,
    ports: Ports,
    times: Rc<RaftTimes>,
}

/// How far the answers are.
#[derive(Default)]
struct Progress {
    synced: Cell<Sequence>,
    failed: RefCell<Option<JournalError>>,
    moved: Notify,
}

impl Progress {
    fn note_synced(&self, sequence: Sequence) {
        if sequence > self.synced.get() {
            self.synced.set(sequence);
            self.moved.notify_waiters();
        }
    }
}

impl Acks {
    /// Starts the task that answers.
    pub fn start(ports: &Ports, times: Rc<RaftTimes>) -> Acks {
        let (queue, incoming) = mpsc::unbounded();
        let progress = Rc::<Progress>::default();
        ports.spawn("raft-acks", Box::pin(answer(incoming, progress.clone())));
        Acks { queue, queued: Cell::new(0), progress, ports: ports.clone(), times }
    }

    /// Highest sequence whose flush has returned.
    pub fn synced(&self) -> Sequence {
        self.progress.synced.get()
    }

    /// A flush up to `sequence` has returned.
    pub fn note_synced(&self, sequence: Sequence) {
        self.progress.note_synced(sequence);
    }

    /// Waits until `sequence` is durable by a flush that an append waits for already: one more would cost another flush.
    /// `None`: no append does.
    pub async fn answered(&self, sequence: Sequence) -> Option<Result<(), JournalError>> {
        if sequence > self.queued.get() {
            return None;
        }
        loop {
            let moved = self.progress.moved.notified();
            if self.progress.synced.get() >= sequence {
                return Some(Ok(()));
            }
            if let Some(error) = &*self.progress.failed.borrow() {
                return Some(Err(error.clone()));
            }
            moved.await;
        }
    }

    /// Answers `callback` when `sequence` is durable. The journal learns of the waiter at once, so that all groups
    /// share its flushes. The queue is bounded by openraft's own (one callback for a batch that it has in flight).
    pub fn push(&self, journal: &Rc<dyn Journal>, sequence: Sequence, callback: Flushed) {
        self.queued.set(self.queued.get().max(sequence));
        let flushed = journal.flushed(sequence);
        let (ports, times, since) = (self.ports.clone(), self.times.clone(), self.ports.now());
        let waiting: Waiting = Box::pin(async move {
            let result = flushed.await;
            times.ended(RaftStep::LogFlush, since, &ports);
            (sequence, result, callback)
        });
        // The receiver ends with the executor alone, and then nobody waits for an answer.
        let _ = self.queue.unbounded_send(waiting);
    }
}

async fn answer(mut incoming: mpsc::UnboundedReceiver<Waiting>, progress: Rc<Progress>) {
    let mut waiting = FuturesOrdered::new();
    let mut open = true;
    loop {
        let done = poll_fn(|cx| {
            while open {
                match incoming.poll_next_unpin(cx) {
                    Poll::Ready(Some(next)) => waiting.push_back(next),
                    Poll::Ready(None) => open = false,
                    Poll::Pending => break,
                }
            }
            match waiting.poll_next_unpin(cx) {
                Poll::Ready(None) if open => Poll::Pending,
                done => done,
            }
        });
        let Some((sequence, result, callback)) = done.await else { return };
        acknowledge(sequence, result, callback, &progress);
    }
}

fn acknowledge(sequence: Sequence, result: Result<(), JournalError>, callback: Flushed, progress: &Progress) {
    let mut failed = progress.failed.borrow_mut();
    match result {
        Err(error) if failed.is_none() => {
            *failed = Some(error);
            progress.moved.notify_waiters();
        }
        Ok(()) if failed.is_none() => progress.note_synced(sequence),
        _ => {}
    }
    match &*failed {
        Some(error) => callback.io_completed(Err(io::Error::other(error.clone()))),
        None => {
            // I-L2: a voter counts only what its flush has returned for.
            let synced = progress.synced.get();
            assert!(sequence <= synced, "I-L2: acknowledging {sequence}, synced {synced}");
            callback.io_completed(Ok(()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::type_config::TypeConfig;
    use openraft::type_config::TypeConfigExt;

    #[test]
    fn i_l2_i_d6_nothing_is_acknowledged_once_a_flush_has_failed() {
        let progress = Progress::default();
        let answer = |sequence, result| {
            let (sender, receiver) = TypeConfig::oneshot();
            acknowledge(sequence, result, Flushed::signal(sender), &progress);
            futures::executor::block_on(receiver).expect("it is answered")
        };
        answer(1, Ok(())).expect("durable");
        let failure = JournalError::Fenced { journal: "j".to_owned(), reason: "its disk is gone".to_owned() };
        answer(2, Err(failure)).unwrap_err();
        answer(3, Ok(())).unwrap_err();
        assert_eq!(progress.synced.get(), 1, "there may be a hole behind it");
    }
}
