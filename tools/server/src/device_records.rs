//! Keeps the records of devices in step with what the node sees of them (I-D2), has worn ones emptied (I-D3), and shows
//! both: a task on core 0.
//!
//! What the start, the cores and the watch find out stands on the status board; here it becomes durable, with time,
//! reason and actor, and the board shows what is recorded: since when, why, by whom, and how far an evacuation is.

use crate::core_node::CoreNode;
use crate::device_orders::DeviceOrder;
use crate::device_places;
use crate::executor::CoreShared;
use crate::replaced::{Replacement, ReplacementStep, Replacements, next_step, recognized};
use crate::status::{DeviceChangeReport, DeviceReport, EvacuationReport, NodeReport};
use crate::wear::{WearVerdict, verdict};
use kiseki_devices::superblock::Enrolled;
use kiseki_engine::api::StoreError;
use kiseki_engine::device_record::{DeviceActor, DevicePlace, DeviceRecord, DeviceUpdate};
use kiseki_engine::message::Closing;
use kiseki_types::fragment::DeviceState;
use kiseki_types::ids::DeviceId;
use kiseki_types::runtime::{Instant, Ports, RuntimeExt};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Between two looks at the board.
const INTERVAL: Duration = Duration::from_millis(500);

/// Looks that the rate of an evacuation is measured over.
const RATE_LOOKS: usize = 30;

/// Read errors are recorded when there are as many new ones, or at the next look that changes something anyway: a
/// failing drive must not fill the log of the control shard.
const READ_ERRORS_STEP: u64 = 8;

/// Former devices that status shows (I-O5).
const FORMER_DEVICES_MAX: usize = 32;

/// Side thread queue of the notes of replacements; lanes' and shards' tables use small numbers.
const NOTES_QUEUE: u64 = u64::MAX - 1;

/// The task.
pub struct DeviceRecorder {
    shared: Arc<CoreShared>,
    node: Rc<CoreNode>,
    ports: Ports,
    /// Read errors of this run that are recorded, by device.
    read_errors: RefCell<BTreeMap<DeviceId, u64>>,
    progress: RefCell<BTreeMap<DeviceId, Progress>>,
    /// Whether what the configuration does not name any more is recorded.
    has_missed: Cell<bool>,
    /// What replaced devices wait for until they count as removed.
    replaced: RefCell<BTreeMap<DeviceId, String>>,
}

/// How an evacuation went lately: when, and bytes left.
#[derive(Default)]
struct Progress(VecDeque<(Instant, u64)>);

impl Progress {
    /// Bytes a second, over the last looks.
    fn note(&mut self, now: Instant, bytes_left: u64) -> u64 {
        if self.0.len() == RATE_LOOKS {
            self.0.pop_front();
        }
        self.0.push_back((now, bytes_left));
        let (first, before) = self.0[0];
        let span = now.since(first).as_millis() as u64;
        before.saturating_sub(bytes_left) * 1000 / span.max(1)
    }
}

/// What the board says of a device, as an update of its record; `None` when that is recorded already.
fn observed(report: &DeviceReport, place: Option<DevicePlace>, record: Option<&DeviceRecord>) -> Option<DeviceUpdate> {
    let state = record.map(DeviceRecord::state);
    if state == Some(DeviceState::Removed) {
        return None;
    }
    if report.is_usable() {
        let reason = match state {
            None => "first seen, formatted for this cluster",
            Some(state) if !state.is_readable() => "reopened and checked: its superblock and journals are sound",
            // Only where it is may have changed, which is no change of its state.
            Some(_) if record.map(|record| &record.place) == place.as_ref() => return None,
            Some(_) => "it is at another path",
        };
        return place.map(|place| DeviceUpdate::Opened { place, actor: DeviceActor::Node, reason: reason.to_owned() });
    }
    let state_now =
        if report.state == DeviceState::Unreachable.name() { DeviceState::Unreachable } else { DeviceState::Failed };
    state.filter(|state| *state != state_now)?;
    Some(DeviceUpdate::Lost { state: state_now, reason: report.reason.clone() })
}

/// A device's id as reports write it.
#[must_use]
pub fn parse_id(hex: &str) -> Option<DeviceId> {
    <[u8; 16]>::try_from(hex::decode(hex).ok()?).ok().map(DeviceId)
}

