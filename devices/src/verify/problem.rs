//! What can be wrong with a device, each with a name for scripts and what it means for its operator.

use crate::layout::DeviceLayout;
use kiseki_types::{BlockIndex, LaneId};
use std::fmt;
use std::ops::Range;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum ProblemKind {
    /// No superblock of ours was ever written, or all were overwritten.
    NotFormatted,
    /// A later release wrote it.
    FormatTooNew,
    /// There was a superblock, and no copy verifies.
    SuperblockLost,
    /// One copy does not verify.
    SuperblockDamaged,
    /// One copy verifies and is another device's.
    SuperblockForeign,
    /// One copy is older than a crash can leave it.
    SuperblockStale,
    /// The device is shorter than when it was formatted.
    DeviceShrunk,
    /// Blocks can't be read.
    Unreadable,
    /// A lane's journal was never written.
    JournalMissing,
    /// A lane's journal is another one.
    JournalForeign,
    /// A lane's journal breaks below what was flushed, or can't be followed at all.
    JournalDamaged,
    /// The last frame of a lane's journal rotted: it looks as if a crash had cut it off, and no crash did.
    JournalTail,
    /// A record in a journal makes no sense.
    JournalRecord,
    /// Two used extents overlap.
    ExtentsOverlap,
    /// A used extent carries no fragment.
    FragmentMissing,
    /// A used extent carries another fragment.
    FragmentOther,
    /// The header of a fragment is damaged.
    FragmentHeader,
    /// A piece of a fragment's payload is damaged.
    FragmentPayload,
    /// A fragment leaves its zone.
    FragmentOutside,
    /// Two used fragments of one stripe lie on the device (I-D4).
    SecondOfStripe,
}

impl ProblemKind {
    /// All of them, for documentation and tests.
    pub const ALL: [ProblemKind; 20] = [
        ProblemKind::NotFormatted,
        ProblemKind::FormatTooNew,
        ProblemKind::SuperblockLost,
        ProblemKind::SuperblockDamaged,
        ProblemKind::SuperblockForeign,
        ProblemKind::SuperblockStale,
        ProblemKind::DeviceShrunk,
        ProblemKind::Unreadable,
        ProblemKind::JournalMissing,
        ProblemKind::JournalForeign,
        ProblemKind::JournalDamaged,
        ProblemKind::JournalTail,
        ProblemKind::JournalRecord,
        ProblemKind::ExtentsOverlap,
        ProblemKind::FragmentMissing,
        ProblemKind::FragmentOther,
        ProblemKind::FragmentHeader,
        ProblemKind::FragmentPayload,
        ProblemKind::FragmentOutside,
        ProblemKind::SecondOfStripe,
    ];

