//! What tenants' shards are asked.

use super::WireError;
use super::field::{array, elements, ids_len, needed, put_ids, put_name, row, sent, take_ids, take_name, take_text};
use super::frame::{count, fits, within};
use super::object::{
    PATTERN_LEN_BYTES_MAX, attribute_bytes, came, check_attributes, put_condition, put_path, take_attributes,
    take_condition, take_path,
};
use super::page::{file_row, page_row, put_written, take_file, take_written};
use crate::api::{Attributes, CompletePart, Condition, ListRequest};
use crate::composition::{ATTRIBUTE_LEN_BYTES_MAX, PAGES_MAX, PARTS_MAX, Page, PartEntry};
use crate::control_service::LISTED_MAX;
use crate::engine_capnp::{
    close_namespace, complete_part, complete_upload, list_objects, list_parts, list_uploads, named_upload,
    put_loose_page, put_part, shard_request,
};
use crate::inline_message::InlineRequest;
use crate::message::{Clip, ObjectPath, ReadId, ShardRequest};
use crate::split_message::SplitRequest;
use kiseki_types::ids::{DirId, NamespaceId, PageId, PinEpoch, UploadId};

/// Writes a request.
pub(super) fn put_request(mut out: shard_request::Builder<'_>, request: &ShardRequest) -> Result<(), WireError> {
    match request {
        ShardRequest::PinEpoch => out.set_pin_epoch(()),
        ShardRequest::PutLoosePage { namespace, pin_epoch, id, page } => {
            let mut out = out.init_put_loose_page();
            out.set_namespace(namespace.0);
            out.set_pin_epoch(pin_epoch.0);
            out.set_id(&id.0);
            out.set_page(&page_row(page)?);
        }
        ShardRequest::AbandonPages(pages) => {
            let len = ids_len("pages to abandon", pages.len(), PAGES_MAX)?;
            put_ids(out.init_abandon_pages(len), pages.iter().map(|page| &page.0));
        }
        ShardRequest::PutEntry { path, condition, file, written } => {
            let mut out = out.init_put_entry();
            put_path(out.reborrow().init_path(), path)?;
            if *condition != Condition::None {
                put_condition(out.reborrow().init_condition(), condition)?;
            }
            out.set_file(&file_row(file)?);
            put_written(out.init_written(), written)?;
        }
        ShardRequest::Head(path) => put_path(out.init_head(), path)?,
        ShardRequest::OpenRead { path, read } => {
            put_read(&mut out, *read);
            put_path(out.init_open_read(), path)?;
        }
        ShardRequest::ReadPage { page, read } => {
            put_read(&mut out, *read);
            out.set_read_page(&page.0);
        }
        ShardRequest::CloseRead { pages, read } => {
            put_read(&mut out, *read);
            let len = ids_len("pages to let go", pages.len(), PAGES_MAX)?;
            put_ids(out.init_close_read(len), pages.iter().map(|page| &page.0));
        }
        ShardRequest::Delete { path, condition } => {
            let mut out = out.init_delete();
            put_path(out.reborrow().init_path(), path)?;
            put_condition(out.init_condition(), condition)?;
        }
        ShardRequest::List { namespace, root, clip, request } => {
            let mut out = out.init_list();
            out.set_namespace(namespace.0);
            out.set_from(sent("bytes of a bound", &clip.from, PATTERN_LEN_BYTES_MAX)?);
            if let Some(until) = &clip.until {
                out.set_until(sent("bytes of a bound", until, PATTERN_LEN_BYTES_MAX)?);
            }
            put_list(out, *root, request)?;
        }
        ShardRequest::Split(request) => out.set_split(&row("bytes of a request about a split", request.encode())?),
        ShardRequest::Inline(request) => out.set_inline(&request.encode()),
        ShardRequest::CloseNamespace { namespace, root } => {
            let mut out = out.init_close_namespace();
            out.set_namespace(namespace.0);
            out.set_root(&root.0);
        }
        ShardRequest::Fence(name) => put_name(out.init_fence(), name),
        ShardRequest::Unfence(name) => put_name(out.init_unfence(), name),
        ShardRequest::CreateUpload { .. }
        | ShardRequest::PutPart { .. }
        | ShardRequest::Parts { .. }
        | ShardRequest::Uploads { .. }
        | ShardRequest::CompleteUpload { .. }
        | ShardRequest::AbortUpload { .. } => put_upload_request(out, request)?,
    }
    Ok(())
}

