//! Tables of a tenant's shard, and how their keys are made. All lie in the sealed rows file.
//! Byte layout: `docs/formats/names.md`.

use crate::key_ranges::{KeyRange, decode_end, encode_end};
use crate::names::{push_escaped, push_escaped_prefix, take_escaped};
use crate::split_message::{Attempt, SplitOrder};
use kiseki_types::codec::{CodecError, Reader, Writer};
use kiseki_types::ids::{NamespaceId, PageId, UploadId};

/// (directory, name, inverted version) -> [`crate::composition::Entry`].
pub const ENTRIES: u8 = 1;
/// Page id -> [`crate::composition::Page`].
pub const PAGES: u8 = 2;
/// (namespace, key, upload id) -> [`crate::composition::UploadEntry`].
pub const UPLOADS: u8 = 3;
/// (upload id, part number) -> [`crate::composition::PartEntry`].
pub const PARTS: u8 = 4;
/// Page id -> nothing: committed, but no name reaches it yet.
pub const LOOSE: u8 = 5;
/// Page id -> nothing: no name reaches it any more; its counts fall in a later delta.
pub const DROPPED: u8 = 6;
/// Namespace -> nothing, or who closed it: it takes no objects any more.
pub const CLOSED: u8 = 7;
/// (namespace, first key) -> a range of keys that was given away, see [`encode_given`].
pub const GIVEN: u8 = 8;
/// Child -> the split that fills it, see [`encode_split`].
pub const SPLITS: u8 = 9;
/// Namespace -> the last call that handed keys of it over, see [`encode_attempt`].
pub const TAKEN: u8 = 10;

/// Nothing -> the shard's [`crate::inline_threshold::Threshold`], if it was ever changed.
pub const INLINE: u8 = 11;

/// Version of the rows of splits.
const SPLIT_FORMAT: u8 = 1;

/// Key of [`UPLOADS`].
#[must_use]
pub fn upload_key(namespace: NamespaceId, key: &str, upload: UploadId) -> Vec<u8> {
    let mut out = namespace.0.to_be_bytes().to_vec();
    push_escaped(&mut out, key.as_bytes());
    out.extend_from_slice(&upload.0);
    out
}

/// Start of all keys of [`UPLOADS`] in a namespace whose object keys start with `prefix`.
#[must_use]
pub fn upload_prefix(namespace: NamespaceId, prefix: &str) -> Vec<u8> {
    let mut out = namespace.0.to_be_bytes().to_vec();
    push_escaped_prefix(&mut out, prefix.as_bytes());
    out
}

/// Object key and upload id from a key of [`UPLOADS`]; `None` when it is not well formed.
#[must_use]
pub fn parse_upload_key(bytes: &[u8]) -> Option<(String, UploadId)> {
    let (key, rest) = take_escaped(bytes.get(8..)?)?;
    Some((String::from_utf8(key).ok()?, UploadId(rest.try_into().ok()?)))
}

/// Key of [`PARTS`].
#[must_use]
pub fn part_key(upload: UploadId, part: u16) -> Vec<u8> {
    let mut out = upload.0.to_vec();
    out.extend_from_slice(&part.to_be_bytes());
    out
}

/// Part number from a key of [`PARTS`]; `None` when it is not well formed.
#[must_use]
pub fn parse_part_key(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(16..)?.try_into().ok()?))
}

/// Key of [`PAGES`], [`LOOSE`] and [`DROPPED`].
#[must_use]
pub fn page_key(page: PageId) -> Vec<u8> {
    page.0.to_vec()
}

/// Key of [`GIVEN`].
#[must_use]
pub fn given_key(range: &KeyRange) -> Vec<u8> {
    let mut out = range.namespace.0.to_be_bytes().to_vec();
    push_escaped(&mut out, range.start.as_bytes());
    out
}

/// Row of [`GIVEN`].
#[must_use]
pub fn encode_given(range: &KeyRange) -> Vec<u8> {
    let mut writer = Writer::new();
    range.encode(writer.u8(SPLIT_FORMAT));
    writer.finish()
}

/// Back from a row of [`GIVEN`].
pub fn decode_given(bytes: &[u8]) -> Result<KeyRange, CodecError> {
    let mut reader = split_row("range that was given away", bytes)?;
    let range = KeyRange::decode(&mut reader)?;
    reader.end()?;
    Ok(range)
}

/// Row of [`SPLITS`]: what is to move, and up to where.
#[must_use]
pub fn encode_split(order: &SplitOrder, end: Option<&str>) -> Vec<u8> {
    let mut writer = Writer::new();
    order.encode(writer.u8(SPLIT_FORMAT));
    encode_end(&mut writer, end);
    writer.finish()
}

/// Back from a row of [`SPLITS`].
pub fn decode_split(bytes: &[u8]) -> Result<(SplitOrder, Option<String>), CodecError> {
    let mut reader = split_row("split", bytes)?;
    let order = SplitOrder::decode(&mut reader)?;
    let end = decode_end(&mut reader)?;
    reader.end()?;
    Ok((order, end))
}

/// Row of [`TAKEN`].
#[must_use]
pub fn encode_attempt(attempt: Attempt) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.u8(SPLIT_FORMAT).u64(attempt.term).u64(attempt.count);
    writer.finish()
}

/// Back from a row of [`TAKEN`].
pub fn decode_attempt(bytes: &[u8]) -> Result<Attempt, CodecError> {
    let mut reader = split_row("call that hands keys over", bytes)?;
    let attempt = Attempt { term: reader.u64()?, count: reader.u64()? };
    reader.end()?;
    Ok(attempt)
}

fn split_row<'a>(what: &'static str, bytes: &'a [u8]) -> Result<Reader<'a>, CodecError> {
    let mut reader = Reader::new(what, bytes);
    match reader.u8()? {
        SPLIT_FORMAT => Ok(reader),
        other => Err(reader.unknown(u64::from(other))),
    }
}