impl DeviceRecorder {
    /// Starts; it ends with the executor.
    pub fn start(shared: &Arc<CoreShared>, node: &Rc<CoreNode>, ports: &Ports) {
        let recorder = DeviceRecorder {
            shared: shared.clone(),
            node: node.clone(),
            ports: ports.clone(),
            read_errors: RefCell::default(),
            progress: RefCell::default(),
            has_missed: Cell::new(false),
            replaced: RefCell::default(),
        };
        let task = async move {
            while !recorder.shared.stop.is_stopped() {
                if let Err(error) = recorder.look().await
                    && !recorder.shared.stop.is_stopped()
                {
                    tracing::warn!(%error, "what became of the devices could not be recorded; tried again");
                }
                recorder.show();
                recorder.ports.sleep(INTERVAL).await;
            }
        };
        ports.spawn("record devices", Box::pin(task));
    }

    fn records(&self) -> BTreeMap<DeviceId, DeviceRecord> {
        let records = self.node.engine().core().devices.records();
        let records = device_places::own(self.shared.membership.own, records);
        records.into_iter().map(|record| (record.device, record)).collect()
    }

    /// Records a change of one of this node's devices.
    async fn record(&self, device: DeviceId, update: DeviceUpdate) -> Result<(), StoreError> {
        let update = device_places::update(self.shared.membership.own, update);
        self.node.engine().record_device(device, update).await.map(drop)
    }

    async fn look(&self) -> Result<(), StoreError> {
        let board = self.shared.board.snapshot();
        // What one device meets keeps no other from being looked at.
        let mut result = self.settle_replacements(&board).await;
        if !self.has_missed.get() {
            let missed = self.miss_unconfigured(&board).await;
            self.has_missed.set(missed.is_ok());
            result = result.and(missed);
        }
        self.recognize(&board);
        let board = self.shared.board.snapshot();
        for report in &board.devices {
            let Some(id) = parse_id(&report.id) else { continue };
            result = result.and(self.look_at(&board, report, id).await);
        }
        result
    }

    async fn look_at(&self, board: &NodeReport, report: &DeviceReport, id: DeviceId) -> Result<(), StoreError> {
        let records = self.records();
        if let Some(update) = observed(report, self.place(report, id), records.get(&id)) {
            self.record(id, update).await?;
        }
        match records.get(&id).map(DeviceRecord::state) {
            // Its next look finds the record, if it was made now.
            None => return Ok(()),
            Some(DeviceState::Removed) => {
                self.let_go(id);
                return Ok(());
            }
            Some(_) => {}
        }
        self.count_read_errors(board, id).await?;
        self.watch_wear(report, id).await
    }

    /// Records what became of devices that were replaced while the node did not run.
    async fn settle_replacements(&self, board: &NodeReport) -> Result<(), StoreError> {
        self.replaced.borrow_mut().clear();
        let mut result = Ok(());
        for note in self.shared.replacements.all() {
            result = result.and(self.settle(note, board).await);
        }
        result
    }

    async fn settle(&self, note: Replacement, board: &NodeReport) -> Result<(), StoreError> {
        // Anew for each: what has become of one note decides about the next.
        match next_step(&note, &self.shared.replacements.all(), board, self.records().values()) {
            ReplacementStep::Name(id) => {
                let named = Replacement { device: Some(id.to_string()), ..note };
                self.change_notes(move |notes| notes.note(named)).await?;
            }
            ReplacementStep::Record(id, update) => {
                // I-D5: other nodes may need for their stripes what it held.
                if matches!(update, DeviceUpdate::Remove { .. }) {
                    let looks = self.node.engine().calls().look_at_device(id, Closing::AsItIs).await?;
                    let open: Option<usize> = looks.iter().map(|look| look.open_stripes).sum();
                    if open != Some(0) {
                        let why = format!("{} was replaced; repair looks at what it held", note.path);
                        self.replaced.borrow_mut().insert(id, why);
                        return Ok(());
                    }
                }
                self.record(id, update).await?;
            }
            ReplacementStep::Wait(why) => {
                let id = note.device.as_deref().and_then(parse_id);
                self.replaced.borrow_mut().extend(id.map(|id| (id, why)));
            }
            ReplacementStep::Keep => {}
            ReplacementStep::Forget(why) => {
                tracing::info!(device = %note.path, by = %note.by_path, %why, "a replacement is settled");
                self.change_notes(move |notes| notes.forget(&note)).await?;
            }
        }
        Ok(())
    }

    /// Changes the notes of replacements, beside the executor.
    async fn change_notes(
        &self,
        change: impl FnOnce(&Replacements) -> std::io::Result<()> + Send + 'static,
    ) -> Result<(), StoreError> {
        let shared = self.shared.clone();
        let changed = self.ports.offload(NOTES_QUEUE, move || change(&shared.replacements)).await;
        let unavailable = |reason: String| StoreError::Unavailable { reason };
        let changed = changed.map_err(|error| unavailable(error.to_string()))?;
        changed.map_err(|error| unavailable(format!("{}: {error}", self.shared.config.dir.replaced_file().display())))
    }

