//! Rabin fingerprints of the last 64 bytes, and the search for the first one that asks for a cut.
//!
//! F(i) = sum over j = 0..63 of b[i-j] * x^(8j) mod P over GF(2), P of degree 32. Position i is a hit when
//! (F(i) XOR K) < T as unsigned 32-bit numbers. Every kernel finds the same first hit: chunk ids depend on it.
//! The format and the reasons are in docs/formats/chunking.md.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod blocks;
#[cfg(target_arch = "x86_64")]
mod gfni;
#[cfg(any(test, target_arch = "x86_64"))]
mod self_check;
#[cfg(test)]
mod tests;

/// Bytes that a fingerprint depends on.
pub const WINDOW_LEN_BYTES: usize = 64;

/// How positions are searched. The order is from slow to fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kernel {
    /// Two table look-ups a byte; runs everywhere, and is what the others are compared with.
    Plain,
    /// The AVX-512 kernel over the definitions of its instructions: slow, and runs everywhere.
    #[cfg(all(test, target_arch = "x86_64"))]
    Emulated,
    /// 32 far-apart segments roll side by side in byte planes; the look-ups are nibble shuffles.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// 64 segments; the look-ups are products with bit matrices.
    #[cfg(target_arch = "x86_64")]
    Avx512Gfni,
}

impl Kernel {
    /// Every kernel that this processor can run, slowest first. The AVX-512 kernel is among them only after it agreed
    /// with the plain one here, once for each process.
    #[must_use]
    pub fn runnable() -> Vec<Kernel> {
        #[allow(unused_mut)] // other architectures have the plain kernel only
        let mut kernels = vec![Kernel::Plain];
        #[cfg(all(test, target_arch = "x86_64"))]
        kernels.push(Kernel::Emulated);
        #[cfg(target_arch = "x86_64")]
        if std::is_x86_feature_detected!("avx2") {
            kernels.push(Kernel::Avx2);
        }
        #[cfg(target_arch = "x86_64")]
        if gfni::checked() == Some(true) {
            kernels.push(Kernel::Avx512Gfni);
        }
        kernels
    }

    /// Kernels whose instructions this processor has, but which disagreed with the plain kernel here: they are never
    /// chosen, and somebody should hear of it.
    #[must_use]
    pub fn rejected() -> Vec<Kernel> {
        #[cfg(target_arch = "x86_64")]
        if gfni::checked() == Some(false) {
            return vec![Kernel::Avx512Gfni];
        }
        Vec::new()
    }

    /// How the kernel rolls blocks; `None` for the plain one, which needs none.
    #[cfg(target_arch = "x86_64")]
    fn rolling(self) -> Option<blocks::Rolling> {
        match self {
            Kernel::Plain => None,
            #[cfg(test)]
            Kernel::Emulated => Some(gfni::EMULATED),
            Kernel::Avx2 => Some(avx2::ROLLING),
            Kernel::Avx512Gfni => Some(gfni::NATIVE),
        }
    }
}

/// Fingerprint tables for one polynomial and one condition.
pub struct Rabin {
    key: u32,
    threshold: u32,
    append: [u32; 256],
    expire: [u32; 256],
    kernel: Kernel,
    #[cfg(target_arch = "x86_64")]
    avx2: avx2::Tables,
    #[cfg(target_arch = "x86_64")]
    gfni: gfni::Tables,
}

/// `value * x^8 mod P`, bit by bit; `low` is P without its x^32.
fn times_x8(value: u32, low: u32) -> u32 {
    (0..8).fold(value, |value, _| (value << 1) ^ if value >> 31 == 1 { low } else { 0 })
}

impl Rabin {
    /// Tables for P = x^32 + `polynomial_low`, K = `key`, T = `threshold`, with the fastest kernel that runs here.
    #[must_use]
    pub fn new(polynomial_low: u32, key: u32, threshold: u32) -> Rabin {
        let fastest = *Kernel::runnable().last().expect("the plain kernel always runs");
        Rabin::with_kernel(polynomial_low, key, threshold, fastest)
    }

