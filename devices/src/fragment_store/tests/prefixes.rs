//! A recorded run, and a power cut behind every one of its events: every write, every completion, every flush of every
//! device, with several fates of what was not flushed.

use super::*;
use crate::superblock::{
    DeviceClass, MetadataEpoch, Superblock, SuperblockKeeper, read_superblock_blocking, write_superblock_blocking,
};
use kiseki_simulator::disk::{Blocks, CutMode};
use kiseki_types::ids::ClusterId;

/// What clients did, with the number of events that the devices had seen by then.
pub(super) enum Step {
    PutBegun { chunk: u64, bytes: Vec<u8> },
    PutDone { chunk: u64, extent: Extent },
    ReleaseBegun { chunk: u64 },
    ReleaseDone { chunk: u64 },
    SuperblockDone { device: usize, incarnation: u64 },
}

/// A run to be cut anywhere.
pub(super) struct Recorded {
    rig: Rig,
    recorder: Recorder,
    steps: Vec<(usize, Step)>,
}

/// What must hold behind a cut.
#[derive(Default)]
pub(super) struct Promised {
    pub model: Model,
    pub released: BTreeSet<u64>,
    pub incarnations: BTreeMap<usize, u64>,
}

fn superblock(id: DeviceId, layout: DeviceLayout) -> Superblock {
    Superblock {
        cluster: ClusterId([1; 16]),
        device: id,
        pool: PoolId(1),
        class: DeviceClass::File,
        layout,
        generation: 1,
        incarnation: 0,
        metadata: MetadataEpoch::default(),
    }
}

impl Recorded {
    /// Runs some rounds of puts, releases, folds, discards and superblock updates, with a process killed in between.
    pub(super) fn run(seed: u64, disks: u8, cores: u16, rounds: usize) -> Recorded {
        let rig = Rig::new(seed, disks, cores);
        let recorder = Recorder::default();
        let mut keepers = Vec::new();
        for (id, disk, layout) in &rig.disks {
            let (file, first) = (disk.file(), superblock(*id, *layout));
            write_superblock_blocking(&*file, &first).unwrap();
            disk.record(&recorder);
            keepers.push(SuperblockKeeper::new("disk", file, first));
        }
        for table in &rig.tables {
            table.borrow_mut().recorder = Some(recorder.clone());
        }
        let log = Log { recorder: recorder.clone(), steps: Rc::default() };
        let rng = SeededRng::new(seed ^ 0x9e1f);
        let chunks = Rc::new(RefCell::new((0, BTreeSet::new())));
        for _life in 0..2 {
            rig.run(async {
                for (device, keeper) in keepers.iter().enumerate() {
                    let incarnation = keeper.update(|next| next.incarnation += 1).unwrap().incarnation;
                    log.note(Step::SuperblockDone { device, incarnation });
                }
                let (stores, reports) = rig.start().await;
                assert!(reports.iter().all(|report| report.problem.is_none()), "{reports:?}");
                for _ in 0..rounds {
                    let clients = (0..1 + rng.below(4)).map(|_| {
                        let (store, device) = (rng.pick(&stores).clone(), rng.pick(&rig.disks).0);
                        step(store, device, log.clone(), chunks.clone(), SeededRng::new(rng.next_u64()))
                    });
                    join_all(clients).await;
                    if rng.chance(1, 6) {
                        rng.pick(&stores).fold().await.unwrap();
                    }
                    rig.sim.ports(NODE).sleep(Duration::from_millis(200)).await;
                }
            });
            // The process dies; what the devices have in flight, they finish.
            rig.sim.kill(NODE);
            // Chunks whose fate the dead process took along are left alone.
        }
        assert!(rig.disks.iter().any(|(_, disk, _)| disk.counts().discards > 0), "discards are part of the run");
        let steps = log.steps.take();
        Recorded { rig, recorder, steps }
    }

    pub(super) fn events(&self) -> usize {
        self.recorder.len()
    }

