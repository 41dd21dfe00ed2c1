//! Headers that ask for something that is not there. They are refused, never ignored: a client that asked for a lock,
//! a tag or its own encryption key must not believe that it got it.

use crate::errors::refuse;
use http::HeaderMap;
use s3s::{S3ErrorCode, S3Result};

/// Present at all: refused.
const REFUSED: &[&str] = &[
    "x-amz-tagging",
    "x-amz-website-redirect-location",
    "x-amz-write-offset-bytes",
    "x-amz-mfa",
    "x-amz-bypass-governance-retention",
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
}
