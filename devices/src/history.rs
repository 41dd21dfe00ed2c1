//! What the records of a lane's journal add up to: the state of every block that they touch.

use crate::lane::{LaneRecord, Recovered};
use crate::layout::DeviceLayout;
use kiseki_types::fragment::StoredFragment;
use kiseki_types::journal::{ReplayedRecord, Sequence};
use kiseki_types::{DeviceId, LaneId};
use std::collections::BTreeMap;

/// A record that makes no sense: a journal is input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BrokenRecord {
    pub sequence: Sequence,
    pub reason: String,
}

/// Records after the folded ones, checked against the layout, and whether each was flushed.
pub(crate) fn decode_records(
    device: DeviceId,
    layout: &DeviceLayout,
    lane: LaneId,
    folded: Sequence,
    records: &[ReplayedRecord],
) -> Result<Vec<(bool, LaneRecord)>, BrokenRecord> {
    let mut decoded = Vec::new();
    for record in records.iter().filter(|record| record.sequence > folded) {
        let broken = |reason: String| BrokenRecord { sequence: record.sequence, reason };
        let found = LaneRecord::decode(device, &record.bytes).map_err(|error| broken(error.to_string()))?;
        let zone = layout.zone_of(found.extent().start);
        if zone.is_none_or(|zone| layout.lane_of_zone(zone) != lane) {
            return Err(broken(format!("extent {} is not the lane's", found.extent())));
        }
        decoded.push((record.flushed, found));
    }
    Ok(decoded)
}

/// What a journal's records add up to.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    /// Blocks that records touched: first -> end, merged.
    touched: BTreeMap<u64, u64>,
    /// Fragments that are there at the end, by first block, and whether their record was flushed.
    live: BTreeMap<u64, (bool, StoredFragment)>,
    /// What index lanes must hear of.
    recovered: Vec<Recovered>,
}

impl History {
    pub fn of(records: Vec<(bool, LaneRecord)>) -> History {
        let mut history = History::default();
        for (is_flushed, record) in records {
            let extent = record.extent();
            history.touch(extent.start.0, extent.end().0);
            match record {
                LaneRecord::Allocate(fragment) => {
                    history.live.insert(extent.start.0, (is_flushed, fragment));
                }
                LaneRecord::Release { key, extent } => {
                    history.live.remove(&extent.start.0);
                    history.recovered.push(Recovered::Remove { key, extent });
                }
            }
        }
        history
    }

    fn touch(&mut self, mut start: u64, mut end: u64) {
        while let Some((at, until)) = self.touching(start, end) {
            self.touched.remove(&at);
            (start, end) = (start.min(at), end.max(until));
        }
        self.touched.insert(start, end);
    }

    /// A touched run that overlaps the blocks `start..end`.
    pub fn touching(&self, start: u64, end: u64) -> Option<(u64, u64)> {
        let before = self.touched.range(..end).next_back().map(|(at, until)| (*at, *until));
        before.filter(|(_, until)| *until > start)
    }

    /// Fragments that are there at the end.
    pub fn live(&self) -> impl Iterator<Item = &StoredFragment> {
        self.live.values().map(|(_, fragment)| fragment)
    }

    /// Those of them whose record was not flushed: they count only if the device holds them.
    pub fn unproven(&self) -> Vec<StoredFragment> {
        self.live.values().filter(|(is_flushed, _)| !is_flushed).map(|(_, fragment)| fragment.clone()).collect()
    }

    /// Drops the live fragments that start at one of `starts`: they were never acknowledged.
    pub fn disbelieve(&mut self, starts: &[u64]) {
        for start in starts {
            self.live.remove(start);
        }
    }

    /// What index lanes must hear of, in order: removals, then what is live.
    pub fn recovered(&self) -> Vec<Recovered> {
        let inserts = self.live().cloned().map(Recovered::Insert);
        self.recovered.iter().cloned().chain(inserts).collect()
    }
}
