//! Where chunks end: content-defined cuts by a Rabin fingerprint (docs/formats/chunking.md).
//!
//! A cut depends only on the bytes of its own chunk, never on how they arrived, so equal content gives equal chunks.

#[cfg(test)]
mod tests;

use kiseki_kernels::rabin::{Kernel, Rabin, WINDOW_LEN_BYTES};
use kiseki_types::codec::{CodecError, Reader, Writer};
use kiseki_types::limits::CHUNK_LEN_BYTES_MAX;
use thiserror::Error;

/// The polynomial of new namespaces: irreducible, of degree 32.
pub const POLYNOMIAL_DEFAULT: u64 = 0x1_D306_EACF;

/// What fingerprints are compared against in new namespaces; far above any threshold, so that runs of one byte value
/// are cut at the maximum only.
pub const KEY_DEFAULT: u32 = 0xA5C3_E719;

/// First byte of an encoded format. A new version is a new way to cut, never an edit of this one.
const VERSION: u8 = 1;

/// How a namespace cuts its chunks; stored when it is made, never changed, never computed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkFormat {
    /// P: bit i is the coefficient of x^i; irreducible, of degree 32.
    pub polynomial: u64,
    /// K: what fingerprints are XORed with before the comparison.
    pub key: u32,
    /// T: a fingerprint F asks for a cut when (F XOR K) < T.
    pub threshold: u32,
    /// Fewest bytes of a chunk that is not the last, at least 64.
    pub len_bytes_min: u32,
    /// Bytes of a chunk in the mean, over random content; T follows from it.
    pub len_bytes_avg: u32,
    /// Most bytes of a chunk, at most [`CHUNK_LEN_BYTES_MAX`].
    pub len_bytes_max: u32,
}

/// Why a chunk format is refused.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChunkFormatError {
    /// Lengths out of order or out of limits.
    #[error(
        "chunk lengths {min}/{avg}/{max}: needed {WINDOW_LEN_BYTES} <= minimum < average < maximum <= {CHUNK_LEN_BYTES_MAX}"
    )]
    Lengths {
        /// The minimum asked for.
        min: u32,
        /// The average asked for.
        avg: u32,
        /// The maximum asked for.
        max: u32,
    },
    /// No threshold gives that average: it is too near to the maximum.
    #[error("no threshold gives chunks of {avg} bytes in the mean, between {min} and {max}")]
    Average {
        /// The minimum asked for.
        min: u32,
        /// The average asked for.
        avg: u32,
        /// The maximum asked for.
        max: u32,
    },
    /// The polynomial would let parts of the window cancel out.
    #[error("chunking polynomial {polynomial:#x} is not irreducible of degree 32")]
    Polynomial {
        /// The polynomial.
        polynomial: u64,
    },
    /// T = 0 never cuts; K < T cuts at every zero window.
    #[error("chunking threshold {threshold} and key {key:#x}: needed 0 < threshold <= key")]
    Threshold {
        /// T.
        threshold: u32,
        /// K.
        key: u32,
    },
    /// A run of one byte value would be cut into chunks of the minimum length.
    #[error("chunking key {key:#x} cuts at every window of byte {byte:#04x}")]
    ConstantWindow {
        /// K.
        key: u32,
        /// The byte.
        byte: u8,
    },
}

impl Default for ChunkFormat {
    /// 256 KiB, 1 MiB and 4 MiB.
    fn default() -> ChunkFormat {
        ChunkFormat {
            polynomial: POLYNOMIAL_DEFAULT,
            key: KEY_DEFAULT,
            threshold: 5423,
            len_bytes_min: 256 << 10,
            len_bytes_avg: 1 << 20,
            len_bytes_max: 4 << 20,
        }
    }
}

