//! What an operator asks of devices that are in use: empty one, keep it after all, let it go. Answered on core 0.

use crate::admin::{AdminRequest, AdminResponse};
use crate::core_node::CoreNode;
use crate::device_records::parse_id;
use crate::enroll::ChangeMode;
use crate::executor::CoreShared;
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

/// Fewest digits of an id that name a device.
const PREFIX_LEN_MIN: usize = 4;

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

/// The device that an operator means: by its path, its id, or the first digits of its id.
fn resolve(name: &str, path: &Path, reports: &[DeviceReport], records: &[DeviceRecord]) -> Result<DeviceId, String> {
    if let Some(found) = reports.iter().find(|report| Path::new(&report.path) == path)
        && let Some(id) = parse_id(&found.id)
    {
        return Ok(id);
    }
    let in_use = |record: &&DeviceRecord| record.state() != DeviceState::Removed;
    let mut at_path: Vec<&DeviceRecord> =
        records.iter().filter(|record| Path::new(&record.place.path) == path).collect();
    if at_path.iter().any(in_use) {
        at_path.retain(in_use);
    }
    if let [one] = at_path.as_slice() {
        return Ok(one.device);
    }
    let is_prefix = name.len() >= PREFIX_LEN_MIN && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    let prefix = name.to_ascii_lowercase();
    let mut ids: Vec<DeviceId> = records.iter().map(|record| record.device).collect();
    ids.retain(|id| is_prefix && id.to_string().starts_with(&prefix));
    match ids.as_slice() {
        [one] => Ok(*one),
        [] => Err(format!(
            "{name} is no device of this node; name one by its path or by the first digits of its id ({PREFIX_LEN_MIN} at \
             least), as `kiseki status` shows them"
        )),
        many => Err(format!("{} devices have an id that starts with {name}; name more of it", many.len())),
    }
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
            other => Err(format!("{other:?} is answered elsewhere")),
        };
        match answer {
            Ok(answer) => AdminResponse::Device(Box::new(answer)),
            Err(message) => AdminResponse::Error { message },
        }
    }

    fn find(&self, name: &str) -> Result<DeviceRecord, String> {
        let records = self.node.engine().core().devices.records();
        let reports = self.shared.board.lock().devices.clone();
        let path = self.shared.config.dir.resolve(Path::new(name));
        let id = resolve(name, &path, &reports, &records)?;
        let record = records.into_iter().find(|record| record.device == id);
        record.ok_or_else(|| format!("{name} has not been recorded yet; try again in a moment"))
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

    async fn update(&self, name: &str, update: DeviceUpdate, mode: ChangeMode) -> Result<DeviceAnswer, String> {
        let record = self.find(name)?;
        let now = self.ports.unix_time_ms();
        let record = match mode {
            ChangeMode::DryRun => DeviceRecord::after(Some(&record), record.device, update, now)
                .map(|after| after.unwrap_or(record))
                .map_err(|error| error.to_string())?,
            ChangeMode::Make => {
                let recorded = self.node.engine().record_device(record.device, update).await;
                recorded.map_err(|error| error.to_string())?
            }
        };
        Ok(self.describe(&record, mode))
    }

    async fn drain(&self, name: &str, reason: String, mode: ChangeMode) -> Result<DeviceAnswer, String> {
        let update = DeviceUpdate::Evacuate { actor: DeviceActor::Operator, reason, cause: None };
        self.update(name, update, mode).await
    }

    async fn cancel(&self, name: &str, reason: String, mode: ChangeMode) -> Result<DeviceAnswer, String> {
        self.update(name, DeviceUpdate::CancelEvacuation { reason }, mode).await
    }

    async fn retire(
        &self,
        name: &str,
        reason: &str,
        give_up: GiveUp,
        mode: ChangeMode,
    ) -> Result<DeviceAnswer, String> {
        let record = self.find(name)?;
        let calls = self.node.engine().calls();
        let retired = match mode {
            ChangeMode::DryRun => would_retire(calls, record.device, give_up).await,
            ChangeMode::Make => retire(calls, &self.ports, record.device, reason, give_up).await,
        };
        Ok(self.describe(&retired.map_err(|error| error.to_string())?, mode))
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
    fn a_device_is_named_by_path_id_or_a_prefix_that_fits_one() {
        let mut other = record(0x11, "/dev/b");
        other.device.0[15] = 0x22;
        let records = [record(0x11, "/dev/a"), other, record(0x33, "/dev/c")];
        let reports = [DeviceReport {
            path: "/dev/a".to_owned(),
            id: DeviceId([0x11; 16]).to_string(),
            ..DeviceReport::default()
        }];
        let resolved = |name: &str| resolve(name, Path::new(name), &reports, &records);
        assert_eq!(resolved("/dev/a"), Ok(DeviceId([0x11; 16])));
        assert_eq!(resolved("/dev/b"), Ok(records[1].device), "not configured any more, still recorded");
        assert_eq!(resolved("3333"), Ok(DeviceId([0x33; 16])));
        assert_eq!(resolved(&records[1].device.to_string().to_uppercase()), Ok(records[1].device));
        for (name, words) in
            [("1111", "name more of it"), ("333", "no device"), ("/dev/x", "no device"), ("", "no device")]
        {
            assert!(resolved(name).unwrap_err().contains(words), "{name}");
        }
    }
}
