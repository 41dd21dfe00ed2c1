//! The service of one core: connections in, answers out.

use crate::auth::{SignedOnly, StoreAuth};
use crate::config::{BODY_LEN_BYTES_MAX, GatewayConfig, XML_LEN_BYTES_MAX};
use crate::context::{RequestContext, Shared, in_request};
use crate::counters::GatewayCounters;
use crate::errors::complete_error_body;
use crate::md5_queue::Md5Queue;
use crate::meter::{MeteredBody, SlowRequests};
use crate::rt::{PortsTimer, WatchedIo, WriteStall};
use crate::s3::{Handler, PlainRead};
use crate::signature::SigningKeys;
use crate::upload::{Announced, VerifiedXml};
use http::{HeaderValue, Method, Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use kiseki_engine::api::Store;
use kiseki_types::Ports;
use kiseki_types::request::RequestId;
use kiseki_types::runtime::RuntimeExt;
use s3s::config::{S3Config, StaticConfigProvider};
use s3s::service::S3ServiceBuilder;
use s3s::{Body, S3Error};
use send_wrapper::SendWrapper;
use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use thiserror::Error;
use tokio::sync::watch;

/// Why a connection ended other than by either side closing it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum GatewayError {
    /// The client broke the protocol, went away in mid-request, or was silent for too long.
    #[error("the connection broke")]
    Connection {
        /// hyper's reason.
        #[source]
        source: hyper::Error,
    },
    /// The client did not take its answer.
    #[error("the client did not read its answer for {limit_s} s")]
    Stalled {
        /// The limit that it passed.
        limit_s: u64,
    },
}

/// S3 over one core's store. Cheap to clone; every clone is the same service.
#[derive(Clone)]
pub struct S3Service {
    inner: Rc<Inner>,
}

struct Inner {
    shared: Rc<Shared>,
    s3: s3s::service::S3Service,
    counters: Rc<RefCell<GatewayCounters>>,
    slow: Rc<SlowRequests>,
    signing_keys: SigningKeys,
    request_id: Cell<u64>,
    stopping: watch::Sender<bool>,
}

impl S3Service {
    /// A service over `store`.
    #[must_use]
    pub fn new(ports: Ports, store: Store, config: GatewayConfig) -> S3Service {
        let request_id = Cell::new(u64::from_le_bytes(ports.random()));
        let md5_queue = Md5Queue::new(ports.clone());
        let shared = Rc::new(Shared { ports, store, config, md5_queue });
        let mut builder = S3ServiceBuilder::new(Handler(SendWrapper::new(shared.clone())));
        builder.set_auth(StoreAuth(SendWrapper::new(shared.clone())));
        builder.set_access(SignedOnly);
        builder.set_config(Arc::new(StaticConfigProvider::new(Arc::new(s3s_config(&shared.config)))));
        let inner = Inner {
            slow: SlowRequests::new(shared.config.slow_request),
            s3: builder.build(),
            shared,
            counters: Rc::new(RefCell::new(GatewayCounters::default())),
            signing_keys: SigningKeys::default(),
            request_id,
            stopping: watch::Sender::new(false),
        };
        S3Service { inner: Rc::new(inner) }
    }

    /// What this core's gateway has done so far.
    #[must_use]
    pub fn counters(&self) -> GatewayCounters {
        self.inner.counters.borrow().clone()
    }

    /// Asks every connection to end after the request that it is busy with; new ones end after their first.
    pub fn begin_shutdown(&self) {
        self.inner.stopping.send_replace(true);
    }

    /// Ends when no connection is left. After [`S3Service::begin_shutdown`] that is bounded by the requests in flight
    /// and by the timeouts of the configuration.
    pub async fn drained(&self) {
        self.inner.stopping.closed().await;
    }

