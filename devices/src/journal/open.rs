//! Formatting a journal's region, and opening it: choose the mirror that knows most, tell a torn tail from damage, give
//! the other mirrors what they miss, and start a new incarnation.

use super::frame::{HEADER_PAGES, PAGE_LEN_BYTES, RECORD_HEADER_BYTES, RegionHeader};
use super::region::{MirrorContent, RING_PAGES_MIN};
use super::scan::{MirrorScan, NoHeader, frame_bytes, newest_header, scan_ring};
use super::writer::{Writer, WriterState};
use super::{JournalConfig, JournalOpenError, LaneJournal};
use kiseki_types::buf::IoBuf;
use kiseki_types::journal::{ReplayedRecord, Sequence};
use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::rc::Rc;

/// What an open found beside the records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JournalReport {
    /// Which start of the journal this is.
    pub incarnation: u64,
    /// Mirrors (by index) that missed records or were damaged and were filled from the others.
    pub resynced_mirrors: Vec<usize>,
    /// Mirrors (by index) whose content was damaged, not only behind.
    pub damaged_mirrors: Vec<usize>,
    /// Mirrors (by index) that could not be read or written; the journal goes on without them.
    pub lost_mirrors: Vec<usize>,
    /// Everything up to here was stated as flushed before this start.
    pub flushed_through: Sequence,
}

/// A mirror whose content counts.
struct Candidate {
    index: usize,
    scan: MirrorScan,
    ring: Vec<u8>,
}