fn put_read(out: &mut shard_request::Builder<'_>, read: Option<ReadId>) {
    if let Some(read) = read {
        out.set_read_id(&read.0);
    }
}

fn take_read(request: shard_request::Reader<'_>) -> Result<Option<ReadId>, WireError> {
    match request.has_read_id() {
        true => Ok(Some(ReadId(array("a read id", request.get_read_id())?))),
        false => Ok(None),
    }
}

fn put_list(mut out: list_objects::Builder<'_>, root: DirId, request: &ListRequest) -> Result<(), WireError> {
    let pattern = |what, text| sent(what, text, PATTERN_LEN_BYTES_MAX);
    out.set_root(&root.0);
    out.set_prefix(pattern("bytes of a prefix", &request.prefix)?);
    if let Some(after) = &request.after {
        out.set_after(pattern("bytes of a place in a listing", after)?);
    }
    if let Some(delimiter) = &request.delimiter {
        out.set_delimiter(pattern("bytes of a delimiter", delimiter)?);
    }
    out.set_limit(put_limit(request.limit)?);
    Ok(())
}

fn put_limit(limit: usize) -> Result<u32, WireError> {
    fits("entries asked for", limit, LISTED_MAX)?;
    Ok(count(limit))
}

fn take_limit(limit: u32) -> Result<usize, WireError> {
    Ok(within("entries asked for", u64::from(limit), LISTED_MAX as u64)? as usize)
}

fn put_upload_request(out: shard_request::Builder<'_>, request: &ShardRequest) -> Result<(), WireError> {
    match request {
        ShardRequest::CreateUpload { path, attributes } => {
            let mut out = out.init_create_upload();
            put_path(out.reborrow().init_path(), path)?;
            out.set_attributes(&attribute_bytes(attributes)?);
        }
        ShardRequest::PutPart { path, upload, part, entry, written } => {
            let mut out = out.init_put_part();
            put_path(out.reborrow().init_path(), path)?;
            out.set_upload(&upload.0);
            out.set_part(*part);
            out.set_entry(&part_row(entry)?);
            put_written(out.init_written(), written)?;
        }
        ShardRequest::Parts { path, upload, after, limit } => {
            let mut out = out.init_parts();
            put_path(out.reborrow().init_path(), path)?;
            out.set_upload(&upload.0);
            out.set_after(*after);
            out.set_limit(put_limit(*limit)?);
        }
        ShardRequest::Uploads { namespace, prefix, clip, after, limit } => {
            let mut out = out.init_uploads();
            out.set_namespace(namespace.0);
            out.set_from(sent("bytes of a bound", &clip.from, PATTERN_LEN_BYTES_MAX)?);
            if let Some(until) = &clip.until {
                out.set_until(sent("bytes of a bound", until, PATTERN_LEN_BYTES_MAX)?);
            }
            out.set_prefix(sent("bytes of a prefix", prefix, PATTERN_LEN_BYTES_MAX)?);
            if let Some((key, upload)) = after {
                out.set_after_key(sent("bytes of a place in a listing", key, PATTERN_LEN_BYTES_MAX)?);
                out.set_after_upload(&upload.0);
            }
            out.set_limit(put_limit(*limit)?);
        }
        ShardRequest::CompleteUpload { path, upload, parts, condition, etag, attributes } => {
            let mut out = out.init_complete_upload();
            put_path(out.reborrow().init_path(), path)?;
            out.set_upload(&upload.0);
            put_complete(out, parts, condition, etag.as_deref(), attributes)?;
        }
        ShardRequest::AbortUpload { path, upload } => {
            let mut out = out.init_abort_upload();
            put_path(out.reborrow().init_path(), path)?;
            out.set_upload(&upload.0);
        }
        _ => unreachable!("only requests for uploads come here"),
    }
    Ok(())
}

fn part_row(entry: &PartEntry) -> Result<Vec<u8>, WireError> {
    fits("pages of a part", entry.pages.len(), PAGES_MAX)?;
    check_attributes(&entry.attributes)?;
    row("bytes of a part", entry.encode())
}

