//! Power cuts, wrong keys, rot and secrecy of paged files, sealed and clear, under redb.

use super::{SealParameters, SealedFile};
use crate::clear_file::ClearFile;
use crate::test_support::{CrashDir, Dice};
use kiseki_types::meta::{MetaDir, MetaFile};
use kiseki_types::secret::SecretKey;
use redb::{Database, ReadableDatabase, StorageBackend, TableDefinition};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

const ROWS: TableDefinition<u64, &[u8]> = TableDefinition::new("rows");
const NAME: &str = "names.redb";
const COMMITS: u64 = 12;
type Model = BTreeMap<u64, Vec<u8>>;

fn key(byte: u8) -> SecretKey {
    SecretKey::take(&mut [byte; 32])
}

fn salt(number: u64) -> [u8; 16] {
    let mut salt = [0x5a; 16];
    salt[..8].copy_from_slice(&number.to_le_bytes());
    salt
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    Sealed,
    Clear,
}

/// Opens or makes the file the way the table files do, without a temporary name.
fn open(kind: Kind, dir: &CrashDir, number: u64) -> Result<Database, String> {
    let text = |error: io::Error| error.to_string();
    let secret = key(7);
    let parameters = SealParameters { name: NAME, key: &secret, salt: salt(number) };
    let mut builder = Database::builder();
    builder.set_cache_size(256 << 10);
    let database = match (dir.open(NAME), kind) {
        (Ok(file), Kind::Sealed) => builder.create_with_backend(SealedFile::open(file, &parameters).map_err(text)?),
        (Ok(file), Kind::Clear) => builder.create_with_backend(ClearFile::open(file, NAME).map_err(text)?),
        (Err(_), Kind::Sealed) => {
            let file = dir.create(NAME).map_err(text)?;
            builder.create_with_backend(SealedFile::create(file, [9; 16], &parameters).map_err(text)?)
        }
        (Err(_), Kind::Clear) => {
            let file = dir.create(NAME).map_err(text)?;
            builder.create_with_backend(ClearFile::create(file, [9; 16], NAME).map_err(text)?)
        }
    };
    database.map_err(|error| error.to_string())
}

/// The change that commit `number` makes.
fn change(number: u64, model: &mut Model, mut put: impl FnMut(u64, Option<&[u8]>)) {
    let mut dice = Dice::new(number + 1000);
    for _ in 0..20 {
        let row = dice.below(200);
        if dice.below(4) == 0 {
            model.remove(&row);
            put(row, None);
        } else {
            let len = [10, 200, 3000, 9000][dice.below(4) as usize];
            let value = dice.bytes(len);
            put(row, Some(&value));
            model.insert(row, value);
        }
    }
}

fn models() -> Vec<Model> {
    let mut models = vec![Model::new()];
    for number in 0..COMMITS {
        let mut model = models.last().unwrap().clone();
        change(number, &mut model, |_, _| {});
        models.push(model);
    }
    models
}

fn commit(database: &Database, number: u64) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_two_phase_commit(true);
    transaction.set_quick_repair(true);
    {
        let mut rows = transaction.open_table(ROWS)?;
        let mut result = Ok(());
        change(number, &mut Model::new(), |row, value| {
            let done = match value {
                Some(value) => rows.insert(row, value).map(drop),
                None => rows.remove(row).map(drop),
            };
            if let Err(error) = done {
                result = Err(error);
            }
        });
        result?;
    }
    Ok(transaction.commit()?)
}

fn read_all(database: &Database) -> Result<Model, redb::Error> {
    let transaction = database.begin_read()?;
    let rows = match transaction.open_table(ROWS) {
        Ok(rows) => rows,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Model::new()),
        Err(error) => return Err(error.into()),
    };
    let mut model = Model::new();
    for row in rows.range::<u64>(..)? {
        let (key, value) = row?;
        model.insert(key.value(), value.value().to_vec());
    }
    Ok(model)
}

