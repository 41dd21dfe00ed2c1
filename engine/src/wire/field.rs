//! Fields that many messages have: ids, names of chunks, texts, keys, lists.

use super::WireError;
use super::frame::{count, fits, malformed, within};
use crate::delta::ChunkName;
use crate::engine_capnp::chunk_name;
use crate::stripe::check_shape;
use capnp::traits::ListIter;
use capnp::{data, struct_list, text};
use kiseki_types::codec::CodecError;
use kiseki_types::fragment::StripeShape;
use kiseki_types::ids::{Generation, Locator};
use kiseki_types::peer::MESSAGE_LEN_BYTES_MAX;
use kiseki_types::secret::SecretKey;
use zeroize::Zeroizing;

/// Bytes of most ids.
pub(super) const ID_LEN_BYTES: usize = 16;

impl From<CodecError> for WireError {
    fn from(error: CodecError) -> WireError {
        malformed(error.to_string())
    }
}

/// A field of fixed length.
pub(super) fn array<const N: usize>(
    what: &'static str,
    bytes: capnp::Result<data::Reader<'_>>,
) -> Result<[u8; N], WireError> {
    let bytes = bytes?;
    bytes.try_into().map_err(|_| malformed(format!("{what} of {} bytes, {N} needed", bytes.len())))
}

/// An id of 16 bytes as two words.
pub(super) fn id_words(id: &[u8; ID_LEN_BYTES]) -> [u64; 2] {
    let (words, _) = id.as_chunks::<8>();
    [u64::from_le_bytes(words[0]), u64::from_le_bytes(words[1])]
}

/// Back from two words.
pub(super) fn id_of_words(low: u64, high: u64) -> [u8; ID_LEN_BYTES] {
    (u128::from(high) << 64 | u128::from(low)).to_le_bytes()
}

/// A locator as four words.
pub(super) fn locator_words(locator: &Locator) -> [u64; 4] {
    let (words, _) = locator.0.as_chunks::<8>();
    [0, 1, 2, 3].map(|at| u64::from_le_bytes(words[at]))
}

/// Back from four words.
pub(super) fn locator_of_words(words: [u64; 4]) -> Locator {
    let mut locator = Locator::default();
    for (place, word) in locator.0.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *place = word.to_le_bytes();
    }
    locator
}

/// Writes ids one after the other into data of their length.
pub(super) fn put_ids<'a>(out: &mut [u8], ids: impl Iterator<Item = &'a [u8; ID_LEN_BYTES]>) {
    out.as_chunks_mut::<ID_LEN_BYTES>().0.iter_mut().zip(ids).for_each(|(place, id)| *place = *id);
}

/// Bytes of a list of ids that is within its limit.
pub(super) fn ids_len(what: &'static str, ids: usize, limit: usize) -> Result<u32, WireError> {
    fits(what, ids, limit)?;
    Ok(count(ids * ID_LEN_BYTES))
}

/// Ids that stand one after the other.
pub(super) fn take_ids<T>(
    what: &'static str,
    limit: usize,
    bytes: capnp::Result<data::Reader<'_>>,
    id: fn([u8; ID_LEN_BYTES]) -> T,
) -> Result<Vec<T>, WireError> {
    let (ids, rest) = bytes?.as_chunks::<ID_LEN_BYTES>();
    if !rest.is_empty() {
        return Err(malformed(format!("{what}: the last id is cut off")));
    }
    within(what, ids.len() as u64, limit as u64)?;
    Ok(ids.iter().map(|bytes| id(*bytes)).collect())
}

/// A text within its limit, to be sent.
pub(super) fn sent<'a>(what: &'static str, text: &'a str, limit: usize) -> Result<&'a str, WireError> {
    fits(what, text.len(), limit)?;
    Ok(text)
}

/// A text for people, cut where a character ends.
pub(super) fn cut(text: &str, limit: usize) -> &str {
    &text[..text.floor_char_boundary(limit)]
}

