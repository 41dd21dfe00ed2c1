//! What a format writes, in its order: decided before anything happens, so that it can be shown.

use crate::layout::{DeviceLayout, SUPERBLOCK_LEN_BYTES};
use crate::probe::ends;
use kiseki_types::LaneId;
use std::fmt;
use std::ops::Range;

/// One kind of write of a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FormatStep {
    /// A marker takes the place of the first and the last copy of the superblock.
    Mark,
    /// The other copies go.
    Unmark,
    /// What others left at both ends goes, so that no tool takes the device for theirs.
    ClearEnds,
    /// Journals are really written: a scan then meets zeros, not an earlier format's records, and no later write has to
    /// turn an unwritten extent of an image into a written one. Then each gets its header.
    StartJournals,
    /// A generation of the superblock, in two of its copies; two generations make all four.
    Superblock {
        /// Its number.
        generation: u64,
    },
}

impl fmt::Display for FormatStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FormatStep::Mark => f.write_str("mark the format as begun, over the outer superblocks"),
            FormatStep::Unmark => f.write_str("zero the inner superblocks"),
            FormatStep::ClearEnds => f.write_str("zero both ends: partition tables and signatures"),
            FormatStep::StartJournals => f.write_str("zero the journals, a header in front of each"),
            FormatStep::Superblock { generation } => write!(f, "write the superblock, generation {generation}"),
        }
    }
}

/// A step with the places that it writes to. A flush follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedWrite {
    /// What it does.
    pub step: FormatStep,
    /// Where: (first byte, bytes).
    pub runs: Vec<(u64, u64)>,
}

impl PlannedWrite {
    /// Bytes in all.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.runs.iter().map(|(_, len)| len).sum()
    }
}

/// The writes of a format of a device that gets `layout`, in their order; `tail` are the bytes behind its last whole
/// block, if there are any.
#[must_use]
pub fn planned_writes(layout: &DeviceLayout, tail: Option<Range<u64>>) -> Vec<PlannedWrite> {
    let copy = SUPERBLOCK_LEN_BYTES as u64;
    let block = u64::from(layout.block_len_bytes());
    let copies = DeviceLayout::superblock_offsets(layout.geometry());
    let whole = |offsets: &[u64]| offsets.iter().map(|offset| (*offset, copy)).collect::<Vec<_>>();
    let ((_, front_len), (far_start, _)) = ends(layout.geometry());
    let front_end = (front_len as u64).min(copies[3]);
    // Around the marker, which is overwritten last: at the far end by the first generation, in front by the second.
    let ends = [
        (copy, front_end),
        ((far_start.0 * block).max(front_end), copies[3]),
        (copies[3] + copy, layout.geometry().len_bytes()),
    ];
    let ends = ends.into_iter().chain(tail.map(|tail| (tail.start, tail.end)));
    let ends = ends.filter(|(start, end)| start < end).map(|(start, end)| (start, end - start));
    let journals = (0..layout.lanes()).map(|lane| layout.journal_extent(LaneId(lane)));
    let journals = journals.map(|(start, len)| (start.0 * block, len.0 * block)).collect();
    vec![
        PlannedWrite { step: FormatStep::Mark, runs: whole(&[copies[0], copies[3]]) },
        PlannedWrite { step: FormatStep::Unmark, runs: whole(&copies[1..3]) },
        PlannedWrite { step: FormatStep::ClearEnds, runs: ends.collect() },
        PlannedWrite { step: FormatStep::StartJournals, runs: journals },
        PlannedWrite { step: FormatStep::Superblock { generation: 1 }, runs: whole(&[copies[1], copies[3]]) },
        PlannedWrite { step: FormatStep::Superblock { generation: 2 }, runs: whole(&[copies[0], copies[2]]) },
    ]
}
