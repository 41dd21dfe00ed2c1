//! What is applied but not yet in the table files: one layer that takes writes and at most one that is being folded.

use kiseki_types::table::{Direction, Row, Scan, TableId, TableWrite};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

/// Memory that a row costs beside its bytes: tree nodes and two vectors, about.
const ROW_OVERHEAD_BYTES: usize = 96;

/// Changed rows of one table: the value, or `None` for a removed row.
pub(crate) type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;
/// Changed rows of one file.
pub(crate) type FileChanges = BTreeMap<TableId, Changes>;
/// One change, owned.
pub(crate) type Change = (Vec<u8>, Option<Vec<u8>>);

/// What a commit states beside its rows.
#[derive(Debug, Default)]
pub(crate) struct Mark {
    /// Position of the last apply in it.
    pub position: u64,
    /// Changed meta rows.
    pub meta: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// The changes between two positions, of all files of a set.
#[derive(Debug)]
pub(crate) struct Layer {
    /// Where it ends.
    pub mark: Mark,
    /// Changed rows, by file.
    pub files: Vec<FileChanges>,
    /// Whether anything was applied, be it without a row.
    pub touched: bool,
    rows: usize,
    bytes: usize,
}

impl Layer {
    fn new(file_count: usize, position: u64) -> Layer {
        let mark = Mark { position, meta: BTreeMap::new() };
        Layer { mark, files: vec![FileChanges::new(); file_count], touched: false, rows: 0, bytes: 0 }
    }

    /// Changed rows in it.
    pub fn rows(&self) -> usize {
        self.rows
    }

    fn put(&mut self, write: TableWrite) {
        let file = self.files.get_mut(usize::from(write.file)).expect("a write names a file of its set");
        let (key_bytes, value_bytes) = (write.key.len(), write.value.as_ref().map_or(0, Vec::len));
        match file.entry(write.table).or_default().insert(write.key, write.value) {
            Some(old) => self.bytes = self.bytes + value_bytes - old.map_or(0, |old| old.len()),
            None => {
                self.rows += 1;
                self.bytes += ROW_OVERHEAD_BYTES + key_bytes + value_bytes;
            }
        }
    }
}

/// The part of the overlay that one scan needs.
#[derive(Debug)]
pub(crate) struct OverlayPart {
    /// Changes within the bounds, in the scan's order, newest version of each key.
    pub changes: Vec<Change>,
    /// Lower bound, narrowed to what can still be in the answer.
    pub from: Bound<Vec<u8>>,
    /// Upper bound, likewise.
    pub to: Bound<Vec<u8>>,
}

/// The layers of a set.
#[derive(Debug)]
pub(crate) struct Overlay {
    active: Layer,
    frozen: Option<Arc<Layer>>,
}

impl Overlay {
    /// Nothing applied beyond `position`.
    pub fn new(file_count: usize, position: u64) -> Overlay {
        Overlay { active: Layer::new(file_count, position), frozen: None }
    }

    /// Applies writes, visible at once.
    pub fn apply(&mut self, position: u64, writes: Vec<TableWrite>, meta: Vec<Row>) {
        debug_assert!(position >= self.active.mark.position);
        self.active.mark.position = position;
        self.active.touched = true;
        for write in writes {
            self.active.put(write);
        }
        for (key, value) in meta {
            match self.active.mark.meta.get_mut(&key) {
                Some(old) => *old = value,
                None => drop(self.active.mark.meta.insert(key, value)),
            }
        }
    }

    /// Whether the active layer has anything to fold.
    pub fn touched(&self) -> bool {
        self.active.touched
    }

    /// Whether a layer is frozen.
    pub fn is_being_folded(&self) -> bool {
        self.frozen.is_some()
    }

    /// Rows of the active layer.
    pub fn active_rows(&self) -> usize {
        self.active.rows
    }

    /// Bytes of the active layer.
    pub fn active_bytes(&self) -> usize {
        self.active.bytes
    }

    /// Rows of all layers.
    pub fn rows(&self) -> usize {
        self.active.rows + self.frozen.as_ref().map_or(0, |layer| layer.rows)
    }

    /// Bytes of all layers, about.
    pub fn bytes(&self) -> usize {
        self.active.bytes + self.frozen.as_ref().map_or(0, |layer| layer.bytes)
    }

