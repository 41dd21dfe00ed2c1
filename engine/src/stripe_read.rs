//! Ranges of a stripe's envelope, from as few fragments as it takes and as soon as they can be had.
//!
//! The data fragments that hold the ranges are asked, of copies the nearest one. What is missing, unreadable or late is rebuilt
//! from any other fragments. *Late* is what the times of devices say ([`crate::latency`]): then one more fragment is asked,
//! within a budget, and whichever come first count. Devices that are slow are left out where others can take their place without
//! one read more. What comes too late runs out in the background and is dropped.

use crate::api::StoreError;
use crate::core::{Core, DataCounters};
use crate::delta::ChunkName;
use crate::latency::Source;
use crate::repair_queue::{Margin, RepairCause};
use crate::repairer;
use futures::StreamExt;
use futures::future::{Either, select};
use futures::stream::FuturesUnordered;
use kiseki_types::buf::IoBytes;
use kiseki_types::fragment::{FragmentError, StoredFragment, StripeShape};
use kiseki_types::ids::DeviceId;
use kiseki_types::runtime::{Instant, LocalBoxFuture};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use tracing::warn;

/// Two ranges of a fragment that lie no further apart are read as one.
const GAP_LEN_BYTES_MAX: u32 = 64 << 10;

/// Late reads that may run out in the background; with more nobody else is asked (I-O5).
const LATE_READS_MAX: usize = 32;

/// The fragments of one generation that can be asked, by index.
pub struct Fragments {
    /// The generation.
    pub name: ChunkName,
    /// On devices that can be read.
    pub by_index: BTreeMap<u8, StoredFragment>,
    /// Its shape.
    pub shape: StripeShape,
    /// Bytes of each fragment.
    pub payload_len: u32,
    /// Whether what was not found is nowhere: otherwise a node that does not answer may have it.
    pub is_all: bool,
    /// Whether a node is only late to say what it has, so that nothing is known to be missing.
    pub is_late: bool,
}

/// Has the stripe repaired in the background: this read is served without the fragment, the next one should not have to.
fn want_repair(core: &Rc<Core>, fragments: &Fragments, cause: RepairCause) {
    let gone = usize::from(cause == RepairCause::Unreadable);
    let margin = (fragments.by_index.len() - gone) as Margin - Margin::from(fragments.shape.data);
    if cause == RepairCause::Missing && (fragments.is_late || !fragments.is_all && margin > 0) {
        return; // a silent node may have it, and there is time to wait for that one
    }
    repairer::report(core, fragments.name, margin.max(0), cause);
}

fn note_unreadable(core: &Rc<Core>, fragments: &Fragments, device: DeviceId, error: &FragmentError) {
    if let FragmentError::Corrupt { .. } = error {
        want_repair(core, fragments, RepairCause::Unreadable);
    }
    if let Some(more) = core.unreadable.pass(core.ports.now()) {
        warn!(%device, %error, more, "a fragment could not be read; its bytes are rebuilt from others");
    }
}

/// A read of one fragment that is under way.
struct Asked {
    read: LocalBoxFuture<'static, Result<IoBytes, FragmentError>>,
    index: u8,
    range: Range<u32>,
}

impl Future for Asked {
    type Output = (u8, Range<u32>, Result<IoBytes, FragmentError>);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let read = self.read.as_mut().poll(context);
        read.map(|result| (self.index, self.range.clone(), result))
    }
}

/// What is known of a read that is under way.
struct Pending {
    index: u8,
    range: Range<u32>,
    source: Source,
    began: Instant,
    late_at: Instant,
    is_late: bool,
}

/// A range of one data fragment.
struct Piece {
    index: u8,
    range: Range<u32>,
    bytes: Option<IoBytes>,
    /// Others were asked since it was late.
    is_hedged: bool,
    /// No more can be asked because it is late.
    is_left: bool,
}

struct StripeRead<'a> {
    core: &'a Rc<Core>,
    fragments: &'a Fragments,
    pieces: Vec<Piece>,
    got: Vec<(u8, Range<u32>, IoBytes)>,
    pending: Vec<Pending>,
    failed: BTreeSet<u8>,
    /// A node or device that does not answer has damaged nothing.
    is_damage: bool,
    reading: FuturesUnordered<Asked>,
}

fn covers(outer: &Range<u32>, inner: &Range<u32>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}

/// What of the ranges is there.
pub struct Arrived<'r> {
    pieces: &'r [Piece],
    payload_len: u32,
}