/// A text that came.
pub(super) fn take_text(
    what: &'static str,
    limit: usize,
    text: capnp::Result<text::Reader<'_>>,
) -> Result<String, WireError> {
    let text = text?;
    within(what, text.len() as u64, limit as u64)?;
    // What it holds is not shown: it may be a secret or a name.
    Ok(text.to_str().map_err(|_| malformed(format!("{what} is no UTF-8 text")))?.to_owned())
}

/// A text that came and is a secret.
pub(super) fn take_secret(
    what: &'static str,
    limit: usize,
    text: capnp::Result<text::Reader<'_>>,
) -> Result<Zeroizing<String>, WireError> {
    take_text(what, limit, text).map(Zeroizing::new)
}

/// A key.
pub(super) fn take_key(what: &'static str, bytes: capnp::Result<data::Reader<'_>>) -> Result<SecretKey, WireError> {
    let bytes = bytes?;
    let mut key = [0; 32];
    if bytes.len() != key.len() {
        return Err(malformed(format!("{what} of {} bytes, {} needed", bytes.len(), key.len())));
    }
    key.copy_from_slice(bytes);
    Ok(SecretKey::take(&mut key)) // which wipes the copy
}

/// A row that is to be sent.
pub(super) fn row(what: &'static str, row: Vec<u8>) -> Result<Vec<u8>, WireError> {
    fits(what, row.len(), MESSAGE_LEN_BYTES_MAX)?;
    Ok(row)
}

/// The elements of a list that came, within their limit.
pub(super) fn elements<'a, T: capnp::traits::OwnedStruct>(
    what: &'static str,
    limit: usize,
    list: capnp::Result<struct_list::Reader<'a, T>>,
) -> Result<ListIter<struct_list::Reader<'a, T>, T::Reader<'a>>, WireError> {
    let list = list?;
    within(what, u64::from(list.len()), limit as u64)?;
    Ok(list.iter())
}

/// Refuses a message that lacks something.
pub(super) fn needed(what: &'static str, is_there: bool) -> Result<(), WireError> {
    if is_there { Ok(()) } else { Err(malformed(format!("{what} is missing"))) }
}

/// Writes the name of a generation.
pub(super) fn put_name(mut out: chunk_name::Builder<'_>, name: &ChunkName) {
    let [a, b, c, d] = locator_words(&name.locator);
    out.set_a(a);
    out.set_b(b);
    out.set_c(c);
    out.set_d(d);
    out.set_generation(name.generation.0);
}

/// The name of a generation.
pub(super) fn take_name(name: chunk_name::Reader<'_>) -> ChunkName {
    let locator = locator_of_words([name.get_a(), name.get_b(), name.get_c(), name.get_d()]);
    ChunkName { locator, generation: Generation(name.get_generation()) }
}

/// Writes names into a list of their number.
pub(super) fn put_names(mut out: struct_list::Builder<'_, chunk_name::Owned>, names: &[ChunkName]) {
    for (at, name) in names.iter().enumerate() {
        put_name(out.reborrow().get(count(at)), name);
    }
}

/// Names within their limit.
pub(super) fn take_names(
    what: &'static str,
    limit: usize,
    list: capnp::Result<struct_list::Reader<'_, chunk_name::Owned>>,
) -> Result<Vec<ChunkName>, WireError> {
    Ok(elements(what, limit, list)?.map(take_name).collect())
}

/// A shape that stores something.
pub(super) fn take_shape(data: u8, parity: u8) -> Result<StripeShape, WireError> {
    let shape = StripeShape { data, parity };
    check_shape(shape).map_err(|error| malformed(error.to_string()))?;
    Ok(shape)
}

/// A count of this machine's width.
pub(super) fn take_usize(what: &'static str, value: u64) -> Result<usize, WireError> {
    usize::try_from(value).map_err(|_| malformed(format!("{what} of {value}")))
}
