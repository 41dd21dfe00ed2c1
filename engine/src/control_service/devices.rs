//! Records of devices (I-D2): read, changed, and told to every core.

use super::{ControlService, damaged};
use crate::api::StoreError;
use crate::control_rows::DEVICES;
use crate::delta::RowChange;
use crate::device_record::{DEVICE_RECORDS_MAX, DeviceActor, DeviceRecord, DeviceUpdate};
use crate::latch::Hold;
use crate::leader::{Draft, row_damaged};
use kiseki_types::fragment::DeviceState;
use kiseki_types::ids::{DeviceId, RequestId};
use tracing::{info, warn};

/// Every change of a device's record holds this latch: cores hear of changes in the order in which they are made.
const DEVICE_CHANGES: &[u8] = b"device changes";

/// The counter that numbers changes of the records.
const VERSION_COUNTER: &str = "device changes";

/// All records, and which change of them this is.
pub(super) type Records = (u64, Vec<DeviceRecord>);

impl ControlService {
    /// All records.
    pub(super) async fn device_records(&self) -> Result<Records, StoreError> {
        let version = self.next_number(VERSION_COUNTER, 1).await?;
        let mut records = Vec::new();
        for (key, value) in self.leader.rows(DEVICES, &[], DEVICE_RECORDS_MAX).await? {
            let device = key.try_into().map(DeviceId).map_err(|_| damaged(&"a device's id has the wrong length"))?;
            records.push(DeviceRecord::decode(device, &value).map_err(row_damaged)?);
        }
        Ok((version, records))
    }

    /// Changes a record. Answered when the change is committed and every core acts on it.
    pub(super) async fn update_device(
        &self,
        request: Option<RequestId>,
        device: DeviceId,
        update: DeviceUpdate,
    ) -> Result<DeviceRecord, StoreError> {
        let _guard = self.leader.latches.hold(DEVICE_CHANGES.to_vec(), Hold::Exclusive).await;
        let now = self.leader.ports().unix_time_ms();
        let (before, after) = self
            .decide(async |term| {
                let row = self.leader.row(DEVICES, &device.0).await?;
                let before = row.map(|bytes| DeviceRecord::decode(device, &bytes)).transpose().map_err(row_damaged)?;
                let Some(after) = DeviceRecord::after(before.as_ref(), device, update.clone(), now)? else {
                    let unchanged = before.expect("an update that changes nothing has a record");
                    return Ok((Some(unchanged.clone()), unchanged));
                };
                let mut draft = Draft { request, ..Draft::default() };
                self.count(&mut draft, VERSION_COUNTER, 1, 1).await?;
                if before.is_none() {
                    draft.rows.extend(self.make_room().await?);
                }
                draft.rows.push(RowChange::put(DEVICES, device.0.to_vec(), after.encode()));
                self.leader.commit(term, draft).await?;
                Ok((before, after))
            })
            .await?;
        if before.as_ref() != Some(&after) {
            log(before.as_ref(), &after);
            let (version, records) = self.device_records().await?;
            self.calls.tell_devices_everywhere(version, &records).await;
        }
        Ok(after)
    }

    /// Lets the record of the device go that was removed first, when there are as many as there may be (I-O5).
    async fn make_room(&self) -> Result<Option<RowChange>, StoreError> {
        let (_, records) = self.device_records().await?;
        if records.len() < DEVICE_RECORDS_MAX {
            return Ok(None);
        }
        let removed = records.iter().filter(|record| record.state() == DeviceState::Removed);
        match removed.min_by_key(|record| record.last().at_unix_ms) {
            Some(oldest) => Ok(Some(RowChange::remove(DEVICES, oldest.device.0.to_vec()))),
            None => Err(StoreError::Invalid {
                what: format!("the cluster has {DEVICE_RECORDS_MAX} devices already; retire one that is lost"),
            }),
        }
    }
}

/// One event for each change of a state.
fn log(before: Option<&DeviceRecord>, after: &DeviceRecord) {
    let from = before.map_or("new", |record| record.state().name());
    let event = after.last();
    if before.map(DeviceRecord::last) == Some(event) {
        return;
    }
    let (device, path, to) = (after.device, after.place.path.as_str(), event.state.name());
    let (actor, reason) = (event.actor.name(), event.reason.as_str());
    if event.state == DeviceState::Failed || event.state == DeviceState::Unreachable || event.actor == DeviceActor::Wear
    {
        warn!(%device, path, from, to, actor, reason, "device state changed");
    } else {
        info!(%device, path, from, to, actor, reason, "device state changed");
    }
}
