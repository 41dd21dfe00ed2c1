//! Giving a fragment's extent back: a flushed record, the index row, the end of its reads, and only then reuse (I-C8).

use super::put::stopping;
use super::{Core, DeviceOnCore, LaneRequest, add};
use crate::index::{TABLE_EXTENTS, decode_row, extent_row_key, write};
use crate::lane::{LaneOnDevice, LaneRecord};
use futures::channel::oneshot;
use futures::future::join_all;
use kiseki_types::LaneId;
use kiseki_types::fragment::{FragmentError, StoredFragment};
use kiseki_types::journal::Journal;
use kiseki_types::runtime::LocalBoxFuture;
use kiseki_types::units::Extent;
use std::rc::Rc;

/// A release may use all of a journal.
const JOURNAL_FILL_MAX_RELEASE: f64 = 1.0;

impl Core {
    /// Asks the lane that allocated the extent. Runs in a task of its own: a release that began is ended.
    pub fn start_release(
        self: Rc<Core>,
        fragment: StoredFragment,
    ) -> LocalBoxFuture<'static, Result<(), FragmentError>> {
        let (sender, receiver) = oneshot::channel();
        let core = self.clone();
        let task = async move {
            let _ = sender.send(core.release(fragment).await);
        };
        self.ports.spawn("release fragment", Box::pin(task));
        Box::pin(async move { receiver.await.unwrap_or_else(|_| Err(stopping())) })
    }

    async fn release(self: &Rc<Core>, fragment: StoredFragment) -> Result<(), FragmentError> {
        let device = self.device(fragment.extent.device)?;
        let Some(zone) = device.layout.zone_of(fragment.extent.start) else { return Ok(()) };
        let lane = device.layout.lane_of_zone(zone);
        self.call(lane, LaneRequest::ReleaseExtent { fragment }).await.map(|_| ())
    }

    /// Releases a fragment that a lane of this core allocated.
    pub async fn release_own(self: Rc<Core>, fragment: StoredFragment) -> Result<(), FragmentError> {
        let device = self.device(fragment.extent.device)?;
        self.check_published()?;
        let zone = device.layout.zone_of(fragment.extent.start);
        let lane = zone.and_then(|zone| device.lanes.get(&device.layout.lane_of_zone(zone)));
        let Some(lane) = lane else { return Ok(()) };
        let start = fragment.extent.start;
        let joined = lane.releasing.borrow_mut().get_mut(&start.0).map(|waiters| {
            let (sender, receiver) = oneshot::channel();
            waiters.push(sender);
            receiver
        });
        if let Some(other) = joined {
            return other.await.unwrap_or_else(|_| Err(stopping()));
        }
        if lane.zones.borrow().used_at(start) != Some(fragment.extent.len) {
            return self.forget(&fragment).await;
        }
        lane.releasing.borrow_mut().insert(start.0, Vec::new());
        let result = self.release_used(&device, lane, &fragment).await;
        let waiters = lane.releasing.borrow_mut().remove(&start.0);
        let answer = result.clone().map(|_| ());
        for waiter in waiters.into_iter().flatten() {
            let _ = waiter.send(answer.clone());
        }
        if result == Ok(true) {
            let (core, device) = (self.clone(), device.clone());
            let task = async move { core.reuse(&device, fragment.extent).await };
            self.ports.spawn("reuse extent", Box::pin(task));
        }
        answer
    }

    /// Whether the extent held the fragment and its release is durable now.
    async fn release_used(
        self: &Rc<Core>,
        device: &DeviceOnCore,
        lane: &LaneOnDevice,
        fragment: &StoredFragment,
    ) -> Result<bool, FragmentError> {
        let table = self.indexes[&lane.lane].table().clone();
        let row_key = extent_row_key(fragment.extent.device, fragment.extent.start);
        let row = table.get(0, TABLE_EXTENTS, &row_key).await.map_err(super::unknown)?;
        let held = row.and_then(|value| decode_row(device.id, &value).ok());
        if held.is_none_or(|held| held.meta.key != fragment.meta.key) {
            self.forget(fragment).await?; // the extent holds another fragment by now, or is being written
            return Ok(false);
        }
        let record = LaneRecord::Release { key: fragment.meta.key, extent: fragment.extent };
        let sequence = match self.append(lane, &record, JOURNAL_FILL_MAX_RELEASE).await {
            Ok(sequence) => sequence,
            Err(_) => return Err(device.fenced_error()),
        };
        if lane.journal.flushed(sequence).await.is_err() {
            return Err(device.fenced_error());
        }
        table.write(vec![write(TABLE_EXTENTS, row_key, None)]);
        self.forget(fragment).await?;
        lane.delivered(sequence, self.index_lane(fragment.meta.key.locator));
        add(&self.counters.releases, 1);
        Ok(true)
    }

    /// Takes the fragment out of the index.
    pub async fn forget(self: &Rc<Core>, fragment: &StoredFragment) -> Result<(), FragmentError> {
        let (key, extent) = (fragment.meta.key, fragment.extent);
        self.call(self.index_lane(key.locator), LaneRequest::IndexRemove { key, extent }).await.map(|_| ())
    }

    /// Frees the extent when reads of it have ended on every core. A core that does not answer may still read: then
    /// the extent stays out of use until the next start. It is freed where it was released, on the device as it was
    /// opened then: one that left and came back meanwhile has replayed the release.
    async fn reuse(self: Rc<Core>, device: &DeviceOnCore, extent: Extent) {
        self.pins.ended(extent).await;
        let others = (0..self.lane_count).map(LaneId).filter(|lane| !self.indexes.contains_key(lane));
        let ended = others.map(|lane| self.link.call(lane, LaneRequest::AwaitReads { extent }));
        let all_ended = join_all(ended).await.iter().all(Result::is_ok);
        if all_ended {
            let zone = device.layout.zone_of(extent.start).expect("a used extent lies in a zone");
            let lane = &device.lanes[&device.layout.lane_of_zone(zone)];
            lane.zones.borrow_mut().free(extent.start, extent.len);
        }
    }
}
