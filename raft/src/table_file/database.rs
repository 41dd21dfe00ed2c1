//! One redb file: its schema, its folds and its snapshots. Everything here blocks and runs on side threads.
//!
//! The schema is told in docs/formats/table-file.md.

use super::live_count::LiveCount;
use crate::clear_file::ClearFile;
use crate::overlay::{Changes, FileChanges, Layer, Mark, OverlayPart};
use crate::paged_file::FileWatch;
use crate::sealed_file::{SealParameters, SealedFile};
use crate::table_set::SetRow;
use kiseki_types::meta::{MetaDir, MetaFile};
use kiseki_types::secret::SecretKey;
use kiseki_types::table::{Direction, Row, TableError, TableId};
use redb::{
    Database, Durability, ReadOnlyTable, ReadableDatabase, ReadableTableMetadata, TableDefinition, TableHandle,
};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::io;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard};

type Bytes = &'static [u8];
type Definition<'a> = TableDefinition<'a, Bytes, Bytes>;

/// Version of the schema. 1: the first.
const SCHEMA_VERSION: u32 = 1;
const INTERNAL: Definition<'static> = TableDefinition::new("kiseki");
const REDO: Definition<'static> = TableDefinition::new("redo");
const SCHEMA_KEY: &[u8] = b"schema";
const POSITION_KEY: &[u8] = b"position";
const REDO_FROM_KEY: &[u8] = b"redo_from";
const LIVE_KEY: &[u8] = b"live";
const META_PREFIX: u8 = b'm';
const REDO_REMOVED: u8 = 0;
const REDO_PRESENT: u8 = 1;

/// Fresh randomness for one open of a file.
#[derive(Clone, Copy)]
pub(crate) struct OpenRandom {
    /// Salt of the page keys.
    pub salt: [u8; 16],
    /// Identity, when the file is made.
    pub uuid: [u8; 16],
}

/// How a file is opened.
#[derive(Clone)]
pub(crate) struct FileOptions {
    /// Its name.
    pub name: String,
    /// Its metadata key, if it is sealed.
    pub seal: Option<Arc<SecretKey>>,
    /// Pages kept in memory, in bytes.
    pub cache_bytes: usize,
}

impl FileOptions {
    /// Turns any cause into the error that names this file.
    pub fn error(&self, reason: impl Display) -> TableError {
        TableError::File { file: self.name.clone(), reason: reason.to_string() }
    }

    fn build(&self, backend: impl redb::StorageBackend) -> Result<Database, TableError> {
        let mut builder = Database::builder();
        builder.set_cache_size(self.cache_bytes);
        builder.create_with_backend(backend).map_err(|cause| self.error(cause))
    }

    /// Opens what is in `file`.
    pub fn open(&self, file: Arc<dyn MetaFile>, random: OpenRandom) -> Result<FileDatabase, TableError> {
        let (db, watch) = match &self.seal {
            Some(key) => {
                let parameters = SealParameters { name: &self.name, key, salt: random.salt };
                let sealed = SealedFile::open(file, &parameters).map_err(|cause| self.error(cause))?;
                let watch = sealed.watch();
                (self.build(sealed)?, watch)
            }
            None => {
                let clear = ClearFile::open(file, &self.name).map_err(|cause| self.error(cause))?;
                let watch = clear.watch();
                (self.build(clear)?, watch)
            }
        };
        Ok(FileDatabase { options: self.clone(), db: Arc::new(db), watch, live: Mutex::new(None) })
    }

    /// Makes a new file under `temporary`, complete and durable, with no rows and position 0.
    pub fn create(&self, dir: &dyn MetaDir, temporary: &str, random: OpenRandom) -> Result<FileDatabase, TableError> {
        let create = || -> io::Result<Arc<dyn MetaFile>> {
            dir.remove(temporary)?;
            dir.create(temporary)
        };
        let file = create().map_err(|cause| self.error(cause))?;
        let (db, watch) = match &self.seal {
            Some(key) => {
                let parameters = SealParameters { name: &self.name, key, salt: random.salt };
                let sealed = SealedFile::create(file, random.uuid, &parameters).map_err(|cause| self.error(cause))?;
                let watch = sealed.watch();
                (self.build(sealed)?, watch)
            }
            None => {
                let clear = ClearFile::create(file, random.uuid, &self.name).map_err(|cause| self.error(cause))?;
                let watch = clear.watch();
                (self.build(clear)?, watch)
            }
        };
        let live = Mutex::new(Some(LiveCount::default()));
        let database = FileDatabase { options: self.clone(), db: Arc::new(db), watch, live };
        database.fold(&Mark::default(), &FileChanges::new(), None)?;
        Ok(database)
    }
}

