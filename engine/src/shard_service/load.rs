//! What a shard has to do and to keep: which keys are asked for, how often, and how many objects there are.
//! Nothing of it has to be right; it decides when a shard is split, and where.

use super::ShardService;
use crate::api::StoreError;
use crate::composition::Entry;
use crate::leader::row_damaged;
use crate::machine::ROWS_FILE;
use crate::shard_tables::ENTRIES;
use kiseki_types::ids::NamespaceId;
use kiseki_types::runtime::Instant;
use kiseki_types::table::{Direction, Scan, prefix_end};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::time::Duration;

/// Keys that are remembered of those that were asked for last.
const SAMPLES_MAX: usize = 1024;

/// Fewer say nothing of where a shard is to be split.
const SAMPLES_MIN: usize = 64;

/// Entries that are counted at once, and how long before the next ones are.
const COUNTED_PER_STEP: usize = 256;

/// Times that so many are counted in one round until all have been once.
const STEPS_AT_FIRST: usize = 32;

const STEP_INTERVAL: Duration = Duration::from_millis(200);

/// Between two counts of everything.
const COUNT_INTERVAL: Duration = Duration::from_secs(900);

/// Rates are those of so long.
const RATE_SPAN: Duration = Duration::from_secs(60);

/// Requests in the last minute.
#[derive(Default)]
struct Rate {
    /// How many there were at some times of the last minute.
    marks: RefCell<VecDeque<(Instant, u64)>>,
    total: Cell<u64>,
}

impl Rate {
    fn add(&self) {
        self.total.set(self.total.get() + 1);
    }

    fn mark(&self, now: Instant) {
        let mut marks = self.marks.borrow_mut();
        while marks.front().is_some_and(|(at, _)| now.since(*at) > RATE_SPAN) {
            marks.pop_front();
        }
        marks.push_back((now, self.total.get()));
    }

    fn per_minute(&self, now: Instant) -> u64 {
        let marks = self.marks.borrow();
        let Some((at, before)) = marks.front() else { return 0 };
        let span = now.since(*at).max(Duration::from_secs(1));
        let count = self.total.get() - before;
        (count as f64 * RATE_SPAN.as_secs_f64() / span.as_secs_f64()) as u64
    }
}

/// Objects and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) keys: i64,
    pub(super) bytes: i64,
}

/// What is known of a shard's load.
#[derive(Default)]
pub(super) struct Load {
    samples: RefCell<VecDeque<(NamespaceId, String)>>,
    writes: Rate,
    reads: Rate,
    /// As counted last, and changed since.
    size: Cell<Size>,
    is_counted: Cell<bool>,
    /// The count that goes on.
    counting: Cell<Size>,
    cursor: RefCell<Option<Vec<u8>>>,
    counted_at: Cell<Option<Instant>>,
    stepped_at: Cell<Option<Instant>>,
}

impl Load {
    pub(super) fn read(&self, namespace: NamespaceId, key: &str) {
        self.reads.add();
        self.sample(namespace, key);
    }

    pub(super) fn wrote(&self, namespace: NamespaceId, key: &str) {
        self.writes.add();
        self.sample(namespace, key);
    }

    fn sample(&self, namespace: NamespaceId, key: &str) {
        let mut samples = self.samples.borrow_mut();
        if samples.len() >= SAMPLES_MAX {
            samples.pop_front();
        }
        samples.push_back((namespace, key.to_owned()));
    }

    /// Something came or went.
    pub(super) fn change(&self, keys: i64, bytes: i64) {
        let Size { keys: of, bytes: len } = self.size.get();
        self.size.set(Size { keys: of + keys, bytes: len + bytes });
    }

    /// Objects that are here for sure, and whether all have been counted.
    pub(super) fn objects(&self) -> (u64, bool) {
        let keys = self.size.get().keys.max(self.counting.get().keys).max(0);
        (keys as u64, self.is_counted.get())
    }

    /// The size, and whether all has been counted.
    pub(super) fn size(&self) -> (Size, bool) {
        (self.size.get(), self.is_counted.get())
    }

    /// Writes and reads in a minute.
    pub(super) fn rates(&self, now: Instant) -> (u64, u64) {
        (self.writes.per_minute(now), self.reads.per_minute(now))
    }

    /// Where half of what was asked for lies on either side: in the namespace that is wanted, or in the one that is asked for
    /// most. When several namespaces are, and none of them for two thirds of it, that is where one begins.
    pub(super) fn middle(&self, namespace: Option<NamespaceId>) -> Option<(NamespaceId, String)> {
        let samples = self.samples.borrow();
        let mut by_namespace = BTreeMap::<NamespaceId, Vec<&str>>::new();
        for (of, key) in samples.iter().filter(|(of, _)| namespace.is_none_or(|wanted| wanted == *of)) {
            by_namespace.entry(*of).or_default().push(key);
        }
        let all: usize = by_namespace.values().map(Vec::len).sum();
        let (most, mut keys) = by_namespace.into_iter().max_by_key(|(_, keys)| keys.len())?;
        if all < SAMPLES_MIN {
            return None;
        }
        if namespace.is_none() && keys.len() * 3 < all * 2 {
            return Some((most, String::new()));
        }
        keys.sort_unstable();
        let middle = keys.len() / 2;
        // The first key that is asked for less often than all: what is asked for most may be the first key.
        let at = keys[middle..].iter().find(|key| **key > keys[0])?;
        let before = keys[..keys.partition_point(|key| key < at)].last()?;
        Some((most, separator(before, at)))
    }
}

