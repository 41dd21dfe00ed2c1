//! Making a device ours: refuse what carries data, clear, lay out, write the superblock last.
//!
//! What is written is decided first ([`planned_writes`]), so that it can be shown, and then done exactly so. An NVMe
//! namespace may be formatted by its drive before that: see [`namespace`].

pub mod namespace;
#[cfg(test)]
mod tests;
mod writes;

use crate::device_tail::DeviceTail;
use crate::error::DeviceError;
use crate::layout::DeviceLayout;
use crate::probe::{FoundSignature, probe_device};
use crate::recovery::format_journal;
use crate::superblock::{DeviceClass, FormatMarker, MetadataEpoch, Superblock, write_superblock};
use futures::stream::{self, StreamExt, TryStreamExt};
use kiseki_types::device::Device;
use kiseki_types::runtime::Ports;
use kiseki_types::{BlockIndex, ClusterId, DeviceId, IoBuf, IoBytes, LaneId, PoolId};
use std::rc::Rc;
pub use writes::{FormatStep, PlannedWrite, planned_writes};

/// Bytes of zeros in one write.
const ZEROS_LEN_BYTES: usize = 1 << 20;

/// Writes of zeros at once.
const ZEROING_DEPTH: usize = 8;

/// How a device is to be formatted.
#[derive(Clone, Debug)]
pub struct FormatRequest {
    /// The cluster that it is to belong to.
    pub cluster: ClusterId,
    /// Its new id, drawn at random: a device formatted again is another device.
    pub device: DeviceId,
    /// Its pool.
    pub pool: PoolId,
    /// Its class.
    pub class: DeviceClass,
    /// Lanes of the node, 1 to 256.
    pub lanes: u16,
    /// The node's metadata-set epoch now; the default on a new node.
    pub metadata: MetadataEpoch,
    /// Names of the signatures that may be overwritten, as [`probe_device`] gives them (I-D7).
    pub wipe_confirmed: Vec<String>,
}

/// How far the writes of a format are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FormatProgress {
    /// What is being written.
    pub step: FormatStep,
    /// Bytes written, of all steps.
    pub done_bytes: u64,
    /// Bytes that all steps write.
    pub total_bytes: u64,
}

/// Formats a device; everything on it is lost, and it is durable on return.
///
/// A crash at any point leaves either what was there, or a device that says that its format was interrupted, or a
/// formatted one: a marker takes the place of the old superblocks first, and the new ones come last, so that none ever
/// stands over a journal that is not whole. The same format again starts over.
///
/// - `tail`: what lies behind the device's last whole block, where there is such.
/// - Errors: `Signed` when a signature is not confirmed, before anything is written; `TooSmall`, `Lanes`, `Io`.
pub async fn format(
    ports: &Ports,
    device: &Rc<dyn Device>,
    tail: Option<&DeviceTail>,
    request: &FormatRequest,
    mut progress: impl FnMut(FormatProgress),
) -> Result<Superblock, DeviceError> {
    let found = probe_device(&**device, tail).await?;
    refuse_unconfirmed(device.name(), &found, request.cluster, &request.wipe_confirmed)?;
    let layout = DeviceLayout::compute(device.geometry(), request.lanes)?;
    let writes = planned_writes(&layout, tail.map(DeviceTail::bytes));
    let total_bytes = writes.iter().map(PlannedWrite::len_bytes).sum();
    let mut superblock = Superblock {
        cluster: request.cluster,
        device: request.device,
        pool: request.pool,
        class: request.class,
        layout,
        generation: 0,
        incarnation: 0,
        metadata: request.metadata.clone(),
    };
    let mut before = 0;
    for write in &writes {
        let step = write.step;
        let mut report = |written| progress(FormatProgress { step, done_bytes: before + written, total_bytes });
        report(0);
        match step {
            FormatStep::Mark => mark(&**device, request, write).await?,
            FormatStep::Unmark | FormatStep::ClearEnds => zero(&**device, tail, write, &mut report).await?,
            FormatStep::StartJournals => {
                let mut written = 0;
                for (lane, (_, len)) in (0..).map(LaneId).zip(&write.runs) {
                    let started = format_journal(ports, request.device, device.name(), &layout, device, lane).await;
                    started.map_err(Box::new)?;
                    written += len;
                    report(written);
                }
            }
            FormatStep::Superblock { generation } => {
                superblock.generation = generation;
                write_superblock(&**device, &superblock).await?;
            }
        }
        before += write.len_bytes();
    }
    Ok(superblock)
}

