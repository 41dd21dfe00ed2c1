//! Tests of the metadata set: a directory that fails at every operation, stale ones, refilling, crashes in between.

use super::*;
use kiseki_types::meta::{MetaFile, MetaSpace};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

const CLUSTER: ClusterId = ClusterId([7; 16]);

type Bytes = Arc<Mutex<Vec<u8>>>;

/// A directory in memory whose changes fail from a given one on.
#[derive(Debug, Clone)]
struct MemoryDir {
    files: Arc<Mutex<BTreeMap<String, Bytes>>>,
    changes_left: Arc<AtomicU64>,
    refused: Arc<AtomicU64>,
    /// Percent, or 0: it does not say.
    fill: Arc<AtomicU64>,
    /// Kind of the failure.
    failure: Arc<Mutex<io::ErrorKind>>,
}

#[derive(Debug)]
struct MemoryFile {
    dir: MemoryDir,
    bytes: Bytes,
}

impl MemoryDir {
    fn new() -> Arc<MemoryDir> {
        Arc::new(MemoryDir {
            files: Arc::default(),
            changes_left: Arc::new(AtomicU64::new(u64::MAX)),
            refused: Arc::default(),
            fill: Arc::default(),
            failure: Arc::new(Mutex::new(io::ErrorKind::Other)),
        })
    }
    /// What lies in it, for the next start.
    fn restarted(&self) -> Arc<MemoryDir> {
        let copy = MemoryDir::new();
        for (name, bytes) in &*self.files.lock().unwrap() {
            let bytes = Arc::new(Mutex::new(bytes.lock().unwrap().clone()));
            copy.files.lock().unwrap().insert(name.clone(), bytes);
        }
        copy
    }
    fn fail_after(&self, changes: u64) {
        self.changes_left.store(changes, Ordering::SeqCst);
    }
    fn contents(&self) -> BTreeMap<String, Vec<u8>> {
        let files = self.files.lock().unwrap();
        let others = files.iter().filter(|(name, _)| *name != MEMBER_FILE);
        others.map(|(name, bytes)| (name.clone(), bytes.lock().unwrap().clone())).collect()
    }
    fn change(&self) -> io::Result<()> {
        let left = self.changes_left.load(Ordering::SeqCst);
        if left == 0 {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Err(io::Error::new(*self.failure.lock().unwrap(), "the disk failed"));
        }
        self.changes_left.store(left - 1, Ordering::SeqCst);
        Ok(())
    }
    fn file(&self, bytes: &Bytes) -> Arc<dyn MetaFile> {
        Arc::new(MemoryFile { dir: self.clone(), bytes: bytes.clone() })
    }
}

impl MetaDir for MemoryDir {
    fn open(&self, name: &str) -> io::Result<Arc<dyn MetaFile>> {
        let files = self.files.lock().unwrap();
        files.get(name).map(|bytes| self.file(bytes)).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
    fn create(&self, name: &str) -> io::Result<Arc<dyn MetaFile>> {
        self.change()?;
        let mut files = self.files.lock().unwrap();
        if files.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        Ok(self.file(files.entry(name.to_owned()).or_default()))
    }
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.files.lock().unwrap().keys().cloned().collect())
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.change()?;
        self.files.lock().unwrap().remove(name);
        Ok(())
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.change()?;
        let mut files = self.files.lock().unwrap();
        let bytes = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.to_owned(), bytes);
        Ok(())
    }
    fn spaces(&self) -> io::Result<Vec<MetaSpace>> {
        match self.fill.load(Ordering::SeqCst) {
            0 => Err(io::ErrorKind::Unsupported.into()),
            fill => Ok(vec![MetaSpace { used_bytes: fill, total_bytes: 100, file_system: 0 }]),
        }
    }
}

