//! Pages of the admin ports of Kiseki's nodes.

use super::body::Payload;
use super::connection::chain;
use super::crew::runtime;
use super::endpoint::Endpoint;
use crate::usage::usage;
use anyhow::{Context, Result, anyhow, bail};
use http::{HeaderValue, Request};
use http_body_util::{BodyExt, Limited};
use std::path::Path;
use std::time::Duration;

/// Longest page that is read.
const PAGE_LEN_BYTES_MAX: usize = 32 << 20;

/// A core brings what these pages say up to date twice a second.
pub const BEHIND: Duration = Duration::from_millis(600);

/// Longest wait for it.
const DEADLINE: Duration = Duration::from_secs(5);

/// One page of one node.
pub struct AdminPage {
    endpoint: Endpoint,
    path: &'static str,
}

impl AdminPage {
    /// `url` is that of the admin port, such as `http://127.0.0.1:9090`. Errors: `Usage`.
    pub fn open(option: &str, url: &str, path: &'static str, authorities: Option<&Path>) -> Result<AdminPage> {
        let endpoint = Endpoint::open(url, authorities).map_err(|error| {
            usage(format!("{option}: {error:#}; the admin port is meant, as in http://127.0.0.1:9090"))
        })?;
        Ok(AdminPage { endpoint, path })
    }

    /// Its text.
    pub fn text(&self) -> Result<String> {
        let asking = async { tokio::time::timeout(DEADLINE, self.ask()).await.map_err(|_| anyhow!("no answer"))? };
        runtime()?.block_on(asking).with_context(|| format!("{}{} can't be read", self.endpoint.url, self.path))
    }

    async fn ask(&self) -> Result<String> {
        let mut sender = self.endpoint.connect().await?;
        let mut request = Request::new(Payload::empty());
        *request.uri_mut() = self.path.parse()?;
        request.headers_mut().insert(http::header::HOST, HeaderValue::from_str(&self.endpoint.host)?);
        let answer = sender.send_request(request).await.map_err(|error| anyhow!(chain(&error)))?;
        if !answer.status().is_success() {
            bail!("the answer is {}", answer.status());
        }
        let body = Limited::new(answer.into_body(), PAGE_LEN_BYTES_MAX).collect().await;
        let bytes = body.map_err(|error| anyhow!("{error}"))?.to_bytes();
        String::from_utf8(bytes.to_vec()).context("it is no text")
    }
}
