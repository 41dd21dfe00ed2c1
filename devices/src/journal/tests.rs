//! The journal against a model, on simulated disks whose power fails at any write.

use super::*;
use crate::flush_gate::FlushGate;
use kiseki_simulator::executor::Interrupted;
use kiseki_simulator::{CutSwitch, DiskOptions, NodeId, SeededRng, Sim, SimDisk};
use kiseki_types::buf::{IoBuf, STALE_BYTE, stale_buffers};
use kiseki_types::{BlockCount, BlockIndex};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::Arc;

const NODE: NodeId = NodeId(1);
const ID: JournalId = JournalId([5; 16]);
const START: BlockIndex = BlockIndex(3);

struct Rig {
    sim: Sim,
    switch: Arc<CutSwitch>,
    disks: Vec<SimDisk>,
    pages: u64,
    block_len: u32,
    failures: Rc<RefCell<Vec<usize>>>,
    may_go_on: Rc<Cell<bool>>,
}

impl Rig {
    fn new(seed: u64, mirrors: usize, pages: u64) -> Rig {
        let sim = Sim::new(seed);
        let switch = Arc::<CutSwitch>::default();
        let block_len: u32 = if seed.is_multiple_of(3) { 512 } else { 4096 };
        let disk = |at| {
            let block_count = 64 + pages * 8;
            SimDisk::new(
                &sim,
                DiskOptions { name: format!("disk{at}"), block_len_bytes: block_len, block_count },
                &switch,
            )
        };
        let disks = (0..mirrors).map(disk).collect();
        Rig { sim, switch, disks, pages, block_len, failures: Rc::default(), may_go_on: Rc::new(Cell::new(true)) }
    }

    fn config(&self) -> JournalConfig {
        let ports = self.sim.ports(NODE);
        let len = BlockCount(self.pages * 4096 / u64::from(self.block_len));
        let mirrors = self.disks.iter().map(|disk| MirrorRegion::new(ports.clone(), disk.open(), START, len)).collect();
        let (failures, may_go_on) = (self.failures.clone(), self.may_go_on.clone());
        let on_mirror_failed: MirrorFailed = Rc::new(move |index, _| {
            failures.borrow_mut().push(index);
            let verdict = if may_go_on.get() { Ok(()) } else { Err("no majority".to_string()) };
            Box::pin(async move { verdict })
        });
        JournalConfig { name: "test".to_string(), id: ID, ports, buffers: stale_buffers(), mirrors, on_mirror_failed }
    }

    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.sim.block_on(NODE, future)
    }

    fn format(&self) {
        self.run(async { format(&self.config()).await.unwrap() });
    }

    fn open(&self) -> (Rc<LaneJournal>, Vec<ReplayedRecord>, JournalReport) {
        self.run(open(self.config())).unwrap()
    }

    /// Ends the process. A new one opens the devices only when the old one's writes have ended: its file lock says so.
    fn stop(&self) {
        self.sim.kill(NODE);
        let ports = self.sim.ports(NODE);
        self.run(kiseki_types::runtime::RuntimeExt::sleep(&*ports, std::time::Duration::from_millis(100)));
    }

    /// Writes noise over a page, durably.
    fn overwrite(&self, disk: usize, block: BlockIndex) {
        let device = self.disks[disk].open();
        self.run(async {
            device.write(block, vec![kiseki_types::IoBuf::copy_of(&[0xee; 4096]).freeze()]).await.unwrap();
            device.flush().await.unwrap();
        });
    }

    fn power_cut(&self, seed: u64) {
        self.sim.kill(NODE);
        self.disks.iter().enumerate().for_each(|(at, disk)| disk.power_cut(seed + at as u64));
        self.switch.restore();
    }

    fn block_of_ring_page(&self, page: u64) -> BlockIndex {
        START.plus(BlockCount((2 + page) * 4096 / u64::from(self.block_len)))
    }
}

/// What was promised, and what was done, to a journal.
#[derive(Default)]
struct Model {
    appended: BTreeMap<Sequence, Vec<u8>>,
    acknowledged: Sequence,
    trimmed: Sequence,
    handed_out: Sequence,
}

