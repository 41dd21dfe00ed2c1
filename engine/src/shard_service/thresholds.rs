//! Up to which length content lies inline in this shard: what holds, what there is room for, and how it changes (I-SF1, I-SF2).

use super::ShardService;
use crate::api::StoreError;
use crate::delta::RowChange;
use crate::inline::Admission;
use crate::inline_message::{InlineRequest, InlineView, VoterRoom};
use crate::inline_threshold::{THRESHOLD_LEN_BYTES, Threshold, ThresholdBy, objects_expected, supported};
use crate::latch::{Hold, LatchGuard};
use crate::leader::Draft;
use crate::message::{ShardRequest, ShardResponse};
use crate::metadata_room::MetadataBudget;
use crate::shard_tables::INLINE;
use crate::wire::ROOM_VERSION;
use kiseki_types::ids::{NodeId, ShardId};
use kiseki_types::runtime::Instant;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::time::Duration;
use tracing::{info, warn};

/// Key of the only row of [`INLINE`], and of the latch on it.
const KEY: &[u8] = b"threshold";

/// A voter must have had too little room for so long before the threshold falls: file systems are shared, and it does not rise again.
const LITTLE_ROOM_FOR: Duration = Duration::from_secs(30);

/// What a voter said longer ago changes nothing.
const HEARD_WITHIN: Duration = Duration::from_secs(30);

/// The threshold of this term, and how it came about.
pub(super) struct Thresholds {
    /// What was said before this term may be old.
    began: Instant,
    current: Cell<Threshold>,
    little_room_since: Cell<Option<Instant>>,
    refused: Cell<u64>,
}

impl Thresholds {
    pub(super) fn new(began: Instant) -> Thresholds {
        Thresholds { began, current: Cell::default(), little_room_since: Cell::default(), refused: Cell::default() }
    }
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

    /// What a voter's node may be asked for.
    pub(crate) fn voters(&self) -> BTreeSet<NodeId> {
        self.leader.voters()
    }

    /// Takes up what is recorded. What can't be read is no reason not to serve: it is as low as it may be then, until it is set anew.
    pub(super) async fn load_threshold(&self) -> Result<(), StoreError> {
        let Some(row) = self.leader.row(INLINE, KEY).await? else { return Ok(()) };
        let threshold = Threshold::decode(&row).unwrap_or_else(|error| {
            let lowest = Threshold { len_bytes: 0, by: ThresholdBy::Room, since_unix_ms: 0 };
            if self.thresholds.current.get() != lowest {
                warn!(shard = %self.shard(), %error, "the inline threshold can't be read; it is taken for the lowest");
            }
            lowest
        });
        self.thresholds.current.set(threshold);
        Ok(())
    }

    pub(super) async fn handle_inline(&self, request: InlineRequest) -> Result<ShardResponse, StoreError> {
        self.leader.barrier().await?;
        match request {
            InlineRequest::Show => {}
            InlineRequest::Set { len_bytes } => {
                let _latch = self.threshold_latch().await;
                let len_bytes = self.check_wanted(len_bytes)?;
                self.set_threshold(len_bytes, ThresholdBy::Operator).await?;
            }
            InlineRequest::Lower(threshold) => {
                let _latch = self.threshold_latch().await;
                self.load_threshold().await?;
                if threshold.len_bytes < self.threshold_len_bytes() {
                    self.set_threshold(threshold.len_bytes, threshold.by).await?;
                }
            }
        }
        Ok(ShardResponse::Inline(Box::new(self.inline_view())))
    }

    /// The shard that gets keys from this one takes no longer content than this one, unless it is told otherwise.
    pub(super) async fn lower_threshold_of(&self, child: ShardId) -> Result<(), StoreError> {
        let threshold = self.thresholds.current.get();
        if threshold.len_bytes < THRESHOLD_LEN_BYTES && self.calls.lacking(ROOM_VERSION).is_none() {
            self.calls.shard(child, ShardRequest::Inline(InlineRequest::Lower(threshold))).await?;
        }
        Ok(())
    }

