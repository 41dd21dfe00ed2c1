//! Multipart uploads. They lie in the shard of their key's directory, so completing one is one delta.

use super::once::remembered_object;
use super::{ShardService, check_attributes, check_condition, drop_file, drop_pages};
use crate::api::{CompletePart, Condition, ObjectInfo, PartInfo, StoreError, UploadInfo};
use crate::composition::{Entry, FileEntry, PAGES_MAX, PARTS_MAX, PartEntry, UploadEntry, attributes_fit};
use crate::delta::RowChange;
use crate::latch::{Hold, LatchGuard};
use crate::leader::{CommitError, Draft, row_damaged};
use crate::machine::ROWS_FILE;
use crate::message::{Clip, ObjectPath, ShardRequest, ShardResponse, WrittenPages};
use crate::shard_tables::{
    ENTRIES, PARTS, UPLOADS, parse_part_key, parse_upload_key, part_key, upload_key, upload_prefix,
};
use kiseki_types::ids::{DirId, NamespaceId, RequestId, UploadId};
use kiseki_types::peer::MESSAGE_LEN_BYTES_MAX;
use kiseki_types::runtime::RuntimeExt;
use kiseki_types::table::{Direction, Scan, prefix_end};
use std::collections::BTreeMap;
use std::ops::Bound;

/// Bytes of uploads that one answer lists, at least one: it fits a message to another node. Whoever asked goes on behind the last.
const LISTED_LEN_BYTES: usize = MESSAGE_LEN_BYTES_MAX / 2;

impl ShardService {
    pub(super) async fn handle_upload(
        &self,
        request: ShardRequest,
        once: Option<RequestId>,
    ) -> Result<ShardResponse, StoreError> {
        match request {
            ShardRequest::CreateUpload { path, attributes } => {
                let initiated_unix_ms = self.leader.ports().unix_time_ms();
                let entry = UploadEntry { initiated_unix_ms, attributes };
                self.create_upload(once, &path, entry).await.map(ShardResponse::Upload)
            }
            ShardRequest::PutPart { path, upload, part, entry, written } => {
                let entry = (part, entry);
                self.put_part(once, &path, upload, entry, written).await.map(ShardResponse::Part)
            }
            ShardRequest::Parts { path, upload, after, limit } => {
                self.load.read(path.namespace, &path.key);
                loop {
                    self.leader.barrier().await?;
                    self.check_here(&path)?;
                    let found = self.upload_and_parts(&path, upload, after, limit).await;
                    if self.were_here(path.namespace, &Clip::of_key(&path.key)).await? {
                        let (entry, parts) = found?;
                        let parts = parts.into_iter().map(|(part, entry)| entry.info(part)).collect();
                        return Ok(ShardResponse::Parts(entry.info(upload, path.key), parts));
                    }
                }
            }
            ShardRequest::Uploads { namespace, prefix, clip, after, limit } => loop {
                self.leader.barrier().await?;
                self.check_all_here(namespace, &clip)?;
                let uploads = self.uploads(namespace, &prefix, &clip, after.clone(), limit).await?;
                if self.were_here(namespace, &clip).await? {
                    return Ok(ShardResponse::Uploads(uploads));
                }
            },
            ShardRequest::CompleteUpload { path, upload, parts, condition, etag, attributes } => {
                let complete = Complete { request: once, upload, parts, condition, etag, attributes };
                self.complete_upload(&path, &complete).await.map(ShardResponse::Object)
            }
            ShardRequest::AbortUpload { path, upload } => {
                self.abort_upload(once, &path, upload).await?;
                Ok(ShardResponse::Count(0))
            }
            _ => panic!("handle() has answered every other request"),
        }
    }

    async fn upload(&self, path: &ObjectPath, upload: UploadId) -> Result<UploadEntry, StoreError> {
        match self.leader.row(UPLOADS, &upload_key(path.namespace, &path.key, upload)).await? {
            Some(bytes) => UploadEntry::decode(&bytes).map_err(row_damaged),
            None => Err(StoreError::NoSuchUpload),
        }
    }