/// The shortest string that lies behind `before` and not behind `at`.
pub(super) fn separator(before: &str, at: &str) -> String {
    let common = before.chars().zip(at.chars()).take_while(|(left, right)| left == right).count();
    at.chars().take(common + 1).collect()
}

impl ShardService {
    /// Goes on with the count of what is here.
    pub(super) async fn count_on(&self) -> Result<(), StoreError> {
        let (load, now) = (&self.load, self.leader.ports().now());
        if load.stepped_at.get().is_some_and(|at| now.since(at) < STEP_INTERVAL) {
            return Ok(()); // rounds follow one another while there is much to do
        }
        load.stepped_at.set(Some(now));
        load.writes.mark(now);
        load.reads.mark(now);
        let is_fresh = load.counted_at.get().is_some_and(|at| now.since(at) < COUNT_INTERVAL);
        let cursor = load.cursor.borrow().clone();
        if is_fresh && cursor.is_none() {
            return Ok(());
        }
        // The first count of a term is waited for.
        let steps = if load.is_counted.get() { 1 } else { STEPS_AT_FIRST };
        for _ in 0..steps {
            if !self.count_some(now).await? {
                break;
            }
            self.leader.ports().yield_now().await;
        }
        Ok(())
    }

    /// Counts a few; whether there are more.
    async fn count_some(&self, now: Instant) -> Result<bool, StoreError> {
        let load = &self.load;
        let cursor = load.cursor.borrow().clone();
        let from = cursor.map_or(Bound::Unbounded, Bound::Excluded);
        let scan = Scan {
            file: ROWS_FILE,
            table: ENTRIES,
            from,
            to: prefix_end(&[]),
            limit: COUNTED_PER_STEP,
            direction: Direction::Forward,
        };
        let rows = self.leader.scan(scan).await?;
        let mut counting = load.counting.get();
        for (_, value) in &rows {
            if let Entry::File(file) = Entry::decode(value).map_err(row_damaged)? {
                counting.keys += 1;
                counting.bytes += file.len_bytes as i64;
            }
        }
        let next = rows.last().filter(|_| rows.len() == COUNTED_PER_STEP).map(|(key, _)| key.clone());
        if next.is_none() {
            load.size.set(std::mem::take(&mut counting));
            load.is_counted.set(true);
            load.counted_at.set(Some(now));
        }
        load.counting.set(counting);
        let is_more = next.is_some();
        load.cursor.replace(next);
        Ok(is_more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_is_split_where_half_of_what_is_asked_for_lies_on_either_side() {
        let load = Load::default();
        assert_eq!(load.middle(None), None, "nothing is known");
        for number in 0..100 {
            load.read(NamespaceId(1), &format!("photos/{number:02}.jpg"));
        }
        assert_eq!(load.middle(None), Some((NamespaceId(1), "photos/5".to_owned())));
        for number in 0..80 {
            load.wrote(NamespaceId(2), &format!("{number:02}"));
        }
        assert_eq!(load.middle(None), Some((NamespaceId(1), String::new())), "a whole namespace goes");
        assert_eq!(load.middle(Some(NamespaceId(2))), Some((NamespaceId(2), "4".to_owned())));
        assert_eq!(load.middle(Some(NamespaceId(3))), None);
    }

    #[test]
    fn one_hot_key_is_not_parted_from_itself() {
        let load = Load::default();
        (0..200).for_each(|_| load.wrote(NamespaceId(1), "hot"));
        assert_eq!(load.middle(None), None);
        (0..40).for_each(|_| load.wrote(NamespaceId(1), "hotter"));
        assert_eq!(load.middle(None), Some((NamespaceId(1), "hott".to_owned())));
    }

    #[test]
    fn separators_are_short_and_lie_between() {
        for (before, at, short) in [("a", "b", "b"), ("ab1", "ab2x", "ab2"), ("a", "a\0", "a\0"), ("é1", "é2", "é2")]
        {
            assert_eq!(separator(before, at), short);
            assert!(before < short && short <= at);
        }
    }

    #[test]
    fn rates_are_of_the_last_minute() {
        let (rate, second) = (Rate::default(), |at: u64| Instant(0) + Duration::from_secs(at));
        for at in 0..120 {
            rate.mark(second(at));
            (0..5).for_each(|_| rate.add());
        }
        let found = rate.per_minute(second(120));
        assert!((290..=310).contains(&found), "{found}");
        rate.mark(second(400));
        assert_eq!(rate.per_minute(second(430)), 0);
    }
}