impl Model {
    /// What a replay must show; takes what it showed as the truth from now on.
    fn check(&mut self, replayed: &[ReplayedRecord]) -> Result<(), String> {
        let mut previous = None;
        for record in replayed {
            if self.appended.get(&record.sequence) != Some(&record.bytes) {
                return Err(format!("{} is not what was appended", record.sequence));
            }
            let gap = previous.map_or(0, |previous| self.appended.range(previous + 1..record.sequence).count());
            if gap > 0 {
                return Err(format!("{gap} records before {} are skipped", record.sequence));
            }
            previous = Some(record.sequence);
        }
        let shown: BTreeMap<Sequence, Vec<u8>> =
            replayed.iter().map(|record| (record.sequence, record.bytes.clone())).collect();
        let lost = self.appended.range(self.trimmed + 1..).map(|(sequence, _)| *sequence);
        if let Some(lost) = lost.filter(|lost| *lost <= self.acknowledged).find(|lost| !shown.contains_key(lost)) {
            return Err(format!("{lost} was flushed (through {}) and is gone", self.acknowledged));
        }
        // An open makes durable what it shows.
        self.acknowledged = self.acknowledged.max(shown.last_key_value().map_or(0, |(last, _)| *last));
        self.appended = shown;
        Ok(())
    }

    /// Numbers never come again, also those of records that nobody can know of.
    fn check_numbers(&self, journal: &LaneJournal) -> Result<(), String> {
        if journal.last() < self.handed_out {
            return Err(format!("{} was handed out, the journal goes on at {}", self.handed_out, journal.last()));
        }
        Ok(())
    }
}

/// Random appends, waits and trims until the power fails or enough is done.
async fn use_journal(journal: Rc<LaneJournal>, model: Rc<RefCell<Model>>, seed: u64, steps: u64) {
    let rng = SeededRng::new(seed);
    for step in 0..steps {
        let len = if rng.chance(1, 12) { rng.between(3000..9000) } else { rng.below(200) } as usize;
        let bytes = vec![(step % 251) as u8; len];
        match journal.append(&bytes) {
            Ok(sequence) => {
                model.borrow_mut().handed_out = sequence;
                assert!(model.borrow_mut().appended.insert(sequence, bytes).is_none(), "{sequence} came twice");
            }
            Err(JournalError::Full { .. }) => {
                assert!(journal.fill() > 0.3, "full at {}", journal.fill());
                let last = journal.last();
                journal.flushed(last).await.unwrap();
                model.borrow_mut().acknowledged = last;
                let trim = last - rng.below(3).min(last);
                let trim = trim.max(model.borrow().trimmed);
                model.borrow_mut().trimmed = trim;
                journal.trim(trim);
                journal.trim_persisted().await.unwrap();
            }
            Err(error) => panic!("{error}"),
        }
        if rng.chance(1, 4) {
            let sequence = journal.last();
            if rng.chance(1, 2) {
                journal.written(sequence).await.unwrap();
                journal.flush_now().await.unwrap();
            } else {
                journal.flushed(sequence).await.unwrap();
            }
            let mut model = model.borrow_mut();
            model.acknowledged = model.acknowledged.max(sequence);
        }
        if rng.chance(1, 20) {
            let trim = model.borrow().acknowledged;
            model.borrow_mut().trimmed = trim;
            journal.trim(trim);
        }
    }
}

/// Starts, uses and cuts a journal several times. An error is a broken promise.
fn crash_run(seed: u64, mirrors: usize, flush_is_a_lie: bool) -> Result<(), String> {
    let rig = Rig::new(seed, mirrors, 8 + seed % 24);
    let rng = SeededRng::new(seed ^ 0xc4a5);
    rig.format();
    rig.disks.iter().for_each(|disk| disk.set_flush_is_a_lie(flush_is_a_lie));
    let model = Rc::new(RefCell::new(Model::default()));
    for round in 0..8 {
        rig.switch.arm(1 + rng.below(60));
        let config = rig.config();
        let (to_use, steps) = (model.clone(), rng.below(150));
        let used = rig.sim.block_on_or_cut(
            NODE,
            async {
                let (journal, replayed, _) = open(config).await.map_err(|error| error.to_string())?;
                to_use.borrow_mut().check(&replayed)?;
                to_use.borrow_mut().check_numbers(&journal)?;
                use_journal(journal, to_use, rng.next_u64(), steps).await;
                Ok::<(), String>(())
            },
            &rig.switch,
        );
        match used {
            Ok(result) => result.map_err(|error| format!("round {round}: {error}"))?,
            Err(Interrupted::PowerCut) => {}
            Err(Interrupted::Stalled(stalled)) => panic!("seed {seed} round {round}: {stalled}"),
        }
        if rig.switch.is_cut() || rng.chance(1, 2) {
            rig.power_cut(rng.next_u64())
        } else {
            rig.stop()
        };
        rig.switch.restore();
    }
    let (_, replayed, _) = rig.run(open(rig.config())).map_err(|error| error.to_string())?;
    model.borrow_mut().check(&replayed)
}

