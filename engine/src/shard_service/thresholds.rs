//! Up to which length content lies inline in this shard: what holds, what there is room for, and how it changes (I-SF1, I-SF2).

use super::ShardService;
use crate::api::StoreError;
use crate::delta::RowChange;
use crate::inline::Admission;
use crate::inline_message::{InlineRequest, InlineView, VoterRoom};
use crate::inline_threshold::{THRESHOLD_LEN_BYTES, Threshold, ThresholdBy, objects_expected, supported};
use crate::latch::Hold;
use crate::leader::{Draft, row_damaged};
use crate::message::{ShardRequest, ShardResponse};
use crate::shard_tables::INLINE;
use crate::wire::ROOM_VERSION;
use kiseki_types::runtime::Instant;
use std::cell::Cell;
use std::time::Duration;
use tracing::info;

/// Key of the only row of [`INLINE`], and of the latch on it.
const KEY: &[u8] = b"threshold";

/// A voter must have had too little room for so long before the threshold falls: file systems are shared, and it does not rise again.
const LITTLE_ROOM_FOR: Duration = Duration::from_secs(30);

/// A threshold rises only upon what every voter said so lately.
const HEARD_WITHIN: Duration = Duration::from_secs(30);

/// The threshold of this term, and how it came about.
#[derive(Default)]
pub(super) struct Thresholds {
    current: Cell<Threshold>,
    little_room_since: Cell<Option<Instant>>,
    refused: Cell<u64>,
}

impl ShardService {
    /// Why the content that a write brings along may not lie in its page: decided once, before anything else (I-SF7).
    pub(super) fn refusal(&self, request: &ShardRequest) -> Option<ShardResponse> {
        let (ShardRequest::PutEntry { written, .. } | ShardRequest::PutPart { written, .. }) = request else {
            return None;
        };
        let inline = written.last.as_ref().and_then(|(_, page)| page.inline.as_ref())?;
        let threshold = self.threshold_len_bytes();
        let admission = self.inline.admit(&self.inline_rate, threshold, inline.len_bytes(), self.leader.ports().now());
        let limit = match admission {
            Admission::Taken => return None,
            Admission::NotNow => None,
            // A writer of an earlier release would not understand the answer.
            Admission::TooLong(limit) => self.calls.lacking(ROOM_VERSION).is_none().then_some(limit),
        };
        self.thresholds.refused.set(self.thresholds.refused.get() + 1);
        Some(ShardResponse::NotInline { limit })
    }

    /// What holds in this term.
    #[must_use]
    pub fn threshold_len_bytes(&self) -> u32 {
        self.thresholds.current.get().within(self.inline.settings())
    }

    pub(super) async fn load_threshold(&self) -> Result<(), StoreError> {
        if let Some(row) = self.leader.row(INLINE, KEY).await? {
            self.thresholds.current.set(Threshold::decode(&row).map_err(row_damaged)?);
        }
        Ok(())
    }

    pub(super) async fn handle_inline(&self, request: InlineRequest) -> Result<ShardResponse, StoreError> {
        self.leader.barrier().await?;
        if let InlineRequest::Set { len_bytes } = request {
            let len_bytes = self.check_wanted(len_bytes)?;
            self.set_threshold(len_bytes, ThresholdBy::Operator).await?;
        }
        Ok(ShardResponse::Inline(Box::new(self.inline_view())))
    }

    /// The voters, and what they have said of their room.
    fn voter_rooms(&self) -> Vec<VoterRoom> {
        let now = self.leader.ports().now();
        let room = |node| match self.inline.room_of(node) {
            None => VoterRoom { node, budget: None, replicas: 0, heard_ms_ago: 0 },
            Some((room, heard)) => VoterRoom {
                node,
                budget: room.budget,
                replicas: room.replicas,
                heard_ms_ago: now.since(heard).as_millis() as u64,
            },
        };
        self.leader.voters().into_iter().map(room).collect()
    }

    fn objects_expected(&self) -> u64 {
        objects_expected(self.load.size().0.keys.max(0) as u64)
    }

    /// What there is room for, as far as voters have said: of those the one with the least counts (I-SF1).
    fn supported(&self, voters: &[VoterRoom]) -> Option<u32> {
        let least = VoterRoom::least(voters)?.per_shard()?;
        Some(supported(least, self.objects_expected(), self.inline.settings()))
    }

