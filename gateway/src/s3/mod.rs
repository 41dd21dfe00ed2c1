//! The operations of S3, one file per family, behind the trait of `s3s`.
//!
//! `s3s` wants `Send` futures. A connection never leaves its core, so every handler runs inside a `SendWrapper`, which
//! would panic, not misbehave, should that ever change.

mod body;
mod bucket;
mod completion;
mod copy;
mod list;
mod multipart;
mod plain_read;
mod read;
mod write;

pub(crate) use plain_read::PlainRead;

use crate::context::{RequestContext, Shared, current};
use crate::errors::refuse;
use crate::phases::Phase;
use kiseki_types::TenantId;
use s3s::dto::*;
use s3s::{S3, S3ErrorCode, S3Request, S3Response, S3Result};
use send_wrapper::SendWrapper;
use std::rc::Rc;

/// An upload id as clients bring it back, for `crate::fuzzing`.
pub(crate) fn fuzz_upload_id(text: &str) -> Option<[u8; 16]> {
    multipart::upload_id(text).ok().map(|upload| upload.0)
}

/// The operations that are there, by the names that counters and the access log show.
pub(crate) const OPERATIONS: &[&str] = &[
    "AbortMultipartUpload",
    "CompleteMultipartUpload",
    "CopyObject",
    "CreateBucket",
    "CreateMultipartUpload",
    "DeleteBucket",
    "DeleteObject",
    "DeleteObjects",
    "GetBucketAcl",
    "GetBucketLocation",
    "GetBucketVersioning",
    "GetObject",
    "GetObjectAcl",
    "GetObjectAttributes",
    "GetObjectTagging",
    "HeadBucket",
    "HeadObject",
    "ListBuckets",
    "ListMultipartUploads",
    "ListObjectVersions",
    "ListObjects",
    "ListObjectsV2",
    "ListParts",
    "PutObject",
    "UploadPart",
    "UploadPartCopy",
];

/// The version id of every object: there is one version until versioning comes.
pub(crate) const NULL_VERSION: &str = "null";

/// Implements the trait of `s3s`.
pub(crate) struct Handler(pub(crate) SendWrapper<Rc<Shared>>);

/// Everything not listed here is answered `NotImplemented` by the trait's own methods.
macro_rules! handlers {
    ($($name:ident in $module:ident: $input:ty => $output:ty;)*) => {
        #[async_trait::async_trait]
        impl S3 for Handler {
            $(
                async fn $name(&self, request: S3Request<$input>) -> S3Result<S3Response<$output>> {
                    let shared = self.0.clone();
                    SendWrapper::new(async move {
                        let call = Call { shared: &shared, request: current() };
                        call.ended(Phase::Authenticate);
                        let answer = $module::$name(&call, request).await;
                        call.ended(Phase::Other);
                        answer
                    })
                    .await
                }
            )*

            async fn post_object(&self, _: S3Request<PostObjectInput>) -> S3Result<S3Response<PostObjectOutput>> {
                Err(refuse(S3ErrorCode::NotImplemented, "Uploads by HTML form are not implemented."))
            }
        }
    };
}

handlers! {
    list_buckets in bucket: ListBucketsInput => ListBucketsOutput;
    create_bucket in bucket: CreateBucketInput => CreateBucketOutput;
    head_bucket in bucket: HeadBucketInput => HeadBucketOutput;
    delete_bucket in bucket: DeleteBucketInput => DeleteBucketOutput;
    get_bucket_location in bucket: GetBucketLocationInput => GetBucketLocationOutput;
    get_bucket_versioning in bucket: GetBucketVersioningInput => GetBucketVersioningOutput;
    get_bucket_acl in bucket: GetBucketAclInput => GetBucketAclOutput;
    get_object_acl in bucket: GetObjectAclInput => GetObjectAclOutput;
    get_object_tagging in bucket: GetObjectTaggingInput => GetObjectTaggingOutput;
    get_object in read: GetObjectInput => GetObjectOutput;
    head_object in read: HeadObjectInput => HeadObjectOutput;
    get_object_attributes in read: GetObjectAttributesInput => GetObjectAttributesOutput;
    put_object in write: PutObjectInput => PutObjectOutput;
    delete_object in write: DeleteObjectInput => DeleteObjectOutput;
    delete_objects in write: DeleteObjectsInput => DeleteObjectsOutput;
    copy_object in copy: CopyObjectInput => CopyObjectOutput;
    upload_part_copy in copy: UploadPartCopyInput => UploadPartCopyOutput;
    list_objects in list: ListObjectsInput => ListObjectsOutput;
    list_objects_v2 in list: ListObjectsV2Input => ListObjectsV2Output;
    list_object_versions in list: ListObjectVersionsInput => ListObjectVersionsOutput;
    create_multipart_upload in multipart: CreateMultipartUploadInput => CreateMultipartUploadOutput;
    upload_part in multipart: UploadPartInput => UploadPartOutput;
    complete_multipart_upload in multipart: CompleteMultipartUploadInput => CompleteMultipartUploadOutput;
    abort_multipart_upload in multipart: AbortMultipartUploadInput => AbortMultipartUploadOutput;
    list_parts in multipart: ListPartsInput => ListPartsOutput;
    list_multipart_uploads in multipart: ListMultipartUploadsInput => ListMultipartUploadsOutput;
}

