//! Copies inside the server: read and written through the store, so content that is there already is stored once.

use super::multipart::{check_part_number, open_upload, part_sums, upload_id};
use super::write::etag;
use super::{Call, check_key, check_version, sealed};
use crate::attributes::{self, describe, timestamp};
use crate::checksum::{self, Algorithm, Kind, copy_sums};
use crate::conditions::{self, ReadConditions};
use crate::config::COPY_LEN_BYTES_MAX;
use crate::errors::{from_store, refuse};
use crate::range;
use crate::upload::{self, Received};
use kiseki_engine::api::{Attributes, EtagMode, FinishWrite, ObjectReader, ObjectWriter};
use s3s::dto::*;
use s3s::{S3Error, S3ErrorCode, S3Request, S3Response, S3Result};

/// Takes the conditions on the source out of an input.
macro_rules! source_conditions {
    ($input:expr) => {
        ReadConditions {
            if_match: $input.copy_source_if_match.take(),
            if_none_match: $input.copy_source_if_none_match.take(),
            if_modified_since: $input.copy_source_if_modified_since.take(),
            if_unmodified_since: $input.copy_source_if_unmodified_since.take(),
        }
    };
}

pub(super) async fn copy_object(
    call: &Call<'_>,
    request: S3Request<CopyObjectInput>,
) -> S3Result<S3Response<CopyObjectOutput>> {
    let mut input = request.input;
    let (source_bucket, source_key) = source(&input.copy_source)?;
    let replaces = replaces_metadata(input.metadata_directive.as_ref())?;
    if !replaces && source_bucket == input.bucket && source_key == input.key {
        return Err(refuse(
            S3ErrorCode::InvalidRequest,
            "This copy request is illegal because it is trying to copy an object to itself without changing the \
             object's metadata, storage class, website redirect location or encryption attributes.",
        ));
    }
    let condition = conditions::of_write(input.if_match.as_ref(), input.if_none_match.as_ref())?;
    let algorithm = input.checksum_algorithm.as_ref().map(|name| Algorithm::of_name(name.as_str())).transpose()?;
    let (store, tenant) = (&call.shared.store, call.tenant());
    let bucket = store.bucket(tenant, &input.bucket).await.map_err(from_store)?;
    let etag_md5 = bucket.etag_mode == EtagMode::Md5;
    let mut reader = open_source(call, &source_bucket, &source_key, &source_conditions!(input)).await?;
    let info = reader.info().clone();
    if info.len_bytes > COPY_LEN_BYTES_MAX {
        return Err(too_large());
    }
    let mut attributes =
        if replaces { describe!(input).into_attributes()? } else { attributes::of_copy(&info.attributes) };
    let algorithm = algorithm.or(attributes::sums(&info.attributes).algorithm()).unwrap_or(checksum::DEFAULT);
    let mut writer = store.put(tenant, &input.bucket, &input.key, Some(info.len_bytes)).await.map_err(from_store)?;
    let all = 0..info.len_bytes;
    let copied = transfer(call, reader.as_mut(), writer.as_mut(), all, etag_md5, &[algorithm]).await?;
    let sums = copied.sums.clone().with_kind(Kind::FullObject);
    sums.store(&mut attributes);
    let finish = FinishWrite { etag: etag(&copied, etag_md5), attributes, condition };
    let info = writer.finish(finish).await.map_err(from_store)?;
    let mut result = CopyObjectResult {
        e_tag: Some(ETag::Strong(info.etag)),
        last_modified: Some(timestamp(info.modified_unix_ms)),
        ..CopyObjectResult::default()
    };
    let sums = sums.into_dto();
    result.checksum_type = sums.checksum_type.clone();
    copy_sums!(sums => result);
    Ok(S3Response::new(CopyObjectOutput {
        copy_object_result: Some(result),
        server_side_encryption: sealed(),
        ..CopyObjectOutput::default()
    }))
}

