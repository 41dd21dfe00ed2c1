//! Multipart uploads.

use super::completion::completed_before;
use super::list::Names;
use super::write::etag;
use super::{Call, echo, page_limit, sealed};
use crate::attributes::{describe, timestamp};
use crate::checksum::{self, Algorithm, Kind, Sums, bad_digest, copy_sums, stated};
use crate::conditions;
use crate::config::PART_NUMBER_MAX;
use crate::errors::{from_store, refuse};
use crate::phases::Phase;
use crate::upload::Incoming;
use kiseki_engine::api::{Attributes, CompletePart, EtagMode, FinishWrite, PartInfo, StoreError, UploadInfo};
use kiseki_types::UploadId;
use s3s::crypto::{Checksum as _, Md5};
use s3s::dto::*;
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result};
use std::collections::{BTreeMap, BTreeSet};

const ALGORITHM_ATTRIBUTE: &str = "mpu.algorithm";
const KIND_ATTRIBUTE: &str = "mpu.kind";

/// What an upload was begun with.
pub(super) struct Terms {
    /// The checksum that every part is given.
    pub(super) algorithm: Algorithm,
    pub(super) kind: Kind,
    /// Whether the client asked for it.
    pub(super) is_declared: bool,
}

impl Terms {
    fn of_request(algorithm: Option<&ChecksumAlgorithm>, kind: Option<&ChecksumType>) -> S3Result<Terms> {
        let algorithm = algorithm.map(|name| Algorithm::of_name(name.as_str())).transpose()?;
        let kind = kind.map(|name| Kind::of_name(name.as_str())).transpose()?;
        let Some(named) = algorithm else {
            if kind.is_some() {
                return Err(refuse(
                    S3ErrorCode::InvalidRequest,
                    "The x-amz-checksum-type header can only be used with the x-amz-checksum-algorithm header.",
                ));
            }
            let algorithm = checksum::DEFAULT;
            return Ok(Terms { algorithm, kind: algorithm.default_kind(), is_declared: false });
        };
        let kind = kind.unwrap_or(named.default_kind());
        if !named.allows(kind) {
            return Err(refuse(
                S3ErrorCode::InvalidRequest,
                format!(
                    "The {} checksum type cannot be used with the {} checksum algorithm.",
                    kind.name(),
                    named.name()
                ),
            ));
        }
        Ok(Terms { algorithm: named, kind, is_declared: true })
    }

    fn store(&self, attributes: &mut Attributes) {
        if self.is_declared {
            attributes.insert(ALGORITHM_ATTRIBUTE.to_owned(), self.algorithm.name().to_owned());
            attributes.insert(KIND_ATTRIBUTE.to_owned(), self.kind.name().to_owned());
        }
    }

    fn load(attributes: &Attributes) -> Terms {
        let algorithm = attributes.get(ALGORITHM_ATTRIBUTE).and_then(|name| Algorithm::of_name(name).ok());
        let kind = attributes.get(KIND_ATTRIBUTE).and_then(|name| Kind::of_name(name).ok());
        let is_declared = algorithm.is_some();
        let algorithm = algorithm.unwrap_or(checksum::DEFAULT);
        Terms { algorithm, kind: kind.unwrap_or(algorithm.default_kind()), is_declared }
    }
}

pub(super) async fn create_multipart_upload(
    call: &Call<'_>,
    request: S3Request<CreateMultipartUploadInput>,
) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
    let mut input = request.input;
    let terms = Terms::of_request(input.checksum_algorithm.as_ref(), input.checksum_type.as_ref())?;
    let mut attributes = describe!(input).into_attributes()?;
    terms.store(&mut attributes);
    let store = &call.shared.store;
    let upload = store.create_upload(call.tenant(), &input.bucket, &input.key, attributes).await.map_err(from_store)?;
    Ok(S3Response::new(CreateMultipartUploadOutput {
        checksum_algorithm: input.checksum_algorithm,
        checksum_type: terms.is_declared.then(|| ChecksumType::from_static(terms.kind.name())),
        key: echo(&input.key),
        bucket: Some(input.bucket),
        server_side_encryption: sealed(),
        upload_id: Some(upload.to_string()),
        ..CreateMultipartUploadOutput::default()
    }))
}

