//! What tenants' shards answer.

use super::WireError;
use super::field::{array, elements, needed, row};
use super::frame::{count, fits};
use super::object::{
    put_listing, put_object, put_part, put_parts, put_upload, put_uploads, take_listing, take_object, take_part,
    take_upload,
};
use super::page::{file_row, page_row, take_file};
use crate::composition::{PARTS_MAX, Page};
use crate::control_service::LISTED_MAX;
use crate::engine_capnp::shard_response;
use crate::inline_message::InlineView;
use crate::message::ShardResponse;
use crate::split_message::SplitAnswer;
use kiseki_types::ids::{PinEpoch, UploadId};

/// Writes a response.
pub(super) fn put_response(mut out: shard_response::Builder<'_>, response: &ShardResponse) -> Result<(), WireError> {
    match response {
        ShardResponse::PinEpoch(epoch) => out.set_pin_epoch(epoch.0),
        ShardResponse::Object(object) => put_object(out.init_object(), object)?,
        ShardResponse::Opened { file, first } => {
            let mut out = out.init_opened();
            out.set_file(&file_row(file)?);
            if let Some(first) = first {
                out.set_first(&page_row(first)?);
            }
        }
        ShardResponse::Page(page) => out.set_page(&page_row(page)?),
        ShardResponse::Deleted(deleted) => out.set_deleted(*deleted),
        ShardResponse::Listing(listing) => put_listing(out.init_listing(), listing)?,
        ShardResponse::Upload(upload) => out.set_upload(&upload.0),
        ShardResponse::Part(part) => put_part(out.init_part(), part)?,
        ShardResponse::Parts(upload, parts) => {
            let mut out = out.init_parts();
            put_upload(out.reborrow().init_upload(), upload)?;
            fits("parts of an upload", parts.len(), PARTS_MAX)?;
            put_parts(out.init_parts(count(parts.len())), parts)?;
        }
        ShardResponse::Uploads(uploads) => {
            fits("uploads", uploads.len(), LISTED_MAX)?;
            put_uploads(out.init_uploads(count(uploads.len())), uploads)?;
        }
        ShardResponse::Count(number) => out.set_count(*number),
        ShardResponse::NotInline { limit: None } => out.set_not_inline(()),
        ShardResponse::NotInline { limit: Some(limit) } => out.set_not_inline_beyond(*limit),
        ShardResponse::Inline(view) => out.set_inline(&view.encode()),
        ShardResponse::Split(answer) => out.set_split(&row("bytes of an answer about a split", answer.encode())?),
    }
    Ok(())
}

/// A response.
pub(super) fn take_response(response: shard_response::Reader<'_>) -> Result<ShardResponse, WireError> {
    Ok(match response.which()? {
        shard_response::PinEpoch(epoch) => ShardResponse::PinEpoch(PinEpoch(epoch)),
        shard_response::Object(object) => {
            needed("the object", response.has_object())?;
            ShardResponse::Object(take_object(object?)?)
        }
        shard_response::Opened(opened) => {
            let opened = opened?;
            let first = opened.has_first().then(|| take_page(opened.get_first())).transpose()?;
            ShardResponse::Opened { file: take_file(opened.get_file()?)?, first }
        }
        shard_response::Page(page) => ShardResponse::Page(take_page(page)?),
        shard_response::Deleted(deleted) => ShardResponse::Deleted(deleted),
        shard_response::Listing(listing) => ShardResponse::Listing(take_listing(listing?)?),
        shard_response::Upload(upload) => ShardResponse::Upload(UploadId(array("an upload id", upload)?)),
        shard_response::Part(part) => {
            needed("the part", response.has_part())?;
            ShardResponse::Part(take_part(part?)?)
        }
        shard_response::Parts(answer) => {
            let answer = answer?;
            let upload = take_upload(answer.get_upload()?)?;
            let parts = elements("parts of an upload", PARTS_MAX, answer.get_parts())?.map(take_part);
            ShardResponse::Parts(upload, parts.collect::<Result<_, WireError>>()?)
        }
        shard_response::Uploads(uploads) => {
            let uploads = elements("uploads", LISTED_MAX, uploads)?.map(take_upload);
            ShardResponse::Uploads(uploads.collect::<Result<_, WireError>>()?)
        }
        shard_response::Count(number) => ShardResponse::Count(number),
        shard_response::NotInline(()) => ShardResponse::NotInline { limit: None },
        shard_response::NotInlineBeyond(limit) => ShardResponse::NotInline { limit: Some(limit) },
        shard_response::Inline(view) => ShardResponse::Inline(Box::new(InlineView::decode(view?)?)),
        shard_response::Split(answer) => ShardResponse::Split(SplitAnswer::decode(answer?)?),
    })
}

fn take_page(row: capnp::Result<&[u8]>) -> Result<Page, WireError> {
    Ok(Page::decode(row?)?)
}
