//! The journal of each lane: what it would replay, how it ends, and what its records add up to.

use super::scan::{Found, FoundState};
use super::{Problem, ProblemKind, Verdict};
use crate::history::{History, decode_records};
use crate::image::Image;
use crate::index_rebuild::NodeRows;
use crate::journal::{ChainEnd, Examined, PAGE_LEN_BYTES, REGION_LEN_BYTES_MAX, ReadJournal, TornFrame, examine};
use crate::lane::{LaneRecord, lane_journal_id};
use crate::superblock::Superblock;
use kiseki_types::fragment::StoredFragment;
use kiseki_types::{BlockIndex, LaneId};
use std::ops::Range;

/// The journal of one lane.
#[derive(Debug)]
pub struct LaneVerdict {
    /// The lane.
    pub lane: LaneId,
    /// Where its journal begins.
    pub journal_block: BlockIndex,
    /// Starts that it has seen.
    pub incarnation: u64,
    /// Records that a start would replay.
    pub records: u64,
    /// Allocations among them whose record was not flushed and whose fragment is not there: never acknowledged.
    pub disbelieved: u64,
    /// Where a crash cut off what nobody was told is safe, if it did.
    pub torn_tail: Option<BlockIndex>,
    /// Writes that the cut off frame names, as far as it can be read, and how many of their fragments are whole. Where all
    /// are, it may also be a frame that was flushed and rotted.
    pub torn_writes: (u64, u64),
    /// Whether a node would take the device with this journal.
    pub is_sound: bool,
    /// Everything up to here was given back by the journal, so it has to be in the node's tables.
    pub(crate) trimmed_through: u64,
    /// What the records add up to.
    pub(crate) history: History,
    examined: Examined,
    unreadable: Vec<Range<u64>>,
}

/// Reads the journal of lane `lane`.
pub(super) fn read(image: &Image, superblock: &Superblock, lane: u16) -> LaneVerdict {
    let layout = &superblock.layout;
    let lane = LaneId(lane);
    let (start, len) = layout.journal_extent(lane);
    let block_len = u64::from(layout.block_len_bytes());
    let len_bytes = (len.0 * block_len).min(REGION_LEN_BYTES_MAX) as usize / PAGE_LEN_BYTES * PAGE_LEN_BYTES;
    let (region, unreadable) = image.read_around(start.0 * block_len, len_bytes);
    LaneVerdict {
        lane,
        journal_block: start,
        incarnation: 0,
        records: 0,
        disbelieved: 0,
        torn_tail: None,
        torn_writes: (0, 0),
        is_sound: false,
        trimmed_through: 0,
        history: History::default(),
        examined: examine(lane_journal_id(superblock.device, lane), &region),
        unreadable,
    }
}

/// Judges the journals; `found` says which of their unflushed allocations are there, `known` what the node's tables say.
pub(super) fn check(
    superblock: &Superblock,
    lanes: &mut [LaneVerdict],
    found: &[Found],
    known: Option<&NodeRows>,
    verdict: &mut Verdict,
) {
    for lane in lanes {
        let is_readable = lane.unreadable.is_empty();
        for range in std::mem::take(&mut lane.unreadable) {
            let mut problem = Problem::unreadable(&superblock.layout, range);
            problem.lane = Some(lane.lane);
            problem.text.push_str(&format!(", in the journal of lane {}", lane.lane.0));
            verdict.problem(problem);
        }
        let start = lane.journal_block;
        let mut problem = |kind, text| verdict.problem(Problem::at(kind, Some(lane.lane), start, text));
        match std::mem::replace(&mut lane.examined, Examined::Blank) {
            Examined::Blank => problem(ProblemKind::JournalMissing, "its journal was never written".to_owned()),
            Examined::Foreign => problem(ProblemKind::JournalForeign, "another journal lies in its place".to_owned()),
            Examined::Unreadable(reason) => {
                problem(ProblemKind::JournalDamaged, format!("its journal can't be followed: {reason}"));
            }
            Examined::Read(journal) => check_read(superblock, lane, &journal, found, known, verdict),
        }
        // A node gives up on a journal that it can't read as a whole; here zeros stood for what may lie there.
        lane.is_sound &= is_readable;
    }
}

