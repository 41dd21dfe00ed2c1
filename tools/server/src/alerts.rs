//! What an operator should look at now, in one list: made of what the node says about itself anyway.

use crate::status::{NodeReport, Phase};

/// Alerts of one kind that are named; further ones are counted (I-O5).
const NAMED_MAX: usize = 8;

/// A certificate that ends sooner is told of: as long before as `kiseki ca list` says RENEW.
const CERTIFICATE_LEFT_SECONDS_MIN: u64 = 30 * 86_400;

/// Members that have not been heard for so long are told of.
const SILENT_MS_MAX: u64 = 3_000;

/// A follower that lacks more entries is told of.
const LAG_ENTRIES_MAX: u64 = kiseki_types::group::CAUGHT_UP_LAG_ENTRIES;

/// All alerts, the worst first. `now` is the boottime clock in nanoseconds, `unix` the wall clock in seconds.
#[must_use]
pub fn of(report: &NodeReport, now: u64, unix: u64) -> Vec<String> {
    let mut alerts = Vec::new();
    let repair = &report.repair;
    if repair.lost_stripes > 0 {
        alerts.push(format!("{} stripes are lost: bring back their devices", repair.lost_stripes));
    }
    for core in report.silent_cores(now) {
        alerts.push(format!("core {core} does not answer"));
    }
    named(&mut alerts, leaderless(report));
    named(&mut alerts, silent_nodes(report));
    let devices = report.devices.iter().filter(|device| !["healthy", "evacuating"].contains(&device.state.as_str()));
    named(&mut alerts, devices.map(|it| format!("device {} is {}: {}", it.path, it.state, it.reason)).collect());
    let dirs = report.metadata_dirs.iter().filter(|dir| dir.state != "current");
    named(&mut alerts, dirs.map(|dir| format!("metadata {} is {}: {}", dir.path, dir.state, dir.reason)).collect());
    alerts.extend(full_metadata(report));
    let at_floor = report.total("inline_thresholds_at_floor");
    if at_floor > 0 && report.total("metadata_hard_limit_percent") > 0 {
        alerts.push(format!(
            "{at_floor} shards led here take only the smallest objects beside their names: `kiseki shard show` says why"
        ));
    }
    let pools = report.pools.iter().filter(|pool| !["", "normal"].contains(&pool.level.as_str()));
    named(
        &mut alerts,
        pools.map(|it| format!("pool {} is at {} %, {}", it.pool, it.fill_permille / 10, it.level)).collect(),
    );
    named(&mut alerts, behind(report));
    let missing = report.total("raft_votes_missing");
    if missing > 0 && report.phase == Phase::Serving {
        alerts.push(format!("shards led here lack {missing} votes: they would not survive a node yet"));
    }
    if repair.waiting_stripes > 0 {
        alerts.push(format!("{} stripes wait for {}", repair.waiting_stripes, repair.waits_for));
    }
    if report.scrub.homes_overdue > 0 {
        alerts.push("scrub is overdue: raise scrub.mib_per_second_max".to_owned());
    }
    if let Some(peer) = &report.peer {
        let left = peer.not_after_unix.saturating_sub(unix);
        if peer.not_after_unix > 0 && left < CERTIFICATE_LEFT_SECONDS_MIN {
            alerts.push(format!("the node's certificate ends in {} days: issue another one", left / 86_400));
        }
        if !peer.problem.is_empty() {
            alerts.push(peer.problem.clone());
        }
    }
    let worn = report.devices.iter().filter(|device| !device.warning.is_empty());
    named(&mut alerts, worn.map(|device| format!("device {}: {}", device.path, device.warning)).collect());
    alerts.extend(report.unsafe_settings.iter().map(|setting| format!("{setting} is set")));
    alerts.extend(report.warnings.iter().cloned());
    alerts
}

/// Names the first ones and counts the others.
fn named(alerts: &mut Vec<String>, found: Vec<String>) {
    let more = found.len().saturating_sub(NAMED_MAX);
    alerts.extend(found.into_iter().take(NAMED_MAX));
    if more > 0 {
        alerts.push(format!("and {more} more of that kind"));
    }
}

