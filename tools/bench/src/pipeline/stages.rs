//! The stages: what each prepares before the clock runs, and what one step of it does.

use super::input::Input;
use super::path::{CorePath, Receiver, SLICE_LEN_BYTES, Sealed};
use super::stream::Streams;
use clap::ValueEnum;
use kiseki_engine::chunk_write::chunk_buffer;
use kiseki_engine::chunker::Cutter;
use kiseki_engine::envelope::{EnvelopeBinding, envelope_len, open, seal};
use kiseki_engine::stripe::{padded_len, parity_buffer_count, shape_for};
use kiseki_types::buf::{IoBuf, IoBytes, plain_buffers};
use kiseki_types::fragment::StripeShape;
use kiseki_types::ids::ChunkId;
use serde::Serialize;
use std::hint::black_box;
use std::rc::Rc;

/// Chunks whose ids are computed together: as many as the widest kernel has lanes for.
const ID_BATCH: usize = 16;

/// Which path a stage belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Storing.
    Write,
    /// Reading back.
    Read,
}

/// A stage, or several in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Copy received bytes into chunk buffers, which are allocated
    Receive,
    /// Find where chunks end
    Cut,
    /// SHA-256 of one chunk at a time
    Id,
    /// SHA-256 of sixteen chunks together
    IdBatch,
    /// Locator and DEK of each chunk
    Keys,
    /// AES-256-GCM in place
    Seal,
    /// Parity fragments, into buffers of a pool as the server does
    Encode,
    /// Headers of fragments with their CRC32C
    Checksum,
    /// Cut, id, seal, encode in one go, in place, into buffers that are used again
    Kernels,
    /// All that a stream costs the server from received bytes to fragments with headers
    Whole,
    /// Open envelopes
    Open,
    /// Rebuild the first data fragment from the others
    Rebuild,
}

impl Stage {
    /// In the order of the write path, then of the read path.
    pub fn all() -> Vec<Stage> {
        Stage::value_variants().to_vec()
    }

    /// As it is typed.
    pub fn word(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// In a few words.
    pub fn about(self, shape: StripeShape, streams: u16) -> String {
        let stripe = format!("{}+{}", shape.data, shape.parity);
        match self {
            Stage::Receive => "allocate and copy".to_owned(),
            Stage::Cut => "rabin 256k/1m/4m".to_owned(),
            Stage::Id => "sha256, one chunk at a time".to_owned(),
            Stage::IdBatch => format!("sha256, {ID_BATCH} chunks together"),
            Stage::Keys => "locator and DEK".to_owned(),
            Stage::Seal => "aes-256-gcm, in place".to_owned(),
            Stage::Encode => format!("parity of {stripe}"),
            Stage::Checksum => "fragment headers, crc32c".to_owned(),
            Stage::Kernels => format!("cut, id, seal, encode {stripe}, in place"),
            Stage::Whole => format!("received bytes to fragments of {stripe}, streams={streams}"),
            Stage::Open => "aes-256-gcm".to_owned(),
            Stage::Rebuild => format!("one fragment of {stripe}"),
        }
    }

    /// Which path it belongs to.
    pub fn direction(self) -> Direction {
        match self {
            Stage::Open | Stage::Rebuild => Direction::Read,
            _ => Direction::Write,
        }
    }

    /// Gets everything ready that is not to be measured.
    pub fn prepare<'a>(self, input: &'a Rc<Input>, shape: StripeShape, streams: u16) -> Work<'a> {
        let path = CorePath::new(shape);
        let chunks = input.chunks();
        let step: Box<dyn FnMut() -> u64 + 'a> = match self {
            Stage::Receive => receive(input, path, |_| {}),
            Stage::Whole => whole(input, path, usize::from(streams)),
            Stage::Cut => cut(input),
            Stage::Id => each(chunks, move |chunk| {
                black_box(path.domain.chunk_id(chunk));
            }),
            Stage::IdBatch => id_batch(input, path),
            Stage::Keys => keys(input, path),
            Stage::Seal => seal_all(input, path),
            Stage::Encode => encode_all(input, path),
            Stage::Checksum => checksum_all(input, path),
            Stage::Kernels => kernels(input, path),
            Stage::Open => open_all(input, path),
            Stage::Rebuild => rebuild_all(input, path),
        };
        Work { step }
    }
}

/// A stage with its data, ready to run.
pub struct Work<'a> {
    step: Box<dyn FnMut() -> u64 + 'a>,
}

impl Work<'_> {
    /// Does one unit, a chunk or a few, and tells how many bytes of plaintext that was.
    pub fn step(&mut self) -> u64 {
        (self.step)()
    }
}