/// The changes of later files that a fold keeps beside its own rows, so that a crash between two files' commits is
/// made up for at the next open.
pub(crate) struct Redo {
    /// Position of the later files before this layer.
    pub from: u64,
    /// The layer itself: its files behind this one are kept.
    pub layer: Arc<Layer>,
}

/// An open redb file.
pub(crate) struct FileDatabase {
    options: FileOptions,
    db: Arc<Database>,
    watch: Arc<FileWatch>,
    /// As of the last commit; `None` when nobody could count.
    live: Mutex<Option<LiveCount>>,
}

/// A row's new value, `None` when it is removed.
type RowChange<'a> = (TableId, &'a [u8], Option<&'a [u8]>);

fn table_name(table: TableId) -> String {
    format!("t{table}")
}

fn table_id(name: &str) -> Option<TableId> {
    name.strip_prefix('t')?.parse().ok()
}

impl FileDatabase {
    /// What the file is called in errors.
    pub fn error(&self, reason: impl Display) -> TableError {
        self.options.error(reason)
    }

    fn transaction<T>(
        &self,
        durability: Durability,
        work: impl FnOnce(&redb::WriteTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, TableError> {
        let run = || -> Result<T, redb::Error> {
            let mut transaction = self.db.begin_write()?;
            // With two phases the primary slot is only ever flipped to a commit whose pages are synced, and with the
            // allocator state in the commit a start after a crash reads committed pages only: torn pages of an
            // unfinished commit are never looked at (docs/formats/sealed-file.md, "Why a power cut is survived").
            transaction.set_two_phase_commit(true);
            transaction.set_quick_repair(durability_is_immediate(durability));
            transaction.set_durability(durability)?;
            let result = work(&transaction)?;
            transaction.commit()?;
            Ok(result)
        };
        run().map_err(|cause| self.error(cause))
    }

    /// Commits `changes` with the position and the meta rows that go with them, durably.
    pub fn fold<'a>(&self, mark: &Mark, changes: &'a FileChanges, redo: Option<&Redo>) -> Result<(), TableError> {
        let mut live = *self.lock_live();
        self.transaction(Durability::Immediate, |transaction| {
            let of_table = |(table, changes): (&TableId, &'a Changes)| {
                let table = *table;
                changes.iter().map(move |(key, value)| (table, key.as_slice(), value.as_deref()))
            };
            change_rows(transaction, changes.iter().flat_map(of_table), &mut live)?;
            let meta = mark.meta.iter().map(|(key, value)| (key.as_slice(), value.as_slice()));
            write_internal(transaction, mark.position, live, meta)?;
            write_redo(transaction, redo)
        })?;
        *self.lock_live() = live;
        Ok(())
    }

    /// Puts rows without waiting for the disk; the next [`FileDatabase::fold`] makes them durable.
    pub fn load_rows<'a>(&self, rows: impl Iterator<Item = &'a SetRow>) -> Result<(), TableError> {
        self.load_changes(rows.map(|row| (row.table, row.key.as_slice(), Some(row.value.as_slice()))))
    }

