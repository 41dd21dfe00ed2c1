//! One client's connection: signed requests, one at a time, kept alive between them.

use super::body::Payload;
use super::endpoint::Endpoint;
use super::sigv4::{Canonical, Signer, UNSIGNED_PAYLOAD, amz_date};
use anyhow::{Context, Result, anyhow, bail};
use http::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderName, HeaderValue, RANGE};
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Longest answer that is kept of errors and the small documents of multipart uploads.
const ANSWER_LEN_BYTES_MAX: usize = 64 * 1024;

/// Longest page of a listing: a thousand keys of a thousand bytes, percent-encoded, with their attributes.
const PAGE_LEN_BYTES_MAX: usize = 8 << 20;

/// What is asked for.
pub struct Call<'a> {
    /// GET, PUT and so on.
    pub method: Method,
    /// Percent-encoded path.
    pub path: &'a str,
    /// Percent-encoded, sorted query without '?', or nothing.
    pub query: &'a str,
    /// The body.
    pub payload: Payload,
    /// Its hex SHA-256 when it is signed.
    pub payload_hash: Option<String>,
    /// Bytes asked for, half open.
    pub range: Option<(u64, u64)>,
}

/// Hex SHA-256 of nothing.
const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

impl<'a> Call<'a> {
    /// Without query and body.
    pub fn new(method: Method, path: &'a str) -> Call<'a> {
        let payload_hash = Some(EMPTY_SHA256.to_owned());
        Call { method, path, query: "", payload: Payload::empty(), payload_hash, range: None }
    }
}

/// A connection that is made again when it is lost.
pub struct Connection {
    endpoint: Arc<Endpoint>,
    signer: Signer,
    /// Taken out while a request is under way: one that is given up leaves nothing half read behind.
    sender: Option<SendRequest<Payload>>,
    /// The date of the last request; most fall into the same second.
    date: (i64, String),
    connects: u64,
}

/// The answer to a call, and what lets the connection be used again.
pub struct Answer {
    /// Head and body, not yet read.
    pub response: Response<Incoming>,
    sender: SendRequest<Payload>,
}

impl Connection {
    /// Not yet connected.
    pub fn new(endpoint: Arc<Endpoint>, signer: Signer) -> Connection {
        Connection { endpoint, signer, sender: None, date: (0, String::new()), connects: 0 }
    }

    /// How often it was connected.
    pub fn connects(&self) -> u64 {
        self.connects
    }

    /// Connects unless it is connected.
    pub async fn ready(&mut self) -> Result<()> {
        if self.sender.as_ref().is_none_or(SendRequest::is_closed) {
            self.sender = Some(self.endpoint.connect().await?);
            self.connects += 1;
        }
        Ok(())
    }

    /// Sends a request and waits for the head of the answer, whatever its status.
    pub async fn send(&mut self, call: Call<'_>) -> Result<Answer> {
        let mut request = self.request(call)?;
        // A server may close a connection that is idle; a request that was not sent is sent on a new one.
        for _ in 0..2 {
            self.ready().await?;
            let mut sender = self.sender.take().ok_or_else(|| anyhow!("not connected"))?;
            if sender.ready().await.is_err() {
                continue;
            }
            match sender.try_send_request(request).await {
                Ok(response) => return Ok(Answer { response, sender }),
                Err(mut failed) => match failed.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(anyhow!(chain(&failed.into_error()))),
                },
            }
        }
        bail!("the server closes connections before it takes a request")
    }

    /// Gives the connection back after the whole body of an answer was read.
    pub fn finish(&mut self, sender: SendRequest<Payload>) {
        self.sender = Some(sender);
    }

    /// [`Connection::send`] for small answers: the body, when the status says success.
    pub async fn call(&mut self, call: Call<'_>) -> Result<(http::HeaderMap, String)> {
        let answer = self.send(call).await?;
        self.small(answer).await
    }

