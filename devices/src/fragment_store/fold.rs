//! Folding: what the journals say becomes durable in table files, and the journals' space comes back.
//!
//! Order matters. First the index lanes make durable what they heard; then the lane's own file says "folded through P",
//! together with the rows of its extents; only then is the journal trimmed. A crash between any two steps replays more
//! than needed, which changes nothing.

use super::discard::discard_forever;
use super::{Core, CoreFragmentStore, DeviceOnCore, LaneRequest, add};
use crate::index::{InsertMode, TABLE_META, write};
use crate::lane::{LaneOnDevice, Recovered};
use futures::channel::oneshot;
use futures::future::{join_all, select};
use kiseki_types::fragment::FragmentError;
use kiseki_types::journal::{Journal, Sequence};
use kiseki_types::runtime::RuntimeExt;
use kiseki_types::{DeviceId, LaneId};
use std::collections::BTreeSet;
use std::rc::Rc;

/// Calls to index lanes in flight while a start publishes what it recovered.
const PUBLISH_BATCH: usize = 64;

/// Quiet intervals after which a journal is folded although it is nearly empty, so that a restart is short.
const IDLE_INTERVALS: u32 = 10;

/// From this fill on a journal is folded at the next interval.
const FILL_FOLD: f64 = 0.5;

/// While a journal stays over half full the task looks so many times more often.
const PRESSED_DIVISOR: u32 = 50;

/// Key of the row in [`TABLE_META`] that says through where a device's journal is folded.
pub(crate) fn folded_key(device: DeviceId) -> Vec<u8> {
    [&b"folded"[..], &device.0].concat()
}

impl Core {
    /// Wakes the folding task.
    pub fn kick_fold(&self) {
        if let Some(kick) = self.fold_kick.borrow_mut().take() {
            let _ = kick.send(());
        }
    }

    pub async fn publish_recovered(self: Rc<Core>) -> Result<(), FragmentError> {
        self.publish_devices(&self.devices.all()).await?;
        self.is_published.set(true);
        let core = CoreFragmentStore { core: self.clone() };
        self.ports.spawn("fold journals", Box::pin(fold_forever(core)));
        self.ports.spawn("discard", Box::pin(discard_forever(Rc::downgrade(&self))));
        Ok(())
    }

    /// Tells the index lanes what the journals of these devices replayed, makes that durable and trims the journals.
    pub async fn publish_devices(self: &Rc<Core>, devices: &[Rc<DeviceOnCore>]) -> Result<(), FragmentError> {
        for device in devices.iter().filter(|device| device.check().is_ok()) {
            for lane in device.lanes.values() {
                self.publish_lane(lane).await?;
            }
        }
        for lane in self.indexes.keys() {
            self.fold_lane(*lane, devices).await?;
        }
        for device in devices.iter().filter(|device| device.check().is_ok()) {
            for lane in device.lanes.values() {
                // Before anything is appended: later records would make the journal call these flushed.
                if lane.journal.trim_persisted().await.is_err() {
                    tracing::warn!(device = %device.id, "journal failed while it was trimmed");
                }
            }
        }
        Ok(())
    }

    async fn publish_lane(self: &Rc<Core>, lane: &LaneOnDevice) -> Result<(), FragmentError> {
        let recovered = lane.recovered.take();
        // Removals first: an insert is of what holds the extent at the end.
        for batch in [removals(&recovered), insertions(&recovered)] {
            for part in batch.chunks(PUBLISH_BATCH) {
                let calls = part.iter().map(|(locator_lane, request)| {
                    lane.touched.borrow_mut().insert(locator_lane(self.lane_count));
                    self.call(locator_lane(self.lane_count), request.clone())
                });
                for answer in join_all(calls).await {
                    answer?;
                }
            }
        }
        Ok(())
    }

    /// Folds all lanes on all devices that work.
    pub async fn fold_all(self: &Rc<Core>) -> Result<(), FragmentError> {
        for lane in self.indexes.keys() {
            self.fold_lane(*lane, &self.devices.all()).await?;
        }
        Ok(())
    }