    /// Puts and removes rows without waiting for the disk; the next [`FileDatabase::fold`] makes them durable.
    pub fn load_changes<'a>(&self, changes: impl Iterator<Item = RowChange<'a>>) -> Result<(), TableError> {
        let mut live = *self.lock_live();
        self.transaction(Durability::None, |transaction| change_rows(transaction, changes, &mut live))?;
        *self.lock_live() = live;
        Ok(())
    }

    /// Commits changes as a release does that knows no count of live rows.
    #[cfg(test)]
    pub fn fold_as_earlier_releases(&self, position: u64, changes: &FileChanges) -> Result<(), TableError> {
        self.transaction(Durability::Immediate, |transaction| {
            for (table, changes) in changes {
                let rows = changes.iter().map(|(key, value)| (*table, key.as_slice(), value.as_deref()));
                change_rows(transaction, rows, &mut None)?;
            }
            transaction.open_table(INTERNAL)?.insert(POSITION_KEY, &position.to_le_bytes()[..])?;
            Ok(())
        })
    }

    fn lock_live(&self) -> MutexGuard<'_, Option<LiveCount>> {
        self.live.lock().expect("no thread panics while it holds the count")
    }

    /// Length of the file as it lies in each metadata directory.
    pub fn file_bytes(&self) -> u64 {
        self.watch.len_bytes()
    }

    /// Ends this handle: closed now if nobody reads the file any more, and never written again in any case.
    pub fn close(self: Arc<Self>) {
        let watch = Arc::clone(&self.watch);
        drop(self);
        watch.retire();
    }

    /// Bytes of the keys and values of all rows as of the last commit; `None` when nobody could count them.
    pub fn live_bytes(&self) -> Option<u64> {
        self.lock_live().map(|live| live.bytes)
    }

    /// Takes the count of live rows from the file as it was opened, or counts where none is in it that can be right
    /// (an earlier release made or changed the file).
    pub fn settle_live(&self, snapshot: &Snapshot) -> Result<(), TableError> {
        let rows: u64 = snapshot.row_counts()?.values().sum();
        let stored = snapshot.live.filter(|(position, live)| *position == snapshot.position && live.rows == rows);
        let live = stored.map(|(_, live)| live).map_or_else(
            || {
                tracing::info!(
                    file = self.options.name,
                    rows,
                    "a table file has no count of its live rows; they are counted"
                );
                snapshot.count_live()
            },
            Ok,
        );
        // Who reads such a row learns it; the count alone is no reason to refuse the file.
        let live = live.inspect_err(|error| tracing::warn!(%error, "the live rows of a table file can't be counted"));
        *self.lock_live() = live.ok();
        if stored.is_none() && self.lock_live().is_some() {
            // Or a file that nobody changes is counted at every start.
            let mark = Mark { position: snapshot.position, ..Mark::default() };
            if let Err(error) = self.fold(&mark, &FileChanges::new(), None) {
                tracing::warn!(%error, "the count of a table file's live rows can't be kept");
            }
        }
        Ok(())
    }

    /// Makes up for a crash after the first file's commit: applies to this file (number `number`) the changes that the
    /// first file kept, so that it stands at the first file's position.
    pub fn catch_up(&self, number: u8, first: &FileDatabase, snapshot: &Snapshot) -> Result<(), TableError> {
        let mark = Mark { position: snapshot.position, meta: snapshot.meta.clone() };
        self.fold(&mark, &first.redo_of(number)?, None)
    }

    fn redo_of(&self, number: u8) -> Result<FileChanges, TableError> {
        let read = || -> Result<FileChanges, redb::Error> {
            let redo = self.db.begin_read()?.open_table(REDO)?;
            let mut changes = FileChanges::new();
            for row in redo.range::<&[u8]>(&[number][..]..)? {
                let (key, value) = row?;
                let (key, value) = (key.value(), value.value());
                let [file, table, key @ ..] = key else { continue };
                if *file != number {
                    break;
                }
                let value = match value {
                    [REDO_PRESENT, value @ ..] => Some(value.to_vec()),
                    _ => None,
                };
                changes.entry(*table).or_default().insert(key.to_vec(), value);
            }
            Ok(changes)
        };
        read().map_err(|cause| self.error(cause))
    }

    /// All committed rows as they are now.
    pub fn snapshot(&self) -> Result<Snapshot, TableError> {
        let open = || -> Result<Result<Snapshot, String>, redb::Error> {
            let transaction = self.db.begin_read()?;
            let mut tables = BTreeMap::new();
            for handle in transaction.list_tables()? {
                if let Some(table) = table_id(handle.name()) {
                    tables.insert(table, transaction.open_table(Definition::new(handle.name()))?);
                }
            }
            let internal = transaction.open_table(INTERNAL)?;
            let number = |key: &[u8]| -> Result<Option<u64>, redb::Error> {
                let Some(value) = internal.get(key)? else { return Ok(None) };
                Ok(value.value().try_into().ok().map(u64::from_le_bytes))
            };
            match internal.get(SCHEMA_KEY)?.map(|value| value.value().to_vec()) {
                Some(version) if version == SCHEMA_VERSION.to_le_bytes() => {}
                _ => return Ok(Err(format!("its schema is not version {SCHEMA_VERSION}, which this build reads"))),
            }
            let Some(position) = number(POSITION_KEY)? else {
                return Ok(Err("it states no position".to_owned()));
            };
            let redo_from = number(REDO_FROM_KEY)?;
            let live = internal.get(LIVE_KEY)?.and_then(|value| LiveCount::decode(value.value()));
            let mut meta = BTreeMap::new();
            for row in internal.range::<&[u8]>(&[META_PREFIX][..]..&[META_PREFIX + 1][..])? {
                let (key, value) = row?;
                meta.insert(key.value()[1..].to_vec(), value.value().to_vec());
            }
            let (options, database) = (self.options.clone(), Arc::clone(&self.db));
            Ok(Ok(Snapshot { tables, position, redo_from, live, meta, options, _database: database }))
        };
        open().map_err(|cause| self.error(cause))?.map_err(|reason| self.error(reason))
    }
}

