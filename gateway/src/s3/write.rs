//! PUT and DELETE of objects.

use super::{Call, check_key, check_version, is_xml_text, sealed};
use crate::attributes::describe;
use crate::checksum::{self, Kind, copy_sums};
use crate::conditions;
use crate::config::DELETE_KEYS_MAX;
use crate::errors::{from_store, refuse};
use crate::phases::Phase;
use crate::upload::{Incoming, Received};
use futures::StreamExt;
use kiseki_engine::api::{Condition, EtagMode, FinishWrite};
use s3s::dto::*;
use s3s::{S3Error, S3ErrorCode, S3Request, S3Response, S3Result};

/// Deletes of one request in flight at a time.
const DELETES_IN_FLIGHT: usize = 32;

pub(super) async fn put_object(
    call: &Call<'_>,
    request: S3Request<PutObjectInput>,
) -> S3Result<S3Response<PutObjectOutput>> {
    let mut input = request.input;
    let condition = conditions::of_write(input.if_match.as_ref(), input.if_none_match.as_ref())?;
    let mut attributes = describe!(input).into_attributes()?;
    let body = Incoming::new(input.body.take(), input.content_length, &request.headers, request.trailing_headers)?;
    let (store, tenant) = (&call.shared.store, call.tenant());
    let bucket = store.bucket(tenant, &input.bucket).await.map_err(from_store)?;
    let mut writer = store.put(tenant, &input.bucket, &input.key, Some(body.len_bytes())).await.map_err(from_store)?;
    call.ended(Phase::Lookup);
    let etag_md5 = bucket.etag_mode == EtagMode::Md5;
    // Without one from the client S3 computes its default checksum, so that every object can be checked end to end.
    let sums = if body.algorithm().is_none() { &[checksum::DEFAULT][..] } else { &[] };
    let received = body.receive(call.shared, &call.request, writer.as_mut(), etag_md5, sums).await?;
    let sums = received.sums.clone().with_kind(Kind::FullObject);
    sums.store(&mut attributes);
    let finish = FinishWrite { etag: etag(&received, etag_md5), attributes, condition };
    let info = writer.finish(finish).await.map_err(from_store)?;
    call.ended(Phase::Commit);
    let mut output = PutObjectOutput {
        e_tag: Some(ETag::Strong(info.etag)),
        server_side_encryption: sealed(),
        ..PutObjectOutput::default()
    };
    let sums = sums.into_dto();
    output.checksum_type = sums.checksum_type.clone();
    copy_sums!(sums => output);
    Ok(S3Response::new(output))
}

/// The ETag of one body: its MD5, or what the engine makes when the bucket's are opaque.
pub(super) fn etag(received: &Received, etag_md5: bool) -> Option<String> {
    received.md5.filter(|_| etag_md5).map(hex::encode)
}

pub(super) async fn delete_object(
    call: &Call<'_>,
    request: S3Request<DeleteObjectInput>,
) -> S3Result<S3Response<DeleteObjectOutput>> {
    let input = request.input;
    check_version(input.version_id.as_deref())?;
    let condition = conditions::of_delete(input.if_match.as_ref());
    let store = &call.shared.store;
    store.delete(call.tenant(), &input.bucket, &input.key, condition).await.map_err(from_store)?;
    Ok(S3Response::with_status(DeleteObjectOutput::default(), http::StatusCode::NO_CONTENT))
}

pub(super) async fn delete_objects(
    call: &Call<'_>,
    request: S3Request<DeleteObjectsInput>,
) -> S3Result<S3Response<DeleteObjectsOutput>> {
    let input = request.input;
    let objects = input.delete.objects;
    // A key that XML can't carry can't be echoed either, and would turn the answer of a done delete into an error.
    let is_well_formed = (1..=DELETE_KEYS_MAX).contains(&objects.len())
        && objects.iter().all(|object| is_xml_text(&object.key) && !object.key.is_empty());
    if !is_well_formed {
        return Err(refuse(
            S3ErrorCode::MalformedXML,
            "The XML you provided was not well-formed or did not validate against our published schema",
        ));
    }
    call.shared.store.bucket(call.tenant(), &input.bucket).await.map_err(from_store)?;
    let results: Vec<(ObjectIdentifier, S3Result<()>)> = futures::stream::iter(objects)
        .map(|object| async {
            let result = delete_one(call, &input.bucket, &object).await;
            (object, result)
        })
        .buffered(DELETES_IN_FLIGHT)
        .collect()
        .await;
    let is_quiet = input.delete.quiet.unwrap_or(false);
    let mut deleted = Vec::new();
    let mut errors = Vec::new();
    for (object, result) in results {
        match result {
            Ok(()) if is_quiet => {}
            Ok(()) => deleted.push(DeletedObject {
                key: Some(object.key),
                version_id: object.version_id,
                ..DeletedObject::default()
            }),
            Err(error) => errors.push(delete_error(object, &error)),
        }
    }
    Ok(S3Response::new(DeleteObjectsOutput {
        deleted: Some(deleted),
        errors: Some(errors),
        ..DeleteObjectsOutput::default()
    }))
}

async fn delete_one(call: &Call<'_>, bucket: &str, object: &ObjectIdentifier) -> S3Result<()> {
    check_key(&object.key)?;
    check_version(object.version_id.as_deref())?;
    if object.last_modified_time.is_some() || object.size.is_some() {
        return Err(refuse(
            S3ErrorCode::NotImplemented,
            "Conditions on size and modification time of a delete are not implemented.",
        ));
    }
    let condition = object.e_tag.as_ref().map_or(Condition::None, |etag| Condition::IfMatch(etag.value().to_owned()));
    call.shared.store.delete(call.tenant(), bucket, &object.key, condition).await.map(drop).map_err(from_store)
}

fn delete_error(object: ObjectIdentifier, error: &S3Error) -> Error {
    Error {
        code: Some(error.code().as_str().to_owned()),
        key: Some(object.key),
        message: error.message().map(str::to_owned),
        version_id: object.version_id,
    }
}