    pub(super) fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    pub(super) fn layout(&self, disk: usize) -> (DeviceId, DeviceLayout) {
        (self.rig.disks[disk].0, self.rig.disks[disk].2)
    }

    /// What clients were told by then.
    pub(super) fn promised(&self, events: usize) -> Promised {
        let mut promised = Promised::default();
        let model = &mut promised.model;
        for (_, step) in self.steps.iter().take_while(|(at, _)| *at <= events) {
            match step {
                Step::PutBegun { chunk, bytes } => drop(model.in_doubt.insert(*chunk, bytes.clone())),
                Step::PutDone { chunk, extent } => {
                    let bytes = model.in_doubt.remove(chunk).expect("it was begun");
                    model.there.insert(*chunk, (bytes, *extent));
                }
                Step::ReleaseBegun { chunk } => {
                    let (bytes, _) = model.there.remove(chunk).expect("it was there");
                    model.in_doubt.insert(*chunk, bytes);
                }
                Step::ReleaseDone { chunk } => {
                    model.in_doubt.remove(chunk);
                    promised.released.insert(*chunk);
                }
                Step::SuperblockDone { device, incarnation } => {
                    promised.incarnations.insert(*device, *incarnation);
                }
            }
        }
        promised
    }

    /// The lanes' table files as a cut leaves them: a prefix of the calls that were not saved.
    pub(super) fn tables(&self, events: usize, rng: &SeededRng) -> Vec<Rc<RefCell<TableMedium>>> {
        let cut = |table: &Rc<RefCell<TableMedium>>| {
            let mut medium = TableMedium::default();
            for (_, change) in table.borrow().done.iter().take_while(|(at, _)| *at <= events) {
                medium.change(change.clone());
            }
            medium.power_cut(rng);
            Rc::new(RefCell::new(medium))
        };
        self.rig.tables.iter().map(cut).collect()
    }

    /// A machine that starts from these images.
    fn machine(&self, seed: u64, images: Vec<Blocks>, tables: Vec<Rc<RefCell<TableMedium>>>) -> Rig {
        let sim = Sim::new(seed);
        let switch = Arc::<CutSwitch>::default();
        let disks = self.rig.disks.iter().zip(images).map(|((id, disk, layout), image)| {
            let options = DiskOptions::of_len(&disk.name(), DISK_BYTES);
            (*id, SimDisk::with_image(&sim, options, &switch, image), *layout)
        });
        Rig { disks: disks.collect(), sim, switch, tables, cores: self.rig.cores, space: self.rig.space }
    }

    /// Cuts behind so many events and starts twice from what is left.
    fn check_cut(&self, events: usize, images: Vec<Blocks>, rng: &SeededRng) -> Result<(), String> {
        let Promised { model, mut released, incarnations } = self.promised(events);
        let machine = self.machine(rng.next_u64(), images, self.tables(events, rng));
        for (device, incarnation) in incarnations {
            let (id, disk, _) = &machine.disks[device];
            let file = disk.file();
            let found = read_superblock_blocking(&*file, 4096).map_err(|error| error.to_string())?;
            let found = found.present("disk").map_err(|error| error.to_string())?;
            if found.device != *id || found.incarnation < incarnation {
                return Err(format!("incarnation {incarnation} was durable, found {found:?}"));
            }
        }
        let doubted: Vec<u64> = model.in_doubt.keys().copied().collect();
        let model = RefCell::new(model);
        for start in 0..2 {
            let told = |what: String| format!("start {start}: {what}");
            machine.run(async {
                let (stores, reports) = machine.start().await;
                if let Some(problem) = reports.iter().find_map(|report| report.problem.clone()) {
                    return Err(told(problem));
                }
                check(&stores, &model).await.map_err(told)?;
                for chunk in &released {
                    if !find(&stores[0], *chunk).await.is_empty() {
                        return Err(told(format!("chunk {chunk} was released and is back")));
                    }
                }
                nothing_is_lost(&stores).map_err(told)
            })?;
            // What the first start said of what was in doubt holds from then on.
            released.extend(doubted.iter().copied().filter(|chunk| !model.borrow().there.contains_key(chunk)));
            machine.power_cut(rng);
        }
        Ok(())
    }
}

