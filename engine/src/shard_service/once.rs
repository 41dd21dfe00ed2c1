//! Requests that are asked again get their first answer (`request_log`): what is remembered with each kind of change, and how
//! it becomes an answer.

use super::ShardService;
use crate::api::StoreError;
use crate::composition::{Entry, FileEntry};
use crate::leader::row_damaged;
use crate::message::{ShardRequest, ShardResponse};
use crate::request_log::{ANSWER_LEN_BYTES_MAX, Entered, Mark, RequestStamp};
use kiseki_types::ids::UploadId;

impl ShardService {
    /// Answers a request. One that changes something and has a stamp is done once, however often it is asked.
    pub async fn handle(
        &self,
        request: ShardRequest,
        stamp: Option<RequestStamp>,
    ) -> Result<ShardResponse, StoreError> {
        let Some(stamp) = stamp.filter(|_| request.is_done_once()) else {
            return self.answer(request, None).await;
        };
        match self.leader.requests.enter(stamp, &*self.leader.tables()).await? {
            Entered::First(_running) => self.answer(request, Some(stamp.id)).await,
            Entered::Done(remembered) => answer_again(request, &remembered),
        }
    }

    /// How far this shard has counted its requests.
    #[must_use]
    pub fn mark(&self) -> Mark {
        self.leader.requests.mark()
    }
}

/// What is remembered of an object made of parts, whose rows are gone with the upload. What a long answer leaves out, a
/// completion tells nobody.
pub(super) fn remembered_object(file: &FileEntry) -> Vec<u8> {
    let short = FileEntry { pages: Vec::new(), ..file.clone() };
    match short.encode() {
        row if row.len() <= ANSWER_LEN_BYTES_MAX => row,
        _ => {
            let etag = short.etag.chars().take(1024).collect();
            let (attributes, part_lens_bytes) = Default::default();
            FileEntry { etag, attributes, part_lens_bytes, ..short }.encode()
        }
    }
}

/// The first answer. Where the request itself says what it would be, nothing was remembered.
fn answer_again(request: ShardRequest, remembered: &[u8]) -> Result<ShardResponse, StoreError> {
    let damaged = || StoreError::Damaged { reason: "what is remembered of a request is none of its kind".to_owned() };
    Ok(match request {
        ShardRequest::PutEntry { path, file, .. } => ShardResponse::Object(file.info(path.key)),
        ShardRequest::PutPart { part, entry, .. } => ShardResponse::Part(entry.info(part)),
        ShardRequest::Delete { .. } => ShardResponse::Deleted(true), // a delete of nothing commits nothing
        ShardRequest::CreateUpload { .. } => {
            ShardResponse::Upload(UploadId(remembered.try_into().map_err(|_| damaged())?))
        }
        ShardRequest::CompleteUpload { path, .. } => match Entry::decode(remembered).map_err(row_damaged)? {
            Entry::File(file) => ShardResponse::Object(file.info(path.key)),
            Entry::Directory { .. } => return Err(damaged()),
        },
        _ => ShardResponse::Count(0),
    })
}