fn durability_is_immediate(durability: Durability) -> bool {
    matches!(durability, Durability::Immediate)
}

fn change_rows<'a>(
    transaction: &redb::WriteTransaction,
    changes: impl Iterator<Item = RowChange<'a>>,
    live: &mut Option<LiveCount>,
) -> Result<(), redb::Error> {
    let mut changes = changes.peekable();
    while let Some((table, ..)) = changes.peek().copied() {
        let name = table_name(table);
        let mut rows = transaction.open_table(Definition::new(&name))?;
        while let Some((_, key, value)) = changes.next_if(|change| change.0 == table) {
            let old = match value {
                Some(value) => rows.insert(key, value)?,
                None => rows.remove(key)?,
            };
            if let Some(live) = live {
                live.change(key.len(), value.map(<[u8]>::len), old.map(|old| old.value().len()));
            }
        }
    }
    Ok(())
}

fn write_internal<'a>(
    transaction: &redb::WriteTransaction,
    position: u64,
    live: Option<LiveCount>,
    meta: impl Iterator<Item = (&'a [u8], &'a [u8])>,
) -> Result<(), redb::Error> {
    let mut internal = transaction.open_table(INTERNAL)?;
    internal.insert(SCHEMA_KEY, &SCHEMA_VERSION.to_le_bytes()[..])?;
    internal.insert(POSITION_KEY, &position.to_le_bytes()[..])?;
    match live {
        Some(live) => internal.insert(LIVE_KEY, &live.encode(position)[..])?,
        None => internal.remove(LIVE_KEY)?,
    };
    for (key, value) in meta {
        let mut prefixed = vec![META_PREFIX];
        prefixed.extend_from_slice(key);
        internal.insert(prefixed.as_slice(), value)?;
    }
    Ok(())
}

fn write_redo(transaction: &redb::WriteTransaction, redo: Option<&Redo>) -> Result<(), redb::Error> {
    let Some(redo) = redo else { return Ok(()) };
    transaction.delete_table(REDO)?;
    let mut rows = transaction.open_table(REDO)?;
    for (number, changes) in redo.layer.files.iter().enumerate().skip(1) {
        for (table, changes) in changes {
            for (key, value) in changes {
                let mut redo_key = vec![u8::try_from(number).expect("a set has at most 256 files"), *table];
                redo_key.extend_from_slice(key);
                let redo_value = match value {
                    Some(value) => [&[REDO_PRESENT][..], value].concat(),
                    None => vec![REDO_REMOVED],
                };
                rows.insert(redo_key.as_slice(), redo_value.as_slice())?;
            }
        }
    }
    let mut internal = transaction.open_table(INTERNAL)?;
    internal.insert(REDO_FROM_KEY, &redo.from.to_le_bytes()[..])?;
    Ok(())
}

/// The rows of one commit. It holds its pages until it is dropped.
pub(crate) struct Snapshot {
    tables: BTreeMap<TableId, ReadOnlyTable<Bytes, Bytes>>,
    /// Position of the commit.
    pub position: u64,
    /// Where the redo rows of the commit start.
    pub redo_from: Option<u64>,
    /// The count of live rows that was stored, and the position it stands for.
    live: Option<(u64, LiveCount)>,
    /// Meta rows of the commit.
    pub meta: BTreeMap<Vec<u8>, Vec<u8>>,
    options: FileOptions,
    // Behind the tables: closing the database ends its reads.
    _database: Arc<Database>,
}

