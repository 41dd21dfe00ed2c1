//! What `verify` prints for people.

use super::as_json::state_name;
use indicatif::HumanBytes;
use kiseki_devices::verify::{CopyState, FragmentState, Problem, Verdict};

/// Problems of one kind that are printed each; of the rest the number. All are in `--json`.
const SAME_KIND_MAX: usize = 20;

/// One device.
pub fn device(verdict: &Verdict, with_fragments: bool) -> String {
    let mut lines = vec![format!("{}: {}", verdict.name, headline(verdict))];
    if verdict.superblock.is_some() {
        lines.push(format!("  superblock  {}", copies(verdict)));
        lines.push(format!("  journals    {}", journals(verdict)));
        lines.push(format!("  fragments   {}", fragments(verdict)));
    }
    for found in verdict.fragments.iter().filter(|_| with_fragments) {
        let (key, extent) = (&found.fragment.meta.key, found.fragment.extent);
        let (start, len) = (extent.start.0, extent.len.0);
        let state = state_name(found.state);
        let name = format!("{} {} index {}", key.locator, key.generation, key.index);
        lines.push(format!("  block {start:>10} +{len:<6} {name} {state}"));
    }
    problems(&verdict.problems, &mut lines);
    lines.join("\n")
}

fn headline(verdict: &Verdict) -> String {
    let state = match verdict.problems.len() {
        0 => "clean".to_owned(),
        1 => "1 problem".to_owned(),
        count => format!("{count} problems"),
    };
    match &verdict.superblock {
        Some(superblock) => format!(
            "{state}; {}device {} of cluster {}, {} lanes, {}",
            if superblock.is_retired() { "retired " } else { "" },
            superblock.device,
            superblock.cluster,
            superblock.layout.lanes(),
            HumanBytes(superblock.layout.capacity_bytes())
        ),
        None => state,
    }
}

fn copies(verdict: &Verdict) -> String {
    let name = |state: &CopyState| state.name();
    verdict.copies.iter().map(|copy| format!("{} {}", copy.copy, name(&copy.state))).collect::<Vec<_>>().join(", ")
}

fn journals(verdict: &Verdict) -> String {
    let sound = verdict.lanes.iter().filter(|lane| lane.is_sound).count();
    let records: u64 = verdict.lanes.iter().map(|lane| lane.records).sum();
    let disbelieved: u64 = verdict.lanes.iter().map(|lane| lane.disbelieved).sum();
    let mut line = format!("{sound} of {} sound, {records} records to replay", verdict.lanes.len());
    if disbelieved > 0 {
        line.push_str(&format!(", {disbelieved} writes that were cut off before they were acknowledged"));
    }
    for lane in &verdict.lanes {
        if let Some(block) = lane.torn_tail {
            let doubt = match lane.torn_writes {
                (0, _) => String::new(),
                (named, 0) => format!(" (none of the {named} writes that it names came to be)"),
                (named, whole) => format!(
                    " ({whole} of the {named} writes that it names are there: cut off before they were answered or, where a \
                     flushed frame rotted, lost; scrub rebuilds them)"
                ),
            };
            let lane = lane.lane.0;
            line.push_str(&format!("; lane {lane} ends torn at block {}, as a crash leaves it{doubt}", block.0));
        }
    }
    line
}

fn fragments(verdict: &Verdict) -> String {
    let [used, unspoken, leftover] =
        [FragmentState::Used, FragmentState::Unspoken, FragmentState::Leftover].map(|state| verdict.count(state));
    let bytes: u64 = verdict.fragments.iter().map(|found| u64::from(found.fragment.meta.payload_len_bytes)).sum();
    let mut line = format!("{} intact ({}): {used} used", verdict.fragments.len(), HumanBytes(bytes));
    if unspoken > 0 {
        line.push_str(&format!(", {unspoken} used or released (only the node's index knows: --dir)"));
    }
    if leftover + verdict.scraps > 0 {
        line.push_str(&format!(", {} leftovers in free space", leftover + verdict.scraps));
    }
    if verdict.doubles > 0 {
        line.push_str(&format!(
            ", {} beside another one of their stripe (one of the two may be a leftover)",
            verdict.doubles
        ));
    }
    line
}

fn problems(problems: &[Problem], lines: &mut Vec<String>) {
    let mut kinds: Vec<_> = problems.iter().map(|problem| problem.kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    for kind in kinds {
        let same: Vec<&Problem> = problems.iter().filter(|problem| problem.kind == kind).collect();
        lines.extend(same.iter().take(SAME_KIND_MAX).map(|problem| format!("  {problem}")));
        if same.len() > SAME_KIND_MAX {
            lines.push(format!("  {kind}: and {} more (--json lists all)", same.len() - SAME_KIND_MAX));
        }
        lines.push(format!("    -> {}", kind.advice()));
    }
}