    /// Serves one connection, HTTP/1.1 with keep-alive, until it ends. The future runs on the core that made the service.
    ///
    /// - `io`: after TLS; for a large GET to cost one copy less it should claim vectored writes.
    /// - Errors: only what ended the connection; every request was answered or cut off. A request that is cut off by
    ///   the end of its connection has stored nothing unless its store call had begun to commit.
    /// - Dropping the future drops the connection at once.
    pub fn serve_connection<IO>(&self, io: IO) -> impl Future<Output = Result<(), GatewayError>> + 'static + use<IO>
    where
        IO: hyper::rt::Read + hyper::rt::Write + Unpin + 'static,
    {
        let inner = self.inner.clone();
        let open = Open::new(inner.clone());
        async move {
            let _open = open;
            let ports = inner.shared.ports.clone();
            let stall = Rc::new(WriteStall::default());
            let io = WatchedIo { io, ports: ports.clone(), stall: stall.clone() };
            let answering = inner.clone();
            let connection = http1::Builder::new()
                .timer(PortsTimer::new(ports))
                .header_read_timeout(inner.shared.config.header_timeout)
                .keep_alive(true)
                .pipeline_flush(false)
                .half_close(false)
                .serve_connection(io, service_fn(move |request| answering.clone().answer(request)));
            let mut connection = pin!(connection);
            drive(&inner, &stall, |step| match step {
                Step::Poll(context) => connection.as_mut().poll(context),
                Step::Stop => {
                    connection.as_mut().graceful_shutdown();
                    Poll::Pending
                }
            })
            .await
        }
    }
}

/// What a connection is asked to do next.
enum Step<'a, 'b> {
    Poll(&'a mut std::task::Context<'b>),
    Stop,
}

/// Runs a connection, tells it once to stop, and gives it up when its writes are stuck.
async fn drive(
    inner: &Rc<Inner>,
    stall: &WriteStall,
    mut connection: impl FnMut(Step<'_, '_>) -> Poll<Result<(), hyper::Error>>,
) -> Result<(), GatewayError> {
    let ports = &inner.shared.ports;
    let limit = inner.shared.config.body_idle_timeout;
    let mut stopping = inner.stopping.subscribe();
    let mut stop = pin!(async move {
        // An error would mean that the service is gone, which this future keeps alive.
        let _ = stopping.wait_for(|stopping| *stopping).await;
    });
    let mut stopped = false;
    let mut tick = ports.sleep(limit);
    poll_fn(|context| {
        if !stopped && stop.as_mut().poll(context).is_ready() {
            stopped = true;
            let _ = connection(Step::Stop);
        }
        if let Poll::Ready(result) = connection(Step::Poll(context)) {
            return Poll::Ready(result.map_err(|source| GatewayError::Connection { source }));
        }
        while tick.as_mut().poll(context).is_ready() {
            if stall.is_longer_than(limit, ports.now()) {
                return Poll::Ready(Err(GatewayError::Stalled { limit_s: limit.as_secs() }));
            }
            tick = ports.sleep(limit);
        }
        Poll::Pending
    })
    .await
}

/// Counts an open connection and holds shutdown up until it is gone.
struct Open {
    inner: Rc<Inner>,
    _held: watch::Receiver<bool>,
}

impl Open {
    fn new(inner: Rc<Inner>) -> Open {
        let mut counters = inner.counters.borrow_mut();
        counters.connections += 1;
        counters.connections_total += 1;
        drop(counters);
        let held = inner.stopping.subscribe();
        Open { inner, _held: held }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.inner.counters.borrow_mut().connections -= 1;
    }
}

