//! Compactions against a plain map: with changes on both sides of the cursor, power cuts at every change, full disks,
//! and owners that want the set for something else.

use super::{Failure, RETRY_AFTER, STEP_BYTES, Sizes, complete};
use crate::overlay::{Changes, FileChanges};
use crate::table_file::database::{FileOptions, OpenRandom, Snapshot};
use crate::table_set::tests::{
    Model, export_rows, model_bytes, model_rows, one_run, open, open_to_compact, put, write_model,
};
use crate::table_set::{SetRow, TableSet};
use crate::test_support::{CrashDir, Dice, TestRuntime};
use futures::FutureExt;
use kiseki_types::meta::{MetaDir, MetaSpace};
use kiseki_types::table::{TableReader, TableWrite};
use std::rc::Rc;
use std::sync::Arc;

const NAMES: [&str; 2] = ["s1.names", "s1.counts"];

fn removed(file: u8, key: &[u8]) -> TableWrite {
    TableWrite { file, table: 1, key: key.to_vec(), value: None }
}

fn key(number: u32) -> Vec<u8> {
    format!("key {number:05}").into_bytes()
}

/// A set and what it has to hold.
struct Pair {
    set: TableSet,
    model: Model,
}

impl Pair {
    fn apply(&mut self, writes: Vec<TableWrite>) {
        write_model(&mut self.model, &writes);
        self.set.apply(self.set.applied_position() + 1, writes, vec![(b"last".to_vec(), vec![1])]);
    }

    fn fold(&mut self, runtime: &Rc<TestRuntime>, writes: Vec<TableWrite>) {
        self.apply(writes);
        runtime.run(self.set.checkpoint()).unwrap();
    }

    /// Puts `count` rows into each file and removes all but every `keep`-th.
    fn fill_and_thin(&mut self, runtime: &Rc<TestRuntime>, count: u32, keep: u32) {
        for file in 0..2 {
            for first in (0..count).step_by(50) {
                let rows = first..count.min(first + 50);
                self.fold(runtime, rows.map(|number| put(file, &key(number), &[7; 400])).collect());
            }
            for first in (0..count).step_by(50) {
                let rows = (first..count.min(first + 50)).filter(|number| number % keep != 0);
                self.fold(runtime, rows.map(|number| removed(file, &key(number))).collect());
            }
        }
    }

    fn check(&self, runtime: &Rc<TestRuntime>) {
        let (position, rows) = export_rows(runtime, &self.set).unwrap();
        assert_eq!(position, self.set.applied_position());
        let expected = model_rows(&self.model);
        let wrong = rows.iter().zip(&expected).find(|(found, expected)| found != expected);
        assert!(rows == expected, "{} rows, not {}; the first wrong one: {wrong:?}", rows.len(), expected.len());
    }
}

/// Files of which most is room, closed.
fn wasteful(count: u32, keep: u32) -> (Arc<CrashDir>, Model) {
    let (dir, runtime) = (CrashDir::new(), TestRuntime::new(1));
    let mut pair = Pair { set: open(&runtime, &dir).unwrap(), model: Model::new() };
    pair.fill_and_thin(&runtime, count, keep);
    runtime.run(pair.set.close()).unwrap();
    runtime.run_out();
    (dir.after_power_cut(&mut Dice::new(1)), pair.model)
}

fn reopened(
    base: &Arc<CrashDir>,
    model: &Model,
    compact_from_bytes: u64,
    seed: u64,
) -> (Arc<CrashDir>, Rc<TestRuntime>, Pair) {
    let dir = base.after_power_cut(&mut Dice::new(seed));
    let runtime = TestRuntime::new(seed);
    let set = open_to_compact(&runtime, &dir, compact_from_bytes).unwrap();
    (dir, runtime, Pair { set, model: model.clone() })
}

fn go_on(runtime: &TestRuntime, steps: u64) {
    for _ in 0..steps {
        runtime.step();
    }
}

fn is_copying(dir: &CrashDir) -> bool {
    dir.list().unwrap().iter().any(|name| name.ends_with(".next"))
}

/// Folds one change and goes on until the copy is under way.
fn begin(pair: &mut Pair, runtime: &Rc<TestRuntime>, dir: &CrashDir) {
    pair.apply(vec![put(0, b"begin", b"1")]);
    drop(pair.set.checkpoint());
    for _ in 0..10_000 {
        if is_copying(dir) {
            return;
        }
        runtime.step();
    }
    panic!("no compaction begins");
}

