//! A body on its way into a writer: counted, hashed and compared with what the request promised.
//!
//! Whoever receives must drop the writer on any error: nothing is stored of a body that is short, cut off, or not what
//! its digests say.

use crate::checksum::{self, Algorithm, Hasher, Plan, Sums};
use crate::context::{RequestContext, Shared};
use crate::errors::{body_timeout, from_body, from_store, incomplete_body, refuse};
use crate::md5_queue::BodyMd5;
use crate::phases::Phase;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::Stream;
use http::HeaderMap;
use kiseki_engine::api::{ObjectReader, ObjectWriter};
use kiseki_types::runtime::RuntimeExt;
use kiseki_types::{LocalBoxFuture, Ports};
use s3s::dto::StreamingBlob;
use s3s::{S3ErrorCode, S3Result, StdError, TrailingHeaders};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

/// Hashing goes on for this long before other tasks of the core get a turn (half a millisecond of a body's MD5 alone).
const YIELD_LEN_BYTES: u64 = 256 * 1024;

/// What a request says about its body.
pub(crate) struct Incoming {
    body: StreamingBlob,
    len_bytes: u64,
    content_md5: Option<[u8; 16]>,
    plan: Option<Plan>,
    trailers: Option<TrailingHeaders>,
}

/// What has arrived.
pub(crate) struct Received {
    pub(crate) len_bytes: u64,
    pub(crate) md5: Option<[u8; 16]>,
    pub(crate) sums: Sums,
    /// The algorithm that the client itself sent a checksum of.
    pub(crate) sent: Option<Algorithm>,
}

impl Incoming {
    /// Reads the promises of a request; refuses what can't be checked.
    pub(crate) fn new(
        body: Option<StreamingBlob>,
        content_length: Option<i64>,
        headers: &HeaderMap,
        trailers: Option<TrailingHeaders>,
    ) -> S3Result<Incoming> {
        let len_bytes = content_length.and_then(|len_bytes| u64::try_from(len_bytes).ok()).ok_or_else(|| {
            refuse(S3ErrorCode::MissingContentLength, "You must provide the Content-Length HTTP header.")
        })?;
        Ok(Incoming {
            body: body.unwrap_or_else(|| StreamingBlob::from(Bytes::new())),
            len_bytes,
            content_md5: content_md5(headers)?,
            plan: Plan::from_headers(headers)?,
            trailers,
        })
    }

    /// The declared length.
    pub(crate) fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// The algorithm of the checksum that comes with the body.
    pub(crate) fn algorithm(&self) -> Option<Algorithm> {
        self.plan.as_ref().map(|plan| plan.algorithm)
    }

    /// Streams the body into `writer` and checks every promise. `sums` are computed besides the promised one.
    pub(crate) async fn receive(
        self,
        shared: &Shared,
        request: &RequestContext,
        writer: &mut dyn ObjectWriter,
        etag_md5: bool,
        sums: &[Algorithm],
    ) -> S3Result<Received> {
        let Incoming { mut body, len_bytes, content_md5, plan, trailers } = self;
        let algorithms = plan.iter().map(|plan| plan.algorithm).chain(sums.iter().copied());
        let mut digests = Digests::new(shared, len_bytes, etag_md5 || content_md5.is_some(), algorithms);
        let mut watch = IdleWatch::new(shared.ports.clone(), shared.config.body_idle_timeout);
        let mut received = 0u64;
        let mut turn = 0u64;
        while let Some(bytes) = next(&mut body, &mut watch).await? {
            shared.ended(request, Phase::Receive);
            let bytes = bytes.map_err(|error| from_body(&error))?;
            received += bytes.len() as u64;
            if received > len_bytes {
                return Err(incomplete_body());
            }
            request.bytes_in.set(request.bytes_in.get() + bytes.len() as u64);
            digests.update(&bytes).await;
            shared.ended(request, Phase::Digest);
            turn += bytes.len() as u64;
            writer.write(bytes).await.map_err(from_store)?;
            shared.ended(request, Phase::Store);
            if turn >= YIELD_LEN_BYTES {
                turn = 0;
                shared.ports.yield_now().await;
            }
        }
        if received != len_bytes {
            return Err(incomplete_body());
        }
        // Nobody needs the digests before: so the bodies of other requests have time to gather at the MD5 queue.
        writer.drain().await.map_err(from_store)?;
        shared.ended(request, Phase::Store);
        let (md5, computed) = digests.finish().await;
        shared.ended(request, Phase::Digest);
        if content_md5.is_some() && content_md5 != md5 {
            return Err(refuse(
                S3ErrorCode::BadDigest,
                "The Content-MD5 you specified did not match what we received.",
            ));
        }
        if let Some(plan) = &plan {
            let digest = computed.get(&plan.algorithm).expect("the promised checksum is computed");
            plan.verify(digest, trailers.as_ref())?;
        }
        let sent = plan.map(|plan| plan.algorithm);
        Ok(Received { len_bytes, md5, sums: Sums::of_digests(computed), sent })
    }
}

