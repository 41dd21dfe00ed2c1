//! The crash run over the real node: fixed seeds, and the controls that show that it would notice.

use kiseki_sim::real::{Lie, RealNode, RealOptions};
use kiseki_sim::{Report, RunOptions, run_seed};

/// Seeds of the gate, over all tests of this file.
const SEEDS: u64 = 200;

/// Tests that share them, so that the test runner spreads them over the machine's cores.
const SHARES: u64 = 4;

fn run(seed: u64, options: RunOptions, lie: Lie) -> Report {
    run_seed(seed, options, |sim| RealNode::new(sim, RealOptions { lie, ..RealOptions::for_seed(seed) }))
}

/// Runs one share of the seeds and reports all that fail.
fn share(index: u64) {
    let options = RunOptions { operations: 500, ..RunOptions::default() };
    let seeds = (0..SEEDS).filter(|seed| seed % SHARES == index);
    let failed: Vec<Report> =
        seeds.map(|seed| run(seed, options, Lie::Nobody)).filter(|report| !report.is_good()).collect();
    let text: Vec<String> = failed
        .iter()
        .map(|report| format!("{report}\n  replay: cargo run --release -p kiseki-sim -- --seed {}", report.seed))
        .collect();
    assert!(failed.is_empty(), "I-L2, I-L5: {} seeds failed\n{}", failed.len(), text.join("\n"));
}

#[test]
fn i_l2_acknowledged_objects_survive_power_cuts_share_0() {
    share(0);
}

#[test]
fn i_l2_acknowledged_objects_survive_power_cuts_share_1() {
    share(1);
}

#[test]
fn i_l2_acknowledged_objects_survive_power_cuts_share_2() {
    share(2);
}

#[test]
fn i_l2_acknowledged_objects_survive_power_cuts_share_3() {
    share(3);
}

/// Each start misses another disk, so every stripe is repaired, found twice when the disk is back, and cut off at any
/// step of that.
#[test]
fn i_d1_acknowledged_objects_survive_power_cuts_during_repair() {
    let mut repaired = 0;
    for seed in 0..12 {
        let options = RunOptions { operations: 500, ..RunOptions::default() };
        let mut counter = None;
        let report = run_seed(seed, options, |sim| {
            let node = RealNode::new(sim, RealOptions { absent: 1, ..RealOptions::for_seed(seed) });
            counter = Some(node.repaired());
            node
        });
        assert!(
            report.is_good(),
            "I-D1: {report}\n  replay: cargo run --release -p kiseki-sim -- --absent 1 --seed {seed} --ops 500"
        );
        repaired += counter.expect("the node was made").get();
    }
    assert!(repaired > 100, "{repaired} fragments were repaired on the way");
}

/// Two disks join while clients write, then one after the other goes and is reopened; the power goes at any step of it.
/// I-D6, I-C8, I-L5.
#[test]
fn i_d6_acknowledged_objects_survive_power_cuts_while_devices_come_and_go() {
    let (mut joined, mut repaired) = (0, 0);
    for seed in 0..12 {
        let options = RunOptions { operations: 500, ..RunOptions::default() };
        let mut counters = None;
        let report = run_seed(seed, options, |sim| {
            let node = RealNode::new(sim, RealOptions { late: 2, ..RealOptions::for_seed(seed) });
            counters = Some((node.joined(), node.repaired()));
            node
        });
        assert!(
            report.is_good(),
            "I-D6: {report}\n  replay: cargo run --release -p kiseki-sim -- --late 2 --seed {seed} --ops 500"
        );
        let (of_run, repaired_in_run) = counters.expect("the node was made");
        (joined, repaired) = (joined + of_run.get(), repaired + repaired_in_run.get());
    }
    assert!(joined > 60 && repaired > 50, "{joined} devices joined, {repaired} fragments were repaired on the way");
}

/// Disks are emptied, kept after all, and retired, with the power failing at any step: two leave in a run, and what was
/// acknowledged is on the others.
#[test]
fn i_d5_acknowledged_objects_survive_power_cuts_while_disks_are_emptied_and_leave() {
    let (mut begun, mut retired) = (0, 0);
    for seed in 0..12 {
        let options = RunOptions { operations: 500, ..RunOptions::default() };
        let mut counter = None;
        let report = run_seed(seed, options, |sim| {
            let node = RealNode::new(sim, RealOptions { drain: 2, ..RealOptions::for_seed(seed) });
            counter = Some(node.drained());
            node
        });
        assert!(
            report.is_good(),
            "I-D5: {report}\n  replay: cargo run --release -p kiseki-sim -- --drain 2 --seed {seed} --ops 500"
        );
        let counts = counter.expect("the node was made")();
        (begun, retired) = (begun + counts.0, retired + counts.1);
    }
    assert!(begun > 20 && retired > 6, "{begun} evacuations were begun and {retired} disks retired on the way");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let options = RunOptions { operations: 150, ..RunOptions::default() };
    let (first, second) = (run(3, options, Lie::Nobody), run(3, options, Lie::Nobody));
    assert_eq!(first, second);
}

/// A lie has to be caught by most seeds, not by luck.
fn assert_caught(lie: Lie) {
    let options = RunOptions { operations: 150, ..RunOptions::default() };
    let caught = (0..6).filter(|seed| !run(*seed, options, lie).is_good()).count();
    assert!(caught >= 3, "{lie:?} is caught by {caught} of 6 seeds only");
}

#[test]
fn i_l5_disks_that_lie_about_flushing_are_caught() {
    assert_caught(Lie::Devices);
}

#[test]
fn i_l2_raft_journals_that_lie_about_flushing_are_caught() {
    assert_caught(Lie::RaftJournals);
}

#[test]
fn metadata_directories_that_lie_about_syncing_are_caught() {
    assert_caught(Lie::MetadataDirs);
}
