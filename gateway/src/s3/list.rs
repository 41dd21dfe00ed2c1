//! Listings of objects: two protocols of paging, and versions, over one listing of the store.

use super::bucket::{continued, max_keys};
use super::{Call, NULL_VERSION, is_xml_text};
use crate::attributes::timestamp;
use crate::errors::{from_store, refuse};
use crate::token::{self, url_encode};
use kiseki_engine::api::{ListItem, ListRequest, ObjectInfo};
use s3s::dto::*;
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result};

/// One page, before it is put into a protocol's shape.
struct Page {
    objects: Vec<ObjectInfo>,
    common_prefixes: Vec<String>,
    /// The last key or common prefix, when more follow.
    next: Option<String>,
}

/// How names are written in the answer.
#[derive(Clone, Copy)]
pub(super) struct Names {
    url: bool,
}

impl Names {
    pub(super) fn new(encoding: Option<&EncodingType>) -> S3Result<Names> {
        match encoding.map(EncodingType::as_str) {
            None => Ok(Names { url: false }),
            Some(EncodingType::URL) => Ok(Names { url: true }),
            Some(_) => Err(refuse(S3ErrorCode::InvalidArgument, "Invalid Encoding Method specified in Request")),
        }
    }

    /// Writes one name; XML can't carry every one without encoding.
    pub(super) fn write(self, name: &str) -> S3Result<String> {
        if self.url {
            return Ok(url_encode(name));
        }
        if !is_xml_text(name) {
            return Err(refuse(
                S3ErrorCode::InvalidRequest,
                "A name in this listing holds a character that XML can't carry: list with encoding-type=url.",
            ));
        }
        Ok(name.to_owned())
    }

    pub(super) fn write_opt(self, name: Option<&str>) -> S3Result<Option<String>> {
        name.map(|name| self.write(name)).transpose()
    }

    pub(super) fn write_prefixes(self, prefixes: Vec<String>) -> S3Result<Option<CommonPrefixList>> {
        if prefixes.is_empty() {
            return Ok(None);
        }
        prefixes
            .iter()
            .map(|prefix| Ok(CommonPrefix { prefix: Some(self.write(prefix)?) }))
            .collect::<S3Result<Vec<_>>>()
            .map(Some)
    }
}

pub(super) async fn list_objects(
    call: &Call<'_>,
    request: S3Request<ListObjectsInput>,
) -> S3Result<S3Response<ListObjectsOutput>> {
    let input = request.input;
    let names = Names::new(input.encoding_type.as_ref())?;
    let limit = max_keys(input.max_keys)?;
    let delimiter = input.delimiter.filter(|delimiter| !delimiter.is_empty());
    let marker = input.marker.clone().filter(|marker| !marker.is_empty());
    let page = list(call, &input.bucket, input.prefix.as_deref(), marker, delimiter.clone(), limit).await?;
    // As in AWS, only a rolled-up listing names its next marker; otherwise it is the last key.
    let next_marker = page.next.as_deref().filter(|_| delimiter.is_some());
    Ok(S3Response::new(ListObjectsOutput {
        is_truncated: Some(page.next.is_some()),
        next_marker: names.write_opt(next_marker)?,
        contents: objects(call, names, page.objects, true)?,
        common_prefixes: names.write_prefixes(page.common_prefixes)?,
        name: Some(input.bucket),
        prefix: Some(names.write(input.prefix.as_deref().unwrap_or_default())?),
        marker: Some(names.write(input.marker.as_deref().unwrap_or_default())?),
        delimiter: names.write_opt(delimiter.as_deref())?,
        max_keys: Some(limit as i32),
        encoding_type: input.encoding_type,
        ..ListObjectsOutput::default()
    }))
}

pub(super) async fn list_objects_v2(
    call: &Call<'_>,
    request: S3Request<ListObjectsV2Input>,
) -> S3Result<S3Response<ListObjectsV2Output>> {
    let input = request.input;
    let names = Names::new(input.encoding_type.as_ref())?;
    let limit = max_keys(input.max_keys)?;
    let delimiter = input.delimiter.filter(|delimiter| !delimiter.is_empty());
    let after = continued(input.continuation_token.as_deref())?
        .or_else(|| input.start_after.clone().filter(|start_after| !start_after.is_empty()));
    let page = list(call, &input.bucket, input.prefix.as_deref(), after, delimiter.clone(), limit).await?;
    let key_count = page.objects.len() + page.common_prefixes.len();
    Ok(S3Response::new(ListObjectsV2Output {
        is_truncated: Some(page.next.is_some()),
        next_continuation_token: page.next.as_deref().map(token::encode),
        contents: objects(call, names, page.objects, input.fetch_owner.unwrap_or(false))?,
        common_prefixes: names.write_prefixes(page.common_prefixes)?,
        key_count: Some(key_count as i32),
        name: Some(input.bucket),
        prefix: Some(names.write(input.prefix.as_deref().unwrap_or_default())?),
        start_after: names.write_opt(input.start_after.as_deref())?,
        continuation_token: input.continuation_token,
        delimiter: names.write_opt(delimiter.as_deref())?,
        max_keys: Some(limit as i32),
        encoding_type: input.encoding_type,
        ..ListObjectsV2Output::default()
    }))
}