type Step<'a> = Box<dyn FnMut() -> u64 + 'a>;

/// One item after the other, over and over.
fn each<'a, T: AsRef<[u8]> + 'a>(items: Vec<T>, mut work: impl FnMut(&[u8]) + 'a) -> Step<'a> {
    let mut at = 0;
    Box::new(move || {
        let item = items[at].as_ref();
        at = (at + 1) % items.len();
        work(item);
        item.len() as u64
    })
}

/// The receiver alone, with cuts that are known; a step is one slice.
fn receive<'a>(input: &'a Input, path: CorePath, mut done: impl FnMut(IoBuf) + 'a) -> Step<'a> {
    let lens: Vec<usize> = input.chunks().iter().map(|chunk| chunk.len()).collect();
    let mut receiver = Receiver::new(&path, input.chunker().format().len_bytes_max as usize);
    let slices: Vec<&[u8]> = input.bytes().chunks(SLICE_LEN_BYTES).collect();
    let (mut slice, mut chunk) = (0, 0);
    Box::new(move || {
        let bytes = slices[slice];
        let cut = |filling: &[u8]| {
            let len = lens[chunk % lens.len()];
            (filling.len() >= len).then(|| {
                chunk += 1;
                len
            })
        };
        receiver.take(bytes, cut, &mut done);
        slice = (slice + 1) % slices.len();
        bytes.len() as u64
    })
}

/// As streams of the server: a step is what is received until some of it is stored.
fn whole<'a>(input: &Rc<Input>, path: CorePath, streams: usize) -> Step<'a> {
    let mut streams = Streams::begin(input, path, streams);
    Box::new(move || streams.step())
}

/// The next cut, searched slice by slice as data arrive.
fn next_cut(input: &Input, from: usize) -> usize {
    let bytes = &input.bytes()[from..];
    let mut cutter = Cutter::new();
    let mut end = SLICE_LEN_BYTES;
    while end < bytes.len() {
        if let Some(len) = cutter.cut(input.chunker(), &bytes[..end]) {
            return len;
        }
        end += SLICE_LEN_BYTES;
    }
    cutter.cut(input.chunker(), bytes).unwrap_or(bytes.len())
}

fn cut<'a>(input: &'a Input) -> Step<'a> {
    let mut at = 0;
    Box::new(move || {
        let len = next_cut(input, at);
        at = (at + len) % input.bytes().len();
        len as u64
    })
}

fn id_batch<'a>(input: &'a Input, path: CorePath) -> Step<'a> {
    let chunks = input.chunks();
    let batches: Vec<Vec<&[u8]>> = chunks.chunks(ID_BATCH).map(<[&[u8]]>::to_vec).collect();
    let mut at = 0;
    Box::new(move || {
        let batch = &batches[at];
        at = (at + 1) % batches.len();
        black_box(path.domain.chunk_ids(batch));
        batch.iter().map(|chunk| chunk.len() as u64).sum()
    })
}

fn keys<'a>(input: &'a Input, path: CorePath) -> Step<'a> {
    let mut at = 0u64;
    each(input.chunks(), move |_| {
        at += 1;
        let mut id = [0; 32];
        id[..8].copy_from_slice(&at.to_le_bytes());
        black_box(path.keys(&ChunkId(id)));
    })
}

/// A chunk in a buffer that holds its envelope too.
fn in_buffer(chunk: &[u8], shape: StripeShape) -> IoBuf {
    let mut buf = chunk_buffer(&plain_buffers(), chunk.len(), shape).resized(chunk.len());
    buf.copy_from_slice(chunk);
    buf
}

/// Sealed again and again, ciphertext over ciphertext: AES takes every byte alike.
fn seal_all<'a>(input: &'a Input, path: CorePath) -> Step<'a> {
    let mut bufs: Vec<(usize, IoBuf)> =
        input.chunks().into_iter().map(|chunk| (chunk.len(), in_buffer(chunk, path.shape))).collect();
    let (locator, dek) = path.keys(&ChunkId([1; 32]));
    let mut at = 0;
    Box::new(move || {
        let count = bufs.len();
        let (len, buf) = &mut bufs[at];
        at = (at + 1) % count;
        let binding = EnvelopeBinding::current(locator, *len as u32);
        let sealed_len = envelope_len(binding.plaintext_len);
        buf.set_len(*len);
        seal(&dek, &binding, buf, padded_len(sealed_len, shape_for(path.shape, sealed_len)));
        *len as u64
    })
}

