//! A node that does not run, as offline tools see it: its configuration, its lane index tables, and (for a rebuild) those
//! tables made anew.

use crate::config::{Config, Overrides};
use crate::core_node::index_file;
use crate::devices;
use crate::format::on_executor;
use crate::metadata;
use crate::node::lock_dir;
use crate::scratch_dir::ScratchDir;
use anyhow::{Context, Result, anyhow, bail};
use kiseki_devices::index_rebuild::{LaneTable, NodeRows, RebuiltDevice, ReplaceProgress, replace_rows};
use kiseki_devices::metadata_set::recorded_epoch;
use kiseki_devices::nvme::path::PathPreference;
use kiseki_devices::superblock::Superblock;
use kiseki_raft::table_file::TableFile;
use kiseki_raft::table_set::TableSettings;
use kiseki_types::ids::{ClusterId, DeviceId, LaneId};
use kiseki_types::meta::MetaDir;
use kiseki_types::runtime::Ports;
use kiseki_types::table::TableError;
use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

/// A node's directory, held so that the node does not start meanwhile.
pub struct StoppedNode {
    /// Its configuration.
    pub config: Config,
    /// `None` when no node ever ran there.
    _lock: Option<File>,
}

/// What the index tables of a stopped node say.
pub struct FoundRows {
    /// Their rows.
    pub rows: NodeRows,
    /// Lanes whose table is not there or can't be read, and why.
    pub lost: Vec<(LaneId, String)>,
}

fn load(dir: &Path) -> Result<Config> {
    Ok(Config::load(&Overrides { dir: dir.to_owned(), ..Overrides::default() })?)
}