impl Snapshot {
    /// Whether the file has the table at all.
    pub fn has_table(&self, table: TableId) -> bool {
        self.tables.contains_key(&table)
    }

    /// How many rows each table has; tables without rows are left out.
    pub fn row_counts(&self) -> Result<BTreeMap<TableId, u64>, TableError> {
        let mut counts = BTreeMap::new();
        for (table, rows) in &self.tables {
            let count = rows.len().map_err(|cause| self.options.error(cause))?;
            if count > 0 {
                counts.insert(*table, count);
            }
        }
        Ok(counts)
    }

    /// Walks over all rows.
    fn count_live(&self) -> Result<LiveCount, TableError> {
        let mut live = LiveCount::default();
        for rows in self.tables.values() {
            for row in rows.range::<&[u8]>(..).map_err(|cause| self.options.error(cause))? {
                let (key, value) = row.map_err(|cause| self.options.error(cause))?;
                live.change(key.value().len(), Some(value.value().len()), None);
            }
        }
        Ok(live)
    }

    /// One row.
    pub fn get(&self, table: TableId, key: &[u8]) -> Result<Option<Vec<u8>>, TableError> {
        let Some(rows) = self.tables.get(&table) else { return Ok(None) };
        let value = rows.get(key).map_err(|cause| self.options.error(cause))?;
        Ok(value.map(|value| value.value().to_vec()))
    }

    /// Rows of the file within the bounds of `part`, with its changes laid over them.
    pub fn scan(
        &self,
        table: TableId,
        part: OverlayPart,
        direction: Direction,
        limit: usize,
    ) -> Result<Vec<Row>, TableError> {
        let mut out = Vec::new();
        let mut changes = part.changes.into_iter().peekable();
        if let Some(rows) = self.tables.get(&table) {
            let bounds = (part.from.as_ref().map(Vec::as_slice), part.to.as_ref().map(Vec::as_slice));
            let mut range = rows.range::<&[u8]>(bounds).map_err(|cause| self.options.error(cause))?;
            let before = |one: &[u8], other: &[u8]| match direction {
                Direction::Forward => one < other,
                Direction::Backward => one > other,
            };
            'file: while out.len() < limit {
                let row = match direction {
                    Direction::Forward => range.next(),
                    Direction::Backward => range.next_back(),
                };
                let Some(row) = row else { break };
                let (key, value) = row.map_err(|cause| self.options.error(cause))?;
                while let Some((changed, new)) = changes.next_if(|(changed, _)| !before(key.value(), changed)) {
                    let same = changed == key.value();
                    if let Some(new) = new {
                        out.push((changed, new));
                    }
                    if same {
                        continue 'file;
                    }
                    if out.len() >= limit {
                        break 'file;
                    }
                }
                out.push((key.value().to_vec(), value.value().to_vec()));
            }
        }
        let missing = limit.saturating_sub(out.len());
        out.extend(changes.filter_map(|(key, value)| Some((key, value?))).take(missing));
        Ok(out)
    }

    /// Rows behind (`table`, `after`) in order, about `max_bytes` of them; fewer only at the end of the file.
    pub fn rows_after(
        &self,
        file: u8,
        after: Option<(TableId, Vec<u8>)>,
        max_bytes: usize,
    ) -> Result<Vec<SetRow>, TableError> {
        let mut out = Vec::new();
        let mut bytes = 0;
        let first_table = after.as_ref().map_or(0, |(table, _)| *table);
        for (table, rows) in self.tables.range(first_table..) {
            let from = match &after {
                Some((of, key)) if of == table => Bound::Excluded(key.as_slice()),
                _ => Bound::Unbounded,
            };
            let range = rows.range::<&[u8]>((from, Bound::Unbounded)).map_err(|cause| self.options.error(cause))?;
            for row in range {
                let (key, value) = row.map_err(|cause| self.options.error(cause))?;
                let row = SetRow { file, table: *table, key: key.value().to_vec(), value: value.value().to_vec() };
                bytes += row.key.len() + row.value.len();
                out.push(row);
                if bytes >= max_bytes {
                    return Ok(out);
                }
            }
        }
        Ok(out)
    }
}
