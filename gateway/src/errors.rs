//! Our errors in AWS's words, and the one place that completes the body of every error answer.

use crate::context::RequestContext;
use bytes::Bytes;
use http::StatusCode;
use kiseki_engine::api::StoreError;
use s3s::stream::aws_chunked_stream::AwsChunkedStreamError;
use s3s::stream::upload_stream::UploadStreamError;
use s3s::{BodySizeLimitExceeded, S3Error, S3ErrorCode, StdError};
use std::error::Error;

/// An error with a code that `s3s` has no name for.
pub(crate) fn custom(code: &'static str, status: StatusCode, message: impl Into<String>) -> S3Error {
    let mut error = S3Error::with_message(S3ErrorCode::Custom(code.into()), message.into());
    error.set_status_code(status);
    error
}

/// An error with a code of `s3s`.
pub(crate) fn refuse(code: S3ErrorCode, message: impl Into<String>) -> S3Error {
    S3Error::with_message(code, message.into())
}

/// What the engine says, as AWS would.
pub(crate) fn from_store(error: StoreError) -> S3Error {
    use S3ErrorCode as Code;
    match error {
        StoreError::NoSuchBucket => refuse(Code::NoSuchBucket, "The specified bucket does not exist."),
        StoreError::BucketExists => refuse(
            Code::BucketAlreadyOwnedByYou,
            "Your previous request to create the named bucket succeeded and you already own it.",
        ),
        StoreError::BucketNameTaken => refuse(
            Code::BucketAlreadyExists,
            "The requested bucket name is not available. Select a different name and try again.",
        ),
        StoreError::BucketNotEmpty => refuse(Code::BucketNotEmpty, "The bucket you tried to delete is not empty."),
        StoreError::NoSuchKey => refuse(Code::NoSuchKey, "The specified key does not exist."),
        StoreError::NoSuchUpload => refuse(
            Code::NoSuchUpload,
            "The specified upload does not exist. The upload ID may be invalid, or the upload may have been aborted or \
             completed.",
        ),
        StoreError::InvalidPart { part } => refuse(
            Code::InvalidPart,
            format!("Part {part} could not be found, or its entity tag did not match the part's entity tag."),
        ),
        StoreError::PreconditionFailed => {
            refuse(Code::PreconditionFailed, "At least one of the pre-conditions you specified did not hold.")
        }
        StoreError::Full { reason } => {
            tracing::warn!(%reason, "write refused: no space");
            custom(
                "InsufficientStorage",
                StatusCode::INSUFFICIENT_STORAGE,
                format!("There is no space left: {reason}."),
            )
        }
        StoreError::Unavailable { reason } | StoreError::Unsettled { reason } => {
            refuse(Code::ServiceUnavailable, format!("The request can't be served now, try again: {reason}."))
        }
        StoreError::Damaged { reason } => {
            tracing::error!(%reason, "stored data can't be read back or rebuilt");
            refuse(Code::InternalError, "The stored data is damaged; the operator has been told.")
        }
        other => {
            tracing::error!(error = %other, "the engine answered what no S3 request can cause");
            refuse(Code::InternalError, "We encountered an internal error.")
        }
    }
}

/// Why a request's body could not be read to its end. Nothing is stored in any of these cases.
pub(crate) fn from_body(error: &StdError) -> S3Error {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error.as_ref());
    while let Some(link) = cause {
        if let Some(chunked) = link.downcast_ref::<AwsChunkedStreamError>() {
            match chunked {
                AwsChunkedStreamError::Underlying(inner) => return from_body(inner),
                AwsChunkedStreamError::SignatureMismatch => {
                    return refuse(
                        S3ErrorCode::SignatureDoesNotMatch,
                        "The signature of a chunk of the body does not match what was computed.",
                    );
                }
                AwsChunkedStreamError::Incomplete | AwsChunkedStreamError::LengthMismatch => {
                    return incomplete_body();
                }
                AwsChunkedStreamError::ChunkDataTooLarge(len_bytes, limit) => {
                    return refuse(
                        S3ErrorCode::InvalidRequest,
                        format!(
                            "A signed chunk of {len_bytes} bytes is larger than this server takes ({limit} bytes)."
                        ),
                    );
                }
                _ => {
                    return refuse(S3ErrorCode::InvalidRequest, "The body is not well-formed aws-chunked content.");
                }
            }
        }
        if let Some(upload) = link.downcast_ref::<UploadStreamError>() {
            match upload {
                UploadStreamError::Underlying(inner) => return from_body(inner),
                UploadStreamError::Sha256Mismatch => {
                    return custom(
                        "XAmzContentSHA256Mismatch",
                        StatusCode::BAD_REQUEST,
                        "The provided 'x-amz-content-sha256' header does not match what was computed.",
                    );
                }
                _ => return incomplete_body(),
            }
        }
        if link.is::<BodySizeLimitExceeded>() {
            return refuse(
                S3ErrorCode::EntityTooLarge,
                "Your proposed upload exceeds the maximum allowed size of one request.",
            );
        }
        cause = link.source();
    }
    incomplete_body()
}

