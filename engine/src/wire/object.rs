//! Objects, uploads and parts as requests name them and answers show them.

use super::WireError;
use super::field::{array, elements, sent, take_text};
use super::frame::{count, fits, malformed, within};
use crate::api::{Attributes, Condition, ListItem, ListPage, ObjectInfo, PartInfo, UploadInfo};
use crate::composition::{
    ATTRIBUTE_LEN_BYTES_MAX, ATTRIBUTES_LEN_BYTES_MAX, ATTRIBUTES_MAX, PARTS_MAX, decode_attributes, encode_attributes,
};
use crate::control_service::LISTED_MAX;
use crate::engine_capnp::{condition, list_item, listing, object_info, object_path, part_info, upload_info};
use crate::message::ObjectPath;
use capnp::struct_list;
use kiseki_types::codec::{Reader, Writer};
use kiseki_types::ids::{DirId, NamespaceId, UploadId};
use kiseki_types::limits::KEY_LEN_BYTES_MAX;

/// What of a key is a prefix, a delimiter or a place in a listing: a client chooses its length.
pub(super) const PATTERN_LEN_BYTES_MAX: usize = ATTRIBUTE_LEN_BYTES_MAX;

/// Writes where an object lies.
pub(super) fn put_path(mut out: object_path::Builder<'_>, path: &ObjectPath) -> Result<(), WireError> {
    out.set_namespace(path.namespace.0);
    out.set_root(&path.root.0);
    out.set_key(sent("bytes of a key", &path.key, KEY_LEN_BYTES_MAX)?);
    Ok(())
}

/// Where an object lies.
pub(super) fn take_path(path: object_path::Reader<'_>) -> Result<ObjectPath, WireError> {
    Ok(ObjectPath {
        namespace: NamespaceId(path.get_namespace()),
        root: DirId(array("a directory id", path.get_root())?),
        key: take_text("bytes of a key", KEY_LEN_BYTES_MAX, path.get_key())?,
    })
}

/// Writes a condition.
pub(super) fn put_condition(mut out: condition::Builder<'_>, condition: &Condition) -> Result<(), WireError> {
    let etag = |etag| sent("bytes of an ETag", etag, ATTRIBUTE_LEN_BYTES_MAX);
    match condition {
        Condition::None => out.set_none(()),
        Condition::IfAbsent => out.set_if_absent(()),
        Condition::IfMatch(tag) => out.set_if_match(etag(tag)?),
        Condition::IfNoneMatch(tag) => out.set_if_none_match(etag(tag)?),
    }
    Ok(())
}

/// A condition.
pub(super) fn take_condition(condition: condition::Reader<'_>) -> Result<Condition, WireError> {
    let etag = |etag| take_text("bytes of an ETag", ATTRIBUTE_LEN_BYTES_MAX, etag);
    Ok(match condition.which()? {
        condition::None(()) => Condition::None,
        condition::IfAbsent(()) => Condition::IfAbsent,
        condition::IfMatch(tag) => Condition::IfMatch(etag(tag)?),
        condition::IfNoneMatch(tag) => Condition::IfNoneMatch(etag(tag)?),
    })
}

/// Refuses attributes that no row is given: to be sent.
pub(super) fn check_attributes(attributes: &Attributes) -> Result<(), WireError> {
    fits("attributes", attributes.len(), ATTRIBUTES_MAX)?;
    for text in attributes.iter().flat_map(|(name, value)| [name, value]) {
        fits("bytes of an attribute", text.len(), ATTRIBUTE_LEN_BYTES_MAX)?;
    }
    let len = attributes.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
    fits("bytes of attributes", len, ATTRIBUTES_LEN_BYTES_MAX)
}

/// Refuses attributes that no row is given: that came.
pub(super) fn came(attributes: Attributes) -> Result<Attributes, WireError> {
    check_attributes(&attributes).map_err(|error| malformed(error.to_string()))?;
    Ok(attributes)
}

/// Attributes as rows hold them.
pub(super) fn attribute_bytes(attributes: &Attributes) -> Result<Vec<u8>, WireError> {
    check_attributes(attributes)?;
    let mut writer = Writer::new();
    encode_attributes(&mut writer, attributes);
    Ok(writer.finish())
}

/// Attributes; no bytes are none.
pub(super) fn take_attributes(bytes: capnp::Result<&[u8]>) -> Result<Attributes, WireError> {
    let bytes = bytes?;
    if bytes.is_empty() {
        return Ok(Attributes::new());
    }
    let mut reader = Reader::new("attributes", bytes);
    let attributes = decode_attributes(&mut reader)?;
    reader.end()?;
    came(attributes)
}

/// Writes an object.
pub(super) fn put_object(mut out: object_info::Builder<'_>, object: &ObjectInfo) -> Result<(), WireError> {
    out.set_key(sent("bytes of a key", &object.key, PATTERN_LEN_BYTES_MAX)?);
    out.set_len_bytes(object.len_bytes);
    out.set_modified_unix_ms(object.modified_unix_ms);
    out.set_etag(sent("bytes of an ETag", &object.etag, ATTRIBUTE_LEN_BYTES_MAX)?);
    if !object.attributes.is_empty() {
        out.set_attributes(&attribute_bytes(&object.attributes)?);
    }
    fits("parts of an object", object.part_lens_bytes.len(), PARTS_MAX)?;
    if !object.part_lens_bytes.is_empty() {
        let mut lens = out.init_part_lens_bytes(count(object.part_lens_bytes.len()));
        object.part_lens_bytes.iter().enumerate().for_each(|(at, len)| lens.set(count(at), *len));
    }
    Ok(())
}

