//! The write path from received bytes to fragments, in the order of `engine::writer` and `engine::chunk_write`, with
//! their functions. What those wait for (homes, devices) is left out; what they copy and allocate is not.

use kiseki_devices::fragment_header::FragmentHeader;
use kiseki_devices::pool::BufferPool;
use kiseki_engine::chunk_id::{DedupDomain, locator};
use kiseki_engine::chunk_write::chunk_buffer;
use kiseki_engine::envelope::{EnvelopeBinding, envelope_len, seal};
use kiseki_engine::keys::MasterKeys;
use kiseki_engine::stripe::{StripeCoder, fragment_payload_len, padded_len, parity_buffer_count, shape_for};
use kiseki_types::buf::{BufferSource, IoBuf, IoBytes};
use kiseki_types::fragment::{FragmentKey, FragmentMeta, StripeShape};
use kiseki_types::ids::{ChunkId, DeviceId, Generation, Locator, MapEpoch, MasterEpoch, PoolId};
use kiseki_types::secret::SecretKey;
use std::collections::BTreeMap;
use std::hint::black_box;
use std::rc::Rc;

/// Bytes that the server receives and searches at once.
pub const SLICE_LEN_BYTES: usize = 256 * 1024;

/// What one core of the server has at hand for every chunk.
pub struct CorePath {
    /// Names chunks.
    pub domain: DedupDomain,
    /// Encodes and rebuilds.
    pub coder: StripeCoder,
    /// Stripes of a large chunk.
    pub shape: StripeShape,
    /// Buffers of chunks, parity and headers, from a pool as a core of the server has one.
    pub buffers: BufferSource,
    masters: MasterKeys,
    locator_key: SecretKey,
}

/// An envelope and what it is called.
pub struct Sealed {
    /// Keyed name.
    pub locator: Locator,
    /// Ciphertext, tags, zeros.
    pub envelope: IoBuf,
    /// Bytes without padding.
    pub envelope_len_bytes: u32,
    /// Its stripe.
    pub shape: StripeShape,
}

impl CorePath {
    /// With keys of no meaning.
    pub fn new(shape: StripeShape) -> CorePath {
        let pool = BufferPool::with_len_bytes(kiseki_server::executor::BUFFER_POOL_LEN_BYTES);
        let masters = BTreeMap::from([(MasterEpoch(1), SecretKey::take(&mut [5; 32]))]);
        CorePath {
            domain: DedupDomain::Shared,
            coder: StripeCoder::new(),
            shape,
            buffers: Rc::new(move |len_bytes| pool.alloc(len_bytes)),
            masters: MasterKeys::new(masters).expect("one key is enough"),
            locator_key: SecretKey::take(&mut [6; 32]),
        }
    }

    /// The locator and the DEK of a chunk.
    pub fn keys(&self, chunk: &ChunkId) -> (Locator, SecretKey) {
        let locator = locator(&self.locator_key, chunk);
        let kind = EnvelopeBinding::current(locator, 1).kind();
        let dek = self.masters.shared_dek(self.masters.current(), chunk, kind).expect("the epoch is the current one");
        (locator, dek)
    }

    /// Seals a chunk in place.
    pub fn seal(&self, chunk: &ChunkId, mut plaintext: IoBuf) -> Sealed {
        let (locator, dek) = self.keys(chunk);
        let binding = EnvelopeBinding::current(locator, plaintext.len() as u32);
        let envelope_len_bytes = envelope_len(binding.plaintext_len);
        let shape = shape_for(self.shape, envelope_len_bytes);
        seal(&dek, &binding, &mut plaintext, padded_len(envelope_len_bytes, shape));
        Sealed { locator, envelope: plaintext, envelope_len_bytes, shape }
    }

    /// The payloads of the stripe.
    pub fn encode(&self, sealed: Sealed) -> Vec<IoBytes> {
        let payload_len = fragment_payload_len(sealed.envelope_len_bytes, sealed.shape) as usize;
        let parity_count = parity_buffer_count(sealed.shape);
        let mut parity: Vec<IoBuf> = (0..parity_count).map(|_| (self.buffers)(payload_len)).collect();
        self.coder.encode(&sealed.envelope, sealed.shape, &mut parity);
        let envelope = sealed.envelope.freeze();
        if sealed.shape.data == 1 {
            return vec![envelope; sealed.shape.width()];
        }
        let data = (0..usize::from(sealed.shape.data))
            .map(|index| envelope.slice(index * payload_len..(index + 1) * payload_len));
        data.chain(parity.into_iter().map(IoBuf::freeze)).collect()
    }

