//! The nodes scenario: fixed seeds, and the control that shows that it would notice.

use kiseki_sim::{NodesOptions, NodesReport, run_handover, run_nodes};

/// Seeds of the gate, over all tests of this file.
const SEEDS: u64 = 30;

/// Tests that share them, so that the test runner spreads them over the machine's cores.
const SHARES: u64 = 2;

/// Runs one share of the seeds and reports all that fail.
fn share(index: u64) {
    let seeds = (0..SEEDS).filter(|seed| seed % SHARES == index);
    let reports: Vec<NodesReport> = seeds.map(|seed| run_nodes(seed, NodesOptions::for_seed(seed))).collect();
    let failed: Vec<String> = reports
        .iter()
        .filter(|report| !report.is_good())
        .map(|report| {
            format!("{report}\n  replay: cargo run --release -p kiseki-sim -- --scenario nodes --seed {}", report.seed)
        })
        .collect();
    assert!(failed.is_empty(), "{} seeds failed\n{}", failed.len(), failed.join("\n"));
    // The troubles happened, and work was done between them.
    let sum = |of: fn(&NodesReport) -> u64| reports.iter().map(of).sum::<u64>();
    let (writes, reads, cuts) =
        (sum(|report| report.acknowledged), sum(|report| report.reads), sum(|report| report.cuts));
    assert!(sum(|report| report.moved) > 0, "{} fragments moved to nodes that joined late", sum(|report| report.moved));
    assert!(sum(|report| report.as_copies) > 0, "no stripe was written as copies while a node was away");
    let seeds = reports.len() as u64;
    assert!(writes > 60 * seeds && reads > 80 * seeds && cuts > seeds, "{writes} writes, {reads} reads, {cuts} cuts");
}

#[test]
fn i_l2_i_l5_i_v2_several_nodes_keep_what_they_acknowledged_share_0() {
    share(0);
}

#[test]
fn i_l2_i_l5_i_v2_several_nodes_keep_what_they_acknowledged_share_1() {
    share(1);
}

#[test]
fn a_node_that_stops_hands_its_shards_over_and_no_client_notices() {
    let reports: Vec<NodesReport> = (100..106).map(|seed| run_handover(seed, NodesOptions::for_seed(seed))).collect();
    let failed: Vec<String> = reports.iter().filter(|report| !report.is_good()).map(NodesReport::to_string).collect();
    assert!(failed.is_empty(), "{} seeds failed\n{}", failed.len(), failed.join("\n"));
    assert!(reports.iter().all(|report| report.acknowledged > 60), "{reports:?}");
}

#[test]
fn the_same_seed_gives_the_same_run_of_several_nodes() {
    let options = NodesOptions::for_seed(3);
    assert_eq!(run_nodes(3, options), run_nodes(3, options));
}

#[test]
fn i_l2_journals_that_lie_about_flushing_are_caught_on_several_nodes() {
    let lying = |seed| NodesOptions { journals_lie: true, troubles: 30, ..NodesOptions::for_seed(seed) };
    let caught = (0..8).filter(|seed| !run_nodes(*seed, lying(*seed)).is_good()).count();
    assert!(caught >= 2, "caught by {caught} of 8 seeds only");
}