pub(super) async fn upload_part(
    call: &Call<'_>,
    request: S3Request<UploadPartInput>,
) -> S3Result<S3Response<UploadPartOutput>> {
    let mut input = request.input;
    let part = check_part_number(input.part_number)?;
    let upload = upload_id(&input.upload_id)?;
    let body = Incoming::new(input.body.take(), input.content_length, &request.headers, request.trailing_headers)?;
    let (store, tenant) = (&call.shared.store, call.tenant());
    let bucket = store.bucket(tenant, &input.bucket).await.map_err(from_store)?;
    let terms = open_upload(call, &input.bucket, &input.key, upload).await?;
    if let Some(sent) = body.algorithm()
        && terms.is_declared
        && sent != terms.algorithm
    {
        return Err(refuse(
            S3ErrorCode::InvalidRequest,
            format!(
                "Checksum Type mismatch occurred, expected checksum Type: {}, actual checksum Type: {}",
                terms.algorithm.name(),
                sent.name()
            ),
        ));
    }
    let mut writer = store.put_part(tenant, &input.bucket, &input.key, upload, part).await.map_err(from_store)?;
    call.ended(Phase::Lookup);
    let etag_md5 = bucket.etag_mode == EtagMode::Md5;
    let received = body.receive(call.shared, &call.request, writer.as_mut(), etag_md5, &[terms.algorithm]).await?;
    let mut attributes = Attributes::new();
    received.sums.store(&mut attributes);
    let finish = FinishWrite { etag: etag(&received, etag_md5), attributes, ..FinishWrite::default() };
    let info = writer.finish(finish).await.map_err(from_store)?;
    call.ended(Phase::Commit);
    let mut output = UploadPartOutput {
        e_tag: Some(ETag::Strong(info.etag)),
        server_side_encryption: sealed(),
        ..UploadPartOutput::default()
    };
    copy_sums!(part_sums(received.sums, &terms, received.sent).into_dto() => output);
    Ok(S3Response::new(output))
}

pub(super) async fn complete_multipart_upload(
    call: &Call<'_>,
    request: S3Request<CompleteMultipartUploadInput>,
) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
    let mut input = request.input;
    let upload = upload_id(&input.upload_id)?;
    let condition = conditions::of_write(input.if_match.as_ref(), input.if_none_match.as_ref())?;
    let named = input.multipart_upload.take().and_then(|upload| upload.parts).unwrap_or_default();
    check_named_parts(&named)?;
    let (store, tenant) = (&call.shared.store, call.tenant());
    let bucket = store.bucket(tenant, &input.bucket).await.map_err(from_store)?;
    let (terms, known) = match all_parts(call, &input.bucket, &input.key, upload).await {
        Ok(found) => found,
        Err(error) if *error.code() == S3ErrorCode::NoSuchUpload => {
            let before = completed_before(call, &input.bucket, &input.key, &named, &condition).await;
            let (info, sums) = before.ok_or(error)?;
            return Ok(completed(input.bucket, &input.key, info.etag, sums));
        }
        Err(error) => return Err(error),
    };
    let parts = choose_parts(named, &known, call.shared.config.part_len_bytes_min)?;
    check_object_len(input.mpu_object_size, &parts)?;
    let promised = promised_sums(&mut input);
    let sums = object_sums(&terms, input.checksum_type.as_ref(), &parts, promised)?;
    let mut attributes = Attributes::new();
    if let Some(sums) = &sums {
        sums.store(&mut attributes);
    }
    let etag = (bucket.etag_mode == EtagMode::Md5).then(|| etag_of_parts(&parts)).flatten();
    let finish = FinishWrite { etag, attributes, condition };
    let chosen = parts.iter().map(|part| CompletePart { part: part.part, etag: part.etag.clone() }).collect();
    let info =
        store.complete_upload(tenant, &input.bucket, &input.key, upload, chosen, finish).await.map_err(from_store)?;
    Ok(completed(input.bucket, &input.key, info.etag, sums))
}

fn completed(bucket: String, key: &str, etag: String, sums: Option<Sums>) -> S3Response<CompleteMultipartUploadOutput> {
    let mut output = CompleteMultipartUploadOutput {
        e_tag: Some(ETag::Strong(etag)),
        location: echo(key).map(|_| format!("/{bucket}/{}", crate::token::url_encode(key))),
        key: echo(key),
        bucket: Some(bucket),
        server_side_encryption: sealed(),
        ..CompleteMultipartUploadOutput::default()
    };
    if let Some(sums) = sums {
        let sums = sums.into_dto();
        output.checksum_type = sums.checksum_type.clone();
        copy_sums!(sums => output);
    }
    S3Response::new(output)
}

