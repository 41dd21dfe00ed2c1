//! MD5 of several streams side by side, one in each 32-bit lane of a vector.
//!
//! Every step of MD5 waits for the one before it, so a stream alone leaves most of the core idle and nothing inside it
//! can be done in parallel. Eight streams in the lanes of one vector cost about as much as one; two already cost
//! less than one after the other. MD5 protects nothing here: S3's ETags are made of it.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(test)]
mod tests;

/// Bytes of one compression block.
const BLOCK_LEN_BYTES: usize = 64;

/// Most streams that [`advance_many`] takes at once.
pub const LANES_MAX: usize = 8;

/// The state before the first block (RFC 1321, 3.3).
const INITIAL: [u32; 4] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];

#[cfg(target_arch = "x86_64")]
/// Constants of the 64 steps (RFC 1321, 3.4): the whole part of 2^32 |sin i|, i from 1.
static STEP_CONSTANTS: [u32; 64] = [
    0xd76a_a478,
    0xe8c7_b756,
    0x2420_70db,
    0xc1bd_ceee,
    0xf57c_0faf,
    0x4787_c62a,
    0xa830_4613,
    0xfd46_9501,
    0x6980_98d8,
    0x8b44_f7af,
    0xffff_5bb1,
    0x895c_d7be,
    0x6b90_1122,
    0xfd98_7193,
    0xa679_438e,
    0x49b4_0821,
    0xf61e_2562,
    0xc040_b340,
    0x265e_5a51,
    0xe9b6_c7aa,
    0xd62f_105d,
    0x0244_1453,
    0xd8a1_e681,
    0xe7d3_fbc8,
    0x21e1_cde6,
    0xc337_07d6,
    0xf4d5_0d87,
    0x455a_14ed,
    0xa9e3_e905,
    0xfcef_a3f8,
    0x676f_02d9,
    0x8d2a_4c8a,
    0xfffa_3942,
    0x8771_f681,
    0x6d9d_6122,
    0xfde5_380c,
    0xa4be_ea44,
    0x4bde_cfa9,
    0xf6bb_4b60,
    0xbebf_bc70,
    0x289b_7ec6,
    0xeaa1_27fa,
    0xd4ef_3085,
    0x0488_1d05,
    0xd9d4_d039,
    0xe6db_99e5,
    0x1fa2_7cf8,
    0xc4ac_5665,
    0xf429_2244,
    0x432a_ff97,
    0xab94_23a7,
    0xfc93_a039,
    0x655b_59c3,
    0x8f0c_cc92,
    0xffef_f47d,
    0x8584_5dd1,
    0x6fa8_7e4f,
    0xfe2c_e6e0,
    0xa301_4314,
    0x4e08_11a1,
    0xf753_7e82,
    0xbd3a_f235,
    0x2ad7_d2bb,
    0xeb86_d391,
];

/// How blocks of several streams are compressed. The order is from slow to fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kernel {
    /// The `md-5` crate, one stream after the other.
    Plain,
    /// Eight lanes of AVX2.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// The same lanes, with the functions of MD5 and its rotations as one instruction each.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// A stream's state and the whole blocks that go into it.
type Task<'a> = (&'a mut [u32; 4], &'a [[u8; BLOCK_LEN_BYTES]]);

impl Kernel {
    /// Every kernel that this processor can run, slowest first.
    #[must_use]
    pub fn runnable() -> Vec<Kernel> {
        #[allow(unused_mut)] // other architectures have the plain kernel only
        let mut kernels = vec![Kernel::Plain];
        #[cfg(target_arch = "x86_64")]
        if avx2::runs_here() {
            kernels.push(Kernel::Avx2);
        }
        #[cfg(target_arch = "x86_64")]
        if avx512::runs_here() {
            kernels.push(Kernel::Avx512);
        }
        kernels
    }

    /// The fastest kernel; asked on each call, because detection is one cached load.
    fn fastest() -> Kernel {
        #[cfg(target_arch = "x86_64")]
        if avx512::runs_here() {
            return Kernel::Avx512;
        }
        #[cfg(target_arch = "x86_64")]
        if avx2::runs_here() {
            return Kernel::Avx2;
        }
        Kernel::Plain
    }

    /// Compresses up to [`LANES_MAX`] streams by the same number of blocks each.
    fn compress(self, tasks: &mut [Task<'_>]) {
        match self {
            // The lanes are a little slower than the plain kernel for one stream, and the faster the more there are.
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 if tasks.len() > 1 => avx2::compress(tasks),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx512 if tasks.len() > 1 => avx512::compress(tasks),
            _ => tasks.iter_mut().for_each(|(state, blocks)| md5::block_api::compress(state, blocks)),
        }
    }
}

/// How far the hashing of one message has come. The message comes in slices of any length.
#[derive(Clone)]
pub struct Stream {
    state: [u32; 4],
    len_bytes: u64,
    /// The first `len_bytes % BLOCK_LEN_BYTES` bytes are the begin of a block whose end has not come yet.
    begun: [u8; BLOCK_LEN_BYTES],
}

impl Stream {
    /// Nothing absorbed yet.
    #[must_use]
    pub fn begin() -> Stream {
        Stream { state: INITIAL, len_bytes: 0, begun: [0; BLOCK_LEN_BYTES] }
    }

