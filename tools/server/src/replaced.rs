//! Replacements that were made while the node did not run, until the control shard has recorded them (I-D2).
//!
//! `kiseki-devctl replace` on a stopped node can't reach the control shard. It notes what it did in a file beside the
//! configuration, before it changes that; the next start goes on from there. The device that left counts as *failed* at
//! once, and repair rebuilds what it held; when every stripe has been looked at and can be read without it, as `replace` on a
//! node that runs demands it first, it counts as *removed*. Then the note goes.
//!
//! A note is void where the command was cut off between the two files, or where the device is used again after all. Where the
//! device that came was itself replaced before it was ever used, the note stands by that later one: the first device left all
//! the same.

use crate::files::{Readers, read_bounded, write_whole};
use crate::paths::KisekiDir;
use crate::status::NodeReport;
use kiseki_engine::device_record::{DeviceRecord, DeviceUpdate};
use kiseki_types::fragment::DeviceState;
use kiseki_types::ids::DeviceId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::io;
use std::sync::{Mutex, MutexGuard};

/// Longest file of notes (I-O5).
const FILE_LEN_BYTES_MAX: u64 = 1 << 20;

/// Most notes (I-O5): each goes when repair has looked at every stripe.
const NOTES_MAX: usize = 64;

/// A device that was replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replacement {
    /// Path of the one that left.
    pub path: String,
    /// Its id in hex, once a start has found it in the records.
    #[serde(default)]
    pub device: Option<String>,
    /// Id of the one that came.
    pub by_device: String,
    /// Where that one is.
    pub by_path: String,
    /// Who wanted it.
    pub actor: String,
    /// When, milliseconds since 1970.
    pub at_unix_ms: u64,
}

impl Replacement {
    fn is_same(&self, other: &Replacement) -> bool {
        (&self.path, &self.by_device) == (&other.path, &other.by_device)
    }

    /// Whether what came is a device of the node.
    fn has_come(&self, board: &NodeReport) -> bool {
        board.devices.iter().any(|report| report.id == self.by_device || report.path == self.by_path)
    }

    /// Whether what came is a device of the node, or what later took its place is.
    ///
    /// - `notes`: all of them, in the order in which they were made.
    fn takes_place<'a>(&self, notes: impl Iterator<Item = &'a Replacement>, board: &NodeReport) -> bool {
        let mut paths = BTreeSet::from([self.by_path.as_str()]);
        let mut later = notes.skip_while(|other| !other.is_same(self)).skip(1);
        self.has_come(board)
            || later.any(|next| {
                let follows = paths.contains(next.path.as_str());
                paths.extend(follows.then_some(next.by_path.as_str()));
                follows && next.has_come(board)
            })
    }

    fn reason(&self) -> String {
        format!("device {} took its place, by {} while the node did not run", self.by_device, self.actor)
    }
}

/// The notes. Everything but [`Replacements::all`] blocks.
pub struct Replacements {
    dir: KisekiDir,
    notes: Mutex<Vec<Replacement>>,
}

impl Replacements {
    /// Reads them. Errors: a file that makes no sense; nothing of it is lost.
    pub fn open(dir: &KisekiDir) -> io::Result<Replacements> {
        let notes = match read_bounded(&dir.replaced_file(), FILE_LEN_BYTES_MAX) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::other)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        Ok(Replacements { dir: dir.clone(), notes: Mutex::new(notes) })
    }

    /// None, whatever the file says: a node starts without.
    #[must_use]
    pub fn none(dir: &KisekiDir) -> Replacements {
        Replacements { dir: dir.clone(), notes: Mutex::default() }
    }

    /// All that are not recorded yet, in the order in which they were made.
    #[must_use]
    pub fn all(&self) -> Vec<Replacement> {
        self.lock().clone()
    }

    /// Notes one, durably, in the place of an earlier note of the same two. Errors: also too many.
    pub fn note(&self, replacement: Replacement) -> io::Result<()> {
        self.change(|notes| match notes.iter_mut().find(|other| other.is_same(&replacement)) {
            Some(earlier) => *earlier = replacement,
            None => notes.push(replacement),
        })
    }

    /// Takes one out, durably.
    pub fn forget(&self, replacement: &Replacement) -> io::Result<()> {
        self.change(|notes| notes.retain(|other| !other.is_same(replacement)))
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Replacement>)) -> io::Result<()> {
        let mut notes = self.lock();
        let mut next = notes.clone();
        change(&mut next);
        if next.len() > NOTES_MAX {
            return Err(io::Error::other(format!(
                "{NOTES_MAX} replacements wait to be recorded; start the node and let repair end first"
            )));
        }
        let bytes = serde_json::to_vec_pretty(&next).map_err(io::Error::other)?;
        write_whole(&self.dir.replaced_file(), &bytes, Readers::Everybody)?;
        *notes = next;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Replacement>> {
        self.notes.lock().expect("nothing panics under this lock")
    }
}