    async fn upload_and_parts(
        &self,
        path: &ObjectPath,
        upload: UploadId,
        after: u16,
        limit: usize,
    ) -> Result<(UploadEntry, Vec<(u16, PartEntry)>), StoreError> {
        Ok((self.upload(path, upload).await?, self.parts(upload, after, limit).await?))
    }

    async fn create_upload(
        &self,
        request: Option<RequestId>,
        path: &ObjectPath,
        entry: UploadEntry,
    ) -> Result<UploadId, StoreError> {
        if !attributes_fit(&entry.attributes) {
            return Err(StoreError::TooLarge { what: "the object's metadata".to_owned() });
        }
        let upload = UploadId(self.leader.ports().random());
        self.load.wrote(path.namespace, &path.key);
        self.decide(async |term| {
            let _here = self.enter(path).await?;
            self.check_open(path.namespace).await?;
            let answer = upload.0.to_vec();
            let mut draft = Draft { namespace: path.namespace, request, answer, ..Draft::default() };
            draft.rows.push(RowChange::put(UPLOADS, upload_key(path.namespace, &path.key, upload), entry.encode()));
            self.leader.commit(term, draft).await
        })
        .await?;
        Ok(upload)
    }

    async fn put_part(
        &self,
        request: Option<RequestId>,
        path: &ObjectPath,
        upload: UploadId,
        (part, entry): (u16, PartEntry),
        written: WrittenPages,
    ) -> Result<PartInfo, StoreError> {
        if !attributes_fit(&entry.attributes) {
            return Err(StoreError::TooLarge { what: "the part's metadata".to_owned() });
        }
        self.load.wrote(path.namespace, &path.key);
        let replaced = self
            .decide(async |term| {
                let _here = self.enter(path).await?;
                // Shared among parts, exclusive for completing or aborting; each part alone.
                let _upload = self.leader.latches.hold(upload_latch(upload), Hold::Shared).await;
                let key = part_key(upload, part);
                let _part = self.leader.latches.hold(key.clone(), Hold::Exclusive).await;
                self.upload(path, upload).await?;
                let _loose = self.latch_loose(&written.loose).await;
                let mut draft = Draft { request, ..self.draft_of(path.namespace, &written).await? };
                let old = self.leader.row(PARTS, &key).await?;
                if let Some(old) = &old {
                    drop_pages(&PartEntry::decode(old).map_err(row_damaged)?.pages, &mut draft);
                }
                draft.rows.push(RowChange::put(PARTS, key, entry.encode()));
                self.leader.commit(term, draft).await?;
                Ok(old.is_some())
            })
            .await?;
        self.wake_if(replaced);
        Ok(entry.info(part))
    }

    pub(super) async fn parts(
        &self,
        upload: UploadId,
        after: u16,
        limit: usize,
    ) -> Result<Vec<(u16, PartEntry)>, StoreError> {
        let scan = Scan {
            file: ROWS_FILE,
            table: PARTS,
            from: Bound::Excluded(part_key(upload, after)),
            to: prefix_end(&upload.0),
            limit: limit.min(PARTS_MAX),
            direction: Direction::Forward,
        };
        let rows = self.leader.scan(scan).await?;
        rows.iter()
            .map(|(key, value)| {
                let part = parse_part_key(key).ok_or_else(|| damaged("a part's key is not well formed"))?;
                Ok((part, PartEntry::decode(value).map_err(row_damaged)?))
            })
            .collect()
    }

