//! The writing side of a journal: one frame in flight at a time, flushes beside it, trims in the background.

use super::frame::{
    FRAME_HEADER_BYTES, FRAME_PAYLOAD_BYTES_MAX, FrameHeader, HEADER_PAGES, PAGE_LEN_BYTES, RECORD_HEADER_BYTES,
    RegionHeader, pages_of,
};
use super::scan::ChainFrame;
use super::{JournalConfig, record_space};
use crate::crc32c;
use futures::channel::oneshot;
use futures::future::join_all;
use kiseki_types::buf::{IoBuf, IoBytes};
use kiseki_types::journal::{JournalError, Sequence};
use kiseki_types::limits::JOURNAL_RECORD_LEN_BYTES_MAX;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

type Answer = oneshot::Sender<Result<(), JournalError>>;

/// Fewest payload bytes of a frame that was cut because more records waited than it holds.
const FRAME_CUT_BYTES_MIN: usize = FRAME_PAYLOAD_BYTES_MAX - (JOURNAL_RECORD_LEN_BYTES_MAX + RECORD_HEADER_BYTES);
const _: () = assert!(FRAME_CUT_BYTES_MIN > 0);

/// Everything that changes.
pub(super) struct WriterState {
    pub incarnation: u64,
    /// First page of this incarnation.
    pub incarnation_page: u64,
    /// First sequence of this incarnation.
    pub incarnation_sequence: Sequence,
    /// What earlier incarnations stated as flushed; repeated until records of this one are, so that a record whose
    /// flush nobody saw is not taken for a flushed one only because the journal was opened.
    pub flushed_before: Sequence,
    /// The next sequence to hand out.
    pub next: Sequence,
    /// Records that wait for a write.
    pub pending: VecDeque<Vec<u8>>,
    pub pending_bytes: usize,
    /// Page of the next frame.
    pub head_page: u64,
    pub head_checksum: u32,
    /// Frames in the ring that are not durably trimmed, oldest first.
    pub frames: VecDeque<ChainFrame>,
    /// Start of the ring's used part according to the durable header.
    pub tail_page: u64,
    pub trimmed: Sequence,
    pub trim_wanted: Sequence,
    pub written: Sequence,
    pub flushed: Sequence,
    pub header_generation: u64,
    pub writer_runs: bool,
    pub trim_runs: bool,
    pub live: Vec<bool>,
    pub fenced: Option<String>,
    pub written_waiters: Vec<(Sequence, Answer)>,
    pub trim_waiters: Vec<(Sequence, Answer)>,
    pub room_waiters: Vec<(f64, Answer)>,
}

pub(super) struct Writer {
    pub config: JournalConfig,
    pub ring_pages: u64,
    pub state: RefCell<WriterState>,
    /// Held while a failed mirror is dealt with, so that its failure in a write and in a flush is one event.
    mirror_lock: futures::lock::Mutex<()>,
}

/// A frame ready to be submitted.
struct ReadyFrame {
    frame: ChainFrame,
    bytes: IoBytes,
}

impl Writer {
    pub fn new(config: JournalConfig, ring_pages: u64, state: WriterState) -> Rc<Writer> {
        Rc::new(Writer { config, ring_pages, state: RefCell::new(state), mirror_lock: futures::lock::Mutex::new(()) })
    }

    pub fn append(self: Rc<Self>, record: &[u8]) -> Result<Sequence, JournalError> {
        let (sequence, start) = {
            let mut state = self.state.borrow_mut();
            self.check_fence(&state)?;
            let space = record_space(record.len());
            if pages_needed(space) > self.ring_pages {
                let limit = self.ring_pages as usize * PAGE_LEN_BYTES;
                return Err(JournalError::TooLong { len: record.len(), limit });
            }
            let used = state.head_page - state.tail_page + pages_needed(state.pending_bytes + space);
            if used > self.ring_pages {
                return Err(JournalError::Full { journal: self.config.name.clone() });
            }
            let sequence = state.next;
            state.next += 1;
            state.pending_bytes += space;
            state.pending.push_back(record.to_vec());
            (sequence, !std::mem::replace(&mut state.writer_runs, true))
        };
        if start {
            let writer = self.clone();
            self.config.ports.spawn("journal writer", Box::pin(writer.run()));
        }
        Ok(sequence)
    }

