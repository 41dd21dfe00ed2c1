//! Disks that join a node at work, leave it, and come back.

use super::{OpenError, failed, on_core, space_policy};
use kiseki_devices::fragment_store::StoreDevice;
use kiseki_devices::metadata_set::MirroredDir;
use kiseki_devices::superblock::{Enrolled, Superblock, SuperblockKeeper, SuperblockWitness, read_superblock_blocking};
use kiseki_server::core_node::CoreNode;
use kiseki_simulator::{CutSwitch, SeededRng, SimDisk};
use kiseki_types::runtime::{Ports, RuntimeExt};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Longest pause between two moves, and longest time that a disk is away.
const PAUSE_MS_MAX: u64 = 80;

/// A task of the node, which dies with it.
pub(super) struct Moving {
    pub cores: Vec<(Ports, Rc<CoreNode>)>,
    pub disks: Vec<SimDisk>,
    /// Of the disks that are open, by their position.
    pub keepers: Vec<Arc<SuperblockKeeper>>,
    pub witness: Arc<SuperblockWitness>,
    pub meta: Arc<MirroredDir>,
    pub switch: Arc<CutSwitch>,
    pub configured: Rc<Cell<usize>>,
    pub joined: Rc<Cell<u64>>,
    pub rng: SeededRng,
}

/// Reads a disk's superblock and raises its incarnation.
pub(super) fn take_up(disk: &SimDisk) -> Result<(Superblock, Arc<SuperblockKeeper>), OpenError> {
    let (name, file) = (disk.name(), disk.file());
    let found = read_superblock_blocking(&*file, 4096).map_err(failed)?.present(&name).map_err(failed)?;
    let keeper = Arc::new(SuperblockKeeper::new(&name, file, found));
    let superblock = keeper.update(|next| next.incarnation += 1).map_err(failed)?;
    Ok((superblock, keeper))
}

impl Moving {
    /// Until the power goes.
    pub async fn forever(mut self) {
        loop {
            self.pause().await;
            let count = self.configured.get();
            let moved = match count < self.disks.len() {
                true => self.join(count).await,
                false => self.away_and_back(self.rng.index(count)).await,
            };
            match moved {
                Ok(()) => self.joined.set(self.joined.get() + 1),
                Err(_) if self.switch.is_cut() => return,
                Err(error) => panic!("I-D6: a device can't join: {error}"),
            }
        }
    }

    async fn pause(&self) {
        self.cores[0].0.sleep(Duration::from_millis(self.rng.below(PAUSE_MS_MAX))).await;
    }

    async fn away_and_back(&mut self, index: usize) -> Result<(), OpenError> {
        let device = self.keepers[index].current().device;
        for (ports, node) in &self.cores {
            let node = node.clone();
            on_core(ports, async move { node.remove_device(device).await.map_err(failed) }).await?;
        }
        self.witness.leave(&self.keepers[index], &self.meta.epoch(), Enrolled::Stays).map_err(failed)?;
        self.pause().await;
        self.join(index).await
    }

    /// The steps of an enroll, in their order.
    async fn join(&mut self, index: usize) -> Result<(), OpenError> {
        let disk = &self.disks[index];
        let (superblock, keeper) = take_up(disk)?;
        let is_new = index == self.configured.get();
        let enrolled = if is_new { Enrolled::Changes } else { Enrolled::Stays };
        self.witness.join(&keeper, &self.meta.epoch(), enrolled).map_err(failed)?;
        match is_new {
            true => self.keepers.push(keeper),
            false => self.keepers[index] = keeper,
        }
        for (ports, node) in &self.cores {
            let (node, disk, superblock) = (node.clone(), disk.clone(), superblock.clone());
            let add = async move {
                let given = StoreDevice {
                    id: superblock.device,
                    pool: superblock.pool,
                    name: disk.name(),
                    layout: superblock.layout,
                    space: space_policy(),
                    device: disk.open(),
                };
                node.add_device(given).await.map(drop).map_err(failed)
            };
            on_core(ports, add).await?;
        }
        if self.switch.is_cut() {
            return Err(OpenError("the power is gone".to_owned()));
        }
        if is_new {
            self.configured.set(index + 1);
        }
        self.cores.iter().try_for_each(|(_, node)| node.admit_device(superblock.device).map_err(failed))
    }
}
