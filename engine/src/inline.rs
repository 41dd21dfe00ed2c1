//! Small objects: content that lies in its page, beside the names, and not in chunks.
//!
//! An inline page holds the sealed content where another holds references. It travels in the delta that names it, so it is written
//! once, by the shard's own log, and everything that moves, drops, copies or holds a page does so with it too. It is sealed before
//! it leaves the gateway, under a DEK of its own that is wrapped like that of a chunk (I-K1), and it is never compared with other
//! content: no dedup. An inline page never changes (I-L9).
//!
//! A writer proposes to store content inline, and the shard's leader decides: it refuses beyond a rate (I-SF7) and while its metadata
//! directories are too full. The writer makes chunks of it then, and nobody waits. Byte layout: `docs/formats/composition.md`.

use crate::keys::{DekUnwrapper, DekWrapper, KeyError, WrapScope, WrappedDek, aead_key, counter_nonce};
use aws_lc_rs::aead::Aad;
use kiseki_types::ids::{ChunkId, CompositionId, ShardId};
use kiseki_types::limits::TAG_LEN_BYTES;
use kiseki_types::runtime::{Instant, Rng};
use kiseki_types::secret::SecretKey;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Longest content that a page may hold.
pub const INLINE_LEN_BYTES_MAX: usize = 64 * 1024;

/// Content of at most so many bytes is stored inline.
pub const THRESHOLD_LEN_BYTES: usize = 4 * 1024;

/// What a shard takes a second unless it is configured.
pub const BYTES_PER_SECOND_MAX: u64 = 10_000_000;

/// How full metadata directories may be unless it is configured.
pub const METADATA_FILL_PERCENT_MAX: u8 = 75;

/// The rate is that of so long.
const WINDOW: Duration = Duration::from_secs(10);

/// The window moves in steps of this.
const STEP: Duration = Duration::from_millis(100);

/// A shard that refused inline content is not offered any for so long.
const REFUSED_FOR: Duration = Duration::from_secs(1);

/// Shards that are remembered for having refused.
const REFUSED_MAX: usize = 1024;

/// What the DEK of inline content is wrapped for: no chunk has this name, since those are keyed hashes.
const INLINE_NAME: ChunkId = ChunkId(*b"kiseki/inline-content/1         ");

/// How much may be stored inline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InlineSettings {
    /// Bytes a second of each shard; 0: nothing is stored inline.
    pub bytes_per_second_max: u64,
    /// Nothing is while the fullest metadata directory of the leader's node is fuller.
    pub metadata_fill_percent_max: u8,
}

