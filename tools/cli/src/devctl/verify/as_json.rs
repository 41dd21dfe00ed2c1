//! What `verify --json` prints. Keys are stable: new ones may come, none goes or changes its meaning (docs/verify.md).

use kiseki_devices::verify::{CopyState, FragmentState, Verdict, VerifiedFragment};
use kiseki_types::fragment::StoredFragment;
use serde_json::{Value, json};

/// One device.
pub fn device(verdict: &Verdict, with_fragments: bool) -> Value {
    let superblock = verdict.superblock.as_ref();
    let layout = superblock.map(|superblock| &superblock.layout);
    let copies = verdict.copies.iter().map(|copy| {
        let reason = match &copy.state {
            CopyState::Damaged(reason) => Some(reason),
            _ => None,
        };
        json!({
            "copy": copy.copy, "offset_bytes": copy.offset_bytes, "generation": copy.generation,
            "state": copy.state.name(), "reason": reason,
        })
    });
    let lanes = verdict.lanes.iter().map(|lane| {
        json!({
            "lane": lane.lane.0,
            "journal_block": lane.journal_block.0,
            "is_sound": lane.is_sound,
            "incarnation": lane.incarnation,
            "records": lane.records,
            "disbelieved": lane.disbelieved,
            "torn_tail_block": lane.torn_tail.map(|block| block.0),
            "torn_writes": lane.torn_writes.0,
            "torn_writes_there": lane.torn_writes.1,
        })
    });
    let problems = verdict.problems.iter().map(|problem| {
        json!({
            "kind": problem.kind.name(),
            "block": problem.block.map(|block| block.0),
            "lane": problem.lane.map(|lane| lane.0),
            "text": problem.text,
            "advice": problem.kind.advice(),
        })
    });
    let mut value = json!({
        "path": verdict.name,
        "len_bytes": verdict.len_bytes,
        "device": superblock.map(|superblock| superblock.device.to_string()),
        "cluster": superblock.map(|superblock| superblock.cluster.to_string()),
        "block_len_bytes": layout.map(|layout| layout.block_len_bytes()),
        "capacity_bytes": layout.map(|layout| layout.capacity_bytes()),
        "signatures": verdict.signatures.iter().map(|found| found.name.clone()).collect::<Vec<_>>(),
        "superblock_copies": copies.collect::<Vec<_>>(),
        "journals": lanes.collect::<Vec<_>>(),
        "fragment_count": verdict.fragments.len(),
        "fragments_used": verdict.count(FragmentState::Used),
        "fragments_unspoken": verdict.count(FragmentState::Unspoken),
        "fragments_leftover": verdict.count(FragmentState::Leftover),
        "scraps": verdict.scraps,
        "doubles": verdict.doubles,
        "problem_count": verdict.problems.len(),
        "problems": problems.collect::<Vec<_>>(),
        "is_clean": verdict.is_clean(),
    });
    if with_fragments {
        value["fragments"] = verdict.fragments.iter().map(verified).collect();
    }
    value
}

/// The name of a state.
pub fn state_name(state: FragmentState) -> &'static str {
    match state {
        FragmentState::Used => "used",
        FragmentState::Unspoken => "unspoken",
        FragmentState::Leftover => "leftover",
    }
}

fn verified(found: &VerifiedFragment) -> Value {
    let mut value = fragment(&found.fragment);
    value["state"] = json!(state_name(found.state));
    value
}

/// A fragment and its place.
pub fn fragment(fragment: &StoredFragment) -> Value {
    let meta = &fragment.meta;
    json!({
        "locator": meta.key.locator.to_string(),
        "generation": meta.key.generation.0,
        "index": meta.key.index,
        "data": meta.shape.data,
        "parity": meta.shape.parity,
        "payload_len_bytes": meta.payload_len_bytes,
        "start_block": fragment.extent.start.0,
        "block_count": fragment.extent.len.0,
    })
}
