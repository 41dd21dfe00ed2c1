//! Formatting images: what is refused, what is written, what a cut leaves.

use super::*;
use crate::file_device::{RawDevice, create_image, open_device};
use crate::ring::RingOptions;
use crate::superblock::{SuperblockKeeper, SuperblockState, read_superblock, read_superblock_blocking};
use crate::testing::{on_executor, test_ports};
use kiseki_types::BlockCount;
use kiseki_types::LaneId;
use kiseki_types::device::DeviceGeometry;
use kiseki_types::meta::MetaFile;
use kiseki_types::runtime::LocalBoxFuture;
use std::cell::{Cell, RefCell};
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
        let written = format(&test_ports(), &device, None, &request(1, &[]), |_| ()).await.unwrap();
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
            let error = format(&test_ports(), &device, None, &request(1, confirmed), |_| ()).await.unwrap_err();
            assert!(matches!(error, DeviceError::Signed { .. }), "I-D7: {confirmed:?} {error}");
            let mut found = vec![0; 8192];
            raw.read_at(0, &mut found).unwrap();
            assert!(found == table, "I-D7: {confirmed:?} wrote to a refused device");
        }
        format(&test_ports(), &device, None, &request(1, &["gpt", "swap"]), |_| ()).await.unwrap();
        // And what we wrote ourselves protects it from the next one, another cluster's the same.
        let error = format(&test_ports(), &device, None, &request(3, &["gpt"]), |_| ()).await.unwrap_err();
        let name = format!("kiseki:{}", ClusterId([1; 16]));
        assert!(error.to_string().contains(&name), "I-D7: {error}");
        let again = format(&test_ports(), &device, None, &request(3, &[&name]), |_| ()).await.unwrap();
        assert_eq!(read_superblock(&*device).await.present("d").unwrap(), again);
        assert_eq!(probe_device(&*device, None).await.unwrap().len(), 1);
    });
}

#[test]
fn i_d7_a_device_of_ours_in_a_partition_is_named_like_any_other() {
    let cluster = ClusterId([1; 16]);
    let found = |name: &str, partition| FoundSignature {
        name: name.to_owned(),
        description: "a device of this cluster that no node ever used".to_owned(),
        partition,
        unused_of: Some(cluster),
    };
    refuse_unconfirmed("d", &[found("kiseki:1", None)], cluster, &[]).unwrap();
    refuse_unconfirmed("d", &[found("kiseki:1", None)], ClusterId([2; 16]), &[]).unwrap_err();
    let within = [found("p1:kiseki:1", Some(1))];
    let error = refuse_unconfirmed("d", &within, cluster, &["gpt".to_owned()]).unwrap_err();
    assert!(error.to_string().contains("p1:kiseki:1"), "I-D7: {error}");
    refuse_unconfirmed("d", &within, cluster, &["p1:kiseki:1".to_owned()]).unwrap();
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
        format(&test_ports(), &device, None, &request(1, &[]), |_| ()).await.unwrap();
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
            format(&test_ports(), &device, None, &request(1, &[]), |_| ()).await,
            Err(DeviceError::TooSmall { .. })
        ));
        assert_eq!(read_superblock(&*device).await, SuperblockState::NeverWritten);
    });
    drop(dir);
}

/// A device that notes what is written to it, and loses power in front of write number `cut`.
struct CutDevice {
    inner: Rc<dyn Device>,
    cut: usize,
    count: Cell<usize>,
    writes: RefCell<Vec<(u64, u64)>>,
}

impl CutDevice {
    fn new(inner: Rc<dyn Device>, cut: usize) -> Rc<CutDevice> {
        Rc::new(CutDevice { inner, cut, count: Cell::new(0), writes: RefCell::default() })
    }
}

impl Device for CutDevice {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn geometry(&self) -> DeviceGeometry {
        self.inner.geometry()
    }

    fn read(&self, start: BlockIndex, buf: IoBuf) -> LocalBoxFuture<'static, std::io::Result<IoBuf>> {
        self.inner.read(start, buf)
    }

    fn write(&self, start: BlockIndex, parts: Vec<IoBytes>) -> LocalBoxFuture<'static, std::io::Result<()>> {
        if self.count.get() >= self.cut {
            return Box::pin(std::future::ready(Err(std::io::Error::other("the power is cut"))));
        }
        self.count.set(self.count.get() + 1);
        let len: usize = parts.iter().map(|part| part.len()).sum();
        self.writes.borrow_mut().push((start.0 * 4096, len as u64));
        self.inner.write(start, parts)
    }

    fn flush(&self) -> LocalBoxFuture<'static, std::io::Result<()>> {
        self.inner.flush()
    }

    fn discard(&self, start: BlockIndex, len: BlockCount) -> LocalBoxFuture<'static, std::io::Result<()>> {
        self.inner.discard(start, len)
    }
}

/// The 4 KiB blocks that runs touch.
fn blocks(runs: impl IntoIterator<Item = (u64, u64)>) -> std::collections::BTreeSet<u64> {
    runs.into_iter().flat_map(|(start, len)| start / 4096..(start + len) / 4096).collect()
}

