//! The raft scenario: fixed seeds, and the control that shows that it would notice.

use kiseki_sim::{ClusterOptions, ClusterReport, run_cluster};

/// Seeds of the gate, over all tests of this file.
const SEEDS: u64 = 100;

/// Tests that share them, so that the test runner spreads them over the machine's cores.
const SHARES: u64 = 2;

/// Runs one share of the seeds and reports all that fail.
fn share(index: u64) {
    let seeds = (0..SEEDS).filter(|seed| seed % SHARES == index);
    let reports: Vec<ClusterReport> = seeds.map(|seed| run_cluster(seed, ClusterOptions::for_seed(seed))).collect();
    let failed: Vec<String> = reports
        .iter()
        .filter(|report| !report.is_good())
        .map(|report| {
            format!("{report}\n  replay: cargo run --release -p kiseki-sim -- --scenario raft --seed {}", report.seed)
        })
        .collect();
    assert!(failed.is_empty(), "{} seeds failed\n{}", failed.len(), failed.join("\n"));
    // The troubles happened, and work was done between them.
    let sum = |of: fn(&ClusterReport) -> u64| reports.iter().map(of).sum::<u64>();
    let (writes, cuts) = (sum(|report| report.acknowledged), sum(|report| report.cuts));
    let (replaced, transferred) = (sum(|report| report.replaced), sum(|report| report.transferred));
    let lost = sum(|report| report.lost);
    let seeds = reports.len() as u64;
    assert!(writes > 200 * seeds && cuts > 4 * seeds, "{writes} writes, {cuts} cuts");
    assert!(replaced > seeds / 5 && transferred > seeds / 4, "{replaced} replaced, {transferred} transferred");
    assert!(lost > seeds / 5, "{lost} journals lost");
}

#[test]
fn i_l2_i_l3_i_l10_groups_keep_what_they_acknowledged_share_0() {
    share(0);
}

#[test]
fn i_l2_i_l3_i_l10_groups_keep_what_they_acknowledged_share_1() {
    share(1);
}

#[test]
fn the_same_seed_gives_the_same_run_of_a_cluster() {
    for seed in [3, 4] {
        let options = ClusterOptions::for_seed(seed);
        assert_eq!(run_cluster(seed, options), run_cluster(seed, options));
    }
}

#[test]
fn i_l2_journals_that_lie_about_flushing_are_caught_in_a_cluster() {
    let lying = |seed| ClusterOptions { journals_lie: true, ..ClusterOptions::for_seed(seed) };
    let caught = (0..6).filter(|seed| !run_cluster(*seed, lying(*seed)).is_good()).count();
    assert!(caught >= 4, "caught by {caught} of 6 seeds only");
}