fn put_complete(
    mut out: complete_upload::Builder<'_>,
    parts: &[CompletePart],
    condition: &Condition,
    etag: Option<&str>,
    attributes: &Attributes,
) -> Result<(), WireError> {
    put_condition(out.reborrow().init_condition(), condition)?;
    if let Some(etag) = etag {
        out.set_etag(sent("bytes of an ETag", etag, ATTRIBUTE_LEN_BYTES_MAX)?);
    }
    out.set_attributes(&attribute_bytes(attributes)?);
    fits("parts to complete", parts.len(), PARTS_MAX)?;
    let mut list = out.init_parts(count(parts.len()));
    for (at, part) in parts.iter().enumerate() {
        let mut out = list.reborrow().get(count(at));
        out.set_part(part.part);
        out.set_etag(sent("bytes of an ETag", &part.etag, ATTRIBUTE_LEN_BYTES_MAX)?);
    }
    Ok(())
}

/// A request.
pub(super) fn take_request(request: shard_request::Reader<'_>) -> Result<ShardRequest, WireError> {
    Ok(match request.which()? {
        shard_request::PinEpoch(()) => ShardRequest::PinEpoch,
        shard_request::PutLoosePage(page) => take_loose(page?)?,
        shard_request::AbandonPages(pages) => {
            ShardRequest::AbandonPages(take_ids("pages to abandon", PAGES_MAX, pages, PageId)?)
        }
        shard_request::PutEntry(entry) => {
            let entry = entry?;
            ShardRequest::PutEntry {
                path: take_path(entry.get_path()?)?,
                condition: take_condition(entry.get_condition()?)?,
                file: take_file(entry.get_file()?)?,
                written: take_written(entry.get_written()?)?,
            }
        }
        shard_request::CreateUpload(upload) => {
            let upload = upload?;
            let path = take_path(upload.get_path()?)?;
            ShardRequest::CreateUpload { path, attributes: take_attributes(upload.get_attributes())? }
        }
        shard_request::PutPart(part) => take_put_part(part?)?,
        shard_request::Parts(parts) => take_parts(parts?)?,
        shard_request::Uploads(uploads) => take_uploads(uploads?)?,
        shard_request::CompleteUpload(complete) => take_complete(complete?)?,
        shard_request::AbortUpload(abort) => {
            let (path, upload) = take_named_upload(abort?)?;
            ShardRequest::AbortUpload { path, upload }
        }
        shard_request::Head(path) => ShardRequest::Head(take_path(path?)?),
        shard_request::OpenRead(path) => ShardRequest::OpenRead { path: take_path(path?)?, read: take_read(request)? },
        shard_request::ReadPage(page) => {
            ShardRequest::ReadPage { page: PageId(array("a page id", page)?), read: take_read(request)? }
        }
        shard_request::CloseRead(pages) => {
            let pages = take_ids("pages to let go", PAGES_MAX, pages, PageId)?;
            ShardRequest::CloseRead { pages, read: take_read(request)? }
        }
        shard_request::Delete(delete) => {
            let delete = delete?;
            let path = take_path(delete.get_path()?)?;
            ShardRequest::Delete { path, condition: take_condition(delete.get_condition()?)? }
        }
        shard_request::List(list) => take_list(list?)?,
        shard_request::CloseNamespace(namespace) => take_close(namespace?)?,
        shard_request::Fence(name) => {
            needed("the chunk to fence", request.has_fence())?;
            ShardRequest::Fence(take_name(name?))
        }
        shard_request::Unfence(name) => {
            needed("the chunk to pardon", request.has_unfence())?;
            ShardRequest::Unfence(take_name(name?))
        }
        shard_request::Split(split) => ShardRequest::Split(Box::new(SplitRequest::decode(split?)?)),
        shard_request::Inline(request) => ShardRequest::Inline(InlineRequest::decode(request?)?),
    })
}

fn take_loose(page: put_loose_page::Reader<'_>) -> Result<ShardRequest, WireError> {
    Ok(ShardRequest::PutLoosePage {
        namespace: NamespaceId(page.get_namespace()),
        pin_epoch: PinEpoch(page.get_pin_epoch()),
        id: PageId(array("a page id", page.get_id())?),
        page: Page::decode(page.get_page()?)?,
    })
}

fn upload_id(bytes: capnp::Result<&[u8]>) -> Result<UploadId, WireError> {
    Ok(UploadId(array("an upload id", bytes)?))
}