impl ChunkFormat {
    /// A format for a new namespace with the default P and K; T is solved from the lengths, once and for all.
    ///
    /// The mean distance mu between hits solves `mu * (1 - exp(-(max - min) / mu)) = avg - min`, and T = 2^32 / mu.
    /// Floats may differ in the last digit between machines; that is why T is stored and never solved again.
    pub fn with_lengths(min: u32, avg: u32, max: u32) -> Result<ChunkFormat, ChunkFormatError> {
        let format = ChunkFormat { len_bytes_min: min, len_bytes_avg: avg, len_bytes_max: max, ..Default::default() };
        format.check_lengths()?;
        let (wanted, room) = (f64::from(avg - min), f64::from(max - min));
        let mean = |mu: f64| -mu * (-room / mu).exp_m1();
        // The mean grows with mu towards `room`; bisection, from "every byte" to "once in 2^32".
        let (mut low, mut high) = (1.0, 2f64.powi(32));
        if mean(high) < wanted {
            return Err(ChunkFormatError::Average { min, avg, max });
        }
        for _ in 0..200 {
            let middle = (low + high) / 2.0;
            if mean(middle) < wanted { low = middle } else { high = middle }
        }
        let format = ChunkFormat { threshold: (2f64.powi(32) / high).round() as u32, ..format };
        Chunker::open(format).map(|chunker| chunker.format)
    }

    /// Appends the 29 bytes of docs/formats/chunking.md.
    pub fn encode(&self, out: &mut Writer) {
        out.u8(VERSION).u64(self.polynomial).u32(self.key).u32(self.threshold);
        out.u32(self.len_bytes_min).u32(self.len_bytes_avg).u32(self.len_bytes_max);
    }

    /// Reads what [`ChunkFormat::encode`] wrote. [`Chunker::open`] decides whether it is fit to cut with.
    pub fn decode(reader: &mut Reader<'_>) -> Result<ChunkFormat, CodecError> {
        match reader.u8()? {
            VERSION => Ok(ChunkFormat {
                polynomial: reader.u64()?,
                key: reader.u32()?,
                threshold: reader.u32()?,
                len_bytes_min: reader.u32()?,
                len_bytes_avg: reader.u32()?,
                len_bytes_max: reader.u32()?,
            }),
            version => Err(reader.unknown(u64::from(version))),
        }
    }

    fn check_lengths(&self) -> Result<(), ChunkFormatError> {
        let (min, avg, max) = (self.len_bytes_min, self.len_bytes_avg, self.len_bytes_max);
        let fits = min as usize >= WINDOW_LEN_BYTES && max as usize <= CHUNK_LEN_BYTES_MAX;
        if fits && min < avg && avg < max { Ok(()) } else { Err(ChunkFormatError::Lengths { min, avg, max }) }
    }
}

/// A checked format with its tables: decides where chunks end. One for each format and core.
pub struct Chunker {
    format: ChunkFormat,
    rabin: Rabin,
}

impl Chunker {
    /// Checks a format (new, or read from a namespace) and makes its tables.
    pub fn open(format: ChunkFormat) -> Result<Chunker, ChunkFormatError> {
        Chunker::open_on(format, None)
    }

    /// As [`Chunker::open`], with a kernel of the caller's choice (tests and benches). Panics when it can't run here.
    pub fn open_with_kernel(format: ChunkFormat, kernel: Kernel) -> Result<Chunker, ChunkFormatError> {
        Chunker::open_on(format, Some(kernel))
    }

    fn open_on(format: ChunkFormat, kernel: Option<Kernel>) -> Result<Chunker, ChunkFormatError> {
        let ChunkFormat { polynomial, key, threshold, .. } = format;
        format.check_lengths()?;
        if !is_irreducible_of_degree_32(polynomial) {
            return Err(ChunkFormatError::Polynomial { polynomial });
        }
        if threshold == 0 || key < threshold {
            return Err(ChunkFormatError::Threshold { threshold, key });
        }
        let rabin = match kernel {
            Some(kernel) => Rabin::with_kernel(polynomial as u32, key, threshold, kernel),
            None => Rabin::new(polynomial as u32, key, threshold),
        };
        let hit = |byte: u8| rabin.is_hit(rabin.fingerprint_at(&[byte; WINDOW_LEN_BYTES], WINDOW_LEN_BYTES - 1));
        match (0..=255).find(|byte| hit(*byte)) {
            Some(byte) => Err(ChunkFormatError::ConstantWindow { key, byte }),
            None => Ok(Chunker { format, rabin }),
        }
    }