impl Inner {
    async fn answer(self: Rc<Self>, request: Request<Incoming>) -> Result<Response<MeteredBody>, Infallible> {
        let context = Rc::new(RequestContext::new(self.next_request_id(), self.shared.ports.now()));
        let is_head = request.method() == Method::HEAD;
        let response = match self.answer_plain(&request, &context).await {
            Some(response) => response,
            None => self.answer_any(request, &context).await,
        };
        let mut response = self.finish(response, is_head, context.clone());
        if context.unread.get() > 0 {
            response.headers_mut().insert(http::header::CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response)
    }

    /// The answer to what is simple enough; `None`: `s3s` is to answer.
    async fn answer_plain(&self, request: &Request<Incoming>, context: &Rc<RequestContext>) -> Option<Response<Body>> {
        let read = PlainRead::of(request)?;
        let answer = in_request(context.clone(), read.answer(&self.shared, context, &self.signing_keys)).await?;
        self.counters.borrow_mut().plain_reads += 1;
        Some(answer.unwrap_or_else(error_response))
    }

    async fn answer_any(&self, request: Request<Incoming>, context: &Rc<RequestContext>) -> Response<Body> {
        let response = match with_checked_body(request, context) {
            Ok(request) => in_request(context.clone(), self.s3.call(request)).await.unwrap_or_else(|error| {
                tracing::error!(request_id = %context.id, %error, "an answer could not be made");
                error_response(s3s::s3_error!(InternalError))
            }),
            Err(error) => error_response(error),
        };
        match context.body_error.take() {
            Some(error) => error_response(error),
            None => response,
        }
    }

    /// What every answer carries, and its meter.
    fn finish(&self, response: Response<Body>, is_head: bool, context: Rc<RequestContext>) -> Response<MeteredBody> {
        let (mut parts, mut body) = response.into_parts();
        if (parts.status.is_client_error() || parts.status.is_server_error())
            && let Some(bytes) = body.bytes()
            && let Some(whole) = complete_error_body(&bytes, &context)
        {
            parts.headers.remove(http::header::CONTENT_LENGTH);
            body = Body::from(whole);
        }
        // `s3s` answers a HEAD of a range with 200; the other headers are those of a 206 already.
        if is_head && parts.status.is_success() && parts.headers.contains_key(http::header::CONTENT_RANGE) {
            parts.status = http::StatusCode::PARTIAL_CONTENT;
        }
        if is_head && body.bytes().is_some_and(|bytes| !bytes.is_empty()) {
            body = Body::empty();
        }
        if let Ok(id) = HeaderValue::try_from(context.id.to_string()) {
            parts.headers.insert("x-amz-request-id", id);
        }
        parts.headers.insert(http::header::SERVER, HeaderValue::from_static("Kiseki"));
        let status = parts.status.as_u16();
        let (counters, ports, slow) = (self.counters.clone(), self.shared.ports.clone(), self.slow.clone());
        let body = MeteredBody::new(body, status, context, counters, ports, slow);
        Response::from_parts(parts, body)
    }

    /// Ids count up from a random start, by an odd step that makes neighbours look unlike.
    fn next_request_id(&self) -> RequestId {
        let id = self.request_id.get().wrapping_add(0x9E37_79B9_7F4A_7C15);
        self.request_id.set(id);
        RequestId(id)
    }
}

/// Hands the body on: one that is announced with its unread bytes counted, that of a multi-delete, whose XML `s3s`
/// reads by itself, with its digests checked.
fn with_checked_body(request: Request<Incoming>, context: &Rc<RequestContext>) -> Result<Request<Body>, S3Error> {
    let (parts, body) = request.into_parts();
    let body = match parts.headers.contains_key(http::header::EXPECT) {
        true => Body::http_body(Announced::new(body, context.clone())),
        false => Body::from(body),
    };
    let is_multi_delete = parts.method == Method::POST
        && parts
            .uri
            .query()
            .is_some_and(|query| query.split('&').any(|pair| pair == "delete" || pair.starts_with("delete=")));
    let has_aws_chunks = parts.headers.contains_key("x-amz-decoded-content-length");
    if !is_multi_delete || has_aws_chunks {
        return Ok(Request::from_parts(parts, body));
    }
    let body = VerifiedXml::new(body, &parts.headers, context.clone())?;
    Ok(Request::from_parts(parts, Body::http_body_unsync(body)))
}

fn error_response(error: S3Error) -> Response<Body> {
    error.to_http_response().unwrap_or_else(|_| {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
        response
    })
}

fn s3s_config(config: &GatewayConfig) -> S3Config {
    let mut s3s_config = S3Config::default();
    s3s_config.xml_max_body_size = XML_LEN_BYTES_MAX;
    s3s_config.put_object_max_size = Some(BODY_LEN_BYTES_MAX);
    s3s_config.aws_chunked_stream_max_chunk_size = config.aws_chunk_len_bytes_max;
    s3s_config.sig_v4_allowed_services = vec!["s3".to_owned()];
    s3s_config.allow_post_signature = false;
    // Forms are not served; what can't be refused before it is parsed is kept small.
    s3s_config.post_object_max_file_size = 64 * 1024;
    s3s_config.form_max_field_size = 64 * 1024;
    s3s_config.form_max_fields_size = 256 * 1024;
    s3s_config.form_max_parts = 100;
    s3s_config
}