    async fn uploads(
        &self,
        namespace: NamespaceId,
        prefix: &str,
        clip: &Clip,
        after: Option<(String, UploadId)>,
        limit: usize,
    ) -> Result<Vec<UploadInfo>, StoreError> {
        let start = upload_prefix(namespace, prefix);
        let mut to = prefix_end(&start);
        // Keys that begin with a bound lie behind it, as the uploads of the bound itself do.
        let start = start.max(upload_prefix(namespace, &clip.from));
        if let Some(until) = &clip.until {
            let until = upload_prefix(namespace, until);
            match &to {
                Bound::Excluded(end) if *end <= until => {}
                _ => to = Bound::Excluded(until),
            }
        }
        let from = match after {
            Some((key, upload)) if upload_key(namespace, &key, upload) >= start => {
                Bound::Excluded(upload_key(namespace, &key, upload))
            }
            _ => Bound::Included(start),
        };
        if let (Bound::Excluded(from) | Bound::Included(from), Bound::Excluded(to)) = (&from, &to)
            && from >= to
        {
            return Ok(Vec::new());
        }
        let scan = Scan { file: ROWS_FILE, table: UPLOADS, from, to, limit, direction: Direction::Forward };
        let rows = self.leader.scan(scan).await?;
        let mut listed = 0;
        rows.iter()
            .take_while(|(key, value)| {
                let is_first = listed == 0;
                listed += key.len() + value.len() + size_of::<UploadInfo>();
                is_first || listed <= LISTED_LEN_BYTES
            })
            .map(|(key, value)| {
                let (key, upload) =
                    parse_upload_key(key).ok_or_else(|| damaged("an upload's key is not well formed"))?;
                Ok(UploadEntry::decode(value).map_err(row_damaged)?.info(upload, key))
            })
            .collect()
    }

    /// Uploads of the keys `from..until`, in order.
    pub(super) async fn uploads_between(
        &self,
        namespace: NamespaceId,
        from: &str,
        until: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, UploadId, UploadEntry)>, StoreError> {
        let clip = Clip { from: from.to_owned(), until: until.map(str::to_owned) };
        let uploads = self.uploads(namespace, "", &clip, None, limit).await?;
        let entry = |upload: UploadInfo| {
            let UploadInfo { upload, key, initiated_unix_ms, attributes } = upload;
            (key, upload, UploadEntry { initiated_unix_ms, attributes })
        };
        Ok(uploads.into_iter().map(entry).collect())
    }

    async fn complete_upload(&self, path: &ObjectPath, complete: &Complete) -> Result<ObjectInfo, StoreError> {
        self.load.wrote(path.namespace, &path.key);
        let info = self
            .decide(async |term| {
                let here = self.enter(path).await?;
                let _upload = self.leader.latches.hold(upload_latch(complete.upload), Hold::Exclusive).await;
                let upload = self.upload(path, complete.upload).await?;
                let mut parts: BTreeMap<u16, PartEntry> =
                    self.parts(complete.upload, 0, PARTS_MAX).await?.into_iter().collect();
                let mut draft = Draft { namespace: path.namespace, ..Draft::default() };
                draft.rows.push(RowChange::remove(UPLOADS, upload_key(path.namespace, &path.key, complete.upload)));
                draft.rows.extend(parts.keys().map(|part| RowChange::remove(PARTS, part_key(complete.upload, *part))));
                let file = assemble(complete, upload, &mut parts, self.leader.ports().unix_time_ms())?;
                check_attributes(&file)?;
                for unnamed in parts.values() {
                    drop_pages(&unnamed.pages, &mut draft);
                }
                self.name_assembled(term, (path, here), complete, file, draft).await
            })
            .await?;
        self.wake_if(true);
        Ok(info)
    }

