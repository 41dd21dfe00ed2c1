//! What a target is, and what every parser has to hold.

use std::fmt::Debug;

/// What a parser said to an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It was decoded.
    Accepted,
    /// It was refused with an error.
    Refused,
}

/// A named input that a real encoder made.
pub type Seed = (&'static str, Vec<u8>);

/// Sets lengths and checksums of an input right.
pub type Mend = fn(&[u8]) -> Vec<u8>;

/// How much memory a parser may hold at once: `base_bytes + multiple * input`.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    /// For what does not depend on the input: capacities reserved for short lists, messages of errors.
    pub base_bytes: usize,
    /// For what does; decoded strings and rows have a header each, so a list of empty ones grows most.
    pub multiple: usize,
}

impl Allowance {
    /// For formats of binary rows.
    pub const USUAL: Allowance = Allowance { base_bytes: 96 * 1024, multiple: 16 };
}

/// One parser under test.
pub struct Target {
    /// Its name, and that of its corpus directory.
    pub name: &'static str,
    /// Decodes an input and checks what must hold; panics when it does not.
    pub run: fn(&[u8]) -> Verdict,
    /// Sets lengths and checksums of an input right, so that the input gets behind them.
    pub mend: Option<Mend>,
    /// Inputs that the real encoder makes; each is accepted as it is or mended.
    pub seeds: fn() -> Vec<Seed>,
    /// Memory that it may take.
    pub allowance: Allowance,
}

impl Target {
    /// A target without a checksum and with the usual allowance.
    #[must_use]
    pub const fn new(name: &'static str, run: fn(&[u8]) -> Verdict, seeds: fn() -> Vec<Seed>) -> Target {
        Target { name, run, mend: None, seeds, allowance: Allowance::USUAL }
    }

    /// The same with a second mode behind the checksum.
    #[must_use]
    pub const fn mended(self, mend: Mend) -> Target {
        Target { mend: Some(mend), ..self }
    }

    /// The same with another allowance.
    #[must_use]
    pub const fn allowed(self, base_bytes: usize, multiple: usize) -> Target {
        Target { allowance: Allowance { base_bytes, multiple }, ..self }
    }
}

/// A format in which one value may be written in several ways: what decodes encodes to something that decodes to the
/// same value.
pub fn value_survives<T: PartialEq + Debug, E: Debug>(
    bytes: &[u8],
    decode: impl Fn(&[u8]) -> Result<T, E>,
    encode: impl Fn(&T) -> Vec<u8>,
) -> Verdict {
    let Ok(value) = decode(bytes) else { return Verdict::Refused };
    let again = decode(&encode(&value)).expect("what was decoded encodes to what decodes");
    assert_eq!(again, value, "the value changes when it is encoded and decoded again");
    Verdict::Accepted
}

/// As [`value_survives`], where decoding and encoding come as one function: the second round changes nothing.
pub fn bytes_settle(bytes: &[u8], decode_and_encode: impl Fn(&[u8]) -> Option<Vec<u8>>) -> Verdict {
    let Some(once) = decode_and_encode(bytes) else { return Verdict::Refused };
    let twice = decode_and_encode(&once).expect("what was decoded encodes to what decodes");
    assert_eq!(twice, once, "the value changes when it is encoded and decoded again");
    Verdict::Accepted
}

/// A canonical format: what decodes encodes to the same bytes.
pub fn bytes_survive(bytes: &[u8], decode_and_encode: impl Fn(&[u8]) -> Option<Vec<u8>>) -> Verdict {
    let Some(once) = decode_and_encode(bytes) else { return Verdict::Refused };
    assert_eq!(once, bytes, "a canonical format has one way to write a value");
    Verdict::Accepted
}

/// [`Verdict::Accepted`] for `Some`.
#[must_use]
pub fn accepted<T>(decoded: Option<T>) -> Verdict {
    if decoded.is_some() { Verdict::Accepted } else { Verdict::Refused }
}
