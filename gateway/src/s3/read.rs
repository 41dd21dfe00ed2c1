//! GET and HEAD of objects.

use super::{Call, body, check_version, page_limit, sealed};
use crate::attributes::{self, Described, timestamp};
use crate::checksum::copy_sums;
use crate::conditions::ReadConditions;
use crate::errors::from_store;
use crate::phases::Phase;
use crate::range::{self, Slice};
use kiseki_engine::api::ObjectInfo;
use s3s::dto::*;
use s3s::{S3Request, S3Response, S3Result};

/// Takes the conditions out of an input.
macro_rules! read_conditions {
    ($input:expr) => {
        ReadConditions {
            if_match: $input.if_match.take(),
            if_none_match: $input.if_none_match.take(),
            if_modified_since: $input.if_modified_since.take(),
            if_unmodified_since: $input.if_unmodified_since.take(),
        }
    };
}

/// Fills in what GET and HEAD answer alike.
macro_rules! describe_object {
    ($output:expr, $info:expr, $slice:expr, $with_sums:expr) => {{
        let described = Described::load(&$info.attributes);
        $output.accept_ranges = Some("bytes".to_owned());
        $output.cache_control = described.cache_control;
        $output.content_disposition = described.content_disposition;
        $output.content_encoding = described.content_encoding;
        $output.content_language = described.content_language;
        $output.content_length = i64::try_from($slice.bytes.end - $slice.bytes.start).ok();
        $output.content_range = $slice.content_range.clone();
        $output.content_type = described.content_type;
        $output.e_tag = Some(ETag::Strong($info.etag.clone()));
        $output.expires = described.expires;
        $output.last_modified = Some(timestamp($info.modified_unix_ms));
        $output.metadata = described.metadata;
        $output.parts_count = $slice.part_count;
        $output.server_side_encryption = sealed();
        if $with_sums {
            let sums = attributes::sums(&$info.attributes).into_dto();
            $output.checksum_type = sums.checksum_type.clone();
            copy_sums!(sums => $output);
        }
    }};
}

pub(super) async fn get_object(
    call: &Call<'_>,
    request: S3Request<GetObjectInput>,
) -> S3Result<S3Response<GetObjectOutput>> {
    let mut input = request.input;
    check_version(input.version_id.as_deref())?;
    let reader = call.shared.store.get(call.tenant(), &input.bucket, &input.key).await.map_err(from_store)?;
    call.ended(Phase::Lookup);
    let info = reader.info().clone();
    read_conditions!(input).check_read(&info)?;
    let slice = range::resolve(input.range.as_ref(), input.part_number, info.len_bytes, &info.part_lens_bytes)?;
    let mut output = GetObjectOutput::default();
    describe_object!(output, info, slice, wants_sums(input.checksum_mode.as_ref(), &slice, &info));
    output.body = Some(body::open(reader, slice.bytes).await?);
    call.ended(Phase::Read);
    Ok(S3Response::new(output))
}

pub(super) async fn head_object(
    call: &Call<'_>,
    request: S3Request<HeadObjectInput>,
) -> S3Result<S3Response<HeadObjectOutput>> {
    let mut input = request.input;
    check_version(input.version_id.as_deref())?;
    let info = call.shared.store.head(call.tenant(), &input.bucket, &input.key).await.map_err(from_store)?;
    read_conditions!(input).check_read(&info)?;
    let slice = range::resolve(input.range.as_ref(), input.part_number, info.len_bytes, &info.part_lens_bytes)?;
    let mut output = HeadObjectOutput::default();
    describe_object!(output, info, slice, wants_sums(input.checksum_mode.as_ref(), &slice, &info));
    override_headers(&mut output, &mut input);
    Ok(S3Response::new(output))
}

