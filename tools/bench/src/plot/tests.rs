//! What a reader would miss: a line, a unit, a name, or the word that something is not shown.

use super::*;
use serde_json::{Value, json};

fn side(ops: u64, len_bytes: u64, slow_ns: u64) -> Value {
    let interval = |number: u64| {
        json!({"start_ns": number * 500_000_000, "len_ns": 500_000_000, "total_ios": if number == 3 { 0 } else { ops / 10 },
            "io_bytes": ops / 10 * len_bytes, "p50_ns": 90_000, "p99_ns": 200_000 + number * 10_000, "max_ns": slow_ns})
    };
    json!({"total_ios": ops, "io_bytes": ops * len_bytes, "iops": ops as f64 / 5.0,
        "bw_bytes": ops * len_bytes / 5,
        "lat_ns": {"N": ops, "mean": 100_000.0, "max": slow_ns, "percentile": {"50.000000": 90_000, "99.000000": slow_ns / 10},
            "bins": {"90000": ops / 2, "110000": ops - ops / 2 - 11, (slow_ns / 10).to_string(): 10, slow_ns.to_string(): 1}},
        "intervals": (0..10).map(interval).collect::<Vec<_>>()})
}

fn result(name: &str, jobs: Vec<Value>) -> RunResult {
    RunResult::parse(name.to_owned(), &json!({"jobs": jobs})).unwrap()
}

/// For a look at the pictures: `KISEKI_BENCH_PLOTS=DIRECTORY cargo test` keeps them.
fn keep(plots: &Plots) {
    if let Some(directory) = std::env::var_os("KISEKI_BENCH_PLOTS") {
        for plot in &plots.plots {
            std::fs::write(std::path::Path::new(&directory).join(format!("{}.svg", plot.file)), &plot.svg).unwrap();
        }
    }
}

fn find<'a>(plots: &'a Plots, file: &str) -> &'a Plot {
    let found = plots.plots.iter().find(|plot| plot.file == file);
    found.unwrap_or_else(|| panic!("no {file} in {:?}", plots.plots.iter().map(|plot| &plot.file).collect::<Vec<_>>()))
}

#[test]
fn every_kind_of_plot_has_its_series_units_and_names() {
    let step = |clients: u64, ops: u64, slow_ns: u64| {
        let mut job = json!({"jobname": "get", "read": side(ops, 4096, slow_ns)});
        job["sweep"] = json!({"variable": "clients", "value": clients, "is_knee": clients == 8});
        job
    };
    let steps =
        [(1, 4000, 3e6), (2, 8000, 3.2e6), (4, 15_000, 4e6), (8, 24_000, 6e6), (16, 25_000, 14e6), (32, 25_300, 29e6)];
    let swept = result("sweep", steps.map(|(clients, ops, ns)| step(clients, ops, ns as u64)).to_vec());
    let stage = |name: &str, ns: f64| json!({"name": name, "count": 5, "mean_ns": ns, "p50_ns": ns, "p99_ns": ns * 4.0, "p999_ns": ns * 31.0});
    let stages = [("parse", 4e3), ("auth", 9e3), ("seal", 31e3), ("device", 400e3), ("ack <&>", 2e3)];
    let mut waterfall = json!({"jobname": "put 1m", "write": side(5000, 1 << 20, 8_000_000)});
    waterfall["waterfall"] = json!({"source": "/metrics", "stages": stages.map(|(name, ns)| stage(name, ns)).to_vec()});
    let plots = of(&[swept, result("served", vec![waterfall])]).unwrap();
    keep(&plots);
    let files: Vec<&str> = plots.plots.iter().map(|plot| plot.file.as_str()).collect();
    assert_eq!(files, ["latency", "time-operations", "time-bytes", "sweep-operations", "waterfall-1"]);
    assert_eq!(plots.left_out, Vec::<String>::new());
    for (file, lines, words) in [
        ("latency", 7, ["percentile (%)", "99.99", "10 ms", "served, put 1m, write", "sweep, get (clients 4), read"]),
        ("time-operations", 12, ["throughput (operations/s)", "p99 latency", "(s)", "get (clients 32)", "µs"]),
        ("time-bytes", 2, ["throughput (MiB/s)", "p99 latency", "time since", "put 1m", "write"]),
        ("sweep-operations", 1, ["knee: 8", "throughput (operations/s)", "ms", "sweep: read by clients", "\n32\n"]),
        ("waterfall-1", 0, ["ack &lt;&amp;&gt;", "12.4 ms", "p99.9", "1.6 ms", "parse"]),
    ] {
        let svg = &find(&plots, file).svg;
        words.iter().for_each(|word| assert!(svg.contains(word), "{word:?} is not in {file}"));
        let colored =
            svg.lines().filter(|line| line.starts_with("<polyline") && line.contains("stroke-width=\"5\"")).count();
        assert!(colored >= lines, "{file} has {colored} of {lines} lines");
        assert!(svg.ends_with("</svg>\n") && svg.matches("<text").count() == svg.matches("</text>").count());
    }
}

#[test]
fn what_has_no_data_is_left_out_and_said() {
    let bare = json!({"jobname": "x", "read": {"total_ios": 5, "iops": 1.0}});
    let plots = of(&[result("old", vec![bare])]).unwrap();
    assert!(plots.plots.is_empty());
    assert_eq!(plots.left_out.len(), 2, "{:?}", plots.left_out);
    let many: Vec<Value> =
        (0..15).map(|job| json!({"jobname": format!("j{job}"), "read": side(1000, 4096, 9_000_000)})).collect();
    let plots = of(&[result("many", many)]).unwrap();
    assert!(find(&plots, "latency").svg.contains("\nj11\n") && !find(&plots, "latency").svg.contains("\nj12\n"));
    assert!(
        plots.left_out.iter().all(|line| line.contains("only 12 fit") && line.contains("j14")),
        "{:?}",
        plots.left_out
    );
}