fn take_etag(etag: capnp::Result<capnp::text::Reader<'_>>) -> Result<String, WireError> {
    take_text("bytes of an ETag", ATTRIBUTE_LEN_BYTES_MAX, etag)
}

fn take_put_part(part: put_part::Reader<'_>) -> Result<ShardRequest, WireError> {
    let entry = PartEntry::decode(part.get_entry()?)?;
    Ok(ShardRequest::PutPart {
        path: take_path(part.get_path()?)?,
        upload: upload_id(part.get_upload())?,
        part: part.get_part(),
        entry: PartEntry { attributes: came(entry.attributes)?, ..entry },
        written: take_written(part.get_written()?)?,
    })
}

fn take_parts(parts: list_parts::Reader<'_>) -> Result<ShardRequest, WireError> {
    Ok(ShardRequest::Parts {
        path: take_path(parts.get_path()?)?,
        upload: upload_id(parts.get_upload())?,
        after: parts.get_after(),
        limit: take_limit(parts.get_limit())?,
    })
}

fn take_uploads(uploads: list_uploads::Reader<'_>) -> Result<ShardRequest, WireError> {
    let after = match uploads.has_after_upload() {
        true => {
            let key = take_text("bytes of a place in a listing", PATTERN_LEN_BYTES_MAX, uploads.get_after_key())?;
            Some((key, upload_id(uploads.get_after_upload())?))
        }
        false => None,
    };
    let until = uploads.has_until().then(|| take_bound(uploads.get_until())).transpose()?;
    Ok(ShardRequest::Uploads {
        namespace: NamespaceId(uploads.get_namespace()),
        clip: Clip { from: take_bound(uploads.get_from())?, until },
        prefix: take_text("bytes of a prefix", PATTERN_LEN_BYTES_MAX, uploads.get_prefix())?,
        after,
        limit: take_limit(uploads.get_limit())?,
    })
}

fn take_complete(complete: complete_upload::Reader<'_>) -> Result<ShardRequest, WireError> {
    let part =
        |part: complete_part::Reader<'_>| Ok(CompletePart { part: part.get_part(), etag: take_etag(part.get_etag())? });
    let parts = elements("parts to complete", PARTS_MAX, complete.get_parts())?;
    Ok(ShardRequest::CompleteUpload {
        path: take_path(complete.get_path()?)?,
        upload: upload_id(complete.get_upload())?,
        parts: parts.map(part).collect::<Result<_, WireError>>()?,
        condition: take_condition(complete.get_condition()?)?,
        etag: complete.has_etag().then(|| take_etag(complete.get_etag())).transpose()?,
        attributes: take_attributes(complete.get_attributes())?,
    })
}

fn take_named_upload(upload: named_upload::Reader<'_>) -> Result<(ObjectPath, UploadId), WireError> {
    Ok((take_path(upload.get_path()?)?, upload_id(upload.get_upload())?))
}

fn take_list(list: list_objects::Reader<'_>) -> Result<ShardRequest, WireError> {
    let pattern = |what, text| take_text(what, PATTERN_LEN_BYTES_MAX, text);
    let after = list.has_after().then(|| pattern("bytes of a place in a listing", list.get_after())).transpose()?;
    let delimiter = list.has_delimiter().then(|| pattern("bytes of a delimiter", list.get_delimiter())).transpose()?;
    let (prefix, limit) = (pattern("bytes of a prefix", list.get_prefix())?, take_limit(list.get_limit())?);
    let request = ListRequest { prefix, after, delimiter, limit };
    let until = list.has_until().then(|| take_bound(list.get_until())).transpose()?;
    let clip = Clip { from: take_bound(list.get_from())?, until };
    let (namespace, root) = (NamespaceId(list.get_namespace()), DirId(array("a directory id", list.get_root())?));
    Ok(ShardRequest::List { namespace, root, clip, request })
}

fn take_bound(bound: capnp::Result<capnp::text::Reader<'_>>) -> Result<String, WireError> {
    take_text("bytes of a bound", PATTERN_LEN_BYTES_MAX, bound)
}

fn take_close(namespace: close_namespace::Reader<'_>) -> Result<ShardRequest, WireError> {
    let root = DirId(array("a directory id", namespace.get_root())?);
    Ok(ShardRequest::CloseNamespace { namespace: NamespaceId(namespace.get_namespace()), root })
}