    pub async fn written(&self, sequence: Sequence) -> Result<(), JournalError> {
        let receiver = {
            let mut state = self.state.borrow_mut();
            self.check_fence(&state)?;
            assert!(sequence < state.next, "journal {}: nobody was given {sequence}", self.config.name);
            if state.written >= sequence {
                return Ok(());
            }
            let (sender, receiver) = oneshot::channel();
            state.written_waiters.push((sequence, sender));
            receiver
        };
        receiver.await.expect("a journal answers every waiter")
    }

    pub async fn flushed(&self, sequence: Sequence) -> Result<(), JournalError> {
        self.written(sequence).await?;
        if self.state.borrow().flushed >= sequence {
            return Ok(());
        }
        self.flush_now().await
    }

    pub async fn flush_now(&self) -> Result<(), JournalError> {
        let (written, flushes) = {
            let state = self.state.borrow();
            self.check_fence(&state)?;
            // I-L2, I-D6: the flush is submitted after these writes have completed everywhere, so it covers them.
            let flushes: Vec<_> =
                live_of(&state).map(|index| (index, self.config.mirrors[index].gate.flush())).collect();
            (state.written, flushes)
        };
        let results = join_all(flushes.into_iter().map(|(index, flush)| async move { (index, flush.await) })).await;
        let failed = results.into_iter().filter_map(|(index, result)| Some((index, io::Error::other(result.err()?))));
        self.go_on_without(failed.collect()).await?;
        let mut state = self.state.borrow_mut();
        self.check_fence(&state)?;
        state.flushed = state.flushed.max(written);
        Ok(())
    }

    pub fn trim(self: Rc<Self>, sequence: Sequence) {
        {
            let mut state = self.state.borrow_mut();
            assert!(sequence < state.next, "journal {}: nobody was given {sequence}", self.config.name);
            state.trim_wanted = state.trim_wanted.max(sequence);
        }
        self.start_trim();
    }

    pub async fn trim_persisted(&self) -> Result<(), JournalError> {
        let receiver = {
            let mut state = self.state.borrow_mut();
            self.check_fence(&state)?;
            if state.trimmed >= state.trim_wanted {
                return Ok(());
            }
            let (sender, receiver) = oneshot::channel();
            let wanted = state.trim_wanted;
            state.trim_waiters.push((wanted, sender));
            receiver
        };
        receiver.await.expect("a journal answers every waiter")
    }

    pub async fn room(&self, fill_max: f64) -> Result<(), JournalError> {
        let receiver = {
            let mut state = self.state.borrow_mut();
            self.check_fence(&state)?;
            if self.fill_of(&state) <= fill_max {
                return Ok(());
            }
            let (sender, receiver) = oneshot::channel();
            state.room_waiters.push((fill_max, sender));
            receiver
        };
        receiver.await.expect("a journal answers every waiter")
    }

    pub fn last(&self) -> Sequence {
        self.state.borrow().next - 1
    }

    pub fn flushed_through(&self) -> Sequence {
        self.state.borrow().flushed
    }

    pub fn trimmed_through(&self) -> Sequence {
        self.state.borrow().trimmed
    }

    pub fn mirrors_live(&self) -> Vec<bool> {
        self.state.borrow().live.clone()
    }

    pub fn fill(&self) -> f64 {
        self.fill_of(&self.state.borrow())
    }

    fn fill_of(&self, state: &WriterState) -> f64 {
        let pending = if state.pending.is_empty() { 0 } else { pages_needed(state.pending_bytes) };
        (state.head_page - state.tail_page + pending) as f64 / self.ring_pages as f64
    }

    fn check_fence(&self, state: &WriterState) -> Result<(), JournalError> {
        match &state.fenced {
            Some(reason) => Err(JournalError::Fenced { journal: self.config.name.clone(), reason: reason.clone() }),
            None => Ok(()),
        }
    }

    async fn run(self: Rc<Self>) {
        while let Some(ready) = self.take_frame() {
            let live: Vec<usize> = live_of(&self.state.borrow()).collect();
            let writes = live.into_iter().map(|index| {
                let write =
                    self.config.mirrors[index].write_ring(ready.frame.page, self.ring_pages, ready.bytes.clone());
                async move { (index, write.await) }
            });
            let failed = join_all(writes).await.into_iter().filter_map(|(index, result)| Some((index, result.err()?)));
            if self.go_on_without(failed.collect()).await.is_err() {
                return; // fenced: every waiter has its answer
            }
            self.frame_written(ready.frame);
            self.clone().start_trim();
        }
    }

