//! The current metadata directories as one: writes go to all of them, reads come from the first.
//!
//! A member that fails is fenced: the next metadata-set epoch without it is made durable, and only then does the
//! operation that saw the failure return. Operations of other threads that began meanwhile wait for that as well: a
//! member whose flush failed once may well report success to the next one.

use super::fill::{self, CopyError};
use super::member::MemberRecord;
use super::{EpochWitness, Identity, Joined, MEMBER_FILE, MEMBER_FILE_NEXT};
use crate::superblock::{MemberId, MetadataEpoch};
use kiseki_types::meta::{MetaDir, MetaFile, MetaSpace};
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// One member, for health and for the owners of journals.
#[derive(Clone, Debug)]
pub struct MemberStatus {
    /// Position of its directory in the configuration, from 0.
    pub index: usize,
    /// Its id.
    pub id: MemberId,
    /// Its directory.
    pub dir: Arc<dyn MetaDir>,
    /// False once it is fenced.
    pub healthy: bool,
}

/// All current metadata directories as one directory.
#[derive(Debug)]
pub struct MirroredDir {
    set: Arc<Set>,
}

/// What the directory and its open files share.
struct Set {
    identity: Identity,
    witness: Arc<dyn EpochWitness>,
    members: RwLock<Vec<Arc<Member>>>,
    /// Bytes that copies of files may take.
    reserved: Arc<AtomicU64>,
    /// Held while an epoch is raised, so one at a time.
    state: Mutex<SetState>,
}

struct SetState {
    epoch: MetadataEpoch,
    /// Why nothing works any more: no member is left, or an epoch could not be recorded.
    broken: Option<String>,
}

struct Member {
    joined: Joined,
    /// It failed; whoever notices has to wait until it is out.
    suspect: AtomicBool,
    /// An epoch without it is durable: it may be left away.
    out: AtomicBool,
}

impl Member {
    fn new(joined: Joined) -> Arc<Member> {
        Arc::new(Member { joined, suspect: AtomicBool::new(false), out: AtomicBool::new(false) })
    }
    fn is_out(&self) -> bool {
        self.out.load(Ordering::Acquire)
    }
    fn is_suspect(&self) -> bool {
        self.suspect.load(Ordering::Acquire)
    }
}

impl MirroredDir {
    /// The members as one directory; nothing is written yet.
    pub(super) fn assemble(
        identity: Identity,
        epoch: MetadataEpoch,
        members: Vec<Joined>,
        witness: Arc<dyn EpochWitness>,
    ) -> Arc<MirroredDir> {
        assert!(!members.is_empty(), "a metadata set has a member");
        let members = RwLock::new(members.into_iter().map(Member::new).collect());
        let state = Mutex::new(SetState { epoch, broken: None });
        Arc::new(MirroredDir { set: Arc::new(Set { identity, witness, members, reserved: Arc::default(), state }) })
    }

    /// The metadata-set epoch and its members.
    #[must_use]
    pub fn epoch(&self) -> MetadataEpoch {
        self.set.lock().epoch.clone()
    }

    /// All members since the set was opened, fenced ones included.
    #[must_use]
    pub fn members(&self) -> Vec<MemberStatus> {
        let status = |member: &Arc<Member>| MemberStatus {
            index: member.joined.index,
            id: member.joined.id,
            dir: member.joined.dir.clone(),
            healthy: !member.is_out() && !member.is_suspect(),
        };
        self.set.all().iter().map(status).collect()
    }

    /// Ends a clean stop: raises the epoch once more, so that a copy that was made of a directory while the node ran is
    /// told from what the node left behind. Where too few devices answer to record it, the old one stays. Blocks.
    pub fn close(&self) -> io::Result<()> {
        match self.set.witness.highest().majority {
            true => self.raise(Vec::new()),
            false => Ok(()),
        }
    }