/// What is to be done about a note next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplacementStep {
    /// The device is this one: write that into the note first, so that no later start takes another for it.
    Name(DeviceId),
    /// Record this of it.
    Record(DeviceId, DeviceUpdate),
    /// Nothing now; this is what it waits for.
    Wait(String),
    /// Nothing: another note has to be settled first.
    Keep,
    /// Forget the note, and why.
    Forget(String),
}

/// Decides about one note. `notes` are all of them, `board` is what the node sees, `records` what is recorded.
#[must_use]
pub fn next_step<'a>(
    note: &Replacement,
    notes: &[Replacement],
    board: &NodeReport,
    records: impl Iterator<Item = &'a DeviceRecord>,
) -> ReplacementStep {
    let step = step_alone(note, notes, board, records);
    let others = || notes.iter().filter(|other| !other.is_same(note));
    let stands_by_it =
        |other: &Replacement| other.takes_place(notes.iter(), board) && !other.takes_place(others(), board);
    match step {
        ReplacementStep::Forget(_) if others().any(stands_by_it) => ReplacementStep::Keep,
        step => step,
    }
}

/// The same, without a look at the notes that stand by this one.
fn step_alone<'a>(
    note: &Replacement,
    notes: &[Replacement],
    board: &NodeReport,
    records: impl Iterator<Item = &'a DeviceRecord>,
) -> ReplacementStep {
    if !note.takes_place(notes.iter(), board) {
        let why = format!("{} is not in `devices`, so it takes no place", note.by_path);
        return ReplacementStep::Forget(why);
    }
    let mut earlier = notes.iter().take_while(|other| !other.is_same(note));
    if note.device.is_none() && earlier.any(|other| other.path == note.path && other.device.is_none()) {
        // Both left the same path, so which one this was is known when it is of the other.
        return ReplacementStep::Keep;
    }
    let Some(record) = record_of(note, notes, board, records) else {
        return ReplacementStep::Forget("no device is recorded there".to_owned());
    };
    let id = record.device.to_string();
    if record.state() == DeviceState::Removed {
        return ReplacementStep::Forget("that is recorded".to_owned());
    }
    if board.devices.iter().any(|report| report.id == id && report.is_usable()) {
        return ReplacementStep::Forget("it works and is used".to_owned());
    }
    if note.device.is_none() {
        return ReplacementStep::Name(record.device);
    }
    if record.state() != DeviceState::Failed {
        let lost = DeviceUpdate::Lost { state: DeviceState::Failed, reason: note.reason() };
        return ReplacementStep::Record(record.device, lost);
    }
    match board.repair.lost_stripes {
        0 if crate::upkeep::is_walked(board) => {
            // I-D5: void when somebody took it back since it was looked at.
            let remove = DeviceUpdate::Remove { reason: note.reason(), seen: Some(record.last().clone()) };
            ReplacementStep::Record(record.device, remove)
        }
        0 => ReplacementStep::Wait(format!("{} was replaced; repair looks at what it held", note.path)),
        lost => ReplacementStep::Wait(format!(
            "{} was replaced, and {lost} stripes can't be read without what it holds: bring it back (`kiseki-devctl enroll`), \
             or give that up (`kiseki-devctl retire {} --lost`)",
            note.path,
            &id[..8]
        )),
    }
}

/// The record of the device that left.
fn record_of<'a>(
    note: &Replacement,
    notes: &[Replacement],
    board: &NodeReport,
    records: impl Iterator<Item = &'a DeviceRecord>,
) -> Option<&'a DeviceRecord> {
    let was_there = |record: &&DeviceRecord| match &note.device {
        Some(device) => record.device.to_string() == *device,
        None => {
            let id = record.device.to_string();
            record.place.path == note.path
                && record.state() != DeviceState::Removed
                && id != note.by_device
                && !is_named(&id, notes)
                // One that is used elsewhere by now did not leave.
                && board.devices.iter().all(|report| report.id != id || report.path == note.path)
        }
    };
    last_there(records.filter(was_there))
}