impl Default for InlineSettings {
    fn default() -> InlineSettings {
        InlineSettings {
            bytes_per_second_max: BYTES_PER_SECOND_MAX,
            metadata_fill_percent_max: METADATA_FILL_PERCENT_MAX,
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

/// What of one core's shards may be stored inline just now, and what was.
#[derive(Default)]
pub struct InlinePolicy {
    settings: InlineSettings,
    /// How full the fullest metadata directory is, in percent; `None` where nobody has measured.
    metadata_fill_percent: Cell<Option<u8>>,
    refused_by: RefCell<BTreeMap<ShardId, Instant>>,
    /// Objects and parts that this core's writers stored inline.
    pub writes: Cell<u64>,
    /// Their bytes.
    pub bytes: Cell<u64>,
    /// Times that a shard led here refused one, because of its rate or because metadata directories are too full.
    pub refusals: Cell<u64>,
}

impl InlinePolicy {
    /// With these limits.
    #[must_use]
    pub fn new(settings: InlineSettings) -> InlinePolicy {
        InlinePolicy { settings, ..InlinePolicy::default() }
    }

    /// Takes a measurement of the metadata directories up. One that says nothing leaves the last one in force.
    pub fn metadata_is_full_to(&self, percent: Option<u8>) {
        self.metadata_fill_percent.set(percent.or(self.metadata_fill_percent.get()));
    }

    /// How full the fullest metadata directory is, if that was measured.
    #[must_use]
    pub fn metadata_fill_percent(&self) -> Option<u8> {
        self.metadata_fill_percent.get()
    }

    /// Whether inline content is taken at all just now.
    #[must_use]
    pub fn has_room(&self) -> bool {
        let fill = self.metadata_fill_percent.get().unwrap_or(0);
        self.settings.bytes_per_second_max > 0 && fill <= self.settings.metadata_fill_percent_max
    }

    /// Whether a writer offers content of `len` bytes to a shard.
    pub(crate) fn is_offered(&self, shard: ShardId, len: usize, now: Instant) -> bool {
        let fits = self.settings.bytes_per_second_max > 0 && (1..=THRESHOLD_LEN_BYTES).contains(&len);
        fits && self.refused_by.borrow().get(&shard).is_none_or(|until| now >= *until)
    }

    /// Whether the leader of a shard takes content of `len` bytes inline now.
    pub(crate) fn admits(&self, rate: &InlineRate, len: u64, now: Instant) -> bool {
        let admitted = len <= THRESHOLD_LEN_BYTES as u64
            && self.has_room()
            && rate.take(len, self.settings.bytes_per_second_max, now);
        self.refusals.set(self.refusals.get() + u64::from(!admitted));
        admitted
    }

    /// A shard has refused what was offered: it is left alone for a while.
    pub(crate) fn was_refused(&self, shard: ShardId, now: Instant) {
        let mut refused = self.refused_by.borrow_mut();
        if refused.len() >= REFUSED_MAX {
            refused.retain(|_, until| now < *until);
        }
        if refused.len() < REFUSED_MAX {
            refused.insert(shard, now + REFUSED_FOR);
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
        let mut steps = self.steps.borrow_mut();
        // The last of a step came up to one step after it began.
        while steps.front().is_some_and(|(began, _)| now.since(*began) >= WINDOW + STEP) {
            steps.pop_front();
        }
        let taken: u64 = steps.iter().map(|(_, bytes)| bytes).sum();
        if taken.saturating_add(len) > bytes_per_second_max.saturating_mul(WINDOW.as_secs()) {
            return false;
        }
        match steps.back_mut().filter(|(began, _)| now.since(*began) < STEP) {
            Some((_, bytes)) => *bytes += len,
            None => steps.push_back((now, len)),
        }
        true
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

    #[test]
    fn nothing_is_taken_inline_by_full_directories_nor_when_it_is_off() {
        let (rate, now) = (InlineRate::default(), Instant(0));
        let policy = InlinePolicy::new(InlineSettings::default());
        assert!(policy.admits(&rate, 1, now), "not measured yet");
        for (fill, admits) in [(74, true), (75, true), (76, false), (100, false), (10, true)] {
            policy.metadata_is_full_to(Some(fill));
            policy.metadata_is_full_to(None); // it was not to be known once
            assert_eq!(policy.admits(&rate, 1, now), admits, "{fill} %");
        }
        assert!(!policy.admits(&rate, THRESHOLD_LEN_BYTES as u64 + 1, now));
        assert_eq!(policy.refusals.get(), 3);
        let off = InlinePolicy::new(InlineSettings::off());
        assert!(!off.admits(&rate, 1, now) && !off.is_offered(ShardId(1), 1, now));
    }

    #[test]
    fn a_shard_that_refused_is_offered_nothing_for_a_while() {
        let (policy, now) = (InlinePolicy::new(InlineSettings::default()), Instant(0));
        for (len, offered) in [(0, false), (1, true), (THRESHOLD_LEN_BYTES, true), (THRESHOLD_LEN_BYTES + 1, false)] {
            assert_eq!(policy.is_offered(ShardId(1), len, now), offered, "{len} bytes");
        }
        policy.was_refused(ShardId(1), now);
        assert!(!policy.is_offered(ShardId(1), 1, now + Duration::from_millis(999)));
        assert!(policy.is_offered(ShardId(2), 1, now));
        assert!(policy.is_offered(ShardId(1), 1, now + REFUSED_FOR));
        for shard in 0..2 * REFUSED_MAX as u64 {
            policy.was_refused(ShardId(shard), now);
        }
        assert_eq!(policy.refused_by.borrow().len(), REFUSED_MAX, "I-O5");
    }
}