/// I-SF2: thresholds of small objects fall while metadata directories are over their soft limit, and are lowest over the hard one.
fn full_metadata(report: &NodeReport) -> Option<String> {
    let fill = report.total("metadata_fill_percent");
    let (soft, hard) = (report.total("metadata_soft_limit_percent"), report.total("metadata_hard_limit_percent"));
    let text = match hard {
        0 => return None, // no small objects are taken, or it is not known
        _ if fill > hard => "over their hard limit: only the smallest objects lie beside their names; give them room",
        _ if fill > soft => "over their soft limit: fewer small objects lie beside their names",
        _ => return None,
    };
    let limit = if fill > hard { hard } else { soft };
    Some(format!("metadata directories are {fill} % full, {text} ({limit} %)"))
}

fn leaderless(report: &NodeReport) -> Vec<String> {
    let shards = report.shards().filter(|shard| shard.leader.is_none());
    shards.map(|shard| format!("shard {} has no leader as this node sees it", shard.shard)).collect()
}

fn silent_nodes(report: &NodeReport) -> Vec<String> {
    let members = report.nodes.iter().filter(|node| ["active", "draining"].contains(&node.row.state.as_str()));
    let silent = members.filter(|node| !node.is_here && node.heard_ms_ago.is_none_or(|ms| ms > SILENT_MS_MAX));
    let text = |node: &crate::status::NodeSeen| match node.heard_ms_ago {
        Some(ms) => format!("node {} has been silent for {} s", node.row.node, ms / 1000),
        None => format!("node {} has not been heard since this node started", node.row.node),
    };
    silent.map(text).collect()
}

fn behind(report: &NodeReport) -> Vec<String> {
    let followers = report.shards().flat_map(|shard| shard.followers.iter().map(move |it| (shard.shard, it)));
    let behind = followers.filter(|(_, follower)| follower.answers && follower.lag_entries > LAG_ENTRIES_MAX);
    behind.map(|(shard, it)| format!("shard {shard}: node {} lacks {} entries", it.node, it.lag_entries)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shards::{FollowerReport, ShardReport};
    use crate::status::{CoreReport, DeviceReport, NodeSeen};

    #[test]
    fn i_sf2_metadata_directories_over_a_limit_are_told_of() {
        let of_fill = |fill: u64| {
            let values = [("fill", fill), ("soft_limit", 50), ("hard_limit", 75)];
            let values = values.map(|(name, value)| (format!("metadata_{name}_percent"), value)).into();
            let mut report = NodeReport { phase: Phase::Serving, ..NodeReport::default() };
            report.core_reports.insert("0".to_owned(), CoreReport { values, ..CoreReport::default() });
            of(&report, 0, 0).into_iter().find(|alert| alert.contains("metadata directories")).unwrap_or_default()
        };
        assert_eq!(of_fill(50), "");
        assert!(of_fill(51).contains("51 % full, over their soft limit") && of_fill(51).ends_with("(50 %)"));
        assert!(of_fill(76).contains("76 % full, over their hard limit") && of_fill(76).ends_with("(75 %)"));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_name_and_no_kind_takes_all_the_room() {
        let mut report = NodeReport { phase: Phase::Serving, ..NodeReport::default() };
        assert_eq!(of(&report, 0, 0), Vec::<String>::new());
        let mut silent = NodeSeen { heard_ms_ago: Some(9_000), ..NodeSeen::default() };
        (silent.row.node, silent.row.state) = (3, "active".to_owned());
        report.nodes.push(silent);
        for number in 0..NAMED_MAX + 3 {
            let (path, state) = (format!("/d{number}"), "failed".to_owned());
            report.devices.push(DeviceReport { path, state, ..DeviceReport::default() });
        }
        let late = FollowerReport { node: 2, lag_entries: LAG_ENTRIES_MAX + 1, answers: true };
        let shards = vec![
            ShardReport { shard: 5, ..ShardReport::default() },
            ShardReport { shard: 6, leader: Some(1), followers: vec![late], ..ShardReport::default() },
        ];
        report.core_reports.insert("0".to_owned(), CoreReport { shards, ..CoreReport::default() });
        let alerts = of(&report, 0, 0);
        for words in [
            "node 3 has been silent for 9 s",
            "device /d0 is failed",
            "and 3 more",
            "shard 5 has no leader",
            "shard 6: node 2",
        ] {
            assert!(alerts.iter().any(|alert| alert.contains(words)), "{words} is not in {alerts:?}");
        }
    }
}