/// Commits from `done` on until something fails; returns how many are committed.
fn work(database: &Database, mut done: u64) -> u64 {
    while done < COMMITS && commit(database, done).is_ok() {
        done += 1;
    }
    done
}

fn power_cuts(kind: Kind) -> u64 {
    let models = models();
    let base = CrashDir::new();
    drop(open(kind, &base, 0).unwrap());
    let start = base.after_power_cut(&mut Dice::new(1));
    let start_changes = {
        let dir = start.after_power_cut(&mut Dice::new(1));
        work(&open(kind, &dir, 1).unwrap(), 0);
        dir.changes()
    };
    assert!(start_changes > 200, "too few writes to be a test: {start_changes}");
    for cut in 0..start_changes {
        let mut dice = Dice::new(cut);
        let mut dir = start.after_power_cut(&mut Dice::new(1));
        dir.fail_after(cut);
        let mut done = open(kind, &dir, 2).map_or(0, |database| work(&database, 0));
        // The power fails again during the recovery, and again soon after.
        for round in 0..3 {
            dir = if dice.below(3) == 0 { dir.after_kill() } else { dir.after_power_cut(&mut dice) };
            if round < 2 {
                dir.fail_after(dice.below(40));
            }
            let database = match open(kind, &dir, 3 + round) {
                Ok(database) => database,
                Err(error) if round == 2 => panic!("{kind:?}: cut at {cut}: {error}"),
                Err(_) => continue,
            };
            let found = match read_all(&database) {
                Ok(found) => found,
                Err(error) => panic!("{kind:?}: cut at {cut}, round {round}: {error}"),
            };
            // A commit whose return was cut off may be there or not; an acknowledged one must be.
            let next = models.get(done as usize + 1);
            if Some(&found) == next && found != models[done as usize] {
                done += 1;
            }
            assert!(found == models[done as usize], "{kind:?}: cut at {cut}, round {round}: not commit {done}");
            if round < 2 {
                done = work(&database, done);
            }
        }
    }
    start_changes
}

#[test]
fn i_l2_sealed_files_keep_every_commit_through_a_power_cut_at_any_write() {
    power_cuts(Kind::Sealed);
}

#[test]
fn i_l2_clear_files_keep_every_commit_through_a_power_cut_at_any_write() {
    power_cuts(Kind::Clear);
}

fn filled(kind: Kind) -> Arc<CrashDir> {
    let dir = CrashDir::new();
    let database = open(kind, &dir, 0).unwrap();
    assert_eq!(work(&database, 0), COMMITS);
    drop(database);
    dir
}

#[test]
fn a_wrong_key_is_told_from_damage_and_changes_nothing() {
    let dir = filled(Kind::Sealed);
    let before = dir.bytes(NAME);
    let wrong = key(8);
    let parameters = SealParameters { name: NAME, key: &wrong, salt: salt(5) };
    let error = SealedFile::open(dir.open(NAME).unwrap(), &parameters).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
    assert!(dir.bytes(NAME) == before, "a wrong key must not write");
    assert_eq!(read_all(&open(Kind::Sealed, &dir, 6).unwrap()).unwrap(), models()[COMMITS as usize]);
}

#[test]
fn a_clear_file_is_not_opened_as_a_sealed_one() {
    let dir = filled(Kind::Clear);
    let secret = key(7);
    let parameters = SealParameters { name: NAME, key: &secret, salt: salt(5) };
    assert!(SealedFile::open(dir.open(NAME).unwrap(), &parameters).is_err());
}

