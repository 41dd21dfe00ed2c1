//! The fragment index slice of a lane, in the lane's table file: which fragments of a locator this node's devices hold.
//!
//! Rows are derived: whoever allocated the extent has it in a journal and tells the index lane again after a crash, until
//! the index lane's file is durable. So a row never needs a journal of its own.

use crate::fragment_header::{decode_meta, encode_meta};
use kiseki_types::codec::{CodecError, Reader, Writer};
use kiseki_types::fragment::{FragmentKey, StoredFragment};
use kiseki_types::limits::STRIPE_WIDTH_MAX;
use kiseki_types::table::{Direction, Row, Scan, TableError, TableId, TableStore, TableWrite, prefix_end};
use kiseki_types::units::Extent;
use kiseki_types::{BlockCount, BlockIndex, DeviceId, Generation, Locator};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Bound;
use std::rc::Rc;

/// Table of extents that the lane allocated: (device, first block) -> fragment.
pub const TABLE_EXTENTS: TableId = 1;
/// Table of fragments whose locator hashes to the lane: (locator, generation, index, device) -> extent and meta.
pub const TABLE_FRAGMENTS: TableId = 2;
/// Table of what the lane knows about itself: `folded` + device -> sequence, `rebuilt` + device -> incarnation.
pub const TABLE_META: TableId = 3;

/// In front of a device's id: its rows of this lane were made anew from its bytes, beside the journal of that incarnation.
pub(crate) const REBUILT_PREFIX: &[u8] = b"rebuilt";

/// Version of the rows' values: 1 is the first.
const ROW_VERSION: u8 = 1;

/// Most rows of one generation that a lookup returns: each index on a few devices while repair moves it.
const ROWS_PER_GENERATION_MAX: usize = 4 * STRIPE_WIDTH_MAX;

/// Rows that one scan of a listing takes.
const LIST_ROWS: usize = 512;

/// How an insert treats a device that already holds a fragment of the generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InsertMode {
    /// A new fragment: refused (I-D4).
    New,
    /// One that a journal replayed: kept. It was acknowledged, perhaps; which of two came first nobody knows any more.
    Recovered,
}

/// Whether a row was inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inserted {
    /// It is there now.
    Yes,
    /// The device holds another fragment of the generation.
    SecondOfStripe,
}

/// The index slice of one lane.
pub(crate) struct LaneIndex {
    table: Rc<dyn TableStore>,
    /// Inserts that look before they write: two at once for one device and generation would both find nothing.
    inserting: RefCell<BTreeSet<(Locator, Generation, DeviceId)>>,
}

impl LaneIndex {
    pub fn new(table: Rc<dyn TableStore>) -> LaneIndex {
        LaneIndex { table, inserting: RefCell::default() }
    }

    pub async fn insert(&self, fragment: &StoredFragment, mode: InsertMode) -> Result<Inserted, TableError> {
        let key = &fragment.meta.key;
        let claim = (key.locator, key.generation, fragment.extent.device);
        if mode == InsertMode::New {
            if !self.inserting.borrow_mut().insert(claim) {
                return Ok(Inserted::SecondOfStripe);
            }
            let found = self.lookup(key.locator, key.generation).await;
            self.inserting.borrow_mut().remove(&claim);
            let is_other = |row: &StoredFragment| {
                row.extent.device == fragment.extent.device
                    && (row.extent != fragment.extent || row.meta.key != fragment.meta.key)
            };
            if found?.iter().any(is_other) {
                return Ok(Inserted::SecondOfStripe);
            }
        }
        // No await between the look and this write, so the claim may end before it.
        let key = fragment_row_key(key, fragment.extent.device);
        self.table.write(vec![write(TABLE_FRAGMENTS, key, Some(encode_row(fragment)))]);
        Ok(Inserted::Yes)
    }

    /// Removes the row of a fragment if it still names that extent.
    pub async fn remove(&self, key: &FragmentKey, extent: Extent) -> Result<(), TableError> {
        let row_key = fragment_row_key(key, extent.device);
        let Some(value) = self.table.get(0, TABLE_FRAGMENTS, &row_key).await? else { return Ok(()) };
        let names_it = decode_row(extent.device, &value).is_ok_and(|row| row.extent == extent);
        if names_it {
            self.table.write(vec![write(TABLE_FRAGMENTS, row_key, None)]);
        }
        Ok(())
    }

