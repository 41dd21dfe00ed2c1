//! Bytes of one chunk back from its fragments: find them, read what is needed ([`crate::stripe_read`]), and open and hand out each
//! part of it as soon as what comes before it is there.

use crate::api::StoreError;
use crate::composition::ChunkReference;
use crate::core::{Core, DataCounters};
use crate::delta::ChunkName;
use crate::envelope::{EnvelopeBinding, EnvelopeError, EnvelopeRanges, SegmentOpener, envelope_len};
use crate::nodes::Standing;
use crate::stages::Stage;
use crate::stripe::fragment_payload_len;
use crate::stripe_read::{Arrived, Fragments, read_ranges};
use bytes::Bytes;
use kiseki_types::fragment::{FragmentError, Located, StoredFragment};
use kiseki_types::secret::SecretKey;
use std::collections::BTreeMap;
use std::future::Future;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

/// Reads and opens the bytes `wanted` of a chunk's plaintext; not none, and inside. Each part is handed out when it is there and has been
/// checked (I-C9), in their order.
pub async fn read_chunk(
    core: &Rc<Core>,
    reference: &ChunkReference,
    dek: &SecretKey,
    wanted: Range<u32>,
    mut hand_out: impl FnMut(Bytes),
) -> Result<(), StoreError> {
    let mut opening = Opening::new(core, reference, dek, wanted)?;
    let located = core.fragments.locate_soon(reference.locator, reference.generation);
    match opening.read(reference, located, &mut hand_out).await {
        // Nodes that are late may have what is missing, and what was moved meanwhile lies elsewhere.
        Err(_) if !opening.is_damaged => {
            let located = core.fragments.locate(reference.locator, reference.generation);
            opening.read(reference, located, &mut hand_out).await
        }
        read => read,
    }
}

/// The bytes of a chunk that are read, and what of them has been opened.
struct Opening<'c> {
    core: &'c Rc<Core>,
    opener: SegmentOpener,
    ranges: EnvelopeRanges,
    wanted: Range<u32>,
    /// The next segment to be opened.
    next: u32,
    tags: Option<Vec<u8>>,
    /// Where segments are put together that lie in several fragments.
    room: Vec<u8>,
    /// How long opening has taken, if something was opened.
    took: Option<Duration>,
    /// What was read is not what was stored; reading it once more changes nothing.
    is_damaged: bool,
}

