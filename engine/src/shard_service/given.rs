//! What a shard has given away, and what it is about to: who may decide about a key, and whom others are sent to (I-L6).
//!
//! Keys leave with one delta of the giver, which removes their rows and says where they lie from then on. Until it commits the giver
//! holds them, from then on the child does; they never come back, so whoever has an old map is sent on and finds them.
//! While a handful of keys is handed over nobody decides about them here; they are read as before.

use super::{ShardService, namespace_latch};
use crate::api::StoreError;
use crate::key_ranges::KeyRange;
use crate::latch::{Hold, LatchGuard};
use crate::leader::row_damaged;
use crate::message::{Clip, ObjectPath};
use crate::shard_tables::{GIVEN, decode_given};
use kiseki_types::ids::{NamespaceId, ShardId};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Held alone while keys change hands; who waits for them waits for it.
const HANDOVER: &[u8] = b"handover";

/// Ranges that one shard may have given away (I-O5).
const GIVEN_MAX: usize = 100_000;

/// Keys that are being handed over.
struct Leaving {
    range: KeyRange,
    /// Whether the delta that lets them go may be on its way.
    is_committing: bool,
    /// Whether it is not known, and will not be in this term, what became of that.
    is_unknown: bool,
}

/// What was given away, as the tables of this term say, and what is being.
#[derive(Default)]
pub(super) struct Given {
    ranges: RefCell<BTreeMap<(NamespaceId, String), KeyRange>>,
    leaving: RefCell<Option<Leaving>>,
}

impl Given {
    /// The range of a key, if it was given away.
    fn of(&self, namespace: NamespaceId, key: &str) -> Option<KeyRange> {
        let ranges = self.ranges.borrow();
        if ranges.is_empty() {
            return None;
        }
        let (_, range) = ranges.range(..=(namespace, key.to_owned())).next_back()?;
        range.contains(namespace, key).then(|| range.clone())
    }

    /// A range that has a key of these.
    fn among(&self, namespace: NamespaceId, clip: &Clip) -> Option<KeyRange> {
        let ranges = self.ranges.borrow();
        if ranges.is_empty() {
            return None;
        }
        let found = ranges.range((namespace, String::new())..).take_while(|((of, _), _)| *of == namespace);
        let mut found = found.map(|(_, range)| range);
        found.find(|range| range.overlaps(namespace, &clip.from, clip.until.as_deref())).cloned()
    }

    /// All of a namespace.
    pub(super) fn all_of(&self, namespace: NamespaceId) -> Vec<KeyRange> {
        let ranges = self.ranges.borrow();
        let found = ranges.range((namespace, String::new())..).take_while(|((of, _), _)| *of == namespace);
        found.map(|(_, range)| range.clone()).collect()
    }

    /// The range that begins with a key and was given to a shard.
    pub(super) fn to(&self, namespace: NamespaceId, start: &str, child: ShardId) -> Option<KeyRange> {
        let ranges = self.ranges.borrow();
        ranges.get(&(namespace, start.to_owned())).filter(|range| range.shard == child).cloned()
    }

    /// Where the first range behind a key begins: what lies between is still here.
    pub(super) fn next_start(&self, namespace: NamespaceId, key: &str) -> Option<String> {
        let ranges = self.ranges.borrow();
        let (_, range) = ranges.range((namespace, key.to_owned())..).find(|((_, start), _)| **start != *key)?;
        (range.namespace == namespace).then(|| range.start.clone())
    }

    /// How many.
    pub(super) fn count(&self) -> usize {
        self.ranges.borrow().len()
    }

    fn is_leaving(&self, namespace: NamespaceId, key: &str) -> bool {
        self.leaving.borrow().as_ref().is_some_and(|leaving| leaving.range.contains(namespace, key))
    }

    /// What became of the last handover is known, and is in the ranges.
    pub(super) fn settled(&self) {
        self.leaving.replace(None);
    }

    /// Whether it is not known what became of the last handover.
    pub(super) fn is_unknown(&self) -> bool {
        self.leaving.borrow().as_ref().is_some_and(|leaving| leaving.is_unknown)
    }
}

/// Keys that nobody decides about while this is held. Dropped before it ended it leaves them so until it is known what became of them.
pub(super) struct Handing {
    service: Rc<ShardService>,
    is_over: bool,
    _latch: LatchGuard,
}

impl Handing {
    /// From here on it may be that the keys are gone.
    pub(super) fn commits(&self) {
        if let Some(leaving) = self.service.given.leaving.borrow_mut().as_mut() {
            leaving.is_committing = true;
        }
    }