/// What reading one mirror gave.
enum MirrorRead {
    Candidate(Box<Candidate>),
    Damaged(&'static str),
    Blank,
    Foreign,
}

/// Zeroes the regions and writes the headers of an empty journal; durable on return. What was there is gone.
pub async fn format(config: &JournalConfig) -> Result<(), JournalOpenError> {
    let ring_pages = check_regions(config)?;
    let header = RegionHeader {
        ring_pages,
        generation: 1,
        incarnation: 0,
        incarnation_page: 0,
        incarnation_sequence: 1,
        start_page: 0,
        start_checksum: 0,
        trimmed_through: 0,
        flushed_through: 0,
    };
    let failed = |source| JournalOpenError::Io { journal: config.name.clone(), source };
    let mut page = IoBuf::zeroed(PAGE_LEN_BYTES);
    let bytes = header.encode(config.id);
    page[..bytes.len()].copy_from_slice(&bytes);
    let page = page.freeze();
    for mirror in &config.mirrors {
        mirror.zero().await.map_err(failed)?;
        // The ring is blank before a header says that it can be believed.
        mirror.gate.flush().await.map_err(|error| failed(io::Error::other(error)))?;
        mirror.write_header(header.generation % HEADER_PAGES, page.clone()).await.map_err(failed)?;
        mirror.gate.flush().await.map_err(|error| failed(io::Error::other(error)))?;
    }
    Ok(())
}

/// Opens a journal and replays it.
///
/// Records past the last stated flush are replayed with `flushed == false`: the caller believes them only if what they
/// name verifies, and makes its decision durable elsewhere, [`trims`](kiseki_types::journal::Journal::trim) and awaits
/// [`LaneJournal::trim_persisted`] **before it appends**: later frames state later flushes, so the next open would
/// show those records as flushed. Within one incarnation sequences are contiguous; between two they jump, by more than
/// could have been handed out and lost, so that no number comes twice.
pub async fn open(
    config: JournalConfig,
) -> Result<(Rc<LaneJournal>, Vec<ReplayedRecord>, JournalReport), JournalOpenError> {
    check_regions(&config)?;
    let mut report = JournalReport::default();
    let mut lost: Vec<(usize, io::Error)> = Vec::new();
    let mut candidates = Vec::new();
    let mut worst = JournalOpenError::Missing { journal: config.name.clone() };
    for index in 0..config.mirrors.len() {
        if config.mirrors[index].content == MirrorContent::Refill {
            continue;
        }
        match read_mirror(&config, index).await {
            Ok(MirrorRead::Candidate(candidate)) => candidates.push(*candidate),
            Ok(MirrorRead::Blank) => report.damaged_mirrors.push(index),
            Ok(MirrorRead::Foreign) => {
                report.damaged_mirrors.push(index);
                worst = JournalOpenError::Foreign { journal: config.name.clone() };
            }
            Ok(MirrorRead::Damaged(reason)) => {
                report.damaged_mirrors.push(index);
                worst = damaged(&config, reason.to_string(), Vec::new());
            }
            Err(source) => lost.push((index, source)),
        }
    }
    let Some(best) = choose(&config, &mut candidates, &mut report)? else {
        return Err(match lost.pop() {
            Some((_, source)) => JournalOpenError::Io { journal: config.name.clone(), source },
            None => worst,
        });
    };
    let stated = report.flushed_through;
    let highest = candidates.iter().map(|other| other.scan.highest_sequence).max().unwrap_or(0);
    let generation = candidates.iter().map(|other| other.scan.header.generation).max().unwrap_or(0);
    let NextStart { generation, incarnation, first } = next_start(&best.scan, highest, generation);
    report.incarnation = incarnation;
    let state = initial_state(&config, &best.scan, first, stated, generation);
    let writer = Writer::new(config.clone(), best.scan.header.ring_pages, state);
    writer.go_on_without(take_lost(&mut lost, &mut report)).await.map_err(|error| fenced(&config, &error))?;
    resync(&config, &writer, &best, &candidates, &mut report).await?;
    let header = RegionHeader {
        generation,
        incarnation: report.incarnation,
        incarnation_page: best.scan.end_page,
        incarnation_sequence: first,
        flushed_through: stated,
        ..best.scan.header
    };
    // The chain is durable on every mirror (also what was only written before) before the header makes it the past
    // of a new incarnation; the header is durable before the first append.
    writer.flush_now().await.map_err(|error| fenced(&config, &error))?;
    writer.write_header(header).await.map_err(|error| fenced(&config, &error))?;
    writer.flush_now().await.map_err(|error| fenced(&config, &error))?;
    report
        .lost_mirrors
        .extend(writer.mirrors_live().iter().enumerate().filter(|(_, live)| !**live).map(|(index, _)| index));
    report.lost_mirrors.sort_unstable();
    report.lost_mirrors.dedup();
    Ok((Rc::new(LaneJournal { writer }), replayed(best.scan.records, stated), report))
}

/// All regions have one length that a ring fits in.
fn check_regions(config: &JournalConfig) -> Result<u64, JournalOpenError> {
    assert!(!config.mirrors.is_empty(), "journal {} has no mirror", config.name);
    let needed = config.mirrors[0].ring_pages().max(RING_PAGES_MIN);
    for mirror in &config.mirrors {
        if mirror.ring_pages() != needed {
            return Err(JournalOpenError::Region { journal: config.name.clone(), pages: mirror.ring_pages(), needed });
        }
    }
    Ok(needed)
}

async fn read_mirror(config: &JournalConfig, index: usize) -> io::Result<MirrorRead> {
    let mirror = &config.mirrors[index];
    let pages = mirror.read_headers().await?;
    let header = match newest_header(config.id, &pages) {
        Ok(header) => header,
        Err(NoHeader::Blank) => return Ok(MirrorRead::Blank),
        Err(NoHeader::Foreign) => return Ok(MirrorRead::Foreign),
        Err(NoHeader::Broken) => return Ok(MirrorRead::Damaged("no header page is intact")),
    };
    if header.ring_pages > mirror.ring_pages() || header.ring_pages < RING_PAGES_MIN {
        return Ok(MirrorRead::Damaged("the region is shorter than its ring"));
    }
    let ring = mirror.read_ring(header.ring_pages).await?;
    let scan = scan_ring(config.id, header, &ring);
    if scan.header_lost() {
        return Ok(MirrorRead::Damaged("the newest header page is gone: frames of a later start exist"));
    }
    Ok(MirrorRead::Candidate(Box::new(Candidate { index, scan, ring })))
}

/// Takes the mirror that knows most out of `candidates`. A break below what *any* mirror states as flushed is damage
/// of the mirror; when it is in the best one too, of the journal.
fn choose(
    config: &JournalConfig,
    candidates: &mut Vec<Candidate>,
    report: &mut JournalReport,
) -> Result<Option<Candidate>, JournalOpenError> {
    let stated = candidates.iter().map(|candidate| candidate.scan.stated_flushed).max().unwrap_or(0);
    report.flushed_through = stated;
    for candidate in candidates.iter() {
        if candidate.scan.last() < candidate.scan.stated_flushed {
            report.damaged_mirrors.push(candidate.index);
        }
    }
    let best = (0..candidates.len()).max_by_key(|at| {
        let scan = &candidates[*at].scan;
        (scan.last(), scan.header.incarnation, std::cmp::Reverse(*at))
    });
    let Some(best) = best else { return Ok(None) };
    let best = candidates.swap_remove(best);
    if best.scan.last() < stated {
        let reason = format!(
            "the chain ends at record {} (page {}), but everything through {stated} was flushed",
            best.scan.last(),
            best.scan.end_page
        );
        return Err(damaged(config, reason, replayed(best.scan.records, stated)));
    }
    Ok(Some(best))
}

/// The numbers of a new start.
pub(super) struct NextStart {
    pub generation: u64,
    pub incarnation: u64,
    pub first: Sequence,
}

/// The numbers of the start that follows `best`; `highest` and `generation` are the highest ones of the other mirrors.
pub(super) fn next_start(best: &MirrorScan, highest: Sequence, generation: u64) -> NextStart {
    let highest = highest.max(best.highest_sequence).max(best.header.incarnation_sequence - 1);
    NextStart {
        generation: generation.max(best.header.generation) + 1,
        incarnation: best.header.incarnation + 1,
        first: first_sequence(&best.header, highest),
    }
}

/// The first sequence of a new incarnation: beyond everything that an earlier one can have handed out. What is not
/// seen in the region was queued or in flight, so it was limited by the ring.
fn first_sequence(header: &RegionHeader, highest: Sequence) -> Sequence {
    // Only where nothing ever was: a number that is trimmed already would not be replayed.
    if header.incarnation == 0 && highest == 0 {
        return 1;
    }
    highest + header.ring_pages * (PAGE_LEN_BYTES / RECORD_HEADER_BYTES) as u64 + 1
}

fn initial_state(
    config: &JournalConfig,
    best: &MirrorScan,
    first: Sequence,
    stated: Sequence,
    header_generation: u64,
) -> WriterState {
    WriterState {
        incarnation: best.header.incarnation + 1,
        incarnation_page: best.end_page,
        incarnation_sequence: first,
        flushed_before: stated,
        next: first,
        pending: VecDeque::new(),
        pending_bytes: 0,
        head_page: best.end_page,
        head_checksum: best.end_checksum,
        frames: best.frames.iter().copied().collect(),
        tail_page: best.header.start_page,
        trimmed: best.header.trimmed_through,
        trim_wanted: best.header.trimmed_through,
        written: first - 1,
        flushed: first - 1,
        header_generation,
        writer_runs: false,
        trim_runs: false,
        live: vec![true; config.mirrors.len()],
        fenced: None,
        written_waiters: Vec::new(),
        trim_waiters: Vec::new(),
        room_waiters: Vec::new(),
    }
}

/// Writes to every other mirror the frames of the best one that it misses. The best one is not touched, so a crash
/// here loses nothing.
async fn resync(
    config: &JournalConfig,
    writer: &Rc<Writer>,
    best: &Candidate,
    others: &[Candidate],
    report: &mut JournalReport,
) -> Result<(), JournalOpenError> {
    let ring_pages = best.scan.header.ring_pages;
    for index in (0..config.mirrors.len()).filter(|index| *index != best.index) {
        if !writer.mirrors_live()[index] {
            continue;
        }
        let other = others.iter().find(|other| other.index == index);
        let present: BTreeSet<(u64, u32)> = other
            .map(|other| other.scan.frames.iter().map(|frame| (frame.page, frame.checksum)).collect())
            .unwrap_or_default();
        let missing: Vec<_> =
            best.scan.frames.iter().filter(|frame| !present.contains(&(frame.page, frame.checksum))).collect();
        let mut result = match other {
            Some(_) => Ok(()),
            None => config.mirrors[index].zero().await,
        };
        for frame in &missing {
            if result.is_err() {
                break;
            }
            let bytes = IoBuf::copy_of(&frame_bytes(frame.page, frame.pages, &best.ring, ring_pages)).freeze();
            result = config.mirrors[index].write_ring(frame.page, ring_pages, bytes).await;
        }
        match result {
            Ok(()) if missing.is_empty() && other.is_some() => {}
            Ok(()) => report.resynced_mirrors.push(index),
            Err(error) => {
                writer.go_on_without(vec![(index, error)]).await.map_err(|error| fenced(config, &error))?;
            }
        }
    }
    Ok(())
}

fn take_lost(lost: &mut Vec<(usize, io::Error)>, report: &mut JournalReport) -> Vec<(usize, io::Error)> {
    report.lost_mirrors.extend(lost.iter().map(|(index, _)| *index));
    std::mem::take(lost)
}

pub(super) fn replayed(records: Vec<(Sequence, Vec<u8>)>, stated: Sequence) -> Vec<ReplayedRecord> {
    let to_record = |(sequence, bytes)| ReplayedRecord { sequence, flushed: sequence <= stated, bytes };
    records.into_iter().map(to_record).collect()
}

fn damaged(config: &JournalConfig, reason: String, readable: Vec<ReplayedRecord>) -> JournalOpenError {
    JournalOpenError::Damaged { journal: config.name.clone(), reason, readable }
}

fn fenced(config: &JournalConfig, error: &kiseki_types::journal::JournalError) -> JournalOpenError {
    JournalOpenError::Io { journal: config.name.clone(), source: io::Error::other(error.to_string()) }
}
