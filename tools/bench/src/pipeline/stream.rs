//! Streams being stored, as a core of the server stores them: slices are copied and cut, and up to four chunks of each
//! stream are on their way through the hash lanes, which all streams share, sealing and encoding, each in a task of its own.

use super::input::Input;
use super::path::{CorePath, Receiver, SLICE_LEN_BYTES};
use super::ports::ThreadPorts;
use futures::channel::oneshot;
use futures::executor::LocalPool;
use kiseki_engine::chunker::Cutter;
use kiseki_engine::hash_queue::HashQueue;
use kiseki_types::buf::IoBuf;
use kiseki_types::runtime::Ports;
use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::Poll;

/// Chunks of a stream between cut and durable, as in `engine::writer`.
const CHUNKS_IN_FLIGHT_MAX: usize = 4;

/// Streams that take turns on one thread.
pub struct Streams {
    pool: LocalPool,
    stored_len_bytes: Rc<Cell<u64>>,
}

impl Streams {
    /// `count` streams over the same input, each of which begins at a place of its own.
    pub fn begin(input: &Rc<Input>, path: CorePath, count: usize) -> Streams {
        let pool = LocalPool::new();
        let ports: Ports = Rc::new(ThreadPorts::new(pool.spawner()));
        let (path, queue) = (Rc::new(path), HashQueue::new(ports.clone()));
        let stored_len_bytes = Rc::new(Cell::new(0));
        let slices = input.bytes().len().div_ceil(SLICE_LEN_BYTES);
        for number in 0..count {
            let mut stream = Stream {
                slice: number * slices / count,
                receiver: Receiver::new(&path, input.chunker().format().len_bytes_max as usize),
                input: input.clone(),
                path: path.clone(),
                ports: ports.clone(),
                queue: queue.clone(),
                cutter: Cutter::new(),
                in_flight: VecDeque::new(),
                stored_len_bytes: stored_len_bytes.clone(),
            };
            let task = async move {
                loop {
                    stream.take_slice().await;
                }
            };
            ports.spawn("store stream", Box::pin(task));
        }
        Streams { pool, stored_len_bytes }
    }

    /// Runs until some chunks have been stored. Returns their bytes.
    pub fn step(&mut self) -> u64 {
        let Streams { pool, stored_len_bytes } = self;
        pool.run_until(std::future::poll_fn(|context| match stored_len_bytes.take() {
            0 => {
                context.waker().wake_by_ref();
                Poll::Pending
            }
            len_bytes => Poll::Ready(len_bytes),
        }))
    }
}

/// One stream that begins its input again at the end.
struct Stream {
    input: Rc<Input>,
    slice: usize,
    path: Rc<CorePath>,
    ports: Ports,
    queue: Rc<HashQueue>,
    receiver: Receiver,
    cutter: Cutter,
    in_flight: VecDeque<oneshot::Receiver<()>>,
    stored_len_bytes: Rc<Cell<u64>>,
}

impl Stream {
    /// Receives a slice and sends the chunks that end in it on their way.
    async fn take_slice(&mut self) {
        let mut chunks = Vec::new();
        let bytes = &self.input.bytes()[self.slice * SLICE_LEN_BYTES..];
        let cut = |filling: &[u8]| self.cutter.cut(self.input.chunker(), filling);
        self.receiver.take(&bytes[..bytes.len().min(SLICE_LEN_BYTES)], cut, |chunk| chunks.push(chunk));
        self.slice = if bytes.len() > SLICE_LEN_BYTES { self.slice + 1 } else { 0 };
        for chunk in chunks {
            self.launch(chunk).await;
        }
        self.ports.yield_now().await;
    }

    async fn launch(&mut self, plaintext: IoBuf) {
        while self.in_flight.len() >= CHUNKS_IN_FLIGHT_MAX
            && let Some(oldest) = self.in_flight.pop_front()
        {
            // Its task answers when it ends, and nothing ends it before.
            let _ = oldest.await;
        }
        let (sender, receiver) = oneshot::channel();
        let (path, queue, ports) = (self.path.clone(), self.queue.clone(), self.ports.clone());
        let stored_len_bytes = self.stored_len_bytes.clone();
        let task = async move {
            let (plaintext, chunk) = queue.chunk_id(&path.domain, plaintext).await;
            ports.yield_now().await;
            let len_bytes = plaintext.len() as u64;
            path.store(&chunk, plaintext);
            stored_len_bytes.set(stored_len_bytes.get() + len_bytes);
            let _ = sender.send(());
        };
        self.ports.spawn("store chunk", Box::pin(task));
        self.in_flight.push_back(receiver);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::input::Data;
    use kiseki_types::fragment::StripeShape;

    /// Once buffers have gone round, a chunk costs some ninety small allocations (its tasks, its fragments' descriptions), and none of
    /// the size of data: those would be zeroed, and given back to the system and taken anew, again and again.
    #[test]
    fn a_steady_stream_allocates_nothing_of_the_size_of_data() {
        let input = Rc::new(Input::new(Data::Random, 48 << 20, 11));
        let mut streams = Streams::begin(&input, CorePath::new(StripeShape { data: 4, parity: 2 }), 2);
        let mut run = |len_bytes: u64| {
            let mut stored = 0;
            while stored < len_bytes {
                stored += streams.step();
            }
            stored
        };
        run(96 << 20);
        let mut stored = 0;
        let counted = allocation_counter::measure(|| stored = run(96 << 20));
        let (count, bytes) = (counted.count_total, counted.bytes_total);
        println!("{} MiB stored: {count} allocations, {bytes} bytes", stored >> 20);
        assert!(count * (8 << 10) < stored, "over 128 for a chunk: {count} allocations for {stored} bytes");
        assert!(bytes * 64 < stored, "{bytes} bytes allocated for {stored} bytes");
    }
}