    /// [`Connection::call`] for a page of a listing.
    pub async fn page(&mut self, call: Call<'_>) -> Result<String> {
        let answer = self.send(call).await?;
        Ok(self.limited(answer, PAGE_LEN_BYTES_MAX).await?.1)
    }

    /// Reads a small answer to its end.
    pub async fn small(&mut self, answer: Answer) -> Result<(http::HeaderMap, String)> {
        self.limited(answer, ANSWER_LEN_BYTES_MAX).await
    }

    async fn limited(&mut self, answer: Answer, len_bytes_max: usize) -> Result<(http::HeaderMap, String)> {
        let Answer { response, sender } = answer;
        let (head, mut body) = response.into_parts();
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| anyhow!(chain(&error)))?;
            if let Some(data) = frame.data_ref() {
                let room = len_bytes_max - bytes.len();
                bytes.extend_from_slice(&data[..data.len().min(room)]);
            }
        }
        self.finish(sender);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        // Completing an upload may say 200 first and fail later.
        if head.status.is_success() && !text.contains("<Error>") {
            return Ok((head.headers, text));
        }
        let part = |name| element(&text, name).unwrap_or_default();
        bail!("{} {}: {}", head.status.as_u16(), part("Code"), part("Message"))
    }

    fn request(&mut self, call: Call<'_>) -> Result<Request<Payload>> {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
        if self.date.0 != seconds {
            self.date = (seconds, amz_date(seconds));
        }
        let date = &self.date.1;
        let payload_hash = call.payload_hash.as_deref().unwrap_or(UNSIGNED_PAYLOAD);
        let token = self.signer.credentials().session_token.clone();
        let mut headers =
            vec![("host", self.endpoint.host.as_str()), ("x-amz-content-sha256", payload_hash), ("x-amz-date", date)];
        headers.extend(token.as_deref().map(|token| ("x-amz-security-token", token)));
        let (path, query) = (call.path, call.query);
        let canonical = Canonical { method: call.method.as_str(), path, query, headers: &headers, payload_hash };
        let authorization = self.signer.authorization(&canonical, date);
        let uri = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
        let len = call.payload.len_bytes();
        let mut request = Request::new(call.payload);
        *request.uri_mut() = uri.parse().with_context(|| format!("{uri} is no request path"))?;
        let out = request.headers_mut();
        let value = |text: &str| HeaderValue::from_str(text).context("a header can't be sent");
        for (name, text) in headers {
            out.insert(HeaderName::from_static(name), value(text)?);
        }
        out.insert(AUTHORIZATION, value(&authorization)?);
        if let Some((start, end)) = call.range {
            out.insert(RANGE, value(&format!("bytes={start}-{}", end.saturating_sub(1)))?);
        }
        if matches!(call.method, Method::PUT | Method::POST) {
            out.insert(CONTENT_LENGTH, HeaderValue::from(len));
        }
        *request.method_mut() = call.method;
        Ok(request)
    }
}

impl Answer {
    /// The body, and what gives the connection back after it.
    pub fn into_parts(self) -> (Incoming, SendRequest<Payload>) {
        (self.response.into_body(), self.sender)
    }
}

/// An error and what caused it, in one line: hyper says the cause only in its chain.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(&format!(": {next}"));
        cause = next.source();
    }
    text
}

/// Text of the first element of that name in a small XML document that has no need of a parser.
pub fn element(text: &str, name: &str) -> Option<String> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (inner, _) = rest.split_once(&format!("</{name}>"))?;
    let plain = inner.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&#34;", "\"");
    Some(plain.replace("&apos;", "'").replace("&#39;", "'").replace("&amp;", "&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_found_and_unescaped() {
        let text = "<?xml?><E><Code>No&amp;Such</Code><Message>&quot;x&quot; &lt; y</Message></E>";
        assert_eq!(element(text, "Code").as_deref(), Some("No&Such"));
        assert_eq!(element(text, "Message").as_deref(), Some("\"x\" < y"));
        assert_eq!(element(text, "UploadId"), None);
    }
}
