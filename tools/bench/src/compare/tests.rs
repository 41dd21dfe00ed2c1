//! Verdicts that people would act on.

use super::*;

/// A result of `device` with these figures.
fn result(name: &str, iops: f64, p99_ns: u64) -> RunResult {
    of_job(
        name,
        json!({"verb": "device", "git_commit": "abc", "cpu_model": "x"}),
        json!({"rw": "randread", "bs": 4096}),
        "d",
        iops,
        p99_ns,
    )
}

fn of_job(name: &str, manifest: Value, options: Value, job: &str, iops: f64, p99_ns: u64) -> RunResult {
    let latency = json!({"N": 50_000, "mean": 1.0, "max": 9e6, "percentile":
        {"50.000000": p99_ns / 4, "99.000000": p99_ns, "99.900000": p99_ns * 3}});
    let document = json!({"manifest": manifest, "global options": options,
        "jobs": [{"jobname": job, "read": {"total_ios": 50_000, "io_bytes": 50_000 * 4096, "iops": iops,
            "bw_bytes": iops * 4096.0, "lat_ns": latency, "clat_ns": latency}}]});
    RunResult::parse(name.to_owned(), &document).unwrap()
}

fn side(name: &str, iops: [f64; 3], p99_ns: u64) -> Vec<RunResult> {
    iops.iter().map(|iops| result(name, *iops, p99_ns + *iops as u64)).collect()
}

#[test]
fn a_difference_beyond_the_spread_is_named_and_others_are_not() {
    let (a, b) = (side("a", [1000.0, 1010.0, 990.0], 80_000), side("b", [1120.0, 1130.0, 1100.0], 80_000));
    let text = Comparison::of(&a, &b).text();
    for part in [
        "B is 12 % faster",
        "A 1.00k [990 .. 1.01k]",
        "B/A 1.120",
        "rule: ranges of 3 and 3 runs",
        "verdict: B is 12 % faster; B is better in 1 ",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    let same = Comparison::of(&a, &side("b", [1005.0, 995.0, 1120.0], 80_000));
    assert_eq!(same.verdict(), "no difference that the spread allows to see", "{}", same.text());
    let slow = Comparison::of(&a, &side("b", [900.0, 905.0, 910.0], 160_000)).json();
    let verdicts: Vec<(&str, &str)> = slow["lines"]
        .as_array()
        .unwrap()
        .iter()
        .map(|l| (l["metric"].as_str().unwrap(), l["verdict"].as_str().unwrap()))
        .collect();
    assert_eq!(verdicts, ["IOPS", "lat p50", "lat p99", "lat p99.9"].map(|metric| (metric, "b_worse")));
    assert!(
        slow["verdict"].as_str().unwrap().starts_with("B is 9.5 % slower; B is better in 0 and worse in 4 of 4"),
        "{slow}"
    );
}

#[test]
fn other_work_is_not_compared_and_other_circumstances_are_told() {
    let device = json!({"verb": "device", "kernel": "6.1", "git_commit": "abc-dirty"});
    let base = || of_job("a", device.clone(), json!({"rw": "randread", "bs": 4096, "iodepth": 1}), "d", 1000.0, 80_000);
    let larger = of_job("b", device.clone(), json!({"rw": "randread", "bs": 8192}), "d", 1000.0, 80_000);
    assert_eq!(Comparison::of(&[base()], &[larger]).verdict(), "can't be compared: --bs differs: 4096; 8192");
    let verb = of_job("b", json!({"verb": "s3"}), json!({}), "d", 1000.0, 80_000);
    assert_eq!(Comparison::of(&[base()], &[verb]).verdict(), "can't be compared: different verbs: device; s3");
    let deeper = json!({"verb": "device", "kernel": "6.2", "git_commit": "abc"});
    let deeper = of_job("b", deeper, json!({"rw": "randread", "bs": 4096, "iodepth": 8}), "d", 1000.0, 80_000);
    let found = Comparison::of(&[base()], &[deeper]);
    let wanted =
        ["different kernels: 6.1; 6.2", "different --iodepth: 1; 8", "a: built from sources that no commit has"];
    assert_eq!(found.warnings, wanted);
    // One run each, and no intervals: nothing is made up.
    assert!(found.verdict().starts_with("can't be compared: a single run without intervals"), "{}", found.verdict());
}

#[test]
fn fio_s_result_is_a_side() {
    let fio = |iops: f64| {
        let percentiles = json!({"50.000000": 20_000, "99.000000": 80_000, "99.900000": 240_000});
        let document = json!({"fio version": "fio-3.33", "global options": {"bs": "4k"}, "jobs": [{
            "jobname": "x", "job options": {"rw": "randread"},
            "read": {"total_ios": 50_000, "io_bytes": 50_000 * 4096, "iops": iops, "bw_bytes": iops * 4096.0,
                "lat_ns": {"N": 50_000, "mean": 1.0}, "clat_ns": {"N": 50_000, "mean": 1.0, "percentile": percentiles}},
            "write": {"total_ios": 0}}]});
        RunResult::parse("fio".to_owned(), &document).unwrap()
    };
    let found = Comparison::of(&[fio(900.0), fio(905.0), fio(910.0)], &side("b", [1000.0, 1010.0, 990.0], 80_000));
    let text = found.text();
    for part in ["B is 10 % faster", "clat p99", "the only jobs are compared", "--lat_percentiles=1"] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
}
