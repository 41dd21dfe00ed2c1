//! The mutator: everything it does follows from one seed.

/// Longest input that it makes.
const INPUT_LEN_BYTES_MAX: usize = 32 * 1024;

/// Most changes in one input.
const CHANGES_MAX: u64 = 4;

/// Longest run of bytes that one change repeats, removes or adds.
const RUN_LEN_BYTES_MAX: u64 = 48;

/// Numbers at which lengths, counts and counters go wrong.
const EXTREMES: [u64; 16] = [
    0,
    1,
    2,
    0x7f,
    0xff,
    0x7fff,
    0xffff,
    0x10000,
    0x7fff_ffff,
    0xffff_fffe,
    0xffff_ffff,
    0x1_0000_0000,
    u64::MAX / 2,
    u64::MAX / 2 + 1,
    u64::MAX - 1,
    u64::MAX,
];

/// A generator of pseudo-random numbers (splitmix64): small, and the same everywhere.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// From a seed.
    #[must_use]
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`; 0 where there is none.
    pub fn below(&mut self, end: u64) -> u64 {
        if end == 0 { 0 } else { self.number() % end }
    }

    /// A position in `len` bytes.
    fn at(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }
}

/// Changes `input` a few times; `other` is what pieces are taken from.
pub fn mutate(rng: &mut Rng, input: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..=rng.below(CHANGES_MAX) {
        change(rng, input, other);
    }
    input.truncate(INPUT_LEN_BYTES_MAX);
}

fn change(rng: &mut Rng, input: &mut Vec<u8>, other: &[u8]) {
    match rng.below(12) {
        0 | 1 => flip_bit(rng, input),
        2 => {
            let at = rng.at(input.len());
            if let Some(byte) = input.get_mut(at) {
                *byte = rng.number() as u8;
            }
        }
        3..=5 => write_number(rng, input),
        6 => input.truncate(rng.at(input.len() + 1)),
        7 => {
            let (at, len) = (rng.at(input.len() + 1), rng.below(RUN_LEN_BYTES_MAX) as usize);
            let end = (at + len).min(input.len());
            input.drain(at..end);
        }
        8 => {
            let (from, len) = (rng.at(input.len() + 1), rng.below(RUN_LEN_BYTES_MAX) as usize);
            let piece = input[from..(from + len).min(input.len())].to_vec();
            insert(rng, input, &piece);
        }
        9 => {
            let piece: Vec<u8> = (0..rng.below(RUN_LEN_BYTES_MAX)).map(|_| rng.number() as u8).collect();
            insert(rng, input, &piece);
        }
        10 => {
            let (cut, from) = (rng.at(input.len() + 1), rng.at(other.len() + 1));
            input.truncate(cut);
            input.extend_from_slice(&other[from..]);
        }
        _ => write_digits(rng, input),
    }
}

fn flip_bit(rng: &mut Rng, input: &mut [u8]) {
    let at = rng.at(input.len());
    if let Some(byte) = input.get_mut(at) {
        *byte ^= 1 << rng.below(8);
    }
}

fn insert(rng: &mut Rng, input: &mut Vec<u8>, piece: &[u8]) {
    let at = rng.at(input.len() + 1);
    input.splice(at..at, piece.iter().copied());
}

fn extreme(rng: &mut Rng) -> u64 {
    let number = EXTREMES[rng.at(EXTREMES.len())];
    match rng.below(4) {
        0 => number.wrapping_add(rng.below(16)),
        1 => number.wrapping_sub(rng.below(16)),
        _ => number,
    }
}

/// An extreme number over 1, 2, 4 or 8 bytes, in either order; or what stands there, a little more or less.
fn write_number(rng: &mut Rng, input: &mut [u8]) {
    let len = 1 << rng.below(4);
    let Some(room) = (input.len() + 1).checked_sub(len).filter(|room| *room > 0) else { return };
    let at = rng.at(room);
    let field = &mut input[at..at + len];
    let number = match rng.below(4) {
        0 => {
            let mut bytes = [0; 8];
            bytes[..len].copy_from_slice(field);
            u64::from_le_bytes(bytes).wrapping_add(rng.below(9)).wrapping_sub(4)
        }
        _ => extreme(rng),
    };
    field.copy_from_slice(&number.to_le_bytes()[..len]);
    if rng.below(4) == 0 {
        field.reverse();
    }
}

/// Another number for one that stands there in digits.
fn write_digits(rng: &mut Rng, input: &mut Vec<u8>) {
    let from = rng.at(input.len() + 1);
    let Some(start) = input[from..].iter().position(u8::is_ascii_digit).map(|at| from + at) else { return };
    let len = input[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let number = extreme(rng).to_string();
    input.splice(start..start + len, number.bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_makes_one_run_of_inputs() {
        let inputs = |seed| {
            let mut rng = Rng::new(seed);
            let mut input = b"abc 123 def".to_vec();
            (0..1000).for_each(|_| mutate(&mut rng, &mut input, b"other"));
            input
        };
        assert_eq!(inputs(1), inputs(1));
        assert_ne!(inputs(1), inputs(2));
    }
}