/// Puts the marker where a superblock belongs: flushed, so that the old ones are gone for good before anything else is.
async fn mark(device: &dyn Device, request: &FormatRequest, write: &PlannedWrite) -> Result<(), DeviceError> {
    let marker = FormatMarker { cluster: request.cluster, device: request.device }.encode();
    let block = u64::from(device.geometry().block_len_bytes);
    for (start, _) in &write.runs {
        let written = device.write(BlockIndex(start / block), vec![IoBuf::copy_of(&marker).freeze()]).await;
        written.map_err(|source| DeviceError::io(device.name(), "marking", source))?;
    }
    device.flush().await.map_err(|source| DeviceError::io(device.name(), "flushing", source))
}

/// Marks a device whose format is about to begin with a command to its drive, which erases it in its own time.
pub async fn mark_begun(device: &dyn Device, request: &FormatRequest) -> Result<(), DeviceError> {
    let layout = DeviceLayout::compute(device.geometry(), request.lanes)?;
    match planned_writes(&layout, None).iter().find(|write| write.step == FormatStep::Mark) {
        Some(write) => mark(device, request, write).await,
        None => unreachable!("every format begins with its mark"),
    }
}

/// I-D7: each signature has to be confirmed by its name; only a device of the same cluster that no node ever used may be
/// formatted again without. Errors: `Signed`, which lists those that are not confirmed.
pub fn refuse_unconfirmed(
    name: &str,
    found: &[FoundSignature],
    cluster: ClusterId,
    confirmed: &[String],
) -> Result<(), DeviceError> {
    let is_free = |signature: &FoundSignature| signature.unused_of == Some(cluster) && signature.partition.is_none();
    let missing: Vec<_> =
        found.iter().filter(|signature| !is_free(signature) && !confirmed.contains(&signature.name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list =
        |part: fn(&FoundSignature) -> &str| missing.iter().map(|found| part(found)).collect::<Vec<_>>().join(", ");
    Err(DeviceError::Signed {
        device: name.to_owned(),
        found: list(|signature| &signature.description),
        confirm: list(|signature| &signature.name),
    })
}

/// Writes zeros over a planned write's runs, then flushes.
async fn zero(
    device: &dyn Device,
    tail: Option<&DeviceTail>,
    write: &PlannedWrite,
    report: &mut impl FnMut(u64),
) -> Result<(), DeviceError> {
    let block = u64::from(device.geometry().block_len_bytes);
    let zeros: IoBytes = IoBuf::zeroed(ZEROS_LEN_BYTES).freeze();
    let (blocks, behind): (Vec<_>, Vec<_>) =
        write.runs.iter().partition(|(start, _)| *start < device.geometry().len_bytes());
    if let (Some(tail), false) = (tail, behind.is_empty()) {
        tail.zero()?;
    }
    let pieces = blocks.iter().flat_map(|(start, len)| {
        (0..len.div_ceil(ZEROS_LEN_BYTES as u64)).map(move |piece| {
            let at = piece * ZEROS_LEN_BYTES as u64;
            (BlockIndex((start + at) / block), (len - at).min(ZEROS_LEN_BYTES as u64) as usize)
        })
    });
    let mut written = stream::iter(pieces)
        .map(|(start, len)| {
            let write = device.write(start, vec![zeros.slice(0..len)]);
            async move { write.await.map(|()| len as u64) }
        })
        .buffer_unordered(ZEROING_DEPTH);
    let mut done = 0;
    while let Some(len) =
        written.try_next().await.map_err(|source| DeviceError::io(device.name(), "clearing", source))?
    {
        done += len;
        report(done);
    }
    device.flush().await.map_err(|source| DeviceError::io(device.name(), "flushing", source))
}
