//! Bytes of one chunk back from its fragments: find them, read what is needed ([`crate::stripe_read`]), open it.

use crate::api::StoreError;
use crate::composition::ChunkReference;
use crate::core::{Core, DataCounters};
use crate::delta::ChunkName;
use crate::envelope::{EnvelopeBinding, EnvelopeRanges, envelope_len, open_segments};
use crate::nodes::Standing;
use crate::stages::Stage;
use crate::stripe::fragment_payload_len;
use crate::stripe_read::{Fragments, read_ranges};
use kiseki_types::fragment::{FragmentError, Located, StoredFragment};
use kiseki_types::secret::SecretKey;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

/// Reads and opens the bytes `wanted` of a chunk's plaintext; not none, and inside.
pub async fn read_chunk(
    core: &Rc<Core>,
    reference: &ChunkReference,
    dek: &SecretKey,
    wanted: Range<u32>,
) -> Result<Vec<u8>, StoreError> {
    let binding = EnvelopeBinding::current(reference.locator, reference.len_bytes);
    let ranges = EnvelopeRanges::covering(reference.len_bytes, wanted.clone());
    let wanted_ranges = || [ranges.ciphertext.clone(), ranges.tags.clone()];
    let [ciphertext, tags] = match read_soon(core, reference, wanted_ranges()).await {
        Ok(read) => read,
        Err(_) => {
            // Nodes that are late may have what is missing, and what was moved meanwhile lies elsewhere.
            let (stages, ports) = (&core.stages, &core.ports);
            let located = core.fragments.locate(reference.locator, reference.generation);
            let fragments = fragments(core, reference, stages.time(Stage::Locate, ports, located).await)?;
            stages.time(Stage::ReadFragments, ports, read_ranges(core, &fragments, wanted_ranges())).await?
        }
    };
    let since = core.ports.now();
    let mut plaintext = vec![0; ciphertext.len()];
    open_segments(dek, &binding, ranges.segments.clone(), &ciphertext, &tags, &mut plaintext)
        .map_err(|error| StoreError::Damaged { reason: error.to_string() })?;
    core.stages.ended(Stage::Open, since, &core.ports);
    let start = (wanted.start - ranges.ciphertext.start) as usize;
    plaintext.truncate(start + wanted.len());
    plaintext.drain(..start);
    DataCounters::add(&core.counters.bytes_read, wanted.len() as u64);
    Ok(plaintext)
}

/// Reads with what is known soon of where the fragments lie.
async fn read_soon(
    core: &Rc<Core>,
    reference: &ChunkReference,
    ranges: [Range<u32>; 2],
) -> Result<[Vec<u8>; 2], StoreError> {
    let (stages, ports) = (&core.stages, &core.ports);
    let located = core.fragments.locate_soon(reference.locator, reference.generation);
    let fragments = fragments(core, reference, stages.time(Stage::Locate, ports, located).await)?;
    stages.time(Stage::ReadFragments, ports, read_ranges(core, &fragments, ranges)).await
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
