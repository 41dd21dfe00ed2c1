//! What is recorded of devices, and how it is changed.

use super::field::{array, cut, elements, needed, sent, take_text};
use super::frame::{count, fits, malformed};
use super::{REASON_LEN_BYTES_MAX, WireError};
use crate::device_record::{
    CLASS_LEN_BYTES_MAX, DEVICE_RECORDS_MAX, DeviceActor, DeviceEvent, DevicePlace, DeviceRecord, DeviceUpdate,
    PATH_LEN_BYTES_MAX, WearCause,
};
use crate::engine_capnp::{DeviceActor as WireActor, DeviceState as WireState, WearCause as WireWear};
use crate::engine_capnp::{device_event, device_opened, device_record, device_records, update_device};
use kiseki_types::fragment::DeviceState;
use kiseki_types::ids::{DeviceId, PoolId};

/// Writes records of devices.
pub(super) fn put_records(
    mut out: device_records::Builder<'_>,
    version: u64,
    records: &[DeviceRecord],
) -> Result<(), WireError> {
    out.set_version(version);
    fits("devices", records.len(), DEVICE_RECORDS_MAX)?;
    let mut list = out.init_records(count(records.len()));
    records.iter().enumerate().for_each(|(at, record)| put_record(list.reborrow().get(count(at)), record));
    Ok(())
}

/// Records of devices.
pub(super) fn take_records(records: device_records::Reader<'_>) -> Result<(u64, Vec<DeviceRecord>), WireError> {
    let list = elements("devices", DEVICE_RECORDS_MAX, records.get_records())?.map(take_record);
    Ok((records.get_version(), list.collect::<Result<_, WireError>>()?))
}

/// Writes the record of a device.
pub(super) fn put_record(mut out: device_record::Builder<'_>, record: &DeviceRecord) {
    out.set_device(&record.device.0);
    out.set_row(&record.encode());
}

/// The record of a device.
pub(super) fn take_record(record: device_record::Reader<'_>) -> Result<DeviceRecord, WireError> {
    let device = DeviceId(array("a device id", record.get_device())?);
    Ok(DeviceRecord::decode(device, record.get_row()?)?)
}

/// Writes a change of a record.
pub(super) fn put_update(
    mut out: update_device::Builder<'_>,
    device: DeviceId,
    update: &DeviceUpdate,
) -> Result<(), WireError> {
    let reason_of = |reason| cut(reason, REASON_LEN_BYTES_MAX);
    out.set_device(&device.0);
    match update {
        DeviceUpdate::Opened { place, actor, reason } => {
            let mut out = out.init_opened();
            put_place(out.reborrow(), place)?;
            out.set_actor(put_actor(*actor));
            out.set_reason(reason_of(reason));
        }
        DeviceUpdate::Lost { state, reason } => {
            let mut out = out.init_lost();
            out.set_state(put_state(*state));
            out.set_reason(reason_of(reason));
        }
        DeviceUpdate::Evacuate { actor, reason, cause } => {
            let mut out = out.init_evacuate();
            out.set_actor(put_actor(*actor));
            out.set_reason(reason_of(reason));
            out.set_cause(put_cause(*cause));
        }
        DeviceUpdate::CancelEvacuation { reason } => out.set_cancel_evacuation(reason_of(reason)),
        DeviceUpdate::Remove { reason, seen } => {
            let mut out = out.init_remove();
            out.set_reason(reason_of(reason));
            if let Some(seen) = seen {
                let mut out = out.init_seen();
                out.set_at_unix_ms(seen.at_unix_ms);
                out.set_state(put_state(seen.state));
                out.set_actor(put_actor(seen.actor));
                // It is compared with what is recorded, so it is not cut.
                out.set_reason(sent("bytes of a reason", &seen.reason, REASON_LEN_BYTES_MAX)?);
            }
        }
        DeviceUpdate::ReadErrors(more) => out.set_read_errors(*more),
    }
    Ok(())
}

fn put_place(mut out: device_opened::Builder<'_>, place: &DevicePlace) -> Result<(), WireError> {
    out.set_path(sent("bytes of a device's path", &place.path, PATH_LEN_BYTES_MAX)?);
    out.set_pool(place.pool.0);
    out.set_class(sent("bytes of a device's class", &place.class, CLASS_LEN_BYTES_MAX)?);
    Ok(())
}