    /// Says which device it is that could not be opened.
    fn recognize(&self, board: &NodeReport) {
        let unknown = || board.devices.iter().filter(|report| report.id.is_empty());
        if unknown().next().is_none() {
            return;
        }
        let (records, notes) = (self.records(), self.shared.replacements.all());
        for report in unknown() {
            let Some(found) = recognized(&report.path, &notes, board, records.values()) else { continue };
            let mut board = self.shared.board.lock();
            let same = |shown: &&mut DeviceReport| shown.path == report.path && shown.id.is_empty();
            board.devices.iter_mut().filter(same).for_each(|shown| shown.id = found.to_string());
        }
    }

    fn place(&self, report: &DeviceReport, id: DeviceId) -> Option<DevicePlace> {
        let superblock = self.shared.devices.by_id(id)?.superblock;
        let class = superblock.class.name().to_owned();
        Some(DevicePlace { path: report.path.clone(), pool: superblock.pool, class })
    }

    /// A device that the configuration does not name any more, and that nobody retired.
    async fn miss_unconfigured(&self, board: &NodeReport) -> Result<(), StoreError> {
        let mut result = Ok(());
        for (id, record) in self.records() {
            let is_it = |report: &DeviceReport| match report.id.is_empty() {
                true => report.path == record.place.path,
                false => report.id == id.to_string(),
            };
            let is_known = board.devices.iter().any(is_it);
            let is_over =
                matches!(record.state(), DeviceState::Removed | DeviceState::Unreachable | DeviceState::Failed);
            if !is_known && !is_over {
                let reason = "it is not at any path of `devices`".to_owned();
                let update = DeviceUpdate::Lost { state: DeviceState::Unreachable, reason };
                result = result.and(self.record(id, update).await);
            }
        }
        result
    }

    async fn count_read_errors(&self, board: &NodeReport, id: DeviceId) -> Result<(), StoreError> {
        let name = id.to_string();
        let now: u64 = board.core_reports.values().filter_map(|core| core.device_read_errors.get(&name)).sum();
        let before = self.read_errors.borrow().get(&id).copied().unwrap_or_default();
        // A device that came back counts anew.
        let more = if now < before { now } else { now - before };
        if more == 0 || more < READ_ERRORS_STEP && before != 0 {
            return Ok(());
        }
        self.record(id, DeviceUpdate::ReadErrors(more)).await?;
        self.read_errors.borrow_mut().insert(id, now);
        Ok(())
    }

    async fn watch_wear(&self, report: &DeviceReport, id: DeviceId) -> Result<(), StoreError> {
        let records = self.records();
        let Some(record) = records.get(&id) else { return Ok(()) };
        let by_wear = |record: &&DeviceRecord| {
            record.evacuation.as_ref().is_some_and(|order| order.actor == DeviceActor::Wear)
                && record.state() == DeviceState::Evacuating
        };
        let evacuating = records.values().filter(by_wear).count();
        let wear = verdict(record, report.wear.as_ref(), self.shared.config.health.limits(), evacuating);
        let warning = match wear {
            WearVerdict::Leave => String::new(),
            WearVerdict::WaitForTurn(reason) => {
                format!("{reason}; it is emptied when another worn device has been")
            }
            WearVerdict::Evacuate(update) => {
                self.record(id, update).await?;
                String::new()
            }
        };
        for shown in self.shared.board.lock().devices.iter_mut().filter(|shown| shown.id == report.id) {
            shown.warning.clone_from(&warning);
        }
        Ok(())
    }

    /// A device that is recorded as removed is still open: it is at its path again and this start opened it before it could
    /// know, or `retire` is about to close it and this comes first. Nothing uses it any more, and it can be pulled.
    fn let_go(&self, id: DeviceId) {
        if self.shared.devices.by_id(id).is_none() {
            return;
        }
        let shared = self.shared.clone();
        let close = move || {
            let _one_at_a_time = shared.devices.change();
            if shared.devices.by_id(id).is_none() {
                return;
            }
            let known = shared.meta.dir.epoch();
            let closed = shared.orders.give(&DeviceOrder::Remove(id));
            let left = shared.devices.leave_for_good(id, &known, Enrolled::Stays).map_err(|error| error.to_string());
            if let Err(reason) = closed.and(left) {
                tracing::warn!(device = %id, %reason, "a removed device could not be closed; tried again");
            }
        };
        if let Err(error) = std::thread::Builder::new().name("kiseki-let-go".to_owned()).spawn(close) {
            tracing::warn!(device = %id, %error, "no thread to close a removed device; tried again");
        }
    }

