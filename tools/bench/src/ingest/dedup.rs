//! What deduplication finds in data: the product's chunks and their ids, counted in bounded memory.
//!
//! Up to [`CHUNKS_KEPT_MAX`] different chunks all ids are kept and the counts are exact. Beyond, only ids below a
//! threshold are kept, which is halved whenever they become too many: a sample of chunks by content, in which every copy of a
//! chunk is seen or none. Unique bytes are then estimated as the sample's share; what was cut is still counted exactly.

use hdrhistogram::Histogram;
use kiseki_engine::chunk_id::DedupDomain;
use kiseki_engine::chunker::{ChunkFormat, Chunker};
use serde_json::{Value, json};
use std::collections::HashMap;

/// Different chunks that are kept, in 75 MB: as many as fill a table of 2^22 places.
const CHUNKS_KEPT_MAX: usize = 3_600_000;

/// Chunks whose ids are made together: the fast kernels take eight.
const ID_BATCH: usize = 8;

/// The start of a chunk's id: of so few that are kept, no two will share it.
type ShortId = u64;

/// Cuts and names as a bucket of the default format does.
pub struct Cutting {
    chunker: Chunker,
    domain: DedupDomain,
}

impl Cutting {
    /// The default format.
    pub fn new() -> Cutting {
        let chunker = Chunker::open(ChunkFormat::default()).expect("the default format is a good one");
        Cutting { chunker, domain: DedupDomain::Shared }
    }

    /// Chunks of one object or part: start of the id, length.
    pub fn chunks(&self, mut bytes: &[u8]) -> Vec<(ShortId, u32)> {
        let mut chunks = Vec::new();
        for len in self.chunker.cut_all(bytes) {
            let (chunk, rest) = bytes.split_at(len);
            chunks.push(chunk);
            bytes = rest;
        }
        let mut out = Vec::with_capacity(chunks.len());
        for batch in chunks.chunks(ID_BATCH) {
            for (chunk, id) in batch.iter().zip(self.domain.chunk_ids(batch)) {
                let short = id.0.first_chunk::<8>().map_or(0, |start| ShortId::from_be_bytes(*start));
                out.push((short, chunk.len() as u32));
            }
        }
        out
    }
}

/// Counts of all chunks seen.
pub struct Dedup {
    /// Length, and how often it came, of each chunk that is kept.
    kept: HashMap<ShortId, (u32, u32)>,
    kept_max: usize,
    /// One of so many chunks is kept, a power of two.
    one_in: u64,
    chunks: u64,
    bytes: u64,
    lens: Histogram<u64>,
}

impl Dedup {
    /// Nothing seen yet.
    pub fn new() -> Dedup {
        Dedup::keeping(CHUNKS_KEPT_MAX)
    }

    fn keeping(kept_max: usize) -> Dedup {
        let lens = Histogram::new(3).expect("three digits are within the limits of the histogram");
        Dedup { kept: HashMap::new(), kept_max, one_in: 1, chunks: 0, bytes: 0, lens }
    }

    /// Counts chunks.
    pub fn add(&mut self, chunks: &[(ShortId, u32)]) {
        for (id, len_bytes) in chunks {
            self.chunks += 1;
            self.bytes += u64::from(*len_bytes);
            // It grows as needed, so that nothing is refused.
            let _ = self.lens.record(u64::from(*len_bytes));
            if !is_kept(*id, self.one_in) {
                continue;
            }
            let entry = self.kept.entry(*id).or_insert((*len_bytes, 0));
            entry.1 = entry.1.saturating_add(1);
            while self.kept.len() > self.kept_max {
                self.one_in *= 2;
                let one_in = self.one_in;
                self.kept.retain(|id, _| is_kept(*id, one_in));
            }
        }
    }

    /// The result.
    pub fn found(&self) -> DedupFound {
        let (mut unique, mut all) = (0u64, 0u64);
        for (len_bytes, times) in self.kept.values() {
            unique += u64::from(*len_bytes);
            all += u64::from(*len_bytes) * u64::from(*times);
        }
        let is_exact = self.one_in == 1;
        let share = unique as f64 / (all as f64).max(1.0);
        let unique_bytes = if is_exact { unique } else { (self.bytes as f64 * share) as u64 };
        let unique_chunks = self.kept.len() as u64 * self.one_in;
        let lens = &self.lens;
        DedupFound {
            bytes: self.bytes,
            unique_bytes,
            chunks: self.chunks,
            unique_chunks,
            sampled_one_in: self.one_in,
            lens: lens.clone(),
        }
    }
}

/// Whether an id belongs to the sample of one in `one_in`.
fn is_kept(id: ShortId, one_in: u64) -> bool {
    id <= ShortId::MAX / one_in
}

/// What was found.
#[derive(Clone, Debug)]
pub struct DedupFound {
    /// Bytes cut.
    pub bytes: u64,
    /// Bytes of different chunks.
    pub unique_bytes: u64,
    /// Chunks cut.
    pub chunks: u64,
    /// Different ones.
    pub unique_chunks: u64,
    /// 1 when the unique ones were counted, more when they were estimated from a sample.
    pub sampled_one_in: u64,
    lens: Histogram<u64>,
}

