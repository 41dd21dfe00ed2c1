//! Uploads in parts: each step is an operation of its own, so that a cut falls between any two of them.

use crate::client::{Client, attributes_of, etag_of};
use crate::content::Content;
use crate::model::{PartVersion, Place, Upload, UploadState};
use crate::register::{Bound, Value};
use kiseki_engine::api::{Attributes, CompletePart, FinishWrite, PartInfo, StoreError};
use kiseki_types::ids::UploadId;
use std::collections::BTreeMap;

/// Uploads in progress at once.
const UPLOADS_OPEN_MAX: usize = 5;

/// Part numbers that are drawn.
const PART_NUMBERS: [u16; 4] = [1, 2, 7, 10_000];

/// Parts that one request asks for.
const PARTS_PER_PAGE: usize = 3;

impl Client {
    /// Begins an upload, or takes one of those in progress a step further.
    pub async fn multipart_step(&self, place: Place) {
        let picked = {
            let model = self.model.borrow();
            let idle: Vec<usize> =
                (0..model.uploads.len()).filter(|index| model.uploads[*index].state == UploadState::Idle).collect();
            if idle.is_empty() || (idle.len() < UPLOADS_OPEN_MAX && self.rng.chance(1, 4)) {
                None
            } else {
                Some(*self.rng.pick(&idle))
            }
        };
        match picked {
            None => self.begin_upload(place).await,
            Some(index) => match self.rng.below(10) {
                0..5 => self.put_part(index).await,
                5..9 => self.complete_upload(index).await,
                _ => self.abort_upload(index).await,
            },
        }
    }

    async fn begin_upload(&self, place: Place) {
        let store = &self.core.store;
        let result = store.create_upload(self.tenant, place.bucket(), place.key(), Attributes::new()).await;
        let mut model = self.model.borrow_mut();
        match result {
            Ok(upload) => {
                model.uploads.push(Upload { upload, place, state: UploadState::Idle, parts: BTreeMap::new() });
            }
            Err(error) => model.unexplained(&format!("{place}: begin of an upload"), &error),
        }
    }

    fn set_upload_state(&self, index: usize, state: UploadState) -> Upload {
        let mut model = self.model.borrow_mut();
        model.uploads[index].state = state;
        model.uploads[index].clone()
    }

    async fn put_part(&self, index: usize) {
        let upload = self.set_upload_state(index, UploadState::Part);
        let part = *self.rng.pick(&PART_NUMBERS);
        let content = self.draw_content();
        let id = {
            let mut model = self.model.borrow_mut();
            let id = model.new_id();
            // Until the answer, the part may be the old one, the new one, or (if new) absent.
            let versions = model.uploads[index].parts.entry(part).or_default();
            versions.push(PartVersion { etag: etag_of(id), content, is_acknowledged: false });
            id
        };
        let result = self.store_part(&upload, part, content, etag_of(id)).await;
        let mut model = self.model.borrow_mut();
        model.uploads[index].state = UploadState::Idle;
        match result {
            Ok(info) => {
                let version = PartVersion { etag: etag_of(id), content, is_acknowledged: true };
                model.uploads[index].parts.insert(part, vec![version]);
                if info.len_bytes != content.len() || info.etag != etag_of(id) {
                    model.violation(format!("{}: part {part} was acknowledged as something else", upload.place));
                }
            }
            Err(error) => model.unexplained(&format!("{}: part {part}", upload.place), &error),
        }
    }

    async fn store_part(
        &self,
        upload: &Upload,
        part: u16,
        content: Content,
        etag: String,
    ) -> Result<kiseki_engine::api::ObjectInfo, StoreError> {
        let place = upload.place;
        let store = &self.core.store;
        let mut writer = store.put_part(self.tenant, place.bucket(), place.key(), upload.upload, part).await?;
        self.write_all(&mut writer, content).await?;
        writer.finish(FinishWrite { etag: Some(etag), ..FinishWrite::default() }).await
    }

