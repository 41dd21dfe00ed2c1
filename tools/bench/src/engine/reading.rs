//! Reading an object to its end, and looking at every byte of it.

use crate::measure::thread_cpu_ns;
use crate::s3::content::{Content, ContentId};
use anyhow::{Context, Result, bail};
use kiseki_engine::api::ObjectReader;
use std::time::Instant;

/// What an object may hold.
pub struct Expected<'a> {
    /// Its bytes.
    pub len_bytes: u64,
    /// Contents of the run.
    pub content: &'a Content,
    /// One of these; `None`: nobody looks.
    pub ids: Option<Vec<ContentId>>,
}

/// What reading took.
pub struct Read {
    /// When the first bytes were there.
    pub first_bytes: Option<Instant>,
    /// Processor time of looking at them, which is the load's and not the engine's.
    pub check_cpu_ns: u64,
}

/// Reads to the end. Errors: the engine's, and bytes that differ from all that was expected.
pub async fn read_all(reader: &mut dyn ObjectReader, expected: Expected<'_>) -> Result<Read> {
    let mut read = Read { first_bytes: None, check_cpu_ns: 0 };
    let (mut len_bytes, mut left) = (0, expected.ids);
    while let Some(bytes) = reader.next().await.context("GET")? {
        read.first_bytes.get_or_insert_with(Instant::now);
        if let Some(ids) = &mut left {
            let begin = thread_cpu_ns();
            ids.retain(|id| expected.content.difference(*id, len_bytes, &bytes).is_none());
            read.check_cpu_ns += thread_cpu_ns() - begin;
            if ids.is_empty() {
                bail!("GET: the bytes are not those that were stored");
            }
        }
        len_bytes += bytes.len() as u64;
    }
    match len_bytes == expected.len_bytes {
        true => Ok(read),
        false => bail!("GET: {len_bytes} bytes instead of {}", expected.len_bytes),
    }
}
