//! `/stages`: where the time of requests and of the data path's work goes, on each core since the start.
//!
//! Lists of `[ends_before_ns, count, ...]`, a line for each class of time that holds something; a class is an eighth of a power of
//! two wide. Two answers subtracted say what passed between them; a core brings its own up to date twice a second.

use super::Answer;
use crate::status::{CoreReport, NodeReport};
use kiseki_gateway::phases::Phase;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use serde_json::{Map, Value, json};

type Labels = Vec<(&'static str, &'static str)>;

pub(super) fn answer(report: &NodeReport) -> Answer {
    let cores: Map<String, Value> = report.core_reports.iter().map(|(core, at)| (core.clone(), of_core(at))).collect();
    let phases: Vec<&str> = Phase::ALL.iter().map(|phase| phase.name()).collect();
    let mut body = json!({"phases": phases, "cores": cores}).to_string();
    body.push('\n');
    Answer { status: 200, content_type: "application/json", body }
}

fn of_core(report: &CoreReport) -> Value {
    let stage = |(name, times): &(&'static str, kiseki_types::histogram::Histogram)| {
        let classes: Vec<(u64, u64)> = times.filled().collect();
        ((*name).to_owned(), json!({"sum_ns": times.sum_ns, "classes": classes}))
    };
    let operation = |(name, times): &(&'static str, kiseki_gateway::phases::PhaseTimes)| {
        let classes: Vec<Value> =
            times.filled().map(|(end_ns, sums)| json!([end_ns, sums.requests, sums.spent_ns])).collect();
        ((*name).to_owned(), Value::Array(classes))
    };
    json!({
        "stages": report.times.stages.iter().map(stage).collect::<Map<String, Value>>(),
        "operations": report.times.operations.iter().map(operation).collect::<Map<String, Value>>(),
    })
}

/// Sums and counts: rates and means of each stage and phase.
pub(super) fn metrics(registry: &mut Registry, report: &NodeReport) {
    let (seconds, counts) =
        (Family::<Labels, Counter<f64, std::sync::atomic::AtomicU64>>::default(), Family::<Labels, Counter>::default());
    let phases = Family::<Labels, Counter<f64, std::sync::atomic::AtomicU64>>::default();
    for core in report.core_reports.values() {
        for (name, times) in &core.times.stages {
            seconds.get_or_create(&vec![("stage", *name)]).inc_by(times.sum_ns as f64 / 1e9);
            counts.get_or_create(&vec![("stage", *name)]).inc_by(times.count());
        }
        for (operation, times) in &core.times.operations {
            for phase in Phase::ALL {
                let spent_ns: u64 = times.filled().map(|(_, sums)| sums.spent_ns[phase as usize]).sum();
                let labels = vec![("operation", *operation), ("phase", phase.name())];
                phases.get_or_create(&labels).inc_by(spent_ns as f64 / 1e9);
            }
        }
    }
    registry.register(
        "stage_seconds",
        "Time that pieces of work of the data path took; several go on at once",
        seconds,
    );
    registry.register("stage_count", "Pieces of work of the data path that have ended", counts);
    registry.register("s3_phase_seconds", "Time of requests that were answered well, by what they waited for", phases);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::CoreTimes;
    use kiseki_types::histogram::Histogram;
    use std::time::Duration;

    #[test]
    fn every_core_says_where_its_time_goes() {
        let mut seal = Histogram::default();
        seal.record(Duration::from_millis(500));
        let times = CoreTimes { stages: vec![("seal", seal)], operations: vec![("PutObject", Default::default())] };
        let core = |times: &CoreTimes| CoreReport { times: times.clone(), ..CoreReport::default() };
        let core_reports = [("0".to_owned(), core(&times)), ("1".to_owned(), core(&times))].into();
        let report = NodeReport { core_reports, ..NodeReport::default() };
        let body: Value = serde_json::from_str(&answer(&report).body).unwrap();
        let stage = &body["cores"]["1"]["stages"]["seal"];
        assert_eq!((stage["sum_ns"].as_u64(), stage["classes"][0][1].as_u64()), (Some(500_000_000), Some(1)));
        assert_eq!(body["phases"][0], "authenticate");
        let mut registry = Registry::default();
        metrics(&mut registry, &report);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.contains("stage_seconds_total{stage=\"seal\"} 1.0"), "{text}");
        assert!(text.contains("stage_count_total{stage=\"seal\"} 2"), "{text}");
        assert!(text.contains("s3_phase_seconds_total{operation=\"PutObject\",phase=\"send\"} 0.0"), "{text}");
    }
}
