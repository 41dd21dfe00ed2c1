//! One core's MD5 of the bodies that pass through it: lanes fed from a queue, a body in each. A body alone can't be
//! hashed faster than one step after the other, but eight of them cost no more than two.
//!
//! A body leaves here what has come and goes on with storing it. It waits only when too much of it is not hashed yet,
//! and for its digest, which nobody needs before everything is stored. So the queue has time to gather: it hashes when
//! a body waits, and then what the others have left too, or when all lanes have work.
//!
//! While a core has one body only, nothing of this happens: it is hashed where it is received.

use bytes::{Buf, Bytes, BytesMut};
use futures::channel::oneshot;
use kiseki_kernels::md5::{LANES_MAX, Lane, Stream, advance_many};
use kiseki_types::Ports;
use std::cell::{Cell, RefCell, RefMut};
use std::collections::VecDeque;
use std::rc::Rc;

/// Bytes of each lane between two turns of other tasks: some 100 us.
const SLICE_LEN_BYTES: usize = 64 * 1024;

/// A body waits when so many of its bytes are not hashed yet, until half of them are.
const BACKLOG_LEN_BYTES_MAX: usize = 256 * 1024;

/// Slices below this length are copied together: a few bytes may be all that keeps a large buffer of the connection from
/// being used again. Bodies below it never share lanes, and no body enters the queue with less.
const WORTH_LEN_BYTES: usize = 32 * 1024;

/// The MD5 lanes of one core.
pub(crate) struct Md5Queue {
    ports: Ports,
    /// Bodies of which something is to be hashed, each once.
    queued: RefCell<VecDeque<Rc<RefCell<Body>>>>,
    is_running: Cell<bool>,
    /// Bodies that are being hashed and long enough to share lanes.
    open: Counter,
    /// Bodies that can't go on before the queue has hashed what they left.
    wanting: Counter,
}

/// How many [`Counted`] there are.
#[derive(Clone, Default)]
struct Counter(Rc<Cell<usize>>);

impl Counter {
    fn count(&self) -> Counted {
        self.0.set(self.0.get() + 1);
        Counted(self.clone())
    }

    fn get(&self) -> usize {
        self.0.get()
    }
}

/// Counted until it is dropped.
struct Counted(Counter);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.set(self.0.0.get() - 1);
    }
}

/// What of a body is not hashed yet, and how far its hash is.
struct Body {
    stream: Stream,
    pieces: VecDeque<Bytes>,
    /// Small slices, behind the pieces.
    small: BytesMut,
    backlog_len_bytes: usize,
    waiter: Option<Waiter>,
}

/// Somebody who waits until no more than `level_len_bytes` are left.
struct Waiter {
    level_len_bytes: usize,
    done: oneshot::Sender<()>,
    _wanting: Counted,
}

impl Body {
    fn push(&mut self, bytes: &Bytes) {
        self.backlog_len_bytes += bytes.len();
        if bytes.len() < WORTH_LEN_BYTES {
            self.small.extend_from_slice(bytes);
        } else {
            self.close_small();
            self.pieces.push_back(bytes.clone());
        }
    }

    fn close_small(&mut self) {
        if !self.small.is_empty() {
            self.pieces.push_back(self.small.split().freeze());
        }
    }

    /// The next piece to be hashed is at the front, if there is any.
    fn make_ready(&mut self) {
        if self.pieces.is_empty() {
            self.close_small();
        }
    }

    /// Takes note of how much is left of the first piece.
    fn hashed_up_to(&mut self, rest_len_bytes: usize) {
        let Some(piece) = self.pieces.front_mut() else { return };
        self.backlog_len_bytes -= piece.len() - rest_len_bytes;
        piece.advance(piece.len() - rest_len_bytes);
        if rest_len_bytes == 0 {
            self.pieces.pop_front();
        }
        if let Some(waiter) = self.waiter.take_if(|waiter| self.backlog_len_bytes <= waiter.level_len_bytes) {
            // A body whose client is gone does not wait any more.
            let _gone = waiter.done.send(());
        }
    }
}

impl Md5Queue {
    /// Idle.
    pub(crate) fn new(ports: Ports) -> Rc<Md5Queue> {
        Rc::new(Md5Queue {
            ports,
            queued: RefCell::default(),
            is_running: Cell::new(false),
            open: Counter::default(),
            wanting: Counter::default(),
        })
    }

    /// Begins the MD5 of a body of `len_bytes`.
    pub(crate) fn begin(self: &Rc<Self>, len_bytes: u64) -> BodyMd5 {
        let open = (len_bytes >= WORTH_LEN_BYTES as u64).then(|| self.open.count());
        let body = Body {
            stream: Stream::begin(),
            pieces: VecDeque::new(),
            small: BytesMut::new(),
            backlog_len_bytes: 0,
            waiter: None,
        };
        BodyMd5 { queue: self.clone(), open, body: Rc::new(RefCell::new(body)) }
    }

    /// Whether it is time to hash.
    fn is_due(&self) -> bool {
        let queued = self.queued.borrow().len();
        queued > 0 && (self.wanting.get() > 0 || queued >= LANES_MAX.min(self.open.get()))
    }

    fn enter(&self, body: &Rc<RefCell<Body>>) {
        let mut queued = self.queued.borrow_mut();
        if !queued.iter().any(|other| Rc::ptr_eq(other, body)) {
            queued.push_back(body.clone());
        }
    }