/// The identity of the first file.
fn identity(dir: &CrashDir) -> Vec<u8> {
    dir.bytes(NAMES[0])[16..32].to_vec()
}

fn file_bytes(dir: &CrashDir) -> u64 {
    NAMES.iter().map(|name| dir.bytes(name).len() as u64).sum()
}

#[test]
fn wasteful_files_are_those_that_a_copy_halves_at_least() {
    let sizes = |file_bytes, live_bytes| Sizes { file_bytes, live_bytes };
    for (now, from, left, expected) in [
        (sizes(1000, 249), 1000, None, true),
        (sizes(1000, 250), 1000, None, false),
        (sizes(999, 0), 1000, None, false),
        (sizes(1000, 0), 0, None, false),
        (sizes(1000, 100), 1, Some(sizes(1000, 100)), false),
        (sizes(1999, 100), 1, Some(sizes(1000, 100)), false),
        (sizes(2000, 100), 1, Some(sizes(1000, 100)), true),
        (sizes(1000, 50), 1, Some(sizes(1000, 100)), true),
        (sizes(1000, 0), 1, Some(sizes(1000, 0)), false),
        (sizes(2000, 0), 1, Some(sizes(1000, 0)), true),
        (sizes(u64::MAX, u64::MAX / 5), 1, Some(sizes(u64::MAX / 3, u64::MAX / 5)), true),
    ] {
        assert_eq!(now.are_wasteful(from, left), expected, "{now:?} from {from} after {left:?}");
    }
}

#[test]
fn i_v2_a_set_is_its_model_through_compactions_cuts_and_installations() {
    let compactions: u64 = (0..80).map(|seed| one_run(seed, 1)).sum();
    assert!(compactions > 100, "{compactions} compactions only");
}

#[test]
fn files_shrink_when_most_rows_are_removed_and_the_live_count_is_exact() {
    let (dir, runtime) = (CrashDir::new(), TestRuntime::new(1));
    let mut pair = Pair { set: open_to_compact(&runtime, &dir, 600_000).unwrap(), model: Model::new() };
    let rows = |file| (0..1500).map(move |number| put(file, &key(number), &[7; 400]));
    pair.fold(&runtime, rows(0).chain(rows(1)).collect());
    runtime.run_out();
    let before = file_bytes(&dir);
    let sizes = pair.set.sizes();
    assert_eq!((sizes.file_bytes, sizes.live_bytes), (before, model_bytes(&pair.model)));
    assert_eq!((sizes.compactions, sizes.compacted_bytes), (0, 0), "nothing is to be had yet");
    let gone = |file| (0..1500).filter(|number| number % 50 != 0).map(move |number| removed(file, &key(number)));
    pair.fold(&runtime, gone(0).chain(gone(1)).collect());
    let wasted = pair.set.sizes();
    runtime.run_out();
    let (after, sizes) = (file_bytes(&dir), pair.set.sizes());
    assert!(after * 4 < before, "{before} bytes became {after}");
    assert_eq!((sizes.file_bytes, sizes.live_bytes), (after, model_bytes(&pair.model)));
    assert_eq!((sizes.compactions, sizes.compacted_bytes), (1, wasted.file_bytes - after));
    assert_eq!(dir.list().unwrap(), ["s1.counts", "s1.names"]);
    pair.check(&runtime);
    // What is folded later is counted on, and found again.
    pair.fold(&runtime, vec![put(0, b"more", &[1; 100]), removed(1, &key(0)), put(1, &key(50), b"short")]);
    runtime.run_out();
    assert_eq!(pair.set.sizes().live_bytes, model_bytes(&pair.model));
    assert_eq!(pair.set.meta(b"last"), Some(vec![1]));
    runtime.run(pair.set.close()).unwrap();
    let (_, runtime, pair) = reopened(&dir, &pair.model, 0, 2);
    assert_eq!(pair.set.sizes().live_bytes, model_bytes(&pair.model));
    assert_eq!(pair.set.meta(b"last"), Some(vec![1]));
    pair.check(&runtime);
}

