//! One redb file: its schema, its folds and its snapshots. Everything here blocks and runs on side threads.
//!
//! The schema is told in docs/formats/table-file.md.

use crate::clear_file::ClearFile;
use crate::overlay::{FileChanges, Layer, Mark, OverlayPart};
use crate::sealed_file::{SealParameters, SealedFile};
use crate::table_set::SetRow;
use kiseki_types::meta::{MetaDir, MetaFile};
use kiseki_types::secret::SecretKey;
use kiseki_types::table::{Direction, Row, TableError, TableId};
use redb::{Database, Durability, ReadOnlyTable, ReadableDatabase, TableDefinition, TableHandle};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::io;
use std::ops::Bound;
use std::sync::Arc;

type Bytes = &'static [u8];
type Definition<'a> = TableDefinition<'a, Bytes, Bytes>;

/// Version of the schema. 1: the first.
const SCHEMA_VERSION: u32 = 1;
const INTERNAL: Definition<'static> = TableDefinition::new("kiseki");
const REDO: Definition<'static> = TableDefinition::new("redo");
const SCHEMA_KEY: &[u8] = b"schema";
const POSITION_KEY: &[u8] = b"position";
const REDO_FROM_KEY: &[u8] = b"redo_from";
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
        let db = match &self.seal {
            Some(key) => {
                let parameters = SealParameters { name: &self.name, key, salt: random.salt };
                self.build(SealedFile::open(file, &parameters).map_err(|cause| self.error(cause))?)?
            }
            None => self.build(ClearFile::open(file, &self.name).map_err(|cause| self.error(cause))?)?,
        };
        Ok(FileDatabase { options: self.clone(), db: Arc::new(db) })
    }

    /// Makes a new file under `temporary`, complete and durable, with no rows and position 0.
    pub fn create(&self, dir: &dyn MetaDir, temporary: &str, random: OpenRandom) -> Result<FileDatabase, TableError> {
        let create = || -> io::Result<Arc<dyn MetaFile>> {
            dir.remove(temporary)?;
            dir.create(temporary)
        };
        let file = create().map_err(|cause| self.error(cause))?;
        let db = match &self.seal {
            Some(key) => {
                let parameters = SealParameters { name: &self.name, key, salt: random.salt };
                self.build(SealedFile::create(file, random.uuid, &parameters).map_err(|cause| self.error(cause))?)?
            }
            None => self.build(ClearFile::create(file, random.uuid, &self.name).map_err(|cause| self.error(cause))?)?,
        };
        let database = FileDatabase { options: self.clone(), db: Arc::new(db) };
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
}

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
    pub fn fold(&self, mark: &Mark, changes: &FileChanges, redo: Option<&Redo>) -> Result<(), TableError> {
        self.transaction(Durability::Immediate, |transaction| {
            for (table, changes) in changes {
                let name = table_name(*table);
                let mut rows = transaction.open_table(Definition::new(&name))?;
                for (key, value) in changes {
                    match value {
                        Some(value) => drop(rows.insert(key.as_slice(), value.as_slice())?),
                        None => drop(rows.remove(key.as_slice())?),
                    }
                }
            }
            let meta = mark.meta.iter().map(|(key, value)| (key.as_slice(), value.as_slice()));
            write_internal(transaction, mark.position, meta)?;
            write_redo(transaction, redo)
        })
    }

    /// Puts rows without waiting for the disk; the next [`FileDatabase::fold`] makes them durable.
    pub fn load_rows<'a>(&self, rows: impl Iterator<Item = &'a SetRow>) -> Result<(), TableError> {
        self.transaction(Durability::None, |transaction| {
            let mut rows = rows.peekable();
            while let Some(first) = rows.peek() {
                let table_of_run = first.table;
                let name = table_name(table_of_run);
                let mut table = transaction.open_table(Definition::new(&name))?;
                while let Some(row) = rows.next_if(|row| row.table == table_of_run) {
                    table.insert(row.key.as_slice(), row.value.as_slice())?;
                }
            }
            Ok(())
        })
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
            let mut meta = BTreeMap::new();
            for row in internal.range::<&[u8]>(&[META_PREFIX][..]..&[META_PREFIX + 1][..])? {
                let (key, value) = row?;
                meta.insert(key.value()[1..].to_vec(), value.value().to_vec());
            }
            let (options, database) = (self.options.clone(), Arc::clone(&self.db));
            Ok(Ok(Snapshot { tables, position, redo_from, meta, options, _database: database }))
        };
        open().map_err(|cause| self.error(cause))?.map_err(|reason| self.error(reason))
    }
}

fn durability_is_immediate(durability: Durability) -> bool {
    matches!(durability, Durability::Immediate)
}

fn write_internal<'a>(
    transaction: &redb::WriteTransaction,
    position: u64,
    meta: impl Iterator<Item = (&'a [u8], &'a [u8])>,
) -> Result<(), redb::Error> {
    let mut internal = transaction.open_table(INTERNAL)?;
    internal.insert(SCHEMA_KEY, &SCHEMA_VERSION.to_le_bytes()[..])?;
    internal.insert(POSITION_KEY, &position.to_le_bytes()[..])?;
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
