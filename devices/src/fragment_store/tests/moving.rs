//! Devices that come and go under load.

use super::*;
use crate::file_device::{create_image, open_device};
use crate::ring::RingOptions;
use crate::testing::{on_executor, test_ports};
use kiseki_types::link::{Link, LinkError};

type Spare = (DeviceId, SimDisk, DeviceLayout);

impl Rig {
    /// A formatted disk that no start opens.
    fn spare(&self, id: u8) -> Spare {
        let name = format!("spare{id}");
        let disk = SimDisk::new(&self.sim, DiskOptions::of_len(&name, DISK_BYTES), &self.switch);
        let layout = DeviceLayout::compute(disk.open().geometry(), LANES).unwrap();
        let (id, device) = (DeviceId([id; 16]), disk.open());
        self.sim.block_on(NODE, format_journals(&self.sim.ports(NODE), id, &name, &layout, &device)).unwrap();
        (id, disk, layout)
    }
}

fn queue_on((id, disk, layout): &Spare) -> StoreDevice {
    StoreDevice {
        id: *id,
        pool: PoolId(1),
        name: disk.name(),
        layout: *layout,
        space: discards_at_once(),
        device: disk.open(),
    }
}

async fn add_everywhere(stores: &[CoreFragmentStore], spare: &Spare) -> Result<u64, AddDeviceError> {
    let mut replayed = 0;
    for store in stores {
        replayed += store.add_device(queue_on(spare)).await?.replayed;
    }
    for store in stores {
        store.admit_device(spare.0)?;
    }
    Ok(replayed)
}

async fn remove_everywhere(stores: &[CoreFragmentStore], id: DeviceId) {
    for result in join_all(stores.iter().map(|store| store.remove_device(id))).await {
        result.unwrap();
    }
}

fn names(store: &CoreFragmentStore, id: DeviceId) -> bool {
    store.devices().iter().any(|device| device.id == id)
}

#[test]
fn a_device_is_named_only_when_all_cores_have_it_and_is_readable_before() {
    let rig = Rig::new(11, 1, 2);
    let spare = rig.spare(9);
    rig.run(async {
        let (stores, _) = rig.start().await;
        stores[0].add_device(queue_on(&spare)).await.unwrap();
        assert!(!names(&stores[0], spare.0), "the other core does not have it");
        let early = stores[1].admit_device(spare.0);
        assert!(matches!(early, Err(FragmentError::DeviceFailed { .. })), "{early:?}");
        stores[1].add_device(queue_on(&spare)).await.unwrap();
        let twice = stores[1].add_device(queue_on(&spare)).await;
        assert!(matches!(twice, Err(AddDeviceError::Present { .. })), "{twice:?}");
        stores[0].admit_device(spare.0).unwrap();
        put(&stores[0], spare.0, 1, &payload(1, 5)).await.unwrap();
        let found = find(&stores[1], 1).await;
        assert!(!names(&stores[1], spare.0));
        assert_eq!(&stores[1].read(&found[0], 0..20_480).await.unwrap()[..], &payload(1, 5)[..]);
        stores[1].admit_device(spare.0).unwrap();
        put(&stores[1], spare.0, 2, &payload(2, 5)).await.unwrap();
    });
}

#[test]
fn a_device_of_other_lanes_or_with_a_damaged_journal_is_refused_and_nothing_of_it_stays() {
    let rig = Rig::new(12, 1, 1);
    let (spare, lane_1) = (rig.spare(9), LaneId(1));
    rig.run(async {
        let (stores, _) = rig.start().await;
        let other_lanes = DeviceLayout::compute(spare.1.open().geometry(), LANES + 1).unwrap();
        let error = stores[0].add_device(queue_on(&(spare.0, spare.1.clone(), other_lanes))).await.unwrap_err();
        assert!(error.to_string().contains("3 lanes, the node has 2"), "{error}");
        let noise = IoBuf::copy_of(&[0xee; 8192]).freeze();
        let device: Rc<dyn Device> = spare.1.open();
        device.write(spare.2.journal_extent(lane_1).0, vec![noise]).await.unwrap();
        let error = stores[0].add_device(StoreDevice { device: device.clone(), ..queue_on(&spare) }).await;
        let error = error.unwrap_err();
        assert!(matches!(error, AddDeviceError::Unusable { .. }), "{error}");
        assert!(stores[0].core.devices.get(spare.0).is_none() && !names(&stores[0], spare.0));
        assert_eq!(Rc::strong_count(&device), 1, "its queue is gone");
        put(&stores[0], rig.disks[0].0, 1, &payload(1, 3)).await.unwrap();
    });
}