impl<'r> Arrived<'r> {
    /// Whether all of a range is there.
    #[must_use]
    pub fn has(&self, range: &Range<u32>) -> bool {
        self.parts(range).all(|part| part.is_some())
    }

    /// The bytes of a range that is there: as they were read, or put together in `room` where they lie in several fragments.
    /// `None` where some are missing.
    pub fn get<'s>(&self, range: &Range<u32>, room: &'s mut Vec<u8>) -> Option<&'s [u8]>
    where
        'r: 's,
    {
        let mut parts = self.parts(range);
        let first = parts.next()??;
        if first.len() == range.len() {
            return Some(first);
        }
        room.clear();
        room.extend_from_slice(first);
        for part in parts {
            room.extend_from_slice(part?);
        }
        Some(room)
    }

    /// A range fragment by fragment.
    fn parts(&self, range: &Range<u32>) -> impl Iterator<Item = Option<&'r [u8]>> + use<'r> {
        let (pieces, len, range) = (self.pieces, self.payload_len, range.clone());
        (range.start / len..range.end.div_ceil(len)).map(move |index| {
            let part = range.start.max(index * len) - index * len..range.end.min((index + 1) * len) - index * len;
            let holds = |piece: &&Piece| u32::from(piece.index) == index && covers(&piece.range, &part);
            let piece = pieces.iter().find(holds)?;
            let start = (part.start - piece.range.start) as usize;
            piece.bytes.as_ref().map(|bytes| &bytes[start..start + part.len()])
        })
    }
}