pub(super) async fn abort_multipart_upload(
    call: &Call<'_>,
    request: S3Request<AbortMultipartUploadInput>,
) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
    let input = request.input;
    let upload = upload_id(&input.upload_id)?;
    let store = &call.shared.store;
    store.abort_upload(call.tenant(), &input.bucket, &input.key, upload).await.map_err(from_store)?;
    Ok(S3Response::with_status(AbortMultipartUploadOutput::default(), http::StatusCode::NO_CONTENT))
}

pub(super) async fn list_parts(
    call: &Call<'_>,
    request: S3Request<ListPartsInput>,
) -> S3Result<S3Response<ListPartsOutput>> {
    let input = request.input;
    let upload = upload_id(&input.upload_id)?;
    let limit = page_limit(input.max_parts, "max-parts")?;
    let marker = u16::try_from(input.part_number_marker.unwrap_or(0).clamp(0, i32::from(u16::MAX))).unwrap_or(0);
    let (info, mut parts) = call
        .shared
        .store
        .parts(call.tenant(), &input.bucket, &input.key, upload, marker, limit + 1)
        .await
        .map_err(from_store)?;
    let is_truncated = parts.len() > limit && limit > 0;
    parts.truncate(limit);
    let terms = Terms::load(&info.attributes);
    let owner = call.owner();
    Ok(S3Response::new(ListPartsOutput {
        checksum_algorithm: terms.is_declared.then(|| ChecksumAlgorithm::from_static(terms.algorithm.name())),
        checksum_type: terms.is_declared.then(|| ChecksumType::from_static(terms.kind.name())),
        initiator: Some(Initiator { display_name: owner.display_name.clone(), id: owner.id.clone() }),
        owner: Some(owner),
        is_truncated: Some(is_truncated),
        next_part_number_marker: parts.last().map(|part| i32::from(part.part)),
        parts: Some(parts.into_iter().map(|part| listed_part(part, &terms)).collect()),
        key: echo(&input.key),
        bucket: Some(input.bucket),
        max_parts: Some(limit as i32),
        part_number_marker: Some(i32::from(marker)),
        storage_class: Some(StorageClass::from_static(StorageClass::STANDARD)),
        upload_id: Some(input.upload_id),
        ..ListPartsOutput::default()
    }))
}

fn listed_part(part: PartInfo, terms: &Terms) -> Part {
    let mut listed = Part {
        e_tag: Some(ETag::Strong(part.etag)),
        last_modified: Some(timestamp(part.modified_unix_ms)),
        part_number: Some(i32::from(part.part)),
        size: i64::try_from(part.len_bytes).ok(),
        ..Part::default()
    };
    copy_sums!(part_sums(Sums::load(&part.attributes), terms, None).into_dto() => listed);
    listed
}

pub(super) async fn list_multipart_uploads(
    call: &Call<'_>,
    request: S3Request<ListMultipartUploadsInput>,
) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
    let input = request.input;
    let names = Names::new(input.encoding_type.as_ref())?;
    let limit = page_limit(input.max_uploads, "max-uploads")?;
    let prefix = input.prefix.clone().unwrap_or_default();
    let delimiter = input.delimiter.filter(|delimiter| !delimiter.is_empty());
    let key_marker = input.key_marker.filter(|marker| !marker.is_empty());
    let id_marker = input.upload_id_marker.filter(|marker| !marker.is_empty() && key_marker.is_some());
    let after = match (&key_marker, &id_marker) {
        (Some(key), Some(id)) => Some((key.clone(), upload_id(id)?)),
        // A key alone stands for all of its uploads.
        (Some(key), None) => Some((key.clone(), UploadId([0xff; 16]))),
        (None, _) => None,
    };
    let page = uploads_page(call, &input.bucket, &prefix, delimiter.as_deref(), after, limit).await?;
    let uploads = page
        .uploads
        .iter()
        .map(|upload| {
            let terms = Terms::load(&upload.attributes);
            let owner = call.owner();
            Ok(MultipartUpload {
                checksum_algorithm: terms.is_declared.then(|| ChecksumAlgorithm::from_static(terms.algorithm.name())),
                checksum_type: terms.is_declared.then(|| ChecksumType::from_static(terms.kind.name())),
                initiated: Some(timestamp(upload.initiated_unix_ms)),
                initiator: Some(Initiator { display_name: owner.display_name.clone(), id: owner.id.clone() }),
                owner: Some(owner),
                key: Some(names.write(&upload.key)?),
                storage_class: Some(StorageClass::from_static(StorageClass::STANDARD)),
                upload_id: Some(upload.upload.to_string()),
            })
        })
        .collect::<S3Result<Vec<_>>>()?;
    let (next_key, next_id) = match page.next {
        Some((key, id)) => (Some(key), id),
        None => (None, None),
    };
    Ok(S3Response::new(ListMultipartUploadsOutput {
        is_truncated: Some(next_key.is_some()),
        next_key_marker: names.write_opt(next_key.as_deref())?,
        next_upload_id_marker: next_id.map(|id| id.to_string()),
        uploads: Some(uploads),
        common_prefixes: names.write_prefixes(page.common_prefixes)?,
        bucket: Some(input.bucket),
        prefix: Some(names.write(&prefix)?),
        delimiter: names.write_opt(delimiter.as_deref())?,
        key_marker: Some(names.write(key_marker.as_deref().unwrap_or_default())?),
        upload_id_marker: id_marker,
        max_uploads: Some(limit as i32),
        encoding_type: input.encoding_type,
        ..ListMultipartUploadsOutput::default()
    }))
}

