//! Mutated inputs, one after the other, until one breaks something or enough ran.

use crate::judge::judge;
use crate::mutate::{Rng, mutate};
use crate::target::{Target, Verdict};
use std::time::{Duration, Instant};

/// Accepted inputs that are mutated further, beside the corpus.
const POOL_MAX: usize = 64;

/// What a run did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    /// Inputs that ran.
    pub inputs: u64,
    /// Inputs that the parser accepted.
    pub accepted: u64,
    /// The longest that one input took.
    pub slowest: Duration,
}

/// An input that broke something.
#[derive(Debug)]
pub struct Failure {
    /// Its number in the run.
    pub number: u64,
    /// The input.
    pub input: Vec<u8>,
    /// What happened.
    pub what: String,
}

/// Mutates `corpus` from `seed` while `go_on` says so. Errors: the first input that breaks something.
pub fn run(
    target: &Target,
    corpus: &[Vec<u8>],
    seed: u64,
    mut go_on: impl FnMut(&Totals) -> bool,
) -> Result<Totals, Failure> {
    let mut rng = Rng::new(seed);
    let mut pool: Vec<Vec<u8>> = Vec::new();
    let mut totals = Totals::default();
    while go_on(&totals) {
        let input = next_input(target, corpus, &pool, &mut rng);
        let start = Instant::now();
        let verdict = judge(target, &input);
        totals.slowest = totals.slowest.max(start.elapsed());
        totals.inputs += 1;
        match verdict {
            Ok(Verdict::Refused) => {}
            Ok(Verdict::Accepted) => {
                totals.accepted += 1;
                if pool.len() < POOL_MAX {
                    pool.push(input);
                } else {
                    pool[rng.below(POOL_MAX as u64) as usize] = input;
                }
            }
            Err(what) => return Err(Failure { number: totals.inputs, input, what }),
        }
    }
    Ok(totals)
}

/// A mutated seed, mended in most cases where that is possible: in front of the last change or behind it.
fn next_input(target: &Target, corpus: &[Vec<u8>], pool: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    let pick = |rng: &mut Rng| match (corpus.is_empty(), pool.is_empty() || rng.below(2) == 0) {
        (true, true) => Vec::new(),
        (false, true) => corpus[rng.below(corpus.len() as u64) as usize].clone(),
        (_, false) => pool[rng.below(pool.len() as u64) as usize].clone(),
    };
    let (mut input, other) = (pick(rng), pick(rng));
    let mended = target.mend.map(|mend| (mend, rng.below(4)));
    if let Some((mend, 0)) = mended {
        input = mend(&input);
    }
    mutate(rng, &mut input, &other);
    match mended {
        Some((mend, 1..)) => mend(&input),
        _ => input,
    }
}