/// Reads ranges of the envelope. `arrived` is called when more of them is there, the last time with all of it, and ends the read with
/// an error of its own.
pub async fn read_ranges(
    core: &Rc<Core>,
    fragments: &Fragments,
    ranges: &[Range<u32>],
    mut arrived: impl FnMut(&Arrived<'_>) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let pieces = pieces_of(fragments.shape, fragments.payload_len, ranges);
    let mut read = StripeRead {
        core,
        fragments,
        pieces,
        got: Vec::new(),
        pending: Vec::new(),
        failed: BTreeSet::new(),
        is_damage: true,
        reading: FuturesUnordered::new(),
    };
    let done = read.run(&mut arrived).await;
    read.let_go();
    done
}

/// The parts of data fragments that hold the ranges: near ones of a fragment as one, and where most fragments of a stripe are
/// read, the same range of all of them, so that each can stand in for another.
fn pieces_of(shape: StripeShape, len: u32, ranges: &[Range<u32>]) -> Vec<Piece> {
    let mut parts: Vec<(u8, Range<u32>)> = Vec::new();
    for range in ranges.iter().filter(|range| !range.is_empty()) {
        for index in range.start / len..range.end.div_ceil(len) {
            let (start, end) = (range.start.max(index * len), range.end.min((index + 1) * len));
            parts.push((index as u8, start - index * len..end - index * len));
        }
    }
    parts.sort_unstable_by_key(|(index, range)| (*index, range.start));
    let mut merged: Vec<(u8, Range<u32>)> = Vec::new();
    for (index, range) in parts {
        match merged.last_mut() {
            Some((last, before)) if *last == index && range.start <= before.end.saturating_add(GAP_LEN_BYTES_MAX) => {
                before.end = before.end.max(range.end);
            }
            _ => merged.push((index, range)),
        }
    }
    let indices: BTreeSet<u8> = merged.iter().map(|(index, _)| *index).collect();
    let hull = merged.iter().fold(len..0, |hull, (_, range)| hull.start.min(range.start)..hull.end.max(range.end));
    let missing: u32 = merged.iter().map(|(_, range)| (hull.end - hull.start) - (range.end - range.start)).sum();
    let is_whole = shape.data > 1 && indices.len() == merged.len() && indices.len() >= usize::from(shape.data);
    if is_whole && missing <= GAP_LEN_BYTES_MAX {
        merged.iter_mut().for_each(|(_, range)| *range = hull.clone());
    }
    let piece = |(index, range)| Piece { index, range, bytes: None, is_hedged: false, is_left: false };
    merged.into_iter().map(piece).collect()
}

impl StripeRead<'_> {
    async fn run(
        &mut self,
        arrived: &mut impl FnMut(&Arrived<'_>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.begin();
        let mut tick: Option<(Instant, LocalBoxFuture<'static, ()>)> = None;
        loop {
            self.settle()?;
            arrived(&Arrived { pieces: &self.pieces, payload_len: self.fragments.payload_len })?;
            if self.pieces.iter().all(|piece| piece.bytes.is_some()) {
                return Ok(());
            }
            self.ask_more()?;
            let Some(due) = self.next_late() else {
                let next = self.reading.next().await;
                self.take(next);
                continue;
            };
            // One timer serves the whole read unless something is late: what is due later finds it rung too soon.
            if tick.as_ref().is_none_or(|(at, _)| *at > due) {
                tick = Some((due, self.core.ports.sleep_until(due)));
            }
            let (_, timer) = tick.as_mut().expect("it was just set");
            let next = match select(self.reading.next(), timer).await {
                Either::Left((next, _)) => Some(next),
                Either::Right(_) => None,
            };
            match next {
                Some(next) => self.take(next),
                None => {
                    tick = None;
                    self.note_late();
                }
            }
        }
    }

    fn shape(&self) -> StripeShape {
        self.fragments.shape
    }

    fn needed(&self) -> usize {
        usize::from(self.shape().data)
    }

    fn device(&self, index: u8) -> DeviceId {
        self.fragments.by_index[&index].extent.device
    }

    fn is_slow(&self, index: u8, range: &Range<u32>, now: Instant) -> bool {
        self.core.latencies.is_slow(Source::read(self.device(index), range.len()), now)
    }

    /// The first reads: the data fragments themselves, of copies one that is near and not slow.
    fn begin(&mut self) {
        let now = self.core.ports.now();
        for piece in &self.pieces {
            if !self.fragments.by_index.contains_key(&piece.index) {
                want_repair(self.core, self.fragments, RepairCause::Missing);
            }
        }
        if self.shape().data == 1 {
            let ranges: Vec<Range<u32>> = self.pieces.iter().map(|piece| piece.range.clone()).collect();
            for range in ranges {
                if let Some(nearest) = self.candidates(&range, now).first().copied() {
                    self.ask(nearest, range, now);
                }
            }
        } else {
            let (present, slow) = self.by_pace(now);
            let spare = self.spare(&slow, now);
            let is_replaced = !slow.is_empty() && self.can_stand_in() && spare >= slow.len();
            if is_replaced {
                DataCounters::add(&self.core.counters.slow_reads_avoided, slow.len() as u64);
            }
            for (index, range) in present.into_iter().filter(|(index, _)| !(is_replaced && slow.contains(index))) {
                self.ask(index, range, now);
            }
        }
        self.core.hedge_budget.earn(self.pending.len());
    }

    /// The pieces that are there, and which of those lie on slow devices.
    fn by_pace(&self, now: Instant) -> (Vec<(u8, Range<u32>)>, BTreeSet<u8>) {
        let there = self.pieces.iter().filter(|piece| self.fragments.by_index.contains_key(&piece.index));
        let mut present: Vec<(u8, Range<u32>)> = there.map(|piece| (piece.index, piece.range.clone())).collect();
        // The last one has the tags: with them each of the others can be opened when it comes.
        let all = present.len();
        present.rotate_right(usize::from(all > 1));
        let slow = present.iter().filter(|(index, range)| self.is_slow(*index, range, now));
        let slow = slow.map(|(index, _)| *index).collect();
        (present, slow)
    }

    /// Fragments that no piece wants and that are not slow.
    fn spare(&self, slow: &BTreeSet<u8>, now: Instant) -> usize {
        if slow.is_empty() {
            return 0;
        }
        let range = self.pieces[0].range.clone();
        let is_wanted = |index: &u8| self.pieces.iter().any(|piece| piece.index == *index);
        let spare = self.fragments.by_index.keys().filter(|index| !is_wanted(index));
        spare.filter(|index| !self.is_slow(**index, &range, now)).count()
    }

    /// Whether each of the pieces can stand in for another: as many as the data need, all of the same range.
    fn can_stand_in(&self) -> bool {
        let first = &self.pieces[0].range;
        self.pieces.len() >= self.needed() && self.pieces.iter().all(|piece| piece.range == *first)
    }

    /// Fragments that may be asked for a range and were not, the best first: not slow, near, data.
    fn candidates(&self, range: &Range<u32>, now: Instant) -> Vec<u8> {
        let is_taken = |index: &u8| {
            self.failed.contains(index)
                || self
                    .pending
                    .iter()
                    .any(|pending| pending.index == *index && (pending.is_late || covers(&pending.range, range)))
                || self.got.iter().any(|(got, of, _)| got == index && covers(of, range))
        };
        let mut free: Vec<u8> = self.fragments.by_index.keys().filter(|index| !is_taken(index)).copied().collect();
        free.sort_by_key(|index| {
            let device = self.device(*index);
            (self.is_slow(*index, range, now), !self.core.fragments.is_here(device), *index)
        });
        free
    }

    fn ask(&mut self, index: u8, range: Range<u32>, now: Instant) {
        let fragment = &self.fragments.by_index[&index];
        let source = Source::read(fragment.extent.device, range.len());
        let late_at = now + self.core.latencies.late_after(source);
        let read = self.core.fragments.read(fragment, range.clone());
        self.reading.push(Asked { read, index, range: range.clone() });
        self.pending.push(Pending { index, range, source, began: now, late_at, is_late: false });
    }

    fn take(&mut self, next: Option<(u8, Range<u32>, Result<IoBytes, FragmentError>)>) {
        let (index, range, result) = next.expect("what is waited for was asked");
        let at = self.pending.iter().position(|pending| pending.index == index && pending.range == range);
        let pending = self.pending.swap_remove(at.expect("what is read is pending"));
        match result {
            Ok(bytes) => {
                let now = self.core.ports.now();
                self.core.latencies.record(pending.source, now.since(pending.began), now);
                self.got.push((index, range, bytes));
            }
            Err(error) => {
                self.is_damage &= matches!(error, FragmentError::Corrupt { .. });
                self.failed.insert(index);
                note_unreadable(self.core, self.fragments, self.device(index), &error);
            }
        }
    }

    /// Gives each piece its bytes that can have them.
    fn settle(&mut self) -> Result<(), StoreError> {
        for at in 0..self.pieces.len() {
            let Piece { index, range, bytes: None, is_hedged, .. } = &self.pieces[at] else { continue };
            let cut = |of: &Range<u32>, bytes: &IoBytes| {
                bytes.slice((range.start - of.start) as usize..(range.end - of.start) as usize)
            };
            let covering = self.got.iter().filter(|(_, of, _)| covers(of, range));
            let mut sources: BTreeMap<u8, IoBytes> =
                covering.map(|(index, of, bytes)| (*index, cut(of, bytes))).collect();
            let own = if self.shape().data > 1 { sources.remove(index) } else { None };
            let bytes = match own {
                Some(own) => own,
                None if sources.len() < self.needed() => continue,
                None => {
                    let is_copy = self.shape().data == 1;
                    let is_late = |pending: &Pending| pending.is_late && (is_copy || pending.index == *index);
                    let is_won = *is_hedged && self.pending.iter().any(is_late);
                    DataCounters::add(&self.core.counters.hedged_reads_won, u64::from(is_won));
                    self.rebuild(*index, sources)?
                }
            };
            self.pieces[at].bytes = Some(bytes);
        }
        Ok(())
    }

    fn rebuild(&self, index: u8, mut sources: BTreeMap<u8, IoBytes>) -> Result<IoBytes, StoreError> {
        if self.shape().data == 1 {
            // Each copy is all of it. One that others had to stand in for was rebuilt from them.
            DataCounters::add(&self.core.counters.rebuilds, u64::from(!self.failed.is_empty()));
            return Ok(sources.pop_first().expect("enough were counted").1);
        }
        DataCounters::add(&self.core.counters.rebuilds, 1);
        let sources: Vec<(u8, &[u8])> =
            sources.iter().take(self.needed()).map(|(index, bytes)| (*index, &**bytes)).collect();
        let rebuilt = self.core.coder.rebuild(self.shape(), &sources, &[index]);
        let mut rebuilt = rebuilt.map_err(|error| StoreError::Damaged { reason: error.to_string() })?;
        Ok(rebuilt.remove(0).freeze())
    }

    /// Whether a read that is under way gives a piece its bytes by itself.
    fn is_itself(&self, piece: &Piece, pending: &Pending) -> bool {
        (self.shape().data == 1 || pending.index == piece.index) && covers(&pending.range, &piece.range)
    }

    /// Asks others for what does not come: at once for what can't come, and as the budget allows for what is late.
    fn ask_more(&mut self) -> Result<(), StoreError> {
        let now = self.core.ports.now();
        for at in 0..self.pieces.len() {
            let piece = &self.pieces[at];
            let is_open = piece.bytes.is_none();
            let is_on_its_way = |late: bool| {
                self.pending.iter().any(|pending| (late || !pending.is_late) && self.is_itself(piece, pending))
            };
            if !is_open || is_on_its_way(false) {
                continue;
            }
            let range = piece.range.clone();
            let mut coming: BTreeSet<u8> =
                self.got.iter().filter(|(_, of, _)| covers(of, &range)).map(|(index, ..)| *index).collect();
            let of_pending = |late: bool| {
                let fits = move |pending: &&Pending| pending.is_late == late;
                self.pending
                    .iter()
                    .filter(fits)
                    .filter(|pending| covers(&pending.range, &range))
                    .map(|pending| pending.index)
            };
            coming.extend(of_pending(false));
            let deficit = self.needed().saturating_sub(coming.len());
            if deficit == 0 {
                continue;
            }
            let may_come =
                is_on_its_way(true) || coming.iter().copied().chain(of_pending(true)).count() >= self.needed();
            let free = self.candidates(&range, now);
            if !may_come {
                if free.len() < deficit && self.pending.is_empty() {
                    return Err(self.too_few(coming.len()));
                }
                free.into_iter().take(deficit).for_each(|index| self.ask(index, range.clone(), now));
                continue;
            }
            if self.pieces[at].is_left {
                continue;
            }
            let core = self.core;
            let counters = &core.counters;
            let has_place = self.core.late_reads.get() < LATE_READS_MAX && free.len() >= deficit;
            if !has_place || !self.core.hedge_budget.spend(deficit) {
                DataCounters::add(&counters.hedged_reads_refused, 1);
                self.pieces[at].is_left = true;
                continue;
            }
            DataCounters::add(&counters.hedged_reads, deficit as u64);
            self.pieces[at].is_hedged = true;
            free.into_iter().take(deficit).for_each(|index| self.ask(index, range.clone(), now));
        }
        Ok(())
    }

    /// When the next read is late that others could stand in for.
    fn next_late(&self) -> Option<Instant> {
        if self.fragments.by_index.len() <= self.needed() {
            return None;
        }
        self.pending.iter().filter(|pending| !pending.is_late).map(|pending| pending.late_at).min()
    }

    fn note_late(&mut self) {
        let now = self.core.ports.now();
        self.pending.iter_mut().filter(|pending| pending.late_at <= now).for_each(|pending| pending.is_late = true);
    }

    fn too_few(&self, good: usize) -> StoreError {
        let reason = format!("{good} fragments of a stripe are good, {} are needed", self.needed());
        match self.is_damage {
            true => StoreError::Damaged { reason },
            false => StoreError::Unavailable { reason },
        }
    }

    /// What nobody waits for any more runs out by itself: its buffers, its credits and its device are free when it ends.
    fn let_go(&mut self) {
        if self.reading.is_empty() {
            return;
        }
        let now = self.core.ports.now();
        for pending in self.pending.iter().filter(|pending| pending.is_late) {
            self.core.latencies.record(pending.source, now.since(pending.began), now);
        }
        let (core, mut reading) = (self.core.clone(), std::mem::take(&mut self.reading));
        core.late_reads.set(core.late_reads.get() + reading.len());
        let ports = core.ports.clone();
        let running_out = async move {
            while reading.next().await.is_some() {
                core.late_reads.set(core.late_reads.get() - 1);
            }
        };
        ports.spawn("late reads", Box::pin(running_out));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_ranges_are_read_as_one_and_whole_stripes_over_the_same_range() {
        type Case = ((u8, u8), u32, [Range<u32>; 2], Vec<(u8, Range<u32>)>);
        const KIB: u32 = 1024;
        let cases: &[Case] = &[
            ((1, 2), 12 * KIB, [0..9_000, 9_000..9_016], vec![(0, 0..9_016)]),
            ((1, 2), 4096 * KIB, [0..KIB, 2_000 * KIB..2_001 * KIB], vec![(0, 0..KIB), (0, 2_000 * KIB..2_001 * KIB)]),
            (
                (4, 2),
                52 * KIB,
                [0..200_000, 200_000..200_064],
                vec![(0, 0..52 * KIB), (1, 0..52 * KIB), (2, 0..52 * KIB), (3, 0..52 * KIB)],
            ),
            (
                (4, 2),
                256 * KIB,
                [0..64 * KIB, 1_000 * KIB..1_001 * KIB],
                vec![(0, 0..64 * KIB), (3, 232 * KIB..233 * KIB)],
            ),
            ((4, 2), 256 * KIB, [200 * KIB..300 * KIB, 0..0], vec![(0, 200 * KIB..256 * KIB), (1, 0..44 * KIB)]),
        ];
        for (shape, len, ranges, expected) in cases {
            let shape = StripeShape { data: shape.0, parity: shape.1 };
            let pieces = pieces_of(shape, *len, ranges);
            let found: Vec<(u8, Range<u32>)> = pieces.into_iter().map(|piece| (piece.index, piece.range)).collect();
            assert_eq!(found, *expected, "{shape:?} {len} {ranges:?}");
        }
    }
}
