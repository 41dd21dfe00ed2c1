//! Headers and query words that ask for something that is not there. They are refused, never ignored: a client that
//! asked for a lock, a tag or its own encryption key must not believe that it got it, and `DELETE /bucket/key?retention`
//! must not delete the object.

use crate::errors::refuse;
use http::HeaderMap;
use s3s::{S3ErrorCode, S3Result};

/// Present at all: refused. `x-amz-bypass-governance-retention` is not among them: it asks to pass by locks, nothing here
/// has one, and test suites send it with every clean-up.
const REFUSED: &[&str] = &[
    "x-amz-tagging",
    "x-amz-website-redirect-location",
    "x-amz-write-offset-bytes",
    "x-amz-mfa",
    "x-amz-if-match-last-modified-time",
    "x-amz-if-match-size",
    "x-amz-if-match-initiated-time",
];

/// Any header that begins so: refused.
const REFUSED_PREFIXES: &[&str] = &[
    "x-amz-object-lock-",
    "x-amz-grant-",
    "x-amz-server-side-encryption-customer-",
    "x-amz-copy-source-server-side-encryption-customer-",
    "x-amz-server-side-encryption-aws-kms-",
    "x-amz-server-side-encryption-context",
];

/// Only these values: they say what is true of every object and bucket here.
const ALLOWED_VALUES: &[(&str, &[&str])] = &[
    ("x-amz-acl", &["private", "bucket-owner-full-control"]),
    ("x-amz-server-side-encryption", &["AES256"]),
    ("x-amz-server-side-encryption-bucket-key-enabled", &["false"]),
    ("x-amz-object-ownership", &["BucketOwnerEnforced"]),
    ("x-amz-bucket-object-lock-enabled", &["false", "False"]),
    ("x-amz-tagging-directive", &["COPY"]),
];

/// What acts on an object or bucket itself. A subresource in the query of one of these was not understood.
const PLAIN_OPERATIONS: &[&str] = &[
    "CopyObject",
    "CreateBucket",
    "DeleteBucket",
    "DeleteObject",
    "GetObject",
    "HeadBucket",
    "HeadObject",
    "ListObjects",
    "ListObjectsV2",
    "PutObject",
];

/// Subresources that exist here, with other methods.
const SUBRESOURCES: &[&str] =
    &["acl", "attributes", "delete", "location", "tagging", "uploads", "versioning", "versions"];

/// Subresources that do not exist here.
const SUBRESOURCES_REFUSED: &[&str] = &[
    "accelerate",
    "analytics",
    "cors",
    "encryption",
    "intelligent-tiering",
    "inventory",
    "legal-hold",
    "lifecycle",
    "logging",
    "metrics",
    "notification",
    "object-lock",
    "ownershipControls",
    "policy",
    "policyStatus",
    "publicAccessBlock",
    "replication",
    "requestPayment",
    "restore",
    "retention",
    "select",
    "session",
    "torrent",
    "website",
];

/// Words without which a write would be an upload of a part, or of another version.
const NOT_ON_WRITES: &[&str] = &["partNumber", "uploadId", "versionId"];

/// Refuses a request whose query names what `operation` would ignore.
pub(crate) fn check_query(operation: &str, query: &str) -> S3Result<()> {
    if !PLAIN_OPERATIONS.contains(&operation) {
        return Ok(());
    }
    for word in query.split('&').map(|pair| pair.split('=').next().unwrap_or_default()) {
        if SUBRESOURCES_REFUSED.contains(&word) {
            return Err(refuse(
                S3ErrorCode::NotImplemented,
                format!("The subresource {word} implies functionality that is not implemented."),
            ));
        }
        if SUBRESOURCES.contains(&word) || (word == "uploadId" && !is_write(operation)) {
            return Err(refuse(
                S3ErrorCode::MethodNotAllowed,
                format!("The specified method is not allowed against the subresource {word}."),
            ));
        }
        if is_write(operation) && NOT_ON_WRITES.contains(&word) {
            return Err(refuse(
                S3ErrorCode::InvalidArgument,
                format!("This operation does not accept {word} alone: a part has both uploadId and partNumber."),
            ));
        }
    }
    Ok(())
}