    /// Puts what is recorded on the board.
    fn show(&self) {
        let (records, now) = (self.records(), self.ports.now());
        let mut board = self.shared.board.lock();
        let board = &mut *board;
        for report in &mut board.devices {
            let Some((id, record)) = parse_id(&report.id).and_then(|id| Some((id, records.get(&id)?))) else {
                continue;
            };
            let used = |map: fn(&crate::status::CoreReport) -> &BTreeMap<String, u64>| -> u64 {
                board.core_reports.values().filter_map(|core| map(core).get(&report.id)).sum()
            };
            report.used_fragments = used(|core| &core.device_fragments);
            report.used_bytes = used(|core| &core.device_used_bytes);
            let says = |core: &crate::status::CoreReport| core.device_fragments.contains_key(&report.id);
            let is_known = board.core_reports.values().filter(|core| says(core)).count() == usize::from(board.cores);
            show_record(report, record);
            report.evacuation = record.evacuation.as_ref().map(|order| {
                let mut progress = self.progress.borrow_mut();
                let rate = progress.entry(id).or_default().note(now, report.used_bytes);
                let waits = || board.core_reports.values().filter_map(|core| core.evacuations.get(&report.id));
                EvacuationReport {
                    since_unix_ms: order.since_unix_ms,
                    actor: order.actor.name().to_owned(),
                    reason: order.reason.clone(),
                    fragments_left: report.used_fragments,
                    is_known,
                    bytes_left: report.used_bytes,
                    bytes_per_second: rate,
                    eta_seconds: (rate > 0).then(|| report.used_bytes.div_ceil(rate.max(1))),
                    waiting_stripes: waits().map(|core| core.waiting_stripes).sum(),
                    waits_for: match waits().map(|core| core.devices_wanted).max().unwrap_or_default() {
                        0 if waits().any(|core| core.no_room) => "space: add a device, or delete data".to_owned(),
                        0 => String::new(),
                        1 => "one more device".to_owned(),
                        more => format!("{more} more devices"),
                    },
                }
            });
            if report.evacuation.is_none() {
                self.progress.borrow_mut().remove(&id);
            }
        }
        board.former_devices = former(&records, &board.devices, &self.replaced.borrow());
        board.settle_upkeep();
    }
}

/// Devices that are recorded and not configured any more, the latest first.
fn former(
    records: &BTreeMap<DeviceId, DeviceRecord>,
    devices: &[DeviceReport],
    replaced: &BTreeMap<DeviceId, String>,
) -> Vec<DeviceReport> {
    let shown: BTreeSet<&str> = devices.iter().map(|report| report.id.as_str()).collect();
    let mut former: Vec<DeviceReport> = Vec::new();
    for (id, record) in records {
        let name = id.to_string();
        if shown.contains(name.as_str()) {
            continue;
        }
        let mut report = DeviceReport { id: name, path: record.place.path.clone(), ..DeviceReport::default() };
        show_record(&mut report, record);
        record.state().name().clone_into(&mut report.state);
        report.reason.clone_from(&record.last().reason);
        report.warning = replaced.get(id).cloned().unwrap_or_default();
        former.push(report);
    }
    former.sort_by_key(|report| std::cmp::Reverse(report.since_unix_ms));
    former.truncate(FORMER_DEVICES_MAX);
    former
}

