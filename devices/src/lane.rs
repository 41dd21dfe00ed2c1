//! One lane on one device, as its core holds it: zones, journal, and what of the journal is not delivered yet.

use crate::fragment_header::{decode_meta, encode_meta};
use crate::journal::{JournalId, LaneJournal};
use crate::space::FillLevels;
use crate::zones::Zones;
use futures::channel::oneshot;
use kiseki_types::codec::{CodecError, Reader, Writer};
use kiseki_types::fragment::{FragmentError, FragmentKey, StoredFragment};
use kiseki_types::journal::{Journal, Sequence};
use kiseki_types::units::Extent;
use kiseki_types::{BlockCount, BlockIndex, DeviceId, Generation, LaneId, Locator};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// One part in so many of a lane's zones is never given to new fragments (I-C5): what keeps a full device working.
pub const RESERVE_DIVISOR: u64 = 64;

/// The journal of a lane on a device: the device's id, which is random, with the lane mixed in.
#[must_use]
pub fn lane_journal_id(device: DeviceId, lane: LaneId) -> JournalId {
    let mut id = device.0;
    id[14] ^= lane.0.to_le_bytes()[0];
    id[15] ^= lane.0.to_le_bytes()[1];
    JournalId(id)
}

const KIND_ALLOCATE: u8 = 1;
const KIND_RELEASE: u8 = 2;

/// A record in the journal of a lane on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LaneRecord {
    /// The extent holds this fragment from now on.
    Allocate(StoredFragment),
    /// The extent is free.
    Release { key: FragmentKey, extent: Extent },
}

impl LaneRecord {
    pub fn extent(&self) -> Extent {
        match self {
            LaneRecord::Allocate(fragment) => fragment.extent,
            LaneRecord::Release { extent, .. } => *extent,
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        let extent = self.extent();
        match self {
            LaneRecord::Allocate(fragment) => {
                writer.u8(KIND_ALLOCATE).u64(extent.start.0).u64(extent.len.0);
                encode_meta(&fragment.meta, &mut writer);
            }
            LaneRecord::Release { key, .. } => {
                writer.u8(KIND_RELEASE).u64(extent.start.0).u64(extent.len.0);
                writer.raw(&key.locator.0).u64(key.generation.0).u8(key.index);
            }
        }
        writer.finish()
    }

    pub fn decode(device: DeviceId, bytes: &[u8]) -> Result<LaneRecord, CodecError> {
        let mut reader = Reader::new("lane record", bytes);
        let kind = reader.u8()?;
        let extent = Extent { device, start: BlockIndex(reader.u64()?), len: BlockCount(reader.u64()?) };
        if extent.len.0 == 0 || extent.start.0.checked_add(extent.len.0).is_none() {
            return Err(reader.unknown(extent.len.0));
        }
        let record = match kind {
            KIND_ALLOCATE => LaneRecord::Allocate(StoredFragment { meta: decode_meta(&mut reader)?, extent }),
            KIND_RELEASE => {
                let locator = Locator(reader.array()?);
                let generation = Generation(reader.u64()?);
                LaneRecord::Release { key: FragmentKey { locator, generation, index: reader.u8()? }, extent }
            }
            other => return Err(reader.unknown(u64::from(other))),
        };
        reader.end()?;
        Ok(record)
    }
}

/// What a replay found that index lanes must hear of, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Recovered {
    /// The fragment is there.
    Insert(StoredFragment),
    /// The fragment is not there any more.
    Remove { key: FragmentKey, extent: Extent },
}

/// Those who wait for a release that another call started.
type ReleaseWaiters = Vec<oneshot::Sender<Result<(), FragmentError>>>;

/// One lane on one device.
pub(crate) struct LaneOnDevice {
    pub lane: LaneId,
    pub zones: RefCell<Zones>,
    pub journal: Rc<LaneJournal>,
    /// Records whose index lane has not heard of them: the journal is not folded past the first of them.
    undelivered: RefCell<BTreeSet<Sequence>>,
    /// Index lanes that heard something since their last checkpoint.
    pub touched: RefCell<BTreeSet<LaneId>>,
    /// Everything up to here is durable in the tables.
    pub folded: Cell<Sequence>,
    /// Releases under way, by first block.
    pub releasing: RefCell<BTreeMap<u64, ReleaseWaiters>>,
    /// What a replay found and nobody has heard of yet.
    pub recovered: RefCell<Vec<Recovered>>,
    /// Those who found no room and wait for the end of a discard.
    discard_waiters: RefCell<Vec<oneshot::Sender<()>>>,
    /// A discard failed: the device may still carry it out, so its run stays out of use.
    has_discard_in_doubt: Cell<bool>,
}

impl LaneOnDevice {
    pub fn new(
        lane: LaneId,
        zones: Zones,
        journal: Rc<LaneJournal>,
        folded: Sequence,
        recovered: Vec<Recovered>,
    ) -> LaneOnDevice {
        LaneOnDevice {
            lane,
            zones: RefCell::new(zones),
            journal,
            undelivered: RefCell::default(),
            touched: RefCell::default(),
            folded: Cell::new(folded),
            releasing: RefCell::default(),
            recovered: RefCell::new(recovered),
            discard_waiters: RefCell::default(),
            has_discard_in_doubt: Cell::new(false),
        }
    }