    /// Turns the active layer into the frozen one and hands it out for the fold.
    pub fn freeze(&mut self) -> Arc<Layer> {
        assert!(self.frozen.is_none(), "one layer is folded at a time");
        let next = Layer::new(self.active.files.len(), self.active.mark.position);
        let frozen = Arc::new(std::mem::replace(&mut self.active, next));
        self.frozen = Some(Arc::clone(&frozen));
        frozen
    }

    /// Drops the frozen layer: its rows are in the files.
    pub fn drop_frozen(&mut self) {
        assert!(self.frozen.take().is_some(), "only a frozen layer is folded");
    }

    /// The newest change of a row, if the overlay has one.
    pub fn lookup(&self, file: u8, table: TableId, key: &[u8]) -> Option<&Option<Vec<u8>>> {
        let active = self.active.files[usize::from(file)].get(&table).and_then(|changes| changes.get(key));
        active.or_else(|| self.frozen.as_ref()?.files[usize::from(file)].get(&table)?.get(key))
    }

    /// What `scan` needs of the overlay. The bounds must not be inverted.
    ///
    /// Once `limit` present rows are found, nothing behind the last of them can be in the answer, so the part holds at
    /// most `limit` rows and the removals between them.
    pub fn part(&self, scan: &Scan) -> OverlayPart {
        let file = usize::from(scan.file);
        let bounds = (scan.from.as_ref().map(Vec::as_slice), scan.to.as_ref().map(Vec::as_slice));
        let empty = Changes::new();
        let active = self.active.files[file].get(&scan.table).unwrap_or(&empty).range::<[u8], _>(bounds);
        let frozen_changes = self.frozen.as_ref().and_then(|layer| layer.files[file].get(&scan.table));
        let frozen = frozen_changes.unwrap_or(&empty).range::<[u8], _>(bounds);
        let mut part = OverlayPart { changes: Vec::new(), from: scan.from.clone(), to: scan.to.clone() };
        let last = match scan.direction {
            Direction::Forward => {
                collect_newest(active, frozen, |one, other| one < other, scan.limit, &mut part.changes)
            }
            Direction::Backward => {
                collect_newest(active.rev(), frozen.rev(), |one, other| one > other, scan.limit, &mut part.changes)
            }
        };
        if let Some(last) = last {
            let end = Bound::Included(last);
            match scan.direction {
                Direction::Forward => part.to = end,
                Direction::Backward => part.from = end,
            }
        }
        part
    }
}

/// Merges two layers in order; `before` says which key comes first. Ends with the key of the `limit`-th present row.
fn collect_newest<'a>(
    newer: impl Iterator<Item = (&'a Vec<u8>, &'a Option<Vec<u8>>)>,
    older: impl Iterator<Item = (&'a Vec<u8>, &'a Option<Vec<u8>>)>,
    before: impl Fn(&[u8], &[u8]) -> bool,
    limit: usize,
    out: &mut Vec<Change>,
) -> Option<Vec<u8>> {
    let (mut newer, mut older) = (newer.peekable(), older.peekable());
    let mut present = 0;
    loop {
        let (key, value) = match (newer.peek(), older.peek()) {
            (None, None) => return None,
            (Some(_), None) => newer.next(),
            (None, Some(_)) => older.next(),
            (Some((new_key, _)), Some((old_key, _))) => {
                if before(old_key, new_key) {
                    older.next()
                } else {
                    if new_key == old_key {
                        older.next();
                    }
                    newer.next()
                }
            }
        }
        .expect("the side was peeked");
        out.push((key.clone(), value.clone()));
        present += usize::from(value.is_some());
        if present == limit {
            return Some(key.clone());
        }
    }
}

/// Whether no key can lie between the bounds (an ordered map refuses such ranges).
pub(crate) fn is_empty_range(from: &Bound<Vec<u8>>, to: &Bound<Vec<u8>>) -> bool {
    match (from, to) {
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
        (Bound::Included(from), Bound::Included(to)) => from > to,
        (Bound::Included(from) | Bound::Excluded(from), Bound::Excluded(to))
        | (Bound::Excluded(from), Bound::Included(to)) => from >= to,
    }
}