#[test]
fn i_l2_i_d6_what_was_flushed_survives_a_power_cut_at_any_write() {
    for seed in 0..400 {
        let result = crash_run(seed, 1 + (seed % 2) as usize, false);
        assert_eq!(result, Ok(()), "seed {seed}");
    }
}

#[test]
fn i_l2_without_the_flush_the_same_run_loses_records() {
    let broken = (0..40).filter(|seed| crash_run(*seed, 1, true).is_err()).count();
    assert!(broken > 10, "only {broken} of 40 runs noticed that flushes are lies");
}

#[test]
fn it_goes_around_its_ring_many_times() {
    let rig = Rig::new(1, 1, 12);
    rig.format();
    for start in 0..3 {
        let (journal, replayed, report) = rig.open();
        assert_eq!(report.incarnation, start + 1);
        let kept = replayed.len();
        assert!(start == 0 || kept == 1, "start {start}: {kept} records");
        rig.run(async {
            for turn in 0..200_u32 {
                let sequence = journal.append(&vec![turn as u8; 5000]).unwrap();
                journal.flushed(sequence).await.unwrap();
                journal.trim(sequence - 1);
                journal.trim_persisted().await.unwrap();
            }
        });
        rig.stop();
    }
}

#[test]
fn many_appends_share_a_write_and_many_waiters_a_flush() {
    let rig = Rig::new(2, 1, 60);
    rig.format();
    let (journal, ..) = rig.open();
    let before = rig.disks[0].counts();
    rig.run(async {
        let waits = (0..100).map(|_| journal.flushed(journal.append(b"a record").unwrap()));
        let waits: Vec<_> = waits.collect();
        futures::future::join_all(waits).await.into_iter().for_each(|result| result.unwrap());
    });
    let after = rig.disks[0].counts();
    assert!(after.writes - before.writes <= 2, "{} writes", after.writes - before.writes);
    assert!(after.flushes - before.flushes <= 3, "{} flushes", after.flushes - before.flushes);
}

#[test]
fn a_full_journal_says_so_and_works_again_after_a_trim() {
    let rig = Rig::new(4, 1, 8);
    rig.format();
    let (journal, ..) = rig.open();
    rig.run(async {
        let mut last = 0;
        let error = loop {
            match journal.append(&[1; 3000]) {
                Ok(sequence) => last = sequence,
                Err(error) => break error,
            }
        };
        assert!(matches!(error, JournalError::Full { .. }), "{error}");
        assert!(matches!(journal.append(&vec![0; 2 << 20]), Err(JournalError::TooLong { .. })));
        journal.flushed(last).await.unwrap();
        journal.trim(last);
        journal.trim_persisted().await.unwrap();
        assert_eq!(journal.fill(), 0.0);
        journal.append(&[1; 3000]).unwrap();
    });
}

/// Appends ten flushed records of a page each; returns the rig.
fn ten_flushed(seed: u64, mirrors: usize) -> Rig {
    let rig = Rig::new(seed, mirrors, 40);
    rig.format();
    let (journal, ..) = rig.open();
    rig.run(async {
        for turn in 0..10_u8 {
            let sequence = journal.append(&[turn; 4004]).unwrap(); // fills its page exactly
            journal.flushed(sequence).await.unwrap();
        }
    });
    rig.stop();
    rig
}