    /// Blocks that new fragments can use.
    pub fn free_blocks(&self) -> u64 {
        let zones = self.zones.borrow();
        zones.free_blocks().0.saturating_sub(reserve_blocks(zones.total_blocks()))
    }

    /// Extents in use, those that are being written or given back included.
    pub fn used_count(&self) -> u64 {
        self.zones.borrow().used_count()
    }

    /// Blocks of those.
    pub fn used_blocks(&self) -> u64 {
        self.used_of_total().0
    }

    /// (blocks that extents hold, blocks in all).
    pub fn used_of_total(&self) -> (u64, u64) {
        let zones = self.zones.borrow();
        (zones.total_blocks().0 - zones.free_blocks().0, zones.total_blocks().0)
    }

    /// Takes an extent for a new fragment, leaving alone the reserve and what lies beyond the read-only level (I-C5).
    pub fn allocate(&self, len: BlockCount, fill: &FillLevels) -> Option<BlockIndex> {
        if !self.has_room(len, fill) {
            return None;
        }
        self.zones.borrow_mut().allocate(len)
    }

    fn has_room(&self, len: BlockCount, fill: &FillLevels) -> bool {
        let (used, total) = self.used_of_total();
        self.free_blocks() >= len.0 && used + len.0 <= share(total, fill.read_only_percent)
    }

    /// When there would be room but for a discard under way: the end of that. One in doubt has none.
    pub fn discard_ended(&self, len: BlockCount, fill: &FillLevels) -> Option<oneshot::Receiver<()>> {
        let is_under_way = self.zones.borrow().discarding_blocks().0 > 0 && !self.has_discard_in_doubt.get();
        if !is_under_way || !self.has_room(len, fill) {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        self.discard_waiters.borrow_mut().push(sender);
        Some(receiver)
    }

    /// A discard is done: the run may be given out again.
    pub fn discarded(&self, start: BlockIndex, len: BlockCount) {
        self.zones.borrow_mut().discarded(start, len);
        self.wake_discard_waiters();
    }

    /// A discard failed, the lane's last one until the device is opened again: nobody knows whether and when the device
    /// does it, so the run is given to nobody (I-C8).
    pub fn discard_in_doubt(&self) {
        self.has_discard_in_doubt.set(true);
        self.wake_discard_waiters();
    }

    fn wake_discard_waiters(&self) {
        for waiter in self.discard_waiters.take() {
            let _not_waited_for = waiter.send(());
        }
    }

    /// Queues a record that index lanes must hear of.
    pub fn append(&self, record: &LaneRecord) -> Result<Sequence, kiseki_types::journal::JournalError> {
        let sequence = self.journal.append(&record.encode())?;
        self.undelivered.borrow_mut().insert(sequence);
        Ok(sequence)
    }

    /// The index lane has heard of a record.
    pub fn delivered(&self, sequence: Sequence, index_lane: LaneId) {
        self.touched.borrow_mut().insert(index_lane);
        self.undelivered.borrow_mut().remove(&sequence);
    }

    /// Through where the journal can be folded now: all flushed, in the tables, and delivered.
    pub fn foldable(&self) -> Sequence {
        let first_undelivered = self.undelivered.borrow().first().copied();
        let flushed = self.journal.flushed_through();
        first_undelivered.map_or(flushed, |first| flushed.min(first - 1))
    }
}

/// `percent` of the blocks.
pub(crate) fn share(blocks: u64, percent: u8) -> u64 {
    (u128::from(blocks) * u128::from(percent) / 100) as u64
}

/// Blocks that new fragments leave alone.
pub(crate) fn reserve_blocks(total: BlockCount) -> u64 {
    total.0 / RESERVE_DIVISOR
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiseki_types::fragment::{FragmentMeta, StripeShape};
    use kiseki_types::{MapEpoch, PoolId};

    #[test]
    fn records_read_back_and_truncations_are_errors() {
        let device = DeviceId([3; 16]);
        let extent = Extent { device, start: BlockIndex(7), len: BlockCount(3) };
        let key = FragmentKey { locator: Locator([1; 32]), generation: Generation(2), index: 1 };
        let meta = FragmentMeta {
            key,
            shape: StripeShape { data: 2, parity: 1 },
            pool: PoolId(1),
            envelope_len_bytes: 9000,
            payload_len_bytes: 8192,
            map_epoch: MapEpoch(4),
            devices: Vec::new(),
        };
        for record in [LaneRecord::Allocate(StoredFragment { meta, extent }), LaneRecord::Release { key, extent }] {
            let bytes = record.encode();
            assert_eq!(LaneRecord::decode(device, &bytes), Ok(record));
            for len in 0..bytes.len() {
                assert!(LaneRecord::decode(device, &bytes[..len]).is_err(), "cut to {len}");
            }
        }
        assert_ne!(lane_journal_id(device, LaneId(0)), lane_journal_id(device, LaneId(1)));
    }
}
