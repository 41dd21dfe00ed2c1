//! Which shards hold which keys of a bucket, once parts of it have moved out of its first shard.

use crate::control_rows::NAME_LEN_BYTES_MAX;
use kiseki_types::codec::{CodecError, Reader, Writer};
use kiseki_types::ids::{NamespaceId, ShardId};

/// Ranges of one bucket that are kept (I-O5); one that has them is split no further.
pub const KEY_RANGES_MAX: usize = 256;

/// Longest key that bounds a range.
const BOUND_LEN_BYTES_MAX: usize = NAME_LEN_BYTES_MAX;

/// A run of a namespace's keys, and the shard that holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    /// The namespace.
    pub namespace: NamespaceId,
    /// The first key.
    pub start: String,
    /// The first key behind it; `None`: all that follow.
    pub end: Option<String>,
    /// Who holds it.
    pub shard: ShardId,
}

/// Whether a key lies below the end of a range.
#[must_use]
pub fn is_below(key: &str, end: Option<&str>) -> bool {
    end.is_none_or(|end| key < end)
}

/// The lower of two ends.
#[must_use]
pub fn lower_end(left: Option<String>, right: Option<String>) -> Option<String> {
    match (left, right) {
        (Some(left), Some(right)) => Some(left.min(right)),
        (left, right) => left.or(right),
    }
}

impl KeyRange {
    /// Whether a key lies in it.
    #[must_use]
    pub fn contains(&self, namespace: NamespaceId, key: &str) -> bool {
        self.namespace == namespace && *key >= *self.start && is_below(key, self.end.as_deref())
    }

    /// Whether it has a key of `from..until`.
    #[must_use]
    pub fn overlaps(&self, namespace: NamespaceId, from: &str, until: Option<&str>) -> bool {
        self.namespace == namespace && is_below(from, self.end.as_deref()) && is_below(&self.start, until)
    }

    /// Appends it.
    pub fn encode(&self, writer: &mut Writer) {
        writer.u64(self.namespace.0).str(&self.start);
        encode_end(writer, self.end.as_deref());
        writer.u64(self.shard.0);
    }

    /// Reads it.
    pub fn decode(reader: &mut Reader<'_>) -> Result<KeyRange, CodecError> {
        let namespace = NamespaceId(reader.u64()?);
        let start = reader.str(BOUND_LEN_BYTES_MAX)?.to_owned();
        let end = decode_end(reader)?;
        Ok(KeyRange { namespace, start, end, shard: ShardId(reader.u64()?) })
    }
}

/// Appends the end of a range.
pub fn encode_end(writer: &mut Writer, end: Option<&str>) {
    match end {
        Some(end) => writer.u8(1).str(end),
        None => writer.u8(0),
    };
}

/// Reads the end of a range.
pub fn decode_end(reader: &mut Reader<'_>) -> Result<Option<String>, CodecError> {
    match reader.u8()? {
        0 => Ok(None),
        1 => Ok(Some(reader.str(BOUND_LEN_BYTES_MAX)?.to_owned())),
        other => Err(reader.unknown(u64::from(other))),
    }
}

/// A run of keys that one shard holds.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Run {
    start: String,
    end: Option<String>,
    shard: ShardId,
}

/// The runs of one bucket's keys that its first shard does not hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyRanges {
    /// In order, none overlaps another.
    runs: Vec<Run>,
}

/// Whom to ask for a key, and up to where the same answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The shard.
    pub shard: ShardId,
    /// The first key that it does not hold; `None`: it holds all that follow.
    pub until: Option<String>,
}

impl KeyRanges {
    /// Whether the first shard holds everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Whether so many further splits have room.
    #[must_use]
    pub fn has_room_for(&self, splits: usize) -> bool {
        self.runs.len() + 2 * splits <= KEY_RANGES_MAX
    }

    /// Who holds a key.
    ///
    /// - `first`: who holds what no range names.
    #[must_use]
    pub fn holder(&self, key: &str, first: ShardId) -> Holder {
        let next = self.runs.partition_point(|run| *run.start <= *key);
        if let Some(run) = next.checked_sub(1).map(|at| &self.runs[at])
            && is_below(key, run.end.as_deref())
        {
            return Holder { shard: run.shard, until: run.end.clone() };
        }
        Holder { shard: first, until: self.runs.get(next).map(|run| run.start.clone()) }
    }