pub(super) async fn upload_part_copy(
    call: &Call<'_>,
    request: S3Request<UploadPartCopyInput>,
) -> S3Result<S3Response<UploadPartCopyOutput>> {
    let mut input = request.input;
    let part = check_part_number(input.part_number)?;
    let upload = upload_id(&input.upload_id)?;
    let (source_bucket, source_key) = source(&input.copy_source)?;
    let (store, tenant) = (&call.shared.store, call.tenant());
    let bucket = store.bucket(tenant, &input.bucket).await.map_err(from_store)?;
    let etag_md5 = bucket.etag_mode == EtagMode::Md5;
    let terms = open_upload(call, &input.bucket, &input.key, upload).await?;
    let mut reader = open_source(call, &source_bucket, &source_key, &source_conditions!(input)).await?;
    let len_bytes = reader.info().len_bytes;
    let bytes = match &input.copy_source_range {
        Some(range) => range::resolve_copy(range, len_bytes)?,
        None => 0..len_bytes,
    };
    if bytes.end - bytes.start > COPY_LEN_BYTES_MAX {
        return Err(too_large());
    }
    let mut writer = store.put_part(tenant, &input.bucket, &input.key, upload, part).await.map_err(from_store)?;
    let copied = transfer(call, reader.as_mut(), writer.as_mut(), bytes, etag_md5, &[terms.algorithm]).await?;
    let mut attributes = Attributes::new();
    copied.sums.store(&mut attributes);
    let finish = FinishWrite { etag: etag(&copied, etag_md5), attributes, ..FinishWrite::default() };
    let info = writer.finish(finish).await.map_err(from_store)?;
    let mut result = CopyPartResult {
        e_tag: Some(ETag::Strong(info.etag)),
        last_modified: Some(timestamp(info.modified_unix_ms)),
        ..CopyPartResult::default()
    };
    copy_sums!(part_sums(copied.sums, &terms, None).into_dto() => result);
    Ok(S3Response::new(UploadPartCopyOutput {
        copy_part_result: Some(result),
        server_side_encryption: sealed(),
        ..UploadPartCopyOutput::default()
    }))
}

/// Bucket and key of a copy's source.
fn source(copy_source: &CopySource) -> S3Result<(String, String)> {
    let CopySource::Bucket { bucket, key, version_id } = copy_source else {
        return Err(refuse(S3ErrorCode::NotImplemented, "Access points are not implemented."));
    };
    check_version(version_id.as_deref())?;
    check_key(key)?;
    Ok((bucket.to_string(), key.to_string()))
}

fn replaces_metadata(directive: Option<&MetadataDirective>) -> S3Result<bool> {
    match directive.map(MetadataDirective::as_str) {
        None | Some(MetadataDirective::COPY) => Ok(false),
        Some(MetadataDirective::REPLACE) => Ok(true),
        Some(_) => Err(refuse(S3ErrorCode::InvalidArgument, "Unknown metadata directive.")),
    }
}

async fn open_source(
    call: &Call<'_>,
    bucket: &str,
    key: &str,
    conditions: &ReadConditions,
) -> S3Result<Box<dyn ObjectReader>> {
    let reader = call.shared.store.get(call.tenant(), bucket, key).await.map_err(from_store)?;
    conditions.check_copy(reader.info())?;
    Ok(reader)
}

/// Reads `bytes` of the source into the writer; what arrives must be as long as that.
async fn transfer(
    call: &Call<'_>,
    reader: &mut dyn ObjectReader,
    writer: &mut dyn ObjectWriter,
    bytes: std::ops::Range<u64>,
    etag_md5: bool,
    sums: &[Algorithm],
) -> S3Result<Received> {
    let len_bytes = bytes.end - bytes.start;
    reader.seek(bytes);
    let copied = upload::copy(call.shared, reader, writer, len_bytes, etag_md5, sums).await?;
    if copied.len_bytes != len_bytes {
        tracing::error!(len_bytes, copied = copied.len_bytes, "the store handed out more or fewer bytes than asked");
        return Err(refuse(S3ErrorCode::InternalError, "The source could not be read whole."));
    }
    Ok(copied)
}

fn too_large() -> S3Error {
    refuse(
        S3ErrorCode::InvalidRequest,
        format!(
            "The specified copy source is larger than the maximum allowable size for a copy source: {COPY_LEN_BYTES_MAX}"
        ),
    )
}
