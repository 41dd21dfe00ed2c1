//! Cores, devices' work and shards as `kiseki status` shows them.

use kiseki_server::shards::ShardReport;
use kiseki_server::status::NodeReport;
use std::fmt::Write;

/// Shards that are shown, those with something to tell first; `--json` has all.
const SHOWN_MAX: usize = 16;

/// The lines of cores and shards.
#[must_use]
pub fn status_lines(report: &NodeReport) -> String {
    let mut out = String::new();
    for (core, of) in &report.core_reports {
        let value = |name: &str| of.values.get(name).copied().unwrap_or_default();
        let replicas = format!("{} replicas, {} lead", value("raft_groups"), value("raft_groups_led"));
        let requests = value("s3_requests_total");
        line(
            &mut out,
            format!("  core      {core:<9} {} clients, {requests} requests answered, {replicas}", of.connections),
        );
    }
    if report.nodes.len() > 1 {
        line(&mut out, format!("  shards    {}", summary(report)));
        let mut shards: Vec<&ShardReport> = report.shards().collect();
        shards.sort_by_key(|shard| (shard.leader.is_some(), !is_troubled(shard), !shard.is_led_here, shard.shard));
        shards.iter().take(SHOWN_MAX).for_each(|shard| line(&mut out, format!("    shard   {}", shard_line(shard))));
        let not_told: u64 = report.core_reports.values().map(|core| core.shards_not_told).sum();
        let more = shards.len().saturating_sub(SHOWN_MAX) as u64 + not_told;
        if more > 0 {
            line(&mut out, format!("    and {more} more"));
        }
    }
    out
}

fn line(out: &mut String, text: String) {
    writeln!(out, "{text}").expect("memory takes text");
}

/// What a node has of the cluster's shards.
fn summary(report: &NodeReport) -> String {
    let (replicas, led) = (report.total("raft_groups"), report.total("raft_groups_led"));
    match report.total("raft_votes_missing") {
        0 => format!("{replicas} replicas here, {led} lead"),
        missing => {
            format!("{replicas} replicas here, {led} lead and lack {missing} votes: they would not survive a node yet")
        }
    }
}

fn is_troubled(shard: &ShardReport) -> bool {
    shard.followers.iter().any(|follower| !follower.answers || follower.lag_entries > 0)
}

fn shard_line(shard: &ShardReport) -> String {
    let voters: Vec<String> = shard.voters.iter().map(u64::to_string).collect();
    let leader = match shard.leader {
        Some(node) => format!("led by node {node}"),
        None => "NO LEADER".to_owned(),
    };
    let mut text = format!(
        "{} ({}) {leader}, voters {}, index {}, applied {}",
        shard.shard,
        shard.kind,
        voters.join(" "),
        shard.last_index,
        shard.applied_index
    );
    for follower in &shard.followers {
        match follower.answers {
            true if follower.lag_entries == 0 => {}
            true => text.push_str(&format!("; node {} lacks {} entries", follower.node, follower.lag_entries)),
            false => text.push_str(&format!(
                "; node {} does not answer and lacks {} entries",
                follower.node, follower.lag_entries
            )),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiseki_server::shards::FollowerReport;
    use kiseki_server::status::{CoreReport, NodeSeen};

    #[test]
    fn each_shard_says_who_leads_and_who_is_behind() {
        let follower = |node, lag_entries, answers| FollowerReport { node, lag_entries, answers };
        let led = ShardReport {
            shard: 7,
            kind: "home".to_owned(),
            leader: Some(1),
            voters: vec![1, 2, 3],
            followers: vec![follower(2, 5, true), follower(3, 9, false)],
            ..ShardReport::default()
        };
        let lost = ShardReport { shard: 9, kind: "tenant".to_owned(), ..ShardReport::default() };
        let mut report = NodeReport { nodes: vec![NodeSeen::default(); 2], ..NodeReport::default() };
        let core = CoreReport { shards: vec![led, lost], shards_not_told: 3, ..CoreReport::default() };
        report.core_reports.insert("0".to_owned(), core);
        let text = status_lines(&report);
        for words in
            ["7 (home) led by node 1, voters 1 2 3", "node 2 lacks 5 entries", "node 3 does not answer", "and 3 more"]
        {
            assert!(text.contains(words), "{words} is not in\n{text}");
        }
        let at = |words: &str| text.find(words).unwrap();
        assert!(at("9 (tenant) NO LEADER") < at("7 (home)"), "what is wrong comes first:\n{text}");
    }
}
