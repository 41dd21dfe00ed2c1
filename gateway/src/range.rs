//! Which bytes of an object a read asks for.

use crate::errors::{custom, refuse};
use http::{HeaderMap, HeaderValue, StatusCode};
use s3s::dto::Range;
use s3s::{S3Error, S3ErrorCode, S3Result};

/// The bytes of one read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slice {
    /// Half-open range of bytes.
    pub(crate) bytes: std::ops::Range<u64>,
    /// `Content-Range`, when the answer is a 206.
    pub(crate) content_range: Option<String>,
    /// How many parts the object has, when a part was asked for.
    pub(crate) part_count: Option<i32>,
}

/// Resolves a range or a part number against an object's length and its parts (empty for a plain object).
pub(crate) fn resolve(
    range: Option<&Range>,
    part_number: Option<i32>,
    len_bytes: u64,
    part_lens_bytes: &[u64],
) -> S3Result<Slice> {
    match (range, part_number) {
        (Some(_), Some(_)) => {
            Err(refuse(S3ErrorCode::InvalidRequest, "Cannot specify both Range header and partNumber query parameter."))
        }
        (None, None) => Ok(Slice { bytes: 0..len_bytes, content_range: None, part_count: None }),
        (Some(range), None) => {
            let bytes = satisfiable(range, len_bytes).ok_or_else(|| not_satisfiable(len_bytes))?;
            Ok(Slice { content_range: content_range(&bytes, len_bytes), bytes, part_count: None })
        }
        (None, Some(number)) => {
            let bytes = part_bytes(number, len_bytes, part_lens_bytes)?;
            let part_count = i32::try_from(part_lens_bytes.len()).ok().filter(|count| *count > 0);
            Ok(Slice { content_range: content_range(&bytes, len_bytes), bytes, part_count })
        }
    }
}

/// The bytes of a range within `len_bytes`; `None` when there are none.
pub(crate) fn satisfiable(range: &Range, len_bytes: u64) -> Option<std::ops::Range<u64>> {
    range.check(len_bytes).ok().filter(|bytes| !bytes.is_empty())
}

/// The bytes of a copy's source range, which must lie in the source whole.
pub(crate) fn resolve_copy(range: &str, len_bytes: u64) -> S3Result<std::ops::Range<u64>> {
    let malformed = || {
        refuse(
            S3ErrorCode::InvalidArgument,
            "The x-amz-copy-source-range value must be of the form bytes=first-last where first and last are the \
             zero-based offsets of the first and last bytes to copy",
        )
    };
    match Range::parse(range) {
        Ok(Range::Int { first, last: Some(last) }) if last < len_bytes => Ok(first..last + 1),
        Ok(Range::Int { last: Some(_), .. }) => Err(refuse(
            S3ErrorCode::InvalidArgument,
            format!("Range specified is not valid for source object of size: {len_bytes}"),
        )),
        _ => Err(malformed()),
    }
}

fn part_bytes(number: i32, len_bytes: u64, part_lens_bytes: &[u64]) -> S3Result<std::ops::Range<u64>> {
    let index = usize::try_from(number).ok().and_then(|number| number.checked_sub(1)).ok_or_else(|| {
        refuse(S3ErrorCode::InvalidArgument, "Part number must be an integer between 1 and 10000, inclusive")
    })?;
    if part_lens_bytes.is_empty() && index == 0 {
        return Ok(0..len_bytes);
    }
    let Some(part_len_bytes) = part_lens_bytes.get(index) else {
        return Err(custom(
            "InvalidPartNumber",
            StatusCode::RANGE_NOT_SATISFIABLE,
            "The requested partnumber is not satisfiable",
        ));
    };
    let start = part_lens_bytes[..index].iter().sum::<u64>();
    Ok(start..start + part_len_bytes)
}

fn content_range(bytes: &std::ops::Range<u64>, len_bytes: u64) -> Option<String> {
    (!bytes.is_empty()).then(|| format!("bytes {}-{}/{len_bytes}", bytes.start, bytes.end - 1))
}

fn not_satisfiable(len_bytes: u64) -> S3Error {
    let mut error = refuse(S3ErrorCode::InvalidRange, "The requested range is not satisfiable");
    let mut headers = HeaderMap::new();
    headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    if let Ok(value) = HeaderValue::try_from(format!("bytes */{len_bytes}")) {
        headers.insert(http::header::CONTENT_RANGE, value);
    }
    error.set_headers(headers);
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of(range: &str, len_bytes: u64) -> Option<std::ops::Range<u64>> {
        resolve(Some(&Range::parse(range).unwrap()), None, len_bytes, &[]).ok().map(|slice| slice.bytes)
    }

    #[test]
    fn ranges_resolve_as_rfc_9110_says() {
        let cases = [
            ("bytes=0-0", 10, Some(0..1)),
            ("bytes=0-9", 10, Some(0..10)),
            ("bytes=0-99", 10, Some(0..10)),
            ("bytes=9-", 10, Some(9..10)),
            ("bytes=10-", 10, None),
            ("bytes=-3", 10, Some(7..10)),
            ("bytes=-99", 10, Some(0..10)),
            ("bytes=-0", 10, None),
            ("bytes=0-", 0, None),
            ("bytes=-1", 0, None),
        ];
        for (range, len_bytes, bytes) in cases {
            assert_eq!(bytes_of(range, len_bytes), bytes, "{range} of {len_bytes}");
        }
    }

    #[test]
    fn content_range_names_the_last_byte() {
        let slice = resolve(Some(&Range::parse("bytes=-3").unwrap()), None, 10, &[]).unwrap();
        assert_eq!(slice.content_range.as_deref(), Some("bytes 7-9/10"));
        let error = resolve(Some(&Range::parse("bytes=10-").unwrap()), None, 10, &[]).unwrap_err();
        assert_eq!(error.headers().unwrap()[http::header::CONTENT_RANGE], "bytes */10");
    }

    #[test]
    fn part_numbers_resolve_to_their_bytes() {
        let parts = [5, 7, 1];
        let slice = |number| resolve(None, Some(number), 13, &parts);
        assert_eq!(slice(1).unwrap().bytes, 0..5);
        assert_eq!(slice(2).unwrap().bytes, 5..12);
        assert_eq!(slice(3).unwrap().content_range.as_deref(), Some("bytes 12-12/13"));
        assert_eq!(slice(3).unwrap().part_count, Some(3));
        assert_eq!(slice(4).unwrap_err().code().as_str(), "InvalidPartNumber");
        assert_eq!(slice(0).unwrap_err().code().as_str(), "InvalidArgument");
        assert_eq!(resolve(None, Some(1), 13, &[]).unwrap().bytes, 0..13);
        assert!(resolve(None, Some(2), 13, &[]).is_err());
        assert!(resolve(Some(&Range::parse("bytes=0-0").unwrap()), Some(1), 13, &[]).is_err());
    }

    #[test]
    fn copy_ranges_lie_in_the_source() {
        assert_eq!(resolve_copy("bytes=0-9", 10).unwrap(), 0..10);
        for bad in ["bytes=0-10", "bytes=0-", "bytes=-5", "0-5", "bytes=5-4", ""] {
            assert_eq!(resolve_copy(bad, 10).unwrap_err().code().as_str(), "InvalidArgument", "{bad}");
        }
    }
}