struct UploadsPage {
    uploads: Vec<UploadInfo>,
    common_prefixes: Vec<String>,
    /// Where the next page begins: behind this key (and upload), or behind all keys of this common prefix.
    next: Option<(String, Option<UploadId>)>,
}

/// Reads pages of the store until `limit` entries are there, rolling keys up behind the delimiter.
async fn uploads_page(
    call: &Call<'_>,
    bucket: &str,
    prefix: &str,
    delimiter: Option<&str>,
    mut after: Option<(String, UploadId)>,
    limit: usize,
) -> S3Result<UploadsPage> {
    let mut page = UploadsPage { uploads: vec![], common_prefixes: vec![], next: None };
    // A marker that is a common prefix itself has been listed with all that lies below it.
    let listed = after.as_ref().map(|(key, _)| key.clone()).filter(|key| {
        delimiter.is_some_and(|delimiter| key.starts_with(prefix) && key[prefix.len()..].ends_with(delimiter))
    });
    let mut last = None;
    loop {
        let batch = call
            .shared
            .store
            .uploads(call.tenant(), bucket, prefix, after.clone(), crate::config::LIST_LIMIT_MAX)
            .await
            .map_err(from_store)?;
        if limit == 0 || batch.is_empty() {
            return Ok(page);
        }
        for upload in batch {
            after = Some((upload.key.clone(), upload.upload));
            let rolled = delimiter.and_then(|delimiter| roll_up(&upload.key, prefix, delimiter));
            let is_listed = rolled.is_some_and(|rolled| {
                listed.as_deref() == Some(rolled) || page.common_prefixes.last().map(String::as_str) == Some(rolled)
            });
            if is_listed {
                continue;
            }
            if page.uploads.len() + page.common_prefixes.len() == limit {
                page.next = last;
                return Ok(page);
            }
            match rolled {
                Some(rolled) => {
                    last = Some((rolled.to_owned(), None));
                    page.common_prefixes.push(rolled.to_owned());
                }
                None => {
                    last = Some((upload.key.clone(), Some(upload.upload)));
                    page.uploads.push(upload);
                }
            }
        }
    }
}

/// The common prefix of a key: up to and with the first delimiter behind the prefix.
fn roll_up<'a>(key: &'a str, prefix: &str, delimiter: &str) -> Option<&'a str> {
    let rest = key.strip_prefix(prefix)?;
    rest.find(delimiter).map(|at| &key[..prefix.len() + at + delimiter.len()])
}

/// A part number that S3 allows.
pub(super) fn check_part_number(number: i32) -> S3Result<u16> {
    u16::try_from(number).ok().filter(|number| (1..=PART_NUMBER_MAX).contains(number)).ok_or_else(|| {
        refuse(S3ErrorCode::InvalidArgument, "Part number must be an integer between 1 and 10000, inclusive")
    })
}

/// An upload id as clients bring it back. What can't be one does not exist.
pub(super) fn upload_id(text: &str) -> S3Result<UploadId> {
    let mut id = [0; 16];
    hex::decode_to_slice(text, &mut id).map_err(|_| from_store(StoreError::NoSuchUpload))?;
    Ok(UploadId(id))
}