/// The body ended before its declared length.
pub(crate) fn incomplete_body() -> S3Error {
    refuse(
        S3ErrorCode::IncompleteBody,
        "You did not provide the number of bytes specified by the Content-Length HTTP header.",
    )
}

/// The client stopped sending.
pub(crate) fn body_timeout() -> S3Error {
    refuse(
        S3ErrorCode::RequestTimeout,
        "Your socket connection to the server was not read from or written to within the timeout period.",
    )
}

/// Completes the XML of an error: a message (some clients fail without one) and the request id.
pub(crate) fn complete_error_body(body: &Bytes, request: &RequestContext) -> Option<Bytes> {
    const END: &str = "</Error>";
    let text = std::str::from_utf8(body).ok()?;
    let head = text.strip_suffix(END)?;
    if !head.contains("<Error>") {
        return None;
    }
    let mut whole = String::with_capacity(text.len() + 128);
    whole.push_str(head);
    if !head.contains("<Message>") {
        whole.push_str("<Message>The request was refused.</Message>");
    }
    if !head.contains("<RequestId>") {
        whole.push_str("<RequestId>");
        whole.push_str(&request.id.to_string());
        whole.push_str("</RequestId>");
    }
    whole.push_str(END);
    Some(Bytes::from(whole))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiseki_types::Instant;
    use kiseki_types::request::RequestId;

    #[test]
    fn every_store_error_has_awss_code_and_status() {
        let cases = [
            (StoreError::NoSuchBucket, "NoSuchBucket", 404),
            (StoreError::BucketExists, "BucketAlreadyOwnedByYou", 409),
            (StoreError::BucketNameTaken, "BucketAlreadyExists", 409),
            (StoreError::BucketNotEmpty, "BucketNotEmpty", 409),
            (StoreError::NoSuchKey, "NoSuchKey", 404),
            (StoreError::NoSuchUpload, "NoSuchUpload", 404),
            (StoreError::InvalidPart { part: 3 }, "InvalidPart", 400),
            (StoreError::PreconditionFailed, "PreconditionFailed", 412),
            (StoreError::Full { reason: "pool p0".to_owned() }, "InsufficientStorage", 507),
            (StoreError::Unavailable { reason: "no majority".to_owned() }, "ServiceUnavailable", 503),
            (StoreError::Damaged { reason: "two fragments".to_owned() }, "InternalError", 500),
            (StoreError::Exists { what: "x".to_owned() }, "InternalError", 500),
        ];
        for (error, code, status) in cases {
            let what = error.to_string();
            let answer = from_store(error);
            assert_eq!(answer.code().as_str(), code, "{what}");
            assert_eq!(answer.status_code().map(|status| status.as_u16()), Some(status), "{what}");
            assert!(answer.message().is_some_and(|message| !message.is_empty()), "{what}");
        }
    }

    #[test]
    fn an_error_body_gets_its_message_and_request_id() {
        let request = RequestContext::new(RequestId(0xABC), Instant(0));
        let bare = Bytes::from_static(b"<?xml?><Error><Code>X</Code></Error>");
        assert_eq!(
            complete_error_body(&bare, &request).unwrap(),
            "<?xml?><Error><Code>X</Code><Message>The request was refused.</Message><RequestId>0000000000000ABC</RequestId></Error>"
        );
        let other = Bytes::from_static(b"<Result></Result>");
        assert_eq!(complete_error_body(&other, &request), None);
    }
}
