//! Repair, rebalancing and scrub as `status`, health and metrics show them (I-O2): from what each core says, what the node says.

use crate::status::{CoreEvacuation, CoreReport};
use kiseki_engine::engine::Engine;
use kiseki_engine::evacuation::EvacuationState;
use kiseki_engine::rebalancer::{Hindrance, RebalanceState};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One core's part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoreUpkeep {
    /// Stripes queued or being repaired.
    pub backlog_stripes: u64,
    /// Stripes that can't reach full width with the devices that are usable now.
    pub waiting_stripes: u64,
    /// Stripes with fewer good fragments than their data need.
    pub lost_stripes: u64,
    /// Devices that are missing for the stripes that wait.
    pub devices_wanted: u64,
    /// Whether devices had no room for a rebuilt fragment.
    pub no_room: bool,
    /// Devices that the last look at every stripe counted on; 0 while the next one is due.
    pub devices_walked: u64,
    /// Scrub, unless it is off.
    pub scrub: Option<CoreScrub>,
    /// Rebalancing.
    #[serde(default)]
    pub rebalance: CoreRebalance,
}

/// One core's rebalancing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoreRebalance {
    /// Whether every stripe was looked at with the devices that there are, and nothing is left to move.
    pub at_rest: bool,
    /// Devices of all nodes that this counted on; 0 while it is due.
    pub devices_surveyed: u64,
    /// What was to move when rebalancing began, over all times since the start.
    pub bytes_needed: u64,
    /// What it waits for: a node by number, `repair`, `space`; empty when nothing.
    pub waits_for: String,
}

impl CoreRebalance {
    fn of(state: &RebalanceState) -> CoreRebalance {
        CoreRebalance {
            at_rest: state.is_at_rest,
            devices_surveyed: state.devices_surveyed as u64,
            bytes_needed: state.needed.bytes,
            waits_for: match state.waits_for {
                None => String::new(),
                Some(Hindrance::Node(node)) => format!("node {}, which does not answer", node.0),
                Some(Hindrance::Repair) => "repair, which comes first".to_owned(),
                Some(Hindrance::Room) => "space: add a device, or delete data".to_owned(),
            },
        }
    }
}

/// One core's scrub.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoreScrub {
    /// Thousandths of the pass that are done.
    pub position_permille: u64,
    /// When the last whole pass ended; 0 when none has.
    pub last_full_pass_unix_ms: u64,
    /// Homes whose pass takes longer than the interval.
    pub overdue: u64,
}

/// Repair of the whole node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairReport {
    /// Whether every stripe is known to have all its fragments, each on a usable device of its own.
    pub at_full_width: bool,
    /// Stripes queued or being repaired.
    pub backlog_stripes: u64,
    /// Stripes that wait for what `waits_for` says.
    pub waiting_stripes: u64,
    /// Stripes with fewer good fragments than their data need.
    pub lost_stripes: u64,
    /// What has to come before repair can go on; empty when nothing.
    pub waits_for: String,
    /// Devices that are missing for the stripes that wait.
    pub devices_wanted: u64,
    /// Fragments repaired since the start.
    pub fragments_repaired: u64,
    /// Payload bytes of those.
    pub bytes_repaired: u64,
    /// Repairs that did not work and were tried again.
    pub failures: u64,
}

/// Rebalancing of the whole node: of the stripes whose homes it leads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RebalanceReport {
    /// Whether every stripe was looked at with the devices that there are, and nothing is left to move.
    pub at_rest: bool,
    /// Devices of all nodes that this counted on; 0 while it is due.
    pub devices_surveyed: u64,
    /// Fragments that have to move so that no node holds more of a stripe than placement gives it (I-D4).
    pub fragments_to_spread: u64,
    /// Payload bytes of those.
    pub bytes_to_spread: u64,
    /// Fragments that may have to move until devices are about as full: it may end before.
    pub fragments_to_balance: u64,
    /// Payload bytes of those.
    pub bytes_to_balance: u64,
    /// What was to move when rebalancing began, over all times since the start.
    pub bytes_needed: u64,
    /// Fragments moved since the start.
    pub fragments_moved: u64,
    /// Payload bytes of those.
    pub bytes_moved: u64,
    /// Payload bytes moved a second just now.
    pub bytes_per_second: u64,
    /// What has to come before it can go on; empty when nothing.
    pub waits_for: String,
}