/// I-C8: used and free blocks of each lane are all of its blocks.
fn nothing_is_lost(stores: &[CoreFragmentStore]) -> Result<(), String> {
    for device in stores.iter().flat_map(|store| store.core.devices.all()) {
        for lane in device.lanes.values() {
            let zones = lane.zones.borrow();
            let used: u64 = zones.used().map(|(_, len)| len.0).sum();
            if used + zones.free_blocks().0 != zones.total_blocks().0 {
                return Err(format!("I-C8: lane {} on {} lost blocks", lane.lane, device.id));
            }
        }
    }
    Ok(())
}

#[derive(Clone)]
struct Log {
    recorder: Recorder,
    steps: Rc<RefCell<Vec<(usize, Step)>>>,
}

impl Log {
    fn note(&self, step: Step) {
        self.steps.borrow_mut().push((self.recorder.len(), step));
    }
}

/// One put or release of one client; `chunks` are the last number given, and those that nobody works on.
async fn step(
    store: CoreFragmentStore,
    device: DeviceId,
    log: Log,
    chunks: Rc<RefCell<(u64, BTreeSet<u64>)>>,
    rng: SeededRng,
) {
    let there: Vec<u64> = chunks.borrow().1.iter().copied().collect();
    if !there.is_empty() && rng.chance(2, 5) {
        let chunk = *rng.pick(&there);
        chunks.borrow_mut().1.remove(&chunk);
        let found = find(&store, chunk).await;
        log.note(Step::ReleaseBegun { chunk });
        store.release(&found[0]).await.unwrap();
        log.note(Step::ReleaseDone { chunk });
        return;
    }
    let chunk = {
        let mut chunks = chunks.borrow_mut();
        chunks.0 += 1;
        chunks.0
    };
    let bytes = payload(chunk, 1 + rng.index(12));
    log.note(Step::PutBegun { chunk, bytes: bytes.clone() });
    if let Ok(extent) = put(&store, device, chunk, &bytes).await {
        log.note(Step::PutDone { chunk, extent });
        chunks.borrow_mut().1.insert(chunk);
    }
}

/// Cuts a recorded run behind every event: nothing that was not flushed survives, and then some or all of it. Returns how many cuts were tried, and the first that failed.
fn cut_everywhere(recorded: &Recorded) -> (usize, Result<(), String>) {
    let mut replay = recorded.recorder().replay();
    let mut cuts = 0;
    for events in 0..=recorded.events() {
        replay.advance_to(events);
        let another = [CutMode::Mixed, CutMode::KeepAll, CutMode::Mixed][events % 3];
        for (choice, mode) in [CutMode::DropAll, another].into_iter().enumerate() {
            let rng = SeededRng::new((events * 8 + choice) as u64);
            cuts += 1;
            let result = recorded.check_cut(events, replay.images(mode, &rng), &rng);
            if let Err(error) = result {
                return (cuts, Err(format!("behind event {events}, {mode:?} (choice {choice}): {error}")));
            }
        }
    }
    (cuts, Ok(()))
}

#[test]
fn i_c8_behind_every_event_of_a_recorded_run_all_that_was_acknowledged_is_there_and_nothing_else() {
    let mut cuts = 0;
    for (seed, cores) in [(1, 1), (2, 2)] {
        let recorded = Recorded::run(seed, 2, cores, 6);
        assert!(recorded.events() > 300, "{} events", recorded.events());
        let (tried, result) = cut_everywhere(&recorded);
        assert_eq!(result, Ok(()), "seed {seed}");
        cuts += tried;
    }
    println!("{cuts} cuts");
    assert!(cuts > 1000, "{cuts} cuts");
}