#[test]
fn what_is_planned_is_what_is_written() {
    for len in [1 << 20, (1 << 20) + 8192, 16 << 20] {
        let dir = tempfile::tempdir_in(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap();
        let path = dir.path().join("d.img");
        create_image(&path, len).unwrap();
        on_executor(async move {
            let recorded = CutDevice::new(open(&path), usize::MAX);
            let device: Rc<dyn Device> = recorded.clone();
            let last = Cell::new((0, 1));
            let request = FormatRequest { lanes: 1, ..request(1, &[]) };
            let ports = test_ports();
            let done = format(&ports, &device, None, &request, |at| {
                assert!(at.done_bytes >= last.get().0 && at.done_bytes <= at.total_bytes, "{at:?}");
                last.set((at.done_bytes, at.total_bytes));
            });
            let layout = done.await.unwrap().layout;
            let planned = planned_writes(&layout, None);
            let written = blocks(recorded.writes.borrow().iter().copied());
            assert_eq!(written, blocks(planned.iter().flat_map(|write| write.runs.clone())), "device of {len}");
        });
    }
}

#[test]
fn i_d7_a_format_cut_at_any_write_says_so_and_the_same_command_goes_on() {
    let (_dir, path) = image();
    on_executor(async move {
        let raw = RawDevice::open(&path).unwrap();
        let mut cuts = 0;
        let mut interrupted = 0;
        loop {
            // Another cluster's device, whole.
            raw.write_at(0, &vec![0; 16 << 20]).unwrap();
            format(&test_ports(), &open(&path), None, &request(9, &[]), |_| ()).await.unwrap();
            let old = format!("kiseki:{}", ClusterId([9; 16]));
            let device: Rc<dyn Device> = CutDevice::new(open(&path), cuts);
            let result = format(&test_ports(), &device, None, &request(1, &[&old]), |_| ()).await;
            let state = read_superblock(&*open(&path)).await;
            match (&state, result.is_ok()) {
                (SuperblockState::Present { superblock, damaged_copies: 0 }, true) => {
                    assert_eq!(superblock.cluster, ClusterId([1; 16]));
                    break;
                }
                (SuperblockState::Present { superblock, .. }, false) if superblock.cluster == ClusterId([9; 16]) => {
                    assert!(cuts <= 3, "cut {cuts}: an old superblock over cleared journals");
                }
                // All but the last of four copies.
                (SuperblockState::Present { superblock, damaged_copies: 1 }, false) => {
                    assert_eq!((superblock.cluster, superblock.generation), (ClusterId([1; 16]), 2), "cut {cuts}");
                }
                (SuperblockState::FormatInterrupted(marker), false) => {
                    interrupted += 1;
                    assert_eq!(marker.cluster, ClusterId([1; 16]));
                    let error = state.clone().present("d.img").unwrap_err().to_string();
                    assert!(error.contains("run the same `kiseki-devctl format` again"), "cut {cuts}: {error}");
                }
                (state, done) => panic!("cut {cuts}, done {done}: {state:?}"),
            }
            format(&test_ports(), &open(&path), None, &request(1, &[&old]), |_| ()).await.unwrap();
            // Finished and never used: formatting it again for the same cluster loses nothing, for another one it might.
            format(&test_ports(), &open(&path), None, &request(1, &[]), |_| ()).await.unwrap();
            format(&test_ports(), &open(&path), None, &request(2, &[]), |_| ()).await.unwrap_err();
            cuts += 1;
        }
        assert!(cuts > 8 && interrupted > 5, "{cuts} cuts, {interrupted} interrupted");
    });
}

#[test]
fn i_d7_what_lies_behind_the_last_whole_block_is_protected_and_then_cleared() {
    let dir = tempfile::tempdir_in(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap();
    for extra in [512, 1536, 3584, 700] {
        let path = dir.path().join(format!("d{extra}.img"));
        create_image(&path, (16 << 20) + extra).unwrap();
        let file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
        let last = ((16 << 20) + extra) / 512 * 512 - 512;
        std::os::unix::fs::FileExt::write_all_at(&file, b"EFI PART", last).unwrap();
        let found = path.clone();
        on_executor(async move {
            let (device, tail) = (open(&path), DeviceTail::open(&path).unwrap());
            let tail = tail.as_ref();
            assert_eq!(tail.unwrap().bytes(), 16 << 20..(16 << 20) + extra);
            let error = format(&test_ports(), &device, tail, &request(1, &[]), |_| ()).await.unwrap_err();
            assert!(error.to_string().contains("confirm each by name: gpt"), "I-D7: {extra}: {error}");
            let written = format(&test_ports(), &device, tail, &request(1, &["gpt"]), |_| ()).await.unwrap();
            assert_eq!(read_superblock(&*device).await.present("d").unwrap(), written);
            let names: Vec<String> =
                probe_device(&*device, tail).await.unwrap().into_iter().map(|it| it.name).collect();
            assert_eq!(names, [format!("kiseki:{}", ClusterId([1; 16]))], "{extra}: nothing of the old table");
        });
        assert!(std::fs::read(&found).unwrap()[16 << 20..].iter().all(|byte| *byte == 0), "I-D7: {extra}");
    }
    let (_dir, whole) = image();
    assert!(DeviceTail::open(&whole).unwrap().is_none(), "a device of whole blocks has none");
}