/// What the upload was begun with; refuses an upload that does not exist before its body is read.
pub(super) async fn open_upload(call: &Call<'_>, bucket: &str, key: &str, upload: UploadId) -> S3Result<Terms> {
    let store = &call.shared.store;
    let (info, _) = store.parts(call.tenant(), bucket, key, upload, u16::MAX, 1).await.map_err(from_store)?;
    Ok(Terms::load(&info.attributes))
}

/// The checksums of a part that the client sees: what it sent, or what the upload declared.
pub(super) fn part_sums(sums: Sums, terms: &Terms, sent: Option<Algorithm>) -> Sums {
    match sent {
        Some(sent) => sums.only(sent),
        None => sums.only(terms.algorithm),
    }
}

async fn all_parts(
    call: &Call<'_>,
    bucket: &str,
    key: &str,
    upload: UploadId,
) -> S3Result<(Terms, BTreeMap<u16, PartInfo>)> {
    let mut known = BTreeMap::new();
    let mut after = 0;
    loop {
        let (info, parts) = call
            .shared
            .store
            .parts(call.tenant(), bucket, key, upload, after, crate::config::LIST_LIMIT_MAX)
            .await
            .map_err(from_store)?;
        let is_last = parts.len() < crate::config::LIST_LIMIT_MAX;
        after = parts.last().map_or(after, |part| part.part);
        known.extend(parts.into_iter().map(|part| (part.part, part)));
        if is_last {
            return Ok((Terms::load(&info.attributes), known));
        }
    }
}

fn check_named_parts(named: &[CompletedPart]) -> S3Result<()> {
    let malformed = || {
        refuse(
            S3ErrorCode::MalformedXML,
            "The XML you provided was not well-formed or did not validate against our published schema",
        )
    };
    if named.is_empty() || named.len() > usize::from(PART_NUMBER_MAX) {
        return Err(malformed());
    }
    let mut last = 0;
    for part in named {
        let number = check_part_number(part.part_number.ok_or_else(malformed)?)?;
        if part.e_tag.is_none() {
            return Err(malformed());
        }
        if number <= last {
            return Err(refuse(
                S3ErrorCode::InvalidPartOrder,
                "The list of parts was not in ascending order. Parts must be ordered by part number.",
            ));
        }
        last = number;
    }
    Ok(())
}

/// The parts that a completion names, as they are stored. The engine compares the ETags once more in the shard; here
/// they select what sizes and checksums are taken from.
fn choose_parts(
    named: Vec<CompletedPart>,
    known: &BTreeMap<u16, PartInfo>,
    part_len_bytes_min: u64,
) -> S3Result<Vec<PartInfo>> {
    let count = named.len();
    let mut parts = Vec::with_capacity(count);
    for (index, mut named) in named.into_iter().enumerate() {
        let number = check_part_number(named.part_number.unwrap_or(0))?;
        let invalid = || from_store(StoreError::InvalidPart { part: number });
        let part = known.get(&number).ok_or_else(invalid)?;
        if named.e_tag.as_ref().is_none_or(|etag| etag.value() != part.etag) {
            return Err(invalid());
        }
        let mut promised = dto_of_part(&mut named);
        promised.checksum_type = None;
        let sums = Sums::load(&part.attributes);
        for (algorithm, value) in stated(promised) {
            if sums.value(algorithm).is_some_and(|computed| computed != value) {
                return Err(invalid());
            }
        }
        if index + 1 < count && part.len_bytes < part_len_bytes_min {
            return Err(refuse(
                S3ErrorCode::EntityTooSmall,
                format!(
                    "Your proposed upload is smaller than the minimum allowed size: part {number} has {} bytes.",
                    part.len_bytes
                ),
            ));
        }
        parts.push(part.clone());
    }
    Ok(parts)
}

fn dto_of_part(part: &mut CompletedPart) -> Checksum {
    let mut sums = Checksum::default();
    let part = std::mem::take(part);
    copy_sums!(part => sums);
    sums
}

