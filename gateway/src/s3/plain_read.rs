//! GETs of objects as nearly all clients send them, answered without what can take apart any request of S3.
//!
//! `s3s` parses, routes and writes whatever S3 knows; that is a quarter of the processor time of a small GET. What is taken here
//! says all it wants in its path and three or four headers. Everything else, and everything whose signature does not
//! hold, goes to `s3s`, so that one place refuses; the answers are the same, which `tests/conformance.py` compares.

use super::body;
use super::read::is_whole;
use crate::attributes::{self, DEFAULT_CONTENT_TYPE, METADATA_PREFIX, STORED_HEADERS};
use crate::config::KEY_LEN_BYTES_MAX;
use crate::context::{RequestContext, Shared};
use crate::errors::{from_store, refuse};
use crate::phases::Phase;
use crate::range::{self, Slice};
use crate::signature::{SignedHead, SigningKeys};
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use kiseki_engine::api::ObjectInfo;
use s3s::dto::Range;
use s3s::path::check_bucket_name;
use s3s::{Body, S3Error, S3ErrorCode, S3Result};
use std::time::{Duration, UNIX_EPOCH};

const OPERATION: &str = "GetObject";

/// What SDKs add to say what they mean; with another word it is another request.
const QUERY: &str = "x-id=GetObject";

/// Headers in which SDKs tell of themselves.
const TALK: &[&str] = &["x-amz-user-agent"];

/// A GET that is answered here.
pub(crate) struct PlainRead<'a> {
    path: &'a str,
    bucket: &'a str,
    key: &'a str,
    query: &'static [(&'static str, &'static str)],
    range: Option<Range>,
    wants_sums: bool,
    signed: SignedHead<'a>,
    headers: &'a HeaderMap,
}

impl<'a> PlainRead<'a> {
    /// `None`: for `s3s`.
    pub(crate) fn of<B: http_body::Body>(request: &'a Request<B>) -> Option<PlainRead<'a>> {
        if request.method() != Method::GET || request.version() != Version::HTTP_11 || !request.body().is_end_stream() {
            return None;
        }
        let path = request.uri().path();
        let (bucket, key) = names(path)?;
        let query: &'static [(&str, &str)] = match request.uri().query() {
            None => &[],
            Some(QUERY) => &[("x-id", OPERATION)],
            Some(_) => return None,
        };
        let headers = request.headers();
        let stated = Stated::of(headers)?;
        let signed = SignedHead::of(stated.authorization?, stated.date?, stated.content_sha256?)?;
        let range = match stated.range {
            Some(range) => Some(Range::parse(range.to_str().ok()?).ok()?),
            None => None,
        };
        let is_covered = |name: &HeaderName| !must_be_signed(name.as_str()) || signed.covers(name.as_str());
        if stated.host.is_none() || !signed.covers("host") || !headers.keys().all(is_covered) {
            return None;
        }
        let wants_sums = stated.checksum_mode.is_some_and(|mode| mode.as_bytes().eq_ignore_ascii_case(b"ENABLED"));
        Some(PlainRead { path, bucket, key, query, range, wants_sums, signed, headers })
    }

    /// The answer; `None` when the signature does not hold, or nobody is known by that key: for `s3s`.
    pub(crate) async fn answer(
        &self,
        shared: &Shared,
        request: &RequestContext,
        keys: &SigningKeys,
    ) -> Option<S3Result<Response<Body>>> {
        if !self.signed.is_recent(shared.ports.unix_time_ms()) {
            return None;
        }
        let access_key = shared.store.access_key(self.signed.access_key_id()).await.ok()??;
        let key = keys.key_for(&self.signed, &access_key);
        if !self.signed.is_by(&key, Method::GET.as_str(), self.path, self.query, self.headers) {
            return None;
        }
        request.tenant.set(Some(access_key.tenant));
        request.operation.set(OPERATION);
        shared.ended(request, Phase::Authenticate);
        let answer = self.read(shared, request, access_key.tenant).await;
        shared.ended(request, Phase::Other);
        Some(answer)
    }

    async fn read(
        &self,
        shared: &Shared,
        request: &RequestContext,
        tenant: kiseki_types::TenantId,
    ) -> S3Result<Response<Body>> {
        let reader = shared.store.get(tenant, self.bucket, self.key).await.map_err(from_store)?;
        shared.ended(request, Phase::Lookup);
        let info = reader.info();
        let slice = range::resolve(self.range.as_ref(), None, info.len_bytes, &info.part_lens_bytes)?;
        let head = head_of(info, &slice, self.wants_sums && is_whole(&slice, info))?;
        let is_part = slice.content_range.is_some();
        let blob = body::open(reader, slice.bytes).await?;
        shared.ended(request, Phase::Read);
        let mut response = Response::new(Body::from(blob));
        *response.headers_mut() = head;
        if is_part {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        }
        Ok(response)
    }
}

