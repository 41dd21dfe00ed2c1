//! Retirement: a device leaves the node for good, and only when nothing lives on it (I-D5).

use crate::api::StoreError;
use crate::calls::Calls;
use crate::device_record::{DeviceRecord, DeviceUpdate};
use crate::message::{Closing, ControlRequest, ControlResponse, DeviceLook};
use kiseki_types::Ports;
use kiseki_types::fragment::{DeviceState, DeviceUse};
use kiseki_types::ids::DeviceId;
use kiseki_types::runtime::RuntimeExt;
use std::time::Duration;

/// Looks at a device before it is refused: writes that began before it was closed may take a while.
const LOOKS_MAX: usize = 20;

/// Between two looks. A device counts as empty when it is so twice.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// What may be given up with a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GiveUp {
    /// Nothing.
    Nothing,
    /// Whatever only a device holds that is failed or away: an operator says that it will not come back.
    WhatIsLost,
}

/// Whether a device can be removed now, and if not, why and what to do.
///
/// A device that works has to be empty and closed for whatever is being written; one that does not work must not be
/// needed: every stripe has its full width without it.
async fn may_leave(calls: &Calls, record: &DeviceRecord, give_up: GiveUp) -> Result<(), StoreError> {
    let path = &record.place.path;
    match record.state() {
        DeviceState::Removed => Err(refused(format!("{path} was removed already: {}", record.last().reason))),
        DeviceState::Healthy | DeviceState::Degraded => Err(refused(format!(
            "{path} is {} and takes fragments; drain it first: kiseki-devctl drain {path} --wait",
            record.state().name()
        ))),
        DeviceState::Evacuating => Ok(()),
        DeviceState::Failed | DeviceState::Unreachable if give_up == GiveUp::WhatIsLost => Ok(()),
        DeviceState::Failed | DeviceState::Unreachable => {
            let looks = calls.look_at_device(record.device, Closing::AsItIs).await?;
            let open: Option<usize> = looks.iter().map(|look| look.open_stripes).sum();
            match open {
                Some(0) => Ok(()),
                Some(open) => Err(refused(format!(
                    "I-D5: {open} stripes are not whole without {path}; wait for repair (kiseki status), or give up \
                     what only this device holds with --lost"
                ))),
                None => Err(refused(format!("repair is still looking at what {path} held; try again in a minute"))),
            }
        }
    }
}

fn refused(what: String) -> StoreError {
    StoreError::Invalid { what }
}

/// What all cores know together: `None` when one of them does not know what it has there.
fn sum(looks: &[DeviceLook]) -> Option<(DeviceUse, usize)> {
    let mut sum = DeviceUse::default();
    for look in looks {
        let used = look.used?;
        sum.fragments += used.fragments;
        sum.bytes += used.bytes;
    }
    Some((sum, looks.iter().map(|look| look.older_placements).sum()))
}

async fn record_of(calls: &Calls, device: DeviceId) -> Result<DeviceRecord, StoreError> {
    match calls.control(ControlRequest::Devices).await? {
        ControlResponse::Devices(_, records) => {
            let found = records.into_iter().find(|record| record.device == device);
            found.ok_or_else(|| StoreError::NotFound { what: format!("a record of device {device}") })
        }
        _ => panic!("the control shard answers Devices with Devices"),
    }
}

/// Says whether [`retire`] would do it now, and changes nothing.
pub async fn would_retire(calls: &Calls, device: DeviceId, give_up: GiveUp) -> Result<DeviceRecord, StoreError> {
    let record = record_of(calls, device).await?;
    may_leave(calls, &record, give_up).await?;
    if record.state() == DeviceState::Evacuating {
        match sum(&calls.look_at_device(device, Closing::AsItIs).await?) {
            Some((used, _)) if used == DeviceUse::default() => {}
            Some((used, _)) => return Err(not_empty(&record, used)),
            None => return Err(unknown_use(&record)),
        }
    }
    Ok(record)
}

/// Removes a device from the node. On Ok that is durable, and no core reads or writes it any more.
///
/// Errors: `Invalid` with what still lives there, and what to do; the device is as it was then. After any other error it is
/// perhaps removed, so it stays closed for placement: retire it again, or cancel its drain.
pub async fn retire(
    calls: &Calls,
    ports: &Ports,
    device: DeviceId,
    reason: &str,
    give_up: GiveUp,
) -> Result<DeviceRecord, StoreError> {
    let record = record_of(calls, device).await?;
    may_leave(calls, &record, give_up).await?;
    if record.state() == DeviceState::Evacuating
        && let Err(error) = await_empty(calls, ports, &record).await
    {
        return Err(not_retired(calls, device, error).await);
    }
    // I-D5: what was looked at counts only as long as nobody took the device back.
    let update = DeviceUpdate::Remove { reason: reason.to_owned(), seen: Some(record.last().clone()) };
    match calls.control(ControlRequest::UpdateDevice { device, update }).await {
        Ok(ControlResponse::Device(record)) => Ok(*record),
        Ok(_) => panic!("the control shard answers UpdateDevice with Device"),
        Err(error) => Err(not_retired(calls, device, error).await),
    }
}

/// Opens a device again that was refused. I-D5: where it is unknown what became of the removal, of this attempt's or an earlier
/// one's, it may be recorded already, or may be yet, so nothing must come to the device any more.
async fn not_retired(calls: &Calls, device: DeviceId, error: StoreError) -> StoreError {
    let is_refusal = matches!(error, StoreError::Invalid { .. } | StoreError::NotFound { .. });
    if is_refusal && calls.look_at_device(device, Closing::Open).await.is_err() {
        tracing::warn!(%device, "a core did not answer; there the device takes no fragments until its drain is cancelled");
    }
    error
}

/// Closes the device and waits until nothing is left on it and nothing can come.
async fn await_empty(calls: &Calls, ports: &Ports, record: &DeviceRecord) -> Result<(), StoreError> {
    let mut last = None;
    let mut was_empty = false;
    for _ in 0..LOOKS_MAX {
        let found = sum(&calls.look_at_device(record.device, Closing::Close).await?);
        let Some((used, older_placements)) = found else { return Err(unknown_use(record)) };
        let is_empty = used == DeviceUse::default() && older_placements == 0;
        if is_empty && was_empty {
            return Ok(());
        }
        was_empty = is_empty;
        last = Some(used);
        ports.sleep(LOOK_INTERVAL).await;
    }
    Err(not_empty(record, last.unwrap_or_default()))
}

fn not_empty(record: &DeviceRecord, used: DeviceUse) -> StoreError {
    let path = &record.place.path;
    refused(format!(
        "I-D5: {} fragments ({} bytes) still live on {path}; wait until its drain ends: kiseki-devctl drain {path} --wait",
        used.fragments, used.bytes
    ))
}

fn unknown_use(record: &DeviceRecord) -> StoreError {
    let path = &record.place.path;
    StoreError::Unavailable { reason: format!("a core does not know what it has on {path}; try again") }
}
