//! Reading part of a fragment: header and pieces, both checked, and the extent kept from reuse meanwhile.

use super::{Core, DeviceOnCore, LaneRequest, LaneResponse, add};
use crate::device_times::DeviceStep;
use crate::fragment_header::{FragmentHeader, PIECE_LEN_BYTES, piece_range};
use futures::channel::oneshot;
use futures::future::join;
use kiseki_types::buf::{BufferSource, IoBytes};
use kiseki_types::fragment::{FragmentError, StoredFragment};
use kiseki_types::limits::FRAGMENT_HEADER_BYTES;
use kiseki_types::runtime::LocalBoxFuture;
use kiseki_types::units::Extent;
use kiseki_types::{BlockCount, BlockIndex, DeviceId};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::rc::Rc;

/// Up to so many payload bytes between header and range are read along; beyond, two reads run side by side.
pub const READ_GAP_BYTES_MAX: usize = 64 * 1024;

#[derive(Default)]
struct Pinned {
    reads: u64,
    waiting: Vec<oneshot::Sender<()>>,
}

/// Reads under way on this core, by extent: a released extent is reused only when they have ended.
#[derive(Clone, Default)]
pub(crate) struct ReadPins {
    pinned: Rc<RefCell<BTreeMap<(DeviceId, BlockIndex), Pinned>>>,
}

/// Keeps an extent from being reused.
pub(crate) struct ReadPin {
    pins: ReadPins,
    at: (DeviceId, BlockIndex),
}

impl ReadPins {
    pub fn pin(&self, extent: Extent) -> ReadPin {
        let at = (extent.device, extent.start);
        self.pinned.borrow_mut().entry(at).or_default().reads += 1;
        ReadPin { pins: self.clone(), at }
    }

    /// Waits until no read of the extent is under way here. Reads that start later find the index row gone.
    pub async fn ended(&self, extent: Extent) {
        let waiting = match self.pinned.borrow_mut().get_mut(&(extent.device, extent.start)) {
            None => return,
            Some(pinned) => {
                let (sender, receiver) = oneshot::channel();
                pinned.waiting.push(sender);
                receiver
            }
        };
        let _ = waiting.await;
    }
}

impl Drop for ReadPin {
    fn drop(&mut self) {
        let mut pinned = self.pins.pinned.borrow_mut();
        let entry = pinned.get_mut(&self.at).expect("a pin is counted");
        entry.reads -= 1;
        if entry.reads == 0 {
            pinned.remove(&self.at); // its waiters are dropped with it, which wakes them
        }
    }
}

impl Core {
    pub fn start_read(
        self: Rc<Core>,
        fragment: StoredFragment,
        range: Range<u32>,
    ) -> LocalBoxFuture<'static, Result<IoBytes, FragmentError>> {
        let payload = fragment.meta.payload_len_bytes;
        assert!(range.start <= range.end && range.end <= payload, "range {range:?} of a payload of {payload} bytes");
        Box::pin(async move { self.read(&fragment, range).await })
    }

    async fn read(self: &Rc<Core>, fragment: &StoredFragment, range: Range<u32>) -> Result<IoBytes, FragmentError> {
        let device = self.device(fragment.extent.device)?;
        if device.layout.zone_of(fragment.extent.start).is_none() {
            return Err(self.corrupt(fragment)); // a damaged index row
        }
        let (pieces, began) = (piece_range(&range, fragment.meta.payload_len_bytes), self.ports.now());
        let read = {
            let _pin = self.pins.pin(fragment.extent);
            read_pieces(&self.buffers, &device, fragment.extent, pieces.clone()).await
        };
        let took = self.ports.now().since(began);
        let (header, bytes) = match read {
            Ok(read) => read,
            Err(error) => {
                // One unreadable block is no reason to give up the device: the fragment is rebuilt elsewhere.
                add(&self.counters.read_errors, 1);
                add(&device.read_errors, 1);
                tracing::warn!(device = %device.id, extent = %fragment.extent, %error, "read failed");
                device.check()?;
                return Err(self.corrupt(fragment));
            }
        };
        let intact = FragmentHeader::decode(&header).is_ok_and(|header| {
            is_fragment(&header, fragment) && header.pieces_match(pieces.start / PIECE_LEN_BYTES, &bytes)
        });
        if !intact {
            return Err(self.mismatch(fragment).await);
        }
        add(&self.counters.reads, 1);
        add(&self.counters.read_bytes, u64::from(range.end - range.start));
        device.times.record(DeviceStep::Read, took);
        device.note_read(u64::from(range.end - range.start), self.ports.now().since(began));
        Ok(bytes.slice(range.start as usize - pieces.start..range.end as usize - pieces.start))
    }

    /// A fragment that was released while it was read is not corrupt: it is gone.
    async fn mismatch(self: &Rc<Core>, fragment: &StoredFragment) -> FragmentError {
        let key = &fragment.meta.key;
        let lookup = LaneRequest::IndexLookup { locator: key.locator, generation: key.generation };
        match self.call(self.index_lane(key.locator), lookup).await {
            Ok(LaneResponse::Found(rows)) if !rows.iter().any(|row| row.extent == fragment.extent) => {
                FragmentError::Unknown { reason: "the fragment was released while it was read".to_string() }
            }
            _ => self.corrupt(fragment),
        }
    }

    fn corrupt(&self, fragment: &StoredFragment) -> FragmentError {
        add(&self.counters.corrupt, 1);
        let key = &fragment.meta.key;
        FragmentError::Corrupt { locator: key.locator, index: key.index, extent: fragment.extent }
    }
}

/// Whether a header is the one of `fragment` (I-C9); the hint of devices does not count.
pub(crate) fn is_fragment(header: &FragmentHeader, fragment: &StoredFragment) -> bool {
    let (found, asked) = (&header.meta, &fragment.meta);
    found.key == asked.key
        && found.shape == asked.shape
        && found.payload_len_bytes == asked.payload_len_bytes
        && found.envelope_len_bytes == asked.envelope_len_bytes
}

/// Header block and the payload bytes of `pieces`: in one read when they are near each other.
async fn read_pieces(
    buffers: &BufferSource,
    device: &DeviceOnCore,
    extent: Extent,
    pieces: Range<usize>,
) -> io::Result<(IoBytes, IoBytes)> {
    let block = device.layout.block_len_bytes();
    let at = |payload_offset: usize| {
        let bytes = (FRAGMENT_HEADER_BYTES + payload_offset) as u64;
        extent.start.plus(BlockCount(bytes / u64::from(block)))
    };
    if pieces.start <= READ_GAP_BYTES_MAX {
        let whole = device.device.read(extent.start, buffers(FRAGMENT_HEADER_BYTES + pieces.end)).await?.freeze();
        let header = whole.slice(0..FRAGMENT_HEADER_BYTES);
        return Ok((header, whole.slice(FRAGMENT_HEADER_BYTES + pieces.start..FRAGMENT_HEADER_BYTES + pieces.end)));
    }
    let header = device.device.read(extent.start, buffers(FRAGMENT_HEADER_BYTES));
    let bytes = device.device.read(at(pieces.start), buffers(pieces.len()));
    let (header, bytes) = join(header, bytes).await;
    Ok((header?.freeze(), bytes?.freeze()))
}