#[test]
fn i_k1_no_plaintext_is_ever_in_the_file() {
    const MARKER: &[u8] = b"a marker that must never be seen on a disk";
    let contains = |bytes: &[u8], part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
    for kind in [Kind::Sealed, Kind::Clear] {
        let dir = CrashDir::new();
        let database = open(kind, &dir, 0).unwrap();
        let transaction = database.begin_write().unwrap();
        transaction.open_table(ROWS).unwrap().insert(1, MARKER).unwrap();
        transaction.commit().unwrap();
        drop(database);
        let bytes = dir.bytes(NAME);
        // The clear file proves that the search finds what is there.
        assert_eq!(contains(&bytes, MARKER), kind == Kind::Clear, "{kind:?}");
        assert_eq!(contains(&bytes, b"rows"), kind == Kind::Clear, "{kind:?}: names of tables");
    }
}

fn slot_bytes(kind: Kind) -> usize {
    if kind == Kind::Sealed { 4096 + 40 } else { 4096 + 16 }
}

#[test]
fn a_flipped_bit_anywhere_is_an_error_or_healed_and_never_garbage() {
    let expected = models()[COMMITS as usize].clone();
    for kind in [Kind::Sealed, Kind::Clear] {
        let dir = filled(kind);
        let intact = dir.bytes(NAME);
        let (mut refused, mut served) = (0, 0);
        let mut dice = Dice::new(3);
        let mut at = 5;
        while at < intact.len() {
            dir.edit(NAME, |bytes| {
                bytes.clone_from(&intact);
                bytes[at] ^= 1 << dice.below(8);
            });
            match open(kind, &dir, 9).and_then(|database| read_all(&database).map_err(|error| error.to_string())) {
                Ok(found) => {
                    assert!(found == expected, "{kind:?}: byte {at} gave other rows");
                    served += 1;
                }
                Err(error) => {
                    assert!(at >= 8192 + 2 * slot_bytes(kind), "{kind:?}: byte {at} has a second copy: {error}");
                    refused += 1;
                }
            }
            at += 700 + dice.below(700) as usize;
        }
        assert!(refused > 20 && served > 5, "{kind:?}: {refused} refused, {served} served");
    }
}

#[test]
fn rot_in_one_copy_of_page_0_takes_no_commit_back() {
    for kind in [Kind::Sealed, Kind::Clear] {
        let dir = CrashDir::new();
        let database = open(kind, &dir, 0).unwrap();
        for number in 0..COMMITS {
            commit(&database, number).unwrap();
            let bytes = dir.bytes(NAME);
            for copy in 0..2 {
                let other = CrashDir::new();
                drop(other.create(NAME).unwrap());
                other.edit(NAME, |edited| {
                    edited.clone_from(&bytes);
                    edited[8192 + copy * slot_bytes(kind) + 3000] ^= 1;
                });
                let found = read_all(&open(kind, &other, 1).unwrap()).unwrap();
                assert!(found == models()[number as usize + 1], "{kind:?}: copy {copy}, commit {number}");
            }
        }
    }
}

#[test]
fn a_page_moved_elsewhere_does_not_open() {
    for kind in [Kind::Sealed, Kind::Clear] {
        let file = CrashDir::new();
        let handle: Arc<dyn MetaFile> = file.create(NAME).unwrap();
        let secret = key(7);
        let parameters = SealParameters { name: NAME, key: &secret, salt: salt(0) };
        let backend: Box<dyn StorageBackend> = match kind {
            Kind::Sealed => Box::new(SealedFile::create(handle, [1; 16], &parameters).unwrap()),
            Kind::Clear => Box::new(ClearFile::create(handle, [1; 16], NAME).unwrap()),
        };
        backend.set_len(5 * 4096).unwrap();
        for page in 0..5u8 {
            backend.write(u64::from(page) * 4096, &[page; 4096]).unwrap();
        }
        let slot = slot_bytes(kind);
        let start = |page: usize| 8192 + (page + 1) * slot;
        file.edit(NAME, |bytes| bytes.copy_within(start(2)..start(3), start(3)));
        let mut out = [0; 4096];
        backend.read(2 * 4096, &mut out).unwrap();
        assert_eq!(out, [2; 4096]);
        let error = backend.read(3 * 4096, &mut out).unwrap_err();
        assert!(error.to_string().contains("page 3 of names.redb"), "{error}");
        // A destroyed page is not a hole.
        file.edit(NAME, |bytes| bytes[start(4)..].fill(0));
        assert!(backend.read(4 * 4096, &mut out).is_err(), "{kind:?}: zeros are not a page");
    }
}