    fn inline_view(&self) -> InlineView {
        let (settings, threshold, voters) = (self.inline.settings(), self.thresholds.current.get(), self.voter_rooms());
        InlineView {
            leader: self.nodes.own(),
            threshold,
            effective_len_bytes: self.inline.effective(self.threshold_len_bytes()),
            supported_len_bytes: self.supported(&voters),
            floor_len_bytes: settings.floor_len_bytes,
            ceiling_len_bytes: settings.ceiling_len_bytes,
            objects_expected: self.objects_expected(),
            window_bytes: self.inline_rate.taken(self.leader.ports().now()),
            bytes_per_second_max: settings.bytes_per_second_max,
            refused: self.thresholds.refused.get(),
            voters,
        }
    }

    /// What an operator wants, if it may be.
    fn check_wanted(&self, wanted: Option<u32>) -> Result<u32, StoreError> {
        let refused = |what: String| Err(StoreError::Invalid { what });
        let settings = self.inline.settings();
        let (floor, ceiling) = (settings.floor_len_bytes, settings.ceiling_len_bytes);
        if let Some(len_bytes) = wanted.filter(|len| !(floor..=ceiling).contains(len)) {
            return refused(format!(
                "{len_bytes} bytes are not within {floor} to {ceiling} (`inline.floor_bytes`, `inline.ceiling_bytes`)"
            ));
        }
        // I-SF2: it falls whenever one says so, and rises only upon what all voters say.
        if let Some(len_bytes) = wanted.filter(|len| *len <= self.threshold_len_bytes()) {
            return Ok(len_bytes);
        }
        let voters = self.voter_rooms();
        let is_old =
            |voter: &&VoterRoom| voter.budget.is_none() || Duration::from_millis(voter.heard_ms_ago) > HEARD_WITHIN;
        if let Some(silent) = voters.iter().find(is_old) {
            return refused(format!(
                "node {} has not said lately what its metadata directories have room for; try again in some seconds",
                silent.node.0
            ));
        }
        let room = self.supported(&voters).unwrap_or(floor);
        if let Some(node) = self.calls.lacking(ROOM_VERSION).filter(|_| wanted.unwrap_or(room) > THRESHOLD_LEN_BYTES) {
            return refused(format!("node {} does not know of such thresholds yet; update it first", node.0));
        }
        match wanted {
            Some(len_bytes) if len_bytes > room => {
                let least = VoterRoom::least(&voters).map_or(0, |voter| voter.node.0);
                refused(format!(
                    "node {least} has room for {room} bytes for each of {} objects; set no more, or give it larger \
                     metadata directories",
                    self.objects_expected()
                ))
            }
            Some(len_bytes) => Ok(len_bytes),
            None => Ok(room),
        }
    }

    /// I-SF1: it changes through the log, and holds in this term from then on; what is stored stays as it is (I-L9).
    async fn set_threshold(&self, len_bytes: u32, by: ThresholdBy) -> Result<(), StoreError> {
        let since_unix_ms = self.leader.ports().unix_time_ms();
        let threshold = Threshold { len_bytes, by, since_unix_ms };
        let _one_at_a_time = self.leader.latches.hold(KEY.to_vec(), Hold::Exclusive).await;
        self.decide(async |term| {
            let draft =
                Draft { rows: vec![RowChange::put(INLINE, KEY.to_vec(), threshold.encode())], ..Draft::default() };
            self.leader.commit(term, draft).await
        })
        .await?;
        self.thresholds.current.set(threshold);
        Ok(())
    }

    /// I-SF2: a voter that has had too little room for a while lowers the threshold; one over its hard limit does at once.
    pub(super) async fn lower_threshold_when_due(&self) -> Result<(), StoreError> {
        // A change of which it was not known whether it was made may have been.
        let latch = self.leader.latches.hold(KEY.to_vec(), Hold::Exclusive).await;
        self.load_threshold().await?;
        drop(latch);
        let voters = self.voter_rooms();
        let (current, now) = (self.threshold_len_bytes(), self.leader.ports().now());
        let Some(room) = self.supported(&voters).filter(|room| *room < current) else {
            self.thresholds.little_room_since.set(None);
            return Ok(());
        };
        let since = self.thresholds.little_room_since.get().unwrap_or(now);
        self.thresholds.little_room_since.set(Some(since));
        let is_urgent = voters.iter().any(|voter| voter.budget.is_some_and(|budget| budget.is_over_hard_limit()));
        if !is_urgent && now.since(since) < LITTLE_ROOM_FOR {
            return Ok(());
        }
        self.leader.barrier().await?;
        self.set_threshold(room, ThresholdBy::Room).await?;
        self.inline.falls.set(self.inline.falls.get() + 1);
        info!(shard = %self.shard(), before = current, now = room, "the inline threshold falls: a voter has no room for more");
        Ok(())
    }
}
