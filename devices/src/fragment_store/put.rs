//! Writing a fragment: data and journal record side by side, one shared flush, then the index.

use super::{Core, DeviceOnCore, LaneRequest, LaneResponse, add};
use crate::device_times::DeviceStep;
use crate::fragment_header::{FragmentHeader, check_meta};
use crate::index::{InsertMode, TABLE_EXTENTS, encode_row, extent_row_key, write};
use crate::lane::{LaneOnDevice, LaneRecord, share};
use crate::space::{HYSTERESIS_PERMILLE, PutPurpose};
use bytes::Bytes;
use futures::channel::oneshot;
use futures::future::join;
use kiseki_types::buf::IoBytes;
use kiseki_types::fragment::{FragmentError, FragmentMeta, StoredFragment};
use kiseki_types::journal::{Journal, JournalError, Sequence};
use kiseki_types::limits::{DEVICE_BLOCK_BYTES_MAX, FRAGMENT_HEADER_BYTES};
use kiseki_types::runtime::LocalBoxFuture;
use kiseki_types::units::Extent;
use kiseki_types::{BlockCount, DeviceId, LaneId, PoolId};
use std::rc::Rc;

/// A put waits while a journal is fuller than this; the rest is kept for releases (I-C5).
const JOURNAL_FILL_MAX_PUT: f64 = 0.75;

/// From this fill on a journal is folded at once.
const JOURNAL_FILL_FOLD: f64 = 0.5;

/// Where a put may find room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PutScope {
    /// In any lane of the node.
    AllLanes,
    /// In the lanes of this core: another core asks.
    OwnLanes,
}

