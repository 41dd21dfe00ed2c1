//! What goes through the pipeline, made before any clock runs, and where its chunks end.

use crate::noise::Noise;
use clap::ValueEnum;
use kiseki_engine::chunker::{ChunkFormat, Chunker};
use serde::Serialize;

/// Kinds of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Data {
    /// Without any structure: media, archives, weights
    Random,
    /// Words and numbers, as in logs and tables
    Text,
    /// Runs of random, text and zeros in turn, 64 KiB to 1 MiB long
    Mixed,
    /// Zeros only: never a cut before the longest chunk
    Zero,
}

impl Data {
    /// As it is typed.
    pub fn word(self) -> &'static str {
        match self {
            Data::Random => "random",
            Data::Text => "text",
            Data::Mixed => "mixed",
            Data::Zero => "zero",
        }
    }

    fn fill(self, noise: &mut Noise, out: &mut [u8]) {
        match self {
            Data::Random => noise.fill(out),
            Data::Text => fill_text(noise, out),
            Data::Zero => out.fill(0),
            Data::Mixed => {
                let mut rest = out;
                let kinds = [Data::Random, Data::Text, Data::Random, Data::Zero];
                for kind in kinds.into_iter().cycle() {
                    let len = ((64 << 10) + noise.below(960 << 10) as usize).min(rest.len());
                    let (now, later) = rest.split_at_mut(len);
                    kind.fill(noise, now);
                    rest = later;
                    if rest.is_empty() {
                        return;
                    }
                }
            }
        }
    }
}

const WORDS: [&str; 16] = [
    "node",
    "device",
    "chunk",
    "read",
    "write",
    "ok",
    "error",
    "timeout",
    "client",
    "shard",
    "bytes",
    "latency",
    "GET",
    "PUT",
    "/data/part",
    "user",
];

fn fill_text(noise: &mut Noise, out: &mut [u8]) {
    let mut at = 0;
    while at < out.len() {
        let draw = noise.word();
        let text = match draw % 4 {
            0 => format!("{} ", draw >> 40),
            1 if draw.is_multiple_of(7) => format!("{}\n", WORDS[(draw >> 8) as usize % WORDS.len()]),
            _ => format!("{}=", WORDS[(draw >> 8) as usize % WORDS.len()]),
        };
        let len = text.len().min(out.len() - at);
        out[at..at + len].copy_from_slice(&text.as_bytes()[..len]);
        at += len;
    }
}

/// Input of one thread.
pub struct Input {
    bytes: Vec<u8>,
    /// Length of each chunk, in order.
    lens: Vec<usize>,
    chunker: Chunker,
}

impl Input {
    /// Makes `len_bytes` of a kind, and cuts them as a bucket of the default format does.
    pub fn new(data: Data, len_bytes: usize, seed: u64) -> Input {
        let mut bytes = vec![0; len_bytes];
        data.fill(&mut Noise::new(seed), &mut bytes);
        let chunker = Chunker::open(ChunkFormat::default()).expect("the default format is a good one");
        let lens = chunker.cut_all(&bytes);
        Input { bytes, lens, chunker }
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The chunker that cut it.
    pub fn chunker(&self) -> &Chunker {
        &self.chunker
    }

    /// Its chunks.
    pub fn chunks(&self) -> Vec<&[u8]> {
        let mut rest = &self.bytes[..];
        let cut = |len: &usize| {
            let (chunk, later) = rest.split_at(*len);
            rest = later;
            chunk
        };
        self.lens.iter().map(cut).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_what_it_says() {
        for data in [Data::Random, Data::Text, Data::Mixed, Data::Zero] {
            let input = Input::new(data, 9 << 20, 7);
            let chunks = input.chunks();
            assert_eq!(chunks.iter().map(|chunk| chunk.len()).sum::<usize>(), 9 << 20, "{data:?}");
            let zeros = input.bytes().iter().filter(|byte| **byte == 0).count();
            match data {
                Data::Zero => assert_eq!(chunks[0].len(), 4 << 20),
                Data::Text => assert_eq!(zeros, 0),
                Data::Random => assert!(zeros < 60_000),
                Data::Mixed => assert!(zeros > 200_000),
            }
        }
    }
}
