//! SHA-256 and HMAC-SHA256 over many messages, two interleaved streams at a time.
//!
//! One stream of SHA-NI waits for its own results half of the time; a second stream fills the gaps. So messages come
//! in batches, and a lane that ends its message takes the next one while the other lane goes on.

#[cfg(target_arch = "x86_64")]
mod sha_ni;
mod stream;
#[cfg(test)]
mod tests;

pub use stream::{Stream, advance_pair};

use zeroize::Zeroize;

/// Bytes of one compression block.
const BLOCK_LEN_BYTES: usize = 64;

/// The state before the first block (FIPS 180-4, 5.3.3).
const INITIAL: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// How blocks are compressed. The order is from slow to fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kernel {
    /// The `sha2` crate, one stream (it may use SHA-NI by itself).
    Plain,
    /// Two interleaved streams of SHA-NI.
    #[cfg(target_arch = "x86_64")]
    ShaNi,
}

impl Kernel {
    /// Every kernel that this processor can run, slowest first.
    #[must_use]
    pub fn runnable() -> Vec<Kernel> {
        #[allow(unused_mut)] // other architectures have the plain kernel only
        let mut kernels = vec![Kernel::Plain];
        #[cfg(target_arch = "x86_64")]
        if sha_ni::runs_here() {
            kernels.push(Kernel::ShaNi);
        }
        kernels
    }

    /// The fastest kernel; asked on each call, because detection is one cached load.
    fn fastest() -> Kernel {
        #[cfg(target_arch = "x86_64")]
        if sha_ni::runs_here() {
            return Kernel::ShaNi;
        }
        Kernel::Plain
    }

    /// Compresses the whole blocks of `data` into `state`.
    fn compress(self, state: &mut [u32; 8], data: &[u8]) {
        match self {
            Kernel::Plain => {
                let (blocks, rest) = data.as_chunks::<BLOCK_LEN_BYTES>();
                debug_assert!(rest.is_empty(), "only whole blocks are compressed");
                sha2::block_api::compress256(state, blocks);
            }
            #[cfg(target_arch = "x86_64")]
            Kernel::ShaNi => sha_ni::compress([state], [data]),
        }
    }

    /// Compresses two streams of the same number of blocks.
    fn compress_pair(self, states: [&mut [u32; 8]; 2], data: [&[u8]; 2]) {
        match self {
            Kernel::Plain => {
                for (state, data) in states.into_iter().zip(data) {
                    self.compress(state, data);
                }
            }
            #[cfg(target_arch = "x86_64")]
            Kernel::ShaNi => sha_ni::compress(states, data),
        }
    }
}

/// SHA-256 of one message, one stream.
#[must_use]
pub fn sha256(data: &[u8]) -> [u8; 32] {
    sha256_with(Kernel::fastest(), data)
}

/// SHA-256 of two messages at the price of the longer one.
#[must_use]
pub fn sha256_pair(a: &[u8], b: &[u8]) -> ([u8; 32], [u8; 32]) {
    let [a, b] = run_two(Kernel::fastest(), Lane::new(0, &INITIAL, 0, a), Lane::new(1, &INITIAL, 0, b));
    (a, b)
}

/// SHA-256 of each message, in the order given; both lanes stay busy until the last message.
///
/// The call is synchronous: 0.3 s per GiB. An executor's caller bounds the bytes of one batch.
#[must_use]
pub fn sha256_many(messages: &[&[u8]]) -> Vec<[u8; 32]> {
    sha256_many_with(Kernel::fastest(), messages)
}

/// [`sha256_many`] with a kernel of the caller's choice (tests and benches).
#[must_use]
pub fn sha256_many_with(kernel: Kernel, messages: &[&[u8]]) -> Vec<[u8; 32]> {
    run_many(kernel, &INITIAL, 0, messages)
}

/// [`sha256`] with a kernel of the caller's choice (tests and benches).
#[must_use]
pub fn sha256_with(kernel: Kernel, data: &[u8]) -> [u8; 32] {
    run_one(kernel, Lane::new(0, &INITIAL, 0, data))
}

/// A key of HMAC-SHA256, absorbed once: the two states behind the padded key. Zeroed on drop.
pub struct HmacSha256Key {
    inner: [u32; 8],
    outer: [u32; 8],
}