    /// Bytes of the block that is begun.
    fn begun_len_bytes(&self) -> usize {
        (self.len_bytes % BLOCK_LEN_BYTES as u64) as usize
    }

    /// Absorbs a slice, alone.
    pub fn absorb(&mut self, data: &[u8]) {
        let mut lane = Lane { stream: self, data };
        lane.fill_begun();
        let (state, blocks) = lane.take(lane.data.len() / BLOCK_LEN_BYTES);
        md5::block_api::compress(state, blocks);
        lane.fill_begun();
    }

    /// The digest.
    #[must_use]
    pub fn finish(mut self) -> [u8; 16] {
        let len_bits = self.len_bytes.wrapping_mul(8);
        let begun = self.begun_len_bytes();
        let mut tail = [0; 2 * BLOCK_LEN_BYTES];
        tail[..begun].copy_from_slice(&self.begun[..begun]);
        tail[begun] = 0x80;
        let end = (begun + 9).next_multiple_of(BLOCK_LEN_BYTES);
        tail[end - 8..end].copy_from_slice(&len_bits.to_le_bytes());
        md5::block_api::compress(&mut self.state, tail[..end].as_chunks().0);
        let mut digest = [0; 16];
        for (bytes, word) in digest.as_chunks_mut::<4>().0.iter_mut().zip(self.state) {
            *bytes = word.to_le_bytes();
        }
        digest
    }
}

/// A stream and what it is to absorb next; what was absorbed is gone from `data`.
pub struct Lane<'a> {
    /// The stream.
    pub stream: &'a mut Stream,
    /// Its next bytes.
    pub data: &'a [u8],
}

impl<'a> Lane<'a> {
    /// Brings the stream to a block's begin when there is enough data for that, and else absorbs the little there is.
    fn fill_begun(&mut self) {
        let begun = self.stream.begun_len_bytes();
        if begun == 0 && self.data.len() >= BLOCK_LEN_BYTES {
            return;
        }
        let (now, later) = self.data.split_at(self.data.len().min(BLOCK_LEN_BYTES - begun));
        self.stream.begun[begun..begun + now.len()].copy_from_slice(now);
        self.stream.len_bytes += now.len() as u64;
        self.data = later;
        if begun + now.len() == BLOCK_LEN_BYTES {
            md5::block_api::compress(&mut self.stream.state, &[self.stream.begun]);
        }
    }

    /// The state and the next `blocks` blocks, which count as absorbed. The stream is at a block's begin.
    fn take(&mut self, blocks: usize) -> (&mut [u32; 4], &'a [[u8; BLOCK_LEN_BYTES]]) {
        let (now, later) = self.data.split_at(blocks * BLOCK_LEN_BYTES);
        self.stream.len_bytes += now.len() as u64;
        self.data = later;
        (&mut self.stream.state, now.as_chunks().0)
    }
}

/// Absorbs of each lane as many bytes as the shortest has, about `len_bytes` at most. Afterwards at least one lane is
/// empty, or that much was absorbed. Up to eight cost little more than one. Empty lanes are no hindrance. Returns how
/// many bytes of whole blocks each busy lane moved on.
///
/// Panics for more than [`LANES_MAX`] lanes.
pub fn advance_many(lanes: &mut [Lane<'_>], len_bytes: usize) -> usize {
    advance_many_with(Kernel::fastest(), lanes, len_bytes)
}

/// [`advance_many`] with a kernel of the caller's choice (tests and benches).
pub fn advance_many_with(kernel: Kernel, lanes: &mut [Lane<'_>], len_bytes: usize) -> usize {
    assert!(lanes.len() <= LANES_MAX, "{} lanes", lanes.len());
    lanes.iter_mut().for_each(Lane::fill_begun);
    let ready = |lane: &Lane<'_>| lane.data.len() / BLOCK_LEN_BYTES;
    let shortest = lanes.iter().map(ready).filter(|blocks| *blocks > 0).min().unwrap_or(0);
    let blocks = shortest.min(len_bytes.div_ceil(BLOCK_LEN_BYTES));
    if blocks > 0 {
        let busy = lanes.iter_mut().filter(|lane| ready(lane) > 0);
        let mut tasks: Vec<Task<'_>> = busy.map(|lane| lane.take(blocks)).collect();
        kernel.compress(&mut tasks);
    }
    lanes.iter_mut().for_each(Lane::fill_begun);
    blocks * BLOCK_LEN_BYTES
}
