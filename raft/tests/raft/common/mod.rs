//! A simulated node with a mirrored journal, metadata files and one lane's logs, for the tests of this room.
#![allow(dead_code)]

use kiseki_devices::journal::{self, JournalConfig, JournalId, MirrorRegion};
use kiseki_raft::group::{GroupParts, GroupSettings};
use kiseki_raft::log_store::LaneLog;
use kiseki_raft::network::{NoPeers, PeerLink};
use kiseki_raft::snapshot::{KeyedRowSeal, SnapshotSeals};
use kiseki_raft::table_file::TableFile;
use kiseki_raft::table_set::{FileSpec, TableSet, TableSettings};
use kiseki_raft::{RaftError, ShardGroup};
use kiseki_simulator::{CutSwitch, DiskOptions, NodeId, Sim, SimDisk, SimMetaDir};
use kiseki_types::buf::stale_buffers;
use kiseki_types::group::{Applied, ApplyError, LogPosition, RaftGroup, StateMachine};
use kiseki_types::journal::Journal;
use kiseki_types::runtime::{LocalBoxFuture, Ports};
use kiseki_types::secret::SecretKey;
use kiseki_types::table::{Scan, TableReader, TableWrite};
use kiseki_types::{BlockCount, BlockIndex, LaneId, ShardId};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

pub const SHARD: ShardId = ShardId(1024);
pub const LANE: LaneId = LaneId(0);
const JOURNAL_BLOCKS: u64 = 1024;

/// What survives the node's process.
pub struct Node {
    pub id: NodeId,
    pub switch: Arc<CutSwitch>,
    pub disks: Vec<SimDisk>,
    pub dir: SimMetaDir,
    /// Of the log file.
    pub log_table: TableSettings,
}

/// What runs.
pub struct Running {
    pub ports: Ports,
    pub log: LaneLog,
    pub journal: Rc<dyn Journal>,
    pub tables: BTreeMap<ShardId, TableSet>,
    pub machine: Rc<Ledger>,
    pub link: Rc<dyn PeerLink>,
    pub settings: GroupSettings,
}

impl Node {
    pub fn new(sim: &Sim, number: u32) -> Node {
        let switch = Arc::new(CutSwitch::default());
        let disk = |mirror: u32| {
            let name = format!("log{number}.{mirror}");
            SimDisk::new(sim, DiskOptions::of_len(&name, JOURNAL_BLOCKS * 4096), &switch)
        };
        let dir = SimMetaDir::new(&format!("meta{number}"), sim.seed() ^ u64::from(number), &switch);
        Node {
            id: NodeId(number),
            disks: vec![disk(0), disk(1)],
            dir,
            switch: switch.clone(),
            log_table: TableSettings::new(1),
        }
    }

    pub fn config(&self, ports: &Ports) -> JournalConfig {
        let region =
            |disk: &SimDisk| MirrorRegion::new(ports.clone(), disk.open(), BlockIndex(0), BlockCount(JOURNAL_BLOCKS));
        JournalConfig {
            name: "raft".to_owned(),
            id: JournalId([7; 16]),
            ports: ports.clone(),
            buffers: stale_buffers(),
            mirrors: self.disks.iter().map(region).collect(),
            on_mirror_failed: Rc::new(|_, _| Box::pin(async { Ok(()) })),
        }
    }

    pub async fn format(&self, sim: &Sim) {
        journal::format(&self.config(&sim.ports(self.id))).await.expect("formatted");
    }

    pub async fn start(&self, sim: &Sim) -> Result<Running, RaftError> {
        let ports = sim.ports(self.id);
        let (journal, replayed, _) = journal::open(self.config(&ports)).await.expect("the journal opens");
        let table = TableFile::open(ports.clone(), self.dir.open(), "raft-log", None, self.log_table).await?;
        let journal: Rc<dyn Journal> = journal;
        let log = LaneLog::open(ports.clone(), LANE, journal.clone(), replayed, Rc::new(table)).await?;
        Ok(Running {
            ports,
            log,
            journal,
            tables: BTreeMap::new(),
            machine: Rc::new(Ledger::default()),
            link: Rc::new(NoPeers),
            settings: GroupSettings::single_voter(),
        })
    }

