//! Each byte kernel beside its plain twin, in bytes a second of one core.
#![allow(missing_docs)] // criterion's macros make undocumented items

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kiseki_engine::chunker::{ChunkFormat, Chunker};
use kiseki_engine::envelope::{self, EnvelopeBinding};
use kiseki_engine::placement::{PlacementCandidate, order};
use kiseki_engine::stripe::{StripeCoder, padded_len, parity_buffer_count};
use kiseki_kernels::erasure::{Coder, Matrix};
use kiseki_kernels::{md5, rabin, sha256};
use kiseki_types::buf::IoBuf;
use kiseki_types::fragment::StripeShape;
use kiseki_types::ids::{DeviceId, Locator};
use kiseki_types::secret::SecretKey;
use std::hint::black_box;
use std::time::Duration;

const CHUNK_LEN_BYTES: usize = 1 << 20;
const INPUT_LEN_BYTES: usize = 32 << 20;

/// SplitMix64.
fn random(len: usize) -> Vec<u8> {
    let mut state = 42u64;
    let words = (0..len.div_ceil(8)).flat_map(|_| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31).to_le_bytes()
    });
    words.take(len).collect()
}

/// Whole inputs through the chunker: random data from memory, and one cached megabyte without a hit.
fn cut(c: &mut Criterion) {
    let mut group = c.benchmark_group("cut");
    let input = random(INPUT_LEN_BYTES);
    for kernel in rabin::Kernel::runnable() {
        for (name, format) in [
            ("default", ChunkFormat::default()),
            ("16K-64K-256K", ChunkFormat::with_lengths(16 << 10, 64 << 10, 256 << 10).unwrap()),
            ("2K-8K-64K", ChunkFormat::with_lengths(2 << 10, 8 << 10, 64 << 10).unwrap()),
        ] {
            let chunker = Chunker::open_with_kernel(format, kernel).unwrap();
            group.throughput(Throughput::Bytes(input.len() as u64));
            let id = BenchmarkId::new(format!("{kernel:?}"), name);
            group.bench_function(id, |b| b.iter(|| black_box(chunker.cut_all(&input))));
        }
        // Zeros have no hit under these keys, so all of it is searched: by the filter, by the exact comparison, and
        // where every position passes the filter.
        let quiet = vec![0; CHUNK_LEN_BYTES];
        for (name, key, threshold) in
            [("hot", 0xA5C3_E719, 1), ("hot-exact", 0xA5C3_E719, (1 << 16) + 1), ("hot-hostile", 0x8000, 1)]
        {
            let searched = rabin::Rabin::with_kernel(0xD306_EACF, key, threshold, kernel);
            group.throughput(Throughput::Bytes(quiet.len() as u64));
            let id = BenchmarkId::new(format!("{kernel:?}"), name);
            group.bench_function(id, |b| b.iter(|| black_box(searched.find_hit(&quiet, 64))));
        }
    }
    group.finish();
}

fn id(c: &mut Criterion) {
    let mut group = c.benchmark_group("id");
    let input = random(16 * CHUNK_LEN_BYTES);
    let chunks: Vec<&[u8]> = input.chunks(CHUNK_LEN_BYTES).collect();
    for kernel in sha256::Kernel::runnable() {
        group.throughput(Throughput::Bytes(CHUNK_LEN_BYTES as u64));
        group.bench_function(format!("{kernel:?}/one"), |b| b.iter(|| sha256::sha256_with(kernel, chunks[0])));
        for (name, count) in [("two", 2), ("eight", 8), ("sixteen", 16)] {
            group.throughput(Throughput::Bytes((count * CHUNK_LEN_BYTES) as u64));
            let id = format!("{kernel:?}/{name}");
            group.bench_function(id, |b| b.iter(|| sha256::sha256_many_with(kernel, &chunks[..count])));
        }
    }
    group.finish();
}