fn show_record(report: &mut DeviceReport, record: &DeviceRecord) {
    let last = record.last();
    report.since_unix_ms = last.at_unix_ms;
    report.actor = last.actor.name().to_owned();
    report.read_errors = record.read_errors;
    let change = |event: &kiseki_engine::device_record::DeviceEvent| DeviceChangeReport {
        at_unix_ms: event.at_unix_ms,
        state: event.state.name().to_owned(),
        actor: event.actor.name().to_owned(),
        reason: event.reason.clone(),
    };
    report.history = record.history().iter().map(change).collect();
    if record.state() == DeviceState::Removed {
        report.state = DeviceState::Removed.name().to_owned();
        report.reason =
            format!("it left this node: {}; take it out of `devices`, or format it anew to use it", last.reason);
    } else if report.is_usable() {
        report.state = record.state_in_use().name().to_owned();
        report.reason = match record.state_in_use() {
            DeviceState::Healthy => String::new(),
            _ => last.reason.clone(),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiseki_types::ids::PoolId;

    fn place() -> Option<DevicePlace> {
        Some(DevicePlace { path: "/dev/d0".to_owned(), pool: PoolId(0), class: "file".to_owned() })
    }

    fn report(state: &str) -> DeviceReport {
        let (state, reason, id) = (state.to_owned(), "why".to_owned(), "07".repeat(16));
        DeviceReport { path: "/dev/d0".to_owned(), id, state, reason, ..DeviceReport::default() }
    }

    /// What is recorded when these are seen one after the other.
    fn seen(states: &[&str]) -> DeviceRecord {
        let mut record: Option<DeviceRecord> = None;
        for (at, state) in states.iter().enumerate() {
            if let Some(update) = observed(&report(state), place(), record.as_ref()) {
                record = DeviceRecord::after(record.as_ref(), DeviceId([7; 16]), update, at as u64).unwrap().or(record);
            }
        }
        record.expect("something was seen")
    }

    #[test]
    fn i_d2_i_d6_what_the_node_sees_is_recorded_once_and_a_failed_device_is_trusted_again_when_it_was_reopened() {
        for (states, wanted, changes) in [
            (&["healthy", "healthy", "healthy"][..], DeviceState::Healthy, 1),
            (&["healthy", "failed", "failed"], DeviceState::Failed, 2),
            (&["healthy", "failed", "healthy"], DeviceState::Healthy, 3),
            (&["healthy", "unreachable", "failed", "healthy", "healthy"], DeviceState::Healthy, 4),
        ] {
            let record = seen(states);
            assert_eq!((record.state(), record.history().len()), (wanted, changes), "I-D2: {states:?}");
        }
        let record = seen(&["healthy", "failed", "healthy"]);
        assert!(record.last().reason.contains("reopened and checked"), "I-D6: {:?}", record.last());
        assert_eq!(observed(&report("failed"), place(), None), None, "a device that was never opened has no record");
    }

    #[test]
    fn i_d2_the_board_shows_what_is_recorded_and_what_fails_shows_at_once() {
        let record = seen(&["healthy"]);
        let evacuate =
            DeviceUpdate::Evacuate { actor: DeviceActor::Operator, reason: "it is old".to_owned(), cause: None };
        let record = DeviceRecord::after(Some(&record), record.device, evacuate, 9).unwrap().unwrap();
        let mut shown = report("healthy");
        show_record(&mut shown, &record);
        assert_eq!((shown.state.as_str(), shown.reason.as_str()), ("evacuating", "it is old"));
        assert_eq!((shown.since_unix_ms, shown.actor.as_str(), shown.history.len()), (9, "operator", 2));
        let mut failed = report("failed");
        show_record(&mut failed, &record);
        assert_eq!(failed.state, "failed", "what is seen counts more than what is recorded");
    }

    #[test]
    fn i_d2_a_device_that_left_is_shown_with_who_and_why() {
        let removed = DeviceUpdate::Remove { reason: "device 02 took its place".to_owned(), seen: None };
        let record = seen(&["healthy", "failed"]);
        let record = DeviceRecord::after(Some(&record), record.device, removed, 9).unwrap().unwrap();
        let records = BTreeMap::from([(record.device, record.clone())]);
        let waits = BTreeMap::from([(record.device, "repair looks".to_owned())]);
        let shown = former(&records, &[], &waits);
        assert_eq!(shown.len(), 1, "I-D2");
        assert_eq!((shown[0].state.as_str(), shown[0].actor.as_str()), ("removed", "operator"), "I-D2");
        assert_eq!((shown[0].reason.as_str(), shown[0].warning.as_str()), ("device 02 took its place", "repair looks"));
        assert!(former(&records, &[report("healthy")], &waits).is_empty(), "one that is configured is no former one");
    }

    #[test]
    fn the_rate_of_an_evacuation_is_that_of_the_last_looks() {
        let mut progress = Progress::default();
        let mut rate = 0;
        for second in 0..100 {
            rate = progress.note(Instant(second * 1_000_000_000), 1_000_000 - 1000 * second);
        }
        assert_eq!(rate, 1000);
        assert_eq!(progress.0.len(), RATE_LOOKS, "I-O5");
        assert_eq!(progress.note(Instant(100_000_000_000), 2_000_000), 0, "it grows: no rate");
    }

    #[test]
    fn ids_of_reports_read_back() {
        let id = DeviceId([0x1f; 16]);
        assert_eq!(parse_id(&id.to_string()), Some(id));
        for bad in ["", "1f", "zz".repeat(16).as_str(), "ä".repeat(16).as_str()] {
            assert_eq!(parse_id(bad), None, "{bad}");
        }
    }
}