fn promised_sums(input: &mut CompleteMultipartUploadInput) -> Vec<(Algorithm, String)> {
    stated(Checksum {
        checksum_crc32: input.checksum_crc32.take(),
        checksum_crc32c: input.checksum_crc32c.take(),
        checksum_crc64nvme: input.checksum_crc64nvme.take(),
        checksum_md5: input.checksum_md5.take(),
        checksum_sha1: input.checksum_sha1.take(),
        checksum_sha256: input.checksum_sha256.take(),
        checksum_sha512: input.checksum_sha512.take(),
        checksum_type: None,
        checksum_xxhash128: input.checksum_xxhash128.take(),
        checksum_xxhash3: input.checksum_xxhash3.take(),
        checksum_xxhash64: input.checksum_xxhash64.take(),
    })
}

fn check_object_len(stated: Option<i64>, parts: &[PartInfo]) -> S3Result<()> {
    let len_bytes: u64 = parts.iter().map(|part| part.len_bytes).sum();
    match stated {
        Some(stated) if u64::try_from(stated).ok() != Some(len_bytes) => Err(refuse(
            S3ErrorCode::InvalidRequest,
            format!("The provided 'x-amz-mp-object-size' header does not match what was computed: {len_bytes}."),
        )),
        _ => Ok(()),
    }
}

/// The checksum of the object, compared with what the completion promises. It is taken of the algorithm that was
/// declared at the start; an undeclared one can be promised when every part was sent with it.
fn object_sums(
    terms: &Terms,
    stated_kind: Option<&ChecksumType>,
    parts: &[PartInfo],
    promised: Vec<(Algorithm, String)>,
) -> S3Result<Option<Sums>> {
    if let Some(stated) = stated_kind
        && Kind::of_name(stated.as_str())? != terms.kind
        && terms.is_declared
    {
        return Err(refuse(
            S3ErrorCode::InvalidRequest,
            format!("The upload was created using the {} checksum type.", terms.kind.name()),
        ));
    }
    let algorithms: BTreeSet<Algorithm> = promised.iter().map(|(algorithm, _)| *algorithm).collect();
    for algorithm in algorithms {
        if terms.is_declared && algorithm != terms.algorithm {
            return Err(refuse(
                S3ErrorCode::InvalidRequest,
                format!("The upload was created using the {} checksum algorithm.", terms.algorithm.name()),
            ));
        }
    }
    for (algorithm, value) in promised {
        let is_composite = value.contains('-');
        let kind = if is_composite { Kind::Composite } else { Kind::FullObject };
        let computed = sum_of_parts(algorithm, kind, parts);
        if computed.as_deref() != Some(value.as_str()) {
            return Err(bad_digest(algorithm));
        }
        if !terms.is_declared {
            return Ok(Some(Sums::of_value(algorithm, value).with_kind(kind)));
        }
    }
    let sum = sum_of_parts(terms.algorithm, terms.kind, parts);
    Ok(sum.map(|value| Sums::of_value(terms.algorithm, value).with_kind(terms.kind)))
}

fn sum_of_parts(algorithm: Algorithm, kind: Kind, parts: &[PartInfo]) -> Option<String> {
    if kind == Kind::FullObject && !algorithm.allows(Kind::FullObject) {
        return None;
    }
    let digests: Vec<(Vec<u8>, u64)> = parts
        .iter()
        .map(|part| Sums::load(&part.attributes).digest(algorithm).map(|digest| (digest, part.len_bytes)))
        .collect::<Option<_>>()?;
    Some(checksum::of_parts(algorithm, kind, &digests))
}

/// S3's ETag of a multipart object: the MD5 of the parts' MD5s and their number. `None` when a part has an opaque one
/// (the bucket was switched over in between); then the engine makes an opaque one.
fn etag_of_parts(parts: &[PartInfo]) -> Option<String> {
    etag_of(parts.iter().map(|part| part.etag.as_str()))
}