    /// Takes all records that wait, up to a frame's limit; ends the run when there are none.
    fn take_frame(&self) -> Option<ReadyFrame> {
        let mut state = self.state.borrow_mut();
        if state.pending.is_empty() || state.fenced.is_some() {
            state.writer_runs = false;
            return None;
        }
        let first = state.next - state.pending.len() as u64;
        let (mut payload_len, mut count) = (0, 0_u32);
        for record in &state.pending {
            let space = record_space(record.len());
            if count > 0 && payload_len + space > FRAME_PAYLOAD_BYTES_MAX {
                break;
            }
            payload_len += space;
            count += 1;
        }
        let pages = pages_of(payload_len);
        let mut buf = (self.config.buffers)(pages as usize * PAGE_LEN_BYTES);
        let mut at = FRAME_HEADER_BYTES;
        for record in state.pending.drain(..count as usize) {
            buf[at..at + RECORD_HEADER_BYTES].copy_from_slice(&(record.len() as u32).to_le_bytes());
            at += RECORD_HEADER_BYTES;
            buf[at..at + record.len()].copy_from_slice(&record);
            at += record.len();
        }
        buf[at..].fill(0); // I-K1: what the memory held before reaches no device
        state.pending_bytes -= payload_len;
        let mut header = FrameHeader {
            incarnation: state.incarnation,
            page: state.head_page,
            first_sequence: first,
            record_count: count,
            payload_len: payload_len as u32,
            previous_checksum: state.head_checksum,
            flushed_through: stated_flushed(&state),
            payload_checksum: crc32c(&buf[FRAME_HEADER_BYTES..at]),
            checksum: 0,
        };
        let header_bytes = header.encode(self.config.id);
        buf[..FRAME_HEADER_BYTES].copy_from_slice(&header_bytes);
        let frame = ChainFrame {
            page: header.page,
            pages,
            first,
            last: header.last_sequence(),
            checksum: header.checksum,
            previous_checksum: header.previous_checksum,
        };
        state.head_page += pages;
        state.head_checksum = header.checksum;
        // I-C8: nothing that the durable header still points to is written over.
        assert!(
            state.head_page - state.tail_page <= self.ring_pages,
            "I-C8: journal {}: frames up to page {} over a tail at {}",
            self.config.name,
            state.head_page,
            state.tail_page
        );
        state.frames.push_back(frame);
        Some(ReadyFrame { frame, bytes: buf.freeze() })
    }

    fn frame_written(&self, frame: ChainFrame) {
        let mut state = self.state.borrow_mut();
        state.written = frame.last;
        for (_, waiter) in state.written_waiters.extract_if(.., |(sequence, _)| *sequence <= frame.last) {
            let _ = waiter.send(Ok(()));
        }
    }

    fn start_trim(self: Rc<Self>) {
        {
            let mut state = self.state.borrow_mut();
            let nothing = state.trim_wanted.min(state.written) <= state.trimmed;
            if nothing || state.fenced.is_some() || std::mem::replace(&mut state.trim_runs, true) {
                return;
            }
        }
        let writer = self.clone();
        self.config.ports.spawn("journal trim", Box::pin(writer.run_trim()));
    }

    async fn run_trim(self: Rc<Self>) {
        while let Some(header) = self.next_trim() {
            if self.write_header(header).await.is_err() || self.flush_now().await.is_err() {
                return; // fenced
            }
            self.trim_done(header);
        }
    }

    /// The header that gives back what is trimmed by now; ends the run when there is nothing.
    fn next_trim(&self) -> Option<RegionHeader> {
        let mut state = self.state.borrow_mut();
        let target = state.trim_wanted.min(state.written);
        if target <= state.trimmed || state.fenced.is_some() {
            state.trim_runs = false;
            return None;
        }
        let kept = state.frames.iter().find(|frame| frame.last > target);
        let (start_page, start_checksum) =
            kept.map_or((state.head_page, state.head_checksum), |frame| (frame.page, frame.previous_checksum));
        state.header_generation += 1;
        Some(RegionHeader {
            ring_pages: self.ring_pages,
            generation: state.header_generation,
            incarnation: state.incarnation,
            incarnation_page: state.incarnation_page,
            incarnation_sequence: state.incarnation_sequence,
            start_page,
            start_checksum,
            trimmed_through: target,
            flushed_through: stated_flushed(&state),
        })
    }

