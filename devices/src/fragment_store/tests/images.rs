//! Image files cut at random events of a recorded run, opened through the ring as a node opens them, and read by the
//! scan that needs no index.

use super::explained::intact_extents;
use super::prefixes::{Promised, Recorded};
use super::*;
use crate::file_device::{create_image, open_device};
use crate::ring::RingOptions;
use crate::testing::{on_executor, test_ports};
use kiseki_simulator::disk::{Blocks, CutMode};
use kiseki_types::buf::plain_buffers;
use kiseki_types::link::{Link, LinkError};
use std::os::unix::fs::FileExt;
use std::path::Path;

const CUTS: u64 = 200;

/// The only core has all lanes.
struct NoOthers;

impl Link<LaneRequest, LaneResponse> for NoOthers {
    fn call(&self, to: LaneId, _: LaneRequest) -> LocalBoxFuture<'static, Result<LaneResponse, LinkError>> {
        panic!("lane {to} is on this core")
    }
}

/// Makes the file hold what the cut left.
fn write_image(path: &Path, image: &Blocks) {
    create_image(path, DISK_BYTES).unwrap();
    let file = std::fs::File::options().write(true).open(path).unwrap();
    let mut block = [0; 4096];
    for index in image.used() {
        image.read(index, &mut block);
        file.write_all_at(&block, index * 4096).unwrap();
    }
}

/// Memory where it takes direct I/O: what counts here is what was written, and flushes of a disk take long.
fn place() -> tempfile::TempDir {
    if let Ok(dir) = tempfile::tempdir_in("/dev/shm") {
        let probe = dir.path().join("probe");
        if create_image(&probe, 8192).is_ok() && crate::file_device::RawDevice::open(&probe).is_ok() {
            return dir;
        }
    }
    tempfile::tempdir().unwrap()
}

async fn open_store(
    path: &Path,
    (id, layout): (DeviceId, DeviceLayout),
    tables: &[Rc<RefCell<TableMedium>>],
) -> (CoreFragmentStore, DeviceReport) {
    let ports = test_ports();
    let lane = |(lane, medium): (usize, &Rc<RefCell<TableMedium>>)| OwnLane {
        lane: LaneId(lane as u16),
        table: Rc::new(MemoryTable { medium: medium.clone(), ports: ports.clone() }),
    };
    let device = StoreDevice {
        id,
        pool: PoolId(1),
        name: path.display().to_string(),
        layout,
        space: SpacePolicy::default(),
        device: open_device(path, RingOptions { depth: 32, ..RingOptions::default() }, None).unwrap(),
    };
    let config = FragmentStoreConfig {
        node: kiseki_types::NodeId(1),
        lanes: tables.iter().enumerate().map(lane).collect(),
        ports: ports.clone(),
        lane_count: LANES,
        devices: vec![device],
        link: Rc::new(NoOthers),
        buffers: plain_buffers(),
        fold_interval: Duration::from_secs(3600),
    };
    let (store, mut reports) = CoreFragmentStore::open(config).await.unwrap();
    (store, reports.remove(0))
}

#[test]
fn i_c8_image_files_cut_two_hundred_times_hold_what_was_acknowledged() {
    let recorded = Recorded::run(77, 1, 1, 12);
    let device = recorded.layout(0);
    let (dir, rng) = (place(), SeededRng::new(77));
    let mut places: Vec<usize> = (0..CUTS).map(|_| rng.index(recorded.events() + 1)).collect();
    places.sort_unstable();
    let mut replay = recorded.recorder().replay();
    for (cut, events) in places.into_iter().enumerate() {
        replay.advance_to(events);
        let path = dir.path().join(format!("{cut}.img"));
        write_image(&path, &replay.images(CutMode::draw(&rng), &rng)[0]);
        let tables = recorded.tables(events, &rng);
        let Promised { model, released, .. } = recorded.promised(events);
        let model = RefCell::new(model);
        on_executor(async {
            let (store, report) = open_store(&path, device, &tables).await;
            assert_eq!(report.problem, None, "cut {cut} behind event {events}");
            store.publish_recovered().await.unwrap();
            let stores = [store];
            check(&stores, &model).await.unwrap_or_else(|error| panic!("cut {cut} behind event {events}: {error}"));
            for chunk in &released {
                assert_eq!(find(&stores[0], *chunk).await, [], "cut {cut}: chunk {chunk} was released");
            }
        });
        let scanned = intact_extents(device.0, &device.1, std::fs::read(&path).unwrap());
        for (chunk, (_, extent)) in &model.borrow().there {
            let found = scanned.contains(extent);
            assert!(found, "cut {cut} behind event {events}: the scan does not find chunk {chunk} at {extent}");
        }
        std::fs::remove_file(&path).unwrap();
    }
}