/// The envelopes of all chunks.
fn sealed_all(input: &Input, path: &CorePath) -> Vec<(u64, Sealed)> {
    let seal = |chunk: &[u8]| (chunk.len() as u64, path.seal(&ChunkId([1; 32]), in_buffer(chunk, path.shape)));
    input.chunks().into_iter().map(seal).collect()
}

fn encode_all<'a>(input: &'a Input, path: CorePath) -> Step<'a> {
    let sealed = sealed_all(input, &path);
    let mut at = 0;
    Box::new(move || {
        let (len, sealed) = &sealed[at % sealed.len()];
        at += 1;
        let payload_len = sealed.envelope.len() / usize::from(sealed.shape.data);
        let count = parity_buffer_count(sealed.shape);
        let mut parity: Vec<IoBuf> = (0..count).map(|_| (path.buffers)(payload_len)).collect();
        path.coder.encode(&sealed.envelope, sealed.shape, &mut parity);
        black_box(&parity);
        *len
    })
}

fn checksum_all<'a>(input: &'a Input, path: CorePath) -> Step<'a> {
    let mut stripes = Vec::new();
    for (len, sealed) in sealed_all(input, &path) {
        let (locator, envelope_len_bytes, shape) = (sealed.locator, sealed.envelope_len_bytes, sealed.shape);
        let payloads: Vec<IoBytes> = path.encode(sealed);
        stripes.push((len, locator, envelope_len_bytes, shape, payloads));
    }
    let mut at = 0;
    Box::new(move || {
        let (len, locator, envelope_len_bytes, shape, payloads) = &stripes[at % stripes.len()];
        at += 1;
        for (index, payload) in payloads.iter().enumerate() {
            black_box(path.header(*locator, *envelope_len_bytes, *shape, index as u8, payload.clone()));
        }
        *len
    })
}

/// What the kernels alone allow: nothing is allocated, and nothing copied but the chunk into its buffer, since it is
/// sealed in place.
fn kernels<'a>(input: &'a Input, path: CorePath) -> Step<'a> {
    let longest = input.chunker().format().len_bytes_max as usize;
    let mut bufs: Vec<IoBuf> = (0..ID_BATCH).map(|_| chunk_buffer(&plain_buffers(), longest, path.shape)).collect();
    let mut parity: Vec<IoBuf> = (0..parity_buffer_count(path.shape)).map(|_| IoBuf::zeroed(longest)).collect();
    let mut at = 0;
    Box::new(move || {
        let mut chunks = Vec::with_capacity(ID_BATCH);
        for _ in 0..ID_BATCH {
            let len = next_cut(input, at);
            chunks.push(&input.bytes()[at..at + len]);
            at = (at + len) % input.bytes().len();
        }
        let ids = path.domain.chunk_ids(&chunks);
        for ((chunk, id), buf) in chunks.iter().zip(&ids).zip(&mut bufs) {
            let (locator, dek) = path.keys(id);
            let binding = EnvelopeBinding::current(locator, chunk.len() as u32);
            let sealed_len = envelope_len(binding.plaintext_len);
            let shape = shape_for(path.shape, sealed_len);
            buf.set_len(chunk.len());
            buf.copy_from_slice(chunk);
            seal(&dek, &binding, buf, padded_len(sealed_len, shape));
            let parity = &mut parity[..parity_buffer_count(shape)];
            path.coder.encode(buf, shape, parity);
        }
        chunks.iter().map(|chunk| chunk.len() as u64).sum()
    })
}

fn open_all<'a>(input: &'a Input, path: CorePath) -> Step<'a> {
    let sealed = sealed_all(input, &path);
    let (_, dek) = path.keys(&ChunkId([1; 32]));
    let mut out = vec![0; input.chunker().format().len_bytes_max as usize];
    let mut at = 0;
    Box::new(move || {
        let (len, sealed) = &sealed[at % sealed.len()];
        at += 1;
        let binding = EnvelopeBinding::current(sealed.locator, *len as u32);
        open(&dek, &binding, &sealed.envelope, &mut out[..*len as usize]).expect("it was sealed with this key");
        *len
    })
}

fn rebuild_all<'a>(input: &'a Input, path: CorePath) -> Step<'a> {
    let mut stripes = Vec::new();
    for (len, sealed) in sealed_all(input, &path) {
        let shape = sealed.shape;
        stripes.push((len, shape, path.encode(sealed)));
    }
    let mut at = 0;
    Box::new(move || {
        let (len, shape, payloads) = &stripes[at % stripes.len()];
        at += 1;
        let kept: Vec<(u8, &[u8])> = (1..=shape.data).map(|index| (index, &payloads[usize::from(index)][..])).collect();
        black_box(path.coder.rebuild(*shape, &kept, &[0]).expect("enough fragments are left"));
        *len
    })
}
