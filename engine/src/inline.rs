//! Small objects: content that lies in its page, beside the names, and not in chunks.
//!
//! An inline page holds the sealed content where another holds references. It travels in the delta that names it, so it is written
//! once, by the shard's own log, and everything that moves, drops, copies or holds a page does so with it too. It is sealed before
//! it leaves the gateway, under a DEK of its own that is wrapped like that of a chunk (I-K1), and it is never compared with other
//! content: no dedup. An inline page never changes (I-L9).
//!
//! A writer proposes to store content inline, and the shard's leader decides: it refuses what is longer than the shard's threshold
//! ([`crate::inline_threshold`]) and what is beyond a rate (I-SF7). The writer makes chunks of it then, and nobody waits. Byte layout:
//! `docs/formats/composition.md`.

use crate::inline_threshold::{CEILING_LEN_BYTES, FLOOR_LEN_BYTES, THRESHOLD_LEN_BYTES};
use crate::keys::{DekUnwrapper, DekWrapper, KeyError, WrapScope, WrappedDek, aead_key, counter_nonce};
use crate::metadata_room::{MetadataBudget, MetadataRoom};
use aws_lc_rs::aead::Aad;
use kiseki_types::ids::{ChunkId, CompositionId, NodeId, ShardId};
use kiseki_types::limits::TAG_LEN_BYTES;
use kiseki_types::meta::MetaSpace;
use kiseki_types::runtime::{Instant, Rng};
use kiseki_types::secret::SecretKey;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// Longest content that a page may hold.
pub const INLINE_LEN_BYTES_MAX: usize = 64 * 1024;

/// What a shard takes a second unless it is configured.
pub const BYTES_PER_SECOND_MAX: u64 = 10_000_000;

/// How full metadata directories may be unless it is configured: thresholds are lowest beyond this.
pub const METADATA_FILL_PERCENT_MAX: u8 = 75;

/// And how full before thresholds fall for it.
pub const METADATA_SOFT_PERCENT_MAX: u8 = 50;

/// The rate is that of so long.
const WINDOW: Duration = Duration::from_secs(10);

/// The window moves in steps of this.
const STEP: Duration = Duration::from_millis(100);

/// A shard that refused inline content because of its rate is not offered any for so long.
const REFUSED_FOR: Duration = Duration::from_secs(1);

/// What a shard said of its threshold is believed for so long. Then longer content is offered again, once in that time: nobody tells
/// writers of a threshold that rose.
const LIMIT_KNOWN_FOR: Duration = Duration::from_secs(10);

/// Shards that are remembered for having refused.
const REFUSED_MAX: usize = 16_384;

/// What the DEK of inline content is wrapped for: no chunk has this name, since those are keyed hashes.
const INLINE_NAME: ChunkId = ChunkId(*b"kiseki/inline-content/1         ");

/// How much may be stored inline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InlineSettings {
    /// Bytes a second of each shard; 0: nothing is stored inline.
    pub bytes_per_second_max: u64,
    /// Thresholds fall beyond this fill of this node's metadata directories (I-SF2).
    pub metadata_soft_percent_max: u8,
    /// And are at the floor beyond this one.
    pub metadata_fill_percent_max: u8,
    /// The lowest threshold.
    pub floor_len_bytes: u32,
    /// The highest one.
    pub ceiling_len_bytes: u32,
}

impl Default for InlineSettings {
    fn default() -> InlineSettings {
        InlineSettings {
            bytes_per_second_max: BYTES_PER_SECOND_MAX,
            metadata_soft_percent_max: METADATA_SOFT_PERCENT_MAX,
            metadata_fill_percent_max: METADATA_FILL_PERCENT_MAX,
            floor_len_bytes: FLOOR_LEN_BYTES,
            ceiling_len_bytes: CEILING_LEN_BYTES,
        }
    }
}

impl InlineSettings {
    /// Everything becomes chunks.
    #[must_use]
    pub fn off() -> InlineSettings {
        InlineSettings { bytes_per_second_max: 0, ..InlineSettings::default() }
    }
}

