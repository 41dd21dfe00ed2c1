//! SHA-256 and HMAC-SHA256 over many messages side by side: in two interleaved streams of the SHA unit, or in the lanes of
//! AVX-512 vectors, whichever is faster here for as many messages as there are.
//!
//! One stream of SHA-NI waits for its own results half of the time; a second stream fills the gaps. So messages come
//! in batches, and a lane that ends its message takes the next one while the other lanes go on.

#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod constants;
mod many;
#[cfg(target_arch = "x86_64")]
mod sha_ni;
mod stream;
#[cfg(test)]
mod tests;

pub use stream::{Stream, advance_many};

use many::{Lane, run_many, run_one};
#[cfg(target_arch = "x86_64")]
use std::sync::LazyLock;
use zeroize::Zeroize;

/// Bytes of one compression block.
const BLOCK_LEN_BYTES: usize = 64;

/// The state before the first block (FIPS 180-4, 5.3.3).
const INITIAL: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// How blocks are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kernel {
    /// The `sha2` crate, one stream (it may use SHA-NI by itself).
    Plain,
    /// Two interleaved streams of SHA-NI.
    #[cfg(target_arch = "x86_64")]
    ShaNi,
    /// Eight or sixteen streams in the lanes of AVX-512 vectors; fewer go as they would without it.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// Messages that fill enough of sixteen lanes, and of eight: with fewer, two streams of a slow SHA unit are faster (2.85, 2.3
/// and 1.6 GB/s were measured with all lanes busy).
#[cfg(target_arch = "x86_64")]
const WIDE_FROM: usize = 12;
#[cfg(target_arch = "x86_64")]
const HALF_FROM: usize = 6;

/// The kernel of this processor: asked once, because the vendor's name costs a trap in a virtual machine.
#[cfg(target_arch = "x86_64")]
static CHOSEN: LazyLock<Kernel> = LazyLock::new(|| match (sha_ni::runs_here(), avx512::runs_here()) {
    // Two streams of the SHA unit run at 3.6 GB/s on AMD's cores, more than vectors do, and at 1.6 on Intel's.
    (true, true) if !vendor_is_intel() => Kernel::ShaNi,
    (_, true) => Kernel::Avx512,
    (true, false) => Kernel::ShaNi,
    (false, false) => Kernel::Plain,
});

#[cfg(target_arch = "x86_64")]
fn vendor_is_intel() -> bool {
    let leaf = std::arch::x86_64::__cpuid(0);
    let name = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes);
    name.as_flattened() == b"GenuineIntel"
}

impl Kernel {
    /// Every kernel that this processor can run.
    #[must_use]
    pub fn runnable() -> Vec<Kernel> {
        #[allow(unused_mut)] // other architectures have the plain kernel only
        let mut kernels = vec![Kernel::Plain];
        #[cfg(target_arch = "x86_64")]
        {
            kernels.extend(sha_ni::runs_here().then_some(Kernel::ShaNi));
            kernels.extend(avx512::runs_here().then_some(Kernel::Avx512));
        }
        kernels
    }

    /// The kernel that is used here: the fastest when there are many messages.
    #[must_use]
    pub fn chosen() -> Kernel {
        #[cfg(target_arch = "x86_64")]
        return *CHOSEN;
        #[cfg(not(target_arch = "x86_64"))]
        Kernel::Plain
    }

    /// How many of `ready` messages are best compressed together.
    fn lanes_for(self, ready: usize) -> usize {
        match self {
            Kernel::Plain => ready.min(1),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx512 if ready >= WIDE_FROM => ready.min(avx512::LANES),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx512 if ready >= HALF_FROM => ready.min(avx512::LANES_HALF),
            #[cfg(target_arch = "x86_64")]
            Kernel::ShaNi | Kernel::Avx512 => ready.min(2),
        }
    }

    /// Compresses the whole blocks of `data` into `state`.
    fn compress(self, state: &mut [u32; 8], data: &[u8]) {
        #[cfg(target_arch = "x86_64")]
        if self != Kernel::Plain && sha_ni::runs_here() {
            return sha_ni::compress([state], [data]);
        }
        let (blocks, rest) = data.as_chunks::<BLOCK_LEN_BYTES>();
        debug_assert!(rest.is_empty(), "only whole blocks are compressed");
        sha2::block_api::compress256(state, blocks);
    }

    /// Compresses messages that [`Kernel::lanes_for`] puts together, each by the same number of blocks.
    fn compress_together<'a>(self, streams: &mut [(&'a mut [u32; 8], &'a [u8])]) {
        #[cfg(target_arch = "x86_64")]
        match (self, &mut *streams) {
            (Kernel::ShaNi | Kernel::Avx512, [(state_a, data_a), (state_b, data_b)]) if sha_ni::runs_here() => {
                return sha_ni::compress([state_a, state_b], [data_a, data_b]);
            }
            (Kernel::Avx512, many) if many.len() >= HALF_FROM => return avx512::compress(many),
            _ => {}
        }
        streams.iter_mut().for_each(|(state, data)| self.compress(state, data));
    }
}

/// How many of `ready` messages [`advance_many`] is best called with: one, two, or as many as fill the lanes of a vector.
#[must_use]
pub fn lanes_for(ready: usize) -> usize {
    Kernel::chosen().lanes_for(ready)
}

/// SHA-256 of one message, one stream.
#[must_use]
pub fn sha256(data: &[u8]) -> [u8; 32] {
    sha256_with(Kernel::chosen(), data)
}

/// SHA-256 of each message, in the order given; the lanes stay busy as long as there are messages.
///
/// The call is synchronous: 0.3 s per GiB. An executor's caller bounds the bytes of one batch.
#[must_use]
pub fn sha256_many(messages: &[&[u8]]) -> Vec<[u8; 32]> {
    sha256_many_with(Kernel::chosen(), messages)
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
            Kernel::chosen().compress(&mut state, &block);
            block.zeroize();
            state
        };
        HmacSha256Key { inner: absorb(0x36), outer: absorb(0x5c) }
    }

    /// The MAC of one message, one stream.
    #[must_use]
    pub fn mac(&self, data: &[u8]) -> [u8; 32] {
        let kernel = Kernel::chosen();
        let inner = run_one(kernel, Lane::new(0, &self.inner, BLOCK_LEN_BYTES, data));
        run_one(kernel, Lane::new(0, &self.outer, BLOCK_LEN_BYTES, &inner))
    }

    /// The MAC of each message, in the order given, as [`sha256_many`] hashes them.
    #[must_use]
    pub fn mac_many(&self, messages: &[&[u8]]) -> Vec<[u8; 32]> {
        let kernel = Kernel::chosen();
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
