//! One core's MD5 of the bodies that pass through it: lanes fed from a queue, a body in each. A body alone can't be
//! hashed faster than one step after the other, but eight of them cost little more than one.
//!
//! A body hands over what has come, goes on with storing it, and waits for that hand-over before the next one. So its
//! slices keep their order, and what is not hashed yet of a body is bounded. Nobody needs the state of a digest before
//! that, so the queue has time to gather: it begins when a body waits, when every lane has work, or when the core has
//! little else to do.
//!
//! While a core has one body only, nothing of this happens: it is hashed where it is received.

use bytes::{Buf, Bytes, BytesMut};
use futures::channel::oneshot;
use kiseki_kernels::md5::{LANES_MAX, Lane, Stream, advance_many};
use kiseki_types::Ports;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

/// Bytes of each lane between two turns of other tasks: some 100 us.
const SLICE_LEN_BYTES: usize = 64 * 1024;

/// So many bytes of a body are handed over together. As many again may come until the body waits for them.
const HANDED_OVER_LEN_BYTES: usize = 128 * 1024;

/// Slices below this length are copied together: a few bytes may be all that keeps a large buffer of the connection from
/// being used again. Bodies below it never share lanes.
const WORTH_LEN_BYTES: usize = 32 * 1024;

/// Turns of other tasks that the queue lets pass while nobody waits and lanes are free. They are short when the core has
/// nothing else to do, and long when other bodies are about to come.
const GATHER_TURNS: usize = 4;

/// The MD5 lanes of one core.
pub(crate) struct Md5Queue {
    ports: Ports,
    waiting: RefCell<VecDeque<Job>>,
    is_running: Cell<bool>,
    /// Bodies that are being hashed and long enough to share lanes.
    open: Counter,
    /// Bodies that can't go on before the queue is done with what they have handed over.
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

/// What a body has handed over.
struct Job {
    stream: Stream,
    pieces: VecDeque<Bytes>,
    done: oneshot::Sender<Stream>,
}

impl Md5Queue {
    /// Idle.
    pub(crate) fn new(ports: Ports) -> Rc<Md5Queue> {
        Rc::new(Md5Queue {
            ports,
            waiting: RefCell::default(),
            is_running: Cell::new(false),
            open: Counter::default(),
            wanting: Counter::default(),
        })
    }

    /// Begins the MD5 of a body of `len_bytes`.
    pub(crate) fn begin(self: &Rc<Self>, len_bytes: u64) -> BodyMd5 {
        let open = (len_bytes >= WORTH_LEN_BYTES as u64).then(|| self.open.count());
        BodyMd5 { queue: self.clone(), open, place: Place::Here(Stream::begin()), gathered: Gathered::default() }
    }

    fn push(self: &Rc<Self>, job: Job) {
        self.waiting.borrow_mut().push_back(job);
        if !self.is_running.replace(true) {
            let queue = self.clone();
            self.ports.spawn("hash bodies", Box::pin(async move { queue.run().await }));
        }
    }

    async fn run(&self) {
        let mut lanes = Vec::with_capacity(LANES_MAX);
        loop {
            for _ in 0..GATHER_TURNS {
                let busy = lanes.len() + self.waiting.borrow().len();
                if self.wanting.get() > 0 || busy >= LANES_MAX.min(self.open.get()) {
                    break;
                }
                self.ports.yield_now().await;
            }
            self.turn(&mut lanes);
            if lanes.is_empty() && self.waiting.borrow().is_empty() {
                break;
            }
            self.ports.yield_now().await;
        }
        self.is_running.set(false);
    }

