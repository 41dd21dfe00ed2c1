//! One zone, looked through for fragments: every header, and every piece behind an intact one (I-C9).

use crate::fragment_header::{FragmentHeader, PAYLOAD_LEN_BYTES_MAX, PIECE_LEN_BYTES};
use crate::image::Image;
use crate::layout::DeviceLayout;
use kiseki_types::fragment::{FragmentMeta, StoredFragment};
use kiseki_types::limits::FRAGMENT_HEADER_BYTES;
use kiseki_types::units::Extent;
use kiseki_types::{BlockCount, BlockIndex, DeviceId};
use std::ops::Range;

/// Bytes looked at in one go: the longest fragment fits twice, so few are read again at the seams.
const WINDOW_LEN_BYTES: usize = 8 << 20;
const _: () = assert!(FRAGMENT_HEADER_BYTES + PAYLOAD_LEN_BYTES_MAX <= WINDOW_LEN_BYTES);

/// What was found at a place that starts like a fragment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub start: BlockIndex,
    /// Blocks of the whole fragment, by its header; 1 page where there is no intact header.
    pub len: BlockCount,
    /// What the header says, when it is intact.
    pub meta: Option<FragmentMeta>,
    pub state: FoundState,
}

/// How much of it is intact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FoundState {
    /// All of it.
    Intact,
    /// The header is not.
    HeaderDamaged,
    /// So many pieces are not, the first of them this one.
    PayloadDamaged { bad: usize, first: usize },
    /// By its header it would leave its zone.
    LeavesZone,
    /// The device ends inside it.
    CutOff,
}

impl Found {
    pub fn end(&self) -> BlockIndex {
        self.start.plus(self.len)
    }

    /// The fragment by its header.
    pub fn fragment(&self, device: DeviceId) -> Option<StoredFragment> {
        let meta = self.meta.clone()?;
        Some(StoredFragment { meta, extent: Extent { device, start: self.start, len: self.len } })
    }

    /// Whether it is this fragment by its header; the hint of devices does not count.
    pub fn is(&self, fragment: &StoredFragment) -> bool {
        let same = |found: &FragmentMeta| {
            let asked = &fragment.meta;
            found.key == asked.key
                && found.shape == asked.shape
                && found.payload_len_bytes == asked.payload_len_bytes
                && found.envelope_len_bytes == asked.envelope_len_bytes
        };
        self.start == fragment.extent.start && self.len == fragment.extent.len && self.meta.as_ref().is_some_and(same)
    }
}

/// What a zone holds.
pub(crate) struct ZoneScan {
    /// In order of place.
    pub found: Vec<Found>,
    /// Bytes of the device that can't be read.
    pub unreadable: Vec<Range<u64>>,
}

/// Looks through a zone; `on_bytes` hears how many bytes were done.
pub(crate) fn scan_zone(image: &Image, layout: &DeviceLayout, zone: u32, on_bytes: &dyn Fn(u64)) -> ZoneScan {
    let block_len = u64::from(layout.block_len_bytes());
    let (start, len) = layout.zone(zone);
    let (start, zone_end) = (start.0 * block_len, (start.0 + len.0) * block_len);
    let page = FRAGMENT_HEADER_BYTES as u64;
    let device_end = image.len_bytes() - image.len_bytes() % page;
    let mut scan = ZoneScan { found: Vec::new(), unreadable: Vec::new() };
    let place = Place { block_len, zone_end, device_end };
    let (mut at, mut told) = (start, start);
    while at < place.limit() {
        at = image.data_from(at).min(place.limit());
        let len = (place.limit() - at).min(WINDOW_LEN_BYTES as u64) as usize;
        let (window, unreadable) = image.read_around(at, len);
        let done = look_through(&window, at, &place, &mut scan.found);
        for range in unreadable.into_iter().filter(|range| range.start < at + done as u64) {
            match scan.unreadable.last_mut() {
                Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
                _ => scan.unreadable.push(range),
            }
        }
        at += done as u64;
        on_bytes(at - told);
        told = at;
    }
    on_bytes(zone_end - told);
    scan
}

/// Where a scan is.
struct Place {
    block_len: u64,
    zone_end: u64,
    device_end: u64,
}

impl Place {
    fn limit(&self) -> u64 {
        self.zone_end.min(self.device_end)
    }
}

/// Looks at each page of a window that starts at byte `at`; returns how much of it is done: all of it, or up to a
/// fragment that the window cuts off.
fn look_through(window: &[u8], at: u64, place: &Place, found: &mut Vec<Found>) -> usize {
    let mut here = 0;
    while here < window.len() {
        let page = &window[here..here + FRAGMENT_HEADER_BYTES];
        if !FragmentHeader::is_candidate(page) {
            here += FRAGMENT_HEADER_BYTES;
            continue;
        }
        let start = BlockIndex((at + here as u64) / place.block_len);
        let Ok(header) = FragmentHeader::decode(page) else {
            let len = BlockCount(FRAGMENT_HEADER_BYTES as u64 / place.block_len);
            found.push(Found { start, len, meta: None, state: FoundState::HeaderDamaged });
            here += FRAGMENT_HEADER_BYTES;
            continue;
        };
        let len_bytes = FRAGMENT_HEADER_BYTES + header.meta.payload_len_bytes as usize;
        let end = at + (here + len_bytes) as u64;
        let state = if end > place.zone_end {
            FoundState::LeavesZone
        } else if end > place.device_end {
            FoundState::CutOff
        } else if here + len_bytes > window.len() {
            return here; // the next window starts with it
        } else {
            judge_payload(&header, &window[here + FRAGMENT_HEADER_BYTES..here + len_bytes])
        };
        // An intact fragment holds no other one; what is behind the header of any other may be another fragment.
        here += if state == FoundState::Intact { len_bytes } else { FRAGMENT_HEADER_BYTES };
        let len = BlockCount((len_bytes as u64).div_ceil(place.block_len));
        let mut meta = header.meta;
        meta.devices = Vec::new(); // a hint, and most of the memory
        found.push(Found { start, len, meta: Some(meta), state });
    }
    here
}

fn judge_payload(header: &FragmentHeader, payload: &[u8]) -> FoundState {
    let pieces = payload.chunks(PIECE_LEN_BYTES).enumerate();
    let mut bad = pieces.filter(|(number, piece)| !header.pieces_match(*number, piece)).map(|(number, _)| number);
    match bad.next() {
        None => FoundState::Intact,
        Some(first) => FoundState::PayloadDamaged { bad: 1 + bad.count(), first },
    }
}