    /// Goes on without a member, because its journal (or anything else in its directory) failed.
    ///
    /// On Ok a higher epoch without it is durable: what follows may be acknowledged without it. On Err nothing may be
    /// acknowledged any more: it was the last one, or the epoch could not be recorded. Blocks; idempotent.
    pub fn fence_member(&self, id: MemberId, reason: &str) -> io::Result<()> {
        match self.set.all().iter().find(|member| member.joined.id == id) {
            Some(member) => self.set.fence(member, reason),
            None => Err(io::Error::new(io::ErrorKind::NotFound, format!("no metadata directory has id {id}"))),
        }
    }

    /// Makes the next epoch durable, of the members that are not out and of those that join.
    pub(super) fn raise(&self, joining: Vec<Joined>) -> io::Result<()> {
        let mut state = self.set.lock();
        let joining: Vec<Arc<Member>> = joining.into_iter().map(Member::new).collect();
        self.set.members.write().unwrap_or_else(PoisonError::into_inner).extend(joining);
        self.set.raise(&mut state)
    }

    /// Makes all members equal to the first one. After an unclean stop each of them is a state that a crash may leave,
    /// and together they may differ in what was not flushed.
    pub(super) fn bring_in_line(&self) -> io::Result<()> {
        loop {
            let members = self.set.trusted()?;
            let [source, others @ ..] = &members[..] else { unreachable!("trusted() is not empty") };
            match others.iter().try_for_each(|target| self.align(source, target)) {
                Ok(()) => return Ok(()),
                Err((member, error)) => self.set.fence(&member, &error.to_string())?,
            }
        }
    }

    /// Brings one member in line. The error names the one that failed.
    fn align(&self, source: &Arc<Member>, target: &Arc<Member>) -> Result<(), (Arc<Member>, io::Error)> {
        let (from, to) = (&*source.joined.dir, &*target.joined.dir);
        let all = fill::differences(from, to).map_err(|error| match error {
            CopyError::Source(error) => (source.clone(), error),
            CopyError::Target(error) => (target.clone(), error),
        })?;
        // Half aligned, the target is no state that a crash could leave: whichever side fails, it is the target that
        // goes. If the source is really bad its next failure says so.
        fill::apply(from, to, all).map_err(|error| match error {
            CopyError::Source(error) | CopyError::Target(error) => (target.clone(), error),
        })
    }

    /// Wipes a directory that is no member and copies everything into it.
    pub(super) fn fill(&self, id: MemberId, target: &dyn MetaDir) -> io::Result<()> {
        // Marked as ours and stale, so that a crash half-way leaves a directory that may be wiped again.
        MemberRecord::new(self.set.identity, id, MetadataEpoch::default()).write(target)?;
        let source = self.set.trusted()?.swap_remove(0);
        fill::fill(&*source.joined.dir, target).map_err(|error| match error {
            CopyError::Source(error) | CopyError::Target(error) => error,
        })
    }
}

impl Set {
    fn lock(&self) -> MutexGuard<'_, SetState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all(&self) -> Vec<Arc<Member>> {
        self.members.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Members to work with, at least one; the error says why the set is broken.
    fn trusted(&self) -> io::Result<Vec<Arc<Member>>> {
        let members: Vec<_> =
            self.all().into_iter().filter(|member| !member.is_out() && !member.is_suspect()).collect();
        match members.is_empty() {
            false => Ok(members),
            true => Err(self.broken_error(&self.lock())),
        }
    }

    fn broken_error(&self, state: &SetState) -> io::Error {
        let reason = state.broken.as_deref().unwrap_or("every metadata directory failed");
        io::Error::other(format!("metadata can't be written: {reason}; restart the node when it is repaired"))
    }

    /// Takes a member out. On return an epoch without it is durable, or the set is broken.
    fn fence(&self, member: &Arc<Member>, reason: &str) -> io::Result<()> {
        // Before the lock: whoever works on the member from now on, or just did, comes here and waits.
        member.suspect.store(true, Ordering::Release);
        let mut state = self.lock();
        if state.broken.is_some() {
            return Err(self.broken_error(&state));
        }
        if member.is_out() {
            return Ok(());
        }
        tracing::error!(
            directory = member.joined.index, member = %member.joined.id, reason,
            "metadata directory failed; going on without it"
        );
        self.raise(&mut state)
    }