    /// Its name in JSON and messages; never changed once it is released.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            ProblemKind::NotFormatted => "not-formatted",
            ProblemKind::FormatTooNew => "format-too-new",
            ProblemKind::SuperblockLost => "superblock-lost",
            ProblemKind::SuperblockDamaged => "superblock-damaged",
            ProblemKind::SuperblockForeign => "superblock-foreign",
            ProblemKind::SuperblockStale => "superblock-stale",
            ProblemKind::DeviceShrunk => "device-shrunk",
            ProblemKind::Unreadable => "unreadable",
            ProblemKind::JournalMissing => "journal-missing",
            ProblemKind::JournalForeign => "journal-foreign",
            ProblemKind::JournalDamaged => "journal-damaged",
            ProblemKind::JournalTail => "journal-tail",
            ProblemKind::JournalRecord => "journal-record",
            ProblemKind::ExtentsOverlap => "extents-overlap",
            ProblemKind::FragmentMissing => "fragment-missing",
            ProblemKind::FragmentOther => "fragment-other",
            ProblemKind::FragmentHeader => "fragment-header",
            ProblemKind::FragmentPayload => "fragment-payload",
            ProblemKind::FragmentOutside => "fragment-outside",
            ProblemKind::SecondOfStripe => "second-of-stripe",
        }
    }

    /// What it means and what to do.
    #[must_use]
    pub fn advice(self) -> &'static str {
        match self {
            ProblemKind::NotFormatted => "name another device, or format this one: kiseki-devctl format",
            ProblemKind::FormatTooNew => "verify it with the release that wrote it",
            ProblemKind::SuperblockLost => {
                "the node goes on without the device and rebuilds its fragments on others; replace it, or format it anew"
            }
            ProblemKind::SuperblockDamaged | ProblemKind::SuperblockStale => {
                "the other copies hold; the node writes this one anew within its next two starts. If it comes back, \
                 replace the device"
            }
            ProblemKind::SuperblockForeign => {
                "somebody copied or wrote here; the other copies hold. Find out who writes to the device"
            }
            ProblemKind::DeviceShrunk => {
                "the node refuses it; give it its length back (the partition, the image), or replace it: its fragments \
                 are rebuilt on others"
            }
            ProblemKind::Unreadable => {
                "the drive can't read these blocks; what lay there is rebuilt from the other devices when the node runs. \
                 Look at kiseki-devctl smart, and replace the drive if there are more"
            }
            ProblemKind::JournalMissing | ProblemKind::JournalForeign | ProblemKind::JournalDamaged => {
                "the node does not trust the device any more and rebuilds its fragments on others; format it anew, or \
                 replace it"
            }
            ProblemKind::JournalTail => {
                "the node starts as after a crash, without what this frame says: what it wrote is rebuilt from the other devices \
                 when scrub comes by, what it released is released again. If it comes back, replace the device"
            }
            ProblemKind::JournalRecord | ProblemKind::ExtentsOverlap => {
                "no crash leaves this: keep an image of the device and report it. The node does not use the device and \
                 rebuilds its fragments on others"
            }
            ProblemKind::FragmentMissing
            | ProblemKind::FragmentOther
            | ProblemKind::FragmentHeader
            | ProblemKind::FragmentPayload => {
                "the node never returns such bytes; scrub or repair rebuilds the fragment from the others of its stripe \
                 when the node runs. If there are many, replace the device"
            }
            ProblemKind::FragmentOutside => {
                "no crash leaves this: keep an image of the device and report it. The fragment is rebuilt from the others"
            }
            ProblemKind::SecondOfStripe => "repair moves one of the two when the node runs",
        }
    }
}

impl fmt::Display for ProblemKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What.
    pub kind: ProblemKind,
    /// The lane that it concerns.
    pub lane: Option<LaneId>,
    /// Where it begins.
    pub block: Option<BlockIndex>,
    /// What exactly, for people.
    pub text: String,
}

impl Problem {
    /// A problem of the whole device.
    #[must_use]
    pub fn new(kind: ProblemKind, text: String) -> Problem {
        Problem { kind, lane: None, block: None, text }
    }

    /// A problem at a place.
    #[must_use]
    pub fn at(kind: ProblemKind, lane: Option<LaneId>, block: BlockIndex, text: String) -> Problem {
        Problem { kind, lane, block: Some(block), text }
    }

    /// Bytes that can't be read.
    pub(super) fn unreadable(layout: &DeviceLayout, range: Range<u64>) -> Problem {
        let block_len = u64::from(layout.block_len_bytes());
        let block = BlockIndex(range.start / block_len);
        let lane = layout.zone_of(block).map(|zone| layout.lane_of_zone(zone));
        let text = format!("{} blocks can't be read", (range.end - range.start).div_ceil(block_len));
        Problem::at(ProblemKind::Unreadable, lane, block, text)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        if let Some(block) = self.block {
            write!(f, " at block {}", block.0)?;
        }
        if let Some(lane) = self.lane {
            write!(f, " (lane {})", lane.0)?;
        }
        write!(f, ": {}", self.text)
    }
}
