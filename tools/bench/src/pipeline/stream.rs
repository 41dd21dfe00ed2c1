//! A stream being stored, as the server stores it: slices are copied and cut, and up to four chunks at a time are on their
//! way through the hash lanes, sealing and encoding, each in a task of its own.

use super::input::Input;
use super::path::{CorePath, Receiver, SLICE_LEN_BYTES};
use super::ports::ThreadPorts;
use futures::channel::oneshot;
use kiseki_engine::chunker::Cutter;
use kiseki_engine::hash_queue::HashQueue;
use kiseki_types::buf::IoBuf;
use kiseki_types::runtime::Ports;
use std::collections::VecDeque;
use std::rc::Rc;

/// Chunks of a stream between cut and durable, as in `engine::writer`.
const CHUNKS_IN_FLIGHT_MAX: usize = 4;

/// One stream that begins its input again at the end.
pub struct Stream<'a> {
    input: &'a Input,
    slices: Vec<&'a [u8]>,
    slice: usize,
    path: Rc<CorePath>,
    ports: Ports,
    queue: Rc<HashQueue>,
    receiver: Receiver,
    cutter: Cutter,
    in_flight: VecDeque<oneshot::Receiver<()>>,
}

impl<'a> Stream<'a> {
    /// At the begin of the input.
    pub fn new(input: &'a Input, path: CorePath) -> Stream<'a> {
        let ports: Ports = Rc::new(ThreadPorts::new());
        Stream {
            input,
            slices: input.bytes().chunks(SLICE_LEN_BYTES).collect(),
            slice: 0,
            receiver: Receiver::new(path.shape, input.chunker().format().len_bytes_max as usize),
            path: Rc::new(path),
            queue: HashQueue::new(ports.clone()),
            ports,
            cutter: Cutter::new(),
            in_flight: VecDeque::new(),
        }
    }

    /// Receives until a chunk has been sent on its way. Returns the bytes received.
    pub async fn step(&mut self) -> u64 {
        let mut len_bytes = 0;
        let mut launched = false;
        while !launched {
            let bytes = self.slices[self.slice];
            self.slice = (self.slice + 1) % self.slices.len();
            len_bytes += bytes.len() as u64;
            let mut chunks = Vec::new();
            let cut = |filling: &[u8]| self.cutter.cut(self.input.chunker(), filling);
            self.receiver.take(bytes, cut, |chunk| chunks.push(chunk));
            for chunk in chunks {
                self.launch(chunk).await;
                launched = true;
            }
            self.ports.yield_now().await;
        }
        len_bytes
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
        let task = async move {
            let (plaintext, chunk) = queue.chunk_id(&path.domain, plaintext).await;
            ports.yield_now().await;
            path.store(&chunk, plaintext);
            let _ = sender.send(());
        };
        self.ports.spawn("store chunk", Box::pin(task));
        self.in_flight.push_back(receiver);
    }
}
