//! Acknowledgements in order: a group's append is answered when its record is durable, never before (I-L2), never out
//! of order, and never with success after a failure.

use super::Flushed;
use futures::StreamExt;
use futures::channel::mpsc;
use futures::stream::FuturesOrdered;
use kiseki_types::journal::{Journal, JournalError, Sequence};
use kiseki_types::runtime::{LocalBoxFuture, Ports};
use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::Poll;

type Waiting = LocalBoxFuture<'static, (Sequence, Result<(), JournalError>, Flushed)>;

/// The queue of appends that wait for their flush.
pub struct Acks {
    queue: mpsc::UnboundedSender<Waiting>,
    synced: Rc<Cell<Sequence>>,
}

impl Acks {
    /// Starts the task that answers.
    pub fn start(ports: &Ports) -> Acks {
        let (queue, incoming) = mpsc::unbounded();
        let synced = Rc::new(Cell::new(0));
        ports.spawn("raft-acks", Box::pin(answer(incoming, synced.clone())));
        Acks { queue, synced }
    }

    /// Highest sequence whose flush has returned.
    pub fn synced(&self) -> Sequence {
        self.synced.get()
    }

    /// A flush up to `sequence` has returned.
    pub fn note_synced(&self, sequence: Sequence) {
        self.synced.set(self.synced.get().max(sequence));
    }

    /// Answers `callback` when `sequence` is durable. The journal learns of the waiter at once, so that all groups
    /// share its flushes. The queue is bounded by openraft's own (one callback for a batch that it has in flight).
    pub fn push(&self, journal: &Rc<dyn Journal>, sequence: Sequence, callback: Flushed) {
        let flushed = journal.flushed(sequence);
        let waiting: Waiting = Box::pin(async move { (sequence, flushed.await, callback) });
        // The receiver ends with the executor alone, and then nobody waits for an answer.
        let _ = self.queue.unbounded_send(waiting);
    }
}

async fn answer(mut incoming: mpsc::UnboundedReceiver<Waiting>, synced: Rc<Cell<Sequence>>) {
    let mut waiting = FuturesOrdered::new();
    let mut failed: Option<JournalError> = None;
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
        acknowledge(sequence, result, callback, &mut failed, &synced);
    }
}

fn acknowledge(
    sequence: Sequence,
    result: Result<(), JournalError>,
    callback: Flushed,
    failed: &mut Option<JournalError>,
    synced: &Cell<Sequence>,
) {
    if let Err(error) = result {
        failed.get_or_insert(error);
    } else if failed.is_none() {
        synced.set(synced.get().max(sequence));
    }
    match failed {
        Some(error) => callback.io_completed(Err(io::Error::other(error.clone()))),
        None => {
            // I-L2: a voter counts only what its flush has returned for.
            assert!(sequence <= synced.get(), "I-L2: acknowledging {sequence}, synced {}", synced.get());
            callback.io_completed(Ok(()));
        }
    }
}
