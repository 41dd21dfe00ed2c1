//! From an envelope to the fragments of a stripe, and back when some are lost (docs/formats/stripe.md).

#[cfg(test)]
mod tests;

use kiseki_kernels::erasure::{Coder, Matrix};
use kiseki_types::buf::IoBuf;
use kiseki_types::fragment::StripeShape;
use kiseki_types::limits::{DEVICE_BLOCK_BYTES_MAX, ENVELOPE_LEN_BYTES_MAX, STRIPE_WIDTH_MAX};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use thiserror::Error;

/// Tables kept for rebuilding, one for each pattern of losses met. A stripe of 8+3 has 231 patterns of at most three
/// losses; when more are met the cache starts again.
const REBUILD_TABLES_MAX: usize = 256;

/// Why a stripe can't be rebuilt, or a shape not be used.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StripeError {
    /// No such stripe can be made.
    #[error("stripe shape {data}+{parity} is out of limits")]
    Shape {
        /// Data fragments.
        data: u8,
        /// Parity fragments or further copies.
        parity: u8,
    },
    /// More was lost than the shape survives.
    #[error("{available} fragments are left of a stripe that needs {needed}")]
    TooFew {
        /// Different fragments given.
        available: usize,
        /// Fragments needed.
        needed: usize,
    },
    /// Fragments of different lengths, or an index outside the stripe: they are not of one stripe.
    #[error("fragment {index} does not belong to the stripe")]
    Stranger {
        /// Its index.
        index: u8,
    },
}

/// Whether a shape can be used at all: at least one data fragment, not too wide.
pub fn check_shape(shape: StripeShape) -> Result<(), StripeError> {
    match shape.data > 0 && shape.width() <= STRIPE_WIDTH_MAX {
        true => Ok(()),
        false => Err(StripeError::Shape { data: shape.data, parity: shape.parity }),
    }
}

/// The shape of one chunk's stripe in a pool of `pool_shape`: an envelope smaller than one block for each data
/// fragment is stored as `parity + 1` copies, which survive as many losses and cost no more.
#[must_use]
pub fn shape_for(pool_shape: StripeShape, envelope_len: u32) -> StripeShape {
    let small = (envelope_len as usize) < usize::from(pool_shape.data) * DEVICE_BLOCK_BYTES_MAX;
    StripeShape { data: if small { 1 } else { pool_shape.data }, parity: pool_shape.parity }
}

/// Bytes of each fragment's payload: the smallest multiple of 4096 of which `data` hold the envelope.
#[must_use]
pub fn fragment_payload_len(envelope_len: u32, shape: StripeShape) -> u32 {
    assert!(envelope_len as usize <= ENVELOPE_LEN_BYTES_MAX, "an envelope of {envelope_len} bytes");
    envelope_len.div_ceil(u32::from(shape.data)).next_multiple_of(DEVICE_BLOCK_BYTES_MAX as u32)
}

/// Bytes of the padded envelope: all data fragments, one after the other.
#[must_use]
pub fn padded_len(envelope_len: u32, shape: StripeShape) -> usize {
    usize::from(shape.data) * fragment_payload_len(envelope_len, shape) as usize
}

/// Buffers that [`StripeCoder::encode`] fills: none with copies, where the envelope itself is every fragment.
#[must_use]
pub fn parity_buffer_count(shape: StripeShape) -> usize {
    if shape.data == 1 { 0 } else { usize::from(shape.parity) }
}

/// Which fragments a set of tables rebuilds from which: (data, parity, sources, wanted).
type Pattern = (u8, u8, Vec<u8>, Vec<u8>);

/// Encodes and rebuilds stripes; keeps the tables of each shape and each pattern of losses. One for each core.
#[derive(Default)]
pub struct StripeCoder {
    encoding: RefCell<BTreeMap<(u8, u8), Rc<Coder>>>,
    rebuilding: RefCell<BTreeMap<Pattern, Rc<Coder>>>,
}

impl StripeCoder {
    /// A coder without tables yet.
    #[must_use]
    pub fn new() -> StripeCoder {
        StripeCoder::default()
    }

