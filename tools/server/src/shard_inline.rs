//! What an operator is told of a shard's small objects: up to which length they lie beside their names, and why.

use kiseki_engine::inline_message::{InlineView, VoterRoom};
use kiseki_engine::inline_threshold::ThresholdBy;
use serde::{Deserialize, Serialize};

/// Seconds that a rate is of.
const WINDOW_SECONDS: u64 = 10;

/// What a voter's metadata directories have room for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoterRow {
    /// Its node.
    pub node: u64,
    /// How full its fullest metadata directory is, in percent; `None` while it has not said.
    pub fill_percent: Option<u8>,
    /// Beyond this its room shrinks faster.
    pub soft_limit_percent: Option<u8>,
    /// Beyond this it has none.
    pub hard_limit_percent: Option<u8>,
    /// Replicas of tenants' shards there, which share the room.
    pub replicas: u64,
    /// Bytes of small objects that this shard may still store there.
    pub budget_bytes: Option<u64>,
    /// Seconds since it said so.
    pub heard_s_ago: Option<u64>,
}

/// A shard's threshold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InlineRow {
    /// Objects of at most so many bytes lie beside their names just now.
    pub threshold_bytes: u32,
    /// The same as it is recorded: the leader's own full directories may keep it lower.
    pub recorded_bytes: u32,
    /// What the voters have room for; `None` while none has said.
    pub supported_bytes: Option<u32>,
    /// The lowest that it may be.
    pub floor_bytes: u32,
    /// The highest.
    pub ceiling_bytes: u32,
    /// `default`, `room` or `operator`.
    pub set_by: String,
    /// Since when, milliseconds since 1970; `None`: from the start.
    pub since_unix_ms: Option<u64>,
    /// Why it is what it is.
    pub why: String,
    /// Objects that the room is to be enough for.
    pub objects_expected: u64,
    /// Whether all that are there have been counted for that since the leader leads.
    pub objects_are_counted: bool,
    /// Bytes a second taken so in the last ten seconds.
    pub bytes_per_second: u64,
    /// The most that are taken; 0: none.
    pub bytes_per_second_max: u64,
    /// What was refused since the leader leads.
    pub refused: u64,
    /// The voters.
    pub voters: Vec<VoterRow>,
}

/// What a shard's leader has said, for people.
#[must_use]
pub fn row(view: &InlineView) -> InlineRow {
    let (set_by, since) = match view.threshold.by {
        ThresholdBy::Default => ("default", None),
        ThresholdBy::Room => ("room", Some(view.threshold.since_unix_ms)),
        ThresholdBy::Operator => ("operator", Some(view.threshold.since_unix_ms)),
    };
    InlineRow {
        threshold_bytes: if view.bytes_per_second_max == 0 { 0 } else { view.effective_len_bytes },
        recorded_bytes: view.threshold.len_bytes,
        supported_bytes: view.supported_len_bytes,
        floor_bytes: view.floor_len_bytes,
        ceiling_bytes: view.ceiling_len_bytes,
        set_by: set_by.to_owned(),
        since_unix_ms: since,
        why: why(view),
        objects_expected: view.objects_expected,
        objects_are_counted: view.is_counted,
        bytes_per_second: view.window_bytes / WINDOW_SECONDS,
        bytes_per_second_max: view.bytes_per_second_max,
        refused: view.refused,
        voters: view.voters.iter().map(voter).collect(),
    }
}

fn voter(voter: &VoterRoom) -> VoterRow {
    VoterRow {
        node: voter.node.0,
        fill_percent: voter.budget.map(|budget| budget.fill_percent),
        soft_limit_percent: voter.budget.map(|budget| budget.soft_percent),
        hard_limit_percent: voter.budget.map(|budget| budget.hard_percent),
        replicas: voter.replicas,
        budget_bytes: voter.per_shard(),
        heard_s_ago: voter.budget.map(|_| voter.heard_ms_ago / 1000),
    }
}

