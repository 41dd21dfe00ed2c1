//! Metrics of shards and cores: a series for each replica that the node tells of, and for each core.

use crate::status::NodeReport;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

type Labels = Vec<(&'static str, String)>;

fn count(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Registers what is known of replicas and cores.
pub(super) fn metrics(registry: &mut Registry, report: &NodeReport) {
    shards(registry, report);
    cores(registry, report);
}

fn shards(registry: &mut Registry, report: &NodeReport) {
    let gauges: [Family<Labels, Gauge>; 5] = Default::default();
    let counters: [Family<Labels, Counter>; 4] = Default::default();
    let (lags, answers) = (Family::<Labels, Gauge>::default(), Family::<Labels, Gauge>::default());
    for (core, shard) in report.core_reports.iter().flat_map(|(core, of)| of.shards.iter().map(move |it| (core, it))) {
        let number = shard.shard.to_string();
        let labels: Labels = vec![("shard", number.clone()), ("kind", shard.kind.clone()), ("core", core.clone())];
        let values = [
            count(u64::from(shard.is_led_here)),
            count(u64::from(shard.leader.is_some())),
            count(shard.term),
            count(shard.last_index),
            count(shard.applied_index),
        ];
        for (family, value) in gauges.iter().zip(values) {
            family.get_or_create(&labels).set(value);
        }
        let totals = [shard.elections_won, shard.proposals, shard.snapshots_sent, shard.snapshots_installed];
        for (family, total) in counters.iter().zip(totals) {
            family.get_or_create(&labels).inc_by(total);
        }
        for follower in &shard.followers {
            let labels = vec![("shard", number.clone()), ("node", follower.node.to_string())];
            lags.get_or_create(&labels).set(count(follower.lag_entries));
            answers.get_or_create(&labels).set(i64::from(follower.answers));
        }
    }
    let names = [
        ("shard_is_leader", "Whether the replica here leads"),
        ("shard_has_leader", "Whether the replica here knows a leader"),
        ("shard_term", "Term of the replica here"),
        ("shard_last_index", "Index of the last entry of its log"),
        ("shard_applied_index", "Index of the last entry that is applied"),
    ];
    gauges.into_iter().zip(names).for_each(|(family, (name, help))| registry.register(name, help, family));
    let names = [
        ("shard_elections_won", "Terms in which the replica here was elected and served"),
        ("shard_proposals", "Commands proposed here"),
        ("shard_snapshots_sent", "Snapshots sent to other replicas"),
        ("shard_snapshots_installed", "Snapshots of other replicas that took the place of the tables here"),
    ];
    counters.into_iter().zip(names).for_each(|(family, (name, help))| registry.register(name, help, family));
    registry.register("shard_follower_lag_entries", "Entries that a replica lacks, as the leader here sees it", lags);
    registry.register("shard_follower_answers", "Whether a replica answers the leader here", answers);
    let not_told = report.core_reports.values().map(|core| core.shards_not_told).sum();
    let gauge = Gauge::<i64>::default();
    gauge.set(count(not_told));
    registry.register("shards_not_told", "Replicas without series of their own", gauge);
}

/// Values that each core has a series of, and what they mean.
const OF_CORES: [(&str, &str); 11] = [
    ("core_cpu_us_total", "Processor time of the core's thread in microseconds"),
    ("s3_requests_total", "S3 requests answered"),
    ("s3_plain_reads_total", "GETs of those that say no more than bucket, key and range, answered the short way"),
    ("s3_bytes_in_total", "Bytes received from clients"),
    ("s3_bytes_out_total", "Bytes sent to clients"),
    ("fragment_puts_total", "Fragments written"),
    ("fragment_reads_total", "Fragments read"),
    ("hedged_reads_total", "Second reads because others were late"),
    ("raft_groups", "Replicas of shards"),
    ("raft_groups_led", "Shards led"),
    ("raft_proposals_total", "Commands proposed"),
];

fn cores(registry: &mut Registry, report: &NodeReport) {
    for (name, help) in OF_CORES {
        let values = report.core_reports.iter().filter_map(|(core, of)| Some((core, *of.values.get(name)?)));
        let labels = |core: &str| vec![("core", core.to_owned())];
        match name.strip_suffix("_total") {
            Some(base) => {
                let family = Family::<Labels, Counter>::default();
                for (core, value) in values {
                    family.get_or_create(&labels(core)).inc_by(value);
                }
                registry.register(of_core(base), help, family);
            }
            None => {
                let family = Family::<Labels, Gauge>::default();
                for (core, value) in values {
                    family.get_or_create(&labels(core)).set(count(value));
                }
                registry.register(of_core(name), help, family);
            }
        }
    }
}

/// The name of a series of cores: that of the node has no labels, and must not be the same.
fn of_core(name: &str) -> String {
    if name.starts_with("core_") { name.to_owned() } else { format!("core_{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shards::{FollowerReport, ShardReport};
    use crate::status::CoreReport;

    #[test]
    fn each_replica_and_each_core_has_series_of_its_own() {
        let shard = ShardReport {
            shard: 7,
            kind: "home".to_owned(),
            leader: Some(1),
            is_led_here: true,
            term: 3,
            last_index: 90,
            followers: vec![FollowerReport { node: 2, lag_entries: 4, answers: true }],
            proposals: 80,
            ..ShardReport::default()
        };
        let mut core = CoreReport { shards: vec![shard], shards_not_told: 2, ..CoreReport::default() };
        core.values.insert("s3_requests_total".to_owned(), 9);
        let mut report = NodeReport::default();
        report.core_reports.insert("1".to_owned(), core);
        let mut registry = Registry::with_prefix("kiseki");
        metrics(&mut registry, &report);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "kiseki_shard_is_leader{shard=\"7\",kind=\"home\",core=\"1\"} 1",
            "kiseki_shard_last_index{shard=\"7\",kind=\"home\",core=\"1\"} 90",
            "kiseki_shard_proposals_total{shard=\"7\",kind=\"home\",core=\"1\"} 80",
            "kiseki_shard_follower_lag_entries{shard=\"7\",node=\"2\"} 4",
            "kiseki_core_s3_requests_total{core=\"1\"} 9",
            "kiseki_shards_not_told 2",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
    }
}
