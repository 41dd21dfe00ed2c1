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

/// An upload in parts that has begun and is not known to have ended.
pub struct OpenUpload {
    path: String,
    query: String,
}

impl OpenUpload {
    /// Ends it without an object: parts of an upload that nobody completes would stay for ever.
    pub async fn abort(&self, connection: &mut Connection) -> Result<()> {
        let call = Call { query: &self.query, ..Call::new(Method::DELETE, &self.path) };
        connection.call(call).await.context("AbortMultipartUpload")?;
        Ok(())
    }
}

/// Which part of which upload.
#[derive(Clone, Copy, Debug)]
pub struct UploadPart<'a> {
    /// Key of the object.
    pub key: &'a str,
    /// Id of the upload.
    pub upload: &'a str,
    /// Counted from 1.
    pub number: u64,
}

/// What a GET must return.
pub struct Expected<'a> {
    /// First byte asked for; above 0 only for a range.
    pub offset_bytes: u64,
    /// Bytes of the object, or of the range.
    pub len_bytes: u64,
    /// One of these contents; `None` does not look at the bytes.
    pub contents: Option<(&'a Source, Vec<ContentId>)>,
}

impl Bucket {
    /// Path of the bucket.
    pub(super) fn path(&self) -> String {
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

    /// Asks for an object's attributes; its length.
    pub async fn head(&self, connection: &mut Connection, key: &str) -> Result<u64> {
        let path = self.object_path(key);
        let answer = connection.send(Call::new(Method::HEAD, &path)).await.context("HEAD")?;
        let len = answer.response.headers().get(http::header::CONTENT_LENGTH);
        let len = len.and_then(|len| len.to_str().ok()?.parse().ok());
        connection.small(answer).await.context("HEAD")?;
        len.context("HEAD: the answer names no length")
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
    ///
    /// - `open`: the upload that it goes up with, from its begin until it is completed. Whoever gives this up aborts that.
    pub async fn put(
        &self,
        connections: &mut [Connection],
        source: &Source,
        put: PreparedPut,
        open: &RefCell<Option<OpenUpload>>,
    ) -> Result<()> {
        let PreparedPut { path, id, len_bytes, single } = put;
        let Some((payload, payload_hash)) = single else {
            let upload = create_upload(&mut connections[0], &path).await?;
            let query = format!("uploadId={}", encode(&upload, false));
            open.replace(Some(OpenUpload { path: path.clone(), query: query.clone() }));
            let tags = self.send_parts(connections, source, &path, &query, (id, len_bytes)).await?;
            complete_upload(&mut connections[0], &path, &query, &tags).await?;
            open.take();
            return Ok(());
        };
        let call = Call { payload, payload_hash, ..Call::new(Method::PUT, &path) };
        connections[0].call(call).await.context("PUT")?;
        Ok(())
    }

    /// Sends all parts; gives their tags.
    async fn send_parts(
        &self,
        connections: &mut [Connection],
        source: &Source,
        path: &str,
        upload: &str,
        (id, len_bytes): (ContentId, u64),
    ) -> Result<Vec<String>> {
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
                let tag = upload_part(connection, path, (upload, part + 1), (payload, payload_hash)).await?;
                tags.borrow_mut()[part as usize] = tag;
            }
        }))
        .await?;
        Ok(tags.into_inner())
    }

    fn hash(&self, payload: &Payload) -> Option<String> {
        self.signs_payload.then(|| payload.sha256_hex())
    }

    /// Stores an object with the bytes of a payload.
    pub async fn put_bytes(&self, connection: &mut Connection, key: &str, payload: Payload) -> Result<()> {
        let (path, payload_hash) = (self.object_path(key), self.hash(&payload));
        connection.call(Call { payload, payload_hash, ..Call::new(Method::PUT, &path) }).await.context("PUT")?;
        Ok(())
    }

    /// Begins an upload in parts; its id.
    pub async fn create_upload(&self, connection: &mut Connection, key: &str) -> Result<String> {
        create_upload(connection, &self.object_path(key)).await
    }

    /// Sends one part of an upload; its tag.
    pub async fn upload_part(
        &self,
        connection: &mut Connection,
        part: UploadPart<'_>,
        payload: Payload,
    ) -> Result<String> {
        let upload = format!("uploadId={}", encode(part.upload, false));
        let payload_hash = self.hash(&payload);
        upload_part(connection, &self.object_path(part.key), (&upload, part.number), (payload, payload_hash)).await
    }

    /// Completes an upload of the parts with these tags.
    pub async fn complete_upload(
        &self,
        connection: &mut Connection,
        key: &str,
        upload: &str,
        tags: &[String],
    ) -> Result<()> {
        let query = format!("uploadId={}", encode(upload, false));
        complete_upload(connection, &self.object_path(key), &query, tags).await
    }

    /// Ends an upload without an object.
    pub async fn abort_upload(&self, connection: &mut Connection, key: &str, upload: &str) -> Result<()> {
        let (path, query) = (self.object_path(key), format!("uploadId={}", encode(upload, false)));
        OpenUpload { path, query }.abort(connection).await
    }

    /// Reads an object to its end and checks it. Returns when the head of the answer was there.
    pub async fn get(&self, connection: &mut Connection, key: &str, expected: &Expected<'_>) -> Result<Instant> {
        self.get_range(connection, key, None, expected).await
    }

    /// [`Bucket::get`] of a range, half open, which `expected` describes.
    pub async fn get_range(
        &self,
        connection: &mut Connection,
        key: &str,
        range: Option<(u64, u64)>,
        expected: &Expected<'_>,
    ) -> Result<Instant> {
        let path = self.object_path(key);
        let answer = connection.send(Call { range, ..Call::new(Method::GET, &path) }).await.context("GET")?;
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
                left.retain(|id| source.content.difference(*id, expected.offset_bytes + len_bytes, data).is_none());
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

async fn create_upload(connection: &mut Connection, path: &str) -> Result<String> {
    let create = Call { query: "uploads=", ..Call::new(Method::POST, path) };
    let (_, text) = connection.call(create).await.context("CreateMultipartUpload")?;
    element(&text, "UploadId").context("CreateMultipartUpload: the answer names no upload")
}

async fn upload_part(
    connection: &mut Connection,
    path: &str,
    (upload, number): (&str, u64),
    (payload, payload_hash): (Payload, Option<String>),
) -> Result<String> {
    let query = format!("partNumber={number}&{upload}");
    let call = Call { query: &query, payload, payload_hash, ..Call::new(Method::PUT, path) };
    let (headers, _) = connection.call(call).await.context("UploadPart")?;
    let tag = headers.get(http::header::ETAG).and_then(|tag| tag.to_str().ok());
    Ok(tag.context("UploadPart: the answer has no ETag")?.to_owned())
}

async fn complete_upload(connection: &mut Connection, path: &str, query: &str, tags: &[String]) -> Result<()> {
    let mut body = "<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">".to_owned();
    for (part, tag) in tags.iter().enumerate() {
        let (part, tag) = (part + 1, tag.replace('&', "&amp;").replace('"', "&quot;"));
        body.push_str(&format!("<Part><PartNumber>{part}</PartNumber><ETag>{tag}</ETag></Part>"));
    }
    body.push_str("</CompleteMultipartUpload>");
    let payload_hash = Some(sha256_hex(body.as_bytes()));
    let payload = Payload::of(Bytes::from(body));
    let complete = Call { query, payload, payload_hash, ..Call::new(Method::POST, path) };
    connection.call(complete).await.context("CompleteMultipartUpload")?;
    Ok(())
}
