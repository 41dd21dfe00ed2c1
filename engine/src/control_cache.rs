//! What a core remembers of the control shard: buckets, and whose access keys are. Every request names both, and asking
//! each time would cost every small request three calls to another core.
//!
//! The control shard has every core forget before it answers a change ([`crate::calls::Calls::forget_everywhere`]), so
//! after the answer no core acts on what was before it. Absence is never remembered. With several nodes this needs a
//! lease: a node that can't be told must have stopped believing by itself.

use crate::message::Bucket;
use kiseki_types::ids::TenantId;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use zeroize::Zeroizing;

/// Entries of either kind (I-O5); when there are more, all of that kind are dropped.
const ENTRIES_MAX: usize = 1024;

/// An access key's owner and secret.
type AccessKeyEntry = (TenantId, Zeroizing<String>);

/// One core's memory of control rows.
#[derive(Default)]
pub struct ControlCache {
    /// How often everything was forgotten: an answer that was asked for before is not kept after.
    forgotten: Cell<u64>,
    buckets: RefCell<BTreeMap<TenantId, BTreeMap<String, Bucket>>>,
    access_keys: RefCell<BTreeMap<String, AccessKeyEntry>>,
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
    pub fn bucket(&self, tenant: TenantId, name: &str) -> Result<Bucket, Asked> {
        let found = self.buckets.borrow().get(&tenant).and_then(|buckets| buckets.get(name)).cloned();
        self.counted(found)
    }

    /// Keeps a bucket, unless something changed since it was asked for.
    pub fn keep_bucket(&self, asked: Asked, tenant: TenantId, name: &str, bucket: &Bucket) {
        if asked.0 != self.forgotten.get() {
            return;
        }
        let mut buckets = self.buckets.borrow_mut();
        if buckets.values().map(BTreeMap::len).sum::<usize>() >= ENTRIES_MAX {
            buckets.clear();
        }
        buckets.entry(tenant).or_default().insert(name.to_owned(), bucket.clone());
    }

    /// An access key, or the ticket to keep the control shard's answer with.
    pub fn access_key(&self, id: &str) -> Result<AccessKeyEntry, Asked> {
        let found = self.access_keys.borrow().get(id).cloned();
        self.counted(found)
    }

    /// Keeps an access key, unless something changed since it was asked for.
    pub fn keep_access_key(&self, asked: Asked, id: &str, entry: &AccessKeyEntry) {
        if asked.0 != self.forgotten.get() {
            return;
        }
        let mut keys = self.access_keys.borrow_mut();
        if keys.len() >= ENTRIES_MAX {
            keys.clear();
        }
        keys.insert(id.to_owned(), entry.clone());
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

    #[test]
    fn an_answer_from_before_a_change_is_not_kept() {
        let cache = ControlCache::default();
        let asked = cache.access_key("a").unwrap_err();
        cache.forget();
        cache.keep_access_key(asked, "a", &secret("old"));
        let asked = cache.access_key("a").expect_err("the answer was overtaken by a change");
        cache.keep_access_key(asked, "a", &secret("new"));
        assert_eq!(cache.access_key("a").unwrap(), secret("new"));
        cache.forget();
        assert!(cache.access_key("a").is_err());
        assert_eq!((cache.hits.get(), cache.misses.get()), (1, 3));
    }

    #[test]
    fn i_o5_entries_are_bounded() {
        let cache = ControlCache::default();
        for number in 0..3 * ENTRIES_MAX {
            let asked = cache.access_key(&number.to_string()).unwrap_err();
            cache.keep_access_key(asked, &number.to_string(), &secret("s"));
        }
        assert!(cache.access_keys.borrow().len() <= ENTRIES_MAX);
    }
}