/// Scrub of the whole node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubReport {
    /// Whether it runs at all.
    pub is_on: bool,
    /// Thousandths of the pass that are done.
    pub position_permille: u64,
    /// Payload bytes read and found good since the start.
    pub bytes_checked: u64,
    /// Fragments that failed their check since the start.
    pub bad_found: u64,
    /// When everything had been read once, in milliseconds since 1970; 0 when it has not.
    pub last_full_pass_unix_ms: u64,
    /// Homes whose pass takes longer than the interval: raise `scrub.mib_per_second_max`.
    pub homes_overdue: u64,
}

/// What a core says now: its part of the report, and its counters into `values`.
pub fn of_core(engine: &Engine, values: &mut BTreeMap<String, u64>) -> CoreUpkeep {
    let (state, counters) = (engine.repair_state(), &engine.core().repair_counters);
    let (scrub, rebalance) = (engine.scrub_state(), engine.rebalance_state());
    let found = scrub.unwrap_or_default();
    for (name, value) in [
        ("repair_fragments_total", counters.fragments.get()),
        ("repair_fragment_bytes_total", counters.fragment_bytes.get()),
        ("repair_bytes_moved_total", counters.bytes_moved.get()),
        ("evacuation_fragments_total", counters.fragments_moved.get()),
        ("evacuation_fragment_bytes_total", counters.fragment_bytes_moved.get()),
        ("evacuation_orphans_freed_total", counters.orphans_freed.get()),
        ("evacuation_stripes_queued", state.moving as u64),
        ("rebalance_spread_fragments_total", rebalance.spread.fragments),
        ("rebalance_spread_bytes_total", rebalance.spread.bytes),
        ("rebalance_balanced_fragments_total", rebalance.balanced.fragments),
        ("rebalance_balanced_bytes_total", rebalance.balanced.bytes),
        ("rebalance_surveys_total", rebalance.surveys),
        ("rebalance_failures_total", rebalance.failures),
        ("rebalance_fragments_to_spread", rebalance.spread_left.fragments),
        ("rebalance_bytes_to_spread", rebalance.spread_left.bytes),
        ("rebalance_fragments_to_balance", rebalance.balance_left.fragments),
        ("rebalance_bytes_to_balance", rebalance.balance_left.bytes),
        ("rebalance_bytes_per_second", rebalance.bytes_per_second),
        ("repair_stripes_unfinished", state.unfinished as u64),
        ("repair_released_total", counters.released.get()),
        ("repair_failures_total", counters.failures.get()),
        ("repair_walks_total", counters.walks.get()),
        ("stripes_found_lost_total", counters.lost.get()),
        ("scrub_bytes_total", found.bytes),
        ("scrub_bad_total", found.bad),
        ("scrub_passes_total", found.passes),
    ] {
        *values.entry(name.to_owned()).or_default() += value;
    }
    CoreUpkeep {
        backlog_stripes: state.backlog as u64,
        waiting_stripes: state.waiting as u64,
        lost_stripes: state.lost as u64,
        devices_wanted: state.devices_wanted as u64,
        no_room: state.no_room,
        devices_walked: state.own_devices_walked as u64,
        scrub: scrub.map(|scrub| CoreScrub {
            position_permille: scrub.position_permille,
            last_full_pass_unix_ms: scrub.last_full_pass_unix_ms,
            overdue: scrub.overdue,
        }),
        rebalance: CoreRebalance::of(&rebalance),
    }
}

/// What keeps this core from emptying devices, by device id.
#[must_use]
pub fn evacuations(engine: &Engine) -> BTreeMap<String, CoreEvacuation> {
    let states = engine.evacuation_states().into_iter();
    let report = |state: EvacuationState| CoreEvacuation {
        waiting_stripes: state.waiting as u64,
        devices_wanted: state.devices_wanted as u64,
        no_room: state.no_room,
    };
    states.map(|(device, state)| (device.to_string(), report(state))).collect()
}