fn is_write(operation: &str) -> bool {
    operation == "PutObject" || operation == "CopyObject"
}

/// Refuses a request by its headers.
pub(crate) fn check_headers(headers: &HeaderMap) -> S3Result<()> {
    for name in headers.keys().map(http::HeaderName::as_str).filter(|name| name.starts_with("x-amz-")) {
        if REFUSED.contains(&name) || REFUSED_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
            return Err(not_implemented(name));
        }
    }
    for (name, allowed) in ALLOWED_VALUES {
        for value in headers.get_all(*name) {
            if !value.is_empty() && !allowed.iter().any(|allowed| allowed.as_bytes() == value.as_bytes()) {
                return Err(not_implemented(name));
            }
        }
    }
    for value in headers.get_all("x-amz-storage-class") {
        if !value.is_empty() && value.as_bytes() != b"STANDARD" {
            return Err(refuse(
                S3ErrorCode::InvalidStorageClass,
                "The storage class you specified is not valid: there is one, STANDARD.",
            ));
        }
    }
    Ok(())
}

fn not_implemented(name: &str) -> s3s::S3Error {
    refuse(
        S3ErrorCode::NotImplemented,
        format!("A header you provided implies functionality that is not implemented: {name}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    #[test]
    fn what_is_not_there_is_refused_and_what_is_true_is_not() {
        let cases = [
            ("x-amz-tagging", "a=b", Some("NotImplemented")),
            ("x-amz-object-lock-mode", "GOVERNANCE", Some("NotImplemented")),
            ("x-amz-server-side-encryption-customer-key", "k", Some("NotImplemented")),
            ("x-amz-copy-source-server-side-encryption-customer-key", "k", Some("NotImplemented")),
            ("x-amz-server-side-encryption", "aws:kms", Some("NotImplemented")),
            ("x-amz-server-side-encryption", "AES256", None),
            ("x-amz-acl", "public-read", Some("NotImplemented")),
            ("x-amz-acl", "private", None),
            ("x-amz-grant-read", "id=1", Some("NotImplemented")),
            ("x-amz-storage-class", "GLACIER", Some("InvalidStorageClass")),
            ("x-amz-storage-class", "STANDARD", None),
            ("x-amz-meta-tagging", "a=b", None),
            ("x-amz-bucket-object-lock-enabled", "true", Some("NotImplemented")),
            ("x-amz-if-match-size", "3", Some("NotImplemented")),
        ];
        for (name, value, code) in cases {
            let mut headers = HeaderMap::new();
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
            let refused = check_headers(&headers).err().map(|error| error.code().as_str().to_owned());
            assert_eq!(refused.as_deref(), code, "{name}: {value}");
        }
    }

    #[test]
    fn a_query_that_would_be_ignored_is_refused() {
        let cases = [
            ("DeleteObject", "retention", Some("NotImplemented")),
            ("DeleteObject", "acl", Some("MethodNotAllowed")),
            ("DeleteObject", "uploadId=", Some("MethodNotAllowed")),
            ("DeleteObject", "versionId=null", None),
            ("DeleteBucket", "versioning=", Some("MethodNotAllowed")),
            ("DeleteBucket", "", None),
            ("GetObject", "torrent", Some("NotImplemented")),
            ("GetObject", "partNumber=1&versionId=null", None),
            ("GetObjectAcl", "acl", None),
            ("PutObject", "uploadId=u", Some("InvalidArgument")),
            ("PutObject", "partNumber=1", Some("InvalidArgument")),
            ("PutObject", "x-id=PutObject", None),
            ("UploadPart", "partNumber=1&uploadId=u", None),
            ("CopyObject", "restore", Some("NotImplemented")),
            ("ListObjectsV2", "list-type=2&prefix=acl&delimiter=policy", None),
            ("PutObject", "X-Amz-Signature=1&unknown=2", None),
        ];
        for (operation, query, code) in cases {
            let refused = check_query(operation, query).err().map(|error| error.code().as_str().to_owned());
            assert_eq!(refused.as_deref(), code, "{operation} ?{query}");
        }
    }
}