impl<'c> Opening<'c> {
    fn new(
        core: &'c Rc<Core>,
        reference: &ChunkReference,
        dek: &SecretKey,
        wanted: Range<u32>,
    ) -> Result<Opening<'c>, StoreError> {
        let binding = EnvelopeBinding::current(reference.locator, reference.len_bytes);
        let opener = SegmentOpener::new(dek, binding).map_err(damaged)?;
        let ranges = EnvelopeRanges::covering(reference.len_bytes, wanted.clone());
        let (next, tags, room, took) = (ranges.segments.start, None, Vec::new(), None);
        Ok(Opening { core, opener, ranges, wanted, next, tags, room, took, is_damaged: false })
    }

    /// Reads what has not been opened yet, from where it is said to lie.
    async fn read(
        &mut self,
        reference: &ChunkReference,
        located: impl Future<Output = Result<Located, FragmentError>>,
        hand_out: &mut impl FnMut(Bytes),
    ) -> Result<(), StoreError> {
        let core = self.core;
        let (stages, ports) = (&core.stages, &core.ports);
        let fragments = fragments(core, reference, stages.time(Stage::Locate, ports, located).await)?;
        let tags = if self.tags.is_none() { self.ranges.tags.clone() } else { 0..0 };
        let ranges = [self.ranges.of_segment(self.next).start..self.ranges.ciphertext.end, tags];
        self.took = None;
        let since = ports.now();
        let read = read_ranges(core, &fragments, &ranges, |arrived| match self.open(arrived)? {
            Some(part) => {
                DataCounters::add(&core.counters.bytes_read, part.len() as u64);
                hand_out(part);
                Ok(())
            }
            None => Ok(()),
        });
        let read = read.await;
        let took = self.took.unwrap_or_default();
        stages.record(Stage::ReadFragments, ports.now().since(since).saturating_sub(took));
        if self.took.is_some() {
            stages.record(Stage::Open, took);
        }
        read
    }

    /// Opens what is there behind what was opened before.
    fn open(&mut self, arrived: &Arrived<'_>) -> Result<Option<Bytes>, StoreError> {
        if self.tags.is_none() {
            self.tags = arrived.get(&self.ranges.tags, &mut self.room).map(<[u8]>::to_vec);
        }
        let Some(tags) = &self.tags else { return Ok(None) };
        let first = self.next;
        let is_there = |segment: &u32| arrived.has(&self.ranges.of_segment(*segment));
        let there = first..(first..self.ranges.segments.end).take_while(is_there).last().map_or(first, |last| last + 1);
        if there.is_empty() {
            return Ok(None);
        }
        let since = self.core.ports.now();
        let bytes = self.ranges.of_segment(first).start..self.ranges.of_segment(there.end - 1).end;
        let mut out = Vec::with_capacity(bytes.len());
        for segment in there.clone() {
            let text = arrived.get(&self.ranges.of_segment(segment), &mut self.room).expect("it was there");
            let tag = &tags.as_chunks().0[(segment - self.ranges.segments.start) as usize];
            let begins = out.len();
            out.resize(begins + text.len(), 0);
            if let Err(error) = self.opener.open(segment, text, tag, &mut out[begins..]) {
                self.is_damaged = true;
                return Err(damaged(error));
            }
        }
        self.next = there.end;
        self.took = Some(self.took.unwrap_or_default() + self.core.ports.now().since(since));
        let wanted = self.wanted.start.max(bytes.start) - bytes.start..self.wanted.end.min(bytes.end) - bytes.start;
        Ok(Some(Bytes::from(out).slice(wanted.start as usize..wanted.end as usize)))
    }
}

fn damaged(error: EnvelopeError) -> StoreError {
    StoreError::Damaged { reason: error.to_string() }
}

/// Whether a node has not said what it has and is not silent either.
fn is_late(core: &Core, located: &Located) -> bool {
    let now = core.ports.now();
    located.unanswered.iter().any(|node| core.nodes.standing(*node, now) == Standing::Here)
}

/// What can be asked of what was found.
fn fragments(
    core: &Rc<Core>,
    reference: &ChunkReference,
    located: Result<Located, FragmentError>,
) -> Result<Fragments, StoreError> {
    let readable = core.devices.readable();
    let located = located.map_err(|error| StoreError::Unavailable { reason: error.to_string() })?;
    let (is_all, is_late, stored) = (located.is_all(), is_late(core, &located), located.found);
    // Generations are never combined: `locate` was asked for exactly one, and all its fragments are of one shape.
    let shape = match stored.first() {
        Some(first) => first.meta.shape,
        None => return Err(too_few(reference, 0, 1, is_all)),
    };
    let by_index: BTreeMap<u8, StoredFragment> = stored
        .into_iter()
        .filter(|fragment| fragment.meta.shape == shape && readable.contains(&fragment.extent.device))
        .map(|fragment| (fragment.meta.key.index, fragment))
        .collect();
    if by_index.len() < usize::from(shape.data) {
        return Err(too_few(reference, by_index.len(), usize::from(shape.data), is_all));
    }
    let payload_len = fragment_payload_len(envelope_len(reference.len_bytes), shape);
    let name = ChunkName { locator: reference.locator, generation: reference.generation };
    Ok(Fragments { name, by_index, shape, payload_len, is_all, is_late })
}

fn too_few(reference: &ChunkReference, usable: usize, needed: usize, is_all: bool) -> StoreError {
    let locator = reference.locator;
    let back = if is_all { "bring devices back" } else { "nodes don't answer, bring them back" };
    StoreError::Unavailable {
        reason: format!("{usable} fragments of {locator} can be read, {needed} are needed; {back}"),
    }
}