#[test]
fn a_file_that_an_earlier_release_wrote_is_counted_anew() {
    let random = OpenRandom { salt: [1; 16], uuid: [2; 16] };
    let options = FileOptions { name: "f".to_owned(), seal: None, cache_bytes: 1 << 20 };
    let changes = |rows: &[(&[u8], Option<&[u8]>)]| -> FileChanges {
        let rows: Changes = rows.iter().map(|(key, value)| (key.to_vec(), value.map(<[u8]>::to_vec))).collect();
        FileChanges::from([(3, rows)])
    };
    let dir = CrashDir::new();
    let live = |change: Option<(u64, FileChanges)>| {
        let database = options.open(dir.open("f").unwrap(), random).unwrap();
        database.settle_live(&database.snapshot().unwrap()).unwrap();
        if let Some((position, changes)) = change {
            database.fold_as_earlier_releases(position, &changes).unwrap();
        }
        database.live_bytes()
    };
    drop(options.create(&*dir, "f", random).unwrap());
    live(Some((4, changes(&[(b"a", Some(b"12345"))]))));
    assert_eq!(live(None), Some(6), "the position is another one");
    // Without positions the number of rows tells.
    live(Some((0, changes(&[(b"a", None)]))));
    assert_eq!(live(None), Some(0));
    live(Some((0, changes(&[(b"a", Some(b"1")), (b"b", Some(b"22"))]))));
    assert_eq!(live(None), Some(5));
}

#[test]
fn what_changes_on_both_sides_of_the_cursor_is_in_the_new_files() {
    let (base, model) = wasteful(400, 10);
    let mut amid = 0;
    for steps in (0..400).step_by(3) {
        let (dir, runtime, mut pair) = reopened(&base, &model, 1, steps);
        begin(&mut pair, &runtime, &dir);
        go_on(&runtime, steps);
        amid += u32::from(is_copying(&dir));
        // Every row that is there, the one at the cursor among them, and some that are not; no count of rows changes.
        let there = || (0..400).step_by(10).map(key);
        let changed = |file| there().map(move |key| put(file, &key, &[8; 200]));
        pair.fold(&runtime, changed(0).chain(changed(1)).collect());
        let moved =
            |file| [removed(file, &key(10)), removed(file, &key(350)), put(file, b"a", b"2"), put(file, b"z", b"3")];
        pair.fold(&runtime, moved(0).into_iter().chain(moved(1)).collect());
        let other_table = |file| TableWrite { table: 200, ..put(file, b"new", b"4") };
        pair.apply(vec![other_table(0), other_table(1)]);
        runtime.run_out();
        assert!(pair.set.sizes().compactions >= 1, "after {steps} steps: a compaction was given up");
        assert_eq!(dir.list().unwrap(), ["s1.counts", "s1.names"]);
        pair.check(&runtime);
        runtime.run(pair.set.close()).unwrap();
        let (_, runtime, pair) = reopened(&dir, &pair.model, 0, steps);
        assert_eq!(pair.set.sizes().live_bytes, model_bytes(&pair.model));
        pair.check(&runtime);
    }
    assert!(amid > 20, "{amid} changes amid a copy only");
}

#[test]
fn i_v2_a_power_cut_at_any_change_of_a_compaction_leaves_what_was_durable() {
    let (base, model) = wasteful(160, 16);
    let (mut old, mut new) = (0, 0);
    for cut in 0..2_000 {
        let (dir, runtime, mut pair) = reopened(&base, &model, 1, 7);
        let first = pair.set.applied_position();
        let mut history = vec![pair.model.clone()];
        dir.fail_after(cut);
        for number in 0..3 {
            pair.apply(vec![put(0, &key(number * 40), b"new"), put(1, &key(number * 40), b"new")]);
            history.push(pair.model.clone());
            drop(pair.set.checkpoint());
            go_on(&runtime, 60);
        }
        runtime.run_out();
        let (durable, sizes) = (pair.set.durable_position(), pair.set.sizes());
        let is_through = sizes.compactions == 1 && pair.set.failure().is_none();
        drop(pair);
        runtime.kill();
        let dir = dir.after_power_cut(&mut Dice::new(cut));
        let runtime = TestRuntime::new(3);
        let set = open(&runtime, &dir).unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
        let position = set.applied_position();
        assert!(position >= durable, "cut at {cut}: {durable} was durable, {position} is found");
        let pair = Pair { set, model: history[(position - first) as usize].clone() };
        pair.check(&runtime);
        assert_eq!(pair.set.sizes().live_bytes, model_bytes(&pair.model), "cut at {cut}");
        assert_eq!(dir.list().unwrap(), ["s1.counts", "s1.names"], "cut at {cut}");
        match identity(&dir) == identity(&base) {
            true => old += 1,
            false => new += 1,
        }
        if is_through {
            assert!(old > 100 && new > 2, "{old} old, {new} new");
            return;
        }
    }
    panic!("the compaction never finished");
}