fn why(view: &InlineView) -> String {
    if view.bytes_per_second_max == 0 {
        return "small objects lie in chunks: inline.mb_per_second_max is 0".to_owned();
    }
    let within = view.threshold.len_bytes.min(view.ceiling_len_bytes).max(view.floor_len_bytes);
    if view.effective_len_bytes < within {
        return format!("the metadata directories of node {}, which leads, are over their hard limit", view.leader.0);
    }
    let because = match VoterRoom::least(&view.voters) {
        None => "no voter has said yet what it has room for".to_owned(),
        Some(VoterRoom { node, budget: Some(budget), .. }) if budget.is_over_hard_limit() => format!(
            "the metadata directories of node {} are {} % full, over their hard limit of {} %",
            node.0, budget.fill_percent, budget.hard_percent
        ),
        Some(voter) => format!(
            "node {} has the least room, for {} bytes of each of {} objects",
            voter.node.0,
            view.supported_len_bytes.unwrap_or(view.floor_len_bytes),
            view.objects_expected
        ),
    };
    let set = match view.threshold.by {
        ThresholdBy::Default => "it was never changed",
        ThresholdBy::Room => "it fell when a voter had no room for more, and rises only by `kiseki shard threshold`",
        ThresholdBy::Operator => "an operator set it",
    };
    let next = match view.supported_len_bytes {
        Some(room) if room < within => "; it falls to that unless there is room again",
        _ => "",
    };
    format!("{set}; {because}{next}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiseki_engine::inline_threshold::Threshold;
    use kiseki_engine::metadata_room::MetadataBudget;
    use kiseki_types::ids::NodeId;

    fn view() -> InlineView {
        let budget =
            |content_bytes| MetadataBudget { fill_percent: 60, soft_percent: 50, hard_percent: 75, content_bytes };
        let room = |node, budget| VoterRoom { node: NodeId(node), budget, replicas: 2, heard_ms_ago: 3_500 };
        InlineView {
            leader: NodeId(1),
            threshold: Threshold::default(),
            effective_len_bytes: 4096,
            supported_len_bytes: Some(4096),
            floor_len_bytes: 128,
            ceiling_len_bytes: 65_536,
            objects_expected: 1000,
            is_counted: true,
            window_bytes: 25,
            bytes_per_second_max: 10,
            refused: 0,
            voters: vec![room(1, Some(budget(90))), room(2, Some(budget(50))), room(3, None)],
        }
    }

    #[test]
    fn it_is_said_which_voter_has_the_least_room_and_who_set_it() {
        let told = row(&view());
        assert_eq!((told.threshold_bytes, told.bytes_per_second, told.since_unix_ms), (4096, 2, None));
        assert_eq!((told.voters[1].budget_bytes, told.voters[1].heard_s_ago), (Some(25), Some(3)));
        assert_eq!((told.voters[2].budget_bytes, told.voters[2].heard_s_ago), (None, None));
        let fell = Threshold { len_bytes: 512, by: ThresholdBy::Room, since_unix_ms: 9 };
        let said = Threshold { by: ThresholdBy::Operator, ..fell };
        let silent = view().voters.split_off(2);
        for (view, words) in [
            (view(), "never changed; node 2 has the least room, for 4096 bytes of each of 1000 objects"),
            (InlineView { supported_len_bytes: Some(512), ..view() }, "it falls to that"),
            (InlineView { threshold: fell, effective_len_bytes: 512, ..view() }, "it fell when a voter"),
            (InlineView { threshold: said, effective_len_bytes: 512, ..view() }, "an operator set it"),
            (InlineView { effective_len_bytes: 128, ..view() }, "node 1, which leads, are over their hard limit"),
            (InlineView { supported_len_bytes: None, voters: silent, ..view() }, "no voter has said"),
            (InlineView { bytes_per_second_max: 0, ..view() }, "mb_per_second_max is 0"),
        ] {
            let told = row(&view);
            assert!(told.why.contains(words), "{words} is not in {}", told.why);
            assert_eq!(told.threshold_bytes == 0, view.bytes_per_second_max == 0);
        }
    }
}