/// One to eight streams of a megabyte, side by side or, with the plain kernel, one after the other.
fn etag(c: &mut Criterion) {
    let mut group = c.benchmark_group("etag");
    let input = random(md5::LANES_MAX * CHUNK_LEN_BYTES);
    for kernel in md5::Kernel::runnable() {
        for busy in [1, 2, 4, md5::LANES_MAX] {
            group.throughput(Throughput::Bytes((busy * CHUNK_LEN_BYTES) as u64));
            group.bench_function(format!("{kernel:?}/{busy}"), |b| {
                b.iter(|| {
                    let mut streams = vec![md5::Stream::begin(); busy];
                    let chunks = input.chunks(CHUNK_LEN_BYTES);
                    let mut lanes: Vec<md5::Lane<'_>> =
                        streams.iter_mut().zip(chunks).map(|(stream, data)| md5::Lane { stream, data }).collect();
                    md5::advance_many_with(kernel, &mut lanes, CHUNK_LEN_BYTES);
                    drop(lanes);
                    streams.into_iter().map(md5::Stream::finish).collect::<Vec<_>>()
                });
            });
        }
    }
    group.finish();
}

fn seal(c: &mut Criterion) {
    let mut group = c.benchmark_group("seal");
    group.throughput(Throughput::Bytes(CHUNK_LEN_BYTES as u64));
    let dek = SecretKey::take(&mut [7; 32]);
    let binding = EnvelopeBinding::current(Locator([1; 32]), CHUNK_LEN_BYTES as u32);
    let shape = StripeShape { data: 4, parity: 2 };
    let padded = padded_len(envelope::envelope_len(binding.plaintext_len), shape);
    let mut buf = IoBuf::zeroed(padded);
    group.bench_function("seal", |b| {
        b.iter(|| {
            buf.set_len(CHUNK_LEN_BYTES);
            envelope::seal(&dek, &binding, &mut buf, padded);
        });
    });
    buf.set_len(CHUNK_LEN_BYTES);
    envelope::seal(&dek, &binding, &mut buf, padded);
    let mut out = vec![0; CHUNK_LEN_BYTES];
    group.bench_function("open", |b| b.iter(|| envelope::open(&dek, &binding, &buf, &mut out).unwrap()));
    group.finish();
}

fn encode(c: &mut Criterion) {
    let mut group = c.benchmark_group("encode");
    let coder = StripeCoder::new();
    for (data, parity) in [(2, 1), (4, 2), (8, 3)] {
        let shape = StripeShape { data, parity };
        let envelope = random(padded_len(CHUNK_LEN_BYTES as u32, shape));
        let payload_len = envelope.len() / usize::from(data);
        group.throughput(Throughput::Bytes(envelope.len() as u64));
        let mut out: Vec<IoBuf> = (0..parity_buffer_count(shape)).map(|_| IoBuf::zeroed(payload_len)).collect();
        group.bench_function(format!("isa-l/{data}+{parity}"), |b| b.iter(|| coder.encode(&envelope, shape, &mut out)));
        let rows: Vec<usize> = (usize::from(data)..shape.width()).collect();
        let plain = Coder::new(Matrix::cauchy_generator(data.into(), parity.into()).select(&rows));
        let sources: Vec<&[u8]> = envelope.chunks(payload_len).collect();
        let mut outputs: Vec<&mut [u8]> = out.iter_mut().map(|buf| &mut **buf).collect();
        group
            .bench_function(format!("plain/{data}+{parity}"), |b| b.iter(|| plain.apply_plain(&sources, &mut outputs)));
        let (lost, kept) = (vec![0], (1..=data).map(|i| (i, sources[usize::from(i) % sources.len()])));
        let kept: Vec<(u8, &[u8])> = kept.collect();
        group.bench_function(format!("rebuild-one/{data}+{parity}"), |b| {
            b.iter(|| coder.rebuild(shape, &kept, &lost).unwrap());
        });
    }
    group.finish();
}

fn place(c: &mut Criterion) {
    let mut group = c.benchmark_group("place");
    for devices in [6u8, 24] {
        let candidates: Vec<PlacementCandidate> =
            (0..devices).map(|i| PlacementCandidate { device: DeviceId([i; 16]), weight: 1 << 40 }).collect();
        group.bench_function(format!("{devices}-devices"), |b| b.iter(|| order(&Locator([9; 32]), &candidates)));
    }
    group.finish();
}

criterion_group! {
    name = kernels;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600));
    targets = cut, id, etag, seal, encode, place
}
criterion_main!(kernels);
