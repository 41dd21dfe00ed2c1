//! What an operator asks of devices that are in use: empty one, keep it after all, let it go. Answered on core 0.

use crate::admin::{AdminRequest, AdminResponse};
use crate::admin_store::not_done;
use crate::core_node::CoreNode;
use crate::device_name::{self, Candidate, Standing};
use crate::device_places;
use crate::device_records::parse_id;
use crate::enroll::{ChangeMode, candidates};
use crate::executor::CoreShared;
use crate::outcome::{NodeError, Outcome};
use crate::status::DeviceReport;
use kiseki_engine::device_record::{DeviceActor, DeviceRecord, DeviceUpdate};
use kiseki_engine::retirement::{GiveUp, retire, would_retire};
use kiseki_types::fragment::DeviceState;
use kiseki_types::ids::DeviceId;
use kiseki_types::runtime::Ports;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

/// A device after a request, or as it would be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceAnswer {
    /// Its id in hex.
    pub device: String,
    /// Its path.
    pub path: String,
    /// Its state.
    pub state: String,
    /// Fragments that lie on it.
    pub fragments_left: u64,
    /// Bytes of those.
    pub bytes_left: u64,
    /// Whether only a trial was asked for.
    pub is_dry_run: bool,
}

/// The answering part.
pub struct DeviceAdmin {
    shared: Arc<CoreShared>,
    node: Rc<CoreNode>,
    ports: Ports,
}

/// The device that is meant: one of those in use, or one that is recorded.
fn resolve(name: &str, path: &Path, reports: &[DeviceReport], records: &[DeviceRecord]) -> Result<DeviceId, String> {
    let ids: Vec<String> = records.iter().map(|record| record.device.to_string()).collect();
    let mut known = candidates(reports);
    // What could not be opened is known by its record, if at all.
    known.retain(|candidate| parse_id(candidate.id).is_some());
    known.extend(records.iter().zip(&ids).map(|(record, id)| {
        let standing = if record.state() == DeviceState::Removed { Standing::Left } else { Standing::Recorded };
        Candidate { id, path: Path::new(&record.place.path), standing }
    }));
    device_name::find(name, path, &known).map(|at| parse_id(known[at].id).expect("only such ids are candidates"))
}

fn refused(message: String) -> NodeError {
    NodeError { message, outcome: Outcome::Refused }
}

impl DeviceAdmin {
    /// For core 0.
    #[must_use]
    pub fn new(shared: Arc<CoreShared>, node: Rc<CoreNode>, ports: Ports) -> Rc<DeviceAdmin> {
        Rc::new(DeviceAdmin { shared, node, ports })
    }

    /// Whether a request is one of these.
    #[must_use]
    pub fn answers(request: &AdminRequest) -> bool {
        matches!(
            request,
            AdminRequest::DeviceDrain { .. }
                | AdminRequest::DeviceDrainCancel { .. }
                | AdminRequest::DeviceRetire { .. }
        )
    }

    /// Answers it.
    pub async fn answer(&self, request: AdminRequest) -> AdminResponse {
        let answer = match request {
            AdminRequest::DeviceDrain { device, reason, mode } => self.drain(&device, reason, mode).await,
            AdminRequest::DeviceDrainCancel { device, reason, mode } => self.cancel(&device, reason, mode).await,
            AdminRequest::DeviceRetire { device, reason, lost, mode } => {
                let give_up = if lost { GiveUp::WhatIsLost } else { GiveUp::Nothing };
                self.retire(&device, &reason, give_up, mode).await
            }
            other => Err(refused(format!("{other:?} is answered elsewhere"))),
        };
        match answer {
            Ok(answer) => AdminResponse::Device(Box::new(answer)),
            Err(error) => AdminResponse::not_done(error),
        }
    }

