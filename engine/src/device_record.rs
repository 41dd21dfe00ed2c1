//! What the control shard keeps of a device: its state and how it came to that (I-D2), whether it is to be emptied, and
//! what wear watch has to remember. Byte layout: `docs/formats/control.md`.
//!
//! A change is asked for as a [`DeviceUpdate`]; [`DeviceRecord::after`] decides what becomes of it, and is pure.

use crate::api::StoreError;
use kiseki_types::codec::{CodecError, Reader, Writer};
use kiseki_types::fragment::DeviceState;
use kiseki_types::ids::{DeviceId, PoolId};

/// Changes that a record keeps, the latest ones (I-O5).
pub const DEVICE_EVENTS_MAX: usize = 16;

/// Records of one cluster; of removed devices the oldest give way (I-O5).
pub const DEVICE_RECORDS_MAX: usize = 1024;

/// Longest reason that is kept; a longer one is cut.
pub const REASON_LEN_BYTES_MAX: usize = 512;

/// Longest path that is kept: as long as the kernel takes one.
pub(crate) const PATH_LEN_BYTES_MAX: usize = 4096;

/// Longest name of a device class.
pub(crate) const CLASS_LEN_BYTES_MAX: usize = 16;

const FORMAT: u8 = 1;

/// Who changed a device's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceActor {
    /// A person.
    Operator,
    /// The node: what its operations met.
    Node,
    /// Wear watch (I-D3).
    Wear,
}

impl DeviceActor {
    /// The name in reports and messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            DeviceActor::Operator => "operator",
            DeviceActor::Node => "node",
            DeviceActor::Wear => "wear",
        }
    }

    fn code(self) -> u8 {
        match self {
            DeviceActor::Operator => 0,
            DeviceActor::Node => 1,
            DeviceActor::Wear => 2,
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<DeviceActor, CodecError> {
        match reader.u8()? {
            0 => Ok(DeviceActor::Operator),
            1 => Ok(DeviceActor::Node),
            2 => Ok(DeviceActor::Wear),
            other => Err(reader.unknown(u64::from(other))),
        }
    }
}

/// Why wear watch has a device emptied (I-D3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WearCause {
    /// More of its life is used than the limit.
    Used,
    /// It counts more media errors than the limit.
    MediaErrors,
    /// It says itself that it is not reliable any more, or read-only.
    CriticalWarning,
    /// Our own reads met more errors than the limit.
    ReadErrors,
}

impl WearCause {
    /// All of them.
    pub const ALL: [WearCause; 4] =
        [WearCause::Used, WearCause::MediaErrors, WearCause::CriticalWarning, WearCause::ReadErrors];

    fn bit(self) -> u8 {
        match self {
            WearCause::Used => 1,
            WearCause::MediaErrors => 2,
            WearCause::CriticalWarning => 4,
            WearCause::ReadErrors => 8,
        }
    }
}

/// One change of a device's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceEvent {
    /// When, milliseconds since 1970.
    pub at_unix_ms: u64,
    /// The state from then on.
    pub state: DeviceState,
    /// Who.
    pub actor: DeviceActor,
    /// Why.
    pub reason: String,
}

/// That a device is to be emptied. It stands while the device is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvacuationOrder {
    /// Since when, milliseconds since 1970.
    pub since_unix_ms: u64,
    /// Who wants it.
    pub actor: DeviceActor,
    /// Why.
    pub reason: String,
    /// What wear watch found.
    pub cause: Option<WearCause>,
}

/// Where a device is and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevicePlace {
    /// Where it was last seen: a hint.
    pub path: String,
    /// Its pool.
    pub pool: PoolId,
    /// Name of its class.
    pub class: String,
}

/// What is kept of one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceRecord {
    /// Which.
    pub device: DeviceId,
    /// Where and what.
    pub place: DevicePlace,
    /// Whether it is to be emptied.
    pub evacuation: Option<EvacuationOrder>,
    /// Errors that our own reads met on it.
    pub read_errors: u64,
    /// Causes for which wear watch does not have it emptied, since an operator cancelled that: bits.
    cancelled_causes: u8,
    /// The latest changes, the last one last; never empty.
    history: Vec<DeviceEvent>,
}

/// A change of a device's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceUpdate {
    /// It was opened and checked (I-D6), or enrolled: it is used from now on.
    Opened {
        /// Where and what.
        place: DevicePlace,
        /// Who had it opened.
        actor: DeviceActor,
        /// What was checked.
        reason: String,
    },
    /// It is not used any more, though it still belongs to the node.
    Lost {
        /// `Failed` or `Unreachable`.
        state: DeviceState,
        /// Why.
        reason: String,
    },
    /// What it holds is to move to others.
    Evacuate {
        /// Who wants it.
        actor: DeviceActor,
        /// Why.
        reason: String,
        /// What wear watch found.
        cause: Option<WearCause>,
    },
    /// It stays after all. A cause that wear watch had is none any more.
    CancelEvacuation {
        /// Why.
        reason: String,
    },
    /// It leaves the node for good. Whoever asks has made sure that nothing lives on it (I-D5), or that an operator
    /// gives up what does.
    ///
    /// Refused when the device's state has changed since it was looked at: it may have been taken back meanwhile, and
    /// hold what was acknowledged since.
    Remove {
        /// Why.
        reason: String,
        /// The last change that was seen; `None` where the device is out of use on every core already.
        seen: Option<DeviceEvent>,
    },
    /// So many more of our reads met an error.
    ReadErrors(u64),
}

