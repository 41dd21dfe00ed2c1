//! The node's metadata directories: made by `init`, opened at every start.

use crate::devices::NodeDevice;
use crate::status::MetadataDirReport;
use anyhow::{Context, Result, bail};
use kiseki_devices::meta_dir::FsDir;
use kiseki_devices::metadata_set::{EpochWitness, MemberFate, MetadataSet, MetadataSetError, MirroredDir};
use kiseki_devices::superblock::{SuperblockKeeper, SuperblockWitness};
use kiseki_types::ids::ClusterId;
use kiseki_types::meta::MetaDir;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Says, durably in every metadata directory, that the cluster's first shards exist: from then on a missing one is
/// lost, never new (I-L10, I-O4).
const FORMED_FILE: &str = "formed";

/// Says, durably in every metadata directory, which node of a cluster this is. It never forms one (I-O4).
const JOINED_FILE: &str = "joined";

/// Longest such note.
const JOINED_LEN_BYTES_MAX: u64 = 4096;

/// What a node that joined a cluster has noted of itself, before its first start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinNote {
    /// Its number.
    pub node: u64,
    /// Homes of the cluster.
    pub homes: u16,
}

/// The opened metadata set.
pub struct NodeMetadata {
    /// As one directory.
    pub dir: Arc<MirroredDir>,
    /// Paths of the directories, by their number in the set.
    pub paths: Vec<PathBuf>,
    /// Numbers of directories that were filled at this start: their journals are filled too.
    pub refilled: Vec<usize>,
    /// One report for each configured directory.
    pub reports: Vec<MetadataDirReport>,
    /// Whether the node has not been started whole yet: only then may its lanes start empty.
    pub is_new: bool,
    /// What it noted when it joined; `None` for the node that forms the cluster.
    pub joined: Option<JoinNote>,
}

impl NodeMetadata {
    /// Whether the cluster's first shards are still to be made, by this node: it is new and joined nobody (I-O4).
    #[must_use]
    pub fn forms_cluster(&self) -> bool {
        self.is_new && self.joined.is_none()
    }
}

/// Superblocks of the usable devices as the witness of the metadata set; `configured` counts the missing ones too.
#[must_use]
pub fn witness(devices: &[NodeDevice], configured: usize) -> Arc<SuperblockWitness> {
    let keepers: Vec<Arc<SuperblockKeeper>> = devices.iter().map(|device| device.keeper.clone()).collect();
    let enrolled = configured.max(keepers.len());
    Arc::new(SuperblockWitness::new(keepers, enrolled))
}

fn fresh_id() -> [u8; 16] {
    let mut id = [0; 16];
    getrandom::fill(&mut id).expect("the kernel's random generator answers");
    id
}

/// Sets a new metadata set up unless there is one. True if it did.
pub fn create_if_new(cluster: ClusterId, paths: &[PathBuf], witness: Arc<dyn EpochWitness>) -> Result<bool> {
    if witness.highest().newest.epoch > 0 {
        return Ok(false);
    }
    let mut dirs: Vec<Arc<dyn MetaDir>> = Vec::new();
    for path in paths {
        let dir = FsDir::open(path).with_context(|| format!("metadata directory {}", path.display()))?;
        dirs.push(Arc::new(dir));
    }
    match (MetadataSet { cluster, dirs, witness, fresh_id: &mut fresh_id }).create() {
        Ok(_) => Ok(true),
        // A crash of an earlier run before the devices heard of it; opening it finishes that.
        Err(MetadataSetError::Exists { .. }) => Ok(false),
        Err(error) => Err(error).context("the metadata directories can't be set up"),
    }
}

