//! Hashing messages in slices, alone or beside each other, so that an executor's task never holds its core for long
//! and a message that comes later can still join those that are under way.

use super::{BLOCK_LEN_BYTES, HmacSha256Key, INITIAL, Kernel, Lane, run_one};

/// How far the hashing of one message has come. The message itself stays with the caller, who passes the same one each
/// time.
pub struct Stream {
    state: [u32; 8],
    /// Bytes absorbed before the message.
    prefix_len_bytes: usize,
    /// Bytes of the message absorbed so far, whole blocks.
    taken_len_bytes: usize,
}

impl Stream {
    /// SHA-256 of a message.
    #[must_use]
    pub fn sha256() -> Stream {
        Stream { state: INITIAL, prefix_len_bytes: 0, taken_len_bytes: 0 }
    }

    /// Whole blocks of the message that are still to be absorbed.
    fn blocks_left(&self, message: &[u8]) -> usize {
        (message.len() - self.taken_len_bytes) / BLOCK_LEN_BYTES
    }

    /// Whether only [`Stream::finish`] is left to do.
    #[must_use]
    pub fn is_absorbed(&self, message: &[u8]) -> bool {
        self.blocks_left(message) == 0
    }

    fn take<'a>(&mut self, message: &'a [u8], blocks: usize) -> (&mut [u32; 8], &'a [u8]) {
        let start = self.taken_len_bytes;
        self.taken_len_bytes += blocks * BLOCK_LEN_BYTES;
        (&mut self.state, &message[start..self.taken_len_bytes])
    }

    /// Absorbs up to `len_bytes` more.
    pub fn advance(&mut self, message: &[u8], len_bytes: usize) {
        let blocks = self.blocks_left(message).min(len_bytes / BLOCK_LEN_BYTES);
        let (state, data) = self.take(message, blocks);
        Kernel::chosen().compress(state, data);
    }

    /// The digest.
    #[must_use]
    pub fn finish(mut self, message: &[u8]) -> [u8; 32] {
        self.advance(message, message.len());
        let absorbed = self.prefix_len_bytes + self.taken_len_bytes;
        run_one(Kernel::chosen(), Lane::new(0, &self.state, absorbed, &message[self.taken_len_bytes..]))
    }
}

/// Absorbs the same number of bytes of each message, up to `len_bytes`; [`super::lanes_for`] tells how many messages are
/// best given together. Fewer cost no less than that many, and more run in groups of that many, one after the other.
pub fn advance_many(messages: &mut [(&mut Stream, &[u8])], len_bytes: usize) {
    advance_many_with(Kernel::chosen(), messages, len_bytes);
}

pub(super) fn advance_many_with(kernel: Kernel, messages: &mut [(&mut Stream, &[u8])], len_bytes: usize) {
    let left = messages.iter().map(|(stream, message)| stream.blocks_left(message)).min().unwrap_or(0);
    let blocks = left.min(len_bytes / BLOCK_LEN_BYTES);
    let mut streams: Vec<_> = messages.iter_mut().map(|(stream, message)| stream.take(message, blocks)).collect();
    let mut rest = &mut streams[..];
    while !rest.is_empty() {
        let (together, later) = rest.split_at_mut(kernel.lanes_for(rest.len()));
        kernel.compress_together(together);
        rest = later;
    }
}

impl HmacSha256Key {
    /// Begins the MAC of a message that comes in slices; [`HmacSha256Key::finish`] ends it.
    #[must_use]
    pub fn begin(&self) -> Stream {
        Stream { state: self.inner, prefix_len_bytes: BLOCK_LEN_BYTES, taken_len_bytes: 0 }
    }

    /// The MAC.
    #[must_use]
    pub fn finish(&self, stream: Stream, message: &[u8]) -> [u8; 32] {
        let inner = stream.finish(message);
        run_one(Kernel::chosen(), Lane::new(0, &self.outer, BLOCK_LEN_BYTES, &inner))
    }
}
