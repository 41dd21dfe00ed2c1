//! Tables of a tenant's shard, and how their keys are made. All lie in the sealed rows file.
//! Byte layout: `docs/formats/names.md`.

use crate::names::{push_escaped, push_escaped_prefix, take_escaped};
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
/// Namespace -> nothing: it takes no objects any more.
pub const CLOSED: u8 = 7;

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