    /// The format.
    #[must_use]
    pub fn format(&self) -> &ChunkFormat {
        &self.format
    }

    /// Length of the chunk that `data` starts with, `None` when its end is not in `data` yet.
    ///
    /// At the end of the input the rest is the last chunk. For input that grows, [`Cutter`] searches each byte once.
    #[must_use]
    pub fn cut(&self, data: &[u8]) -> Option<usize> {
        Cutter::new().cut(self, data)
    }

    /// Lengths of all chunks of a whole input.
    #[must_use]
    pub fn cut_all(&self, mut data: &[u8]) -> Vec<usize> {
        let mut lens = Vec::new();
        while !data.is_empty() {
            let len = self.cut(data).unwrap_or(data.len());
            lens.push(len);
            data = &data[len..];
        }
        lens
    }
}

/// Remembers how far the current chunk has been searched, while its bytes arrive.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cutter {
    searched_len_bytes: usize,
}

impl Cutter {
    /// At the start of a chunk.
    #[must_use]
    pub fn new() -> Cutter {
        Cutter::default()
    }

    /// Length of the chunk that `data` starts with, `None` when its end is not in `data` yet.
    ///
    /// - `data`: all bytes of the chunk so far, and any that follow. After `None` the caller calls again with the same
    ///   bytes and more; after `Some(len)` with the bytes from `len` on, which start the next chunk.
    /// - Cost: only bytes not searched before (and the 64 in front of them) are looked at. Pieces of 16 KiB and more
    ///   keep the fast kernels fast.
    #[must_use]
    pub fn cut(&mut self, chunker: &Chunker, data: &[u8]) -> Option<usize> {
        assert!(data.len() >= self.searched_len_bytes, "the bytes of a chunk never become fewer");
        let (min, max) = (chunker.format.len_bytes_min as usize, chunker.format.len_bytes_max as usize);
        let limit = data.len().min(max);
        if limit < min {
            return None;
        }
        // A chunk of `len` bytes ends after position `len - 1`.
        let from = self.searched_len_bytes.max(min - 1);
        let hit = if from < limit { chunker.rabin.find_hit(&data[..limit], from) } else { None };
        let len = hit.map(|position| position + 1).or((limit == max).then_some(max));
        self.searched_len_bytes = if len.is_some() { 0 } else { limit };
        len
    }
}

/// Rabin's test: P of degree 32 = 2^5 is irreducible when x^(2^32) = x mod P and x^(2^16) - x has no factor in common
/// with P (2 is the only prime factor of 32).
fn is_irreducible_of_degree_32(polynomial: u64) -> bool {
    if polynomial >> 32 != 1 {
        return false;
    }
    let square_times = |count: usize| (0..count).fold(2, |value, _| multiply_modulo(value, value, polynomial));
    square_times(32) == 2 && greatest_common_divisor(polynomial, square_times(16) ^ 2) == 1
}

/// Product of two polynomials of degree below 32, modulo one of degree 32.
fn multiply_modulo(a: u64, b: u64, polynomial: u64) -> u64 {
    (0..32).rev().fold(0, |sum, bit| {
        let doubled = sum << 1;
        let reduced = if doubled >> 32 == 1 { doubled ^ polynomial } else { doubled };
        if b >> bit & 1 == 1 { reduced ^ a } else { reduced }
    })
}

/// Euclid's algorithm over GF(2)[x].
fn greatest_common_divisor(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        while a != 0 && a.leading_zeros() <= b.leading_zeros() {
            a ^= b << (b.leading_zeros() - a.leading_zeros());
        }
        (a, b) = (b, a);
    }
    a
}