/// Opens the set with the directories that are there.
pub fn open(cluster: ClusterId, configured: &[PathBuf], witness: Arc<dyn EpochWitness>) -> Result<NodeMetadata> {
    let mut reports: Vec<MetadataDirReport> = Vec::new();
    let (mut dirs, mut paths, mut positions) = (Vec::<Arc<dyn MetaDir>>::new(), Vec::new(), Vec::new());
    for (position, path) in configured.iter().enumerate() {
        let path_text = path.display().to_string();
        let mut report =
            MetadataDirReport { path: path_text, state: "current".to_owned(), ..MetadataDirReport::default() };
        match FsDir::open(path) {
            Ok(dir) => {
                dirs.push(Arc::new(dir));
                paths.push(path.clone());
                positions.push(position);
            }
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => bail!("{error}"),
            Err(error) => {
                tracing::warn!(
                    directory = %path.display(), %error,
                    "metadata directory not used; mount it or make it anew (mkdir), it is filled at the next start"
                );
                report.state = "absent".to_owned();
                report.reason = format!("{error}; mount it or make it anew (mkdir) and restart: it is filled");
            }
        }
        reports.push(report);
    }
    if dirs.is_empty() {
        bail!("none of the metadata directories can be opened; mount the disk that holds one");
    }
    let opened = MetadataSet { cluster, dirs, witness, fresh_id: &mut fresh_id }.open();
    let (dir, report) = opened.map_err(|error| match error {
        MetadataSetError::NeverCreated => anyhow::anyhow!("this node was never set up; run `kiseki-server init`"),
        other => other.into(),
    })?;
    let mut refilled = Vec::new();
    for (index, fate) in report.fates.iter().enumerate() {
        match fate {
            MemberFate::Current => {}
            MemberFate::Refilled => {
                tracing::info!(directory = %paths[index].display(), "metadata directory was stale or new; filled");
                refilled.push(index);
            }
            MemberFate::LeftOut { reason } => {
                reports[positions[index]].state = "stale".to_owned();
                reports[positions[index]].reason.clone_from(reason);
            }
            _ => reports[positions[index]].state = "stale".to_owned(),
        }
    }
    let is_new = match dir.open(FORMED_FILE) {
        Ok(_) => false,
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        Err(error) => return Err(error).context("the metadata directories can't be read"),
    };
    let joined = read_note(&dir)?;
    Ok(NodeMetadata { dir, paths, refilled, reports, is_new, joined })
}

fn read_note(dir: &MirroredDir) -> Result<Option<JoinNote>> {
    let read = || -> io::Result<Option<Vec<u8>>> {
        let file = match dir.open(JOINED_FILE) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let mut bytes = vec![0; usize::try_from(file.len()?.min(JOINED_LEN_BYTES_MAX)).expect("bounded")];
        file.read_at(0, &mut bytes)?;
        Ok(Some(bytes))
    };
    let Some(bytes) = read().context("the metadata directories can't be read")? else { return Ok(None) };
    let note = serde_json::from_slice(&bytes);
    note.map(Some).with_context(|| format!("{JOINED_FILE} in the metadata directories makes no sense"))
}

/// Whether one of the directories says already that the node has formed a cluster, or joined one.
#[must_use]
pub fn is_settled(paths: &[PathBuf]) -> bool {
    paths.iter().any(|path| [FORMED_FILE, JOINED_FILE].iter().any(|name| path.join(name).exists()))
}

/// Notes which node of a cluster this is; durable on return. What is noted stays: a node never takes another number.
pub fn note_joined(dir: &MirroredDir, note: JoinNote) -> Result<()> {
    if let Some(known) = read_note(dir)? {
        if known != note {
            bail!(
                "this directory belongs to node {}; a node never takes another number: join with a new directory and with \
                 devices that are formatted anew",
                known.node
            );
        }
        return Ok(());
    }
    let write = || -> io::Result<()> {
        let unready = format!("{JOINED_FILE}.new");
        dir.remove(&unready)?; // left by a crash
        let file = dir.create(&unready)?;
        file.write_at(0, &serde_json::to_vec(&note).map_err(io::Error::other)?)?;
        file.sync()?;
        dir.rename(&unready, JOINED_FILE)
    };
    write().context("the metadata directories can't be written")
}

/// Notes that the first shards exist; durable on return. Blocks.
pub fn mark_formed(dir: &MirroredDir) -> io::Result<()> {
    match dir.create(FORMED_FILE) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map(drop),
    }
}

/// The file of a lane's Raft journal in a metadata directory. The ending keeps the set from bringing it in line: the
/// journal does that itself.
#[must_use]
pub fn raft_journal_path(dir: &Path, lane: u16) -> PathBuf {
    dir.join(format!("lane-{lane}.journal"))
}