fn check_read(
    superblock: &Superblock,
    lane: &mut LaneVerdict,
    journal: &ReadJournal,
    found: &[Found],
    known: Option<&NodeRows>,
    verdict: &mut Verdict,
) {
    let layout = &superblock.layout;
    let block_of = |page: u64| {
        BlockIndex(lane.journal_block.0 + page * PAGE_LEN_BYTES as u64 / u64::from(layout.block_len_bytes()))
    };
    lane.is_sound = true;
    (lane.incarnation, lane.records) = (journal.incarnation, journal.records.len() as u64);
    match &journal.end {
        ChainEnd::Whole => {}
        ChainEnd::Torn { page, rest } => {
            let block = block_of(*page);
            match judge_tail(superblock, lane, rest, found, known) {
                None => lane.torn_tail = Some(block),
                Some(why) => {
                    let text = format!("the last frame of its journal is rotten, not cut off by a crash: {why}");
                    verdict.problem(Problem::at(ProblemKind::JournalTail, Some(lane.lane), block, text));
                }
            }
        }
        ChainEnd::Broken { page, last, stated } => {
            lane.is_sound = false;
            let text = format!(
                "its journal breaks behind record {last}, and everything through {stated} was flushed: a frame there is \
                 torn or rotten in the middle"
            );
            verdict.problem(Problem::at(ProblemKind::JournalDamaged, Some(lane.lane), block_of(*page), text));
        }
    }
    lane.trimmed_through = journal.trimmed_through;
    match decode_records(superblock.device, layout, lane.lane, 0, &journal.records) {
        Ok(records) => lane.history = History::of(records),
        Err(broken) => {
            lane.is_sound = false;
            let text = format!("record {} of its journal makes no sense: {}", broken.sequence, broken.reason);
            verdict.problem(Problem::at(ProblemKind::JournalRecord, Some(lane.lane), lane.journal_block, text));
        }
    }
    let gone: Vec<u64> = lane.history.unproven().iter().filter(|new| !is_there(new, found)).map(start_of).collect();
    lane.disbelieved = gone.len() as u64;
    lane.history.disbelieve(&gone);
}

/// Why the frame behind a chain's end was written and has rotted since; `None`: a crash may have left it. Counts what it
/// names.
fn judge_tail(
    superblock: &Superblock,
    lane: &mut LaneVerdict,
    rest: &TornFrame,
    found: &[Found],
    known: Option<&NodeRows>,
) -> Option<String> {
    let records = match rest {
        TornFrame::Gone => return None,
        TornFrame::Rotten(why) => return Some((*why).to_owned()),
        TornFrame::Cut(records) => records,
    };
    let decoded = records.iter().filter_map(|bytes| LaneRecord::decode(superblock.device, bytes).ok());
    let writes: Vec<StoredFragment> = decoded
        .filter_map(|record| match record {
            LaneRecord::Allocate(fragment) => Some(fragment),
            LaneRecord::Release { .. } => None,
        })
        .collect();
    let whole = writes.iter().filter(|write| is_there(write, found)).count();
    lane.torn_writes = (writes.len() as u64, whole as u64);
    // A node's table hears of a write when it is flushed. One that was made from the bytes has a row of every whole fragment.
    let known = known.filter(|rows| rows.are_first_hand(superblock.device, lane.lane, lane.incarnation));
    let is_known = |write: &&StoredFragment| {
        known.is_some_and(|rows| rows.extent_at(superblock.device, write.extent.start) == Some(write.meta.key))
    };
    let indexed = writes.iter().filter(is_known).count();
    (indexed > 0).then(|| format!("the node's index has {indexed} of the writes in it, so they were flushed"))
}

fn start_of(fragment: &StoredFragment) -> u64 {
    fragment.extent.start.0
}

/// Whether the scan found exactly this fragment, intact.
pub(super) fn is_there(fragment: &StoredFragment, found: &[Found]) -> bool {
    let at = found.binary_search_by_key(&fragment.extent.start, |other| other.start);
    at.is_ok_and(|at| found[at].state == FoundState::Intact && found[at].is(fragment))
}