/// Bucket and key of a path in which nothing is encoded, so that it is the same on the wire, decoded and signed.
fn names(path: &str) -> Option<(&str, &str)> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~' | b'/');
    let (bucket, key) = path.strip_prefix('/')?.split_once('/')?;
    let is_named = check_bucket_name(bucket) && !key.is_empty() && key.len() <= KEY_LEN_BYTES_MAX;
    (is_named && path.bytes().all(is_plain)).then_some((bucket, key))
}

/// What `s3s` insists on.
fn must_be_signed(name: &str) -> bool {
    name.starts_with("x-amz-") && name != "x-amz-content-sha256"
}

/// The headers that say something here.
#[derive(Default)]
struct Stated<'a> {
    host: Option<&'a HeaderValue>,
    authorization: Option<&'a HeaderValue>,
    date: Option<&'a HeaderValue>,
    content_sha256: Option<&'a HeaderValue>,
    checksum_mode: Option<&'a HeaderValue>,
    range: Option<&'a HeaderValue>,
}

impl<'a> Stated<'a> {
    /// `None` when one says what is not understood here, or is there twice.
    fn of(headers: &'a HeaderMap) -> Option<Stated<'a>> {
        let mut stated = Stated::default();
        for (name, value) in headers {
            let name = name.as_str();
            let place = match name {
                "host" => &mut stated.host,
                "authorization" => &mut stated.authorization,
                "x-amz-date" => &mut stated.date,
                "x-amz-content-sha256" => &mut stated.content_sha256,
                "x-amz-checksum-mode" => &mut stated.checksum_mode,
                "range" => &mut stated.range,
                "expect" | "content-length" | "transfer-encoding" | "content-type" => return None,
                _ if TALK.contains(&name) => continue,
                _ if name.starts_with("x-amz-") || name.starts_with("if-") => return None,
                _ => continue,
            };
            if place.replace(value).is_some() {
                return None;
            }
        }
        Some(stated)
    }
}

/// The head of the answer.
fn head_of(info: &ObjectInfo, slice: &Slice, with_sums: bool) -> S3Result<HeaderMap> {
    let mut head = HeaderMap::with_capacity(16);
    head.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    head.insert("x-amz-server-side-encryption", HeaderValue::from_static("AES256"));
    head.insert(header::CONTENT_LENGTH, HeaderValue::from(slice.bytes.end - slice.bytes.start));
    head.insert(header::ETAG, value(format!("\"{}\"", info.etag))?);
    let modified = UNIX_EPOCH + Duration::from_secs(info.modified_unix_ms / 1000);
    head.insert(header::LAST_MODIFIED, value(httpdate::fmt_http_date(modified))?);
    if let Some(range) = &slice.content_range {
        head.insert(header::CONTENT_RANGE, value(range.as_str())?);
    }
    for (name, stored) in STORED_HEADERS {
        if let Some(text) = info.attributes.get(*name) {
            head.insert(stored, value(text.as_str())?);
        }
    }
    if !head.contains_key(header::CONTENT_TYPE) {
        head.insert(header::CONTENT_TYPE, HeaderValue::from_static(DEFAULT_CONTENT_TYPE));
    }
    for (name, text) in &info.attributes {
        if let Some(name) = name.strip_prefix(METADATA_PREFIX) {
            let name = HeaderName::try_from(format!("x-amz-meta-{name}")).map_err(unwritable)?;
            head.insert(name, value(&*s3s_rfc2047::encode(text).map_err(unwritable)?)?);
        }
    }
    if with_sums {
        for (name, text) in attributes::sums(&info.attributes).headers() {
            head.insert(name, value(text)?);
        }
    }
    Ok(head)
}

fn value<T>(text: T) -> S3Result<HeaderValue>
where
    HeaderValue: TryFrom<T, Error = http::header::InvalidHeaderValue>,
{
    HeaderValue::try_from(text).map_err(unwritable)
}

fn unwritable(error: impl std::error::Error) -> S3Error {
    // I-K1: what it is of stays out of the log.
    tracing::error!(%error, "a stored header can't be written");
    refuse(S3ErrorCode::InternalError, "We encountered an internal error.")
}

#[cfg(test)]
mod tests {
    use super::*;

