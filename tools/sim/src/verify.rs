//! After a cut: everything is asked for, everything acknowledged must be there, and what was in flight is decided.

use crate::client::Client;
use crate::model::{BUCKETS, Place, SCRATCH_BUCKETS, UploadState, WRITE_ATTRIBUTE};
use crate::register::Value;
use kiseki_engine::api::{ListRequest, StoreError};
use kiseki_types::ids::UploadId;
use std::collections::BTreeSet;

/// Uploads that one page of them has here.
const UPLOADS_PER_PAGE: usize = 4;

impl Client {
    /// Checks a node that has just been opened again. Nobody else may be at work.
    pub async fn verify(&self) {
        for name in BUCKETS {
            if let Err(error) = self.core.store.bucket(self.tenant, name).await {
                self.violation(format!("bucket {name} is lost: {error}"));
                return;
            }
        }
        self.verify_scratch_buckets().await;
        for place in Place::all() {
            self.verify_place(place).await;
        }
        for bucket in 0..BUCKETS.len() {
            let limit = self.rng.between(1..50) as usize;
            self.list_checked(bucket, ListRequest { limit, ..ListRequest::default() }).await;
        }
        self.verify_uploads().await;
    }

    /// Decides which of the possible writes a key has, then reads it whole: what was decided must read back.
    async fn verify_place(&self, place: Place) {
        let start = self.tick();
        let result = self.core.store.head(self.tenant, place.bucket(), place.key()).await;
        let decided = match &result {
            Ok(info) => {
                if self.check_info(place, info, start).is_none() {
                    return;
                }
                info.attributes.get(WRITE_ATTRIBUTE).and_then(|id| id.parse().ok())
            }
            Err(error) => {
                self.check_missing(place, start, error, "read after a cut");
                None
            }
        };
        {
            let mut model = self.model.borrow_mut();
            let now = model.tick();
            model.register(place).settle(decided, now);
        }
        self.get_all(place).await;
    }

    async fn verify_scratch_buckets(&self) {
        for (index, name) in SCRATCH_BUCKETS.into_iter().enumerate() {
            let start = self.tick();
            let result = self.core.store.bucket(self.tenant, name).await;
            let mut model = self.model.borrow_mut();
            let end = model.tick();
            let register = model.scratch.entry(index).or_default();
            let (is_right, present) = match result {
                Ok(_) => (register.may_be_present(start, end), true),
                Err(StoreError::NoSuchBucket) => (register.may_be_absent(start, end), false),
                Err(error) => return model.unexplained(&format!("bucket {name}"), &error),
            };
            let kept = register
                .possible(start, end)
                .find(|write| (write.value != Value::Absent) == present)
                .map(|write| write.id);
            register.settle(kept, end);
            if !is_right {
                model.violation(format!("bucket {name}: present={present} can't be after the cut"));
            }
        }
    }

    async fn verify_uploads(&self) {
        let listed = match self.listed_uploads().await {
            Ok(listed) => listed,
            Err(error) => return self.model.borrow_mut().unexplained("list of uploads", &error),
        };
        let count = self.model.borrow().uploads.len();
        for index in 0..count {
            self.verify_upload(index, &listed).await;
        }
        self.model.borrow_mut().uploads.retain(|upload| upload.state == UploadState::Idle);
    }

    async fn verify_upload(&self, index: usize, listed: &BTreeSet<(Place, UploadId)>) {
        let upload = self.model.borrow().uploads[index].clone();
        let place = upload.place;
        let result = self.all_parts(place, upload.upload).await;
        let is_listed = listed.contains(&(place, upload.upload));
        let is_there = match &result {
            Ok(_) => true,
            Err(StoreError::NoSuchUpload) => false,
            Err(error) => return self.model.borrow_mut().unexplained(&format!("{place}: parts after a cut"), error),
        };
        if is_there != is_listed {
            self.violation(format!("{place}: an upload is there={is_there} but listed={is_listed}"));
        }
        let has_object = |id| self.model.borrow().registers.get(&place).is_some_and(|register| register.holds(id));
        let allowed = match upload.state {
            UploadState::Idle | UploadState::Part => is_there,
            UploadState::Ended => !is_there,
            // One delta makes the object and ends the upload.
            UploadState::Completing(id) => !(is_there && has_object(id)),
            UploadState::Aborting | UploadState::Unknown => true,
        };
        if !allowed {
            self.violation(format!("{place}: an upload in state {:?} is there={is_there} after the cut", upload.state));
        }
        let parts = result.map(|parts| self.check_parts(&upload, &parts)).unwrap_or_default();
        let mut model = self.model.borrow_mut();
        let upload = &mut model.uploads[index];
        upload.state = if is_there { UploadState::Idle } else { UploadState::Ended };
        upload.parts.retain(|part, versions| {
            versions.retain(|version| parts.get(part).is_some_and(|(etag, _)| *etag == version.etag));
            versions.iter_mut().for_each(|version| version.is_acknowledged = true);
            !versions.is_empty()
        });
    }

    /// All uploads that the node lists, page by page, in both buckets.
    async fn listed_uploads(&self) -> Result<BTreeSet<(Place, UploadId)>, StoreError> {
        let mut all = BTreeSet::new();
        for (bucket, name) in BUCKETS.into_iter().enumerate() {
            let mut after: Option<(String, UploadId)> = None;
            loop {
                let store = &self.core.store;
                let page = store.uploads(self.tenant, name, "", after.clone(), UPLOADS_PER_PAGE).await?;
                for info in &page {
                    let position = Some((info.key.clone(), info.upload));
                    if position <= after {
                        self.violation(format!("uploads of {name} go backwards"));
                        return Ok(all);
                    }
                    after = position;
                    match crate::model::KEYS.iter().position(|key| *key == info.key) {
                        Some(key) => drop(all.insert((Place { bucket, key }, info.upload))),
                        None => self.violation(format!("an upload of {name} for a key that nobody wrote")),
                    }
                }
                if page.is_empty() {
                    break; // fewer than were asked for may be all of one shard, and not the last
                }
            }
        }
        Ok(all)
    }
}