impl DedupFound {
    /// Bytes for each unique byte; 1 for nothing.
    pub fn ratio(&self) -> f64 {
        if self.unique_bytes == 0 { 1.0 } else { self.bytes as f64 / self.unique_bytes as f64 }
    }

    /// Chunks by length, in powers of two: upper end and count.
    fn histogram(&self) -> Vec<(u64, u64)> {
        if self.lens.is_empty() {
            return Vec::new();
        }
        let (shortest, longest) = (self.lens.min().max(1), self.lens.max());
        let first = shortest.next_power_of_two();
        let ends = std::iter::successors(Some(first), |end| (*end < longest).then(|| end * 2));
        let mut before = 0;
        let row = |end: u64| {
            let start = std::mem::replace(&mut before, end + 1);
            (end, self.lens.count_between(start, end))
        };
        ends.map(row).collect()
    }

    fn percentile(&self, percent: f64) -> u64 {
        self.lens.value_at_quantile(percent / 100.0).min(self.lens.max())
    }

    /// As the JSON output shows it.
    pub fn json(&self) -> Value {
        let format = ChunkFormat::default();
        let rows = self.histogram().into_iter().map(|(end, count)| json!({"up_to_bytes": end, "chunks": count}));
        let percentiles: serde_json::Map<String, Value> = [1.0, 10.0, 50.0, 90.0, 99.0]
            .iter()
            .map(|percent| (format!("{percent:.6}"), json!(self.percentile(*percent))))
            .collect();
        json!({
            "meaning": "what the product's chunking finds in the data, not what a server stored",
            "bytes": self.bytes,
            "unique_bytes": self.unique_bytes,
            "ratio": self.ratio(),
            "chunks": self.chunks,
            "unique_chunks": self.unique_chunks,
            "sampled_one_in": self.sampled_one_in,
            "format": {"min": format.len_bytes_min, "avg": format.len_bytes_avg, "max": format.len_bytes_max},
            "chunk_len_bytes": {
                "min": if self.lens.is_empty() { 0 } else { self.lens.min() },
                "max": self.lens.max(),
                "mean": self.lens.mean(),
                "percentile": percentiles,
                "histogram": rows.collect::<Vec<Value>>(),
            },
        })
    }

    /// The same for people.
    pub fn lines(&self) -> Vec<String> {
        let binary = |len_bytes: u64| crate::units::binary(len_bytes as f64);
        let sampled = match self.sampled_one_in {
            1 => String::new(),
            one_in => format!(" (unique ones estimated from a sample of one in {one_in})"),
        };
        vec![
            format!(
                "dedup : {} of {} are unique, ratio {:.3}; {} of {} chunks{sampled}; found by chunking, not asked of the server",
                binary(self.unique_bytes),
                binary(self.bytes),
                self.ratio(),
                self.unique_chunks,
                self.chunks,
            ),
            format!(
                "chunks: mean={}, p1={}, p10={}, p50={}, p90={}, max={}",
                crate::units::binary(self.lens.mean()),
                binary(self.percentile(1.0)),
                binary(self.percentile(10.0)),
                binary(self.percentile(50.0)),
                binary(self.percentile(90.0)),
                binary(self.lens.max()),
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::Noise;

    #[test]
    fn copies_are_found_by_content_and_shifts_too() {
        let mut bytes = vec![0; 8 << 20];
        Noise::new(1).fill(&mut bytes);
        let (cutting, mut dedup) = (Cutting::new(), Dedup::new());
        dedup.add(&cutting.chunks(&bytes));
        assert_eq!((dedup.found().bytes, dedup.found().ratio()), (8 << 20, 1.0));
        let shifted = [&[7u8; 100][..], &bytes].concat();
        dedup.add(&cutting.chunks(&shifted));
        let found = dedup.found();
        assert!(found.ratio() > 1.4, "only chunks at the start differ: {}", found.ratio());
        assert_eq!(found.histogram().iter().map(|row| row.1).sum::<u64>(), found.chunks);
        assert_eq!(Dedup::new().found().ratio(), 1.0);
        assert!(cutting.chunks(&[]).is_empty());
    }

    #[test]
    fn a_sample_estimates_what_does_not_fit() {
        let (mut exact, mut bounded) = (Dedup::new(), Dedup::keeping(1000));
        let mut noise = Noise::new(2);
        for number in 0..40_000u64 {
            // Chunks of different lengths, a third of them three times.
            let chunk = (noise.word(), 1000 + noise.below(9000) as u32);
            let times = if number % 3 == 0 { 3 } else { 1 };
            (0..times).for_each(|_| {
                exact.add(&[chunk]);
                bounded.add(&[chunk]);
            });
        }
        let (exact, estimated) = (exact.found(), bounded.found());
        assert!(bounded.kept.len() <= 1000 && estimated.sampled_one_in >= 40, "{}", estimated.sampled_one_in);
        assert_eq!((exact.sampled_one_in, exact.unique_chunks), (1, 40_000));
        assert_eq!((exact.bytes, exact.chunks), (estimated.bytes, estimated.chunks), "what was cut stays exact");
        let off = (estimated.ratio() / exact.ratio() - 1.0).abs();
        assert!(off < 0.1, "{} instead of {}", estimated.ratio(), exact.ratio());
    }
}
