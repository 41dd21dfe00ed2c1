//! One picture of `top`: what the second of two looks shows, and rates from the first to the second.

use kiseki_server::status::{CoreReport, DeviceReport, NodeReport};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

/// Shards that are shown as text, the busiest first; `--json` has all.
const SHARDS_SHOWN_MAX: usize = 12;

/// A picture.
#[derive(Debug, Default, PartialEq, Serialize)]
pub(super) struct Frame {
    /// Number of the node.
    node: u64,
    /// The cluster's id.
    cluster: String,
    /// Version of the server.
    version: String,
    /// `starting`, `serving` or `stopping`.
    phase: String,
    /// Seconds between what the two looks saw.
    seconds: f64,
    alerts: Vec<String>,
    nodes: Vec<NodeLine>,
    cores: Vec<CoreLine>,
    devices: Vec<DeviceLine>,
    pools: Vec<PoolLine>,
    shards: Vec<ShardLine>,
    /// Replicas that the node does not tell of.
    shards_not_told: u64,
    backlog: Backlog,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct NodeLine {
    node: u64,
    state: String,
    is_here: bool,
    heard_ms_ago: Option<u64>,
    devices: Option<u64>,
    calls_per_second: f64,
    in_mib_per_second: f64,
    out_mib_per_second: f64,
    call_us: u64,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct CoreLine {
    core: String,
    busy_percent: f64,
    connections: u64,
    ops_per_second: f64,
    in_mib_per_second: f64,
    out_mib_per_second: f64,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct DeviceLine {
    path: String,
    state: String,
    fill_permille: u64,
    reads_per_second: f64,
    read_mib_per_second: f64,
    read_us: u64,
    writes_per_second: f64,
    write_mib_per_second: f64,
    write_us: u64,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct PoolLine {
    pool: u64,
    level: String,
    fill_permille: u64,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct ShardLine {
    shard: u64,
    kind: String,
    leader: Option<u64>,
    is_led_here: bool,
    voters: Vec<u64>,
    last_index: u64,
    entries_per_second: f64,
    /// What the follower lacks that lacks most, where the shard is led here.
    lag_entries: u64,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct Backlog {
    repair_stripes: u64,
    repair_waiting_stripes: u64,
    lost_stripes: u64,
    repair_mib_per_second: f64,
    evacuation_fragments: u64,
    scrub_percent: u64,
    scrub_mib_per_second: f64,
    collection_waiting: u64,
    hedged_reads_per_second: f64,
}

/// A counter's way from one look to the next. One that went back began anew in between.
fn rate(before: u64, now: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { now.saturating_sub(before) as f64 / seconds } else { 0.0 }
}

fn mib(bytes_per_second: f64) -> f64 {
    bytes_per_second / f64::from(1 << 20)
}

/// Time of one operation between the looks.
fn each_us(times: (u64, u64), counts: (u64, u64)) -> u64 {
    let count = counts.1.saturating_sub(counts.0);
    times.1.saturating_sub(times.0).checked_div(count).unwrap_or_default()
}

impl Frame {
    /// From two looks, `apart` from each other.
    pub(super) fn between(before: &NodeReport, now: &NodeReport, apart: Duration) -> Frame {
        let seconds = reports_apart(before, now).unwrap_or(apart.as_secs_f64());
        let total = |name: &str| rate(before.total(name), now.total(name), seconds);
        Frame {
            node: now.node,
            cluster: now.cluster.clone(),
            version: now.version.clone(),
            phase: format!("{:?}", now.phase).to_lowercase(),
            seconds,
            alerts: now.alerts.clone(),
            nodes: nodes(before, now, seconds),
            cores: cores(before, now, seconds),
            devices: now.devices.iter().map(|device| device_line(device, before, now, seconds)).collect(),
            pools: now
                .pools
                .iter()
                .map(|pool| PoolLine {
                    pool: u64::from(pool.pool),
                    level: pool.level.clone(),
                    fill_permille: pool.fill_permille,
                })
                .collect(),
            shards: shards(before, now, seconds),
            shards_not_told: now.core_reports.values().map(|core| core.shards_not_told).sum(),
            backlog: Backlog {
                repair_stripes: now.repair.backlog_stripes,
                repair_waiting_stripes: now.repair.waiting_stripes,
                lost_stripes: now.repair.lost_stripes,
                repair_mib_per_second: mib(total("repair_bytes_moved_total")),
                evacuation_fragments: now
                    .devices
                    .iter()
                    .filter_map(|it| it.evacuation.as_ref())
                    .map(|it| it.fragments_left)
                    .sum(),
                scrub_percent: now.scrub.position_permille / 10,
                scrub_mib_per_second: mib(total("scrub_bytes_total")),
                collection_waiting: now.total("collection_waiting"),
                hedged_reads_per_second: total("hedged_reads_total"),
            },
        }
    }

    /// As text: a block for each kind of thing.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        let out = &mut text;
        let cluster = self.cluster.get(..8).unwrap_or(&self.cluster);
        line(out, format!("kiseki {} node {} of cluster {cluster}: {}", self.version, self.node, self.phase));
        for alert in &self.alerts {
            line(out, format!("  ALERT {alert}"));
        }
        if self.nodes.len() > 1 {
            line(out, "NODE  STATE      HEARD     DEV   CALLS/s    IN MiB/s   OUT MiB/s   CALL µs".to_owned());
        }
        for node in self.nodes.iter().filter(|_| self.nodes.len() > 1) {
            let heard = match node.heard_ms_ago {
                _ if node.is_here => "here".to_owned(),
                Some(ms) => format!("{:.1} s", ms as f64 / 1000.0),
                None => "never".to_owned(),
            };
            let devices = node.devices.map_or("-".to_owned(), |count| count.to_string());
            line(
                out,
                format!(
                    "{:<5} {:<10} {heard:<8} {devices:>4} {:>9.1} {:>11.1} {:>11.1} {:>9}",
                    node.node,
                    node.state,
                    node.calls_per_second,
                    node.in_mib_per_second,
                    node.out_mib_per_second,
                    node.call_us
                ),
            );
        }
        line(out, "CORE  BUSY %  CLIENTS   OPS/s    IN MiB/s   OUT MiB/s".to_owned());
        for core in &self.cores {
            line(
                out,
                format!(
                    "{:<5} {:>6.1} {:>8} {:>7.0} {:>11.1} {:>11.1}",
                    core.core,
                    core.busy_percent,
                    core.connections,
                    core.ops_per_second,
                    core.in_mib_per_second,
                    core.out_mib_per_second
                ),
            );
        }
        line(out, "DEVICE       STATE       FULL %   READ/s    MiB/s       µs  WRITE/s    MiB/s       µs".to_owned());
        for it in &self.devices {
            line(
                out,
                format!(
                    "{:<12} {:<11} {:>6.1} {:>8.0} {:>8.1} {:>8} {:>8.0} {:>8.1} {:>8}",
                    short(&it.path, 12),
                    it.state,
                    it.fill_permille as f64 / 10.0,
                    it.reads_per_second,
                    it.read_mib_per_second,
                    it.read_us,
                    it.writes_per_second,
                    it.write_mib_per_second,
                    it.write_us
                ),
            );
        }
        for pool in &self.pools {
            line(out, format!("POOL {}  {}  {:.1} % full", pool.pool, pool.level, pool.fill_permille as f64 / 10.0));
        }
        self.shard_lines(out);
        let it = &self.backlog;
        line(
            out,
            format!(
                "BACKLOG  repair {} stripes ({} wait, {} lost) at {:.1} MiB/s, drain {} fragments, scrub {} % at {:.1} MiB/s, collection {}, \
             hedged reads {:.1}/s",
                it.repair_stripes,
                it.repair_waiting_stripes,
                it.lost_stripes,
                it.repair_mib_per_second,
                it.evacuation_fragments,
                it.scrub_percent,
                it.scrub_mib_per_second,
                it.collection_waiting,
                it.hedged_reads_per_second
            ),
        );
        text
    }

    fn shard_lines(&self, out: &mut String) {
        let mut shown: Vec<&ShardLine> = self.shards.iter().collect();
        let busy =
            |shard: &ShardLine| (shard.leader.is_some(), -(shard.entries_per_second * 1000.0) as i64, shard.shard);
        shown.sort_by_key(|shard| busy(shard));
        line(out, "SHARD    KIND     LEADER  VOTERS             INDEX  ENTRIES/s      LAG".to_owned());
        for shard in shown.iter().take(SHARDS_SHOWN_MAX) {
            let leader = shard.leader.map_or("none".to_owned(), |node| node.to_string());
            let voters: Vec<String> = shard.voters.iter().map(u64::to_string).collect();
            let lag = if shard.is_led_here { shard.lag_entries.to_string() } else { "-".to_owned() };
            line(
                out,
                format!(
                    "{:<8} {:<8} {leader:>6}  {:<12} {:>11} {:>10.1} {lag:>8}",
                    shard.shard,
                    shard.kind,
                    voters.join(","),
                    shard.last_index,
                    shard.entries_per_second
                ),
            );
        }
        let more = shown.len().saturating_sub(SHARDS_SHOWN_MAX) as u64 + self.shards_not_told;
        if more > 0 {
            line(out, format!("  and {more} more"));
        }
    }
}

fn line(out: &mut String, text: String) {
    writeln!(out, "{text}").expect("memory takes text");
}

/// The end of a path, since that tells devices apart.
fn short(path: &str, len: usize) -> String {
    let count = path.chars().count();
    path.chars().skip(count.saturating_sub(len)).collect()
}

/// What is counted of all links with a node: calls, bytes in, bytes out, answered calls, their time.
fn links(report: &NodeReport) -> BTreeMap<String, [u64; 5]> {
    let mut sums = BTreeMap::<String, [u64; 5]>::new();
    for link in report.core_reports.values().flat_map(|core| &core.links) {
        let sum = sums.entry(link.peer.clone()).or_default();
        // How long calls take is seen by whoever makes them.
        let (answered, time) =
            if link.way == "out" { (link.latency.iter().sum(), link.latency_sum_us) } else { (0, 0) };
        let values = [link.calls, link.bytes_in, link.bytes_out, answered, time];
        sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
    }
    sums
}

fn nodes(before: &NodeReport, now: &NodeReport, seconds: f64) -> Vec<NodeLine> {
    let (links_before, links_now) = (links(before), links(now));
    let node_line = |node: &kiseki_server::status::NodeSeen| {
        let peer = format!("node/{}", node.row.node);
        let was = links_before.get(&peer).copied().unwrap_or_default();
        let is = links_now.get(&peer).copied().unwrap_or_default();
        NodeLine {
            node: node.row.node,
            state: node.row.state.clone(),
            is_here: node.is_here,
            heard_ms_ago: node.heard_ms_ago,
            devices: node.devices,
            calls_per_second: rate(was[0], is[0], seconds),
            in_mib_per_second: mib(rate(was[1], is[1], seconds)),
            out_mib_per_second: mib(rate(was[2], is[2], seconds)),
            call_us: each_us((was[4], is[4]), (was[3], is[3])),
        }
    };
    now.nodes.iter().filter(|node| node.row.state != "removed").map(node_line).collect()
}

/// How far the cores' reports are apart, in the mean: they report twice a second, so two looks a second apart may see one report
/// between them, or three.
fn reports_apart(before: &NodeReport, now: &NodeReport) -> Option<f64> {
    let apart = |(core, is): (&String, &CoreReport)| {
        let was = before.core_reports.get(core)?;
        is.reported_at.checked_sub(was.reported_at).filter(|apart| *apart > 0)
    };
    let apart: Vec<u64> = now.core_reports.iter().filter_map(apart).collect();
    (!apart.is_empty()).then(|| apart.iter().sum::<u64>() as f64 / apart.len() as f64 / 1e9)
}

fn cores(before: &NodeReport, now: &NodeReport, seconds: f64) -> Vec<CoreLine> {
    let nothing = CoreReport::default();
    let core_line = |(core, is): (&String, &CoreReport)| {
        let was = before.core_reports.get(core).unwrap_or(&nothing);
        let value = |report: &CoreReport, name: &str| report.values.get(name).copied().unwrap_or_default();
        // A core reports twice a second, so its own clock says how far its reports are apart.
        let apart = is.reported_at.saturating_sub(was.reported_at) as f64 / 1e9;
        let seconds = if was.reported_at == 0 { seconds } else { apart };
        let per_second = |name: &str| rate(value(was, name), value(is, name), seconds);
        CoreLine {
            core: core.clone(),
            busy_percent: per_second("core_cpu_us_total") / 1e4,
            connections: is.connections,
            ops_per_second: per_second("s3_requests_total"),
            in_mib_per_second: mib(per_second("s3_bytes_in_total")),
            out_mib_per_second: mib(per_second("s3_bytes_out_total")),
        }
    };
    now.core_reports.iter().map(core_line).collect()
}

fn device_line(device: &DeviceReport, before: &NodeReport, now: &NodeReport, seconds: f64) -> DeviceLine {
    let (was, is) = (before.device_io(&device.id), now.device_io(&device.id));
    DeviceLine {
        path: device.path.clone(),
        state: device.state.clone(),
        fill_permille: device.space.fill_permille,
        reads_per_second: rate(was.reads, is.reads, seconds),
        read_mib_per_second: mib(rate(was.read_bytes, is.read_bytes, seconds)),
        read_us: each_us((was.read_us, is.read_us), (was.reads, is.reads)),
        writes_per_second: rate(was.writes, is.writes, seconds),
        write_mib_per_second: mib(rate(was.write_bytes, is.write_bytes, seconds)),
        write_us: each_us((was.write_us, is.write_us), (was.writes, is.writes)),
    }
}

fn shards(before: &NodeReport, now: &NodeReport, seconds: f64) -> Vec<ShardLine> {
    let was: BTreeMap<u64, u64> = before.shards().map(|shard| (shard.shard, shard.last_index)).collect();
    let shard_line = |shard: &kiseki_server::shards::ShardReport| ShardLine {
        shard: shard.shard,
        kind: shard.kind.clone(),
        leader: shard.leader,
        is_led_here: shard.is_led_here,
        voters: shard.voters.clone(),
        last_index: shard.last_index,
        entries_per_second: rate(was.get(&shard.shard).copied().unwrap_or(shard.last_index), shard.last_index, seconds),
        lag_entries: shard.followers.iter().map(|follower| follower.lag_entries).max().unwrap_or_default(),
    };
    let mut lines: Vec<ShardLine> = now.shards().map(shard_line).collect();
    lines.sort_by_key(|line| line.shard);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiseki_server::shards::{FollowerReport, ShardReport};
    use kiseki_server::status::{DeviceIoReport, LinkReport, NodeSeen};

    /// A node that has been at work for so many seconds.
    fn at(second: u64) -> NodeReport {
        let shard = ShardReport {
            shard: 1_024,
            kind: "tenant".to_owned(),
            leader: Some(1),
            is_led_here: true,
            voters: vec![1, 2, 3],
            last_index: 100 + 50 * second,
            followers: vec![FollowerReport { node: 2, lag_entries: 7, answers: true }],
            ..ShardReport::default()
        };
        let link = LinkReport {
            peer: "node/2".to_owned(),
            way: "out".to_owned(),
            calls: 10 * second,
            bytes_out: (3 << 20) * second,
            latency: vec![10 * second],
            latency_sum_us: 2_500 * second,
            ..LinkReport::default()
        };
        let io = DeviceIoReport {
            reads: 200 * second,
            read_bytes: (8 << 20) * second,
            read_us: 20_000 * second,
            ..Default::default()
        };
        let mut core = CoreReport {
            reported_at: (1 + second) * 1_000_000_000,
            shards: vec![shard],
            links: vec![link],
            ..Default::default()
        };
        core.device_io.insert("aa".to_owned(), io);
        core.values.insert("core_cpu_us_total".to_owned(), 250_000 * second);
        core.values.insert("s3_requests_total".to_owned(), 40 * second);
        core.values.insert("repair_bytes_moved_total".to_owned(), (2 << 20) * second);
        let device = DeviceReport {
            path: "/dev/very/long/path/d1".to_owned(),
            id: "aa".to_owned(),
            state: "healthy".to_owned(),
            ..Default::default()
        };
        let seen = |node: u64, state: &str| {
            let mut seen = NodeSeen { is_here: node == 1, heard_ms_ago: Some(300), ..NodeSeen::default() };
            (seen.row.node, seen.row.state) = (node, state.to_owned());
            seen
        };
        let mut report = NodeReport {
            node: 1,
            devices: vec![device],
            nodes: vec![seen(1, "active"), seen(2, "active"), seen(3, "removed")],
            alerts: vec!["device /d9 is failed".to_owned()],
            ..NodeReport::default()
        };
        report.core_reports.insert("0".to_owned(), core);
        report
    }

    #[test]
    fn rates_come_from_two_looks() {
        let frame = Frame::between(&at(4), &at(6), Duration::from_secs(2));
        assert_eq!((frame.cores[0].busy_percent, frame.cores[0].ops_per_second), (25.0, 40.0));
        let device = &frame.devices[0];
        assert_eq!((device.reads_per_second, device.read_mib_per_second, device.read_us), (200.0, 8.0, 100));
        assert_eq!((device.writes_per_second, device.write_us), (0.0, 0), "nothing was written");
        let node = &frame.nodes[1];
        assert_eq!((node.calls_per_second, node.out_mib_per_second, node.call_us), (10.0, 3.0, 250));
        assert_eq!(frame.nodes.len(), 2, "who was removed is not shown");
        assert_eq!((frame.shards[0].entries_per_second, frame.shards[0].lag_entries), (50.0, 7));
        assert_eq!(frame.backlog.repair_mib_per_second, 2.0);
        let early = Frame::between(&at(4), &at(6), Duration::from_secs(1));
        assert_eq!(early.devices[0].reads_per_second, 200.0, "the reports say how far they are apart");
        let again = Frame::between(&at(6), &at(1), Duration::from_secs(2));
        assert_eq!((again.shards[0].entries_per_second, again.devices[0].read_us), (0.0, 0), "a node that began anew");
    }

    #[test]
    fn the_text_has_a_line_for_each_thing_and_json_the_same() {
        let frame = Frame::between(&at(4), &at(6), Duration::from_secs(2));
        let text = frame.text();
        for words in
            ["ALERT device /d9 is failed", "long/path/d1", "1024     tenant", "1,2,3", "BACKLOG  repair 0", "0.3 s"]
        {
            assert!(text.contains(words), "{words} is not in\n{text}");
        }
        let json = serde_json::to_value(&frame).unwrap();
        assert_eq!(json["devices"][0]["read_us"], 100);
        assert_eq!(json["shards"][0]["voters"][2], 3);
    }
}
