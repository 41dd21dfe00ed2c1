//! Opens Raft groups for the engine: table files, the lane's log, one voter.

use kiseki_devices::metadata_set::MirroredDir;
use kiseki_engine::api::StoreError;
use kiseki_engine::host::{GroupHost, GroupSpec};
use kiseki_raft::log_store::GroupStatus;
use kiseki_raft::network::NoPeers;
use kiseki_raft::snapshot::SnapshotSeals;
use kiseki_raft::table_set::{FileSpec, TableSettings};
use kiseki_raft::{GroupParts, GroupSettings, GroupState, LaneLog, RaftError, ShardGroup, TableSet};
use kiseki_types::group::RaftGroup;
use kiseki_types::ids::{LaneId, ShardId};
use kiseki_types::meta::MetaDir;
use kiseki_types::runtime::{LocalBoxFuture, Ports};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

/// The only voter of every group as long as there is one node.
const VOTER: u64 = 1;

/// Base of the side thread queues of shards: those below belong to lanes.
const SHARD_QUEUE_FIRST: u64 = 1024;

/// The groups of one core.
pub struct CoreGroups {
    ports: Ports,
    meta: Arc<MirroredDir>,
    lane_count: u16,
    logs: BTreeMap<LaneId, LaneLog>,
    groups: RefCell<BTreeMap<ShardId, (ShardGroup, TableSet)>>,
    settings: GroupSettings,
}

impl CoreGroups {
    /// Groups on the lanes of `logs`; none is open yet.
    #[must_use]
    pub fn new(
        ports: Ports,
        meta: Arc<MirroredDir>,
        lane_count: u16,
        logs: BTreeMap<LaneId, LaneLog>,
        settings: GroupSettings,
    ) -> Rc<CoreGroups> {
        Rc::new(CoreGroups { ports, meta, lane_count, logs, groups: RefCell::default(), settings })
    }

    /// Shards whose group does nothing any more, and why: for health.
    #[must_use]
    pub fn fenced(&self) -> Vec<(ShardId, String)> {
        let reason = |group: &ShardGroup| match group.state() {
            GroupState::Fenced(reason) => Some(reason),
            _ => None,
        };
        let groups = self.groups.borrow();
        groups.iter().filter_map(|(shard, (group, _))| reason(group).map(|reason| (*shard, reason))).collect()
    }

    /// Groups open on this core.
    #[must_use]
    pub fn count(&self) -> usize {
        self.groups.borrow().len()
    }

    /// Ends every group with its tables durable, then folds the lanes' logs: a clean stop. Goes through all of them
    /// and returns the first error; whatever is not durable is replayed at the next start.
    pub async fn close(&self) -> Result<(), RaftError> {
        let groups = self.groups.take();
        let mut first_error = None;
        let mut note = |result: Result<(), RaftError>| {
            if let Err(error) = result {
                first_error.get_or_insert(error);
            }
        };
        for (group, _) in groups.values() {
            note(group.close().await);
        }
        for log in self.logs.values() {
            note(log.fold().await);
        }
        for (_, tables) in groups.values() {
            note(tables.close().await.map_err(RaftError::from));
        }
        first_error.map_or(Ok(()), Err)
    }

    async fn open_group(self: Rc<Self>, spec: GroupSpec) -> Result<Rc<dyn RaftGroup>, RaftError> {
        let shard = spec.shard;
        let lane = shard.lane(self.lane_count);
        let log = self.logs.get(&lane).unwrap_or_else(|| panic!("shard {shard} is of lane {lane}, which is not here"));
        let status = log.status(shard);
        if let GroupStatus::Lost(reason) = status {
            return Err(RaftError::Lost { shard, reason });
        }
        if !spec.create && status != GroupStatus::Live {
            return Err(RaftError::Absent { shard });
        }
        let files = spec.files.into_iter().map(|file| FileSpec { name: file.name, seal: file.seal }).collect();
        let meta: Arc<dyn MetaDir> = self.meta.clone();
        let settings = TableSettings::new(SHARD_QUEUE_FIRST + shard.0);
        let tables = TableSet::open(self.ports.clone(), meta, files, settings).await?;
        let parts = GroupParts {
            ports: self.ports.clone(),
            log: log.clone(),
            shard,
            tables: tables.clone(),
            machine: spec.machine,
            link: Rc::new(NoPeers),
            seals: SnapshotSeals::none(),
            settings: self.settings,
        };
        let group = match status {
            GroupStatus::Live => ShardGroup::open(parts).await?,
            _ => ShardGroup::create(parts, VOTER, &[VOTER]).await?,
        };
        self.groups.borrow_mut().insert(shard, (group.clone(), tables));
        Ok(Rc::new(group))
    }
}

/// The port as the engine holds it.
pub struct Host(pub Rc<CoreGroups>);

impl GroupHost for Host {
    fn open(&self, spec: GroupSpec) -> LocalBoxFuture<'static, Result<Rc<dyn RaftGroup>, StoreError>> {
        let groups = self.0.clone();
        Box::pin(async move { groups.open_group(spec).await.map_err(store_error) })
    }
}

/// What a group that does not open means for whoever wanted it.
fn store_error(error: RaftError) -> StoreError {
    let reason = error.to_string();
    match error {
        RaftError::Absent { .. } | RaftError::Lost { .. } | RaftError::LogDamaged { .. } | RaftError::Codec(_) => {
            StoreError::Damaged { reason }
        }
        _ => StoreError::Unavailable { reason },
    }
}
