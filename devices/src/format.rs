//! Making a device ours: refuse what carries data, clear, lay out, write the superblock last.

use crate::error::DeviceError;
use crate::layout::{DeviceLayout, SUPERBLOCK_LEN_BYTES};
use crate::probe::{FoundSignature, ends, probe_device};
use crate::recovery::format_journals;
use crate::superblock::{DeviceClass, MetadataEpoch, Superblock, write_superblock};
use futures::stream::{self, StreamExt, TryStreamExt};
use kiseki_types::device::Device;
use kiseki_types::runtime::Ports;
use kiseki_types::{BlockIndex, ClusterId, DeviceId, IoBuf, IoBytes, LaneId, PoolId};
use std::rc::Rc;

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

/// Formats a device; everything on it is lost, and it is durable on return.
///
/// A crash at any point leaves either what was there, or a device without a superblock, or a formatted one: the old
/// superblocks go first and the new ones come last, so that none ever stands over a journal that is not whole.
///
/// Errors: `Signed` when a signature is not confirmed, before anything is written; `TooSmall`, `Lanes`, `Io`.
pub async fn format(
    ports: &Ports,
    device: &Rc<dyn Device>,
    request: &FormatRequest,
) -> Result<Superblock, DeviceError> {
    let whole = device.clone();
    let device = &**device;
    refuse_unconfirmed(device.name(), &probe_device(device).await?, &request.wipe_confirmed)?;
    let layout = DeviceLayout::compute(device.geometry(), request.lanes)?;
    let block = u64::from(layout.block_len_bytes());
    let copies = DeviceLayout::superblock_offsets(layout.geometry());
    zero(device, copies.map(|offset| (BlockIndex(offset / block), SUPERBLOCK_LEN_BYTES as u64))).await?;
    // What others left at the ends, so that no tool takes the device for theirs.
    let (front, far) = ends(layout.geometry());
    zero(device, [front, far].map(|(start, len)| (start, len as u64))).await?;
    // Journals are really written: a scan then meets zeros, not an earlier format's records, and no later write has to
    // turn an unwritten extent of an image into a written one.
    let journals = (0..layout.lanes()).map(|lane| layout.journal_extent(LaneId(lane)));
    zero(device, journals.map(|(start, len)| (start, len.0 * block))).await?;
    format_journals(ports, request.device, device.name(), &layout, &whole).await.map_err(Box::new)?;
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
    // Twice, so that all four copies are there.
    for generation in [1, 2] {
        superblock.generation = generation;
        write_superblock(device, &superblock).await?;
    }
    Ok(superblock)
}