/// `response-*` of a HEAD; those of a GET are applied by `s3s`.
fn override_headers(output: &mut HeadObjectOutput, input: &mut HeadObjectInput) {
    let overridden = [
        (&mut output.cache_control, input.response_cache_control.take()),
        (&mut output.content_disposition, input.response_content_disposition.take()),
        (&mut output.content_encoding, input.response_content_encoding.take()),
        (&mut output.content_language, input.response_content_language.take()),
        (&mut output.content_type, input.response_content_type.take()),
        (&mut output.expires, input.response_expires.take().and_then(http_date)),
    ];
    for (header, value) in overridden {
        if value.is_some() {
            *header = value;
        }
    }
}

fn http_date(timestamp: Timestamp) -> Option<String> {
    let mut text = Vec::new();
    timestamp.format(TimestampFormat::HttpDate, &mut text).ok()?;
    String::from_utf8(text).ok()
}

/// Whether an answer carries the whole object.
pub(super) fn is_whole(slice: &Slice, info: &ObjectInfo) -> bool {
    slice.bytes == (0..info.len_bytes)
}

/// Checksums are of the whole object, so only a whole answer carries them.
fn wants_sums(mode: Option<&ChecksumMode>, slice: &Slice, info: &ObjectInfo) -> bool {
    is_whole(slice, info) && mode.is_some_and(|mode| mode.as_str().eq_ignore_ascii_case(ChecksumMode::ENABLED))
}

pub(super) async fn get_object_attributes(
    call: &Call<'_>,
    request: S3Request<GetObjectAttributesInput>,
) -> S3Result<S3Response<GetObjectAttributesOutput>> {
    let input = request.input;
    check_version(input.version_id.as_deref())?;
    let info = call.shared.store.head(call.tenant(), &input.bucket, &input.key).await.map_err(from_store)?;
    let asked = |name: &str| {
        input.object_attributes.iter().any(|list| list.as_str().split(',').any(|asked| asked.trim() == name))
    };
    let mut output = GetObjectAttributesOutput {
        last_modified: Some(timestamp(info.modified_unix_ms)),
        ..GetObjectAttributesOutput::default()
    };
    if asked(ObjectAttributes::ETAG) {
        output.e_tag = Some(ETag::Strong(info.etag.clone()));
    }
    if asked(ObjectAttributes::CHECKSUM) {
        output.checksum = Some(attributes::sums(&info.attributes).into_dto());
    }
    if asked(ObjectAttributes::OBJECT_SIZE) {
        output.object_size = i64::try_from(info.len_bytes).ok();
    }
    if asked(ObjectAttributes::STORAGE_CLASS) {
        output.storage_class = Some(StorageClass::from_static(StorageClass::STANDARD));
    }
    if asked(ObjectAttributes::OBJECT_PARTS) && !info.part_lens_bytes.is_empty() {
        let limit = page_limit(input.max_parts, "max-parts")?;
        let marker = usize::try_from(input.part_number_marker.unwrap_or(0)).unwrap_or(0);
        output.object_parts = Some(parts_page(&info.part_lens_bytes, marker, limit));
    }
    Ok(S3Response::new(output))
}

/// The parts behind number `marker`, at most `limit`.
fn parts_page(lens_bytes: &[u64], marker: usize, limit: usize) -> GetObjectAttributesParts {
    let number = |count: usize| i32::try_from(count).ok();
    let behind = lens_bytes.iter().enumerate().skip(marker).take(limit);
    let parts: Vec<ObjectPart> = behind
        .map(|(index, len)| ObjectPart {
            part_number: number(index + 1),
            size: i64::try_from(*len).ok(),
            ..ObjectPart::default()
        })
        .collect();
    let end = marker.saturating_add(parts.len());
    GetObjectAttributesParts {
        total_parts_count: number(lens_bytes.len()),
        is_truncated: Some(end < lens_bytes.len()),
        max_parts: number(limit),
        part_number_marker: number(marker),
        next_part_number_marker: number(end),
        parts: Some(parts),
    }
}