/// I-D6, I-C8: what was acknowledged is there when the device is back, released extents stay released, and every
/// operation that met the removal has an answer.
#[test]
fn i_c8_a_device_leaves_and_comes_back_with_puts_reads_and_releases_in_flight() {
    let mut in_flight = 0;
    for seed in 0..30 {
        let rig = Rig::new(seed, 1, 1 + (seed % 2) as u16);
        let (spare, rng) = (rig.spare(9), SeededRng::new(seed));
        let model = Rc::new(RefCell::new(Model::default()));
        rig.run(async {
            let (stores, _) = rig.start().await;
            add_everywhere(&stores, &spare).await.unwrap();
            let ports = rig.sim.ports(NODE);
            for round in 0..6 {
                let steps = (0..24).map(|_| {
                    let store = rng.pick(&stores).clone();
                    tolerant_step(store, spare.0, model.clone(), SeededRng::new(rng.next_u64()))
                });
                let after = Duration::from_micros(rng.below(3000));
                let removal = async {
                    ports.sleep(after).await;
                    let began = model.borrow().in_doubt.len();
                    remove_everywhere(&stores, spare.0).await;
                    assert!(!names(&stores[0], spare.0));
                    let missing = put(&stores[0], spare.0, 900 + round, &payload(1, 1)).await;
                    assert!(matches!(missing, Err(FragmentError::DeviceFailed { .. })), "{missing:?}");
                    // At once, while what met the removal gets its answers.
                    add_everywhere(&stores, &spare).await.unwrap();
                    began
                };
                let (_, began) = futures::future::join(join_all(steps), removal).await;
                in_flight += began;
                check(&stores, &model).await.unwrap_or_else(|why| panic!("seed {seed} round {round}: {why}"));
            }
        });
    }
    assert!(in_flight > 200, "only {in_flight} operations met a removal");
}

/// The same, with the power cut at any write: of the node at work, of a device being added, of the next start.
#[test]
fn i_c8_power_cuts_while_devices_come_and_go_lose_nothing() {
    for seed in 0..60 {
        let mut rig = Rig::new(seed, 1, 1 + (seed % 2) as u16);
        let (spare, rng) = (rig.spare(9), SeededRng::new(seed ^ 0x60));
        let model = Rc::new(RefCell::new(Model::default()));
        // Half of the starts know the device (it is in the configuration), half meet it only when it is added.
        for round in 0..5 {
            let at_start = rng.chance(1, 2);
            if at_start {
                rig.disks.push((spare.0, spare.1.clone(), spare.2));
            }
            rig.switch.arm(1 + rng.below(200));
            let work = async {
                let (stores, reports) = rig.start().await;
                assert!(reports.iter().all(|report| report.problem.is_none()), "{reports:?}");
                if at_start {
                    check(&stores, &model).await?;
                    remove_everywhere(&stores, spare.0).await;
                }
                add_everywhere(&stores, &spare).await.map_err(|error| error.to_string())?;
                check(&stores, &model).await?;
                for _ in 0..rng.below(12) {
                    let steps = (0..6).map(|_| {
                        let store = rng.pick(&stores).clone();
                        tolerant_step(store, spare.0, model.clone(), SeededRng::new(rng.next_u64()))
                    });
                    join_all(steps).await;
                }
                Ok::<(), String>(())
            };
            match rig.sim.block_on_or_cut(NODE, work, &rig.switch) {
                // What went wrong on the way into the dark does not count.
                Ok(Err(error)) if !rig.switch.is_cut() => panic!("seed {seed} round {round}: {error}"),
                Ok(_) | Err(Interrupted::PowerCut) => {}
                Err(Interrupted::Stalled(stalled)) => panic!("seed {seed} round {round}: {stalled}"),
            }
            rig.power_cut(&rng);
            if !at_start {
                spare.1.power_cut(rng.next_u64());
            }
            rig.disks.truncate(1);
        }
        rig.disks.push((spare.0, spare.1.clone(), spare.2));
        rig.run(async {
            let (stores, _) = rig.start().await;
            check(&stores, &model).await.unwrap_or_else(|why| panic!("seed {seed} at the end: {why}"));
        });
    }
}