impl StoppedNode {
    /// Holds the node so that others may look too. Nothing in its directories is written. Errors: it runs.
    pub fn to_look(dir: &Path) -> Result<StoppedNode> {
        let config = load(dir)?;
        let path = config.dir.lock_file();
        let lock = match File::open(&path) {
            Ok(lock) => lock,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(StoppedNode { config, _lock: None });
            }
            Err(error) => return Err(error).with_context(|| format!("can't open {}", path.display())),
        };
        match kiseki_devices::file_lock::lock_shared(&lock) {
            Ok(()) => Ok(StoppedNode { config, _lock: Some(lock) }),
            Err(std::fs::TryLockError::WouldBlock) => {
                bail!("a node is running in {}; stop it first", config.dir.path().display())
            }
            Err(std::fs::TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("can't lock {}", path.display()))
            }
        }
    }

    /// Holds the node for oneself. Errors: it runs, or somebody looks.
    pub fn to_change(dir: &Path) -> Result<StoppedNode> {
        let config = load(dir)?;
        let lock = lock_dir(&config.dir)?;
        Ok(StoppedNode { config, _lock: Some(lock) })
    }

    /// Reads the index tables without a write, from the current metadata directory. `devices` are superblocks of the
    /// node's devices: they know its cluster, its lanes, and which metadata-set epoch is current.
    pub fn read_rows(&self, devices: &[&Superblock]) -> Result<FoundRows> {
        let first = devices.first().context("no device tells which cluster the node belongs to")?;
        let witnessed = devices.iter().map(|device| device.metadata.epoch).max().unwrap_or(0);
        let dir: Arc<dyn MetaDir> = Arc::new(self.current_dir(first.cluster, witnessed)?);
        let lanes = first.layout.lanes();
        on_executor(async |ports| {
            let (mut tables, mut files, mut lost) = (Vec::<LaneTable>::new(), Vec::new(), Vec::new());
            for lane in (0..lanes).map(LaneId) {
                let (file, reason) = open_or_make(&ports, &dir, lane).await?;
                lost.extend(reason.map(|reason| (lane, reason)));
                tables.push((lane, Rc::new(file.clone())));
                files.push(file);
            }
            let rows = NodeRows::read(&tables).await?;
            for file in files {
                file.close().await?;
            }
            Ok(FoundRows { rows, lost })
        })?
    }

    /// The directory with the highest metadata-set epoch; it has to be the one that the devices saw last.
    fn current_dir(&self, cluster: ClusterId, witnessed: u64) -> Result<ScratchDir> {
        let mut best: Option<(u64, ScratchDir)> = None;
        let mut reasons = Vec::new();
        for path in &self.config.metadata_dirs {
            let found = ScratchDir::open(path).map_err(|error| error.to_string());
            let found = found.and_then(|dir| recorded_epoch(&dir, cluster).map(|epoch| (epoch, dir)));
            match found {
                Ok(found) if best.as_ref().is_none_or(|(epoch, _)| *epoch < found.0) => best = Some(found),
                Ok(_) => {}
                Err(reason) => reasons.push(format!("{}: {reason}", path.display())),
            }
        }
        match best {
            Some((epoch, dir)) if epoch >= witnessed => Ok(dir),
            Some((epoch, _)) => bail!(
                "the metadata directories that are there are of epoch {epoch}, the devices saw {witnessed}: they are \
                 stale; mount the current one"
            ),
            None => bail!("no metadata directory can be read: {}", reasons.join("; ")),
        }
    }

    /// Puts the rebuilt rows in the place of what the index tables of all lanes say about these devices, in every
    /// metadata directory; durable on return. Returns the number of rows.
    ///
    /// - `unsound`: devices for which no rows could be made; the node refuses them anyway.
    /// - Errors: a device that the node would use is not among them, so that its data would seem to be lost.
    pub fn replace_index(
        &self,
        rebuilt: &[RebuiltDevice],
        unsound: &[DeviceId],
        on_progress: &dyn Fn(ReplaceProgress),
    ) -> Result<u64> {
        let cluster = self.cluster_of(rebuilt)?;
        let found = devices::open_all(&self.config.devices, cluster, PathPreference::IoUring);
        let given: BTreeSet<DeviceId> =
            rebuilt.iter().map(|device| device.device).chain(unsound.iter().copied()).collect();
        if let Some(left) = found.usable.iter().find(|device| !given.contains(&device.superblock.device)) {
            bail!(
                "{} belongs to the node and was left away; give all of its devices (or none: then all are taken)",
                left.path.display()
            );
        }
        for device in rebuilt {
            if !found.usable.iter().any(|usable| usable.superblock.device == device.device) {
                bail!("{} is not among the `devices` of the node that can be used", device.name);
            }
        }
        let witness = metadata::witness(&found.usable, self.config.devices.len());
        let meta = metadata::open(cluster, &self.config.metadata_dirs, witness)?;
        if meta.is_new {
            bail!("the node never finished its first start: it has no index to rebuild; run kiseki-server run");
        }
        let dir: Arc<dyn MetaDir> = meta.dir.clone();
        let written = on_executor(async |ports| {
            let (mut tables, mut files) = (Vec::<LaneTable>::new(), Vec::new());
            for lane in (0..found.lanes).map(LaneId) {
                let (file, _) = open_or_make(&ports, &dir, lane).await?;
                tables.push((lane, Rc::new(file.clone())));
                files.push(file);
            }
            let written = replace_rows(&tables, rebuilt, on_progress).await;
            let mut closed = Ok(());
            for file in files {
                closed = closed.and(file.close().await);
            }
            let written = written?;
            closed?;
            anyhow::Ok(written)
        })??;
        meta.dir.close().context("the metadata directories can't be closed")?;
        Ok(written)
    }

    fn cluster_of(&self, rebuilt: &[RebuiltDevice]) -> Result<ClusterId> {
        let first = rebuilt.first().ok_or_else(|| anyhow!("no device is left to make rows from"))?;
        let differs =
            |device: &&RebuiltDevice| (device.cluster, device.lane_count) != (first.cluster, first.lane_count);
        match rebuilt.iter().find(differs) {
            Some(other) => bail!("{} and {} are not of one node", first.name, other.name),
            None => Ok(first.cluster),
        }
    }
}

/// A lane's index table, and why it is an empty one if the file is not there or can't be read.
async fn open_or_make(
    ports: &Ports,
    dir: &Arc<dyn MetaDir>,
    lane: LaneId,
) -> Result<(TableFile, Option<String>), TableError> {
    let name = index_file(lane);
    let failed = |error: std::io::Error| TableError::File { file: index_file(lane), reason: error.to_string() };
    let open = || TableFile::open(ports.clone(), dir.clone(), &name, None, TableSettings::new(u64::from(lane.0)));
    let is_there = dir.list().map_err(failed)?.contains(&name);
    match open().await {
        Ok(file) => Ok((file, (!is_there).then(|| format!("{name} is missing")))),
        Err(error) => {
            dir.remove(&name).map_err(failed)?;
            Ok((open().await?, Some(error.to_string())))
        }
    }
}
