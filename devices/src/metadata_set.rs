//! The set of metadata directories: which of them hold everything, and how one that does not gets it back.
//!
//! Every directory carries a `member` file, every device's superblock a copy of the newest epoch. Whenever a directory
//! leaves, the next metadata-set epoch, naming those that stay, is made durable on all of these and on a majority of
//! the superblocks **before anything is acknowledged without it**. So a directory that missed something can always be
//! told from one that did not: it is not in the highest epoch. It is never read again; it is wiped, filled from a
//! current one, and joins under a new id with the next epoch. Bytes: `docs/formats/metadata-set.md`.

mod fill;
mod member;
mod mirrored;
#[cfg(test)]
mod tests;

pub use member::recorded_epoch;
pub(crate) use member::{fuzz_member, fuzz_member_seed};
pub use mirrored::{MemberStatus, MirroredDir};

use crate::superblock::{METADATA_MEMBERS_MAX, MemberId, MetadataEpoch};
use kiseki_types::ClusterId;
use kiseki_types::meta::MetaDir;
use member::{DirState, MEMBER_FILE, MEMBER_FILE_NEXT, MemberRecord};
use std::fmt;
use std::io;
use std::sync::Arc;
use thiserror::Error;

/// What the witness holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WitnessedEpoch {
    /// The highest epoch found.
    pub newest: MetadataEpoch,
    /// Whether a majority was asked: only then is there certainly no higher one.
    pub majority: bool,
}

/// Remembers metadata-set epochs outside the directories themselves: the superblocks of the devices.
///
/// To be correct: after `record` returned Ok, every later `highest` that says `majority` shows that epoch or a higher
/// one, across any crash. Both block.
pub trait EpochWitness: Send + Sync + fmt::Debug {
    /// Records an epoch; durable on a majority on return.
    fn record(&self, epoch: &MetadataEpoch) -> io::Result<()>;
    /// The highest epoch that can be seen now.
    fn highest(&self) -> WitnessedEpoch;
}

/// Why a metadata set does not open.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MetadataSetError {
    /// The configuration names none, or too many.
    #[error("{count} metadata directories are configured; 1 to {METADATA_MEMBERS_MAX} are possible")]
    Count {
        /// How many.
        count: usize,
    },
    /// No directory and no device knows of a set.
    #[error("no metadata directory of this node has ever been set up; set the node up first")]
    NeverCreated,
    /// A set is to be made where one is or was (I-O4).
    #[error("a metadata set exists already ({reason}); it is never set up over (I-O4)")]
    Exists {
        /// What was found.
        reason: String,
    },
    /// Only directories are there that missed something. Serving them would take back what was acknowledged.
    #[error(
        "only stale metadata directories are there: the newest is of metadata-set epoch {found_epoch}, the devices \
         or other directories name epoch {current_epoch}; bring back a directory of that epoch"
    )]
    Stale {
        /// The highest epoch of a directory that is there.
        found_epoch: u64,
        /// The epoch that would be needed.
        current_epoch: u64,
    },
    /// Directories are missing, and too few devices are there to rule out that they went on alone.
    #[error(
        "{missing} of the metadata directories of epoch {epoch} are missing, and too few devices answer to say whether \
         they went on without the others; bring back the directories or a majority of the devices"
    )]
    Uncertain {
        /// How many are missing.
        missing: usize,
        /// The highest epoch seen.
        epoch: u64,
    },
    /// Directories of two sets are configured together.
    #[error("metadata directory {index} belongs to another node than the ones before it; correct the configuration")]
    OtherSet {
        /// Its number in the configuration, from 0.
        index: usize,
    },
    /// Current directories failed while they were read or brought in line.
    #[error("no current metadata directory can be read and written")]
    Io(#[from] io::Error),
}

/// What became of one configured directory.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemberFate {
    /// It held everything.
    Current,
    /// It was stale or new, and was filled from a current one.
    Refilled,
    /// It is not used.
    LeftOut {
        /// Why, and what to do.
        reason: String,
    },
}