    /// Fills the parity fragments of a padded envelope, whose equal parts are the data fragments.
    ///
    /// - `envelope`: `data` payloads, one after the other.
    /// - `parity`: [`parity_buffer_count`] buffers; each is set to the length of a payload and overwritten.
    ///
    /// Panics when the lengths, the capacities or the shape do not fit: that is our own bug. Cost: one pass.
    pub fn encode(&self, envelope: &[u8], shape: StripeShape, parity: &mut [IoBuf]) {
        check_shape(shape).expect("only checked shapes are used");
        assert_eq!(parity.len(), parity_buffer_count(shape), "parity buffers of {shape:?}");
        let blocks = usize::from(shape.data) * DEVICE_BLOCK_BYTES_MAX;
        assert!(!envelope.is_empty() && envelope.len().is_multiple_of(blocks), "{} bytes, {shape:?}", envelope.len());
        if parity.is_empty() {
            return;
        }
        let payload_len = envelope.len() / usize::from(shape.data);
        parity.iter_mut().for_each(|buf| buf.set_len(payload_len));
        let data: Vec<&[u8]> = envelope.chunks(payload_len).collect();
        self.encoder(shape).apply(&data, &mut parity.iter_mut().map(|buf| &mut **buf).collect::<Vec<_>>());
    }

    /// Rebuilds fragments from any `data` others of their stripe.
    ///
    /// - `available`: index and bytes; payloads, or the same byte range of each payload (the code works byte by byte).
    ///   More than `data` are welcome; data fragments are used first.
    /// - `want`: indices, in the order in which they are returned; one that is available is returned as a copy.
    pub fn rebuild(
        &self,
        shape: StripeShape,
        available: &[(u8, &[u8])],
        want: &[u8],
    ) -> Result<Vec<IoBuf>, StripeError> {
        check_shape(shape)?;
        let by_index: BTreeMap<u8, &[u8]> = available.iter().copied().collect();
        let needed = usize::from(shape.data);
        if by_index.len() < needed {
            return Err(StripeError::TooFew { available: by_index.len(), needed });
        }
        let len = available[0].1.len();
        let outside = |index: &u8| usize::from(*index) >= shape.width();
        let stranger = available.iter().find(|(index, bytes)| outside(index) || bytes.len() != len);
        if let Some(index) = stranger.map(|(index, _)| index).or(want.iter().find(|index| outside(index))) {
            return Err(StripeError::Stranger { index: *index });
        }
        let sources: Vec<(u8, &[u8])> = by_index.iter().take(needed).map(|(index, bytes)| (*index, *bytes)).collect();
        if shape.data == 1 {
            return Ok(want.iter().map(|_| IoBuf::copy_of(sources[0].1)).collect());
        }
        let mut rebuilt: Vec<IoBuf> = want.iter().map(|_| IoBuf::zeroed(len)).collect();
        if !want.is_empty() && len > 0 {
            let (indices, bytes): (Vec<u8>, Vec<&[u8]>) = sources.into_iter().unzip();
            let coder = self.rebuilder(shape, indices, want);
            coder.apply(&bytes, &mut rebuilt.iter_mut().map(|buf| &mut **buf).collect::<Vec<_>>());
        }
        Ok(rebuilt)
    }

    fn encoder(&self, shape: StripeShape) -> Rc<Coder> {
        let mut coders = self.encoding.borrow_mut();
        let make = || {
            let parity_rows: Vec<usize> = (usize::from(shape.data)..shape.width()).collect();
            Rc::new(Coder::new(generator(shape).select(&parity_rows)))
        };
        coders.entry((shape.data, shape.parity)).or_insert_with(make).clone()
    }

    /// Tables that make the fragments `want` from the fragments `sources`: the wanted rows of the generator, times the
    /// inverse of the rows that the sources are.
    fn rebuilder(&self, shape: StripeShape, sources: Vec<u8>, want: &[u8]) -> Rc<Coder> {
        let mut coders = self.rebuilding.borrow_mut();
        let pattern = (shape.data, shape.parity, sources, want.to_vec());
        if let Some(coder) = coders.get(&pattern) {
            return coder.clone();
        }
        let rows = |indices: &[u8]| indices.iter().map(|index| usize::from(*index)).collect::<Vec<_>>();
        let to_data = generator(shape).select(&rows(&pattern.2)).inverse();
        let to_data = to_data.expect("any `data` rows of a Cauchy generator are independent");
        let coder = Rc::new(Coder::new(generator(shape).select(&rows(want)).times(&to_data)));
        if coders.len() >= REBUILD_TABLES_MAX {
            coders.clear();
        }
        coders.insert(pattern, coder.clone());
        coder
    }
}

fn generator(shape: StripeShape) -> Matrix {
    Matrix::cauchy_generator(usize::from(shape.data), usize::from(shape.parity))
}