/// Whether every core's repair has looked at every stripe with the devices that are healthy now.
#[must_use]
pub fn is_walked(report: &crate::status::NodeReport) -> bool {
    let healthy = report.devices.iter().filter(|device| device.is_usable()).count();
    all_walked(&report.core_reports, report.cores, healthy)
}

fn all_walked(reports: &BTreeMap<String, CoreReport>, cores: u16, devices_healthy: usize) -> bool {
    let is_current = |core: &CoreReport| core.upkeep.devices_walked == devices_healthy as u64;
    devices_healthy > 0 && reports.len() == usize::from(cores) && reports.values().all(is_current)
}

/// What the node says: `cores` of them have to report, `devices_healthy` devices are usable.
#[must_use]
pub fn of_node(
    reports: &BTreeMap<String, CoreReport>,
    cores: u16,
    devices_healthy: usize,
) -> (RepairReport, ScrubReport) {
    let total = |name: &str| reports.values().filter_map(|core| core.values.get(name)).sum();
    let upkeep = || reports.values().map(|core| &core.upkeep);
    let sum = |value: fn(&CoreUpkeep) -> u64| upkeep().map(value).sum();
    let mut repair = RepairReport {
        at_full_width: false,
        backlog_stripes: sum(|core| core.backlog_stripes),
        waiting_stripes: sum(|core| core.waiting_stripes),
        lost_stripes: sum(|core| core.lost_stripes),
        waits_for: String::new(),
        devices_wanted: upkeep().map(|core| core.devices_wanted).max().unwrap_or_default(),
        fragments_repaired: total("repair_fragments_total"),
        bytes_repaired: total("repair_fragment_bytes_total"),
        failures: total("repair_failures_total"),
    };
    let open = repair.backlog_stripes + repair.waiting_stripes + repair.lost_stripes;
    repair.at_full_width = all_walked(reports, cores, devices_healthy) && open == 0;
    repair.waits_for = match repair.devices_wanted {
        0 if upkeep().any(|core| core.no_room) => "space: add a device, or delete data".to_owned(),
        0 => String::new(),
        1 => format!("one more device ({devices_healthy} are usable)"),
        more => format!("{more} more devices ({devices_healthy} are usable)"),
    };
    let scrubs = || upkeep().filter_map(|core| core.scrub.as_ref());
    let scrub = ScrubReport {
        is_on: scrubs().count() > 0,
        position_permille: scrubs().map(|scrub| scrub.position_permille).sum::<u64>()
            / (scrubs().count().max(1) as u64),
        bytes_checked: total("scrub_bytes_total"),
        bad_found: total("scrub_bad_total"),
        last_full_pass_unix_ms: scrubs().map(|scrub| scrub.last_full_pass_unix_ms).min().unwrap_or_default(),
        homes_overdue: scrubs().map(|scrub| scrub.overdue).sum(),
    };
    (repair, scrub)
}