    /// They are gone; `given` is all that was handed over of their range so far.
    pub(super) fn gone(mut self, given: KeyRange) {
        self.is_over = true;
        let key = (given.namespace, given.start.clone());
        self.service.given.ranges.borrow_mut().insert(key, given);
        self.service.given.leaving.replace(None);
    }

    /// They stay; nothing was proposed that would let them go.
    pub(super) fn stay(mut self) {
        self.is_over = true;
        self.service.given.leaving.replace(None);
    }
}

impl Drop for Handing {
    fn drop(&mut self) {
        if let Some(leaving) = self.service.given.leaving.borrow_mut().as_mut().filter(|_| !self.is_over) {
            leaving.is_unknown = true;
        }
    }
}

fn moved(range: KeyRange) -> StoreError {
    StoreError::Moved(Box::new(range))
}

fn unknown() -> StoreError {
    let reason = "the keys are changing hands while the leader changes; try again".to_owned();
    StoreError::Unavailable { reason }
}

impl ShardService {
    /// Fails while it is not known whether keys were given away.
    pub(super) fn check_known(&self) -> Result<(), StoreError> {
        if self.given.is_unknown() { Err(unknown()) } else { Ok(()) }
    }

    /// Reads what was given away.
    pub(super) async fn load_given(&self) -> Result<(), StoreError> {
        for (_, row) in self.leader.rows(GIVEN, &[], GIVEN_MAX).await? {
            let range = decode_given(&row).map_err(row_damaged)?;
            self.given.ranges.borrow_mut().insert((range.namespace, range.start.clone()), range);
        }
        Ok(())
    }

    /// Where whoever decides about a key begins: the namespace's latch, shared, once the key is known to be here and to stay for as
    /// long as the latch is held.
    pub(super) async fn enter(&self, path: &ObjectPath) -> Result<LatchGuard, StoreError> {
        loop {
            let guard = self.leader.latches.hold(namespace_latch(path.root), Hold::Shared).await;
            self.check_here(path)?;
            if !self.given.is_leaving(path.namespace, &path.key) {
                return Ok(guard);
            }
            drop(guard);
            self.until_handed_over().await?;
        }
    }

    /// Whether a key is here, for whoever reads.
    pub(super) fn check_here(&self, path: &ObjectPath) -> Result<(), StoreError> {
        match self.given.of(path.namespace, &path.key) {
            Some(range) => Err(moved(range)),
            None => Ok(()),
        }
    }

    /// The same of a run of keys.
    pub(super) fn check_all_here(&self, namespace: NamespaceId, clip: &Clip) -> Result<(), StoreError> {
        match self.given.among(namespace, clip) {
            Some(range) => Err(moved(range)),
            None => Ok(()),
        }
    }

    /// Whether what was read of these keys holds: they were here all the while. False: read again.
    pub(super) async fn were_here(&self, namespace: NamespaceId, clip: &Clip) -> Result<bool, StoreError> {
        self.check_all_here(namespace, clip)?;
        let may_have_left = self.given.leaving.borrow().as_ref().is_some_and(|leaving| {
            leaving.is_committing && leaving.range.overlaps(namespace, &clip.from, clip.until.as_deref())
        });
        if may_have_left {
            self.until_handed_over().await?;
        }
        Ok(!may_have_left)
    }

    async fn until_handed_over(&self) -> Result<(), StoreError> {
        if self.given.is_unknown() {
            return Err(unknown());
        }
        drop(self.leader.latches.hold(HANDOVER.to_vec(), Hold::Shared).await);
        match self.given.is_unknown() {
            true => Err(unknown()),
            false => Ok(()),
        }
    }

    /// From here on nobody decides about these keys, and what was decided about them is applied.
    pub(super) async fn hand(self: &Rc<Self>, root: kiseki_types::ids::DirId, range: KeyRange) -> Handing {
        let latch = self.leader.latches.hold(HANDOVER.to_vec(), Hold::Exclusive).await;
        self.given.leaving.replace(Some(Leaving { range, is_committing: false, is_unknown: false }));
        let handing = Handing { service: self.clone(), is_over: false, _latch: latch };
        drop(self.leader.latches.hold(namespace_latch(root), Hold::Exclusive).await);
        handing
    }
}

impl Clip {
    /// One key.
    pub(super) fn of_key(key: &str) -> Clip {
        Clip { from: key.to_owned(), until: Some(format!("{key}\0")) }
    }
}