impl MetaFile for MemoryFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.lock().unwrap().len() as u64)
    }
    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.dir.change()?;
        self.bytes.lock().unwrap().resize(usize::try_from(len_bytes).unwrap(), 0);
        Ok(())
    }
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if self.dir.changes_left.load(Ordering::SeqCst) == 0 {
            return Err(io::Error::other("the disk failed"));
        }
        let start = usize::try_from(offset).unwrap();
        let bytes = self.bytes.lock().unwrap();
        out.copy_from_slice(bytes.get(start..start + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.dir.change()?;
        let start = usize::try_from(offset).unwrap();
        let mut held = self.bytes.lock().unwrap();
        let end = (start + bytes.len()).max(held.len());
        held.resize(end, 0);
        held[start..start + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        self.dir.change()
    }
}

#[derive(Debug, Default)]
struct MemoryWitness {
    newest: Mutex<MetadataEpoch>,
    minority: std::sync::atomic::AtomicBool,
    refuses: std::sync::atomic::AtomicBool,
}

impl EpochWitness for MemoryWitness {
    fn record(&self, epoch: &MetadataEpoch) -> io::Result<()> {
        if self.refuses.load(Ordering::SeqCst) {
            return Err(io::Error::other("no majority"));
        }
        *self.newest.lock().unwrap() = epoch.clone();
        Ok(())
    }
    fn highest(&self) -> WitnessedEpoch {
        let newest = self.newest.lock().unwrap().clone();
        WitnessedEpoch { newest, majority: !self.minority.load(Ordering::SeqCst) }
    }
}

fn set<'a>(
    dirs: &[&Arc<MemoryDir>],
    witness: &Arc<MemoryWitness>,
    fresh_id: &'a mut dyn FnMut() -> [u8; 16],
) -> MetadataSet<'a> {
    let dirs = dirs.iter().map(|dir| (*dir).clone() as Arc<dyn MetaDir>).collect();
    MetadataSet { cluster: CLUSTER, dirs, witness: witness.clone(), fresh_id }
}

fn ids() -> impl FnMut() -> [u8; 16] {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    || u128::from(NEXT.fetch_add(1, Ordering::SeqCst)).to_le_bytes()
}

fn create(dirs: &[&Arc<MemoryDir>], witness: &Arc<MemoryWitness>) -> Arc<MirroredDir> {
    set(dirs, witness, &mut ids()).create().unwrap()
}

fn open(
    dirs: &[&Arc<MemoryDir>],
    witness: &Arc<MemoryWitness>,
) -> Result<(Arc<MirroredDir>, MetadataSetReport), MetadataSetError> {
    set(dirs, witness, &mut ids()).open()
}

/// Work as redb does it: make a file, write, sync, replace.
fn work(dir: &MirroredDir, round: u8) -> io::Result<()> {
    let name = format!("file-{round}");
    let file = dir.create("next")?;
    file.set_len(100)?;
    file.write_at(10, &[round; 2000])?;
    file.sync()?;
    dir.rename("next", &name)?;
    let file = dir.open(&name)?;
    file.write_at(0, b"later")?;
    file.sync()?;
    if round > 1 {
        dir.remove(&format!("file-{}", round - 2))?;
    }
    Ok(())
}