pub(super) async fn list_object_versions(
    call: &Call<'_>,
    request: S3Request<ListObjectVersionsInput>,
) -> S3Result<S3Response<ListObjectVersionsOutput>> {
    let input = request.input;
    let names = Names::new(input.encoding_type.as_ref())?;
    let limit = max_keys(input.max_keys)?;
    let delimiter = input.delimiter.filter(|delimiter| !delimiter.is_empty());
    let marker = input.key_marker.clone().filter(|marker| !marker.is_empty());
    if marker.is_none() && input.version_id_marker.as_deref().is_some_and(|marker| !marker.is_empty()) {
        return Err(refuse(
            S3ErrorCode::InvalidArgument,
            "A version-id marker cannot be specified without a key marker.",
        ));
    }
    let page = list(call, &input.bucket, input.prefix.as_deref(), marker, delimiter.clone(), limit).await?;
    let ends_in_key = page.next.as_ref().is_some_and(|next| page.objects.last().is_some_and(|last| last.key == *next));
    let versions = page
        .objects
        .iter()
        .map(|object| {
            Ok(ObjectVersion {
                e_tag: Some(ETag::Strong(object.etag.clone())),
                is_latest: Some(true),
                key: Some(names.write(&object.key)?),
                last_modified: Some(timestamp(object.modified_unix_ms)),
                owner: Some(call.owner()),
                size: i64::try_from(object.len_bytes).ok(),
                storage_class: Some(ObjectVersionStorageClass::from_static(ObjectVersionStorageClass::STANDARD)),
                version_id: Some(NULL_VERSION.to_owned()),
                ..ObjectVersion::default()
            })
        })
        .collect::<S3Result<Vec<_>>>()?;
    Ok(S3Response::new(ListObjectVersionsOutput {
        is_truncated: Some(page.next.is_some()),
        next_key_marker: names.write_opt(page.next.as_deref())?,
        next_version_id_marker: ends_in_key.then(|| NULL_VERSION.to_owned()),
        versions: Some(versions),
        common_prefixes: names.write_prefixes(page.common_prefixes)?,
        name: Some(input.bucket),
        prefix: Some(names.write(input.prefix.as_deref().unwrap_or_default())?),
        key_marker: Some(names.write(input.key_marker.as_deref().unwrap_or_default())?),
        version_id_marker: input.version_id_marker,
        delimiter: names.write_opt(delimiter.as_deref())?,
        max_keys: Some(limit as i32),
        encoding_type: input.encoding_type,
        ..ListObjectVersionsOutput::default()
    }))
}

async fn list(
    call: &Call<'_>,
    bucket: &str,
    prefix: Option<&str>,
    after: Option<String>,
    delimiter: Option<String>,
    limit: usize,
) -> S3Result<Page> {
    let (store, tenant) = (&call.shared.store, call.tenant());
    if limit == 0 {
        store.bucket(tenant, bucket).await.map_err(from_store)?;
        return Ok(Page { objects: vec![], common_prefixes: vec![], next: None });
    }
    let prefix = prefix.unwrap_or_default().to_owned();
    let request = ListRequest { prefix, after, delimiter, limit };
    let page = store.list(tenant, bucket, request).await.map_err(from_store)?;
    let next = page.items.last().filter(|_| page.truncated).map(|item| match item {
        ListItem::Object(object) => object.key.clone(),
        ListItem::CommonPrefix(prefix) => prefix.clone(),
    });
    let mut objects = Vec::new();
    let mut common_prefixes = Vec::new();
    for item in page.items {
        match item {
            ListItem::Object(object) => objects.push(object),
            ListItem::CommonPrefix(prefix) => common_prefixes.push(prefix),
        }
    }
    Ok(Page { objects, common_prefixes, next })
}

fn objects(call: &Call<'_>, names: Names, infos: Vec<ObjectInfo>, with_owner: bool) -> S3Result<Option<ObjectList>> {
    if infos.is_empty() {
        return Ok(None);
    }
    infos
        .into_iter()
        .map(|info| {
            Ok(Object {
                e_tag: Some(ETag::Strong(info.etag)),
                key: Some(names.write(&info.key)?),
                last_modified: Some(timestamp(info.modified_unix_ms)),
                owner: with_owner.then(|| call.owner()),
                size: i64::try_from(info.len_bytes).ok(),
                storage_class: Some(ObjectStorageClass::from_static(ObjectStorageClass::STANDARD)),
                ..Object::default()
            })
        })
        .collect::<S3Result<Vec<_>>>()
        .map(Some)
}
