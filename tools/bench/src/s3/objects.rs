//! Which objects there are: their keys, what they hold, and which of their versions a reader may find.

use super::content::{Content, ContentId};
use std::collections::BTreeMap;

/// Names and contents of a run's objects. No run touches another's: each has a directory of its own.
#[derive(Clone, Debug)]
pub struct Naming {
    /// In front of every key, with the run's own part.
    pub prefix: String,
    /// Share of objects with common content.
    pub dedup_ratio: f64,
}

/// Tells contents of objects to read from those of written ones.
const READ_KIND: u64 = u64::MAX;

impl Naming {
    /// Below `prefix`, for the run of that seed.
    pub fn new(prefix: &str, seed: u64, dedup_ratio: f64) -> Naming {
        Naming { prefix: format!("{prefix}{seed:016x}/"), dedup_ratio }
    }

    /// Key of an object that is stored before the measurement and read during it.
    pub fn read_key(&self, index: u64) -> String {
        format!("{}r/{index:08}", self.prefix)
    }

    /// What it holds.
    pub fn read_content(&self, content: &Content, index: u64) -> ContentId {
        content.id([READ_KIND, index, 0], self.dedup_ratio)
    }

    /// Key of an object that a client writes.
    pub fn write_key(&self, client: usize, slot: u64) -> String {
        format!("{}w{client}/{slot:08}", self.prefix)
    }

    /// What one version of it holds.
    pub fn write_content(&self, content: &Content, client: usize, slot: u64, version: u32) -> ContentId {
        content.id([client as u64, slot, u64::from(version)], self.dedup_ratio)
    }
}

/// What one client has written: it alone writes these keys, one operation at a time.
#[derive(Clone, Debug)]
pub struct Written {
    client: usize,
    /// After so many keys it begins again with the first; `None` never.
    slots_max: Option<u64>,
    next: u64,
    /// By slot: versions tried, and the last one acknowledged.
    slots: Vec<(u32, Option<u32>)>,
    /// Versions without an acknowledgement may be there all the same, even later on.
    unknown: BTreeMap<u64, Vec<u32>>,
}

impl Written {
    /// Nothing yet.
    pub fn new(client: usize, slots_max: Option<u64>) -> Written {
        Written { client, slots_max, next: 0, slots: Vec::new(), unknown: BTreeMap::new() }
    }

    /// Whose it is.
    pub fn client(&self) -> usize {
        self.client
    }

    /// The slot and version to write next.
    pub fn begin(&mut self) -> (u64, u32) {
        let slot = self.slots_max.map_or(self.next, |max| self.next % max.max(1));
        self.next += 1;
        if self.slots.len() as u64 <= slot {
            self.slots.push((0, None));
        }
        let tried = &mut self.slots[slot as usize].0;
        *tried += 1;
        (slot, *tried - 1)
    }

    /// The version was acknowledged.
    pub fn acknowledge(&mut self, slot: u64, version: u32) {
        self.slots[slot as usize].1 = Some(version);
    }

    /// Nobody knows whether the version was stored.
    pub fn doubt(&mut self, slot: u64, version: u32) {
        self.unknown.entry(slot).or_default().push(version);
    }

    /// Every slot that was tried, and the versions that it may hold; none when it need not be there at all.
    pub fn expected(&self) -> impl Iterator<Item = (u64, Vec<u32>)> {
        self.slots.iter().enumerate().map(|(slot, (_, acknowledged))| {
            let slot = slot as u64;
            let Some(acknowledged) = acknowledged else { return (slot, Vec::new()) };
            let mut versions = vec![*acknowledged];
            versions.extend(self.unknown.get(&slot).into_iter().flatten());
            (slot, versions)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_round_with_new_versions() {
        let mut written = Written::new(0, Some(2));
        let begun: Vec<(u64, u32)> = (0..5).map(|_| written.begin()).collect();
        assert_eq!(begun, [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2)]);
        let mut endless = Written::new(0, None);
        assert_eq!((0..3).map(|_| endless.begin()).collect::<Vec<_>>(), [(0, 0), (1, 0), (2, 0)]);
    }

    #[test]
    fn a_reader_may_find_the_acknowledged_version_or_a_doubtful_one() {
        let mut written = Written::new(0, Some(2));
        for outcome in [Some(true), Some(true), Some(false), Some(false), Some(true)] {
            let (slot, version) = written.begin();
            match outcome {
                Some(true) => written.acknowledge(slot, version),
                _ => written.doubt(slot, version),
            }
        }
        assert_eq!(written.expected().collect::<Vec<_>>(), [(0, vec![2, 1]), (1, vec![0, 1])]);
        let mut failed = Written::new(0, None);
        let (slot, version) = failed.begin();
        failed.doubt(slot, version);
        assert_eq!(failed.expected().collect::<Vec<_>>(), [(0, vec![])]);
    }
}
