//! Bytes of one chunk back from its fragments: read what is needed, check it, rebuild what is missing or bad, open it.

use crate::api::StoreError;
use crate::composition::ChunkReference;
use crate::core::{Core, DataCounters};
use crate::delta::ChunkName;
use crate::envelope::{EnvelopeBinding, EnvelopeRanges, envelope_len, open_segments};
use crate::repair_queue::{Margin, RepairCause};
use crate::repairer;
use crate::stripe::fragment_payload_len;
use futures::future::{join_all, try_join, try_join_all};
use kiseki_types::buf::IoBytes;
use kiseki_types::fragment::{FragmentError, StoredFragment, StripeShape};
use kiseki_types::secret::SecretKey;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;
use tracing::warn;

/// The fragments of one generation that can be asked, by index.
struct Fragments {
    name: ChunkName,
    by_index: BTreeMap<u8, StoredFragment>,
    shape: StripeShape,
    payload_len: u32,
    /// Whether what was not found is nowhere: otherwise a node that does not answer may have it.
    is_all: bool,
}

/// Reads and opens the bytes `wanted` of a chunk's plaintext; not none, and inside.
pub async fn read_chunk(
    core: &Rc<Core>,
    reference: &ChunkReference,
    dek: &SecretKey,
    wanted: Range<u32>,
) -> Result<Vec<u8>, StoreError> {
    let binding = EnvelopeBinding::current(reference.locator, reference.len_bytes);
    let ranges = EnvelopeRanges::covering(reference.len_bytes, wanted.clone());
    let fragments = locate(core, reference).await?;
    let (ciphertext, tags) = try_join(
        read_envelope(core, &fragments, ranges.ciphertext.clone()),
        read_envelope(core, &fragments, ranges.tags.clone()),
    )
    .await?;
    let mut plaintext = vec![0; ciphertext.len()];
    open_segments(dek, &binding, ranges.segments.clone(), &ciphertext, &tags, &mut plaintext)
        .map_err(|error| StoreError::Damaged { reason: error.to_string() })?;
    let start = (wanted.start - ranges.ciphertext.start) as usize;
    plaintext.truncate(start + wanted.len());
    plaintext.drain(..start);
    DataCounters::add(&core.counters.bytes_read, wanted.len() as u64);
    Ok(plaintext)
}

async fn locate(core: &Rc<Core>, reference: &ChunkReference) -> Result<Fragments, StoreError> {
    let readable = core.devices.readable();
    let located = core.fragments.locate(reference.locator, reference.generation).await;
    let located = located.map_err(|error| StoreError::Unavailable { reason: error.to_string() })?;
    let (is_all, stored) = (located.is_all(), located.found);
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
    Ok(Fragments { name, by_index, shape, payload_len, is_all })
}

fn too_few(reference: &ChunkReference, usable: usize, needed: usize, is_all: bool) -> StoreError {
    let locator = reference.locator;
    let back = if is_all { "bring devices back" } else { "nodes don't answer, bring them back" };
    StoreError::Unavailable {
        reason: format!("{usable} fragments of {locator} can be read, {needed} are needed; {back}"),
    }
}

/// A range of the envelope in one piece.
async fn read_envelope(core: &Rc<Core>, fragments: &Fragments, range: Range<u32>) -> Result<Vec<u8>, StoreError> {
    if fragments.shape.data == 1 {
        return Ok(read_piece(core, fragments, 0, range).await?.to_vec());
    }
    let len = fragments.payload_len;
    let pieces = (range.start / len..range.end.div_ceil(len)).map(|index| {
        let start = range.start.max(index * len) - index * len;
        let end = range.end.min((index + 1) * len) - index * len;
        read_piece(core, fragments, index as u8, start..end)
    });
    let pieces = try_join_all(pieces).await?;
    let mut out = Vec::with_capacity(range.len());
    for piece in pieces {
        out.extend_from_slice(&piece);
    }
    Ok(out)
}

/// Has the stripe repaired in the background: this read is served without the fragment, the next one should not have to.
fn want_repair(core: &Rc<Core>, fragments: &Fragments, cause: RepairCause) {
    let gone = usize::from(cause == RepairCause::Unreadable);
    let margin = (fragments.by_index.len() - gone) as Margin - Margin::from(fragments.shape.data);
    if cause == RepairCause::Missing && !fragments.is_all && margin > 0 {
        return; // a silent node may have it, and there is time to wait for that one
    }
    repairer::report(core, fragments.name, margin.max(0), cause);
}

fn note_unreadable(core: &Rc<Core>, fragments: &Fragments, fragment: &StoredFragment, error: &FragmentError) {
    if let FragmentError::Corrupt { .. } = error {
        want_repair(core, fragments, RepairCause::Unreadable);
    }
    if let Some(more) = core.unreadable.pass(core.ports.now()) {
        let device = fragment.extent.device;
        warn!(%device, %error, more, "a fragment could not be read; its bytes are rebuilt from others");
    }
}

/// A range of one data fragment's payload, rebuilt from the same range of others when it can't be read.
async fn read_piece(
    core: &Rc<Core>,
    fragments: &Fragments,
    index: u8,
    range: Range<u32>,
) -> Result<IoBytes, StoreError> {
    let mut tried = BTreeSet::new();
    // A node or device that does not answer has damaged nothing.
    let mut is_damage = true;
    if let Some(fragment) = fragments.by_index.get(&index) {
        tried.insert(index);
        match core.fragments.read(fragment, range.clone()).await {
            Ok(bytes) => return Ok(bytes),
            Err(error) => {
                is_damage &= matches!(error, FragmentError::Corrupt { .. });
                note_unreadable(core, fragments, fragment, &error);
            }
        }
    } else {
        want_repair(core, fragments, RepairCause::Missing);
    }
    DataCounters::add(&core.counters.rebuilds, 1);
    let needed = usize::from(fragments.shape.data);
    let mut good: Vec<(u8, IoBytes)> = Vec::new();
    while good.len() < needed {
        let next: Vec<&StoredFragment> = fragments
            .by_index
            .values()
            .filter(|fragment| !tried.contains(&fragment.meta.key.index))
            .take(needed - good.len())
            .collect();
        if next.is_empty() {
            let reason = format!("{} fragments of a stripe are good, {needed} are needed", good.len());
            return Err(match is_damage {
                true => StoreError::Damaged { reason },
                false => StoreError::Unavailable { reason },
            });
        }
        tried.extend(next.iter().map(|fragment| fragment.meta.key.index));
        let read = next.iter().map(|fragment| core.fragments.read(fragment, range.clone()));
        for (fragment, result) in next.iter().zip(join_all(read).await) {
            match result {
                Ok(bytes) => good.push((fragment.meta.key.index, bytes)),
                Err(error) => {
                    is_damage &= matches!(error, FragmentError::Corrupt { .. });
                    note_unreadable(core, fragments, fragment, &error);
                }
            }
        }
    }
    let sources: Vec<(u8, &[u8])> = good.iter().map(|(index, bytes)| (*index, &**bytes)).collect();
    let rebuilt = core.coder.rebuild(fragments.shape, &sources, &[index]);
    let mut rebuilt = rebuilt.map_err(|error| StoreError::Damaged { reason: error.to_string() })?;
    Ok(rebuilt.remove(0).freeze())
}
