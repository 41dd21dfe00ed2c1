//! A set against a plain map, with folds, reads in flight, power cuts, exports and installations.

use super::{FileSpec, SetRow, TableSet, TableSettings};
use crate::test_support::{CrashDir, Dice, TestRuntime};
use kiseki_types::runtime::LocalBoxFuture;
use kiseki_types::secret::SecretKey;
use kiseki_types::table::{Direction, Row, Scan, TableError, TableReader, TableWrite};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::rc::Rc;
use std::sync::Arc;

pub(super) type Model = BTreeMap<(u8, u8, Vec<u8>), Vec<u8>>;

pub(super) fn specs() -> Vec<FileSpec> {
    let seal = Some(SecretKey::take(&mut [3; 32]));
    vec![FileSpec { name: "s1.names".to_owned(), seal }, FileSpec { name: "s1.counts".to_owned(), seal: None }]
}

fn settings() -> TableSettings {
    TableSettings { queue: 4, cache_bytes: 256 << 10, fold_rows: 60, fold_bytes: 1 << 20, compact_from_bytes: 0 }
}

pub(super) fn open(runtime: &Rc<TestRuntime>, dir: &Arc<CrashDir>) -> Result<TableSet, TableError> {
    open_to_compact(runtime, dir, 0)
}

/// A set that is compacted from `compact_from_bytes` on.
pub(super) fn open_to_compact(
    runtime: &Rc<TestRuntime>,
    dir: &Arc<CrashDir>,
    compact_from_bytes: u64,
) -> Result<TableSet, TableError> {
    let settings = TableSettings { compact_from_bytes, ..settings() };
    runtime.run(TableSet::open(runtime.ports(), dir.clone(), specs(), settings))
}

/// Bytes of all rows.
pub(super) fn model_bytes(model: &Model) -> u64 {
    model.iter().map(|((_, _, key), value)| (key.len() + value.len()) as u64).sum()
}

fn random_key(dice: &mut Dice) -> Vec<u8> {
    let len = dice.below(4) as usize;
    (0..len).map(|_| [0, 1, 7, 0xff][dice.below(4) as usize]).collect()
}

fn random_writes(dice: &mut Dice) -> Vec<TableWrite> {
    let count = dice.below(6);
    (0..count)
        .map(|_| {
            let len = dice.below(300) as usize;
            let value = (dice.below(3) > 0).then(|| dice.bytes(len));
            TableWrite { file: dice.below(2) as u8, table: dice.below(3) as u8, key: random_key(dice), value }
        })
        .collect()
}

pub(super) fn write_model(model: &mut Model, writes: &[TableWrite]) {
    for write in writes {
        let key = (write.file, write.table, write.key.clone());
        match &write.value {
            Some(value) => drop(model.insert(key, value.clone())),
            None => drop(model.remove(&key)),
        }
    }
}

fn random_bound(dice: &mut Dice) -> Bound<Vec<u8>> {
    match dice.below(3) {
        0 => Bound::Included(random_key(dice)),
        1 => Bound::Excluded(random_key(dice)),
        _ => Bound::Unbounded,
    }
}

fn random_scan(dice: &mut Dice) -> Scan {
    let direction = if dice.below(2) == 0 { Direction::Forward } else { Direction::Backward };
    let limit = [0, 1, 2, 5, 20, usize::MAX][dice.below(6) as usize];
    let (from, to) = (random_bound(dice), random_bound(dice));
    Scan { file: dice.below(2) as u8, table: dice.below(4) as u8, from, to, limit, direction }
}

fn scan_model(model: &Model, scan: &Scan) -> Vec<Row> {
    let inside = |key: &Vec<u8>| {
        let above = match &scan.from {
            Bound::Included(from) => key >= from,
            Bound::Excluded(from) => key > from,
            Bound::Unbounded => true,
        };
        let below = match &scan.to {
            Bound::Included(to) => key <= to,
            Bound::Excluded(to) => key < to,
            Bound::Unbounded => true,
        };
        above && below
    };
    let matching = |(key, value): (&(u8, u8, Vec<u8>), &Vec<u8>)| {
        (key.0 == scan.file && key.1 == scan.table && inside(&key.2)).then(|| (key.2.clone(), value.clone()))
    };
    match scan.direction {
        Direction::Forward => model.iter().filter_map(matching).take(scan.limit).collect(),
        Direction::Backward => model.iter().rev().filter_map(matching).take(scan.limit).collect(),
    }
}