/// Sealed content of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InlineContent {
    /// Its DEK, wrapped by the tenant's KEK for the page's composition.
    pub wrapped_dek: WrappedDek,
    /// Ciphertext and tag.
    pub sealed: Vec<u8>,
}

impl InlineContent {
    /// Bytes that sealing adds.
    pub const OVERHEAD_BYTES: usize = TAG_LEN_BYTES;

    /// Seals content for the composition that `wrapper` was begun for.
    #[must_use]
    pub fn seal(wrapper: &mut DekWrapper, rng: &dyn Rng, content: &[u8]) -> InlineContent {
        let mut key = [0; 32];
        rng.fill_random(&mut key);
        let dek = SecretKey::take(&mut key);
        let aad = binding(wrapper.scope().composition, content.len());
        let mut sealed = Vec::with_capacity(content.len() + Self::OVERHEAD_BYTES);
        sealed.extend_from_slice(content);
        // I-K7: the DEK is drawn for this content and seals nothing else.
        let tag = aead_key(&dek)
            .seal_in_place_separate_tag(counter_nonce(0), aad, &mut sealed)
            .expect("the content is within the cipher's limit");
        sealed.extend_from_slice(tag.as_ref());
        InlineContent { wrapped_dek: wrapper.wrap(&INLINE_NAME, &dek), sealed }
    }

    /// The content, if it was sealed under `kek` for this scope.
    pub fn open(&self, kek: &SecretKey, scope: WrapScope) -> Result<Vec<u8>, KeyError> {
        let refused = KeyError::SealedPayload { len_bytes: self.sealed.len() };
        let dek = DekUnwrapper::new(kek, scope).unwrap(&INLINE_NAME, &self.wrapped_dek)?;
        let len = self.sealed.len().checked_sub(Self::OVERHEAD_BYTES).ok_or(refused)?;
        let (text, tag) = self.sealed.split_at(len);
        let mut content = vec![0; len];
        let opened = aead_key(&dek).open_separate_gather(
            counter_nonce(0),
            binding(scope.composition, len),
            text,
            tag,
            &mut content,
        );
        opened.map(|()| content).map_err(|_| refused)
    }

    /// Bytes of the content.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.sealed.len().saturating_sub(Self::OVERHEAD_BYTES) as u64
    }
}

fn binding(composition: CompositionId, len: usize) -> Aad<[u8; 24]> {
    let mut aad = [0; 24];
    aad[..16].copy_from_slice(&composition.0);
    aad[16..].copy_from_slice(&(len as u64).to_le_bytes());
    Aad::from(aad)
}

/// What a shard's leader says to content that is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It lies inline.
    Taken,
    /// It is longer than the shard takes, which is so much.
    TooLong(u32),
    /// Nothing is taken just now.
    NotNow,
}

/// What a writer knows of a shard.
#[derive(Clone, Copy, Default)]
struct KnownShard {
    /// What it takes, and until when that is believed.
    limit: Option<(u32, Instant)>,
    /// Nothing is offered before this.
    refused_until: Option<Instant>,
}

/// What of one core's shards may be stored inline just now, and what was.
#[derive(Default)]
pub struct InlinePolicy {
    settings: InlineSettings,
    /// What this node's metadata directories have room for; `None` where nobody has measured.
    budget: Cell<Option<MetadataBudget>>,
    /// What each node said last of its metadata directories, and when.
    rooms: RefCell<BTreeMap<NodeId, (MetadataRoom, Instant)>>,
    known: RefCell<BTreeMap<ShardId, KnownShard>>,
    /// Objects and parts that this core's writers stored inline.
    pub writes: Cell<u64>,
    /// Their bytes.
    pub bytes: Cell<u64>,
    /// Times that a shard led here refused one, because of its threshold or its rate.
    pub refusals: Cell<u64>,
    /// Times that the threshold of a shard led here fell.
    pub falls: Cell<u64>,
}

impl InlinePolicy {
    /// With these limits.
    #[must_use]
    pub fn new(settings: InlineSettings) -> InlinePolicy {
        InlinePolicy { settings, ..InlinePolicy::default() }
    }