    /// The power fails: everything that runs is gone, media forget what was not flushed.
    pub fn power_cut(&self, sim: &Sim, seed: u64) {
        sim.kill(self.id);
        for (number, disk) in self.disks.iter().enumerate() {
            disk.power_cut(seed ^ (number as u64) << 32);
        }
        self.dir.power_cut(seed);
        self.switch.restore();
    }

    pub async fn open_tables(&self, ports: &Ports, shard: ShardId) -> TableSet {
        let files = vec![
            FileSpec { name: format!("{shard}.names"), seal: Some(key()) },
            FileSpec { name: format!("{shard}.counts"), seal: None },
        ];
        TableSet::open(ports.clone(), self.dir.open(), files, TableSettings::new(2 + shard.0)).await.expect("tables")
    }

    pub async fn parts(&self, running: &mut Running, shard: ShardId) -> GroupParts {
        if !running.tables.contains_key(&shard) {
            let tables = self.open_tables(&running.ports, shard).await;
            running.tables.insert(shard, tables);
        }
        GroupParts {
            ports: running.ports.clone(),
            log: running.log.clone(),
            shard,
            tables: running.tables[&shard].clone(),
            machine: running.machine.clone(),
            link: running.link.clone(),
            seals: SnapshotSeals::none().with(0, Rc::new(KeyedRowSeal::new(key()))),
            settings: running.settings,
        }
    }
}

pub fn key() -> SecretKey {
    SecretKey::take(&mut [9; 32])
}

/// A shard that keeps the last value of each key in file 0 and counts its commands in file 1; it answers with the
/// count.
#[derive(Default)]
pub struct Ledger {
    /// So many commands from now panic.
    pub panics: Cell<u32>,
    /// So many commands from now fail.
    pub failures: Cell<u32>,
}

const COUNT_KEY: &[u8] = b"count";

impl StateMachine for Ledger {
    fn apply<'a>(
        &'a self,
        at: LogPosition,
        command: &'a [u8],
        tables: &'a dyn TableReader,
    ) -> LocalBoxFuture<'a, Result<Applied, ApplyError>> {
        Box::pin(async move {
            if self.panics.get() > 0 {
                self.panics.set(self.panics.get() - 1);
                panic!("a bug in the shard's logic");
            }
            if self.failures.get() > 0 {
                self.failures.set(self.failures.get() - 1);
                return Err(ApplyError::Damaged { index: at.index, reason: "as told".to_owned() });
            }
            let count = tables.get(1, 0, COUNT_KEY).await?;
            let count = count.map_or(0, |bytes| u64::from_le_bytes(bytes.try_into().expect("eight bytes"))) + 1;
            let (key, value) = command.split_at(8);
            let put = |file, key: &[u8], value: &[u8]| TableWrite {
                file,
                table: 0,
                key: key.to_vec(),
                value: Some(value.to_vec()),
            };
            let response = count.to_le_bytes();
            Ok(Applied { response: response.to_vec(), writes: vec![put(0, key, value), put(1, COUNT_KEY, &response)] })
        })
    }
}

pub fn command(key: u64, value: &[u8]) -> Vec<u8> {
    [&key.to_be_bytes()[..], value].concat()
}

/// Proposes and gives back the count of commands applied.
pub async fn put(group: &ShardGroup, key: u64, value: &[u8]) -> u64 {
    let answer = group.propose(command(key, value)).await.expect("committed");
    u64::from_le_bytes(answer.try_into().expect("eight bytes"))
}

pub async fn value(tables: &dyn TableReader, key: u64) -> Option<Vec<u8>> {
    tables.get(0, 0, &key.to_be_bytes()).await.expect("readable")
}

pub async fn count(tables: &dyn TableReader) -> u64 {
    let count = tables.get(1, 0, COUNT_KEY).await.expect("readable");
    count.map_or(0, |bytes| u64::from_le_bytes(bytes.try_into().expect("eight bytes")))
}

pub async fn all_values(tables: &dyn TableReader) -> Vec<(Vec<u8>, Vec<u8>)> {
    tables.scan(Scan::prefix(0, 0, &[], 1_000_000)).await.expect("readable")
}

/// Does what the process's own hook does, to this thread: a panic outside a guarded task ends everything. Tests of other
/// threads go on as they were.
pub fn only_guarded_tasks_may_panic() {
    let (here, before) = (std::thread::current().id(), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |info| {
        if std::thread::current().id() == here {
            assert!(kiseki_raft::in_guarded_task(), "only guarded tasks may panic: {info}");
        } else {
            before(info);
        }
    }));
}