    /// One at a time looks what holds and changes it.
    async fn threshold_latch(&self) -> LatchGuard {
        self.leader.latches.hold(KEY.to_vec(), Hold::Exclusive).await
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
        objects_expected(self.load.objects().0)
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
            is_counted: self.load.objects().1,
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
        if let Some(silent) = voters.iter().find(|voter| !self.is_fresh(voter)) {
            return refused(format!(
                "node {} has not said lately what its metadata directories have room for; try again in some seconds",
                silent.node.0
            ));
        }
        if !self.load.objects().1 {
            let counted = self.load.objects().0;
            return refused(format!("the shard's objects are still being counted ({counted} so far); try again later"));
        }
        let room = self.supported(&voters).unwrap_or(floor);
        if let Some(node) = self.calls.lacking(ROOM_VERSION).filter(|_| wanted.unwrap_or(room) > THRESHOLD_LEN_BYTES) {
            return refused(format!(
                "node {} is not known to understand thresholds above {THRESHOLD_LEN_BYTES}; start or update it first",
                node.0
            ));
        }
        match wanted.filter(|len| *len > room) {
            None => Ok(wanted.unwrap_or(room)),
            Some(_) => {
                let least = VoterRoom::least(&voters);
                let node = least.map_or(0, |voter| voter.node.0);
                refused(match least.and_then(|voter| voter.budget).filter(MetadataBudget::is_over_hard_limit) {
                    Some(budget) => format!(
                        "the metadata directories of node {node} are {} % full, over their hard limit of {} %; give them room",
                        budget.fill_percent, budget.hard_percent
                    ),
                    None => format!(
                        "node {node} has room for {room} bytes for each of {} objects; set no more, or give its metadata \
                         directories room",
                        self.objects_expected()
                    ),
                })
            }
        }
    }

    /// Whether a voter has said something in this term, and lately.
    fn is_fresh(&self, voter: &VoterRoom) -> bool {
        let now = self.leader.ports().now();
        let age = Duration::from_millis(voter.heard_ms_ago);
        voter.budget.is_some() && age <= HEARD_WITHIN && age <= now.since(self.thresholds.began)
    }

    /// I-SF1: it changes through the log, and holds in this term from then on; what is stored stays as it is (I-L9). The caller holds
    /// the latch.
    async fn set_threshold(&self, len_bytes: u32, by: ThresholdBy) -> Result<(), StoreError> {
        let since_unix_ms = self.leader.ports().unix_time_ms();
        let threshold = Threshold { len_bytes, by, since_unix_ms };
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
        if self.inline.settings().bytes_per_second_max == 0 {
            return Ok(()); // it means nothing, and does not rise again
        }
        let mut voters = self.voter_rooms();
        voters.retain(|voter| self.is_fresh(voter));
        let _latch = self.threshold_latch().await;
        // A change of which it was not known whether it was made may have been.
        self.load_threshold().await?;
        let (current, now) = (self.threshold_len_bytes(), self.leader.ports().now());
        let Some(room) = self.supported(&voters).filter(|room| *room < current) else {
            self.thresholds.little_room_since.set(None);
            return Ok(());
        };
        let since = self.thresholds.little_room_since.get().unwrap_or(now);
        self.thresholds.little_room_since.set(Some(since));
        let is_urgent = voters.iter().any(|voter| voter.budget.is_some_and(|budget| budget.is_over_hard_limit()));
        // One that said so once and is silent since may have had a bad moment.
        let has_said_again = VoterRoom::least(&voters)
            .is_some_and(|voter| Duration::from_millis(voter.heard_ms_ago) + LITTLE_ROOM_FOR / 2 < now.since(since));
        if !is_urgent && (now.since(since) < LITTLE_ROOM_FOR || !has_said_again) {
            return Ok(());
        }
        self.leader.barrier().await?;
        self.set_threshold(room, ThresholdBy::Room).await?;
        self.inline.falls.set(self.inline.falls.get() + 1);
        info!(shard = %self.shard(), before = current, now = room, "the inline threshold falls: a voter has no room for more");
        Ok(())
    }
}