/// One call of an operation.
pub(crate) struct Call<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) request: Rc<RequestContext>,
}

impl Call<'_> {
    /// Whose key signed the request: access was checked before any handler runs.
    pub(crate) fn tenant(&self) -> TenantId {
        self.request.tenant.get().expect("only signed requests reach a handler")
    }

    /// A phase of the request has ended.
    pub(crate) fn ended(&self, phase: Phase) {
        self.shared.ended(&self.request, phase);
    }

    /// The tenant as an owner.
    pub(crate) fn owner(&self) -> Owner {
        let tenant = self.tenant();
        Owner { display_name: Some(tenant.to_string()), id: Some(crate::auth::owner_id(tenant)) }
    }
}

/// Every object is sealed with AES-256 under keys that the server manages, which is what this header says.
pub(crate) fn sealed() -> Option<ServerSideEncryption> {
    Some(ServerSideEncryption::from_static(ServerSideEncryption::AES256))
}

/// Refuses a version that can't exist.
pub(crate) fn check_version(version_id: Option<&str>) -> S3Result<()> {
    match version_id {
        None | Some(NULL_VERSION) => Ok(()),
        Some(_) => Err(refuse(S3ErrorCode::NoSuchVersion, "The specified version does not exist.")),
    }
}

/// Refuses a key that is too long; `s3s` checks those in paths only.
pub(crate) fn check_key(key: &str) -> S3Result<()> {
    if key.len() > crate::config::KEY_LEN_BYTES_MAX {
        return Err(refuse(S3ErrorCode::KeyTooLongError, "Your key is too long"));
    }
    Ok(())
}

/// A page size as requests state it: up to 1,000, never negative.
pub(crate) fn page_limit(stated: Option<i32>, name: &str) -> S3Result<usize> {
    match stated {
        None => Ok(crate::config::LIST_LIMIT_MAX),
        Some(limit) => usize::try_from(limit).map(|limit| limit.min(crate::config::LIST_LIMIT_MAX)).map_err(|_| {
            refuse(S3ErrorCode::InvalidArgument, format!("Argument {name} must be an integer between 0 and 2147483647"))
        }),
    }
}

/// Whether XML 1.0 can carry `text`; what it can't must not be echoed.
pub(crate) fn is_xml_text(text: &str) -> bool {
    text.bytes().all(|byte| byte >= b' ' || matches!(byte, b'\t' | b'\n' | b'\r'))
}

/// An echo of a key, left out where XML can't carry it.
pub(crate) fn echo(key: &str) -> Option<String> {
    is_xml_text(key).then(|| key.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_versions_and_limits_are_checked() {
        assert!(check_key(&"é".repeat(512)).is_ok());
        assert_eq!(check_key(&"a".repeat(1025)).unwrap_err().code().as_str(), "KeyTooLongError");
        assert!(check_version(None).is_ok() && check_version(Some("null")).is_ok());
        assert_eq!(check_version(Some("1")).unwrap_err().code().as_str(), "NoSuchVersion");
        for (stated, limit) in [(None, Some(1000)), (Some(0), Some(0)), (Some(5000), Some(1000)), (Some(-1), None)] {
            assert_eq!(page_limit(stated, "max-keys").ok(), limit, "{stated:?}");
        }
        assert_eq!(echo("a\u{1}"), None);
    }
}