#[test]
fn files_that_lack_a_row_never_replace_others() {
    let (base, model) = wasteful(60, 10);
    for missing in [1, 0] {
        let (dir, runtime, pair) = reopened(&base, &model, 0, 1);
        let files = Arc::clone(&pair.set.inner.files);
        let present: Vec<Arc<Snapshot>> =
            pair.set.inner.state.borrow().snapshots.iter().map(|file| Arc::clone(&file.snapshot)).collect();
        let databases = files.create_next(&files.random(&runtime.ports())).unwrap();
        for (file, database) in (0..).zip(&databases) {
            let rows = present[usize::from(file)].rows_after(file, None, usize::MAX).unwrap();
            let left_out = if file == 1 { missing } else { 0 };
            database.load_rows(rows.iter().skip(left_out)).unwrap();
        }
        let outcome = complete(databases.into_iter().map(Arc::new).collect(), &files, &present);
        assert_eq!(matches!(outcome, Err(Failure::Copy(_))), missing > 0);
        assert_eq!(identity(&dir) == identity(&base), missing > 0, "{missing} rows are missing");
    }
}

#[test]
fn a_copy_that_has_no_room_fences_nothing_and_is_tried_again_later() {
    let (base, model) = wasteful(300, 10);
    for refused in 0.. {
        let room = refused * 9_000;
        let (dir, runtime, mut pair) = reopened(&base, &model, 1, room);
        dir.leave_room_in_next(Some(room));
        pair.fold(&runtime, vec![put(0, b"change", b"1")]);
        runtime.run_out();
        assert!(pair.set.failure().is_none(), "{room} bytes of room");
        if pair.set.sizes().compactions > 0 {
            assert!(refused > 5, "{refused} copies were refused");
            return;
        }
        assert!(!is_copying(&dir), "the room is given back");
        pair.check(&runtime);
        dir.leave_room_in_next(None);
        pair.fold(&runtime, vec![put(1, b"change", b"2")]);
        runtime.run_out();
        assert_eq!(pair.set.sizes().compactions, 0, "not within the hour");
        runtime.pass(RETRY_AFTER);
        pair.fold(&runtime, vec![put(0, b"change", b"3")]);
        runtime.run_out();
        assert_eq!(pair.set.sizes().compactions, 1);
        pair.check(&runtime);
    }
}

#[test]
fn i_o3_no_copy_fills_a_metadata_directory() {
    let (base, model) = wasteful(300, 10);
    for (left_percent, begins) in [(5, false), (11, false), (60, true)] {
        let (dir, runtime, mut pair) = reopened(&base, &model, 1, left_percent);
        let total_bytes = 2 * file_bytes(&dir);
        let used_bytes = total_bytes * (100 - left_percent) / 100;
        dir.say_space(MetaSpace { used_bytes, total_bytes, file_system: 1 });
        pair.fold(&runtime, vec![put(0, b"change", b"1")]);
        runtime.run_out();
        assert_eq!(pair.set.sizes().compactions > 0, begins, "{left_percent} % of twice the files are left");
        assert!(pair.set.failure().is_none() && !is_copying(&dir));
        pair.check(&runtime);
    }
}

#[test]
fn i_d6_an_exchange_that_fails_fences_the_set() {
    let (base, model) = wasteful(100, 10);
    let (dir, runtime, mut pair) = reopened(&base, &model, 1, 1);
    begin(&mut pair, &runtime, &dir);
    dir.refuse_renames(true);
    runtime.run_out();
    assert!(pair.set.failure().is_some());
    assert!(runtime.run(pair.set.get(0, 1, b"begin")).is_err());
    drop(pair.set);
    runtime.run_out();
    dir.refuse_renames(false);
    let set = open(&runtime, &dir).unwrap();
    let pair = Pair { set, model: pair.model };
    pair.check(&runtime);
    assert_ne!(identity(&dir), identity(&base), "the next open ends the exchange");
}