    async fn name_assembled(
        &self,
        term: kiseki_types::ids::Term,
        (path, here): (&ObjectPath, LatchGuard),
        complete: &Complete,
        file: FileEntry,
        mut draft: Draft,
    ) -> Result<ObjectInfo, CommitError> {
        let located = self.locate(path, here).await?;
        check_condition(&complete.condition, located.current.as_ref())?;
        self.check_open(path.namespace).await?;
        drop_file(located.current.as_ref(), &mut draft);
        draft.added_bytes = file.len_bytes;
        draft.rows.extend(located.new_directories.iter().cloned());
        draft.rows.push(RowChange::put(ENTRIES, located.key.clone(), Entry::File(file.clone()).encode()));
        (draft.request, draft.answer) = (complete.request, remembered_object(&file));
        self.leader.commit(term, draft).await?;
        self.named(located.current.as_ref(), Some(&file));
        Ok(file.info(path.key.clone()))
    }

    async fn abort_upload(
        &self,
        request: Option<RequestId>,
        path: &ObjectPath,
        upload: UploadId,
    ) -> Result<(), StoreError> {
        let namespace = path.namespace;
        self.decide(async |term| {
            let _here = self.enter(path).await?;
            let _upload = self.leader.latches.hold(upload_latch(upload), Hold::Exclusive).await;
            let row = upload_key(namespace, &path.key, upload);
            if self.leader.row(UPLOADS, &row).await?.is_none() {
                return Err(StoreError::NoSuchUpload.into());
            }
            let mut draft = Draft { namespace, request, ..Draft::default() };
            draft.rows.push(RowChange::remove(UPLOADS, row));
            for (part, entry) in self.parts(upload, 0, PARTS_MAX).await? {
                draft.rows.push(RowChange::remove(PARTS, part_key(upload, part)));
                drop_pages(&entry.pages, &mut draft);
            }
            self.leader.commit(term, draft).await
        })
        .await?;
        self.wake_if(true);
        Ok(())
    }

    /// Gives up every upload of a namespace that is closed.
    pub(super) async fn abort_uploads_of(&self, namespace: NamespaceId, root: DirId) -> Result<(), StoreError> {
        loop {
            let uploads = self.uploads(namespace, "", &Clip::default(), None, 64).await?;
            if uploads.is_empty() {
                return Ok(());
            }
            for upload in uploads {
                let path = ObjectPath { namespace, root, key: upload.key };
                match self.abort_upload(None, &path, upload.upload).await {
                    Ok(()) | Err(StoreError::NoSuchUpload) => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }
}

/// A completion as it was asked for.
struct Complete {
    request: Option<RequestId>,
    upload: UploadId,
    parts: Vec<CompletePart>,
    condition: Condition,
    etag: Option<String>,
    attributes: crate::api::Attributes,
}

/// The object that the named parts make; they are taken out of `parts`.
fn assemble(
    complete: &Complete,
    upload: UploadEntry,
    parts: &mut BTreeMap<u16, PartEntry>,
    modified_unix_ms: u64,
) -> Result<FileEntry, StoreError> {
    let mut file = FileEntry {
        len_bytes: 0,
        modified_unix_ms,
        etag: complete.etag.clone().unwrap_or_else(|| format!("{}-{}", complete.upload, complete.parts.len())),
        attributes: upload.attributes,
        part_lens_bytes: Vec::with_capacity(complete.parts.len()),
        pages: Vec::new(),
    };
    file.attributes.extend(complete.attributes.clone());
    for named in &complete.parts {
        let invalid = StoreError::InvalidPart { part: named.part };
        let part = parts.remove(&named.part).filter(|part| part.etag == named.etag).ok_or(invalid)?;
        file.len_bytes += part.len_bytes;
        file.part_lens_bytes.push(part.len_bytes);
        file.pages.extend(part.pages);
    }
    if file.pages.len() > PAGES_MAX {
        return Err(StoreError::TooLarge { what: format!("an object of {} pages", file.pages.len()) });
    }
    Ok(file)
}

fn upload_latch(upload: UploadId) -> Vec<u8> {
    upload.0.to_vec()
}

fn damaged(reason: &str) -> StoreError {
    StoreError::Damaged { reason: reason.to_owned() }
}
