//! What is done to a bucket and its objects.

use super::body::{Payload, Source};
use super::connection::{Call, Connection, chain, element};
use super::content::ContentId;
use super::sigv4::{encode, sha256_hex};
use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use futures::future::try_join_all;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use std::cell::{Cell, RefCell};
use std::time::Instant;

/// A bucket, and how objects are put into it.
#[derive(Clone, Debug)]
pub struct Bucket {
    /// Its name.
    pub name: String,
    /// Objects longer than this go up in parts of it.
    pub part_len_bytes: u64,
    /// Whether bodies are hashed and signed.
    pub signs_payload: bool,
}

/// A PUT that is ready to be sent: the clock does not run while it is made.
pub struct PreparedPut {
    path: String,
    id: ContentId,
    len_bytes: u64,
    /// `None` for an object that goes up in parts.
    single: Option<(Payload, Option<String>)>,
}

/// What a GET must return.
pub struct Expected<'a> {
    /// Bytes of the object.
    pub len_bytes: u64,
    /// One of these contents; `None` does not look at the bytes.
    pub contents: Option<(&'a Source, Vec<ContentId>)>,
}

impl Bucket {
    fn path(&self) -> String {
        format!("/{}", encode(&self.name, false))
    }

    fn object_path(&self, key: &str) -> String {
        format!("{}/{}", self.path(), encode(key, true))
    }

    /// Makes the bucket unless it is there. Returns whether it made it.
    pub async fn ensure(&self, connection: &mut Connection, region: &str) -> Result<bool> {
        let path = self.path();
        let answer = connection.send(Call::new(Method::HEAD, &path)).await?;
        let status = answer.response.status();
        let (body, sender) = answer.into_parts();
        body.collect().await.map_err(|error| anyhow!(chain(&error)))?;
        connection.finish(sender);
        match status {
            StatusCode::NOT_FOUND => {}
            status if status.is_success() => return Ok(false),
            status => bail!("bucket {}: {status}; check the keys, or name another --bucket", self.name),
        }
        let mut call = Call::new(Method::PUT, &path);
        if region != "us-east-1" {
            let text = format!(
                "<CreateBucketConfiguration><LocationConstraint>{region}</LocationConstraint></CreateBucketConfiguration>"
            );
            call.payload_hash = Some(sha256_hex(text.as_bytes()));
            call.payload = Payload::of(text.into());
        }
        connection.call(call).await.with_context(|| format!("bucket {} can't be made", self.name))?;
        Ok(true)
    }

    /// Removes the bucket, which must be empty.
    pub async fn remove(&self, connection: &mut Connection) -> Result<()> {
        let path = self.path();
        connection.call(Call::new(Method::DELETE, &path)).await?;
        Ok(())
    }

    /// Removes an object; one that is not there is no error.
    pub async fn delete(&self, connection: &mut Connection, key: &str) -> Result<()> {
        let path = self.object_path(key);
        connection.call(Call::new(Method::DELETE, &path)).await.context("DELETE")?;
        Ok(())
    }

    fn payload(&self, source: &Source, id: ContentId, start: u64, end: u64) -> (Payload, Option<String>) {
        let payload = Payload::content(source, id, start, end);
        let hash = self.signs_payload.then(|| payload.sha256_hex());
        (payload, hash)
    }

    /// Makes what can be made before the clock runs.
    pub fn prepare_put(&self, source: &Source, key: &str, id: ContentId, len_bytes: u64) -> PreparedPut {
        let single = (len_bytes <= self.part_len_bytes).then(|| self.payload(source, id, 0, len_bytes));
        PreparedPut { path: self.object_path(key), id, len_bytes, single }
    }

    /// Stores an object. With several connections, its parts go up side by side.
    pub async fn put(&self, connections: &mut [Connection], source: &Source, put: PreparedPut) -> Result<()> {
        let PreparedPut { path, id, len_bytes, single } = put;
        let Some((payload, payload_hash)) = single else {
            return self.put_parts(connections, source, &path, id, len_bytes).await;
        };
        let call = Call { method: Method::PUT, path: &path, query: "", payload, payload_hash };
        connections[0].call(call).await.context("PUT")?;
        Ok(())
    }

