//! Messages that are all there, run to their digests.

use super::{BLOCK_LEN_BYTES, Kernel};

/// One message on its way: whole blocks of it first, then one or two blocks of padding.
pub(super) struct Lane<'a> {
    index: usize,
    state: [u32; 8],
    body: &'a [u8],
    tail: [u8; 2 * BLOCK_LEN_BYTES],
    tail_at: usize,
    tail_end: usize,
}

impl<'a> Lane<'a> {
    /// `prefix_len_bytes`: bytes that `state` has already absorbed.
    pub(super) fn new(index: usize, state: &[u32; 8], prefix_len_bytes: usize, data: &'a [u8]) -> Lane<'a> {
        let (body, rest) = data.split_at(data.len() - data.len() % BLOCK_LEN_BYTES);
        let mut tail = [0; 2 * BLOCK_LEN_BYTES];
        tail[..rest.len()].copy_from_slice(rest);
        tail[rest.len()] = 0x80;
        let tail_end = (rest.len() + 9).next_multiple_of(BLOCK_LEN_BYTES);
        let len_bits = (prefix_len_bytes as u64 + data.len() as u64) * 8;
        tail[tail_end - 8..tail_end].copy_from_slice(&len_bits.to_be_bytes());
        Lane { index, state: *state, body, tail, tail_at: 0, tail_end }
    }

    /// Blocks that can be compressed in one call.
    fn ready_blocks(&self) -> usize {
        match self.body.len() {
            0 => (self.tail_end - self.tail_at) / BLOCK_LEN_BYTES,
            len => len / BLOCK_LEN_BYTES,
        }
    }

    /// The state, and the next `blocks` blocks, which count as taken.
    fn take(&mut self, blocks: usize) -> (&mut [u32; 8], &[u8]) {
        let len = blocks * BLOCK_LEN_BYTES;
        if self.body.is_empty() {
            self.tail_at += len;
            return (&mut self.state, &self.tail[self.tail_at - len..self.tail_at]);
        }
        let (taken, body) = self.body.split_at(len);
        self.body = body;
        (&mut self.state, taken)
    }

    /// The digest, once no block is left.
    fn digest(&self) -> [u8; 32] {
        let mut digest = [0; 32];
        for (bytes, word) in digest.as_chunks_mut::<4>().0.iter_mut().zip(self.state) {
            *bytes = word.to_be_bytes();
        }
        digest
    }
}

/// Compresses all lanes by as many blocks as every one of them has ready.
fn step(kernel: Kernel, lanes: &mut [Lane<'_>]) {
    let blocks = lanes.iter().map(Lane::ready_blocks).min().unwrap_or(0);
    let mut streams: Vec<(&mut [u32; 8], &[u8])> = lanes.iter_mut().map(|lane| lane.take(blocks)).collect();
    kernel.compress_together(&mut streams);
}

/// Runs one lane to its end.
pub(super) fn run_one(kernel: Kernel, mut lane: Lane<'_>) -> [u8; 32] {
    while lane.ready_blocks() > 0 {
        let (state, data) = lane.take(lane.ready_blocks());
        kernel.compress(state, data);
    }
    lane.digest()
}

/// Runs all messages from the same starting state, as many at a time as are fastest together.
pub(super) fn run_many(kernel: Kernel, state: &[u32; 8], prefix_len_bytes: usize, messages: &[&[u8]]) -> Vec<[u8; 32]> {
    let mut digests = vec![[0; 32]; messages.len()];
    let mut waiting = messages.iter().enumerate().map(|(index, data)| Lane::new(index, state, prefix_len_bytes, data));
    let mut lanes: Vec<Lane<'_>> = Vec::new();
    loop {
        lanes.extend(waiting.by_ref().take(kernel.lanes_for(usize::MAX) - lanes.len()));
        if lanes.is_empty() {
            return digests;
        }
        let together = kernel.lanes_for(lanes.len());
        step(kernel, &mut lanes[..together]);
        lanes.retain(|lane| {
            let is_done = lane.ready_blocks() == 0;
            if is_done {
                digests[lane.index] = lane.digest();
            }
            !is_done
        });
    }
}