/// What an open found and did. One entry per configured directory, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataSetReport {
    /// The metadata-set epoch now.
    pub epoch: u64,
    /// What became of each directory.
    pub fates: Vec<MemberFate>,
    /// Members of the last epoch whose directories are not there.
    pub missing: usize,
}

/// Makes and opens metadata sets.
pub struct MetadataSet<'a> {
    /// Whose directories they have to be.
    pub cluster: ClusterId,
    /// The configured directories, in order. A directory that can't be opened at all is left away by the caller.
    pub dirs: Vec<Arc<dyn MetaDir>>,
    /// Remembers epochs.
    pub witness: Arc<dyn EpochWitness>,
    /// Draws new ids.
    pub fresh_id: &'a mut dyn FnMut() -> [u8; 16],
}

impl MetadataSet<'_> {
    /// Sets up a new set in empty directories. Errors: `Exists` when any is not empty or a device knows of a set.
    pub fn create(self) -> Result<Arc<MirroredDir>, MetadataSetError> {
        self.check_count()?;
        let witnessed = self.witness.highest().newest;
        if witnessed.epoch > 0 {
            let reason = format!("the devices know of metadata-set epoch {}", witnessed.epoch);
            return Err(MetadataSetError::Exists { reason });
        }
        for (index, dir) in self.dirs.iter().enumerate() {
            if DirState::read(&**dir, self.cluster) != DirState::Blank {
                return Err(MetadataSetError::Exists { reason: format!("metadata directory {index} is not empty") });
            }
        }
        let set = (self.fresh_id)();
        let members: Vec<Joined> = (self.dirs.into_iter().enumerate())
            .map(|(index, dir)| Joined { index, id: MemberId((self.fresh_id)()), dir })
            .collect();
        let ids = members.iter().map(|member| member.id).collect();
        let identity = Identity { cluster: self.cluster, set };
        let mirrored = MirroredDir::assemble(identity, MetadataEpoch { epoch: 0, members: ids }, members, self.witness);
        mirrored.raise(Vec::new())?;
        Ok(mirrored)
    }

    /// Opens the set: finds the current directories, brings them in line with each other, fills the others.
    ///
    /// It copies in the caller, so it may take long when a large directory is filled.
    pub fn open(self) -> Result<(Arc<MirroredDir>, MetadataSetReport), MetadataSetError> {
        self.check_count()?;
        let states: Vec<DirState> = self.dirs.iter().map(|dir| DirState::read(&**dir, self.cluster)).collect();
        let witnessed = self.witness.highest();
        let found = survey(&states, &witnessed)?;
        let identity = Identity { cluster: self.cluster, set: found.set };
        let current: Vec<Joined> = (found.current.iter())
            .map(|(index, id)| Joined { index: *index, id: *id, dir: self.dirs[*index].clone() })
            .collect();
        let mirrored = MirroredDir::assemble(identity, found.epoch.clone(), current, self.witness);
        if found.missing > 0 {
            tracing::warn!(missing = found.missing, "metadata directories are missing; going on without them");
        }
        // At every open: a copy of a directory that somebody puts back later is stale by its number alone (I-L10).
        match witnessed.majority {
            true => mirrored.raise(Vec::new())?,
            // All members are there, so there is no higher epoch; without most devices none can be recorded (I-O3).
            false => {
                tracing::warn!("too few devices answer to record a new metadata-set epoch; going on with the old one")
            }
        }
        mirrored.bring_in_line()?;
        let mut fates: Vec<MemberFate> = states.iter().map(|state| state.unused_reason()).collect();
        let mut filled = Vec::new();
        for (index, dir) in self.dirs.iter().enumerate() {
            if found.current.iter().any(|(current, _)| *current == index) {
                fates[index] = MemberFate::Current;
            } else if states[index].may_be_filled() {
                let id = MemberId((self.fresh_id)());
                fates[index] = match mirrored.fill(id, &**dir) {
                    Ok(()) => {
                        filled.push(Joined { index, id, dir: dir.clone() });
                        MemberFate::Refilled
                    }
                    Err(error) => MemberFate::LeftOut { reason: format!("filling it failed: {error}") },
                };
            }
        }
        if !filled.is_empty() {
            mirrored.raise(filled)?;
        }
        let status = mirrored.members();
        for (index, fate) in fates.iter_mut().enumerate() {
            let joined = status.iter().any(|member| member.index == index && member.healthy);
            if !joined && !matches!(fate, MemberFate::LeftOut { .. }) {
                *fate = MemberFate::LeftOut { reason: "it failed while the set was opened".to_owned() };
            }
            if let MemberFate::LeftOut { reason } = fate {
                tracing::warn!(directory = index, %reason, "metadata directory left out");
            }
        }
        let report = MetadataSetReport { epoch: mirrored.epoch().epoch, fates, missing: found.missing };
        Ok((mirrored, report))
    }

    fn check_count(&self) -> Result<(), MetadataSetError> {
        match self.dirs.len() {
            1..=METADATA_MEMBERS_MAX => Ok(()),
            count => Err(MetadataSetError::Count { count }),
        }
    }
}