/// Copies what `reader` still hands out into `writer`, about `len_bytes`; the exact length is the caller's to compare.
pub(crate) async fn copy(
    shared: &Shared,
    reader: &mut dyn ObjectReader,
    writer: &mut dyn ObjectWriter,
    len_bytes: u64,
    etag_md5: bool,
    sums: &[Algorithm],
) -> S3Result<Received> {
    let mut digests = Digests::new(shared, len_bytes, etag_md5, sums.iter().copied());
    let mut len_bytes = 0;
    while let Some(bytes) = reader.next().await.map_err(from_store)? {
        len_bytes += bytes.len() as u64;
        digests.update(&bytes).await;
        shared.ports.yield_now().await;
        writer.write(bytes).await.map_err(from_store)?;
    }
    writer.drain().await.map_err(from_store)?;
    let (md5, computed) = digests.finish().await;
    Ok(Received { len_bytes, md5, sums: Sums::of_digests(computed), sent: None })
}

/// The digests of a body that is stored on its way.
struct Digests {
    ports: Ports,
    md5: Option<BodyMd5>,
    /// Whether the MD5 is one of the checksums too.
    is_md5_sum: bool,
    sums: BTreeMap<Algorithm, Hasher>,
}

impl Digests {
    fn new(shared: &Shared, len_bytes: u64, md5: bool, algorithms: impl Iterator<Item = Algorithm>) -> Digests {
        let mut sums = hashers(algorithms);
        let is_md5_sum = sums.remove(&Algorithm::Md5).is_some();
        let md5 = (md5 || is_md5_sum).then(|| shared.md5_queue.begin(len_bytes));
        Digests { ports: shared.ports.clone(), md5, is_md5_sum, sums }
    }

    async fn update(&mut self, bytes: &Bytes) {
        if let Some(md5) = &mut self.md5 {
            md5.update(bytes).await;
        }
        if self.sums.is_empty() {
            return;
        }
        for (index, piece) in bytes.chunks(YIELD_LEN_BYTES as usize).enumerate() {
            if index > 0 {
                self.ports.yield_now().await;
            }
            self.sums.values_mut().for_each(|hasher| hasher.update(piece));
        }
    }

    async fn finish(self) -> (Option<[u8; 16]>, BTreeMap<Algorithm, Vec<u8>>) {
        let mut sums = digests_of(self.sums);
        let md5 = match self.md5 {
            Some(md5) => Some(md5.finish().await),
            None => None,
        };
        sums.extend(md5.filter(|_| self.is_md5_sum).map(|md5| (Algorithm::Md5, md5.to_vec())));
        (md5, sums)
    }
}

fn hashers(algorithms: impl Iterator<Item = Algorithm>) -> BTreeMap<Algorithm, Hasher> {
    algorithms.map(|algorithm| (algorithm, Hasher::new(algorithm))).collect()
}

fn digests_of(hashers: BTreeMap<Algorithm, Hasher>) -> BTreeMap<Algorithm, Vec<u8>> {
    hashers.into_iter().map(|(algorithm, hasher)| (algorithm, hasher.finish())).collect()
}

/// `Content-MD5`, which must be the base64 of 16 bytes.
pub(crate) fn content_md5(headers: &HeaderMap) -> S3Result<Option<[u8; 16]>> {
    let Some(value) = headers.get("content-md5") else { return Ok(None) };
    STANDARD
        .decode(value.as_bytes())
        .ok()
        .and_then(|value| value.try_into().ok())
        .map(Some)
        .ok_or_else(|| refuse(S3ErrorCode::InvalidDigest, "The Content-MD5 you specified was invalid."))
}

/// Ends a body that pauses for too long. The clock is asked only when the body has nothing to give, and the timer is
/// armed once in a while, not for every piece; a pause is noticed after one to two times the limit.
struct IdleWatch {
    ports: Ports,
    limit: Duration,
    moved: bool,
    timer: Option<LocalBoxFuture<'static, ()>>,
}