#[test]
fn i_l10_a_rotten_record_below_what_was_flushed_is_damage_and_a_torn_tail_is_not() {
    let rig = ten_flushed(5, 1);
    rig.disks[0].rot_block(rig.block_of_ring_page(4));
    match rig.run(open(rig.config())) {
        Err(JournalOpenError::Damaged { readable, reason, .. }) => assert_eq!(readable.len(), 4, "{reason}"),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("a journal with a hole opened"),
    }
    // The tenth frame states that nine were flushed; nothing states that the tenth was. Without it the journal
    // is one that lost its unflushed tail.
    let rig = ten_flushed(5, 1);
    rig.disks[0].rot_block(rig.block_of_ring_page(9));
    let (_, replayed, report) = rig.open();
    assert_eq!((replayed.len(), report.flushed_through), (9, 9));
    assert!(replayed.iter().all(|record| record.flushed));
    let rig = ten_flushed(5, 1);
    let (_, replayed, _) = rig.open();
    assert_eq!(replayed.iter().filter(|record| record.flushed).count(), 9, "nothing says that the tenth was flushed");
}

#[test]
fn i_k1_what_a_buffer_held_before_reaches_no_device() {
    let rig = Rig::new(11, 1, 20);
    rig.format();
    let (journal, ..) = rig.open();
    let ring = rig.run(async {
        for len in [0, 1, 3000, 4004, 5000] {
            let sequence = journal.append(&vec![1; len]).unwrap();
            journal.flushed(sequence).await.unwrap();
        }
        rig.disks[0].open().read(rig.block_of_ring_page(0), IoBuf::zeroed(8 * 4096)).await.unwrap()
    });
    assert!(ring.contains(&1), "the records are there");
    assert!(!ring.windows(16).any(|window| window == [STALE_BYTE; 16]), "I-K1");
}

#[test]
fn i_l10_lost_headers_are_missing_foreign_or_damage_but_never_a_new_journal() {
    let rig = Rig::new(6, 1, 20);
    assert!(matches!(rig.run(open(rig.config())), Err(JournalOpenError::Missing { .. })));
    let rig = ten_flushed(7, 1);
    let other = JournalConfig { id: JournalId([6; 16]), ..rig.config() };
    assert!(matches!(rig.run(open(other)), Err(JournalOpenError::Foreign { .. })));
    // The newest header (of the first start) is in page 0; page 1 still holds the one of format.
    rig.overwrite(0, START);
    assert!(matches!(rig.run(open(rig.config())), Err(JournalOpenError::Damaged { .. })));
}

#[test]
fn i_l10_a_lost_header_is_damage_also_where_no_frame_says_that_anything_was_flushed() {
    let rig = Rig::new(6, 1, 20);
    rig.format();
    let (journal, ..) = rig.open();
    rig.run(async {
        let first = journal.append(b"a vote").unwrap();
        journal.flushed(first).await.unwrap();
    });
    rig.stop();
    rig.overwrite(0, START);
    let opened = rig.run(open(rig.config()));
    assert!(matches!(opened, Err(JournalOpenError::Damaged { .. })), "I-L10: the vote is forgotten");
}

#[test]
fn a_mirror_that_is_behind_rotten_or_new_is_filled_from_the_other() {
    for broken in 0..2 {
        let rig = ten_flushed(8, 2);
        rig.disks[broken].rot_block(rig.block_of_ring_page(3));
        let (_, replayed, report) = rig.open();
        assert_eq!((replayed.len(), report.resynced_mirrors.as_slice()), (10, [broken].as_slice()));
        assert_eq!(report.damaged_mirrors, [broken]);
        rig.stop();
        // Now the other one is lost altogether: the filled one has everything.
        let mut config = rig.config();
        config.mirrors[1 - broken].content = MirrorContent::Refill;
        let (_, replayed, report) = rig.run(open(config)).unwrap();
        assert_eq!((replayed.len(), report.resynced_mirrors.as_slice()), (10, [1 - broken].as_slice()));
    }
}

#[test]
fn i_d6_a_failed_write_or_flush_fences_a_lone_journal_for_good() {
    for is_flush in [false, true] {
        let rig = Rig::new(9, 1, 20);
        rig.format();
        let (journal, ..) = rig.open();
        rig.run(async {
            let first = journal.append(b"safe").unwrap();
            journal.flushed(first).await.unwrap();
            if is_flush {
                rig.disks[0].fail_flush(1)
            } else {
                rig.disks[0].fail_write(1)
            };
            let second = journal.append(b"lost").unwrap();
            let waits = futures::future::join(journal.flushed(second), journal.flushed(second)).await;
            assert!(waits.0.is_err() && waits.1.is_err());
            assert!(matches!(journal.flushed(first).await, Err(JournalError::Fenced { .. })));
            assert!(matches!(journal.append(b"more"), Err(JournalError::Fenced { .. })));
            assert!(journal.flush_now().await.is_err());
        });
        assert_eq!(*rig.failures.borrow(), [0]);
    }
}