impl Core {
    /// Runs the put in a task of its own: dropping the future must not leave an extent half accounted for.
    pub fn start_put(
        self: Rc<Core>,
        device: DeviceId,
        meta: FragmentMeta,
        payload: Vec<IoBytes>,
        purpose: PutPurpose,
        scope: PutScope,
    ) -> LocalBoxFuture<'static, Result<Extent, FragmentError>> {
        check_meta(&meta).expect("the engine makes possible fragments");
        let len: usize = payload.iter().map(|part| part.len()).sum();
        assert_eq!(len, meta.payload_len_bytes as usize, "the payload is as long as its meta says");
        let (sender, receiver) = oneshot::channel();
        let core = self.clone();
        let task = async move {
            let mut result = core.put(device, meta.clone(), payload.clone(), purpose).await;
            if scope == PutScope::AllLanes && result.as_ref().is_err_and(FragmentError::is_space) {
                result = core.put_elsewhere(device, meta, payload, purpose, result).await;
            }
            if let Err(FragmentError::PoolCritical { pool, .. }) = &result {
                core.critical_pools.borrow_mut().insert(*pool);
            }
            match &result {
                Ok(_) => {
                    add(&core.counters.puts, 1);
                    add(&core.counters.put_bytes, len as u64);
                }
                Err(_) => add(&core.counters.puts_failed, 1),
            }
            let _ = sender.send(result);
        };
        self.ports.spawn("put fragment", Box::pin(task));
        Box::pin(async move { receiver.await.unwrap_or_else(|_| Err(stopping())) })
    }

    async fn put(
        self: &Rc<Core>,
        device: DeviceId,
        meta: FragmentMeta,
        payload: Vec<IoBytes>,
        purpose: PutPurpose,
    ) -> Result<Extent, FragmentError> {
        let (device, began) = (self.device(device)?, self.ports.now());
        self.check_published()?;
        let payload_len = u64::from(meta.payload_len_bytes);
        let block = device.layout.block_len_bytes();
        let len = BlockCount::holding((FRAGMENT_HEADER_BYTES + meta.payload_len_bytes as usize) as u64, block);
        let (lane, extent) = self.room(&device, len, purpose).await?;
        let header = FragmentHeader::of(meta, &payload);
        let fragment = StoredFragment { meta: header.meta.clone(), extent };
        let mut parts = vec![header.encode(&self.buffers).freeze()];
        parts.extend(self.aligned(payload));
        let record = LaneRecord::Allocate(fragment.clone());
        let coming = device.gate.coming();
        let sequence = match self.append(lane, &record, JOURNAL_FILL_MAX_PUT).await {
            Ok(sequence) => sequence,
            Err(_) => return Err(device.fenced_error()),
        };
        device.check()?;
        let writing = self.ports.now();
        let data = device.device.write(extent.start, parts);
        let (data, record) = join(data, lane.journal.written(sequence)).await;
        let written = self.ports.now().since(writing);
        if let Err(error) = data {
            device.gate.fence(&format!("write failed: {error}"));
        }
        drop(coming);
        // One flush, submitted after both writes have completed, covers both.
        if record.is_err() || device.check().is_err() || lane.journal.flush_now().await.is_err() {
            return Err(device.fenced_error());
        }
        self.keep_row(lane, &fragment);
        device.times.record(DeviceStep::Write, written);
        device.note_write(payload_len, self.ports.now().since(began));
        self.publish(&device, lane, fragment, sequence).await?;
        Ok(extent)
    }

    /// Asks the cores of the other lanes: the pool is full only when all lanes are (I-C5), and a client that talks to
    /// one core uses the lanes of that core alone.
    async fn put_elsewhere(
        self: &Rc<Core>,
        device: DeviceId,
        meta: FragmentMeta,
        payload: Vec<IoBytes>,
        purpose: PutPurpose,
        mut full: Result<Extent, FragmentError>,
    ) -> Result<Extent, FragmentError> {
        let payload = Bytes::from(payload.iter().flat_map(|part| part.iter().copied()).collect::<Vec<u8>>());
        for lane in (0..self.lane_count).map(LaneId).filter(|lane| !self.indexes.contains_key(lane)) {
            let request = LaneRequest::Put { device, meta: meta.clone(), payload: payload.clone(), purpose };
            match self.call(lane, request).await {
                Ok(LaneResponse::Stored(extent)) => {
                    add(&self.counters.puts_forwarded, 1);
                    return Ok(extent);
                }
                Ok(other) => {
                    return Err(FragmentError::Unknown { reason: format!("lane {lane} answered {other:?}") });
                }
                Err(error) if error.is_space() => full = Err(error),
                Err(error) => return Err(error),
            }
        }
        full
    }

    /// Tells the index lane; takes the fragment back when the device holds another one of its generation (I-D4).
    async fn publish(
        self: &Rc<Core>,
        device: &DeviceOnCore,
        lane: &LaneOnDevice,
        fragment: StoredFragment,
        sequence: Sequence,
    ) -> Result<(), FragmentError> {
        let index_lane = self.index_lane(fragment.meta.key.locator);
        let insert = LaneRequest::insert(fragment.clone(), InsertMode::New);
        match self.call(index_lane, insert).await {
            Ok(_) => {
                lane.delivered(sequence, index_lane);
                // A device that was fenced meanwhile is not trusted with what it just acknowledged.
                device.check()
            }
            Err(refused @ FragmentError::SecondOfStripe { .. }) => {
                lane.delivered(sequence, index_lane);
                self.clone().release_own(fragment).await?;
                Err(refused)
            }
            // The index lane is gone: the record stays undelivered, and the next start delivers it.
            Err(error) => Err(error),
        }
    }

    pub fn check_published(&self) -> Result<(), FragmentError> {
        if self.is_published.get() {
            return Ok(());
        }
        Err(FragmentError::Unknown { reason: "the store is starting; its journals are not replayed yet".to_string() })
    }

    /// An extent; when only a discard under way stands in its way, waits for that: it is no reason to refuse anybody.
    async fn room<'a>(
        &self,
        device: &'a DeviceOnCore,
        len: BlockCount,
        purpose: PutPurpose,
    ) -> Result<(&'a LaneOnDevice, Extent), FragmentError> {
        loop {
            let error = match self.allocate(device, len, purpose) {
                Ok(found) => return Ok(found),
                Err(error) => error,
            };
            let discard = device.lanes.values().find_map(|lane| lane.discard_ended(len, &device.space.fill));
            match discard {
                Some(ended) if matches!(error, FragmentError::Full { .. }) => drop(ended.await),
                _ => return Err(error),
            }
            device.check()?;
        }
    }

    /// I-C5: what a pool has left beyond its critical fill is for repair. Each core sees to its own lanes, so the pool
    /// refuses when all cores do.
    fn check_critical(&self, pool: PoolId, len: BlockCount) -> Result<(), FragmentError> {
        let (used, limit, critical_percent) = self.critical_fill(pool);
        if used + len.0 > limit { Err(FragmentError::PoolCritical { pool, critical_percent }) } else { Ok(()) }
    }

    /// Forgets that clients were refused, where the fill is clearly below by now.
    pub(super) fn leave_critical(&self) {
        self.critical_pools.borrow_mut().retain(|pool| {
            let (used, limit, critical_percent) = self.critical_fill(*pool);
            let below = u64::from(critical_percent) * 10 - HYSTERESIS_PERMILLE.min(u64::from(critical_percent) * 10);
            u128::from(used) * u128::from(critical_percent) * 10 >= u128::from(limit) * u128::from(below)
        });
    }

    /// (blocks used, blocks at the critical fill, that fill in percent) of a pool in the lanes of this core.
    fn critical_fill(&self, pool: PoolId) -> (u64, u64, u8) {
        let (mut used, mut limit, mut critical_percent) = (0, 0, 100);
        let devices = self.devices.all();
        let counts =
            |device: &&Rc<DeviceOnCore>| device.pool == pool && device.is_admitted.get() && device.check().is_ok();
        for device in devices.iter().filter(counts) {
            critical_percent = critical_percent.min(device.space.fill.critical_percent);
            for (of_lane, total) in device.lanes.values().map(LaneOnDevice::used_of_total) {
                used += of_lane;
                limit += share(total, device.space.fill.critical_percent);
            }
        }
        (used, limit, critical_percent)
    }

    /// An extent in one of the core's lanes, in turn; `Full` when none has room above its reserve.
    fn allocate<'a>(
        &self,
        device: &'a DeviceOnCore,
        len: BlockCount,
        purpose: PutPurpose,
    ) -> Result<(&'a LaneOnDevice, Extent), FragmentError> {
        if purpose == PutPurpose::Client {
            self.check_critical(device.pool, len)?;
        }
        let turn = self.turn.replace(self.turn.get().wrapping_add(1));
        let count = device.lanes.len().max(1);
        let lanes = device.lanes.values().cycle().skip(turn % count).take(device.lanes.len());
        for lane in lanes {
            if let Some(start) = lane.allocate(len, &device.space.fill) {
                return Ok((lane, Extent { device: device.id, start, len }));
            }
        }
        let needed_bytes = len.0 * u64::from(device.layout.block_len_bytes());
        Err(FragmentError::Full { device: device.id, needed_bytes })
    }

    /// Queues a record; while the journal is fuller than `fill_max` or has no room, folds it and waits.
    pub async fn append(
        &self,
        lane: &LaneOnDevice,
        record: &LaneRecord,
        fill_max: f64,
    ) -> Result<Sequence, JournalError> {
        loop {
            let fill = lane.journal.fill();
            if fill > JOURNAL_FILL_FOLD {
                self.kick_fold();
            }
            if fill > fill_max {
                lane.journal.room(fill_max).await?;
                continue;
            }
            match lane.append(record) {
                Err(JournalError::Full { .. }) => {
                    self.kick_fold();
                    // until anything at all is given back
                    lane.journal.room(lane.journal.fill() - f64::EPSILON).await?;
                }
                result => return result,
            }
        }
    }

    /// The allocation's row; only after its record is flushed, since the table may become durable at any time.
    fn keep_row(&self, lane: &LaneOnDevice, fragment: &StoredFragment) {
        let key = extent_row_key(fragment.extent.device, fragment.extent.start);
        let row = write(TABLE_EXTENTS, key, Some(encode_row(fragment)));
        self.indexes[&lane.lane].table().write(vec![row]);
    }

    /// The payload in parts that a device takes: what is not aligned is copied into one that is.
    fn aligned(&self, payload: Vec<IoBytes>) -> Vec<IoBytes> {
        let fits = |part: &IoBytes| {
            part.len().is_multiple_of(DEVICE_BLOCK_BYTES_MAX) && part.as_ptr().align_offset(DEVICE_BLOCK_BYTES_MAX) == 0
        };
        if payload.iter().all(fits) {
            return payload;
        }
        add(&self.counters.parts_copied, payload.len() as u64);
        let mut whole = (self.buffers)(payload.iter().map(|part| part.len()).sum());
        let mut at = 0;
        for part in &payload {
            whole[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        vec![whole.freeze()]
    }
}

/// The executor is ending: the task that was to answer is gone.
pub(super) fn stopping() -> FragmentError {
    FragmentError::Unknown { reason: "the node is stopping".to_string() }
}