    /// The limits.
    #[must_use]
    pub fn settings(&self) -> &InlineSettings {
        &self.settings
    }

    /// Takes a measurement of this node's metadata directories up. One that says nothing leaves the last one in force.
    pub fn metadata_has(&self, spaces: &[MetaSpace]) {
        self.budget.set(MetadataBudget::of(spaces, &self.settings).or(self.budget.get()));
    }

    /// What this node's metadata directories have room for, if that was measured.
    #[must_use]
    pub fn budget(&self) -> Option<MetadataBudget> {
        self.budget.get()
    }

    /// A node has said what its metadata directories have room for.
    pub(crate) fn node_has(&self, node: NodeId, room: MetadataRoom, now: Instant) {
        self.rooms.borrow_mut().insert(node, (room, now));
    }

    /// What others than these have said is forgotten: it is old when they are asked again.
    pub(crate) fn keep_rooms_of(&self, nodes: &BTreeSet<NodeId>) {
        self.rooms.borrow_mut().retain(|node, _| nodes.contains(node));
    }

    /// What a node said last, and when.
    pub(crate) fn room_of(&self, node: NodeId) -> Option<(MetadataRoom, Instant)> {
        self.rooms.borrow().get(&node).copied()
    }

    /// Whether a writer offers content of `len` bytes to a shard.
    ///
    /// - `may_be_long`: whether every node knows of thresholds beyond the first one.
    pub(crate) fn is_offered(&self, shard: ShardId, len: usize, may_be_long: bool, now: Instant) -> bool {
        let Ok(len) = u32::try_from(len) else { return false };
        if self.settings.bytes_per_second_max == 0 || !(1..=self.settings.ceiling_len_bytes).contains(&len) {
            return false;
        }
        let known = self.known.borrow().get(&shard).copied().unwrap_or_default();
        if known.refused_until.is_some_and(|until| now < until) {
            return false;
        }
        match known.limit.filter(|(_, until)| now < *until) {
            Some((limit, _)) => len <= limit,
            None => len <= THRESHOLD_LEN_BYTES || may_be_long,
        }
    }

    /// What of its threshold a shard takes just now: no more than the floor while this node's own directories are too full (I-SF2).
    pub(crate) fn effective(&self, threshold: u32) -> u32 {
        match self.budget.get().is_some_and(|budget| budget.is_over_hard_limit()) {
            true => threshold.min(self.settings.floor_len_bytes),
            false => threshold,
        }
    }

    /// What the leader of a shard with this threshold says to content of `len` bytes.
    pub(crate) fn admit(&self, rate: &InlineRate, threshold: u32, len: u64, now: Instant) -> Admission {
        let limit = self.effective(threshold);
        let admission = if len > u64::from(limit) {
            Admission::TooLong(limit)
        } else if rate.take(len, self.settings.bytes_per_second_max, now) {
            Admission::Taken
        } else {
            Admission::NotNow
        };
        self.refusals.set(self.refusals.get() + u64::from(admission != Admission::Taken));
        admission
    }

    /// A shard has refused content of `len` bytes; `limit` is what it takes, as far as it says.
    pub(crate) fn was_refused(&self, shard: ShardId, len: u64, limit: Option<u32>, now: Instant) {
        let mut shards = self.known.borrow_mut();
        if shards.len() >= REFUSED_MAX && !shards.contains_key(&shard) {
            let is_past = |until: Option<Instant>| until.is_none_or(|until| now >= until);
            shards.retain(|_, known| !is_past(known.refused_until) || !is_past(known.limit.map(|(_, until)| until)));
            if shards.len() >= REFUSED_MAX {
                return;
            }
        }
        let known = shards.entry(shard).or_default();
        // A leader that is not sure of all nodes does not say how much it takes: no more than at first, at any rate.
        let limit = limit.unwrap_or(THRESHOLD_LEN_BYTES);
        if len > u64::from(limit) {
            known.limit = Some((limit, now + LIMIT_KNOWN_FOR));
        } else {
            known.refused_until = Some(now + REFUSED_FOR);
        }
    }
}