    pub async fn lookup(&self, locator: Locator, generation: Generation) -> Result<Vec<StoredFragment>, TableError> {
        let prefix = generation_key(locator, generation);
        let rows = self.table.scan(Scan::prefix(0, TABLE_FRAGMENTS, &prefix, ROWS_PER_GENERATION_MAX)).await?;
        rows.iter().map(decode_fragment_row).collect()
    }

    /// Distinct (locator, generation) pairs behind `after`, at most `limit`, in order.
    pub async fn list(
        &self,
        after: Option<(Locator, Generation)>,
        limit: usize,
    ) -> Result<Vec<(Locator, Generation)>, TableError> {
        let mut pairs: Vec<(Locator, Generation)> = Vec::new();
        let mut from = after.map_or(Some(Bound::Unbounded), |pair| behind(pair.0, pair.1));
        while let Some(start) = from.take() {
            let scan = Scan {
                file: 0,
                table: TABLE_FRAGMENTS,
                from: start,
                to: Bound::Unbounded,
                limit: LIST_ROWS,
                direction: Direction::Forward,
            };
            let rows = self.table.scan(scan).await?;
            for row in &rows {
                let key = decode_fragment_row(row)?.meta.key;
                if pairs.last() != Some(&(key.locator, key.generation)) {
                    if pairs.len() == limit {
                        return Ok(pairs);
                    }
                    pairs.push((key.locator, key.generation));
                }
            }
            if rows.len() == LIST_ROWS {
                from = pairs.last().and_then(|pair| behind(pair.0, pair.1));
            }
        }
        Ok(pairs)
    }

    pub fn table(&self) -> &Rc<dyn TableStore> {
        &self.table
    }
}

/// A change of one row of the lane's only file.
pub(crate) fn write(table: TableId, key: Vec<u8>, value: Option<Vec<u8>>) -> TableWrite {
    TableWrite { file: 0, table, key, value }
}

/// The bound from which the next pair starts; `None` behind the last possible one.
fn behind(locator: Locator, generation: Generation) -> Option<Bound<Vec<u8>>> {
    match prefix_end(&generation_key(locator, generation)) {
        Bound::Excluded(end) => Some(Bound::Included(end)),
        _ => None,
    }
}

fn generation_key(locator: Locator, generation: Generation) -> Vec<u8> {
    [&locator.0[..], &generation.0.to_be_bytes()].concat() // big-endian: rows lie in numeric order
}

/// Key of a fragment's row in the lane of its locator.
pub(crate) fn fragment_row_key(key: &FragmentKey, device: DeviceId) -> Vec<u8> {
    [&generation_key(key.locator, key.generation)[..], &[key.index], &device.0].concat()
}

/// Key of an extent's row.
pub(crate) fn extent_row_key(device: DeviceId, start: BlockIndex) -> Vec<u8> {
    [&device.0[..], &start.0.to_be_bytes()].concat()
}

/// Key of the row in [`TABLE_META`] that says beside which incarnation of the journal a device's rows were made anew.
pub(crate) fn rebuilt_key(device: DeviceId) -> Vec<u8> {
    [REBUILT_PREFIX, &device.0].concat()
}

/// Value of a row of either table.
pub(crate) fn encode_row(fragment: &StoredFragment) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.u8(ROW_VERSION).u64(fragment.extent.start.0).u64(fragment.extent.len.0);
    encode_meta(&fragment.meta, &mut writer);
    writer.finish()
}

/// Reads what [`encode_row`] wrote.
pub(crate) fn decode_row(device: DeviceId, value: &[u8]) -> Result<StoredFragment, CodecError> {
    let mut reader = Reader::new("fragment row", value);
    let version = reader.u8()?;
    if version != ROW_VERSION {
        return Err(reader.unknown(u64::from(version)));
    }
    let (start, len) = (BlockIndex(reader.u64()?), BlockCount(reader.u64()?));
    if start.0.checked_add(len.0).is_none() {
        return Err(reader.unknown(len.0));
    }
    let meta = decode_meta(&mut reader)?;
    reader.end()?;
    Ok(StoredFragment { meta, extent: Extent { device, start, len } })
}