    /// Hashes one slice of every lane. A lane that ends is free for the next body at once.
    fn turn(&self, lanes: &mut Vec<Job>) {
        let mut left = SLICE_LEN_BYTES;
        while left > 0 {
            lanes.retain(|job| !job.done.is_canceled());
            while lanes.len() < LANES_MAX
                && let Some(job) = self.waiting.borrow_mut().pop_front()
            {
                if !job.done.is_canceled() {
                    lanes.push(job);
                }
            }
            if lanes.is_empty() {
                break;
            }
            left = left.saturating_sub(advance(lanes, left));
            for job in lanes.extract_if(.., |job| job.pieces.is_empty()) {
                // A body whose client is gone does not want its state back.
                let _gone = job.done.send(job.stream);
            }
        }
    }
}

/// Moves all lanes on together; returns by how many bytes.
fn advance(jobs: &mut [Job], len_bytes: usize) -> usize {
    let mut lanes: Vec<Lane<'_>> = Vec::with_capacity(LANES_MAX);
    lanes.extend(
        jobs.iter_mut()
            .map(|Job { stream, pieces, .. }| Lane { stream, data: pieces.front().map_or(&[], |piece| piece) }),
    );
    let advanced = advance_many(&mut lanes, len_bytes);
    let mut rests = [0; LANES_MAX];
    rests.iter_mut().zip(lanes).for_each(|(rest, lane)| *rest = lane.data.len());
    for (job, rest) in jobs.iter_mut().zip(rests) {
        if rest == 0 {
            job.pieces.pop_front();
        } else if let Some(piece) = job.pieces.front_mut() {
            piece.advance(piece.len() - rest);
        }
    }
    advanced
}

/// Where the state of a body's digest is.
enum Place {
    Here(Stream),
    Queue(oneshot::Receiver<Stream>),
}

/// What has come of a body and is not handed over yet.
#[derive(Default)]
struct Gathered {
    pieces: VecDeque<Bytes>,
    /// Small slices, behind the pieces.
    small: BytesMut,
    len_bytes: usize,
}

impl Gathered {
    fn push(&mut self, bytes: &Bytes) {
        self.len_bytes += bytes.len();
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

    fn take(&mut self) -> VecDeque<Bytes> {
        self.close_small();
        self.len_bytes = 0;
        std::mem::take(&mut self.pieces)
    }
}

/// The MD5 of one body on its way. Dropped before its end it leaves the lanes to the others.
pub(crate) struct BodyMd5 {
    queue: Rc<Md5Queue>,
    /// `None` for a body that is too short to share lanes.
    open: Option<Counted>,
    place: Place,
    gathered: Gathered,
}

impl BodyMd5 {
    /// Absorbs the next slice, sooner or later.
    pub(crate) async fn update(&mut self, bytes: &Bytes) {
        if !self.is_sharing() {
            self.absorb_gathered().await;
            self.absorb(bytes).await;
            return;
        }
        self.gathered.push(bytes);
        if self.gathered.len_bytes >= HANDED_OVER_LEN_BYTES {
            self.hand_over().await;
        }
    }

    /// The digest.
    pub(crate) async fn finish(mut self) -> [u8; 16] {
        if self.is_sharing() && self.gathered.len_bytes >= WORTH_LEN_BYTES {
            self.hand_over().await;
        }
        self.absorb_gathered().await;
        self.here().await.clone().finish()
    }

    /// Whether there are others to share lanes with.
    fn is_sharing(&self) -> bool {
        self.open.is_some() && self.queue.open.get() > 1
    }

    /// Hands over what was gathered, once the hand-over before it is done.
    async fn hand_over(&mut self) {
        let (done, hashed) = oneshot::channel();
        let stream = self.here().await.clone();
        self.place = Place::Queue(hashed);
        self.queue.push(Job { stream, pieces: self.gathered.take(), done });
    }

    async fn absorb_gathered(&mut self) {
        for piece in self.gathered.take() {
            self.absorb(&piece).await;
        }
    }

    /// Absorbs here and now, with turns for other tasks in between.
    async fn absorb(&mut self, bytes: &[u8]) {
        for (index, slice) in bytes.chunks(2 * SLICE_LEN_BYTES).enumerate() {
            if index > 0 {
                self.queue.ports.yield_now().await;
            }
            self.here().await.absorb(slice);
        }
    }

    /// The state, once nothing is handed over.
    async fn here(&mut self) -> &mut Stream {
        if let Place::Queue(hashed) = &mut self.place {
            let _wanting = self.queue.wanting.count();
            self.place = Place::Here(hashed.await.expect("the hashing task answers everything in its queue"));
        }
        match &mut self.place {
            Place::Here(stream) => stream,
            Place::Queue(_) => unreachable!("the state was taken back"),
        }
    }
}

#[cfg(test)]
mod tests;