#[test]
fn i_d6_a_mirrored_journal_goes_on_only_when_its_owner_agrees() {
    for may_go_on in [true, false] {
        for is_flush in [false, true] {
            let rig = Rig::new(10, 2, 20);
            rig.format();
            rig.may_go_on.set(may_go_on);
            let (journal, ..) = rig.open();
            rig.run(async {
                if is_flush {
                    rig.disks[1].fail_flush(1)
                } else {
                    rig.disks[1].fail_write(1)
                };
                let sequence = journal.append(b"one").unwrap();
                assert_eq!(journal.flushed(sequence).await.is_ok(), may_go_on);
                if may_go_on {
                    let sequence = journal.append(b"two").unwrap();
                    journal.flushed(sequence).await.unwrap();
                    assert_eq!(journal.mirrors_live(), [true, false]);
                }
            });
            assert_eq!(*rig.failures.borrow(), [1]);
            rig.stop();
            // The mirror that was dropped is stale: it is refilled, never asked.
            let mut config = rig.config();
            config.mirrors[1].content = MirrorContent::Refill;
            if may_go_on {
                let (_, replayed, _) = rig.run(open(config)).unwrap();
                assert_eq!(replayed.len(), 2);
            }
        }
    }
}

#[test]
fn i_d6_a_waiter_joins_only_a_flush_that_was_submitted_after_it_came() {
    let rig = Rig::new(11, 1, 20);
    let disk = rig.disks[0].clone();
    rig.run(async {
        let gate = FlushGate::new(rig.sim.ports(NODE), disk.open());
        let first = gate.flush();
        let ports = rig.sim.ports(NODE);
        while disk.counts().flushes == 0 {
            ports.yield_now().await;
        }
        let (second, third) = (gate.flush(), gate.flush());
        let (first, second, third) = futures::future::join3(first, second, third).await;
        first.and(second).and(third).unwrap();
        assert_eq!(disk.counts().flushes, 2, "the second and third share the next flush, not the first one's");
        assert_eq!((gate.flush_count(), gate.waiter_count()), (2, 3));
    });
}

#[test]
fn i_d6_a_fence_fails_the_waiters_of_the_flush_that_is_under_way() {
    let rig = Rig::new(11, 1, 20);
    let disk = rig.disks[0].clone();
    rig.run(async {
        let ports = rig.sim.ports(NODE);
        let gate = FlushGate::new(ports.clone(), disk.open());
        let under_way = gate.flush();
        while disk.counts().flushes == 0 {
            ports.yield_now().await;
        }
        gate.fence("a write failed");
        let error = under_way.await.expect_err("I-D6: what the flush covered is unknown");
        assert_eq!(error.reason, "a write failed");
    });
}

#[test]
fn a_flush_waits_for_the_writes_that_are_on_their_way_but_not_for_long() {
    let rig = Rig::new(12, 1, 20);
    let disk = rig.disks[0].clone();
    rig.run(async {
        let ports = rig.sim.ports(NODE);
        let gate = FlushGate::new(ports.clone(), disk.open());
        let coming = [gate.coming(), gate.coming()];
        let first = gate.flush();
        for _ in 0..5 {
            ports.yield_now().await;
        }
        assert_eq!(disk.counts().flushes, 0, "it waits");
        let joined: Vec<_> = coming
            .into_iter()
            .map(|coming| {
                drop(coming);
                gate.flush()
            })
            .collect();
        first.await.unwrap();
        for flush in joined {
            flush.await.unwrap();
        }
        assert_eq!((gate.flush_count(), gate.waiter_count()), (1, 3), "one flush serves all three");

        let never_asks = gate.coming();
        let before = ports.now();
        gate.flush().await.unwrap();
        assert!(
            ports.now().since(before) < std::time::Duration::from_millis(50),
            "a writer that hangs holds up nobody"
        );
        drop(never_asks);
        gate.fence("a test");
        gate.flush().await.unwrap_err();
    });
}
