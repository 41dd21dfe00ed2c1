//! What a core remembers of the control shard: buckets, and whose access keys are. Every request names both, and asking
//! each time would cost every small request three calls to another core.
//!
//! The control shard has every core forget before it answers a change ([`crate::calls::Calls::forget_everywhere`]), so
//! after the answer no core acts on what was before it. Absence is never remembered. With several nodes what is remembered is
//! believed for [`BELIEF_MAX`] only: a node that can't be told has stopped believing by itself when the change is answered.

use crate::key_ranges::KeyRange;
use crate::message::Bucket;
use kiseki_types::ids::TenantId;
use kiseki_types::runtime::Instant;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;
use zeroize::Zeroizing;

/// Entries of either kind (I-O5); when there are more, all of that kind are dropped.
const ENTRIES_MAX: usize = 1024;

/// How long what was asked for is believed where there are other nodes, counted from before it was asked.
pub const BELIEF_MAX: Duration = Duration::from_secs(2);

/// How long a change waits for nodes that could not be told: clocks run at different speeds.
pub const DISBELIEF_WAIT: Duration = Duration::from_millis(2_200);

/// An access key's owner and secret.
type AccessKeyEntry = (TenantId, Zeroizing<String>);

/// What was answered, and when it was asked for, by name.
type Remembered<T> = BTreeMap<String, (Instant, T)>;

/// One core's memory of control rows.
#[derive(Default)]
pub struct ControlCache {
    /// How often everything was forgotten: an answer that was asked for before is not kept after.
    forgotten: Cell<u64>,
    buckets: RefCell<BTreeMap<TenantId, Remembered<Bucket>>>,
    access_keys: RefCell<Remembered<AccessKeyEntry>>,
    /// Requests answered from here.
    pub hits: Cell<u64>,
    /// Requests for which the control shard was asked.
    pub misses: Cell<u64>,
}

/// Taken before the control shard is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked(u64);

impl ControlCache {
    /// A tenant's bucket, or the ticket to keep the control shard's answer with.
    ///
    /// - `since`: what was asked for earlier is not believed.
    pub fn bucket(&self, tenant: TenantId, name: &str, since: Instant) -> Result<Bucket, Asked> {
        let buckets = self.buckets.borrow();
        let found = buckets.get(&tenant).and_then(|buckets| buckets.get(name)).filter(|(at, _)| *at >= since);
        self.counted(found.map(|(_, bucket)| bucket.clone()))
    }

    /// Keeps a bucket, unless something changed since it was asked for.
    ///
    /// - `at`: when it was asked for.
    pub fn keep_bucket(&self, asked: Asked, tenant: TenantId, name: &str, bucket: &Bucket, at: Instant) {
        if asked.0 != self.forgotten.get() {
            return;
        }
        let mut buckets = self.buckets.borrow_mut();
        if buckets.values().map(BTreeMap::len).sum::<usize>() >= ENTRIES_MAX {
            buckets.clear();
        }
        buckets.entry(tenant).or_default().insert(name.to_owned(), (at, bucket.clone()));
    }

    /// A shard has said where some keys of a bucket lie. How long the bucket is believed does not change.
    pub fn learn(&self, tenant: TenantId, name: &str, range: &KeyRange) {
        let mut buckets = self.buckets.borrow_mut();
        let found = buckets.get_mut(&tenant).and_then(|buckets| buckets.get_mut(name));
        if let Some((_, bucket)) = found.filter(|(_, bucket)| bucket.info.namespace == range.namespace) {
            bucket.ranges.learn(range);
        }
    }

    /// An access key, or the ticket to keep the control shard's answer with.
    ///
    /// - `since`: what was asked for earlier is not believed.
    pub fn access_key(&self, id: &str, since: Instant) -> Result<AccessKeyEntry, Asked> {
        let keys = self.access_keys.borrow();
        let found = keys.get(id).filter(|(at, _)| *at >= since);
        self.counted(found.map(|(_, entry)| entry.clone()))
    }

    /// Keeps an access key, unless something changed since it was asked for.
    ///
    /// - `at`: when it was asked for.
    pub fn keep_access_key(&self, asked: Asked, id: &str, entry: &AccessKeyEntry, at: Instant) {
        if asked.0 != self.forgotten.get() {
            return;
        }
        let mut keys = self.access_keys.borrow_mut();
        if keys.len() >= ENTRIES_MAX {
            keys.clear();
        }
        keys.insert(id.to_owned(), (at, entry.clone()));
    }

    /// Forgets everything: control rows are about to change, or have changed.
    pub fn forget(&self) {
        self.forgotten.set(self.forgotten.get() + 1);
        self.buckets.borrow_mut().clear();
        self.access_keys.borrow_mut().clear();
    }

    fn counted<T>(&self, found: Option<T>) -> Result<T, Asked> {
        let counter = if found.is_some() { &self.hits } else { &self.misses };
        counter.set(counter.get() + 1);
        found.ok_or(Asked(self.forgotten.get()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> AccessKeyEntry {
        (TenantId(1), Zeroizing::new(text.to_owned()))
    }

    const AT: Instant = Instant(1_000);

    #[test]
    fn what_was_asked_for_too_long_ago_is_not_believed() {
        let cache = ControlCache::default();
        let asked = cache.access_key("a", AT).unwrap_err();
        cache.keep_access_key(asked, "a", &secret("new"), AT);
        assert_eq!(cache.access_key("a", AT).unwrap(), secret("new"));
        assert!(cache.access_key("a", Instant(1_001)).is_err());
    }

    #[test]
    fn an_answer_from_before_a_change_is_not_kept() {
        let cache = ControlCache::default();
        let asked = cache.access_key("a", AT).unwrap_err();
        cache.forget();
        cache.keep_access_key(asked, "a", &secret("old"), AT);
        let asked = cache.access_key("a", AT).expect_err("the answer was overtaken by a change");
        cache.keep_access_key(asked, "a", &secret("new"), AT);
        assert_eq!(cache.access_key("a", AT).unwrap(), secret("new"));
        cache.forget();
        assert!(cache.access_key("a", AT).is_err());
        assert_eq!((cache.hits.get(), cache.misses.get()), (1, 3));
    }

    #[test]
    fn i_o5_entries_are_bounded() {
        let cache = ControlCache::default();
        for number in 0..3 * ENTRIES_MAX {
            let asked = cache.access_key(&number.to_string(), AT).unwrap_err();
            cache.keep_access_key(asked, &number.to_string(), &secret("s"), AT);
        }
        assert!(cache.access_keys.borrow().len() <= ENTRIES_MAX);
    }
}
