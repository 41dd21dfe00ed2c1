//! In which order a profile reads, how long its objects are, which of them are hot.

use crate::noise::{Noise, mix};

/// The numbers below `count` in a random order (Fisher and Yates).
pub fn shuffled(count: u32, noise: &mut Noise) -> Vec<u32> {
    let mut order: Vec<u32> = (0..count).collect();
    for at in (1..order.len()).rev() {
        order.swap(at, noise.below(at as u64 + 1) as usize);
    }
    order
}

/// The numbers of `source` as a loader with a shuffle buffer of `window` gives them out: it keeps the buffer full, and each
/// time takes a random one out of it.
pub fn shuffled_in_window(source: impl Iterator<Item = u64>, window: usize, noise: &mut Noise) -> Vec<u64> {
    let (mut buffer, mut out) = (Vec::with_capacity(window), Vec::new());
    for number in source {
        if buffer.len() < window.max(1) {
            buffer.push(number);
            continue;
        }
        let at = noise.below(buffer.len() as u64) as usize;
        out.push(std::mem::replace(&mut buffer[at], number));
    }
    while !buffer.is_empty() {
        let at = noise.below(buffer.len() as u64) as usize;
        out.push(buffer.swap_remove(at));
    }
    out
}

/// A length between two others whose logarithm is uniform: as many short ones as long ones by factors of two.
pub fn length_between(shortest: u64, longest: u64, draw: u64) -> u64 {
    let part = (mix(draw) >> 11) as f64 / (1u64 << 53) as f64;
    let factor = (longest as f64 / shortest as f64).powf(part);
    ((shortest as f64 * factor) as u64).clamp(shortest, longest)
}

/// Draws numbers of which number k comes with a probability that falls with k^exponent.
pub struct Zipf {
    /// Sum of the weights up to each number.
    sums: Vec<f64>,
}

impl Zipf {
    /// Over `count` numbers, at least one.
    pub fn new(count: u64, exponent: f64) -> Zipf {
        let mut sum = 0.0;
        let sums = (1..=count.max(1)).map(|rank| {
            sum += (rank as f64).powf(-exponent);
            sum
        });
        Zipf { sums: sums.collect() }
    }

    /// The number that belongs to a random word.
    pub fn number(&self, word: u64) -> u64 {
        let total = self.sums.last().copied().unwrap_or(1.0);
        let drawn = (word >> 11) as f64 / (1u64 << 53) as f64 * total;
        (self.sums.partition_point(|sum| *sum <= drawn) as u64).min(self.sums.len() as u64 - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_order_has_everything_once() {
        let mut noise = Noise::new(3);
        let order = shuffled(1000, &mut noise);
        assert_eq!(order.iter().copied().collect::<BTreeSet<u32>>().len(), 1000);
        assert_ne!(order, shuffled(1000, &mut noise), "each round has its own");
        for window in [0, 1, 10, 5000] {
            let order = shuffled_in_window(0..1000, window, &mut noise);
            assert_eq!(order.iter().copied().collect::<BTreeSet<u64>>().len(), 1000, "window {window}");
        }
        assert_eq!(shuffled_in_window(0..50, 1, &mut noise), (0..50).collect::<Vec<u64>>());
    }

    #[test]
    fn a_window_lets_nothing_come_before_it_is_read() {
        let order = shuffled_in_window(0..1000, 100, &mut Noise::new(4));
        let early = order.iter().enumerate().all(|(at, number)| *number <= at as u64 + 100);
        let moved = order.iter().enumerate().filter(|(at, number)| **number != *at as u64).count();
        assert!(early && moved > 900, "{moved}");
    }

    #[test]
    fn a_hot_set_takes_its_share() {
        let (zipf, mut noise) = (Zipf::new(1000, 1.0), Noise::new(5));
        let mut counts = vec![0u32; 1000];
        (0..100_000).for_each(|_| counts[zipf.number(noise.word()) as usize] += 1);
        // 1 / (1 + 1/2 + ... + 1/1000) = 13.36 %, and half of that.
        assert!((12_800..13_900).contains(&counts[0]) && (6300..7100).contains(&counts[1]), "{:?}", &counts[..3]);
        let uniform = Zipf::new(4, 0.0);
        assert_eq!([0, u64::MAX / 2 + 1, u64::MAX].map(|word| uniform.number(word)), [0, 2, 3]);
    }

    #[test]
    fn lengths_stay_between_their_limits() {
        let lens: Vec<u64> = (0..10_000).map(|draw| length_between(1 << 16, 2 << 20, draw)).collect();
        let short = lens.iter().filter(|len| **len < 1 << 17).count();
        assert!(lens.iter().all(|len| (1 << 16..=2 << 20).contains(len)));
        assert!((1800..2200).contains(&short), "one of five factors of two: {short}");
        assert_eq!(length_between(5, 5, 1), 5);
    }
}
