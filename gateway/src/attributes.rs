//! Headers that travel with an object, as the engine keeps them: a flat map of strings, sealed at rest.
//!
//! Keys are part of what is stored: `h.<header>` for the standard headers, `m.<name>` for user metadata,
//! `sum.<ALGORITHM>` and `sum-type` for checksums, `mpu.*` for what a multipart upload was begun with.

use crate::checksum::Sums;
use crate::config::USER_METADATA_LEN_BYTES_MAX;
use crate::errors::refuse;
use http::header::{self, HeaderName};
use kiseki_engine::api::Attributes;
use s3s::dto::{Metadata, Timestamp};
use s3s::{S3ErrorCode, S3Result};

/// What AWS answers for an object that was stored without a type.
pub(crate) const DEFAULT_CONTENT_TYPE: &str = "binary/octet-stream";

/// Before the name of a user's own.
pub(crate) const METADATA_PREFIX: &str = "m.";

/// Standard headers that are kept, by the name that they are kept under.
pub(crate) const STORED_HEADERS: &[(&str, HeaderName)] = &[
    ("h.cache-control", header::CACHE_CONTROL),
    ("h.content-disposition", header::CONTENT_DISPOSITION),
    ("h.content-encoding", header::CONTENT_ENCODING),
    ("h.content-language", header::CONTENT_LANGUAGE),
    ("h.content-type", header::CONTENT_TYPE),
    ("h.expires", header::EXPIRES),
];

/// The standard headers and the user metadata of one object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Described {
    pub(crate) cache_control: Option<String>,
    pub(crate) content_disposition: Option<String>,
    pub(crate) content_encoding: Option<String>,
    pub(crate) content_language: Option<String>,
    pub(crate) content_type: Option<String>,
    pub(crate) expires: Option<String>,
    pub(crate) metadata: Option<Metadata>,
}

/// Takes the seven fields out of any input of `s3s` that has them.
macro_rules! describe {
    ($input:expr) => {
        $crate::attributes::Described {
            cache_control: $input.cache_control.take(),
            content_disposition: $input.content_disposition.take(),
            content_encoding: $input.content_encoding.take(),
            content_language: $input.content_language.take(),
            content_type: $input.content_type.take(),
            expires: $input.expires.take(),
            metadata: $input.metadata.take(),
        }
    };
}
pub(crate) use describe;

impl Described {
    /// As attributes. `aws-chunked` is how the body came, not how the content is encoded.
    pub(crate) fn into_attributes(self) -> S3Result<Attributes> {
        let mut attributes = Attributes::new();
        let encoding = self.content_encoding.map(|encoding| without_aws_chunked(&encoding));
        let headers = [
            ("h.cache-control", self.cache_control),
            ("h.content-disposition", self.content_disposition),
            ("h.content-encoding", encoding.filter(|encoding| !encoding.is_empty())),
            ("h.content-language", self.content_language),
            ("h.content-type", self.content_type),
            ("h.expires", self.expires),
        ];
        for (key, value) in headers {
            if let Some(value) = value {
                attributes.insert(key.to_owned(), value);
            }
        }
        let metadata = self.metadata.unwrap_or_default();
        let len_bytes: usize = metadata.iter().map(|(name, value)| name.len() + value.len()).sum();
        if len_bytes > USER_METADATA_LEN_BYTES_MAX {
            return Err(refuse(
                S3ErrorCode::MetadataTooLarge,
                "Your metadata headers exceed the maximum allowed metadata size",
            ));
        }
        attributes.extend(metadata.into_iter().map(|(name, value)| (format!("{METADATA_PREFIX}{name}"), value)));
        Ok(attributes)
    }

    /// Back from attributes.
    pub(crate) fn load(attributes: &Attributes) -> Described {
        let header = |name: &str| attributes.get(name).cloned();
        let metadata: Metadata = attributes
            .range(METADATA_PREFIX.to_owned()..)
            .map_while(|(key, value)| key.strip_prefix(METADATA_PREFIX).map(|name| (name.to_owned(), value.clone())))
            .collect();
        Described {
            cache_control: header("h.cache-control"),
            content_disposition: header("h.content-disposition"),
            content_encoding: header("h.content-encoding"),
            content_language: header("h.content-language"),
            content_type: Some(header("h.content-type").unwrap_or_else(|| DEFAULT_CONTENT_TYPE.to_owned())),
            expires: header("h.expires"),
            metadata: (!metadata.is_empty()).then_some(metadata),
        }
    }
}

/// The attributes of a copy that keeps its source's headers: all but the checksums, which are computed again.
pub(crate) fn of_copy(source: &Attributes) -> Attributes {
    source
        .iter()
        .filter(|(key, _)| key.starts_with("h.") || key.starts_with(METADATA_PREFIX))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// Checksums of a whole object.
pub(crate) fn sums(attributes: &Attributes) -> Sums {
    Sums::load(attributes)
}

/// Milliseconds since 1970 as `s3s` wants them.
pub(crate) fn timestamp(unix_ms: u64) -> Timestamp {
    time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ms) * 1_000_000)
        .unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
        .into()
}

fn without_aws_chunked(encoding: &str) -> String {
    let kept: Vec<&str> = encoding
        .split(',')
        .map(str::trim)
        .filter(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case("aws-chunked"))
        .collect();
    kept.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_and_metadata_round_trip() {
        let described = Described {
            cache_control: Some("no-cache".to_owned()),
            content_disposition: Some("attachment".to_owned()),
            content_encoding: Some("aws-chunked, gzip".to_owned()),
            content_language: Some("de".to_owned()),
            content_type: Some("text/plain".to_owned()),
            expires: Some("Wed, 21 Oct 2015 07:28:00 GMT".to_owned()),
            metadata: Some(Metadata::from([("a".to_owned(), "1".to_owned()), ("b.c".to_owned(), String::new())])),
        };
        let loaded = Described::load(&described.clone().into_attributes().unwrap());
        assert_eq!(loaded, Described { content_encoding: Some("gzip".to_owned()), ..described });
    }

    #[test]
    fn an_object_without_headers_has_awss_default_type() {
        let attributes =
            Described { content_encoding: Some("aws-chunked".to_owned()), ..Described::default() }.into_attributes();
        let attributes = attributes.unwrap();
        assert!(attributes.is_empty());
        assert_eq!(Described::load(&attributes).content_type.as_deref(), Some(DEFAULT_CONTENT_TYPE));
    }

    #[test]
    fn too_much_metadata_is_refused() {
        let described = |len_bytes: usize| Described {
            metadata: Some(Metadata::from([("ab".to_owned(), "x".repeat(len_bytes - 2))])),
            ..Described::default()
        };
        assert!(described(USER_METADATA_LEN_BYTES_MAX).into_attributes().is_ok());
        let error = described(USER_METADATA_LEN_BYTES_MAX + 1).into_attributes().unwrap_err();
        assert_eq!(error.code().as_str(), "MetadataTooLarge");
    }
}