impl DeviceRecord {
    /// Its state.
    #[must_use]
    pub fn state(&self) -> DeviceState {
        self.last().state
    }

    /// The last change.
    #[must_use]
    pub fn last(&self) -> &DeviceEvent {
        self.history.last().expect("a record has a state")
    }

    /// The latest changes, the last one last.
    #[must_use]
    pub fn history(&self) -> &[DeviceEvent] {
        &self.history
    }

    /// Whether an operator has cancelled an evacuation for this cause.
    #[must_use]
    pub fn is_cancelled(&self, cause: WearCause) -> bool {
        self.cancelled_causes & cause.bit() != 0
    }

    /// Its state for as long as it is open and works.
    #[must_use]
    pub fn state_in_use(&self) -> DeviceState {
        match (self.state(), &self.evacuation) {
            (DeviceState::Removed, _) => DeviceState::Removed,
            (_, Some(_)) => DeviceState::Evacuating,
            (_, None) if self.cancelled_causes != 0 => DeviceState::Degraded,
            (_, None) => DeviceState::Healthy,
        }
    }

    /// What an update makes of the record; `None` when it changes nothing.
    ///
    /// - `before`: the record so far, if there is one.
    /// - Errors: `StoreError::Invalid` when the device's state does not allow it, `NotFound` without a record.
    pub fn after(
        before: Option<&DeviceRecord>,
        device: DeviceId,
        update: DeviceUpdate,
        now_unix_ms: u64,
    ) -> Result<Option<DeviceRecord>, StoreError> {
        let mut record = match (before, &update) {
            (Some(before), _) => before.clone(),
            (None, DeviceUpdate::Opened { place, .. }) => DeviceRecord {
                device,
                place: place.clone(),
                evacuation: None,
                read_errors: 0,
                cancelled_causes: 0,
                history: Vec::new(),
            },
            (None, _) => return Err(StoreError::NotFound { what: format!("a record of device {device}") }),
        };
        let state = record.history.last().map(|event| event.state);
        if state == Some(DeviceState::Removed) {
            return record.after_removal(&update);
        }
        let change = |record: &mut DeviceRecord, state, actor, reason: String| {
            record.push(DeviceEvent { at_unix_ms: now_unix_ms, state, actor, reason: cut(reason) });
        };
        match update {
            DeviceUpdate::Opened { place, actor, reason } => {
                record.place = place;
                if state.is_none_or(|state| !state.is_readable()) {
                    let state = record.state_in_use_or_healthy();
                    change(&mut record, state, actor, reason);
                }
            }
            DeviceUpdate::Lost { state: lost, reason } => {
                assert!(matches!(lost, DeviceState::Failed | DeviceState::Unreachable), "{lost:?} is not lost");
                if state != Some(lost) {
                    change(&mut record, lost, DeviceActor::Node, reason);
                }
            }
            DeviceUpdate::Evacuate { actor, reason, cause } => {
                if !state.is_some_and(DeviceState::takes_fragments) {
                    return record.no_evacuation();
                }
                if cause.is_some_and(|cause| record.is_cancelled(cause)) {
                    return Ok(None);
                }
                let reason = cut(reason);
                let order = EvacuationOrder { since_unix_ms: now_unix_ms, actor, reason: reason.clone(), cause };
                record.evacuation = Some(order);
                change(&mut record, DeviceState::Evacuating, actor, reason);
            }
            DeviceUpdate::CancelEvacuation { reason } => {
                let Some(order) = record.evacuation.take() else {
                    let (path, state) = (&record.place.path, record.state().name());
                    return Err(invalid(format!("{path} is not being evacuated, it is {state}")));
                };
                record.cancelled_causes |= order.cause.map_or(0, WearCause::bit);
                let usable = state.is_some_and(DeviceState::is_readable);
                let state = if usable { record.state_in_use_or_healthy() } else { record.state() };
                change(&mut record, state, DeviceActor::Operator, reason);
            }
            DeviceUpdate::Remove { reason, seen } => {
                if seen.is_some() && seen.as_ref() != record.history.last() {
                    let (path, state) = (&record.place.path, record.state().name());
                    return Err(invalid(format!("I-D5: {path} is {state} now: it was changed meanwhile; look again")));
                }
                record.evacuation = None;
                change(&mut record, DeviceState::Removed, DeviceActor::Operator, reason);
            }
            DeviceUpdate::ReadErrors(more) => record.read_errors = record.read_errors.saturating_add(more),
        }
        Ok(Some(record).filter(|record| Some(record) != before))
    }