#[test]
fn a_set_is_made_written_and_opened_again() {
    let (a, b, witness) = (MemoryDir::new(), MemoryDir::new(), Arc::<MemoryWitness>::default());
    assert!(matches!(open(&[&a, &b], &witness), Err(MetadataSetError::NeverCreated)));
    let dir = create(&[&a, &b], &witness);
    for round in 0..4 {
        work(&dir, round).unwrap();
    }
    assert_eq!(a.contents(), b.contents());
    assert_eq!(dir.list().unwrap(), ["file-2", "file-3"]);
    assert_eq!(dir.open("gone").unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(dir.create("file-2").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(dir.open(MEMBER_FILE).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    assert_eq!(dir.epoch().epoch, 1, "answers about names fence nobody");
    let (dir, report) = open(&[&b.restarted(), &a.restarted()], &witness).unwrap();
    assert_eq!(report, MetadataSetReport { epoch: 2, fates: vec![MemberFate::Current; 2], missing: 0 });
    let mut out = [0; 5];
    dir.open("file-3").unwrap().read_at(0, &mut out).unwrap();
    assert_eq!(&out, b"later");
}

#[test]
fn i_o4_a_set_is_never_made_over_another() {
    let (a, b, witness) = (MemoryDir::new(), MemoryDir::new(), Arc::<MemoryWitness>::default());
    create(&[&a], &witness);
    assert!(matches!(set(&[&b], &witness, &mut ids()).create(), Err(MetadataSetError::Exists { .. })), "I-O4: devices");
    let fresh = Arc::<MemoryWitness>::default();
    assert!(matches!(set(&[&a], &fresh, &mut ids()).create(), Err(MetadataSetError::Exists { .. })), "I-O4: directory");
}

#[test]
fn i_l10_one_directory_may_fail_at_any_change_and_never_comes_back_stale() {
    for failing in [0, 1] {
        let mut changes = 0;
        loop {
            let (a, b, witness) = (MemoryDir::new(), MemoryDir::new(), Arc::<MemoryWitness>::default());
            let dir = create(&[&a, &b], &witness);
            let dirs = [&a, &b];
            let (bad, good) = (dirs[failing], dirs[1 - failing]);
            bad.fail_after(changes);
            for round in 0..4 {
                work(&dir, round).unwrap_or_else(|error| panic!("directory {failing}, change {changes}: {error}"));
            }
            if bad.refused.load(Ordering::SeqCst) == 0 {
                break; // it never failed: every change has been tried
            }
            assert_eq!(witness.highest().newest.epoch, 2, "I-L10: acknowledged without {failing}, and nobody knows");
            assert_eq!(dir.members().iter().filter(|member| member.healthy).count(), 1);
            // Only the stale one is there: refused, with both epochs named.
            let error = open(&[&bad.restarted()], &witness).map(|_| ()).unwrap_err();
            let stale = matches!(error, MetadataSetError::Stale { found_epoch: 1, current_epoch: 2 });
            assert!(stale, "I-L10: served from the stale directory: {error}");
            // Both: the stale one is filled from the good one, whatever their order.
            let (stale, current) = (bad.restarted(), good.restarted());
            let (again, report) = open(&[&stale, &current], &witness).unwrap();
            assert_eq!(report.fates, [MemberFate::Refilled, MemberFate::Current], "change {changes}");
            assert_eq!((report.epoch, again.epoch().members.len()), (4, 2), "raised by the open and by the joining");
            assert_eq!(stale.contents(), good.contents(), "change {changes}");
            // From then on it is as good as the other.
            let (stale, current) = (stale.restarted(), current.restarted());
            let (_, report) = open(&[&stale, &current], &witness).unwrap();
            assert_eq!(report.fates, vec![MemberFate::Current; 2]);
            // The refilled one alone is enough, and the node says that one is missing.
            let (_, report) = open(&[&stale.restarted()], &witness).unwrap();
            assert_eq!((report.epoch, report.missing), (6, 1));
            changes += 1;
        }
        assert!(changes > 20, "the work makes changes");
    }
}

#[test]
fn i_l10_a_copy_from_an_earlier_run_is_stale_whatever_it_is_called() {
    let (a, b, witness) = (MemoryDir::new(), MemoryDir::new(), Arc::<MemoryWitness>::default());
    create(&[&a, &b], &witness).close().unwrap();
    // Copied between two runs, and in the middle of the second.
    let between = [&a, &b].map(|dir| dir.restarted());
    let dir = open(&[&a, &b], &witness).unwrap().0;
    work(&dir, 0).unwrap();
    let running = [&a, &b].map(|dir| dir.restarted());
    work(&dir, 1).unwrap();
    dir.close().unwrap();
    let expected = a.contents();
    for copies in [&between, &running] {
        for (position, copy) in copies.iter().enumerate() {
            let mut dirs = [a.restarted(), b.restarted()];
            dirs[position] = copy.restarted();
            let witness = Arc::new(MemoryWitness { newest: Mutex::new(dir.epoch()), ..MemoryWitness::default() });
            let (_, report) = open(&dirs.each_ref(), &witness).unwrap();
            assert_eq!(report.fates[position], MemberFate::Refilled, "I-L10: an old copy passed for current");
            assert_eq!(dirs.each_ref().map(|dir| dir.contents()), [expected.clone(), expected.clone()]);
        }
        let witness = Arc::new(MemoryWitness { newest: Mutex::new(dir.epoch()), ..MemoryWitness::default() });
        let alone = [&copies[0], &copies[1]].map(|copy| copy.restarted());
        let error = open(&alone.each_ref(), &witness).map(|_| ()).unwrap_err();
        assert!(matches!(error, MetadataSetError::Stale { .. }), "I-L10: only old copies are there: {error}");
    }
}

#[test]
fn i_l10_a_copy_from_before_a_run_that_was_killed_is_stale() {
    let (a, b, witness) = (MemoryDir::new(), MemoryDir::new(), Arc::<MemoryWitness>::default());
    create(&[&a, &b], &witness).close().unwrap();
    let copies = [&a, &b].map(|dir| dir.restarted());
    // This run ends without a word.
    let dir = open(&[&a, &b], &witness).unwrap().0;
    work(&dir, 0).unwrap();
    let expected = a.contents();
    for (position, copy) in copies.iter().enumerate() {
        let mut dirs = [a.restarted(), b.restarted()];
        dirs[position] = copy.restarted();
        let witness = Arc::new(MemoryWitness { newest: Mutex::new(dir.epoch()), ..MemoryWitness::default() });
        let (_, report) = open(&dirs.each_ref(), &witness).unwrap();
        assert_eq!(report.fates[position], MemberFate::Refilled, "I-L10: an old copy passed for current");
        assert_eq!(dirs.each_ref().map(|dir| dir.contents()), [expected.clone(), expected.clone()]);
    }
}

#[test]
fn nothing_is_acknowledged_without_a_member_before_the_witness_knows() {
    let (a, b, witness) = (MemoryDir::new(), MemoryDir::new(), Arc::<MemoryWitness>::default());
    let dir = create(&[&a, &b], &witness);
    let file = dir.create("f").unwrap();
    witness.refuses.store(true, Ordering::SeqCst);
    b.fail_after(0);
    file.write_at(0, b"x").unwrap_err();
    file.sync().unwrap_err();
    dir.create("g").unwrap_err();
    witness.refuses.store(false, Ordering::SeqCst);
    file.sync().unwrap_err(); // I-D6: only a restart looks again
    let (_, report) = open(&[&a.restarted(), &b.restarted()], &witness).unwrap();
    assert_eq!(report.fates, [MemberFate::Current, MemberFate::Refilled]);
}

#[test]
fn the_owner_of_a_journal_fences_a_member_and_the_last_one_is_the_end() {
    let (a, b, witness) = (MemoryDir::new(), MemoryDir::new(), Arc::<MemoryWitness>::default());
    let dir = create(&[&a, &b], &witness);
    let members = dir.members();
    dir.fence_member(members[0].id, "its journal failed").unwrap();
    dir.fence_member(members[0].id, "again").unwrap();
    assert_eq!(dir.epoch(), MetadataEpoch { epoch: 2, members: vec![members[1].id] });
    work(&dir, 0).unwrap();
    assert!(a.contents().is_empty(), "a fenced directory is not written");
    dir.fence_member(members[1].id, "its journal failed").unwrap_err();
    assert!(work(&dir, 1).unwrap_err().to_string().contains("no metadata directory is left"));
}

#[test]
fn every_member_that_is_written_says_how_full_it_is() {
    let (a, b, witness) = (MemoryDir::new(), MemoryDir::new(), Arc::<MemoryWitness>::default());
    let dir = create(&[&a, &b], &witness);
    let fills = || dir.spaces().unwrap().into_iter().map(MetaSpace::fill_percent).collect::<Vec<u8>>();
    assert_eq!(fills(), Vec::<u8>::new());
    for (first, second, known) in [(10, 90, vec![10, 90]), (90, 10, vec![90, 10]), (0, 40, vec![40])] {
        a.fill.store(first, Ordering::SeqCst);
        b.fill.store(second, Ordering::SeqCst);
        assert_eq!(fills(), known);
    }
    a.fill.store(95, Ordering::SeqCst);
    dir.fence_member(dir.members()[0].id, "its journal failed").unwrap();
    assert_eq!(fills(), [40], "nobody writes to the other any more");
}

#[test]
fn i_o3_directories_that_are_all_full_fail_the_write_and_stay() {
    let (a, b, witness) = (MemoryDir::new(), MemoryDir::new(), Arc::<MemoryWitness>::default());
    let dir = create(&[&a, &b], &witness);
    let file = dir.create("f").unwrap();
    for full in [&a, &b] {
        *full.failure.lock().unwrap() = io::ErrorKind::StorageFull;
        full.fail_after(0);
    }
    assert_eq!(file.write_at(0, b"x").unwrap_err().kind(), io::ErrorKind::StorageFull);
    for full in [&a, &b] {
        full.fail_after(u64::MAX);
    }
    file.write_at(0, b"x").unwrap();
    assert_eq!(dir.epoch().epoch, 1);
}

#[test]
fn after_an_unclean_stop_mirrors_are_brought_in_line_but_journals_are_not() {
    let (a, b, witness) = (MemoryDir::new(), MemoryDir::new(), Arc::<MemoryWitness>::default());
    let dir = create(&[&a, &b], &witness);
    for name in ["table", "lane-0.journal"] {
        dir.create(name).unwrap().write_at(0, &vec![1; 3 << 20]).unwrap();
    }
    let (a, b) = (a.restarted(), b.restarted());
    for name in ["table", "lane-0.journal"] {
        b.open(name).unwrap().write_at(2 << 20, b"not flushed").unwrap();
    }
    b.create("surplus").unwrap();
    a.create("absent").unwrap().write_at(0, b"content").unwrap();
    let (_, report) = open(&[&a, &b], &witness).unwrap();
    assert_eq!(report.fates, vec![MemberFate::Current; 2]);
    let (mut left, mut right) = (a.contents(), b.contents());
    assert_ne!(left.remove("lane-0.journal"), right.remove("lane-0.journal"));
    assert_eq!(left, right);
}

#[test]
fn directories_that_are_not_ours_are_left_alone() {
    let (a, witness) = (MemoryDir::new(), Arc::<MemoryWitness>::default());
    create(&[&a], &witness);
    let (damaged, strangers, other) = (a.restarted(), MemoryDir::new(), MemoryDir::new());
    damaged.open(MEMBER_FILE).unwrap().write_at(20, b"???").unwrap();
    strangers.create("thesis.tex").unwrap();
    let foreign = Arc::<MemoryWitness>::default();
    let mut set = set(&[&other], &foreign, Box::leak(Box::new(ids())));
    set.cluster = ClusterId([8; 16]);
    set.create().unwrap();
    let before = [&damaged, &strangers, &other].map(|dir| dir.contents());
    let (_, report) = open(&[&a, &damaged, &strangers, &other], &witness).unwrap();
    assert_eq!(report.fates[0], MemberFate::Current);
    for (fate, what) in report.fates[1..].iter().zip(["damaged", "no `member`", "belongs to cluster"]) {
        assert!(matches!(fate, MemberFate::LeftOut { reason } if reason.contains(what)), "{what}: {fate:?}");
    }
    assert_eq!(before, [&damaged, &strangers, &other].map(|dir| dir.contents()));
}

#[test]
fn directories_of_two_nodes_of_one_cluster_are_refused() {
    let (a, b) = (MemoryDir::new(), MemoryDir::new());
    let (witness, other) = (Arc::<MemoryWitness>::default(), Arc::<MemoryWitness>::default());
    create(&[&a], &witness);
    create(&[&b], &other);
    assert!(matches!(open(&[&a, &b], &witness), Err(MetadataSetError::OtherSet { index: _ })));
}

#[test]
fn with_members_missing_a_minority_of_devices_is_not_enough() {
    let (a, b, witness) = (MemoryDir::new(), MemoryDir::new(), Arc::<MemoryWitness>::default());
    create(&[&a, &b], &witness);
    witness.minority.store(true, Ordering::SeqCst);
    assert!(matches!(open(&[&a], &witness), Err(MetadataSetError::Uncertain { missing: 1, epoch: 1 })));
    // All of them: there can't be a higher epoch, and a new one could not be recorded (I-O3: it opens all the same).
    let (dir, report) = open(&[&a, &b], &witness).unwrap();
    assert_eq!(report.epoch, 1);
    dir.close().unwrap();
}

#[test]
fn an_epoch_that_a_crash_cut_off_does_not_pass_for_one_that_was_recorded() {
    let (a, b, witness) = (MemoryDir::new(), MemoryDir::new(), Arc::<MemoryWitness>::default());
    let dir = create(&[&a, &b], &witness);
    let first = dir.epoch();
    // A crash leaves epoch 2 on `a` alone; then `a` is away while `b` goes on alone, as epoch 2 too.
    let identity = Identity { cluster: CLUSTER, set: DirState::read(&*a, CLUSTER).record().unwrap().set };
    let cut_off = MetadataEpoch { epoch: 2, members: first.members.clone() };
    MemberRecord::new(identity, first.members[0], cut_off).write(&*a).unwrap();
    let (dir, report) = open(&[&b], &witness).unwrap();
    assert_eq!(report.epoch, 2);
    dir.create("acknowledged").unwrap();
    for order in [[&a, &b], [&b, &a]] {
        let witness = Arc::new(MemoryWitness { newest: Mutex::new(dir.epoch()), ..MemoryWitness::default() });
        let (dir, _) = open(&order.map(|dir| dir.restarted()).each_ref(), &witness).unwrap();
        dir.open("acknowledged").unwrap();
        // Too few devices to know: refused, or served from what went on. Never from what did not.
        let unsure = Arc::<MemoryWitness>::default();
        unsure.minority.store(true, Ordering::SeqCst);
        match open(&order.map(|dir| dir.restarted()).each_ref(), &unsure) {
            Ok((dir, _)) => drop(dir.open("acknowledged").unwrap()),
            Err(error) => assert!(matches!(error, MetadataSetError::Uncertain { .. }), "{error}"),
        }
    }
}

#[test]
fn a_crash_at_any_change_while_a_directory_is_filled_loses_nothing() {
    for failing in [0, 1] {
        for changes in 0..40 {
            let (a, blank, witness) = (MemoryDir::new(), MemoryDir::new(), Arc::<MemoryWitness>::default());
            let dir = create(&[&a], &witness);
            for round in 0..3 {
                work(&dir, round).unwrap();
            }
            let expected = a.contents();
            // The change fails and so does all after it: for what is on the disks that is a crash at this point.
            [&a, &blank][failing].fail_after(changes);
            drop(open(&[&a, &blank], &witness));
            let (a, blank) = (a.restarted(), blank.restarted());
            let (_, report) = open(&[&a, &blank], &witness).unwrap();
            assert!(
                !report.fates.iter().any(|fate| matches!(fate, MemberFate::LeftOut { .. })),
                "{changes}: {report:?}"
            );
            assert_eq!(a.contents(), expected, "change {changes} of directory {failing}");
            assert_eq!(blank.contents(), expected, "change {changes} of directory {failing}");
        }
    }
}

#[test]
fn member_files_that_are_cut_or_flipped_are_damage() {
    let epoch = MetadataEpoch { epoch: 3, members: vec![MemberId([1; 16]), MemberId([2; 16])] };
    let record = MemberRecord { cluster: CLUSTER, set: [9; 16], id: MemberId([1; 16]), epoch };
    let bytes = record.encode();
    assert_eq!(MemberRecord::decode(&bytes).unwrap(), record);
    for len in 0..bytes.len() {
        MemberRecord::decode(&bytes[..len]).unwrap_err();
    }
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        MemberRecord::decode(&flipped).unwrap_err();
    }
}