    /// Makes the next epoch durable: the trusted members, first those of the last epoch, then the joining ones, then a
    /// majority of the superblocks. A crash in between leaves the old epoch or one that those who have it can serve.
    fn raise(&self, state: &mut SetState) -> io::Result<()> {
        loop {
            let all = self.all();
            let old = |member: &&Arc<Member>| state.epoch.members.contains(&member.joined.id);
            let trusted = || all.iter().filter(|member| !member.is_out() && !member.is_suspect());
            let staying: Vec<&Arc<Member>> =
                trusted().filter(old).chain(trusted().filter(|member| !old(member))).collect();
            if staying.is_empty() {
                state.broken = Some("no metadata directory is left".to_owned());
                return Err(self.broken_error(state));
            }
            let ids = staying.iter().map(|member| member.joined.id).collect();
            let next = MetadataEpoch { epoch: state.epoch.epoch + 1, members: ids };
            // Used up even if it fails half-way: two different sets must never bear one number.
            state.epoch.epoch = next.epoch;
            let failed = staying.iter().find_map(|member| {
                let record = MemberRecord::new(self.identity, member.joined.id, next.clone());
                record.write(&*member.joined.dir).err().map(|error| (*member, error))
            });
            if let Some((member, error)) = failed {
                tracing::error!(
                    directory = member.joined.index, member = %member.joined.id, %error, "metadata directory failed"
                );
                member.suspect.store(true, Ordering::Release);
                continue;
            }
            if let Err(error) = self.witness.record(&next) {
                state.broken = Some(format!("metadata-set epoch {} could not be recorded: {error}", next.epoch));
                return Err(self.broken_error(state));
            }
            state.epoch = next;
            for member in all.iter().filter(|member| member.is_suspect()) {
                member.out.store(true, Ordering::Release);
            }
            return Ok(());
        }
    }

    /// Carries out an operation on every member and fences those that fail. The answer is the first member's.
    ///
    /// What the first member says about names (`NotFound`, `AlreadyExists`, a bad name) is the answer. A full file
    /// system is no failure of the directory when all of them are full: the caller is told and nothing was flushed.
    fn on_all<T>(&self, operation: impl Fn(usize, &Member) -> io::Result<T>) -> io::Result<Answers<T>> {
        self.check_usable()?;
        let all = self.all();
        let mut answers: Vec<(usize, T)> = Vec::new();
        let mut failures: Vec<(&Arc<Member>, io::Error)> = Vec::new();
        for (position, member) in all.iter().enumerate() {
            if member.is_out() || member.is_suspect() {
                continue;
            }
            match operation(position, member) {
                Ok(answer) => answers.push((position, answer)),
                Err(error) if answers.is_empty() && failures.is_empty() && is_about_names(&error) => return Err(error),
                Err(error) => failures.push((member, error)),
            }
        }
        if answers.is_empty() && failures.iter().all(|(_, error)| error.kind() == io::ErrorKind::StorageFull) {
            return Err(failures.pop().map_or_else(|| self.broken_error(&self.lock()), |(_, error)| error));
        }
        for (member, error) in &failures {
            self.fence(member, &error.to_string())?;
        }
        self.settle(&all)?;
        Ok(answers)
    }

    /// Waits until every member that failed meanwhile, in whatever thread, is out: only then may the caller go on
    /// without it.
    fn settle(&self, all: &[Arc<Member>]) -> io::Result<()> {
        for member in all.iter().filter(|member| member.is_suspect() && !member.is_out()) {
            self.fence(member, "it failed in another thread")?;
        }
        self.check_usable()
    }

    fn check_usable(&self) -> io::Result<()> {
        let state = self.lock();
        match state.broken {
            None => Ok(()),
            Some(_) => Err(self.broken_error(&state)),
        }
    }