    async fn put_parts(
        &self,
        connections: &mut [Connection],
        source: &Source,
        path: &str,
        id: ContentId,
        len_bytes: u64,
    ) -> Result<()> {
        let create = Call { query: "uploads=", ..Call::new(Method::POST, path) };
        let (_, text) = connections[0].call(create).await.context("CreateMultipartUpload")?;
        let upload = element(&text, "UploadId").context("CreateMultipartUpload: the answer names no upload")?;
        let upload = format!("uploadId={}", encode(&upload, false));
        let sent = self.send_parts(connections, source, path, &upload, (id, len_bytes)).await;
        let completed = match sent {
            Ok(body) => {
                let payload_hash = Some(sha256_hex(body.as_bytes()));
                let payload = Payload::of(Bytes::from(body));
                let complete = Call { method: Method::POST, path, query: &upload, payload, payload_hash };
                connections[0].call(complete).await.context("CompleteMultipartUpload").map(drop)
            }
            Err(error) => Err(error),
        };
        if completed.is_err() {
            // Parts of an upload that nobody completes would stay for ever; the error told is the first one.
            let _ = connections[0].call(Call { query: &upload, ..Call::new(Method::DELETE, path) }).await;
        }
        completed
    }

    /// Sends all parts; gives the document that completes the upload.
    async fn send_parts(
        &self,
        connections: &mut [Connection],
        source: &Source,
        path: &str,
        upload: &str,
        (id, len_bytes): (ContentId, u64),
    ) -> Result<String> {
        let count = len_bytes.div_ceil(self.part_len_bytes);
        let next = Cell::new(0);
        let tags = RefCell::new(vec![String::new(); count as usize]);
        try_join_all(connections.iter_mut().map(async |connection| -> Result<()> {
            loop {
                let part = next.get();
                if part >= count {
                    return Ok(());
                }
                next.set(part + 1);
                let start = part * self.part_len_bytes;
                let end = (start + self.part_len_bytes).min(len_bytes);
                let (payload, payload_hash) = self.payload(source, id, start, end);
                let query = format!("partNumber={}&{upload}", part + 1);
                let call = Call { method: Method::PUT, path, query: &query, payload, payload_hash };
                let (headers, _) = connection.call(call).await.context("UploadPart")?;
                let tag = headers.get(http::header::ETAG).and_then(|tag| tag.to_str().ok());
                tags.borrow_mut()[part as usize] = tag.context("UploadPart: the answer has no ETag")?.to_owned();
            }
        }))
        .await?;
        let mut body = "<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">".to_owned();
        for (part, tag) in tags.into_inner().iter().enumerate() {
            let (part, tag) = (part + 1, tag.replace('&', "&amp;").replace('"', "&quot;"));
            body.push_str(&format!("<Part><PartNumber>{part}</PartNumber><ETag>{tag}</ETag></Part>"));
        }
        body.push_str("</CompleteMultipartUpload>");
        Ok(body)
    }

    /// Reads an object to its end and checks it. Returns when the head of the answer was there.
    pub async fn get(&self, connection: &mut Connection, key: &str, expected: &Expected<'_>) -> Result<Instant> {
        let path = self.object_path(key);
        let answer = connection.send(Call::new(Method::GET, &path)).await.context("GET")?;
        let first_byte = Instant::now();
        if !answer.response.status().is_success() {
            connection.small(answer).await.context("GET")?;
            bail!("GET: an answer that is neither success nor error");
        }
        let (mut body, sender) = answer.into_parts();
        let mut len_bytes = 0;
        let mut left: Vec<ContentId> = expected.contents.as_ref().map(|(_, ids)| ids.clone()).unwrap_or_default();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| anyhow!("GET: {}", chain(&error)))?;
            let Some(data) = frame.data_ref() else { continue };
            if let Some((source, _)) = &expected.contents {
                let before = left.len();
                left.retain(|id| source.content.difference(*id, len_bytes, data).is_none());
                if before > 0 && left.is_empty() {
                    bail!("GET: the bytes are not those that were stored");
                }
            }
            len_bytes += data.len() as u64;
        }
        connection.finish(sender);
        match len_bytes == expected.len_bytes {
            true => Ok(first_byte),
            false => bail!("GET: {len_bytes} bytes instead of {}", expected.len_bytes),
        }
    }
}