impl IdleWatch {
    fn new(ports: Ports, limit: Duration) -> IdleWatch {
        IdleWatch { ports, limit, moved: true, timer: None }
    }

    /// Whether the pause is over the limit.
    fn poll_expired(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            let timer = self.timer.get_or_insert_with(|| self.ports.sleep(self.limit));
            if timer.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            self.timer = None;
            if !std::mem::take(&mut self.moved) {
                return Poll::Ready(());
            }
        }
    }
}

async fn next(body: &mut StreamingBlob, watch: &mut IdleWatch) -> S3Result<Option<Result<Bytes, StdError>>> {
    poll_fn(|context| match Pin::new(&mut *body).poll_next(context) {
        Poll::Ready(item) => {
            watch.moved = true;
            Poll::Ready(Ok(item))
        }
        Poll::Pending => watch.poll_expired(context).map(|()| Err(body_timeout())),
    })
    .await
}

/// A body that the client sends only when it is asked to (`Expect: 100-continue`).
///
/// When an answer leaves before such a body was read, nobody can tell whether the client will still send it, and hyper
/// would take the first bytes of the next request for it. So what is left unread is counted, and the connection is
/// closed behind the answer when it is not nothing.
pub(crate) struct Announced {
    body: hyper::body::Incoming,
    request: send_wrapper::SendWrapper<std::rc::Rc<RequestContext>>,
}

impl Announced {
    pub(crate) fn new(body: hyper::body::Incoming, request: std::rc::Rc<RequestContext>) -> Announced {
        request.unread.set(http_body::Body::size_hint(&body).exact().unwrap_or(u64::MAX));
        Announced { body, request: send_wrapper::SendWrapper::new(request) }
    }
}

impl http_body::Body for Announced {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, hyper::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        let len_bytes = match &frame {
            Some(Ok(frame)) => frame.data_ref().map_or(0, |bytes| bytes.len() as u64),
            Some(Err(_)) => 0,
            None => u64::MAX,
        };
        self.request.unread.set(self.request.unread.get().saturating_sub(len_bytes));
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// The body of a request whose XML is read by `s3s` before any handler sees it: its digests are checked on the way.
pub(crate) struct VerifiedXml {
    body: s3s::Body,
    /// `None` once they were compared.
    digests: Option<BTreeMap<Algorithm, Hasher>>,
    content_md5: Option<[u8; 16]>,
    plan: Option<Plan>,
    request: send_wrapper::SendWrapper<std::rc::Rc<RequestContext>>,
}

impl VerifiedXml {
    pub(crate) fn new(
        body: s3s::Body,
        headers: &HeaderMap,
        request: std::rc::Rc<RequestContext>,
    ) -> S3Result<VerifiedXml> {
        let content_md5 = content_md5(headers)?;
        let plan = Plan::from_headers(headers)?.filter(|plan| plan.expected != checksum::Expected::Trailer);
        let content_algorithm = content_md5.map(|_| Algorithm::Md5);
        let digests = hashers(plan.iter().map(|plan| plan.algorithm).chain(content_algorithm));
        let request = send_wrapper::SendWrapper::new(request);
        Ok(VerifiedXml { body, digests: Some(digests), content_md5, plan, request })
    }

    fn verify(&mut self) -> S3Result<()> {
        let Some(digests) = self.digests.take() else { return Ok(()) };
        let computed = digests_of(digests);
        if self.content_md5.is_some_and(|content_md5| computed[&Algorithm::Md5] != content_md5) {
            return Err(refuse(
                S3ErrorCode::BadDigest,
                "The Content-MD5 you specified did not match what we received.",
            ));
        }
        self.plan.as_ref().map_or(Ok(()), |plan| plan.verify(&computed[&plan.algorithm], None))
    }
}

impl http_body::Body for VerifiedXml {
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, StdError>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => {
                if let (Some(bytes), Some(digests)) = (frame.data_ref(), &mut self.digests) {
                    digests.values_mut().for_each(|hasher| hasher.update(bytes));
                }
            }
            Some(Err(_)) => {}
            None => {
                if let Err(error) = self.verify() {
                    self.request.body_error.replace(Some(error));
                    return Poll::Ready(Some(Err("the body is not what its digest says".into())));
                }
            }
        }
        Poll::Ready(frame)
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::Body::size_hint(&self.body)
    }
}
