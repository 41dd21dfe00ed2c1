//! One core's hashing of chunks: lanes fed from a queue, whichever streams the chunks come from. A chunk alone leaves half of
//! the core's SHA unit idle, and its vectors altogether, so chunks are hashed in slices, and those that come later join.

use crate::chunk_id::DedupDomain;
use futures::channel::oneshot;
use kiseki_kernels::sha256::{Stream, advance_many, lanes_for};
use kiseki_types::Ports;
use kiseki_types::buf::IoBuf;
use kiseki_types::ids::ChunkId;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

/// Bytes of all lanes together between two turns of other tasks: some 150 us.
const SLICE_LEN_BYTES: usize = 256 * 1024;

/// A chunk up to this length is hashed at once: the way through the queue would cost more than the idle lane.
const INLINE_LEN_BYTES_MAX: usize = 32 * 1024;

struct Job {
    plaintext: IoBuf,
    stream: Stream,
    done: oneshot::Sender<(IoBuf, Stream)>,
}

/// The hash lanes of one core.
pub struct HashQueue {
    ports: Ports,
    /// In the order in which they came; the first few are under way.
    jobs: RefCell<VecDeque<Job>>,
    is_running: Cell<bool>,
}

impl HashQueue {
    /// Idle.
    #[must_use]
    pub fn new(ports: Ports) -> Rc<HashQueue> {
        Rc::new(HashQueue { ports, jobs: RefCell::default(), is_running: Cell::new(false) })
    }

    /// The id of a chunk; its bytes come back with it.
    pub async fn chunk_id(self: &Rc<Self>, domain: &DedupDomain, plaintext: IoBuf) -> (IoBuf, ChunkId) {
        if plaintext.len() <= INLINE_LEN_BYTES_MAX {
            let id = domain.chunk_id(&plaintext);
            return (plaintext, id);
        }
        let (done, hashed) = oneshot::channel();
        self.jobs.borrow_mut().push_back(Job { plaintext, stream: domain.begin(), done });
        if !self.is_running.replace(true) {
            let queue = self.clone();
            self.ports.spawn("hash chunks", Box::pin(async move { queue.run().await }));
        }
        let (plaintext, stream) = hashed.await.expect("the hashing task answers everything in its queue");
        let id = domain.finish(stream, &plaintext);
        (plaintext, id)
    }

    async fn run(&self) {
        while self.advance() {
            self.ports.yield_now().await;
        }
        self.is_running.set(false);
    }

    /// One slice of as many chunks as are fastest together, the oldest first. Tells whether some are left.
    fn advance(&self) -> bool {
        let mut jobs = self.jobs.borrow_mut();
        let together = lanes_for(jobs.len());
        let lanes = jobs.iter_mut().take(together).map(|job| (&mut job.stream, &job.plaintext[..]));
        advance_many(&mut lanes.collect::<Vec<_>>(), SLICE_LEN_BYTES / together.max(1));
        let mut at = 0;
        for _ in 0..together {
            if !jobs[at].stream.is_absorbed(&jobs[at].plaintext) {
                at += 1;
            } else if let Some(job) = jobs.remove(at) {
                // A writer that is gone does not want its chunk back.
                let _gone = job.done.send((job.plaintext, job.stream));
            }
        }
        !jobs.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiseki_simulator::{NodeId, Sim};
    use kiseki_types::secret::SecretKey;

    fn chunk(len: usize, seed: u8) -> IoBuf {
        let bytes: Vec<u8> = (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect();
        IoBuf::copy_of(&bytes)
    }

    #[test]
    fn i_k10_chunks_of_any_length_that_share_the_lanes_get_their_own_ids() {
        let sim = Sim::new(3);
        let queue = HashQueue::new(sim.ports(NodeId(0)));
        let domains = [DedupDomain::Shared, DedupDomain::private(&SecretKey::take(&mut [9; 32]))];
        // With both domains more than the widest kernel has lanes for.
        let lens =
            [1, 32_768, 32_769, 100_000, 131_072, 131_136, 200_001, 262_144, 500_000, 700_077, 1_000_003, 4 << 20];
        let jobs = lens.iter().enumerate().flat_map(|(i, len)| domains.iter().map(move |domain| (i, *len, domain)));
        let ids = sim.block_on(NodeId(0), async {
            let jobs = jobs.clone().map(|(i, len, domain)| queue.chunk_id(domain, chunk(len, i as u8)));
            futures::future::join_all(jobs).await
        });
        for ((i, len, domain), (bytes, id)) in jobs.zip(ids) {
            let expected = chunk(len, i as u8);
            assert!(bytes[..] == expected[..], "{len}: the bytes come back");
            assert!(id == domain.chunk_id(&expected), "I-K10: {len} bytes");
        }
        assert!(!queue.is_running.get());
        assert!(queue.jobs.borrow().is_empty());
    }

    #[test]
    fn a_writer_that_goes_away_stops_nobody() {
        let sim = Sim::new(4);
        let queue = HashQueue::new(sim.ports(NodeId(0)));
        sim.block_on(NodeId(0), async {
            use futures::FutureExt;
            let gone = queue.chunk_id(&DedupDomain::Shared, chunk(500_000, 1)).now_or_never();
            assert!(gone.is_none());
            let (_, id) = queue.chunk_id(&DedupDomain::Shared, chunk(600_000, 2)).await;
            assert!(id == DedupDomain::Shared.chunk_id(&chunk(600_000, 2)));
        });
    }
}