/// How many bytes one shard took inline lately.
#[derive(Default)]
pub(crate) struct InlineRate {
    /// Steps of the window, and what was taken in each; the newest is last.
    steps: RefCell<VecDeque<(Instant, u64)>>,
}

impl InlineRate {
    /// Counts `len` bytes if they fit (I-SF7); what is refused counts nothing.
    pub(crate) fn take(&self, len: u64, bytes_per_second_max: u64, now: Instant) -> bool {
        let taken = self.taken(now);
        let mut steps = self.steps.borrow_mut();
        if taken.saturating_add(len) > bytes_per_second_max.saturating_mul(WINDOW.as_secs()) {
            return false;
        }
        match steps.back_mut().filter(|(began, _)| now.since(*began) < STEP) {
            Some((_, bytes)) => *bytes += len,
            None => steps.push_back((now, len)),
        }
        true
    }

    /// Bytes that were taken within the window.
    pub(crate) fn taken(&self, now: Instant) -> u64 {
        let mut steps = self.steps.borrow_mut();
        // The last of a step came up to one step after it began.
        while steps.front().is_some_and(|(began, _)| now.since(*began) >= WINDOW + STEP) {
            steps.pop_front();
        }
        steps.iter().map(|(_, bytes)| bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::KekEpoch;
    use kiseki_types::ids::TenantId;

    struct Counting(Cell<u8>);

    impl Rng for Counting {
        fn fill_random(&self, out: &mut [u8]) {
            for byte in out {
                self.0.set(self.0.get().wrapping_add(1));
                *byte = self.0.get();
            }
        }
    }

    fn kek(byte: u8) -> SecretKey {
        SecretKey::take(&mut [byte; 32])
    }

    fn wrapper(rng: &Counting) -> DekWrapper {
        DekWrapper::begin(&kek(1), KekEpoch(1), TenantId(2), CompositionId([3; 16]), rng)
    }

    #[test]
    fn i_k1_inline_content_opens_for_its_composition_and_tenant_alone() {
        let rng = Counting(Cell::new(0));
        let mut wrapper = wrapper(&rng);
        let content = b"a small object".to_vec();
        let sealed = InlineContent::seal(&mut wrapper, &rng, &content);
        let again = InlineContent::seal(&mut wrapper, &rng, &content);
        let scope = wrapper.scope();
        assert_eq!(sealed.open(&kek(1), scope).unwrap(), content);
        assert_eq!(sealed.len_bytes(), content.len() as u64);
        assert!(!sealed.sealed.windows(5).any(|window| window == b"small"));
        assert_ne!(sealed.sealed, again.sealed, "I-K7: another key for other content");
        assert!(sealed.open(&kek(2), scope).is_err());
        for other in [
            WrapScope { composition: CompositionId([4; 16]), ..scope },
            WrapScope { tenant: TenantId(9), ..scope },
            WrapScope { kek_epoch: KekEpoch(2), ..scope },
            WrapScope { attempt: [0; 16], ..scope },
        ] {
            assert!(sealed.open(&kek(1), other).is_err(), "{other:?}");
        }
        for at in 0..sealed.sealed.len() {
            let mut damaged = sealed.clone();
            damaged.sealed[at] ^= 1;
            assert!(damaged.open(&kek(1), scope).is_err(), "byte {at}");
        }
        let cut = InlineContent { sealed: sealed.sealed[..10].to_vec(), ..sealed };
        assert!(cut.open(&kek(1), scope).is_err());
    }

    #[test]
    fn i_sf7_the_rate_is_held_over_ten_seconds_and_falls_again() {
        let (rate, start) = (InlineRate::default(), Instant(0));
        let at = |ms: u64| start + Duration::from_millis(ms);
        // 100 bytes a second: a thousand in any ten seconds.
        for step in 0..10 {
            assert!(rate.take(100, 100, at(step * 500)), "{step}");
        }
        assert!(!rate.take(1, 100, at(5_000)));
        assert!(!rate.take(1, 100, at(10_099)), "what came within the first step may have come at its end");
        assert!(rate.take(100, 100, at(10_100)), "it has left the window");
        assert!(!rate.take(1, 100, at(10_101)));
        assert!(rate.take(1000, 100, at(30_000)));
        assert!(!rate.take(1001, 100, at(60_000)), "more than ten seconds allow at once");
        assert!(rate.take(1000, 100, at(60_000)), "what was refused counts nothing");
    }

    fn spaces(fill: u64) -> [MetaSpace; 1] {
        [MetaSpace { used_bytes: fill, total_bytes: 100, file_system: 0 }]
    }

    #[test]
    fn i_sf2_full_directories_take_no_more_than_the_floor_and_nothing_is_taken_when_it_is_off() {
        let (rate, now) = (InlineRate::default(), Instant(0));
        let policy = InlinePolicy::new(InlineSettings::default());
        let admit = |threshold, len| policy.admit(&rate, threshold, len, now);
        assert_eq!(admit(4096, 4096), Admission::Taken, "not measured yet");
        for (fill, admission) in [
            (74, Admission::Taken),
            (75, Admission::Taken),
            (76, Admission::TooLong(FLOOR_LEN_BYTES)),
            (100, Admission::TooLong(FLOOR_LEN_BYTES)),
            (10, Admission::Taken),
        ] {
            policy.metadata_has(&spaces(fill));
            policy.metadata_has(&[]); // it was not to be known once
            assert_eq!(admit(4096, 4096), admission, "{fill} %");
            assert_eq!(admit(4096, u64::from(FLOOR_LEN_BYTES)), Admission::Taken, "{fill} %");
        }
        assert_eq!(admit(4096, 4097), Admission::TooLong(4096));
        assert_eq!(policy.refusals.get(), 3);
        let off = InlinePolicy::new(InlineSettings::off());
        assert_eq!(off.admit(&rate, 4096, 1, now), Admission::NotNow);
        assert!(!off.is_offered(ShardId(1), 1, true, now));
    }

    #[test]
    fn a_shard_that_refused_is_offered_nothing_for_a_while() {
        let (policy, now) = (InlinePolicy::new(InlineSettings::default()), Instant(0));
        let offered = |shard, len, may_be_long, at| policy.is_offered(ShardId(shard), len, may_be_long, at);
        let (first, most) = (THRESHOLD_LEN_BYTES as usize, CEILING_LEN_BYTES as usize);
        for (len, may_be_long, is_offered) in [
            (0, true, false),
            (1, false, true),
            (first, false, true),
            (first + 1, false, false),
            (first + 1, true, true),
            (most, true, true),
            (most + 1, true, false),
        ] {
            assert_eq!(offered(1, len, may_be_long, now), is_offered, "{len} bytes");
        }
        policy.was_refused(ShardId(1), 1, None, now);
        assert!(!offered(1, 1, true, now + Duration::from_millis(999)));
        assert!(offered(2, 1, true, now) && offered(1, 1, true, now + REFUSED_FOR));
        for shard in 0..2 * REFUSED_MAX as u64 {
            policy.was_refused(ShardId(shard), 1, None, now);
        }
        assert_eq!(policy.known.borrow().len(), REFUSED_MAX, "I-O5");
    }

    #[test]
    fn a_threshold_that_a_shard_has_said_is_kept_to_and_tried_again_later() {
        let (policy, now) = (InlinePolicy::new(InlineSettings::default()), Instant(0));
        let offered = |len, at| policy.is_offered(ShardId(1), len, true, at);
        policy.was_refused(ShardId(1), 9_000, Some(512), now);
        assert!(offered(512, now) && !offered(513, now), "shorter content goes on");
        assert!(!offered(513, now + Duration::from_millis(9_999)) && offered(513, now + LIMIT_KNOWN_FOR));
        policy.was_refused(ShardId(2), 9_000, None, now);
        assert!(policy.is_offered(ShardId(2), 4096, true, now) && !policy.is_offered(ShardId(2), 4097, true, now));
        // It would take that, but has taken too much lately.
        policy.was_refused(ShardId(1), 100, Some(512), now + LIMIT_KNOWN_FOR);
        assert!(!offered(100, now + LIMIT_KNOWN_FOR));
    }
}
