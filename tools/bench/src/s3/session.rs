//! One client of a load that is more than PUT and GET: a connection, and operations that are given up after `--timeout`.

use super::body::{Payload, PieceMemory, Source};
use super::connection::Connection;
use super::content::{Content, ContentId};
use super::listing::Page;
use super::operations::{Expected, PreparedPut, UploadPart};
use super::target::Target;
use anyhow::{Result, bail};
use std::sync::Arc;
use std::time::Instant;

/// What a GET is to bring.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// What the object holds.
    pub content: ContentId,
    /// First byte.
    pub start: u64,
    /// Behind the last byte.
    pub end: u64,
    /// Whether `start` and `end` are part of an object, and not all of it.
    pub is_range: bool,
}

/// A client.
pub struct Session<'a> {
    target: &'a Target,
    connection: Connection,
    /// Makes what is stored, and what is compared.
    source: Source,
    verify: bool,
}

impl<'a> Session<'a> {
    /// Not yet connected. With `verify` every byte of GETs is checked.
    pub fn new(target: &'a Target, content: &Arc<Content>, verify: bool) -> Session<'a> {
        let source = Source { content: content.clone(), memory: PieceMemory::default() };
        Session { target, connection: target.connection(), source, verify }
    }

    /// Connects; an operation would, too, in the time that is measured.
    pub async fn connect(&mut self) -> Result<()> {
        self.target.limited(self.connection.ready()).await
    }

    /// Makes what can be made of a PUT before the clock runs.
    pub fn prepare_put(&self, key: &str, content: ContentId, len_bytes: u64) -> PreparedPut {
        self.target.bucket.prepare_put(&self.source, key, content, len_bytes)
    }

    /// Stores an object.
    pub async fn put(&mut self, put: PreparedPut) -> Result<()> {
        let connections = std::slice::from_mut(&mut self.connection);
        self.target.put(connections, &self.source, put).await
    }

    /// Stores an object with these bytes.
    pub async fn put_bytes(&mut self, key: &str, payload: Payload) -> Result<()> {
        self.target.limited(self.target.bucket.put_bytes(&mut self.connection, key, payload)).await
    }

    /// Begins an upload in parts; its id.
    pub async fn create_upload(&mut self, key: &str) -> Result<String> {
        self.target.limited(self.target.bucket.create_upload(&mut self.connection, key)).await
    }

    /// Sends a part of it; its tag.
    pub async fn upload_part(&mut self, part: UploadPart<'_>, payload: Payload) -> Result<String> {
        self.target.limited(self.target.bucket.upload_part(&mut self.connection, part, payload)).await
    }

    /// Completes it.
    pub async fn complete_upload(&mut self, key: &str, upload: &str, tags: &[String]) -> Result<()> {
        self.target.limited(self.target.bucket.complete_upload(&mut self.connection, key, upload, tags)).await
    }

    /// Ends it without an object.
    pub async fn abort_upload(&mut self, key: &str, upload: &str) -> Result<()> {
        self.target.limited(self.target.bucket.abort_upload(&mut self.connection, key, upload)).await
    }

    /// Reads an object or a part of it; when the head of the answer was there.
    pub async fn get(&mut self, key: &str, wanted: Wanted) -> Result<Instant> {
        let contents = self.verify.then(|| (&self.source, vec![wanted.content]));
        let expected = Expected { offset_bytes: wanted.start, len_bytes: wanted.end - wanted.start, contents };
        let range = wanted.is_range.then_some((wanted.start, wanted.end));
        let getting = self.target.bucket.get_range(&mut self.connection, key, range, &expected);
        self.target.limited(getting).await
    }

    /// Asks for an object's attributes, and compares its length.
    pub async fn head(&mut self, key: &str, len_bytes: u64) -> Result<()> {
        match self.target.limited(self.target.bucket.head(&mut self.connection, key)).await? {
            found if found == len_bytes => Ok(()),
            found => bail!("HEAD: {found} bytes instead of {len_bytes}"),
        }
    }

    /// Removes an object.
    pub async fn delete(&mut self, key: &str) -> Result<()> {
        self.target.limited(self.target.bucket.delete(&mut self.connection, key)).await
    }

    /// One page of what lies below a prefix.
    pub async fn list_page(&mut self, prefix: &str, next: Option<&str>) -> Result<Page> {
        self.target.limited(self.target.bucket.list_page(&mut self.connection, prefix, next)).await
    }
}