    fn trim_done(&self, header: RegionHeader) {
        let mut state = self.state.borrow_mut();
        state.trimmed = header.trimmed_through;
        state.tail_page = header.start_page;
        while state.frames.front().is_some_and(|frame| frame.page < header.start_page) {
            state.frames.pop_front();
        }
        for (_, waiter) in state.trim_waiters.extract_if(.., |(wanted, _)| *wanted <= header.trimmed_through) {
            let _ = waiter.send(Ok(()));
        }
        let fill = self.fill_of(&state);
        for (_, waiter) in state.room_waiters.extract_if(.., |(fill_max, _)| fill <= *fill_max) {
            let _ = waiter.send(Ok(()));
        }
    }

    /// Writes a region header into its page on every live mirror; the other page keeps the header before it.
    pub async fn write_header(&self, header: RegionHeader) -> Result<(), JournalError> {
        let mut page = IoBuf::zeroed(PAGE_LEN_BYTES);
        let bytes = header.encode(self.config.id);
        page[..bytes.len()].copy_from_slice(&bytes);
        let page = page.freeze();
        let live: Vec<usize> = live_of(&self.state.borrow()).collect();
        let writes = live.into_iter().map(|index| {
            let write = self.config.mirrors[index].write_header(header.generation % HEADER_PAGES, page.clone());
            async move { (index, write.await) }
        });
        let failed = join_all(writes).await.into_iter().filter_map(|(index, result)| Some((index, result.err()?)));
        self.go_on_without(failed.collect()).await
    }

    /// Drops mirrors that failed, if the owner agrees and one is left; otherwise fences the journal.
    pub async fn go_on_without(&self, failed: Vec<(usize, io::Error)>) -> Result<(), JournalError> {
        for (index, error) in failed {
            let _one_event = self.mirror_lock.lock().await;
            let others = {
                let state = self.state.borrow();
                self.check_fence(&state)?;
                if !state.live[index] {
                    continue; // its failure elsewhere was dealt with while we waited
                }
                live_of(&state).count() - 1
            };
            let reason = format!("mirror {} failed: {error}", self.config.mirrors[index].device.name());
            self.config.mirrors[index].gate.fence(&reason);
            if others == 0 {
                self.fence(&reason); // before the owner can act on it: no waiter may see Ok any more
            }
            let verdict = (self.config.on_mirror_failed)(index, error).await;
            match verdict {
                Ok(()) if others > 0 => self.state.borrow_mut().live[index] = false,
                Ok(()) => {}
                Err(why) => self.fence(&format!("{reason}; going on without it was refused: {why}")),
            }
            self.check_fence(&self.state.borrow())?;
        }
        Ok(())
    }

    /// Takes nothing any more: every waiter, present and future, gets an error (I-D6).
    pub fn fence(&self, reason: &str) {
        let mut state = self.state.borrow_mut();
        if state.fenced.is_some() {
            return;
        }
        state.fenced = Some(reason.to_string());
        state.pending.clear();
        state.pending_bytes = 0;
        let error = JournalError::Fenced { journal: self.config.name.clone(), reason: reason.to_string() };
        let written = std::mem::take(&mut state.written_waiters).into_iter().map(|(_, waiter)| waiter);
        let trim = std::mem::take(&mut state.trim_waiters).into_iter().map(|(_, waiter)| waiter);
        let room = std::mem::take(&mut state.room_waiters).into_iter().map(|(_, waiter)| waiter);
        for waiter in written.chain(trim).chain(room) {
            let _ = waiter.send(Err(error.clone()));
        }
    }
}

fn live_of(state: &WriterState) -> impl Iterator<Item = usize> + '_ {
    state.live.iter().enumerate().filter_map(|(index, live)| live.then_some(index))
}

fn stated_flushed(state: &WriterState) -> Sequence {
    if state.flushed >= state.incarnation_sequence { state.flushed } else { state.flushed_before }
}

/// Pages that so many bytes of waiting records take at most, however they are cut into frames: every frame adds at
/// most two pages to its share, and frames that are cut hold at least [`FRAME_CUT_BYTES_MIN`].
fn pages_needed(pending_bytes: usize) -> u64 {
    (pending_bytes / PAGE_LEN_BYTES + 2 * (pending_bytes / FRAME_CUT_BYTES_MIN + 1)) as u64
}