/// Which device it is at `path` that could not be opened: the one that was last seen there and is nowhere else. `None` for one
/// that was put there while the node did not run and has not been opened since: the one it replaced is not it.
#[must_use]
pub fn recognized<'a>(
    path: &str,
    notes: &[Replacement],
    board: &NodeReport,
    records: impl Iterator<Item = &'a DeviceRecord>,
) -> Option<DeviceId> {
    if notes.iter().any(|note| note.device.is_none() && (note.path == path || note.by_path == path)) {
        return None; // the next look knows who left
    }
    let was_here = |record: &&DeviceRecord| {
        let id = record.device.to_string();
        record.state() != DeviceState::Removed
            && record.place.path == path
            && !is_named(&id, notes)
            && board.devices.iter().all(|other| other.id != id)
    };
    let found = last_there(records.filter(was_here))?;
    let came_later = |note: &Replacement| note.by_path == path && note.at_unix_ms > found.last().at_unix_ms;
    (!notes.iter().any(came_later)).then_some(found.device)
}

/// Whether a note is about this device.
fn is_named(id: &str, notes: &[Replacement]) -> bool {
    notes.iter().any(|note| note.device.as_deref() == Some(id))
}

/// Of devices that were at one path the last one: the one that nobody has seen leave, else the one that left last.
fn last_there<'a>(records: impl Iterator<Item = &'a DeviceRecord>) -> Option<&'a DeviceRecord> {
    records.max_by_key(|record| (record.state().is_readable(), record.last().at_unix_ms))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{CoreReport, DeviceReport};
    use crate::upkeep::CoreUpkeep;
    use kiseki_engine::device_record::{DeviceActor, DevicePlace};
    use kiseki_types::ids::PoolId;

    const OLD: DeviceId = DeviceId([1; 16]);
    const NEW: DeviceId = DeviceId([2; 16]);

    fn note() -> Replacement {
        Replacement {
            path: "/dev/old".to_owned(),
            device: None,
            by_device: NEW.to_string(),
            by_path: "/dev/new".to_owned(),
            actor: "ann".to_owned(),
            at_unix_ms: 1,
        }
    }

    fn record(device: DeviceId, path: &str, at: u64) -> DeviceRecord {
        let place = DevicePlace { path: path.to_owned(), pool: PoolId(0), class: "file".to_owned() };
        let opened = DeviceUpdate::Opened { place, actor: DeviceActor::Node, reason: "opened".to_owned() };
        DeviceRecord::after(None, device, opened, at).unwrap().unwrap()
    }

    /// A node of one core with the new device, whose repair counted on `walked` devices and found `lost` stripes lost.
    fn board(walked: u64, lost: u64) -> NodeReport {
        let device = DeviceReport {
            id: NEW.to_string(),
            path: "/dev/new".to_owned(),
            state: "healthy".to_owned(),
            ..DeviceReport::default()
        };
        let upkeep = CoreUpkeep { devices_walked: walked, lost_stripes: lost, ..CoreUpkeep::default() };
        let core = CoreReport { upkeep, ..CoreReport::default() };
        let mut board = NodeReport { cores: 1, devices: vec![device], ..NodeReport::default() };
        board.core_reports.insert("0".to_owned(), core);
        board.settle_upkeep();
        board
    }

    #[test]
    fn i_d2_i_d5_a_replaced_device_fails_first_and_is_removed_when_nothing_needs_it() {
        let mut note = note();
        let mut old = record(OLD, "/dev/old", 5);
        let step =
            |note: &Replacement, board: &NodeReport, old: &DeviceRecord| next_step(note, &[], board, [old].into_iter());
        assert_eq!(step(&note, &board(0, 0), &old), ReplacementStep::Name(OLD));
        note.device = Some(OLD.to_string());
        let ReplacementStep::Record(OLD, update) = step(&note, &board(0, 0), &old) else { panic!("it is recorded") };
        assert!(
            matches!(&update, DeviceUpdate::Lost { state: DeviceState::Failed, reason } if reason.contains("by ann"))
        );
        old = DeviceRecord::after(Some(&old), OLD, update, 6).unwrap().unwrap();
        assert!(matches!(step(&note, &board(0, 0), &old), ReplacementStep::Wait(_)), "I-D5: repair has not looked yet");
        let ReplacementStep::Wait(lost) = step(&note, &board(1, 3), &old) else { panic!("I-D5: it is needed") };
        assert!(lost.contains("3 stripes can't be read") && lost.contains("retire 01010101 --lost"), "{lost}");
        let ReplacementStep::Record(OLD, update) = step(&note, &board(1, 0), &old) else { panic!("it may leave") };
        old = DeviceRecord::after(Some(&old), OLD, update, 7).unwrap().unwrap();
        assert_eq!((old.state(), old.last().actor), (DeviceState::Removed, DeviceActor::Operator), "I-D2");
        assert!(matches!(step(&note, &board(1, 0), &old), ReplacementStep::Forget(_)));
    }

    #[test]
    fn i_d5_a_note_is_void_where_it_did_not_come_to_be() {
        let old = record(OLD, "/dev/old", 5);
        let mut elsewhere = board(1, 0);
        elsewhere.devices[0].id = DeviceId([9; 16]).to_string();
        elsewhere.devices[0].path = "/dev/other".to_owned();
        let step = next_step(&note(), &[], &elsewhere, [&old].into_iter());
        assert!(matches!(step, ReplacementStep::Forget(_)), "I-D5: cut off before the configuration: {step:?}");
        let mut back = board(2, 0);
        let report = DeviceReport { id: OLD.to_string(), path: "/dev/back".to_owned(), ..back.devices[0].clone() };
        back.devices.push(report);
        let named = Replacement { device: Some(OLD.to_string()), ..note() };
        for note in [note(), named] {
            let step = next_step(&note, &[], &back, [&old].into_iter());
            assert!(matches!(step, ReplacementStep::Forget(_)), "I-D5: it is used again: {step:?}");
        }
    }

    #[test]
    fn the_new_device_in_the_same_slot_is_not_taken_for_the_old_one() {
        let note = Replacement { by_path: "/dev/old".to_owned(), ..note() };
        let mut board = board(1, 0);
        board.devices[0].path = "/dev/old".to_owned();
        let (old, new) = (record(OLD, "/dev/old", 5), record(NEW, "/dev/old", 9));
        assert_eq!(next_step(&note, &[], &board, [&old, &new].into_iter()), ReplacementStep::Name(OLD));
        let step = next_step(&note, &[], &board, [&new].into_iter());
        assert!(matches!(step, ReplacementStep::Forget(_)), "nothing else was ever there: {step:?}");
    }

    /// A note of `device` (once it is known) at `path` that gave way to `by` at `by_path`.
    fn gave_way(path: &str, device: Option<DeviceId>, by: DeviceId, by_path: &str, at: u64) -> Replacement {
        Replacement {
            path: path.to_owned(),
            device: device.map(|device| device.to_string()),
            by_device: by.to_string(),
            by_path: by_path.to_owned(),
            at_unix_ms: at,
            ..note()
        }
    }

    fn lost(record: &DeviceRecord, state: DeviceState, at: u64) -> DeviceRecord {
        let update = DeviceUpdate::Lost { state, reason: "it is gone".to_owned() };
        DeviceRecord::after(Some(record), record.device, update, at).unwrap().unwrap()
    }

    #[test]
    fn i_d2_a_new_device_that_can_not_be_opened_is_not_taken_for_the_one_that_left_its_slot() {
        let mut board = board(0, 0);
        board.devices[0] =
            DeviceReport { path: "/dev/old".to_owned(), state: "unreachable".to_owned(), ..DeviceReport::default() };
        let old = lost(&record(OLD, "/dev/old", 5), DeviceState::Failed, 9);
        let unnamed = gave_way("/dev/old", None, NEW, "/dev/old", 7);
        let named = Replacement { device: Some(OLD.to_string()), ..unnamed.clone() };
        let who = |notes: &[Replacement], records: &[&DeviceRecord]| {
            recognized("/dev/old", notes, &board, records.iter().copied())
        };
        assert_eq!(who(&[], &[&old]), Some(OLD), "nobody replaced it");
        assert_eq!(who(&[unnamed], &[&old]), None, "I-D2");
        let before = lost(&record(DeviceId([3; 16]), "/dev/old", 1), DeviceState::Unreachable, 2);
        assert_eq!(who(std::slice::from_ref(&named), &[&old, &before]), None, "I-D2: nor for one before that");
        let new = record(NEW, "/dev/old", 8);
        assert_eq!(who(&[named], &[&old, &before, &new]), Some(NEW), "it was opened by another start");
    }

    #[test]
    fn i_d2_of_several_devices_at_one_path_the_last_one_left() {
        let third = DeviceId([3; 16]);
        let at = "/dev/slot";
        let mut board = board(0, 0);
        board.devices[0].path = at.to_owned();
        board.devices[0].id = third.to_string();
        // The first one was recorded as failed after the second had come.
        let (first, second) = (lost(&record(OLD, at, 5), DeviceState::Failed, 9), record(NEW, at, 8));
        let notes = [gave_way(at, Some(OLD), NEW, at, 7), gave_way(at, None, third, at, 20)];
        let step = next_step(&notes[1], &notes, &board, [&first, &second].into_iter());
        assert_eq!(step, ReplacementStep::Name(NEW), "another note is about the first");
        // Nobody has seen the second leave.
        let step = next_step(&notes[1], &notes[1..], &board, [&first, &second].into_iter());
        assert_eq!(step, ReplacementStep::Name(NEW));
        let unnamed = [gave_way(at, None, NEW, at, 7), notes[1].clone()];
        let step = next_step(&unnamed[1], &unnamed, &board, [&first, &second].into_iter());
        assert_eq!(step, ReplacementStep::Keep, "the earlier note comes first");
        assert_eq!(next_step(&unnamed[0], &unnamed, &board, [&first].into_iter()), ReplacementStep::Name(OLD));
    }

    #[test]
    fn i_d2_a_device_whose_successor_was_replaced_before_a_start_left_all_the_same() {
        let third = DeviceId([3; 16]);
        let mut board = board(1, 0);
        board.devices[0].path = "/dev/third".to_owned();
        board.devices[0].id = third.to_string();
        let old = record(OLD, "/dev/old", 5);
        let mut notes =
            vec![gave_way("/dev/old", None, NEW, "/dev/new", 7), gave_way("/dev/new", None, third, "/dev/third", 8)];
        let step = |at: usize, notes: &[Replacement], board: &NodeReport| {
            next_step(&notes[at], notes, board, [&old].into_iter())
        };
        assert_eq!(step(0, &notes, &board), ReplacementStep::Name(OLD), "I-D2");
        assert_eq!(step(1, &notes, &board), ReplacementStep::Keep, "what came first was never used, but links the two");
        notes[0].device = Some(OLD.to_string());
        assert!(matches!(step(0, &notes, &board), ReplacementStep::Record(OLD, _)), "I-D2");
        assert!(matches!(step(0, &notes[1..], &board), ReplacementStep::Forget(_)), "then it is of no use");
        board.devices[0].path = "/dev/other".to_owned();
        board.devices[0].id = DeviceId([9; 16]).to_string();
        assert!(matches!(step(0, &notes, &board), ReplacementStep::Forget(_)), "the chain ends nowhere");
    }

    #[test]
    fn notes_survive_until_they_are_forgotten_and_a_damaged_file_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let node = KisekiDir::at(dir.path()).unwrap();
        Replacements::open(&node).unwrap().note(note()).unwrap();
        let notes = Replacements::open(&node).unwrap();
        assert_eq!(notes.all(), [note()]);
        notes.note(Replacement { device: Some(OLD.to_string()), ..note() }).unwrap();
        assert_eq!(
            Replacements::open(&node).unwrap().all()[0].device,
            Some(OLD.to_string()),
            "one note of two devices"
        );
        notes.forget(&note()).unwrap();
        assert!(Replacements::open(&node).unwrap().all().is_empty());
        for number in 0..NOTES_MAX {
            notes.note(Replacement { path: format!("/dev/{number}"), ..note() }).unwrap();
        }
        notes.note(note()).unwrap_err();
        assert_eq!(notes.all().len(), NOTES_MAX, "I-O5");
        std::fs::write(node.replaced_file(), b"[{").unwrap();
        assert!(Replacements::open(&node).is_err());
    }
}