/// As [`one_step`], on a device that may be gone: what then has no answer stays in doubt.
async fn tolerant_step(store: CoreFragmentStore, device: DeviceId, model: Rc<RefCell<Model>>, rng: SeededRng) {
    let target = {
        let model = model.borrow();
        let chunks: Vec<u64> = model.there.keys().copied().collect();
        (!chunks.is_empty() && rng.chance(2, 5)).then(|| *rng.pick(&chunks))
    };
    if let Some(chunk) = target {
        let Some((bytes, _)) = model.borrow_mut().there.remove(&chunk) else { return };
        model.borrow_mut().in_doubt.insert(chunk, bytes.clone());
        let found = find(&store, chunk).await;
        match store.read(&found[0], 0..bytes.len() as u32).await {
            Ok(read) => assert_eq!(&read[..], &bytes[..], "I-C9"),
            Err(FragmentError::DeviceFailed { .. }) => return,
            Err(error) => panic!("{error}"),
        }
        match store.release(&found[0]).await {
            Ok(()) => drop(model.borrow_mut().in_doubt.remove(&chunk)),
            Err(FragmentError::DeviceFailed { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        return;
    }
    let chunk = {
        let mut model = model.borrow_mut();
        model.next += 1;
        model.next
    };
    let bytes = payload(chunk, 1 + rng.index(12));
    model.borrow_mut().in_doubt.insert(chunk, bytes.clone());
    match put(&store, device, chunk, &bytes).await {
        Ok(extent) => {
            let mut model = model.borrow_mut();
            model.in_doubt.remove(&chunk);
            model.there.insert(chunk, (bytes, extent));
        }
        Err(FragmentError::Full { .. }) => drop(model.borrow_mut().in_doubt.remove(&chunk)),
        Err(FragmentError::DeviceFailed { .. }) => {}
        Err(error) => panic!("{error}"),
    }
}

/// A put that waits for room in a journal has to be answered when the device leaves: nobody folds it any more.
#[test]
fn i_d6_a_put_that_waits_for_room_is_answered_when_its_device_leaves_or_fails() {
    for leaves in [true, false] {
        let rig = Rig::new(13, 1, 1);
        rig.run(async {
            let (stores, _) = rig.start().await;
            let (store, id) = (&stores[0], rig.disks[0].0);
            // Folding waits for this lock, so the journals fill up.
            let held = store.core.fold_lock.lock().await;
            let end = async {
                rig.sim.ports(NODE).sleep(Duration::from_secs(1)).await;
                let waiting = store.core.fullest_journal();
                match leaves {
                    true => store.remove_device(id).await.unwrap(),
                    false => store.fail_device(id, "somebody said so"),
                }
                waiting
            };
            let puts = async {
                // One after the other, each in a frame of its own.
                let mut acknowledged = 0;
                let refused = loop {
                    match put(store, id, acknowledged, &payload(acknowledged, 1)).await {
                        Ok(_) => acknowledged += 1,
                        Err(error) => break error,
                    }
                };
                drop(held); // what waits to fold holds the device too
                (acknowledged, refused)
            };
            let ((acknowledged, refused), fill) = futures::future::join(puts, end).await;
            assert!(fill > 0.7, "the journals are filled to {fill}");
            assert!(matches!(refused, FragmentError::DeviceFailed { .. }) && acknowledged > 20, "{refused}");
        });
    }
}

/// No other core.
struct Alone;

impl Link<LaneRequest, LaneResponse> for Alone {
    fn call(&self, lane: LaneId, _: LaneRequest) -> LocalBoxFuture<'static, Result<LaneResponse, LinkError>> {
        Box::pin(std::future::ready(Err(LinkError::Unreachable { lane })))
    }
}

fn descriptors_of(path: &std::path::Path) -> usize {
    let links =
        std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    links.filter(|target| target == path).count()
}

#[test]
fn a_removed_device_holds_no_file_descriptor_so_the_drive_can_be_pulled() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().canonicalize().unwrap().join("d0.img");
    create_image(&path, 16 << 20).unwrap();
    on_executor(async {
        let (ports, id) = (test_ports(), DeviceId([7; 16]));
        let queue = open_device(&path, RingOptions::default(), None).unwrap();
        let layout = DeviceLayout::compute(queue.geometry(), LANES).unwrap();
        format_journals(&ports, id, "d0", &layout, &queue).await.unwrap();
        let table = |_| MemoryTable { medium: Rc::default(), ports: ports.clone() };
        let config = FragmentStoreConfig {
            node: kiseki_types::NodeId(1),
            lanes: (0..LANES).map(|lane| OwnLane { lane: LaneId(lane), table: Rc::new(table(lane)) }).collect(),
            ports: ports.clone(),
            lane_count: LANES,
            devices: Vec::new(),
            link: Rc::new(Alone),
            buffers: stale_buffers(),
            fold_interval: Duration::from_millis(50),
        };
        let (store, _) = CoreFragmentStore::open(config).await.unwrap();
        store.publish_recovered().await.unwrap();
        let given = StoreDevice {
            id,
            pool: PoolId(1),
            name: "d0".to_string(),
            layout,
            space: SpacePolicy::default(),
            device: queue,
        };
        store.add_device(given).await.unwrap();
        store.admit_device(id).unwrap();
        put(&store, id, 1, &payload(1, 40)).await.unwrap();
        let found = find(&store, 1).await;
        assert_eq!(descriptors_of(&path), 1);
        let puts = join_all((2..12).map(|chunk| {
            let store = store.clone();
            async move { put(&store, id, chunk, &payload(chunk, 40)).await }
        }));
        let removal = async {
            store.remove_device(id).await.unwrap();
            descriptors_of(&path)
        };
        let (read, _, open) = futures::future::join3(store.read(&found[0], 0..100_000), puts, removal).await;
        assert_eq!(open, 0, "all closed when the removal ends, whatever was in flight");
        if let Ok(read) = read {
            assert_eq!(&read[..], &payload(1, 40)[..100_000]);
        }
    });
}

#[test]
fn i_d6_a_device_is_not_opened_again_while_an_earlier_opening_has_something_in_flight() {
    let rig = Rig::new(13, 1, 1);
    let spare = rig.spare(9);
    rig.run(async {
        let (stores, _) = rig.start().await;
        let in_flight: Rc<dyn Device> = spare.1.open();
        stores[0].add_device(StoreDevice { device: in_flight.clone(), ..queue_on(&spare) }).await.unwrap();
        for attempt in 0..2 {
            let left = stores[0].remove_device(spare.0).await;
            assert!(left.is_err(), "I-D6: attempt {attempt} says that it can be pulled");
            let again = stores[0].add_device(queue_on(&spare)).await;
            assert!(matches!(again, Err(AddDeviceError::Present { .. })), "I-D6: attempt {attempt}: {again:?}");
        }
        drop(in_flight);
        stores[0].remove_device(spare.0).await.unwrap();
        stores[0].add_device(queue_on(&spare)).await.unwrap();
    });
}

#[test]
fn i_d6_nor_while_an_opening_that_did_not_succeed_has_something_in_flight() {
    let rig = Rig::new(14, 1, 1);
    let spare = rig.spare(9);
    rig.run(async {
        let (stores, _) = rig.start().await;
        let in_flight: Rc<dyn Device> = spare.1.open();
        // Its journal can't be read at first.
        let at = spare.2.journal_extent(LaneId(1)).0;
        let header = in_flight.read(at, IoBuf::zeroed(8192)).await.unwrap().freeze();
        in_flight.write(at, vec![IoBuf::copy_of(&[0xee; 8192]).freeze()]).await.unwrap();
        let failed = stores[0].add_device(StoreDevice { device: in_flight.clone(), ..queue_on(&spare) }).await;
        assert!(matches!(failed, Err(AddDeviceError::Unusable { .. })), "{failed:?}");
        in_flight.write(at, vec![header]).await.unwrap();
        let again = stores[0].add_device(queue_on(&spare)).await;
        assert!(matches!(again, Err(AddDeviceError::Present { .. })), "I-D6: {again:?}");
        assert!(stores[0].remove_device(spare.0).await.is_err(), "nor can it be pulled");
        drop(in_flight);
        stores[0].add_device(queue_on(&spare)).await.expect("it has ended, so nobody needs to take it out first");
    });
}