/// A change of a record.
pub(super) fn take_update(update: update_device::Reader<'_>) -> Result<(DeviceId, DeviceUpdate), WireError> {
    let reason = |reason| take_text("bytes of a reason", REASON_LEN_BYTES_MAX, reason);
    let device = DeviceId(array("a device id", update.get_device())?);
    let update = match update.which()? {
        update_device::Opened(opened) => {
            needed("what was opened", update.has_opened())?;
            take_opened(opened?)?
        }
        update_device::Lost(lost) => {
            let lost = lost?;
            let state = take_state(lost.get_state()?);
            // Whoever acts on it takes for granted that the state is one that says so.
            if !matches!(state, DeviceState::Failed | DeviceState::Unreachable) {
                return Err(malformed(format!("a device that is {} is not lost", state.name())));
            }
            DeviceUpdate::Lost { state, reason: reason(lost.get_reason())? }
        }
        update_device::Evacuate(evacuate) => {
            needed("who wants the device emptied", update.has_evacuate())?;
            let evacuate = evacuate?;
            let (actor, cause) = (take_actor(evacuate.get_actor()?), take_cause(evacuate.get_cause()?));
            DeviceUpdate::Evacuate { actor, reason: reason(evacuate.get_reason())?, cause }
        }
        update_device::CancelEvacuation(text) => DeviceUpdate::CancelEvacuation { reason: reason(text)? },
        update_device::Remove(remove) => {
            // Without it the device would be removed whatever its state is.
            needed("why the device is removed", update.has_remove())?;
            let remove = remove?;
            let seen = remove.has_seen().then(|| take_event(remove.get_seen()?)).transpose()?;
            DeviceUpdate::Remove { reason: reason(remove.get_reason())?, seen }
        }
        update_device::ReadErrors(more) => DeviceUpdate::ReadErrors(more),
    };
    Ok((device, update))
}

fn take_opened(opened: device_opened::Reader<'_>) -> Result<DeviceUpdate, WireError> {
    let place = DevicePlace {
        path: take_text("bytes of a device's path", PATH_LEN_BYTES_MAX, opened.get_path())?,
        pool: PoolId(opened.get_pool()),
        class: take_text("bytes of a device's class", CLASS_LEN_BYTES_MAX, opened.get_class())?,
    };
    let reason = take_text("bytes of a reason", REASON_LEN_BYTES_MAX, opened.get_reason())?;
    Ok(DeviceUpdate::Opened { place, actor: take_actor(opened.get_actor()?), reason })
}

fn take_event(event: device_event::Reader<'_>) -> Result<DeviceEvent, WireError> {
    Ok(DeviceEvent {
        at_unix_ms: event.get_at_unix_ms(),
        state: take_state(event.get_state()?),
        actor: take_actor(event.get_actor()?),
        reason: take_text("bytes of a reason", REASON_LEN_BYTES_MAX, event.get_reason())?,
    })
}

/// A device's state on the wire.
pub(super) fn put_state(state: DeviceState) -> WireState {
    match state {
        DeviceState::Healthy => WireState::Healthy,
        DeviceState::Degraded => WireState::Degraded,
        DeviceState::Unreachable => WireState::Unreachable,
        DeviceState::Evacuating => WireState::Evacuating,
        DeviceState::Failed => WireState::Failed,
        DeviceState::Removed => WireState::Removed,
    }
}

/// A device's state.
pub(super) fn take_state(state: WireState) -> DeviceState {
    match state {
        WireState::Healthy => DeviceState::Healthy,
        WireState::Degraded => DeviceState::Degraded,
        WireState::Unreachable => DeviceState::Unreachable,
        WireState::Evacuating => DeviceState::Evacuating,
        WireState::Failed => DeviceState::Failed,
        WireState::Removed => DeviceState::Removed,
    }
}

fn put_actor(actor: DeviceActor) -> WireActor {
    match actor {
        DeviceActor::Operator => WireActor::Operator,
        DeviceActor::Node => WireActor::Node,
        DeviceActor::Wear => WireActor::Wear,
    }
}

fn take_actor(actor: WireActor) -> DeviceActor {
    match actor {
        WireActor::Operator => DeviceActor::Operator,
        WireActor::Node => DeviceActor::Node,
        WireActor::Wear => DeviceActor::Wear,
    }
}

fn put_cause(cause: Option<WearCause>) -> WireWear {
    match cause {
        None => WireWear::None,
        Some(WearCause::Used) => WireWear::Used,
        Some(WearCause::MediaErrors) => WireWear::MediaErrors,
        Some(WearCause::CriticalWarning) => WireWear::CriticalWarning,
        Some(WearCause::ReadErrors) => WireWear::ReadErrors,
    }
}

fn take_cause(cause: WireWear) -> Option<WearCause> {
    match cause {
        WireWear::None => None,
        WireWear::Used => Some(WearCause::Used),
        WireWear::MediaErrors => Some(WearCause::MediaErrors),
        WireWear::CriticalWarning => Some(WearCause::CriticalWarning),
        WireWear::ReadErrors => Some(WearCause::ReadErrors),
    }
}