    fn withdraw(&self, body: &Rc<RefCell<Body>>) {
        self.queued.borrow_mut().retain(|other| !Rc::ptr_eq(other, body));
    }

    fn start_when_due(self: &Rc<Self>) {
        if self.is_due() && !self.is_running.replace(true) {
            let queue = self.clone();
            self.ports.spawn("hash bodies", Box::pin(async move { queue.run().await }));
        }
    }

    async fn run(&self) {
        while self.is_due() {
            self.turn();
            self.ports.yield_now().await;
        }
        self.is_running.set(false);
    }

    /// Hashes a slice of as many bodies as there are lanes. A lane whose body has nothing left is free for the next one
    /// at once.
    fn turn(&self) {
        let mut left = SLICE_LEN_BYTES;
        while left > 0 && self.is_due() {
            let mut queued = self.queued.borrow_mut();
            let mut bodies: Vec<RefMut<'_, Body>> =
                queued.iter().take(LANES_MAX).map(|body| body.borrow_mut()).collect();
            left = left.saturating_sub(advance(&mut bodies, left));
            drop(bodies);
            queued.retain(|body| body.borrow().backlog_len_bytes > 0);
        }
        // The next turn is of the others: a body to which more comes all the time would never leave its lane.
        let mut queued = self.queued.borrow_mut();
        let turned = LANES_MAX.min(queued.len());
        queued.rotate_left(turned);
    }
}

/// Moves all lanes on together; returns by how many bytes.
fn advance(bodies: &mut [RefMut<'_, Body>], len_bytes: usize) -> usize {
    bodies.iter_mut().for_each(|body| body.make_ready());
    let mut lanes: Vec<Lane<'_>> = Vec::with_capacity(LANES_MAX);
    lanes.extend(bodies.iter_mut().map(|body| {
        let Body { stream, pieces, .. } = &mut **body;
        Lane { stream, data: pieces.front().map_or(&[], |piece| piece) }
    }));
    let advanced = advance_many(&mut lanes, len_bytes);
    let mut rests = [0; LANES_MAX];
    rests.iter_mut().zip(&lanes).for_each(|(rest, lane)| *rest = lane.data.len());
    for (body, rest) in bodies.iter_mut().zip(rests) {
        body.hashed_up_to(rest);
    }
    advanced
}

/// The MD5 of one body on its way. Dropped before its end it leaves the lanes to the others.
pub(crate) struct BodyMd5 {
    queue: Rc<Md5Queue>,
    /// `None` for a body that is too short to share lanes.
    open: Option<Counted>,
    body: Rc<RefCell<Body>>,
}

impl BodyMd5 {
    /// Absorbs the next slice, sooner or later.
    pub(crate) async fn update(&mut self, bytes: &Bytes) {
        self.body.borrow_mut().push(bytes);
        if !self.is_sharing() {
            return self.absorb_here().await;
        }
        let backlog = self.body.borrow().backlog_len_bytes;
        if backlog < WORTH_LEN_BYTES {
            return;
        }
        self.queue.enter(&self.body);
        if backlog >= BACKLOG_LEN_BYTES_MAX {
            return self.shrunk_to(BACKLOG_LEN_BYTES_MAX / 2).await;
        }
        self.queue.start_when_due();
    }

    /// The digest. Better asked for late: what others leave meanwhile is hashed along.
    pub(crate) async fn finish(self) -> [u8; 16] {
        let backlog = self.body.borrow().backlog_len_bytes;
        if self.is_sharing() && backlog >= WORTH_LEN_BYTES {
            self.queue.enter(&self.body);
            self.shrunk_to(0).await;
        }
        self.absorb_here().await;
        self.body.borrow().stream.clone().finish()
    }

    /// Whether there are others to share lanes with.
    fn is_sharing(&self) -> bool {
        self.open.is_some() && self.queue.open.get() > 1
    }

    /// Ends when no more than `level_len_bytes` of the body, which is in the queue, are not hashed yet.
    async fn shrunk_to(&self, level_len_bytes: usize) {
        let (done, shrunk) = oneshot::channel();
        let waiter = Waiter { level_len_bytes, done, _wanting: self.queue.wanting.count() };
        self.body.borrow_mut().waiter = Some(waiter);
        self.queue.start_when_due();
        shrunk.await.expect("the hashing task answers everything in its queue");
    }

    /// Absorbs everything here and now, with turns for other tasks in between.
    async fn absorb_here(&self) {
        self.queue.withdraw(&self.body);
        let mut is_first = true;
        loop {
            if !std::mem::take(&mut is_first) {
                self.queue.ports.yield_now().await;
            }
            if self.absorb_slice() {
                return;
            }
        }
    }

    /// Absorbs what is good for one turn; tells whether that was the last.
    fn absorb_slice(&self) -> bool {
        let mut body = self.body.borrow_mut();
        let mut left = 2 * SLICE_LEN_BYTES;
        loop {
            body.make_ready();
            let Some(piece) = body.pieces.front() else { return true };
            if left == 0 {
                return false;
            }
            let len = piece.len().min(left);
            let now = piece.slice(..len);
            let rest = piece.len() - len;
            body.stream.absorb(&now);
            body.hashed_up_to(rest);
            left -= len;
        }
    }
}

impl Drop for BodyMd5 {
    fn drop(&mut self) {
        self.queue.withdraw(&self.body);
    }
}

#[cfg(test)]
mod tests;