/// An object.
pub(super) fn take_object(object: object_info::Reader<'_>) -> Result<ObjectInfo, WireError> {
    let lens = object.get_part_lens_bytes()?;
    within("parts of an object", u64::from(lens.len()), PARTS_MAX as u64)?;
    Ok(ObjectInfo {
        key: take_text("bytes of a key", PATTERN_LEN_BYTES_MAX, object.get_key())?,
        len_bytes: object.get_len_bytes(),
        modified_unix_ms: object.get_modified_unix_ms(),
        etag: take_text("bytes of an ETag", ATTRIBUTE_LEN_BYTES_MAX, object.get_etag())?,
        attributes: take_attributes(object.get_attributes())?,
        part_lens_bytes: lens.iter().collect(),
    })
}

/// Writes a part.
pub(super) fn put_part(mut out: part_info::Builder<'_>, part: &PartInfo) -> Result<(), WireError> {
    out.set_part(part.part);
    out.set_len_bytes(part.len_bytes);
    out.set_modified_unix_ms(part.modified_unix_ms);
    out.set_etag(sent("bytes of an ETag", &part.etag, ATTRIBUTE_LEN_BYTES_MAX)?);
    if !part.attributes.is_empty() {
        out.set_attributes(&attribute_bytes(&part.attributes)?);
    }
    Ok(())
}

/// A part.
pub(super) fn take_part(part: part_info::Reader<'_>) -> Result<PartInfo, WireError> {
    Ok(PartInfo {
        part: part.get_part(),
        len_bytes: part.get_len_bytes(),
        modified_unix_ms: part.get_modified_unix_ms(),
        etag: take_text("bytes of an ETag", ATTRIBUTE_LEN_BYTES_MAX, part.get_etag())?,
        attributes: take_attributes(part.get_attributes())?,
    })
}

/// Writes an upload.
pub(super) fn put_upload(mut out: upload_info::Builder<'_>, upload: &UploadInfo) -> Result<(), WireError> {
    out.set_upload(&upload.upload.0);
    out.set_key(sent("bytes of a key", &upload.key, KEY_LEN_BYTES_MAX)?);
    out.set_initiated_unix_ms(upload.initiated_unix_ms);
    if !upload.attributes.is_empty() {
        out.set_attributes(&attribute_bytes(&upload.attributes)?);
    }
    Ok(())
}

/// An upload.
pub(super) fn take_upload(upload: upload_info::Reader<'_>) -> Result<UploadInfo, WireError> {
    Ok(UploadInfo {
        upload: UploadId(array("an upload id", upload.get_upload())?),
        key: take_text("bytes of a key", KEY_LEN_BYTES_MAX, upload.get_key())?,
        initiated_unix_ms: upload.get_initiated_unix_ms(),
        attributes: take_attributes(upload.get_attributes())?,
    })
}

/// Writes uploads into a list of their number.
pub(super) fn put_uploads(
    mut out: struct_list::Builder<'_, upload_info::Owned>,
    uploads: &[UploadInfo],
) -> Result<(), WireError> {
    (uploads.iter().enumerate()).try_for_each(|(at, upload)| put_upload(out.reborrow().get(count(at)), upload))
}

/// Writes parts into a list of their number.
pub(super) fn put_parts(
    mut out: struct_list::Builder<'_, part_info::Owned>,
    parts: &[PartInfo],
) -> Result<(), WireError> {
    parts.iter().enumerate().try_for_each(|(at, part)| put_part(out.reborrow().get(count(at)), part))
}

/// Writes a page of a listing.
pub(super) fn put_listing(mut out: listing::Builder<'_>, page: &ListPage) -> Result<(), WireError> {
    out.set_truncated(page.truncated);
    fits("entries of a listing", page.items.len(), LISTED_MAX)?;
    let mut items = out.init_items(count(page.items.len()));
    for (at, item) in page.items.iter().enumerate() {
        let mut out = items.reborrow().get(count(at));
        match item {
            ListItem::Object(object) => put_object(out.init_object(), object)?,
            ListItem::CommonPrefix(prefix) => {
                out.set_common_prefix(sent("bytes of a prefix", prefix, PATTERN_LEN_BYTES_MAX)?);
            }
        }
    }
    Ok(())
}

/// A page of a listing.
pub(super) fn take_listing(listing: listing::Reader<'_>) -> Result<ListPage, WireError> {
    let item = |item: list_item::Reader<'_>| {
        Ok(match item.which()? {
            list_item::Object(object) => ListItem::Object(take_object(object?)?),
            list_item::CommonPrefix(prefix) => {
                ListItem::CommonPrefix(take_text("bytes of a prefix", PATTERN_LEN_BYTES_MAX, prefix)?)
            }
        })
    };
    let items = elements("entries of a listing", LISTED_MAX, listing.get_items())?;
    Ok(ListPage { items: items.map(item).collect::<Result<_, WireError>>()?, truncated: listing.get_truncated() })
}
