//! Why a request was not done. A kind that this release does not know becomes "not available now", with its text.

use super::field::{cut, take_text};
use super::{REASON_LEN_BYTES_MAX, WireError};
use crate::api::StoreError;
use crate::engine_capnp::store_error;
use crate::key_ranges::KeyRange;
use kiseki_types::codec::{Reader, Writer};

/// Numbers of the kinds, for good; a new kind always carries a text that says all of it.
const NO_SUCH_BUCKET: u16 = 1;
const BUCKET_EXISTS: u16 = 2;
const BUCKET_NAME_TAKEN: u16 = 3;
const BUCKET_NOT_EMPTY: u16 = 4;
const NO_SUCH_KEY: u16 = 5;
const NO_SUCH_UPLOAD: u16 = 6;
const INVALID_PART: u16 = 7;
const PRECONDITION_FAILED: u16 = 8;
const EXISTS: u16 = 9;
const NOT_FOUND: u16 = 10;
const INVALID: u16 = 11;
const TOO_LARGE: u16 = 12;
const FULL: u16 = 13;
const UNAVAILABLE: u16 = 14;
const DAMAGED: u16 = 15;
const UNSETTLED: u16 = 16;
const MOVED: u16 = 17;

/// Writes an error.
pub(super) fn put(mut out: store_error::Builder<'_>, error: &StoreError) {
    let (kind, text) = match error {
        StoreError::NoSuchBucket => (NO_SUCH_BUCKET, ""),
        StoreError::BucketExists => (BUCKET_EXISTS, ""),
        StoreError::BucketNameTaken => (BUCKET_NAME_TAKEN, ""),
        StoreError::BucketNotEmpty => (BUCKET_NOT_EMPTY, ""),
        StoreError::NoSuchKey => (NO_SUCH_KEY, ""),
        StoreError::NoSuchUpload => (NO_SUCH_UPLOAD, ""),
        StoreError::InvalidPart { part } => {
            out.set_part(*part);
            (INVALID_PART, "")
        }
        StoreError::PreconditionFailed => (PRECONDITION_FAILED, ""),
        StoreError::Exists { what } => (EXISTS, what.as_str()),
        StoreError::NotFound { what } => (NOT_FOUND, what.as_str()),
        StoreError::Invalid { what } => (INVALID, what.as_str()),
        StoreError::TooLarge { what } => (TOO_LARGE, what.as_str()),
        StoreError::Full { reason } => (FULL, reason.as_str()),
        StoreError::Unavailable { reason } => (UNAVAILABLE, reason.as_str()),
        StoreError::Damaged { reason } => (DAMAGED, reason.as_str()),
        StoreError::Unsettled { reason } => (UNSETTLED, reason.as_str()),
        StoreError::Moved(range) => {
            let mut writer = Writer::new();
            range.encode(&mut writer);
            out.set_range(&writer.finish());
            (MOVED, "the keys lie in another shard now; try again")
        }
    };
    out.set_kind(kind);
    if !text.is_empty() {
        out.set_text(cut(text, REASON_LEN_BYTES_MAX));
    }
}

/// An error.
pub(super) fn take(error: store_error::Reader<'_>) -> Result<StoreError, WireError> {
    let text = take_text("bytes of a reason", REASON_LEN_BYTES_MAX, error.get_text())?;
    Ok(match error.get_kind() {
        NO_SUCH_BUCKET => StoreError::NoSuchBucket,
        BUCKET_EXISTS => StoreError::BucketExists,
        BUCKET_NAME_TAKEN => StoreError::BucketNameTaken,
        BUCKET_NOT_EMPTY => StoreError::BucketNotEmpty,
        NO_SUCH_KEY => StoreError::NoSuchKey,
        NO_SUCH_UPLOAD => StoreError::NoSuchUpload,
        INVALID_PART => StoreError::InvalidPart { part: error.get_part() },
        PRECONDITION_FAILED => StoreError::PreconditionFailed,
        EXISTS => StoreError::Exists { what: text },
        NOT_FOUND => StoreError::NotFound { what: text },
        INVALID => StoreError::Invalid { what: text },
        TOO_LARGE => StoreError::TooLarge { what: text },
        FULL => StoreError::Full { reason: text },
        DAMAGED => StoreError::Damaged { reason: text },
        UNAVAILABLE => StoreError::Unavailable { reason: text },
        UNSETTLED => StoreError::Unsettled { reason: text },
        MOVED if error.has_range() => {
            let mut reader = Reader::new("range of keys", error.get_range()?);
            let range = KeyRange::decode(&mut reader)?;
            reader.end()?;
            StoreError::Moved(Box::new(range))
        }
        kind if text.is_empty() => {
            StoreError::Unavailable { reason: format!("another node answers with error {kind}") }
        }
        _ => StoreError::Unavailable { reason: text },
    })
}