    fn after_removal(&self, update: &DeviceUpdate) -> Result<Option<DeviceRecord>, StoreError> {
        match update {
            // What operations of the last moments met does not matter any more.
            DeviceUpdate::Lost { .. } | DeviceUpdate::ReadErrors(_) => Ok(None),
            _ => Err(invalid(format!(
                "device {} ({}) was removed from this node: {}; format it anew to use it again",
                self.device,
                self.place.path,
                self.last().reason
            ))),
        }
    }

    fn no_evacuation(&self) -> Result<Option<DeviceRecord>, StoreError> {
        match self.state() {
            DeviceState::Evacuating => Ok(None),
            state => Err(invalid(format!(
                "{} is {}, so there is nothing to read on it: repair rebuilds what it held on the others",
                self.place.path,
                state.name()
            ))),
        }
    }

    fn state_in_use_or_healthy(&self) -> DeviceState {
        if self.history.is_empty() { DeviceState::Healthy } else { self.state_in_use() }
    }

    fn push(&mut self, event: DeviceEvent) {
        if self.history.len() == DEVICE_EVENTS_MAX {
            self.history.remove(0);
        }
        self.history.push(event);
    }

    /// The bytes of a row.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u8(FORMAT).u16(self.place.pool.0).str(&self.place.path).str(&self.place.class);
        writer.u64(self.read_errors).u8(self.cancelled_causes);
        writer.u8(u8::from(self.evacuation.is_some()));
        if let Some(order) = &self.evacuation {
            writer.u64(order.since_unix_ms).u8(order.actor.code());
            writer.u8(order.cause.map_or(0, WearCause::bit)).str(&order.reason);
        }
        writer.u32(self.history.len() as u32);
        for event in &self.history {
            writer.u64(event.at_unix_ms).u8(state_code(event.state)).u8(event.actor.code()).str(&event.reason);
        }
        writer.finish()
    }

    /// Back from a row.
    pub fn decode(device: DeviceId, bytes: &[u8]) -> Result<DeviceRecord, CodecError> {
        let mut reader = Reader::new("device record", bytes);
        let format = reader.u8()?;
        if format != FORMAT {
            return Err(reader.unknown(u64::from(format)));
        }
        let pool = PoolId(reader.u16()?);
        let path = reader.str(PATH_LEN_BYTES_MAX)?.to_owned();
        let class = reader.str(CLASS_LEN_BYTES_MAX)?.to_owned();
        let read_errors = reader.u64()?;
        let cancelled_causes = reader.u8()?;
        if cancelled_causes & !WearCause::ALL.iter().fold(0, |bits, cause| bits | cause.bit()) != 0 {
            return Err(reader.unknown(u64::from(cancelled_causes)));
        }
        let evacuation = match reader.u8()? {
            0 => None,
            1 => Some(decode_order(&mut reader)?),
            other => return Err(reader.unknown(u64::from(other))),
        };
        let count = reader.count(DEVICE_EVENTS_MAX)?;
        if count == 0 {
            return Err(reader.unknown(0));
        }
        let history = (0..count).map(|_| decode_event(&mut reader)).collect::<Result<_, CodecError>>()?;
        reader.end()?;
        let place = DevicePlace { path, pool, class };
        Ok(DeviceRecord { device, place, evacuation, read_errors, cancelled_causes, history })
    }
}

fn decode_order(reader: &mut Reader<'_>) -> Result<EvacuationOrder, CodecError> {
    let since_unix_ms = reader.u64()?;
    let actor = DeviceActor::decode(reader)?;
    let cause = match reader.u8()? {
        0 => None,
        bit => {
            let found = WearCause::ALL.into_iter().find(|cause| cause.bit() == bit);
            Some(found.ok_or_else(|| reader.unknown(u64::from(bit)))?)
        }
    };
    let reason = reader.str(REASON_LEN_BYTES_MAX)?.to_owned();
    Ok(EvacuationOrder { since_unix_ms, actor, reason, cause })
}

fn decode_event(reader: &mut Reader<'_>) -> Result<DeviceEvent, CodecError> {
    let at_unix_ms = reader.u64()?;
    let code = reader.u8()?;
    let state = DeviceState::ALL.into_iter().find(|state| state_code(*state) == code);
    let state = state.ok_or_else(|| reader.unknown(u64::from(code)))?;
    let actor = DeviceActor::decode(reader)?;
    let reason = reader.str(REASON_LEN_BYTES_MAX)?.to_owned();
    Ok(DeviceEvent { at_unix_ms, state, actor, reason })
}

fn state_code(state: DeviceState) -> u8 {
    match state {
        DeviceState::Healthy => 0,
        DeviceState::Degraded => 1,
        DeviceState::Unreachable => 2,
        DeviceState::Evacuating => 3,
        DeviceState::Failed => 4,
        DeviceState::Removed => 5,
    }
}

fn cut(mut text: String) -> String {
    while text.len() > REASON_LEN_BYTES_MAX {
        text.pop();
    }
    text
}

fn invalid(what: String) -> StoreError {
    StoreError::Invalid { what }
}

#[cfg(test)]
mod tests;