impl HmacSha256Key {
    /// Absorbs a 256-bit key (RFC 2104; a key of this length is never hashed first).
    #[must_use]
    pub fn new(key: &[u8; 32]) -> HmacSha256Key {
        let absorb = |pad: u8| {
            let mut block = [pad; BLOCK_LEN_BYTES];
            block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
            let mut state = INITIAL;
            Kernel::fastest().compress(&mut state, &block);
            block.zeroize();
            state
        };
        HmacSha256Key { inner: absorb(0x36), outer: absorb(0x5c) }
    }

    /// The MAC of one message, one stream.
    #[must_use]
    pub fn mac(&self, data: &[u8]) -> [u8; 32] {
        let kernel = Kernel::fastest();
        let inner = run_one(kernel, Lane::new(0, &self.inner, BLOCK_LEN_BYTES, data));
        run_one(kernel, Lane::new(0, &self.outer, BLOCK_LEN_BYTES, &inner))
    }

    /// The MAC of each message, in the order given, two streams at a time.
    #[must_use]
    pub fn mac_many(&self, messages: &[&[u8]]) -> Vec<[u8; 32]> {
        let kernel = Kernel::fastest();
        let inner = run_many(kernel, &self.inner, BLOCK_LEN_BYTES, messages);
        let inner: Vec<&[u8]> = inner.iter().map(<[u8; 32]>::as_slice).collect();
        run_many(kernel, &self.outer, BLOCK_LEN_BYTES, &inner)
    }
}

impl Drop for HmacSha256Key {
    fn drop(&mut self) {
        self.inner.zeroize();
        self.outer.zeroize();
    }
}

/// One message on its way: whole blocks of it first, then one or two blocks of padding.
struct Lane<'a> {
    index: usize,
    state: [u32; 8],
    body: &'a [u8],
    tail: [u8; 2 * BLOCK_LEN_BYTES],
    tail_at: usize,
    tail_end: usize,
}

impl<'a> Lane<'a> {
    /// `prefix_len_bytes`: bytes that `state` has already absorbed.
    fn new(index: usize, state: &[u32; 8], prefix_len_bytes: usize, data: &'a [u8]) -> Lane<'a> {
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

/// Compresses both lanes by as many blocks as both have ready.
fn step_pair(kernel: Kernel, a: &mut Lane<'_>, b: &mut Lane<'_>) {
    let blocks = a.ready_blocks().min(b.ready_blocks());
    let ((state_a, data_a), (state_b, data_b)) = (a.take(blocks), b.take(blocks));
    kernel.compress_pair([state_a, state_b], [data_a, data_b]);
}

/// Runs one lane to its end.
fn run_one(kernel: Kernel, mut lane: Lane<'_>) -> [u8; 32] {
    while lane.ready_blocks() > 0 {
        let (state, data) = lane.take(lane.ready_blocks());
        kernel.compress(state, data);
    }
    lane.digest()
}

/// Runs two lanes to their ends.
fn run_two(kernel: Kernel, mut a: Lane<'_>, mut b: Lane<'_>) -> [[u8; 32]; 2] {
    while a.ready_blocks() > 0 && b.ready_blocks() > 0 {
        step_pair(kernel, &mut a, &mut b);
    }
    [run_one(kernel, a), run_one(kernel, b)]
}

/// Runs all messages from the same starting state, two lanes at a time.
fn run_many(kernel: Kernel, state: &[u32; 8], prefix_len_bytes: usize, messages: &[&[u8]]) -> Vec<[u8; 32]> {
    let mut digests = vec![[0; 32]; messages.len()];
    let mut waiting = messages.iter().enumerate().map(|(index, data)| Lane::new(index, state, prefix_len_bytes, data));
    let mut lanes = (waiting.next(), waiting.next());
    while let (Some(a), Some(b)) = (&mut lanes.0, &mut lanes.1) {
        step_pair(kernel, a, b);
        for lane in [&mut lanes.0, &mut lanes.1] {
            if let Some(done) = lane.take_if(|lane| lane.ready_blocks() == 0) {
                digests[done.index] = done.digest();
                *lane = waiting.next();
            }
        }
    }
    for lane in [lanes.0, lanes.1].into_iter().flatten() {
        let index = lane.index;
        digests[index] = run_one(kernel, lane);
    }
    digests
}