    /// From now on a range is held by its shard, whoever held parts of it before. False when there are too many ranges: nothing
    /// is taken up then, and whoever is asked says again where its keys lie.
    pub fn learn(&mut self, range: &KeyRange) -> bool {
        let mut runs = Vec::with_capacity(self.runs.len() + 2);
        for run in &self.runs {
            if run.start < range.start {
                let end = lower_end(run.end.clone(), Some(range.start.clone()));
                runs.push(Run { end, ..run.clone() });
            }
            if let Some(end) = &range.end
                && is_below(end, run.end.as_deref())
            {
                runs.push(Run { start: run.start.clone().max(end.clone()), ..run.clone() });
            }
        }
        runs.push(Run { start: range.start.clone(), end: range.end.clone(), shard: range.shard });
        runs.sort_by(|left, right| left.start.cmp(&right.start));
        if runs.len() > KEY_RANGES_MAX {
            return false;
        }
        self.runs = runs;
        true
    }

    /// Appends them.
    pub fn encode(&self, writer: &mut Writer) {
        writer.u32(u32::try_from(self.runs.len()).expect("bounded by KEY_RANGES_MAX"));
        for run in &self.runs {
            writer.str(&run.start);
            encode_end(writer, run.end.as_deref());
            writer.u64(run.shard.0);
        }
    }

    /// Reads them; what is out of order is refused.
    pub fn decode(reader: &mut Reader<'_>) -> Result<KeyRanges, CodecError> {
        let count = reader.count(KEY_RANGES_MAX)?;
        let mut runs: Vec<Run> = Vec::with_capacity(count);
        for _ in 0..count {
            let start = reader.str(BOUND_LEN_BYTES_MAX)?.to_owned();
            let end = decode_end(reader)?;
            let run = Run { start, end, shard: ShardId(reader.u64()?) };
            let follows = runs.last().is_none_or(|last| last.end.as_deref().is_some_and(|end| *end <= *run.start));
            if !follows || !is_below(&run.start, run.end.as_deref()) {
                return Err(reader.unknown(run.shard.0));
            }
            runs.push(run);
        }
        Ok(KeyRanges { runs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: ShardId = ShardId(1024);

    fn range(start: &str, end: Option<&str>, shard: u64) -> KeyRange {
        let (start, end) = (start.to_owned(), end.map(str::to_owned));
        KeyRange { namespace: NamespaceId(1), start, end, shard: ShardId(shard) }
    }

    #[test]
    fn what_is_learned_last_holds_and_the_rest_stays() {
        let mut ranges = KeyRanges::default();
        let mut model = std::collections::BTreeMap::new();
        let keys: Vec<String> = (b'a'..=b'z').map(|byte| char::from(byte).to_string()).collect();
        let steps = [
            range("m", Some("p"), 7),
            range("m", Some("s"), 7),
            range("m", None, 7),
            range("t", None, 8),
            range("c", Some("e"), 9),
            range("d", Some("u"), 10),
            range("", Some("b"), 11),
        ];
        for step in &steps {
            assert!(ranges.learn(step));
            for key in keys.iter().filter(|key| step.contains(NamespaceId(1), key)) {
                model.insert(key.clone(), step.shard);
            }
            for (at, key) in keys.iter().enumerate() {
                let holder = ranges.holder(key, FIRST);
                assert_eq!(holder.shard, model.get(key).copied().unwrap_or(FIRST), "{key} after {step:?}");
                // The same shard answers for everything up to the end that it gives.
                for later in keys[at..].iter().filter(|later| is_below(later, holder.until.as_deref())) {
                    assert_eq!(ranges.holder(later, FIRST).shard, holder.shard, "{key}..{later}");
                }
            }
            let mut writer = Writer::new();
            ranges.encode(&mut writer);
            let bytes = writer.finish();
            assert_eq!(KeyRanges::decode(&mut Reader::new("ranges", &bytes)).unwrap(), ranges);
        }
    }

    #[test]
    fn ranges_are_bounded_and_out_of_order_they_are_refused() {
        let mut ranges = KeyRanges::default();
        for number in 0..KEY_RANGES_MAX {
            let (start, end) = (format!("{number:05}"), format!("{number:05}a"));
            assert!(ranges.learn(&range(&start, Some(&end), 7)), "I-O5");
        }
        let before = ranges.clone();
        assert!(!ranges.learn(&range("x", None, 7)), "I-O5");
        assert_eq!(ranges, before);
        for (first, second) in
            [(range("b", Some("c"), 1), range("a", None, 2)), (range("b", None, 1), range("c", None, 2))]
        {
            let mut writer = Writer::new();
            writer.u32(2);
            for run in [first, second] {
                writer.str(&run.start);
                encode_end(&mut writer, run.end.as_deref());
                writer.u64(run.shard.0);
            }
            assert!(KeyRanges::decode(&mut Reader::new("ranges", &writer.finish())).is_err());
        }
    }
}