pub(super) fn export_rows(runtime: &Rc<TestRuntime>, set: &TableSet) -> Result<(u64, Vec<SetRow>), TableError> {
    runtime.run(async {
        let mut export = set.export().await?;
        let mut all = Vec::new();
        loop {
            let rows = export.next_rows(700).await?;
            if rows.is_empty() {
                return Ok((export.position(), all));
            }
            all.extend(rows);
        }
    })
}

pub(super) fn model_rows(model: &Model) -> Vec<SetRow> {
    let row = |((file, table, key), value): (&(u8, u8, Vec<u8>), &Vec<u8>)| SetRow {
        file: *file,
        table: *table,
        key: key.clone(),
        value: value.clone(),
    };
    model.iter().map(row).collect()
}

type PendingGet = (LocalBoxFuture<'static, Result<Option<Vec<u8>>, TableError>>, Option<Vec<u8>>);
type PendingScan = (LocalBoxFuture<'static, Result<Vec<Row>, TableError>>, Vec<Row>);

/// One life of a set: random calls until the power fails or the calls are through.
struct Life {
    runtime: Rc<TestRuntime>,
    set: TableSet,
    gets: Vec<PendingGet>,
    scans: Vec<PendingScan>,
}

impl Life {
    /// Ends all reads in flight: each must answer what was there when it was called.
    fn settle(&mut self) {
        for (future, expected) in self.gets.drain(..) {
            assert_eq!(self.runtime.run(future).unwrap(), expected, "a get must see the moment of its call");
        }
        for (future, expected) in self.scans.drain(..) {
            assert_eq!(self.runtime.run(future).unwrap(), expected, "a scan must see the moment of its call");
        }
    }
}

/// Returns how many compactions came to their end.
pub(super) fn one_run(seed: u64, compact_from_bytes: u64) -> u64 {
    let mut compactions = 0;
    let mut dice = Dice::new(seed);
    let mut dir = CrashDir::new();
    // What the set must hold after each position; positions beyond the durable one are forgotten by a cut.
    let mut history: Vec<Model> = vec![Model::new()];
    let mut durable = 0;
    for life_number in 0..6 {
        let runtime = TestRuntime::new(seed * 100 + life_number);
        if life_number < 5 {
            let changes_max = if dice.below(4) == 0 { 30 } else { 900 };
            dir.fail_after(dice.below(changes_max));
        }
        let Ok(set) = open_to_compact(&runtime, &dir, compact_from_bytes) else {
            assert!(life_number < 5, "seed {seed}: the last open has power and must succeed");
            dir = dir.after_power_cut(&mut dice);
            continue;
        };
        let position = set.applied_position() as usize;
        assert!(position as u64 >= durable, "seed {seed}: position {durable} was durable, found {position}");
        assert_eq!(set.durable_position(), position as u64);
        history.truncate(position + 1);
        let expected_meta = (position > 0).then(|| (position as u64).to_le_bytes().to_vec());
        assert_eq!(set.meta(b"last"), expected_meta, "seed {seed}: meta rows go with their position");
        let mut life = Life { runtime: runtime.clone(), set, gets: Vec::new(), scans: Vec::new() };
        durable = life_run(&mut life, &mut dice, &mut history).unwrap_or_else(|reached| reached).max(durable);
        compactions += life.set.sizes().compactions;
        life.gets.clear();
        life.scans.clear();
        runtime.kill();
        dir = if dice.below(3) == 0 { dir.after_kill() } else { dir.after_power_cut(&mut dice) };
    }
    compactions
}

/// Returns the durable position: `Ok` when the calls were through, `Err` when the power failed.
fn life_run(life: &mut Life, dice: &mut Dice, history: &mut Vec<Model>) -> Result<u64, u64> {
    let runtime = life.runtime.clone();
    let set = life.set.clone();
    for row in 0..2 {
        let whole = Scan::prefix(row, 1, b"", usize::MAX);
        let found = runtime.run(set.scan(whole.clone())).map_err(|_| set.durable_position())?;
        assert_eq!(found, scan_model(history.last().unwrap(), &whole), "what a restart finds");
    }
    for _ in 0..400 {
        let durable = set.durable_position();
        if set.failure().is_some() {
            return Err(durable);
        }
        let model = history.last().unwrap();
        match dice.below(20) {
            0..8 => {
                let writes = random_writes(dice);
                let mut model = model.clone();
                write_model(&mut model, &writes);
                let position = history.len() as u64;
                history.push(model);
                set.apply(position, writes, vec![(b"last".to_vec(), position.to_le_bytes().to_vec())]);
                assert_eq!(set.applied_position(), position);
                if dice.below(10) == 0 {
                    // A replayed entry changes nothing.
                    let replay = TableWrite { file: 0, table: 1, key: vec![9], value: Some(vec![9]) };
                    set.apply(position, vec![replay], Vec::new());
                }
            }
            8..11 => {
                let (file, table, key) = (dice.below(2) as u8, dice.below(4) as u8, random_key(dice));
                let expected = model.get(&(file, table, key.clone())).cloned();
                life.gets.push((set.get(file, table, &key), expected));
            }
            11..14 => {
                let scan = random_scan(dice);
                let expected = scan_model(model, &scan);
                life.scans.push((set.scan(scan), expected));
            }
            14 => life.settle(),
            15 => {
                let applied = set.applied_position();
                runtime.run(set.checkpoint()).map_err(|_| set.durable_position())?;
                assert!(set.durable_position() >= applied, "a checkpoint makes durable what was applied before it");
                if set.overlay_rows() == 0 {
                    assert_eq!(set.sizes().live_bytes, model_bytes(model), "live bytes are counted exactly");
                }
            }
            16 => drop(set.checkpoint()),
            17 if dice.below(4) == 0 => {
                let (position, rows) = export_rows(&runtime, &set).map_err(|_| set.durable_position())?;
                assert_eq!(rows, model_rows(&history[position as usize]), "an export is one position");
            }
            18 if dice.below(8) == 0 => {
                install(life, dice, history)?;
            }
            _ => {
                runtime.step();
            }
        }
    }
    let reached = set.durable_position();
    if dice.below(2) == 0 {
        let applied = set.applied_position();
        return runtime.run(set.close()).map(|()| applied).map_err(|_| reached);
    }
    Ok(reached)
}

/// Installs a snapshot some positions ahead, as a voter that fell behind does.
fn install(life: &mut Life, dice: &mut Dice, history: &mut Vec<Model>) -> Result<(), u64> {
    life.settle();
    let (runtime, set) = (life.runtime.clone(), life.set.clone());
    let before = set.durable_position();
    let mut model = history.last().unwrap().clone();
    for _ in 0..1 + dice.below(5) {
        model.clear();
        for _ in 0..10 {
            write_model(&mut model, &random_writes(dice));
        }
        history.push(model.clone());
    }
    let position = history.len() as u64 - 1;
    let meta = vec![(b"last".to_vec(), position.to_le_bytes().to_vec())];
    let outcome = runtime.run(async {
        let mut import = set.import(position, meta).await?;
        for rows in model_rows(&model).chunks(7) {
            import.push(rows.to_vec()).await?;
        }
        set.install(import).await
    });
    match outcome {
        Ok(()) => {
            assert_eq!((set.applied_position(), set.durable_position()), (position, position));
            assert_eq!(set.overlay_rows(), 0);
            Ok(())
        }
        Err(_) => Err(before),
    }
}

#[test]
fn i_v2_a_set_is_its_model_through_folds_cuts_and_installations() {
    for seed in 0..80 {
        one_run(seed, 0);
    }
}

pub(super) fn put(file: u8, key: &[u8], value: &[u8]) -> TableWrite {
    TableWrite { file, table: 1, key: key.to_vec(), value: Some(value.to_vec()) }
}

#[test]
fn i_v2_a_cut_between_the_commits_of_two_files_leaves_one_position() {
    let base = CrashDir::new();
    let runtime = TestRuntime::new(1);
    let set = open(&runtime, &base).unwrap();
    set.apply(1, vec![put(0, b"a", b"1"), put(1, b"a", b"1")], Vec::new());
    runtime.run(set.close()).unwrap();
    let mut behind = 0;
    for cut in 0..200 {
        let dir = base.after_power_cut(&mut Dice::new(1));
        let runtime = TestRuntime::new(2);
        let Ok(set) = open(&runtime, &dir) else { unreachable!("no power is lost yet") };
        set.apply(2, vec![put(0, b"a", b"2"), put(1, b"a", b"2")], Vec::new());
        dir.fail_after(cut);
        let finished = runtime.run(set.checkpoint()).is_ok();
        drop(set);
        runtime.kill();
        let dir = dir.after_power_cut(&mut Dice::new(cut));
        let runtime = TestRuntime::new(3);
        let changes = dir.changes();
        let set = open(&runtime, &dir).unwrap();
        let names = runtime.run(set.get(0, 1, b"a")).unwrap().unwrap();
        let counts = runtime.run(set.get(1, 1, b"a")).unwrap().unwrap();
        assert_eq!(names, counts, "cut at {cut}: the files stand for two prefixes");
        assert_eq!(names, set.durable_position().to_string().into_bytes());
        if finished {
            assert!(behind > 0, "no cut fell between the two commits");
            return;
        }
        behind += u32::from(names == b"2" && dir.changes() > changes);
    }
    panic!("the checkpoint never finished");
}

#[test]
fn i_v2_a_cut_at_any_change_of_an_installation_leaves_the_old_files_or_the_new_ones() {
    let base = CrashDir::new();
    let runtime = TestRuntime::new(1);
    let set = open(&runtime, &base).unwrap();
    set.apply(1, vec![put(0, b"a", b"1"), put(1, b"a", b"1")], Vec::new());
    runtime.run(set.close()).unwrap();
    let (mut old, mut new) = (0, 0);
    for cut in 0..400 {
        let dir = base.after_power_cut(&mut Dice::new(1));
        let runtime = TestRuntime::new(2);
        let set = open(&runtime, &dir).unwrap();
        dir.fail_after(cut);
        let outcome = runtime.run(async {
            let mut import = set.import(9, Vec::new()).await?;
            let row = |file| SetRow { file, table: 1, key: b"a".to_vec(), value: b"9".to_vec() };
            import.push(vec![row(0), row(1)]).await?;
            set.install(import).await
        });
        drop(set);
        runtime.kill();
        let dir = dir.after_power_cut(&mut Dice::new(cut));
        let runtime = TestRuntime::new(3);
        let set = open(&runtime, &dir).unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
        let names = runtime.run(set.get(0, 1, b"a")).unwrap().unwrap();
        let counts = runtime.run(set.get(1, 1, b"a")).unwrap().unwrap();
        assert_eq!(names, counts, "cut at {cut}");
        assert_eq!(names, set.applied_position().to_string().into_bytes(), "cut at {cut}");
        if outcome.is_ok() {
            assert!(old > 0 && new > 0 && names == b"9", "{old} old, {new} new");
            return;
        }
        if names == b"9" {
            new += 1;
        } else {
            old += 1;
        }
    }
    panic!("the installation never finished");
}

#[test]
fn i_d6_a_failed_fold_fences_the_set() {
    let dir = CrashDir::new();
    let runtime = TestRuntime::new(1);
    let set = open(&runtime, &dir).unwrap();
    set.apply(1, vec![put(0, b"a", b"1")], Vec::new());
    dir.fail_after(3);
    assert!(runtime.run(set.checkpoint()).is_err());
    dir.fail_after(100_000);
    assert!(runtime.run(set.get(0, 1, b"a")).is_err());
    assert!(runtime.run(set.scan(Scan::prefix(0, 1, b"", 10))).is_err());
    assert!(runtime.run(set.checkpoint()).is_err());
    set.apply(2, vec![put(0, b"b", b"1")], Vec::new());
    assert_eq!(set.durable_position(), 0);
    assert!(set.failure().is_some());
}

#[test]
fn a_wrong_key_refuses_the_set_and_harms_nothing() {
    let dir = CrashDir::new();
    let runtime = TestRuntime::new(1);
    let set = open(&runtime, &dir).unwrap();
    set.apply(1, vec![put(0, b"a", b"1")], Vec::new());
    runtime.run(set.close()).unwrap();
    let mut wrong = specs();
    wrong[0].seal = Some(SecretKey::take(&mut [4; 32]));
    let refused = runtime.run(TableSet::open(runtime.ports(), dir.clone(), wrong, settings()));
    let error = refused.err().expect("a wrong key opens nothing").to_string();
    assert!(error.contains("s1.names") && error.contains("another key"), "{error}");
    let set = open(&runtime, &dir).unwrap();
    assert_eq!(runtime.run(set.get(0, 1, b"a")).unwrap(), Some(b"1".to_vec()));
}

#[test]
fn a_lost_file_of_a_set_is_an_error_not_a_new_file() {
    use kiseki_types::meta::MetaDir;
    for lost in ["s1.names", "s1.counts"] {
        let dir = CrashDir::new();
        let runtime = TestRuntime::new(1);
        let set = open(&runtime, &dir).unwrap();
        set.apply(1, vec![put(0, b"a", b"1")], Vec::new());
        runtime.run(set.close()).unwrap();
        dir.remove(lost).unwrap();
        assert!(open(&runtime, &dir).is_err(), "{lost} is gone");
        assert!(!dir.list().unwrap().contains(&lost.to_owned()), "{lost} must not be made anew");
    }
}

#[test]
fn a_power_cut_while_the_files_are_made_leaves_a_set_that_opens() {
    for cut in 0..200 {
        let dir = CrashDir::new();
        dir.fail_after(cut);
        let runtime = TestRuntime::new(cut);
        let made = open(&runtime, &dir).is_ok();
        runtime.kill();
        let dir = dir.after_power_cut(&mut Dice::new(cut));
        let set = open(&TestRuntime::new(9), &dir).unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
        assert_eq!(set.applied_position(), 0);
        if made {
            return;
        }
    }
    panic!("the set was never made");
}

#[test]
fn an_imported_row_of_an_unknown_file_is_refused() {
    let dir = CrashDir::new();
    let runtime = TestRuntime::new(1);
    let set = open(&runtime, &dir).unwrap();
    let row = SetRow { file: 7, table: 0, key: vec![1], value: vec![1] };
    let refused = runtime.run(async {
        let mut import = set.import(5, Vec::new()).await?;
        import.push(vec![row]).await
    });
    assert!(refused.is_err());
    assert!(set.failure().is_none(), "a peer's bad snapshot does not fence the set");
}

#[test]
fn reads_do_not_wait_for_a_fold() {
    let dir = CrashDir::new();
    let runtime = TestRuntime::new(1);
    let set = open(&runtime, &dir).unwrap();
    set.apply(1, vec![put(0, b"a", b"1")], Vec::new());
    let checkpoint = set.checkpoint();
    // Nothing has run yet: the answer comes from the overlay, without a side thread.
    assert_eq!(futures::FutureExt::now_or_never(set.get(0, 1, b"a")).unwrap().unwrap(), Some(b"1".to_vec()));
    runtime.run(checkpoint).unwrap();
    assert_eq!((set.overlay_rows(), set.durable_position()), (0, 1));
    assert_eq!(runtime.run(set.get(0, 1, b"a")).unwrap(), Some(b"1".to_vec()));
}

#[test]
fn what_was_read_once_is_answered_from_memory_until_the_next_fold() {
    use futures::FutureExt;
    let dir = CrashDir::new();
    let runtime = TestRuntime::new(1);
    let set = open(&runtime, &dir).unwrap();
    let fold = |position, rows: &[(&[u8], &[u8])]| {
        set.apply(position, rows.iter().map(|(key, value)| put(0, key, value)).collect(), Vec::new());
        runtime.run(set.checkpoint()).unwrap();
    };
    let prefix = || set.scan(Scan::prefix(0, 1, b"p", 10));
    let rows = |rows: &[(&[u8], &[u8])]| -> Vec<Row> { rows.iter().map(|r| (r.0.to_vec(), r.1.to_vec())).collect() };
    fold(1, &[(b"a", b"1"), (b"p1", b"x"), (b"p2", b"y")]);
    for key in [&b"a"[..], b"absent"] {
        assert!(set.get(0, 1, key).now_or_never().is_none(), "the first read goes to the file");
        let first = runtime.run(set.get(0, 1, key)).unwrap();
        assert_eq!(set.get(0, 1, key).now_or_never().expect("no side thread").unwrap(), first);
    }
    assert_eq!(runtime.run(prefix()).unwrap(), rows(&[(b"p1", b"x"), (b"p2", b"y")]));
    // Changes lie over what is kept.
    let change = |key: &[u8], value: Option<&[u8]>| TableWrite {
        file: 0,
        table: 1,
        key: key.to_vec(),
        value: value.map(<[u8]>::to_vec),
    };
    let changes = vec![change(b"a", None), change(b"p1", None), change(b"p15", Some(b"z")), change(b"p2", Some(b"w"))];
    set.apply(2, changes, Vec::new());
    assert_eq!(set.get(0, 1, b"a").now_or_never().unwrap().unwrap(), None);
    let changed = rows(&[(b"p15", b"z"), (b"p2", b"w")]);
    assert_eq!(prefix().now_or_never().expect("no side thread").unwrap(), changed);
    // A fold makes them the file's rows; nothing older is answered.
    runtime.run(set.checkpoint()).unwrap();
    assert_eq!(runtime.run(set.get(0, 1, b"a")).unwrap(), None);
    assert_eq!(runtime.run(prefix()).unwrap(), changed);
}

#[test]
fn readers_of_one_row_share_a_fetch_and_a_long_prefix_is_scanned() {
    let dir = CrashDir::new();
    let runtime = TestRuntime::new(1);
    let set = open(&runtime, &dir).unwrap();
    let key = |number: u32| [b"p".as_slice(), &number.to_be_bytes()].concat();
    set.apply(1, (0..300).map(|number| put(0, &key(number), b"v")).collect(), Vec::new());
    runtime.run(set.checkpoint()).unwrap();
    let (one, other) = (set.get(0, 1, &key(7)), set.get(0, 1, &key(7)));
    assert_eq!(runtime.jobs_waiting(), 1, "one fetch for both");
    let (one, other) = runtime.run(async { futures::join!(one, other) });
    assert_eq!((one.unwrap(), other.unwrap()), (Some(b"v".to_vec()), Some(b"v".to_vec())));
    set.apply(2, vec![put(0, &key(1), b"w")], Vec::new());
    for _ in 0..2 {
        let found = runtime.run(set.scan(Scan::prefix(0, 1, b"p", 3))).unwrap();
        let expected = [(key(0), b"v".to_vec()), (key(1), b"w".to_vec()), (key(2), b"v".to_vec())];
        assert_eq!(found, expected);
    }
}

#[test]
fn i_sf5_what_is_kept_in_memory_is_bounded() {
    let dir = CrashDir::new();
    let runtime = TestRuntime::new(1);
    let set = open(&runtime, &dir).unwrap();
    set.apply(1, (0..40u8).map(|number| put(0, &[number], &[number; 200_000])).collect(), Vec::new());
    runtime.run(set.checkpoint()).unwrap();
    for number in 0..40 {
        assert_eq!(runtime.run(set.get(0, 1, &[number])).unwrap().unwrap(), vec![number; 200_000]);
    }
    let kept = (0..40u8).filter(|number| futures::FutureExt::now_or_never(set.get(0, 1, &[*number])).is_some()).count();
    assert!((1..=12).contains(&kept), "{kept} rows of 200 kB are kept");
}
