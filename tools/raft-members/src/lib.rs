//! Members of Raft groups for measurements: the product's groups, parcels, journals and table files, on real files.
//!
//! What carries parcels between members comes from whoever makes them: real links (`kiseki-bench raft`), or [`Wires`] within one
//! executor (`benches`). There is no engine here: commands are bytes, and the last one of each writer is kept.
#![forbid(unsafe_code)]

mod last;
mod wires;

pub use wires::Wires;

use anyhow::{Context, Result};
use kiseki_devices::file_device::{create_image, open_device};
use kiseki_devices::flush_gate::FlushGate;
use kiseki_devices::journal::{self, JournalConfig, JournalId, MirrorRegion};
use kiseki_devices::meta_dir::FsDir;
use kiseki_devices::ring::RingOptions;
use kiseki_raft::group::{GroupParts, GroupSettings};
use kiseki_raft::snapshot::SnapshotSeals;
use kiseki_raft::table_file::TableFile;
use kiseki_raft::table_set::{FileSpec, TableSet, TableSettings};
use kiseki_raft::type_config::{VoterId, node_of};
use kiseki_raft::{LaneLog, PeerDirectory, RaftPeers, Replicas, ShardGroup};
use kiseki_types::buf::plain_buffers;
use kiseki_types::peer::{PeerCalls, PeerHandler, PeerLane};
use kiseki_types::runtime::Ports;
use kiseki_types::{BlockIndex, LaneId, NodeId, ShardId};
use last::Last;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

/// Bytes at the start of a command that name its writer.
pub const WRITER_LEN_BYTES: usize = last::KEY_LEN_BYTES;

/// The only lane of each member.
pub const LANE: LaneId = LaneId(0);

const JOURNAL_LEN_BYTES: u64 = 64 << 20;

struct OneLane;

impl PeerDirectory for OneLane {
    fn locate(&self, voter: VoterId, _shard: ShardId) -> Option<PeerLane> {
        Some(PeerLane { node: node_of(voter), lane: LANE })
    }
}

/// A node as far as Raft is concerned: one lane with its journal and log table.
pub struct Member {
    id: NodeId,
    ports: Ports,
    log: LaneLog,
    dir: Arc<FsDir>,
    peers: RaftPeers,
    replicas: Replicas,
    gate: FlushGate,
}

impl Member {
    /// A member without groups, with its files in `dir`, which must not be there yet. `calls` reaches the others.
    pub async fn start(id: NodeId, ports: &Ports, dir: &Path, calls: Rc<dyn PeerCalls>) -> Result<Member> {
        let image = dir.join("raft-journal");
        let dir = Arc::new(FsDir::create(dir).context("a metadata directory")?);
        create_image(&image, JOURNAL_LEN_BYTES)?;
        // Written once, so that no write of the run has to change what the file system knows of the file.
        std::fs::write(&image, vec![0; JOURNAL_LEN_BYTES as usize]).context("a journal")?;
        let device = open_device(&image, RingOptions::default(), None)?;
        let len = device.geometry().block_count;
        let region = MirrorRegion::new(ports.clone(), device, BlockIndex(0), len);
        let gate = region.gate.clone();
        let config = JournalConfig {
            name: "raft".to_owned(),
            id: JournalId([7; 16]),
            ports: ports.clone(),
            buffers: plain_buffers(),
            mirrors: vec![region],
            on_mirror_failed: Rc::new(|_, _| Box::pin(async { Ok(()) })),
        };
        journal::format(&config).await?;
        let (journal, replayed, _) = journal::open(config).await?;
        let settings = TableSettings::new(id.0 * 1_000);
        let table = TableFile::open(ports.clone(), dir.clone(), "raft-log", None, settings).await?;
        let log = LaneLog::open(ports.clone(), LANE, journal, replayed, Rc::new(table)).await?;
        let peers = RaftPeers::new(ports.clone(), calls, Rc::new(OneLane), plain_buffers());
        let replicas = Replicas::new(ports.clone());
        Ok(Member { id, ports: ports.clone(), log, dir, peers, replicas, gate })
    }

    async fn parts(&self, shard: ShardId) -> Result<GroupParts> {
        let files = vec![FileSpec { name: format!("{shard}.rows"), seal: None }];
        let settings = TableSettings::new(self.id.0 * 1_000 + 10 + shard.0 % 64);
        Ok(GroupParts {
            ports: self.ports.clone(),
            log: self.log.clone(),
            shard,
            tables: TableSet::open(self.ports.clone(), self.dir.clone(), files, settings).await?,
            machine: Rc::new(Last),
            link: Rc::new(self.peers.clone()),
            seals: SnapshotSeals::none(),
            settings: GroupSettings::several_voters(),
        })
    }

    /// Makes an empty replica that waits for a leader.
    pub async fn join(&self, shard: ShardId) -> Result<ShardGroup> {
        let replica = ShardGroup::join(self.parts(shard).await?, self.id.0).await?;
        self.replicas.join(replica.clone());
        Ok(replica)
    }

    /// Makes a group and leads it, when the other members have joined.
    pub async fn lead(&self, shard: ShardId, voters: &[VoterId]) -> Result<ShardGroup> {
        let leader = ShardGroup::create(self.parts(shard).await?, self.id.0, voters).await?;
        self.replicas.join(leader.clone());
        Ok(leader)
    }

    /// Answers the parcels of other members.
    #[must_use]
    pub fn handler(&self) -> PeerHandler {
        self.replicas.handler()
    }

    /// Parcels sent so far, and the calls in them.
    #[must_use]
    pub fn sent(&self) -> (u64, u64) {
        (self.peers.parcels(), self.peers.calls())
    }

    /// Flushes of the journal so far.
    #[must_use]
    pub fn flushes(&self) -> u64 {
        self.gate.flush_count()
    }
}