    /// As [`Rabin::new`], with a kernel of the caller's choice (tests and benches).
    ///
    /// Panics when this processor can't run it.
    #[must_use]
    pub fn with_kernel(polynomial_low: u32, key: u32, threshold: u32, kernel: Kernel) -> Rabin {
        assert!(Kernel::runnable().contains(&kernel), "this processor can't run the {kernel:?} kernel");
        Rabin::build(polynomial_low, key, threshold, kernel)
    }

    /// As [`Rabin::with_kernel`], unchecked.
    fn build(polynomial_low: u32, key: u32, threshold: u32, kernel: Kernel) -> Rabin {
        let power = |byte: u32, bytes: usize| (0..bytes).fold(byte, |value, _| times_x8(value, polynomial_low));
        let append = std::array::from_fn(|byte| power(byte as u32, 4));
        let expire = std::array::from_fn(|byte| power(byte as u32, WINDOW_LEN_BYTES));
        Rabin::assemble(append, expire, key, threshold, kernel)
    }

    fn assemble(append: [u32; 256], expire: [u32; 256], key: u32, threshold: u32, kernel: Kernel) -> Rabin {
        Rabin {
            key,
            threshold,
            append,
            expire,
            kernel,
            #[cfg(target_arch = "x86_64")]
            avx2: avx2::Tables::new(&append, &expire, key, threshold),
            #[cfg(target_arch = "x86_64")]
            gfni: gfni::Tables::new(&append, &expire, key, threshold),
        }
    }

    /// The same polynomial and kernel with another condition.
    #[cfg(any(test, target_arch = "x86_64"))]
    fn with_condition(&self, key: u32, threshold: u32) -> Rabin {
        Rabin::assemble(self.append, self.expire, key, threshold, self.kernel)
    }

    /// Whether the fingerprint asks for a cut.
    #[must_use]
    pub fn is_hit(&self, fingerprint: u32) -> bool {
        fingerprint ^ self.key < self.threshold
    }

    /// The fingerprint of the 64 bytes that end with `data[position]`; `position >= 63`.
    #[must_use]
    pub fn fingerprint_at(&self, data: &[u8], position: usize) -> u32 {
        data[position + 1 - WINDOW_LEN_BYTES..=position]
            .iter()
            .fold(0, |f, byte| (f << 8) ^ self.append[(f >> 24) as usize] ^ u32::from(*byte))
    }

    /// The first hit at `from` or later, `None` when `data` has none.
    ///
    /// `from >= 63`: the first window must lie in `data`. Panics otherwise: that is our own bug.
    #[must_use]
    pub fn find_hit(&self, data: &[u8], from: usize) -> Option<usize> {
        assert!(from + 1 >= WINDOW_LEN_BYTES, "a window of {WINDOW_LEN_BYTES} bytes can't end at {from}");
        #[cfg(target_arch = "x86_64")]
        if let Some(rolling) = self.kernel.rolling() {
            return self.find_hit_rolling(rolling, data, from);
        }
        self.find_hit_plain(data, from)
    }

    /// [`Rabin::find_hit`] with the plain kernel.
    fn find_hit_plain(&self, data: &[u8], from: usize) -> Option<usize> {
        if from >= data.len() {
            return None;
        }
        let mut f = self.fingerprint_at(data, from);
        if self.is_hit(f) {
            return Some(from);
        }
        let leaving = &data[from + 1 - WINDOW_LEN_BYTES..];
        for (at, (entering, leaving)) in data[from + 1..].iter().zip(leaving).enumerate() {
            f = (f << 8) ^ self.append[(f >> 24) as usize] ^ u32::from(*entering) ^ self.expire[usize::from(*leaving)];
            if self.is_hit(f) {
                return Some(from + 1 + at);
            }
        }
        None
    }
}