    /// Asks the members in turn until one can answer; those that could not are fenced.
    fn on_first<T>(&self, mut operation: impl FnMut(usize, &Member) -> io::Result<T>) -> io::Result<T> {
        let mut failures: Vec<(Arc<Member>, io::Error)> = Vec::new();
        for (position, member) in self.all().iter().enumerate() {
            if member.is_out() || member.is_suspect() {
                continue;
            }
            match operation(position, member) {
                Ok(answer) => {
                    for (failed, error) in &failures {
                        self.fence(failed, &error.to_string())?;
                    }
                    return Ok(answer);
                }
                Err(error) if is_about_names(&error) || error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(error);
                }
                Err(error) => failures.push((member.clone(), error)),
            }
        }
        // Nobody can answer, so there is nothing better to go on with: nobody is fenced.
        Err(failures.pop().map_or_else(|| self.broken_error(&self.lock()), |(_, error)| error))
    }
}

/// Answers by position of the member.
type Answers<T> = Vec<(usize, T)>;

fn is_about_names(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists | io::ErrorKind::InvalidInput)
}

fn check_name(name: &str) -> io::Result<()> {
    match name == MEMBER_FILE || name == MEMBER_FILE_NEXT {
        true => Err(io::Error::new(io::ErrorKind::InvalidInput, "this name belongs to the metadata set")),
        false => Ok(()),
    }
}

impl MirroredDir {
    fn file(&self, name: &str, answers: Answers<Arc<dyn MetaFile>>) -> Arc<dyn MetaFile> {
        let mut files: Vec<Option<Arc<dyn MetaFile>>> = self.set.all().iter().map(|_| None).collect();
        for (position, file) in answers {
            files[position] = Some(file);
        }
        Arc::new(MirroredFile { name: name.to_owned(), set: self.set.clone(), files })
    }
}

impl MetaDir for MirroredDir {
    fn open(&self, name: &str) -> io::Result<Arc<dyn MetaFile>> {
        check_name(name)?;
        let answers = self.set.on_all(|_, member| member.joined.dir.open(name))?;
        Ok(self.file(name, answers))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn MetaFile>> {
        check_name(name)?;
        let answers = self.set.on_all(|_, member| member.joined.dir.create(name))?;
        Ok(self.file(name, answers))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.set.on_first(|_, member| fill::mirrored_names(&*member.joined.dir))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        check_name(name)?;
        self.set.on_all(|_, member| member.joined.dir.remove(name)).map(drop)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        check_name(from)?;
        check_name(to)?;
        self.set.on_all(|_, member| member.joined.dir.rename(from, to)).map(drop)
    }

    fn reserved(&self) -> Option<Arc<AtomicU64>> {
        Some(self.set.reserved.clone())
    }

    fn spaces(&self) -> io::Result<Vec<MetaSpace>> {
        let members = self.set.all();
        let members = members.iter().filter(|member| !member.is_out() && !member.is_suspect());
        // One that does not say is not fenced for it: whatever is wrong shows when it is written.
        Ok(members.filter_map(|member| member.joined.dir.spaces().ok()).flatten().collect())
    }
}

/// One file in every member that was current when it was opened.
struct MirroredFile {
    name: String,
    set: Arc<Set>,
    /// By position of the member.
    files: Vec<Option<Arc<dyn MetaFile>>>,
}

impl MirroredFile {
    fn part(&self, position: usize) -> io::Result<&dyn MetaFile> {
        let part = self.files.get(position).and_then(Option::as_deref);
        part.ok_or_else(|| io::Error::other("the metadata directory failed when the file was opened"))
    }
}

impl MetaFile for MirroredFile {
    fn len(&self) -> io::Result<u64> {
        self.set.on_first(|position, _| self.part(position)?.len())
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.set.on_all(|position, _| self.part(position)?.set_len(len_bytes)).map(drop)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.set.on_first(|position, _| self.part(position)?.read_at(offset, out))
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.set.on_all(|position, _| self.part(position)?.write_at(offset, bytes)).map(drop)
    }

    fn sync(&self) -> io::Result<()> {
        self.set.on_all(|position, _| self.part(position)?.sync()).map(drop)
    }
}

impl fmt::Debug for MirroredFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MirroredFile({})", self.name)
    }
}

impl fmt::Debug for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MetadataSet({} members)", self.all().len())
    }
}