/// [`etag_of_parts`] of their ETags.
pub(super) fn etag_of<'a>(etags: impl ExactSizeIterator<Item = &'a str>) -> Option<String> {
    let (mut md5, count) = (Md5::new(), etags.len());
    for etag in etags {
        let mut digest = [0; 16];
        hex::decode_to_slice(etag, &mut digest).ok()?;
        md5.update(&digest);
    }
    Some(format!("{}-{count}", hex::encode(md5.finalize())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(number: u16, len_bytes: u64, etag: &str) -> PartInfo {
        PartInfo { part: number, len_bytes, modified_unix_ms: 0, etag: etag.to_owned(), attributes: Attributes::new() }
    }

    fn named(number: i32, etag: &str) -> CompletedPart {
        CompletedPart {
            part_number: Some(number),
            e_tag: Some(ETag::Strong(etag.to_owned())),
            ..CompletedPart::default()
        }
    }

    #[test]
    fn completions_name_parts_in_order() {
        assert!(check_named_parts(&[named(1, "a"), named(7, "b")]).is_ok());
        let cases = [
            (vec![], "MalformedXML"),
            (vec![named(2, "a"), named(1, "b")], "InvalidPartOrder"),
            (vec![named(2, "a"), named(2, "a")], "InvalidPartOrder"),
            (vec![named(0, "a")], "InvalidArgument"),
            (vec![named(10_001, "a")], "InvalidArgument"),
            (vec![CompletedPart::default()], "MalformedXML"),
        ];
        for (parts, code) in cases {
            assert_eq!(check_named_parts(&parts).unwrap_err().code().as_str(), code, "{parts:?}");
        }
    }

    #[test]
    fn parts_must_be_there_match_and_be_large_enough() {
        let known = BTreeMap::from([(1, part(1, 9, "a")), (2, part(2, 10, "b")), (3, part(3, 1, "c"))]);
        let choose = |list: &[(i32, &str)]| {
            let list = list.iter().map(|(number, etag)| named(*number, etag)).collect();
            choose_parts(list, &known, 10).map(|parts| parts.len()).map_err(|error| error.code().as_str().to_owned())
        };
        assert_eq!(choose(&[(2, "b"), (3, "c")]), Ok(2));
        assert_eq!(choose(&[(3, "c")]), Ok(1));
        assert_eq!(choose(&[(1, "a"), (2, "b")]), Err("EntityTooSmall".to_owned()));
        assert_eq!(choose(&[(2, "x")]), Err("InvalidPart".to_owned()));
        assert_eq!(choose(&[(4, "a")]), Err("InvalidPart".to_owned()));
    }

    #[test]
    fn the_etag_of_a_multipart_object_is_awss() {
        // md5(md5("a") md5("b")), as AWS makes it.
        let parts = [part(1, 1, "0cc175b9c0f1b6a831c399e269772661"), part(2, 1, "92eb5ffee6ae2fec3ad71c777531578f")];
        assert_eq!(etag_of_parts(&parts).as_deref(), Some("96e024ba2074fe77e8e965ba43a704be-2"));
        assert_eq!(etag_of_parts(&[part(1, 1, "opaque")]), None);
    }

    #[test]
    fn upload_ids_are_hex() {
        let id = UploadId([0xab; 16]);
        assert_eq!(upload_id(&id.to_string()).unwrap(), id);
        for bad in ["", "ab", "zz", &"ab".repeat(17)] {
            assert_eq!(upload_id(bad).unwrap_err().code().as_str(), "NoSuchUpload", "{bad}");
        }
    }

    #[test]
    fn keys_roll_up_behind_the_prefix() {
        for (key, prefix, delimiter, rolled) in [
            ("a/b", "", "/", Some("a/")),
            ("a/b/c", "a/", "/", Some("a/b/")),
            ("a/b", "a/", "/", None),
            ("xx--y", "", "--", Some("xx--")),
            ("b", "a", "/", None),
        ] {
            assert_eq!(roll_up(key, prefix, delimiter), rolled, "{key} {prefix} {delimiter}");
        }
    }

    #[test]
    fn checksum_terms_follow_awss_table() {
        let terms = |algorithm: Option<&'static str>, kind: Option<&'static str>| {
            Terms::of_request(
                algorithm.map(ChecksumAlgorithm::from_static).as_ref(),
                kind.map(ChecksumType::from_static).as_ref(),
            )
            .map(|terms| (terms.algorithm, terms.kind))
            .ok()
        };
        assert_eq!(terms(None, None), Some((Algorithm::Crc64Nvme, Kind::FullObject)));
        assert_eq!(terms(Some("CRC32"), None), Some((Algorithm::Crc32, Kind::Composite)));
        assert_eq!(terms(Some("CRC32"), Some("FULL_OBJECT")), Some((Algorithm::Crc32, Kind::FullObject)));
        assert_eq!(terms(Some("SHA256"), Some("FULL_OBJECT")), None);
        assert_eq!(terms(Some("CRC64NVME"), Some("COMPOSITE")), None);
        assert_eq!(terms(None, Some("FULL_OBJECT")), None);
    }
}