    const AUTHORIZATION: &str = "AWS4-HMAC-SHA256 Credential=AK/20261128/us-east-1/s3/aws4_request, \
                                 SignedHeaders=host;x-amz-checksum-mode;x-amz-content-sha256;x-amz-date, \
                                 Signature=0000000000000000000000000000000000000000000000000000000000000000";

    fn request(method: &str, target: &str, changed: &[(&'static str, &str)], body: Body) -> Request<Body> {
        let mut request = Request::builder().method(method).uri(target).body(body).unwrap();
        let usual = [
            ("host", "storage:9000"),
            ("user-agent", "Boto3/1.40"),
            ("accept-encoding", "identity"),
            ("amz-sdk-invocation-id", "7e9fd5b6"),
            ("authorization", AUTHORIZATION),
            ("x-amz-date", "20261128T101500Z"),
            ("x-amz-content-sha256", s3s_sigv4::EMPTY_STRING_SHA256_HASH),
        ];
        for (name, text) in usual {
            request.headers_mut().insert(name, HeaderValue::from_static(text));
        }
        for (name, text) in changed {
            request.headers_mut().append(*name, HeaderValue::from_str(text).unwrap());
        }
        request
    }

    fn is_plain(method: &str, target: &str, changed: &[(&'static str, &str)]) -> bool {
        PlainRead::of(&request(method, target, changed, Body::empty())).is_some()
    }

    #[test]
    fn what_clients_send_is_plain() {
        assert!(is_plain("GET", "/bucket/a/b_c-d.e~f/0001.npy", &[]));
        assert!(is_plain("GET", "/bucket/key?x-id=GetObject", &[]));
        assert!(is_plain("GET", "/bucket/key", &[("range", "bytes=0-4095")]));
        assert!(is_plain("GET", "/bucket/key", &[("x-amz-checksum-mode", "ENABLED")]));
        let request = request("GET", "/bucket/a//b/", &[("x-amz-checksum-mode", "ENABLED")], Body::empty());
        let read = PlainRead::of(&request).unwrap();
        assert_eq!((read.bucket, read.key, read.wants_sums), ("bucket", "a//b/", true));
    }

    #[test]
    fn what_says_more_is_left_to_s3s() {
        for target in [
            "/",
            "/bucket",
            "/bucket/",
            "/Bucket/key",
            "//key",
            "/bucket/a%20b",
            "/bucket/a+b",
            "/bucket/k?versionId=null",
            "/bucket/k?x-id=HeadObject",
            "/bucket/k?x-id=GetObject&partNumber=1",
            "/bucket/k?",
        ] {
            assert!(!is_plain("GET", target, &[]), "{target}");
        }
        assert!(!is_plain("GET", &format!("/bucket/{}", "k".repeat(1025)), &[]));
        for method in ["HEAD", "PUT", "DELETE", "POST"] {
            assert!(!is_plain(method, "/bucket/key", &[]), "{method}");
        }
        for (name, text) in [
            ("range", "bytes=9-1"),
            ("range", "lines=1-2"),
            ("if-match", "\"e\""),
            ("if-none-match", "*"),
            ("if-modified-since", "Sat, 28 Nov 2026 10:15:00 GMT"),
            ("x-amz-security-token", "t"),
            ("x-amz-expected-bucket-owner", "1"),
            ("x-amz-server-side-encryption-customer-algorithm", "AES256"),
            ("x-amz-meta-added", "1"),
            ("x-amz-user-agent", "not signed"),
            ("x-amz-date", "20261128T101500Z"),
            ("host", "other"),
            ("authorization", AUTHORIZATION),
            ("expect", "100-continue"),
            ("content-length", "0"),
            ("content-type", "text/plain"),
        ] {
            assert!(!is_plain("GET", "/bucket/key", &[(name, text)]), "{name}: {text}");
        }
        let twice = [("range", "bytes=0-1"), ("range", "bytes=2-3")];
        assert!(!is_plain("GET", "/bucket/key", &twice));
        assert!(PlainRead::of(&request("GET", "/bucket/key", &[], Body::from(b"body".to_vec()))).is_none());
        for missing in ["host", "authorization", "x-amz-date", "x-amz-content-sha256"] {
            let mut request = request("GET", "/bucket/key", &[], Body::empty());
            request.headers_mut().remove(missing);
            assert!(PlainRead::of(&request).is_none(), "{missing}");
        }
    }
}