    /// Everything after the id: keys, seal, encode, and each fragment's header with its checksums.
    pub fn store(&self, chunk: &ChunkId, plaintext: IoBuf) {
        let sealed = self.seal(chunk, plaintext);
        let (locator, envelope_len_bytes, shape) = (sealed.locator, sealed.envelope_len_bytes, sealed.shape);
        for (index, payload) in self.encode(sealed).into_iter().enumerate() {
            black_box(self.header(locator, envelope_len_bytes, shape, index as u8, payload));
        }
    }

    /// The header of a fragment: what the device room adds to a payload.
    pub fn header(
        &self,
        locator: Locator,
        envelope_len_bytes: u32,
        shape: StripeShape,
        index: u8,
        payload: IoBytes,
    ) -> IoBuf {
        let meta = FragmentMeta {
            key: FragmentKey { locator, generation: Generation(1), index },
            shape,
            pool: PoolId(0),
            envelope_len_bytes,
            payload_len_bytes: payload.len() as u32,
            map_epoch: MapEpoch(1),
            devices: (0..shape.width()).map(|device| DeviceId([device as u8; 16])).collect(),
        };
        FragmentHeader::of(meta, &[payload]).encode(&self.buffers)
    }
}

/// Takes received bytes in slices into chunk buffers, as the writer of a stream does.
pub struct Receiver {
    buffers: BufferSource,
    filling: Option<IoBuf>,
    shape: StripeShape,
    len_bytes_max: usize,
}

impl Receiver {
    /// At the start of a stream.
    pub fn new(path: &CorePath, len_bytes_max: usize) -> Receiver {
        Receiver { buffers: path.buffers.clone(), filling: None, shape: path.shape, len_bytes_max }
    }

    fn buffer(&self) -> IoBuf {
        chunk_buffer(&self.buffers, self.len_bytes_max, self.shape)
    }

    /// Takes a slice; `cut` tells the length of the chunk that the bytes begin with, `done` gets the chunk.
    pub fn take(&mut self, mut bytes: &[u8], mut cut: impl FnMut(&[u8]) -> Option<usize>, mut done: impl FnMut(IoBuf)) {
        while !bytes.is_empty() {
            let mut filling = self.filling.take().unwrap_or_else(|| self.buffer());
            let start = filling.len();
            let (now, later) = bytes.split_at(bytes.len().min(self.len_bytes_max - start).min(SLICE_LEN_BYTES));
            filling.set_len(start + now.len());
            filling[start..].copy_from_slice(now);
            bytes = later;
            while let Some(len) = cut(&filling) {
                let mut rest = self.buffer();
                rest.set_len(filling.len() - len);
                rest.copy_from_slice(&filling[len..]);
                filling.set_len(len);
                done(filling);
                filling = rest;
            }
            self.filling = (!filling.is_empty()).then_some(filling);
        }
    }

    /// Ends the stream: what is left is the last chunk. The stages never come to an end.
    #[cfg(test)]
    pub fn finish(&mut self, done: impl FnMut(IoBuf)) {
        self.filling.take().into_iter().for_each(done);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::input::{Data, Input};
    use kiseki_engine::chunker::Cutter;

    #[test]
    fn the_receiver_makes_the_chunks_that_the_chunker_says() {
        let input = Input::new(Data::Mixed, 20 << 20, 3);
        let path = CorePath::new(StripeShape { data: 4, parity: 2 });
        let mut receiver = Receiver::new(&path, input.chunker().format().len_bytes_max as usize);
        let (mut cutter, mut chunks) = (Cutter::new(), Vec::new());
        for slice in input.bytes().chunks(100_000) {
            receiver.take(slice, |bytes| cutter.cut(input.chunker(), bytes), |chunk| chunks.push(chunk));
        }
        receiver.finish(|chunk| chunks.push(chunk));
        let found: Vec<&[u8]> = chunks.iter().map(|chunk| &chunk[..]).collect();
        assert!(found == input.chunks());
    }

    #[test]
    fn what_is_sealed_and_encoded_is_a_whole_stripe() {
        let path = CorePath::new(StripeShape { data: 4, parity: 2 });
        let mut buf = chunk_buffer(&path.buffers, 1 << 20, path.shape).resized(1 << 20);
        buf.fill(9);
        let chunk = path.domain.chunk_id(&buf);
        let payloads = path.encode(path.seal(&chunk, buf));
        assert_eq!(payloads.len(), 6);
        let kept: Vec<(u8, &[u8])> = (2..6).map(|index| (index as u8, &payloads[index][..])).collect();
        let rebuilt = path.coder.rebuild(path.shape, &kept, &[0, 1]).unwrap();
        assert!(rebuilt[0][..] == payloads[0][..] && rebuilt[1][..] == payloads[1][..]);
        path.store(&chunk, chunk_buffer(&path.buffers, 100, path.shape).resized(100)); // a small chunk is stored as copies
    }
}