/// What the node says of rebalancing: `cores` of them have to report.
#[must_use]
pub fn rebalance_of_node(reports: &BTreeMap<String, CoreReport>, cores: u16) -> RebalanceReport {
    let total = |name: &str| reports.values().filter_map(|core| core.values.get(name)).sum::<u64>();
    let parts = || reports.values().map(|core| &core.upkeep.rebalance);
    RebalanceReport {
        at_rest: reports.len() == usize::from(cores) && parts().all(|part| part.at_rest),
        devices_surveyed: parts().map(|part| part.devices_surveyed).min().unwrap_or_default(),
        fragments_to_spread: total("rebalance_fragments_to_spread"),
        bytes_to_spread: total("rebalance_bytes_to_spread"),
        fragments_to_balance: total("rebalance_fragments_to_balance"),
        bytes_to_balance: total("rebalance_bytes_to_balance"),
        bytes_needed: parts().map(|part| part.bytes_needed).sum(),
        fragments_moved: total("rebalance_spread_fragments_total") + total("rebalance_balanced_fragments_total"),
        bytes_moved: total("rebalance_spread_bytes_total") + total("rebalance_balanced_bytes_total"),
        bytes_per_second: total("rebalance_bytes_per_second"),
        waits_for: parts().map(|part| &part.waits_for).find(|what| !what.is_empty()).cloned().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i_o2_rebalancing_is_at_rest_only_when_every_core_is() {
        let part = |at_rest, devices_surveyed, waits_for: &str| CoreUpkeep {
            rebalance: CoreRebalance { at_rest, devices_surveyed, bytes_needed: 7, waits_for: waits_for.to_owned() },
            ..CoreUpkeep::default()
        };
        let (done, waiting) = (part(true, 8, ""), part(false, 0, "repair, which comes first"));
        let both = rebalance_of_node(&reports(&[done.clone(), done.clone()]), 2);
        assert!(both.at_rest && both.devices_surveyed == 8 && both.bytes_needed == 14, "{both:?}");
        assert!(!rebalance_of_node(&reports(std::slice::from_ref(&done)), 2).at_rest, "I-O2: a core has not reported");
        let one = rebalance_of_node(&reports(&[done, waiting]), 2);
        assert!(!one.at_rest && one.devices_surveyed == 0 && one.waits_for == "repair, which comes first", "{one:?}");
    }

    fn reports(cores: &[CoreUpkeep]) -> BTreeMap<String, CoreReport> {
        let report = |upkeep: &CoreUpkeep| CoreReport { upkeep: upkeep.clone(), ..CoreReport::default() };
        cores.iter().enumerate().map(|(core, upkeep)| (core.to_string(), report(upkeep))).collect()
    }

    #[test]
    fn i_o2_full_width_is_not_said_of_a_device_that_is_lost() {
        let device = |id: &str| crate::status::DeviceReport {
            id: id.to_owned(),
            state: "healthy".to_owned(),
            ..Default::default()
        };
        let done = CoreUpkeep { devices_walked: 2, ..CoreUpkeep::default() };
        let mut node = crate::status::NodeReport {
            cores: 1,
            devices: vec![device("a"), device("b")],
            core_reports: reports(&[done]),
            ..Default::default()
        };
        node.settle_upkeep();
        assert!(node.repair.at_full_width);
        node.lose_device("b", "unreachable", "it is gone");
        assert!(!node.repair.at_full_width, "I-O2: before the cores have reported again");
        assert_eq!((node.devices[1].state.as_str(), node.devices[1].reason.as_str()), ("unreachable", "it is gone"));
    }

    #[test]
    fn i_o2_full_width_is_said_only_when_every_core_has_looked_at_the_devices_that_are_left() {
        let done = CoreUpkeep { devices_walked: 6, ..CoreUpkeep::default() };
        let walking = CoreUpkeep::default();
        let busy = CoreUpkeep { backlog_stripes: 1, ..done.clone() };
        let waiting = CoreUpkeep { waiting_stripes: 3, devices_wanted: 1, ..done.clone() };
        let lost = CoreUpkeep { lost_stripes: 1, ..done.clone() };
        for (cores, healthy, wanted) in [
            (vec![done.clone(), done.clone()], 6, true),
            (vec![done.clone(), done.clone()], 5, false),
            (vec![done.clone()], 6, false),
            (vec![done.clone(), walking], 6, false),
            (vec![done.clone(), busy], 6, false),
            (vec![done.clone(), waiting.clone()], 6, false),
            (vec![done.clone(), lost], 6, false),
        ] {
            let (repair, _) = of_node(&reports(&cores), 2, healthy);
            assert_eq!(repair.at_full_width, wanted, "I-O2: {cores:?}, {healthy} healthy");
        }
        let (repair, _) = of_node(&reports(&[done, waiting]), 2, 5);
        assert_eq!(repair.waits_for, "one more device (5 are usable)", "I-D1: it says what it waits for");
    }
}