/// I-D7: each signature has to be confirmed by its name.
fn refuse_unconfirmed(name: &str, found: &[FoundSignature], confirmed: &[String]) -> Result<(), DeviceError> {
    let missing: Vec<_> = found.iter().filter(|signature| !confirmed.contains(&signature.name)).collect();
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

/// Writes zeros over runs of (first block, bytes), then flushes.
async fn zero(device: &dyn Device, runs: impl IntoIterator<Item = (BlockIndex, u64)>) -> Result<(), DeviceError> {
    let block = u64::from(device.geometry().block_len_bytes);
    let zeros: IoBytes = IoBuf::zeroed(ZEROS_LEN_BYTES).freeze();
    let pieces = runs.into_iter().flat_map(|(start, len)| {
        (0..len.div_ceil(ZEROS_LEN_BYTES as u64)).map(move |piece| {
            let at = piece * ZEROS_LEN_BYTES as u64;
            (BlockIndex(start.0 + at / block), (len - at).min(ZEROS_LEN_BYTES as u64) as usize)
        })
    });
    let written: Result<(), std::io::Error> = stream::iter(pieces)
        .map(|(start, len)| device.write(start, vec![zeros.slice(0..len)]))
        .buffer_unordered(ZEROING_DEPTH)
        .try_collect()
        .await;
    written.map_err(|source| DeviceError::io(device.name(), "clearing", source))?;
    device.flush().await.map_err(|source| DeviceError::io(device.name(), "flushing", source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file_device::{RawDevice, create_image, open_device};
    use crate::ring::RingOptions;
    use crate::superblock::{SuperblockKeeper, SuperblockState, read_superblock, read_superblock_blocking};
    use crate::testing::{on_executor, test_ports};
    use kiseki_types::meta::MetaFile;
    use std::path::Path;
    use std::rc::Rc;
    use std::sync::Arc;

    fn request(cluster: u8, confirmed: &[&str]) -> FormatRequest {
        FormatRequest {
            cluster: ClusterId([cluster; 16]),
            device: DeviceId([2; 16]),
            pool: PoolId(1),
            class: DeviceClass::File,
            lanes: 4,
            metadata: MetadataEpoch::default(),
            wipe_confirmed: confirmed.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    fn image() -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir_in(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap();
        let path = dir.path().join("d.img");
        create_image(&path, 16 << 20).unwrap();
        (dir, path)
    }

    fn open(path: &Path) -> Rc<dyn Device> {
        open_device(path, RingOptions::default(), None).unwrap()
    }

    #[test]
    fn a_blank_image_is_formatted_and_read_back_both_ways() {
        let (_dir, path) = image();
        on_executor(async move {
            let device = open(&path);
            assert_eq!(read_superblock(&*device).await, SuperblockState::NeverWritten);
            let written = format(&test_ports(), &device, &request(1, &[])).await.unwrap();
            let expected = SuperblockState::Present { superblock: Box::new(written.clone()), damaged_copies: 0 };
            assert_eq!(read_superblock(&*device).await, expected);
            let raw = Arc::new(RawDevice::open(&path).unwrap());
            assert_eq!(read_superblock_blocking(&*raw, raw.geometry().block_len_bytes).unwrap(), expected);
            let keeper = SuperblockKeeper::new("d.img", raw, written);
            let updated = keeper.update(|superblock| superblock.incarnation += 1).unwrap();
            assert_eq!((updated.generation, updated.incarnation), (3, 1));
            assert_eq!(read_superblock(&*device).await.present("d.img").unwrap(), updated);
        });
    }

    #[test]
    fn i_d7_a_signed_device_is_left_alone_until_each_signature_is_named() {
        let (_dir, path) = image();
        on_executor(async move {
            let device = open(&path);
            let raw = RawDevice::open(&path).unwrap();
            let mut table = vec![0; 8192];
            table[512..520].copy_from_slice(b"EFI PART");
            table[4096 - 10..4096].copy_from_slice(b"SWAPSPACE2");
            raw.write_at(0, &table).unwrap();
            for confirmed in [&[][..], &["gpt"], &["swap"], &["all"]] {
                let error = format(&test_ports(), &device, &request(1, confirmed)).await.unwrap_err();
                assert!(matches!(error, DeviceError::Signed { .. }), "I-D7: {confirmed:?} {error}");
                let mut found = vec![0; 8192];
                raw.read_at(0, &mut found).unwrap();
                assert!(found == table, "I-D7: {confirmed:?} wrote to a refused device");
            }
            format(&test_ports(), &device, &request(1, &["gpt", "swap"])).await.unwrap();
            // And what we wrote ourselves protects it from the next one, another cluster's the same.
            let error = format(&test_ports(), &device, &request(3, &["gpt"])).await.unwrap_err();
            let name = format!("kiseki:{}", ClusterId([1; 16]));
            assert!(error.to_string().contains(&name), "I-D7: {error}");
            let again = format(&test_ports(), &device, &request(3, &[&name])).await.unwrap();
            assert_eq!(read_superblock(&*device).await.present("d").unwrap(), again);
            assert_eq!(probe_device(&*device).await.unwrap().len(), 1);
        });
    }

    #[test]
    fn journals_are_cleared() {
        let (_dir, path) = image();
        on_executor(async move {
            let device = open(&path);
            let layout = DeviceLayout::compute(device.geometry(), 4).unwrap();
            let (start, len) = layout.journal_extent(LaneId(3));
            let mut noise = IoBuf::zeroed(len.0 as usize * 4096);
            noise.fill(0xa5);
            device.write(start, vec![noise.freeze()]).await.unwrap();
            format(&test_ports(), &device, &request(1, &[])).await.unwrap();
            let found = device.read(start, IoBuf::zeroed(len.0 as usize * 4096)).await.unwrap();
            assert!(found.iter().all(|byte| *byte != 0xa5), "nothing of an earlier format is left for a scan to meet");
        });
    }

    #[test]
    fn i_c7_a_device_that_is_too_small_is_refused_untouched() {
        let (dir, _) = image();
        let path = dir.path().join("small.img");
        create_image(&path, 1 << 20).unwrap();
        assert!(matches!(create_image(&path, 1 << 20), Err(DeviceError::Io { .. })), "an image is never made over one");
        on_executor(async move {
            let device = open(&path);
            assert!(matches!(
                format(&test_ports(), &device, &request(1, &[])).await,
                Err(DeviceError::TooSmall { .. })
            ));
            assert_eq!(read_superblock(&*device).await, SuperblockState::NeverWritten);
        });
        drop(dir);
    }
}