    /// All parts of an upload, page by page.
    pub async fn all_parts(&self, place: Place, upload: UploadId) -> Result<Vec<PartInfo>, StoreError> {
        let mut all: Vec<PartInfo> = Vec::new();
        loop {
            let after = all.last().map_or(0, |info| info.part);
            let store = &self.core.store;
            let (_, page) =
                store.parts(self.tenant, place.bucket(), place.key(), upload, after, PARTS_PER_PAGE).await?;
            let is_last = page.len() < PARTS_PER_PAGE;
            if page.iter().any(|info| info.part <= after) {
                self.violation(format!("{place}: a list of parts goes backwards"));
                return Ok(all);
            }
            all.extend(page);
            if is_last {
                return Ok(all);
            }
        }
    }

    /// Checks the parts that a node lists against those that it may hold; returns what each of them is.
    pub fn check_parts(&self, upload: &Upload, listed: &[PartInfo]) -> BTreeMap<u16, (String, Content)> {
        let mut known = BTreeMap::new();
        for info in listed {
            let versions = upload.parts.get(&info.part).map_or(&[][..], Vec::as_slice);
            let is_it = |version: &&PartVersion| version.etag == info.etag && version.content.len() == info.len_bytes;
            match versions.iter().find(is_it) {
                Some(version) => drop(known.insert(info.part, (info.etag.clone(), version.content))),
                None => self.violation(format!("{}: part {} is none of those written", upload.place, info.part)),
            }
        }
        for (part, versions) in &upload.parts {
            let is_acknowledged = versions.iter().any(|version| version.is_acknowledged);
            if is_acknowledged && !known.contains_key(part) {
                self.violation(format!("{}: acknowledged part {part} is not listed", upload.place));
            }
        }
        known
    }

    async fn complete_upload(&self, index: usize) {
        // Reserved for this client while it looks at the parts.
        let upload = self.set_upload_state(index, UploadState::Part);
        let listed = match self.all_parts(upload.place, upload.upload).await {
            Ok(listed) => listed,
            Err(error) => {
                self.model.borrow_mut().unexplained(&format!("{}: list of parts", upload.place), &error);
                return;
            }
        };
        let known = self.check_parts(&upload, &listed);
        if known.is_empty() {
            self.set_upload_state(index, UploadState::Idle);
            return;
        }
        let contents = known.values().map(|(_, content)| *content).collect();
        let place = upload.place;
        let (id, _) = self.model.borrow_mut().begin(place, Value::Object(contents), Bound::Free);
        self.set_upload_state(index, UploadState::Completing(id));
        let parts = known.into_iter().map(|(part, (etag, _))| CompletePart { part, etag }).collect();
        let finish = FinishWrite { etag: Some(etag_of(id)), attributes: attributes_of(id), ..FinishWrite::default() };
        let store = &self.core.store;
        let result =
            store.complete_upload(self.tenant, place.bucket(), place.key(), upload.upload, parts, finish).await;
        let mut model = self.model.borrow_mut();
        match result {
            Ok(info) => {
                model.uploads[index].state = UploadState::Ended;
                model.acknowledge(place, id);
                if info.etag != etag_of(id) {
                    model.violation(format!("{place}: completion {id} was acknowledged as something else"));
                }
            }
            Err(error) => {
                model.uploads[index].state = UploadState::Unknown;
                model.fail(place, id, &error);
                model.unexplained(&format!("{place}: completion {id}"), &error);
            }
        }
    }

    async fn abort_upload(&self, index: usize) {
        let upload = self.set_upload_state(index, UploadState::Aborting);
        let place = upload.place;
        let result = self.core.store.abort_upload(self.tenant, place.bucket(), place.key(), upload.upload).await;
        let mut model = self.model.borrow_mut();
        match result {
            Ok(()) => model.uploads[index].state = UploadState::Ended,
            Err(error) => {
                model.uploads[index].state = UploadState::Unknown;
                model.unexplained(&format!("{place}: abort"), &error);
            }
        }
    }
}