#[test]
fn folds_do_not_wait_for_the_pause_between_two_steps() {
    let (base, model) = wasteful(400, 10);
    let (dir, runtime, mut pair) = reopened(&base, &model, 1, 1);
    begin(&mut pair, &runtime, &dir);
    runtime.stop_clock();
    go_on(&runtime, 1_000);
    assert!(is_copying(&dir), "it waits for its next step");
    pair.fold(&runtime, vec![put(0, b"one", b"1")]);
    let many = (0..100).map(|number| put(1, &key(number), b"2")).collect();
    pair.apply(many);
    go_on(&runtime, 1_000);
    assert_eq!(pair.set.overlay_rows(), 0, "a full overlay is folded");
    assert!(is_copying(&dir));
    runtime.run(pair.set.close()).unwrap();
    assert_eq!(dir.list().unwrap(), ["s1.counts", "s1.names"]);
}

#[test]
fn a_compaction_gives_up_for_whoever_wants_the_set() {
    let (base, model) = wasteful(400, 10);
    for steps in (0..300).step_by(7) {
        let begun = || {
            let (dir, runtime, mut pair) = reopened(&base, &model, 1, steps);
            begin(&mut pair, &runtime, &dir);
            go_on(&runtime, steps);
            (dir, runtime, pair)
        };
        // Closed, and opened again.
        let (dir, runtime, pair) = begun();
        runtime.run(pair.set.close()).unwrap();
        assert_eq!(dir.list().unwrap(), ["s1.counts", "s1.names"], "closed after {steps} steps");
        let pair = Pair { set: open(&runtime, &dir).unwrap(), ..pair };
        pair.check(&runtime);
        // Replaced by a snapshot. While that comes, none begins.
        let (dir, runtime, mut pair) = begun();
        let row = SetRow { file: 1, table: 1, key: b"a".to_vec(), value: b"9".to_vec() };
        let position = pair.set.applied_position() + 9;
        let mut import = runtime.run(pair.set.import(position, Vec::new())).unwrap();
        let compactions = pair.set.sizes().compactions;
        pair.fold(&runtime, vec![put(0, b"late", b"1")]);
        runtime.run_out();
        assert_eq!(pair.set.sizes().compactions, compactions, "an import keeps compactions off");
        runtime.run(import.push(vec![row])).unwrap();
        runtime.run(pair.set.install(import)).unwrap();
        pair.model = Model::from([((1, 1, b"a".to_vec()), b"9".to_vec())]);
        pair.check(&runtime);
        pair.fold(&runtime, vec![put(0, b"later", b"1")]);
        runtime.run_out();
        pair.check(&runtime);
        assert_eq!(dir.list().unwrap(), ["s1.counts", "s1.names"], "installed after {steps} steps");
        // Dropped without being closed, and opened again: what the first one did must not touch the other's files.
        let (dir, runtime, mut pair) = begun();
        pair.set = {
            drop(pair.set);
            open(&runtime, &dir).unwrap()
        };
        pair.fold(&runtime, vec![put(1, b"after", b"1")]);
        runtime.run_out();
        runtime.run(pair.set.close()).unwrap();
        let (_, runtime, pair) = reopened(&dir, &pair.model, 0, steps);
        pair.check(&runtime);
    }
}

#[test]
fn an_export_goes_on_with_the_files_it_began_with() {
    let (base, model) = wasteful(400, 10);
    let (dir, runtime, mut pair) = reopened(&base, &model, 1, 1);
    let mut export = runtime.run(pair.set.export()).unwrap();
    let mut rows = runtime.run(export.next_rows(STEP_BYTES)).unwrap();
    begin(&mut pair, &runtime, &dir);
    runtime.run_out();
    assert_eq!(pair.set.sizes().compactions, 1);
    pair.fold(&runtime, vec![removed(0, &key(390)), put(1, b"later", b"1")]);
    while let Some(more) = runtime.run(export.next_rows(STEP_BYTES)).map(Some).unwrap().filter(|more| !more.is_empty())
    {
        rows.extend(more);
    }
    assert!(rows == model_rows(&model), "{} rows", rows.len());
    // Who drops the last of the old files' handles does not write their closing commit.
    let changes = dir.changes();
    drop(export);
    assert_eq!(dir.changes(), changes);
    runtime.run_out();
    pair.check(&runtime);
    assert!(pair.set.get(0, 1, &key(390)).now_or_never().is_none());
}