    fn find(&self, name: &str) -> Result<DeviceRecord, NodeError> {
        let records = self.node.engine().core().devices.records();
        let records = device_places::seen_from(self.shared.membership.own, records);
        let reports = self.shared.board.lock().devices.clone();
        let path = self.shared.config.dir.resolve(Path::new(name));
        let id = resolve(name, &path, &reports, &records).map_err(refused)?;
        let record = records.into_iter().find(|record| record.device == id);
        record.ok_or_else(|| refused(format!("{name} has not been recorded yet; try again in a moment")))
    }

    fn describe(&self, record: &DeviceRecord, mode: ChangeMode) -> DeviceAnswer {
        let id = record.device.to_string();
        let report =
            self.shared.board.lock().devices.iter().find(|report| report.id == id).cloned().unwrap_or_default();
        DeviceAnswer {
            device: id,
            path: record.place.path.clone(),
            state: record.state().name().to_owned(),
            fragments_left: report.used_fragments,
            bytes_left: report.used_bytes,
            is_dry_run: mode == ChangeMode::DryRun,
        }
    }

    async fn update(&self, name: &str, update: DeviceUpdate, mode: ChangeMode) -> Result<DeviceAnswer, NodeError> {
        let record = self.find(name)?;
        let now = self.ports.unix_time_ms();
        let record = match mode {
            ChangeMode::DryRun => DeviceRecord::after(Some(&record), record.device, update, now)
                .map(|after| after.unwrap_or(record))
                .map_err(|error| not_done(&error))?,
            ChangeMode::Make => {
                let recorded = self.node.engine().record_device(record.device, update).await;
                recorded.map_err(|error| not_done(&error))?
            }
        };
        Ok(self.describe(&record, mode))
    }

    async fn drain(&self, name: &str, reason: String, mode: ChangeMode) -> Result<DeviceAnswer, NodeError> {
        let update = DeviceUpdate::Evacuate { actor: DeviceActor::Operator, reason, cause: None };
        self.update(name, update, mode).await
    }

    async fn cancel(&self, name: &str, reason: String, mode: ChangeMode) -> Result<DeviceAnswer, NodeError> {
        self.update(name, DeviceUpdate::CancelEvacuation { reason }, mode).await
    }

    async fn retire(
        &self,
        name: &str,
        reason: &str,
        give_up: GiveUp,
        mode: ChangeMode,
    ) -> Result<DeviceAnswer, NodeError> {
        let record = self.find(name)?;
        let calls = self.node.engine().calls();
        let retired = match mode {
            ChangeMode::DryRun => would_retire(calls, record.device, give_up).await,
            ChangeMode::Make => retire(calls, &self.ports, record.device, reason, give_up).await,
        };
        Ok(self.describe(&retired.map_err(|error| not_done(&error))?, mode))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiseki_engine::device_record::DevicePlace;
    use kiseki_types::ids::PoolId;

    fn record(byte: u8, path: &str) -> DeviceRecord {
        let place = DevicePlace { path: path.to_owned(), pool: PoolId(0), class: "file".to_owned() };
        let opened = DeviceUpdate::Opened { place, actor: DeviceActor::Node, reason: "opened".to_owned() };
        DeviceRecord::after(None, DeviceId([byte; 16]), opened, 1).unwrap().unwrap()
    }

    #[test]
    fn a_device_in_use_comes_before_what_is_recorded_at_its_path() {
        let records = [record(0x11, "/dev/a"), record(0x22, "/dev/a"), record(0x33, "/dev/c")];
        let id = DeviceId([0x22; 16]).to_string();
        let reports = [DeviceReport { path: "/dev/a".to_owned(), id, ..DeviceReport::default() }];
        let resolved = |name: &str| resolve(name, Path::new(name), &reports, &records);
        assert_eq!(resolved("/dev/a"), Ok(DeviceId([0x22; 16])), "the one that is there now");
        assert_eq!(resolved("/dev/c"), Ok(DeviceId([0x33; 16])), "not configured any more, still recorded");
        assert_eq!(resolved("1111"), Ok(DeviceId([0x11; 16])));
        assert!(resolved("/dev/x").is_err());
    }
}