#[test]
fn i_k7_no_key_and_nonce_pair_seals_twice() {
    let dir = CrashDir::new();
    let mut seen: BTreeMap<[u8; 24], Vec<u8>> = BTreeMap::new();
    for number in 0..4 {
        let database = open(Kind::Sealed, &dir, number).unwrap();
        for round in 0..3 {
            commit(&database, number * 3 + round).unwrap();
            let bytes = dir.bytes(NAME);
            for slot in bytes[8192..].chunks_exact(4096 + 40) {
                let pair: [u8; 24] = slot[..24].try_into().unwrap();
                if pair == [0; 24] {
                    continue;
                }
                let before = seen.entry(pair).or_insert_with(|| slot[24..].to_vec());
                assert!(before == &slot[24..], "I-K7: salt and counter {pair:?} sealed two texts");
            }
        }
    }
    assert!(seen.len() > 100);
}

#[test]
fn reads_and_writes_match_a_plain_file() {
    for kind in [Kind::Sealed, Kind::Clear] {
        let mut dice = Dice::new(11);
        let dir = CrashDir::new();
        let secret = key(7);
        let parameters = SealParameters { name: NAME, key: &secret, salt: salt(0) };
        let handle = dir.create(NAME).unwrap();
        let backend: Box<dyn StorageBackend> = match kind {
            Kind::Sealed => Box::new(SealedFile::create(handle, [1; 16], &parameters).unwrap()),
            Kind::Clear => Box::new(ClearFile::create(handle, [1; 16], NAME).unwrap()),
        };
        let mut model: Vec<u8> = Vec::new();
        for step in 0..600 {
            match dice.below(8) {
                0 => {
                    let pages = dice.below(100);
                    backend.set_len(pages * 4096).unwrap();
                    model.resize(pages as usize * 4096, 0);
                }
                1 => backend.sync_data().unwrap(),
                2..5 if !model.is_empty() => {
                    let offset = dice.below(model.len() as u64) as usize;
                    let len = (dice.below(60_000) as usize).min(model.len() - offset);
                    let data = dice.bytes(len);
                    backend.write(offset as u64, &data).unwrap();
                    model[offset..offset + len].copy_from_slice(&data);
                }
                _ if !model.is_empty() => {
                    let offset = dice.below(model.len() as u64) as usize;
                    let len = (dice.below(60_000) as usize).min(model.len() - offset);
                    let mut out = vec![1; len];
                    backend.read(offset as u64, &mut out).unwrap();
                    assert!(out == model[offset..offset + len], "{kind:?}: step {step}");
                }
                _ => {}
            }
            assert_eq!(backend.len().unwrap(), model.len() as u64);
        }
        assert!(backend.read(model.len() as u64, &mut [0]).is_err());
        assert!(backend.set_len(100).is_err());
    }
}

#[test]
fn i_d6_nothing_is_written_after_a_failed_sync() {
    let dir = CrashDir::new();
    let secret = key(7);
    let parameters = SealParameters { name: NAME, key: &secret, salt: salt(0) };
    let backend = SealedFile::create(dir.create(NAME).unwrap(), [1; 16], &parameters).unwrap();
    backend.write(0, &[1; 8192]).unwrap();
    dir.fail_after(0);
    assert!(backend.sync_data().is_err());
    dir.fail_after(1000);
    let before = dir.bytes(NAME);
    assert!(backend.write(4096, &[2; 4096]).is_err());
    assert!(backend.sync_data().is_err());
    assert!(dir.bytes(NAME) == before);
}
