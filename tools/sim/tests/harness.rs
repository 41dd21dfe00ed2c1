//! The harness itself: an honest toy passes every run, and each broken one is caught.

mod toy;

use kiseki_sim::{Report, RunOptions, run_seed};
use toy::{Flaw, ToyNode};

fn options() -> RunOptions {
    RunOptions { operations: 300, content_len_max: 100_000, ..RunOptions::default() }
}

fn run(seed: u64, flaw: Flaw) -> Report {
    run_seed(seed, options(), |sim| ToyNode::new(sim, flaw))
}

#[test]
fn an_honest_node_passes() {
    let reports: Vec<Report> = (0..60).map(|seed| run(seed, Flaw::None)).collect();
    for report in &reports {
        assert!(report.is_good(), "{report}");
        assert_eq!(report.operations, 300, "{report}");
        assert!(report.cuts >= 4, "{report}");
    }
    assert!(reports.iter().any(|report| report.cuts > 4), "recoveries are cut short too");
    assert!(reports.iter().map(|report| report.acknowledged).sum::<u64>() > 60 * 100);
}

#[test]
fn the_same_seed_gives_the_same_report() {
    for seed in 0..5 {
        assert_eq!(run(seed, Flaw::None), run(seed, Flaw::None));
    }
    assert_ne!(run(1, Flaw::None).trace_hash, run(2, Flaw::None).trace_hash);
}

#[test]
fn every_flaw_is_caught() {
    let flaws = [
        Flaw::NoDataFlush,
        Flaw::NoLogSync,
        Flaw::FlushIsALie,
        Flaw::EarlyCondition,
        Flaw::StaleReads,
        Flaw::ForgetsRemovals,
        Flaw::RangeOffByOne,
    ];
    for flaw in flaws {
        let caught = (0..30).filter(|seed| !run(*seed, flaw).is_good()).count();
        println!("{flaw:?}: caught by {caught} of 30 seeds");
        assert!(caught > 0, "{flaw:?} is not caught by any of 30 seeds");
    }
}