    /// Folds one lane's journals on these devices, with one checkpoint of each file.
    async fn fold_lane(self: &Rc<Core>, lane: LaneId, devices: &[Rc<DeviceOnCore>]) -> Result<(), FragmentError> {
        let _one_at_a_time = self.fold_lock.lock().await;
        let mut folds: Vec<(DeviceId, &LaneOnDevice, Sequence)> = Vec::new();
        let mut touched = BTreeSet::new();
        for device in devices.iter().filter(|device| device.check().is_ok()) {
            let Some(on_device) = device.lanes.get(&lane) else { continue };
            let through = on_device.foldable();
            if through > on_device.folded.get() {
                touched.append(&mut on_device.touched.borrow_mut());
                folds.push((device.id, on_device, through));
            }
        }
        if folds.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.make_durable(lane, &folds, &touched).await {
            for (_, on_device, _) in &folds {
                on_device.touched.borrow_mut().extend(touched.iter().copied());
            }
            return Err(error);
        }
        for (_, on_device, through) in folds {
            on_device.folded.set(through);
            on_device.journal.trim(through);
            add(&self.counters.folds, 1);
        }
        Ok(())
    }

    async fn make_durable(
        self: &Rc<Core>,
        lane: LaneId,
        folds: &[(DeviceId, &LaneOnDevice, Sequence)],
        touched: &BTreeSet<LaneId>,
    ) -> Result<(), FragmentError> {
        let others = touched.iter().filter(|other| **other != lane);
        for answer in join_all(others.map(|other| self.call(*other, LaneRequest::IndexCheckpoint))).await {
            answer?;
        }
        let row = |(device, _, through): &(DeviceId, &LaneOnDevice, Sequence)| {
            write(TABLE_META, folded_key(*device), Some(through.to_le_bytes().to_vec()))
        };
        let table = self.indexes[&lane].table();
        table.write(folds.iter().map(row).collect());
        table.checkpoint().await.map_err(super::unknown)
    }

    pub fn fullest_journal(&self) -> f64 {
        let fill = |device: Rc<DeviceOnCore>| {
            let lanes = device.lanes.values();
            lanes.map(|lane| lane.journal.fill()).fold(0.0, f64::max)
        };
        self.devices.all().into_iter().map(fill).fold(0.0, f64::max)
    }
}

type Call = (Box<dyn Fn(u16) -> LaneId>, LaneRequest);

fn removals(recovered: &[Recovered]) -> Vec<Call> {
    let call = |change: &Recovered| match change {
        Recovered::Remove { key, extent } => {
            let (locator, request) = (key.locator, LaneRequest::IndexRemove { key: *key, extent: *extent });
            Some((Box::new(move |lanes| locator.index_lane(lanes)) as Box<dyn Fn(u16) -> LaneId>, request))
        }
        Recovered::Insert(_) => None,
    };
    recovered.iter().filter_map(call).collect()
}

fn insertions(recovered: &[Recovered]) -> Vec<Call> {
    let call = |change: &Recovered| match change {
        Recovered::Insert(fragment) => {
            let locator = fragment.meta.key.locator;
            let request = LaneRequest::insert(fragment.clone(), InsertMode::Recovered);
            Some((Box::new(move |lanes| locator.index_lane(lanes)) as Box<dyn Fn(u16) -> LaneId>, request))
        }
        Recovered::Remove { .. } => None,
    };
    recovered.iter().filter_map(call).collect()
}

/// Folds when a journal is half full, or after some quiet intervals; ends when nobody else holds the store.
async fn fold_forever(store: CoreFragmentStore) {
    let (ports, interval) = (store.core.ports.clone(), store.core.fold_interval);
    let weak = Rc::downgrade(&store.core);
    drop(store);
    let mut quiet = 0;
    loop {
        let kicked = {
            let Some(core) = weak.upgrade() else { return };
            let (sender, receiver) = oneshot::channel();
            *core.fold_kick.borrow_mut() = Some(sender);
            receiver
        };
        let is_pressed = weak.upgrade().is_some_and(|core| core.fullest_journal() > FILL_FOLD);
        let pause = if is_pressed { interval / PRESSED_DIVISOR } else { interval };
        select(kicked, ports.sleep(pause)).await;
        let Some(core) = weak.upgrade() else { return };
        quiet += 1;
        if quiet < IDLE_INTERVALS && core.fullest_journal() <= FILL_FOLD {
            continue;
        }
        quiet = 0;
        if let Err(error) = core.fold_all().await {
            add(&core.counters.fold_errors, 1);
            tracing::warn!(%error, "journals could not be folded; they grow until it works");
        }
    }
}