/// Whose set it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    cluster: ClusterId,
    /// Id of the set, drawn when it was made: two nodes of one cluster never mix theirs up.
    set: [u8; 16],
}

/// A directory that takes part.
#[derive(Clone, Debug)]
struct Joined {
    index: usize,
    id: MemberId,
    dir: Arc<dyn MetaDir>,
}

/// What the directories and the witness say together.
struct Survey {
    set: [u8; 16],
    epoch: MetadataEpoch,
    /// Position and id of the directories that hold everything.
    current: Vec<(usize, MemberId)>,
    missing: usize,
}

/// Decides which directories are current. Pure.
fn survey(states: &[DirState], witnessed: &WitnessedEpoch) -> Result<Survey, MetadataSetError> {
    let records: Vec<(usize, &MemberRecord)> =
        states.iter().enumerate().filter_map(|(index, state)| state.record().map(|record| (index, record))).collect();
    let newest = records.iter().max_by_key(|(_, record)| record.epoch.epoch).map(|(_, record)| *record);
    let found_epoch = newest.map_or(0, |record| record.epoch.epoch);
    let current_epoch = found_epoch.max(witnessed.newest.epoch);
    if current_epoch == 0 {
        return Err(MetadataSetError::NeverCreated);
    }
    if let Some((index, _)) = records.iter().find(|(_, record)| Some(record.set) != newest.map(|newest| newest.set)) {
        return Err(MetadataSetError::OtherSet { index: *index });
    }
    let stale = MetadataSetError::Stale { found_epoch, current_epoch };
    let Some(newest) = newest.filter(|newest| newest.epoch.epoch == current_epoch) else { return Err(stale) };
    // An epoch that a crash cut off on its way to the members may share its number with one that another member went
    // on with. Only the latter got as far as the witness, so its list decides.
    let members = match witnessed.newest.epoch == current_epoch {
        true => &witnessed.newest.members,
        false => &newest.epoch.members,
    };
    let mut current: Vec<(usize, MemberId)> = Vec::new();
    for (index, record) in &records {
        let copied = current.iter().any(|(_, id)| *id == record.id); // a directory that somebody copied
        let holds_all = record.epoch.epoch == current_epoch && record.epoch.members == *members;
        if holds_all && members.contains(&record.id) && !copied {
            current.push((*index, record.id));
        }
    }
    if current.is_empty() {
        return Err(stale);
    }
    let missing = members.len() - current.len();
    // With all members of an epoch there is no higher one: it would have been written to one of them first.
    if missing > 0 && !witnessed.majority {
        return Err(MetadataSetError::Uncertain { missing, epoch: current_epoch });
    }
    let epoch = MetadataEpoch { epoch: current_epoch, members: members.clone() };
    Ok(Survey { set: newest.set, epoch, current, missing })
}