fn decode_fragment_row((key, value): &Row) -> Result<StoredFragment, TableError> {
    let device = key.get(41..57).and_then(|id| id.try_into().ok()).map(DeviceId);
    let device = device.ok_or_else(|| damaged_row("a key of the wrong length"))?;
    decode_row(device, value).map_err(|error| damaged_row(&error.to_string()))
}

/// An error for a row that makes no sense.
pub(crate) fn damaged_row(reason: &str) -> TableError {
    TableError::File { file: "lane index".to_string(), reason: format!("a row is damaged: {reason}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::executor::block_on;
    use futures::future::join;
    use kiseki_types::fragment::{FragmentMeta, StripeShape};
    use kiseki_types::ids::{MapEpoch, PoolId};
    use kiseki_types::runtime::LocalBoxFuture;
    use kiseki_types::table::TableReader;
    use std::collections::BTreeMap;
    use std::future::poll_fn;
    use std::task::Poll;

    /// Rows in memory. A scan sees what was there when it was asked, and answers a turn later, as one of a file does.
    #[derive(Default)]
    struct LateTable {
        rows: RefCell<BTreeMap<Vec<u8>, Vec<u8>>>,
    }

    impl TableReader for LateTable {
        fn get(&self, _: u8, _: TableId, key: &[u8]) -> LocalBoxFuture<'static, Result<Option<Vec<u8>>, TableError>> {
            let found = self.rows.borrow().get(key).cloned();
            Box::pin(async move { Ok(found) })
        }

        fn scan(&self, scan: Scan) -> LocalBoxFuture<'static, Result<Vec<Row>, TableError>> {
            let rows = self.rows.borrow();
            let found: Vec<Row> =
                rows.range((scan.from, scan.to)).map(|(key, value)| (key.clone(), value.clone())).collect();
            let mut is_late = false;
            let late = poll_fn(move |cx| {
                if std::mem::replace(&mut is_late, true) {
                    return Poll::Ready(());
                }
                cx.waker().wake_by_ref();
                Poll::Pending
            });
            Box::pin(async move {
                late.await;
                Ok(found)
            })
        }
    }

    impl TableStore for LateTable {
        fn write(&self, writes: Vec<TableWrite>) {
            let mut rows = self.rows.borrow_mut();
            for TableWrite { key, value, .. } in writes {
                match value {
                    Some(value) => drop(rows.insert(key, value)),
                    None => drop(rows.remove(&key)),
                }
            }
        }

        fn checkpoint(&self) -> LocalBoxFuture<'static, Result<(), TableError>> {
            Box::pin(async { Ok(()) })
        }

        fn overlay_rows(&self) -> usize {
            0
        }
    }

    fn fragment(index: u8, device: u8) -> StoredFragment {
        let key = FragmentKey { locator: Locator([7; 32]), generation: Generation(1), index };
        let meta = FragmentMeta {
            key,
            shape: StripeShape { data: 2, parity: 1 },
            pool: PoolId(0),
            envelope_len_bytes: 8192,
            payload_len_bytes: 4096,
            map_epoch: MapEpoch(1),
            devices: Vec::new(),
        };
        let extent = Extent { device: DeviceId([device; 16]), start: BlockIndex(u64::from(index)), len: BlockCount(1) };
        StoredFragment { meta, extent }
    }

    #[test]
    fn i_d4_of_two_fragments_of_a_stripe_that_come_at_once_a_device_takes_one() {
        let index = LaneIndex::new(Rc::new(LateTable::default()));
        let insert = |number, device| {
            let (index, fragment) = (&index, fragment(number, device));
            async move { index.insert(&fragment, InsertMode::New).await.unwrap() }
        };
        let both = block_on(join(insert(0, 1), insert(1, 1)));
        assert!(
            matches!(both, (Inserted::Yes, Inserted::SecondOfStripe) | (Inserted::SecondOfStripe, Inserted::Yes)),
            "I-D4: {both:?}"
        );
        assert_eq!(block_on(insert(2, 1)), Inserted::SecondOfStripe, "nor a third one later");
        assert_eq!(block_on(join(insert(1, 2), insert(2, 3))), (Inserted::Yes, Inserted::Yes), "other devices do");
    }
}
