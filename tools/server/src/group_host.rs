//! Opens Raft groups for the engine: table files, the lane's log, the way to replicas on other nodes.

use kiseki_engine::api::StoreError;
use kiseki_engine::host::{FileSpec as HostedFile, GroupHost, GroupSpec, Opening};
use kiseki_engine::latch::{Hold, Latches};
use kiseki_engine::nodes::NodeBoard;
use kiseki_raft::log_store::GroupStatus;
use kiseki_raft::shard_machine::applied_in;
use kiseki_raft::snapshot::{KeyedRowSeal, SnapshotSeals};
use kiseki_raft::table_set::{FileSpec, TableSettings};
use kiseki_raft::type_config::{VoterId, node_of, voter_of};
use kiseki_raft::{
    GroupParts, GroupSettings, GroupState, LaneLog, RaftError, RaftPeers, RaftTimes, Replicas, ShardGroup, TableSet,
};
use kiseki_types::group::RaftGroup;
use kiseki_types::histogram::Histogram;
use kiseki_types::ids::{LaneId, NodeId, ShardId};
use kiseki_types::meta::MetaDir;
use kiseki_types::runtime::{LocalBoxFuture, Ports};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use tracing::warn;

/// The node that forms a cluster; every other has joined one, so it has others.
const FORMING_NODE: NodeId = NodeId(1);

/// Base of the side thread queues of shards: those below belong to lanes.
const SHARD_QUEUE_FIRST: u64 = 1024;

/// What the groups of a core are made of.
pub struct CoreGroupsInputs {
    /// Ports of the core.
    pub ports: Ports,
    /// Where table files are made: the metadata set.
    pub meta: Arc<dyn MetaDir>,
    /// Lanes of the node.
    pub lane_count: u16,
    /// Logs of the core's lanes.
    pub logs: BTreeMap<LaneId, LaneLog>,
    /// Timers of the groups.
    pub settings: GroupSettings,
    /// Table files that are at least this long are compacted ([`TableSettings::compact_from_bytes`]).
    pub compact_from_bytes: u64,
    /// This node, and the others.
    pub nodes: Rc<NodeBoard>,
    /// Raft messages to other nodes.
    pub peers: RaftPeers,
    /// The replicas that other nodes reach here; every open group joins them.
    pub replicas: Replicas,
}

/// The groups of one core.
pub struct CoreGroups {
    inputs: CoreGroupsInputs,
    groups: RefCell<BTreeMap<ShardId, (ShardGroup, TableSet)>>,
    /// A shard is opened by one at a time.
    turns: Latches,
}

impl CoreGroups {
    /// Groups on the lanes of the core; none is open yet.
    #[must_use]
    pub fn new(inputs: CoreGroupsInputs) -> Rc<CoreGroups> {
        Rc::new(CoreGroups { inputs, groups: RefCell::default(), turns: Latches::default() })
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
        for shard in groups.keys() {
            self.inputs.replicas.leave(*shard);
        }
        let mut first_error = None;
        let mut note = |result: Result<(), RaftError>| {
            if let Err(error) = result {
                first_error.get_or_insert(error);
            }
        };
        for (group, _) in groups.values() {
            note(group.close().await);
        }
        for log in self.inputs.logs.values() {
            note(log.fold().await);
        }
        for (_, tables) in groups.values() {
            note(tables.close().await.map_err(RaftError::from));
        }
        first_error.map_or(Ok(()), Err)
    }

    /// How long the steps of commands took, of all lanes together.
    #[must_use]
    pub fn raft_times(&self) -> Vec<(&'static str, Histogram)> {
        let sum = RaftTimes::default();
        self.inputs.logs.values().for_each(|log| sum.add(&log.times()));
        sum.by_name()
    }

    fn log_of(&self, shard: ShardId) -> &LaneLog {
        let lane = shard.lane(self.inputs.lane_count);
        self.inputs.logs.get(&lane).unwrap_or_else(|| panic!("shard {shard} is of lane {lane}, which is not here"))
    }

    async fn open_group(&self, spec: GroupSpec) -> Result<ShardGroup, RaftError> {
        let (shard, opening) = (spec.shard, spec.opening);
        let _turn = self.turns.hold(shard.0.to_be_bytes().to_vec(), Hold::Exclusive).await;
        let log = self.log_of(shard);
        let first = voter_of(self.inputs.nodes.own(), 0);
        let first = first.ok_or_else(|| refused(shard, "this node's number is too high for a voter"))?;
        let open = self.groups.borrow().get(&shard).map(|(group, _)| group.clone());
        if let Some(group) = open {
            if opening == Opening::Create && log.status(shard) == GroupStatus::Fresh {
                // It was opened as what a crash left of a shard that was being made.
                may_form(shard, group.voter(), first)?;
                group.form(&[first]).await?;
            }
            return Ok(group);
        }
        let is_alone = self.is_alone();
        let voter = log.voter(shard).unwrap_or(first);
        let how = how_to_open(shard, &log.status(shard), opening, Voters { first, recorded: voter, is_alone })?;
        let parts = self.parts(spec).await?;
        let tables = parts.tables.clone();
        let group = match how {
            How::Create => ShardGroup::create(parts, first, &[first]).await?,
            How::Open => ShardGroup::open(parts).await?,
            How::Join => ShardGroup::join(parts, voter).await?,
            How::Rejoin => match ShardGroup::rejoin(parts.clone()).await {
                Err(RaftError::Lost { reason, .. }) => self.begin_anew(parts, reason).await?,
                opened => opened?,
            },
            How::BeginAnew(reason) => self.begin_anew(parts, reason).await?,
        };
        self.groups.borrow_mut().insert(shard, (group.clone(), tables));
        self.inputs.replicas.join(group.clone());
        Ok(group)
    }

    async fn parts(&self, spec: GroupSpec) -> Result<GroupParts, RaftError> {
        let shard = spec.shard;
        let (mut files, mut seals) = (Vec::new(), SnapshotSeals::none());
        for (index, HostedFile { name, seal, rows_seal }) in (0..).zip(spec.files) {
            files.push(FileSpec { name, seal });
            if let Some(key) = rows_seal {
                seals = seals.with(index, Rc::new(KeyedRowSeal::new(key)));
            }
        }
        let compact_from_bytes = self.inputs.compact_from_bytes;
        let settings = TableSettings { compact_from_bytes, ..TableSettings::new(SHARD_QUEUE_FIRST + shard.0) };
        let tables = TableSet::open(self.inputs.ports.clone(), self.inputs.meta.clone(), files, settings).await?;
        Ok(GroupParts {
            ports: self.inputs.ports.clone(),
            log: self.log_of(shard).clone(),
            shard,
            tables,
            machine: spec.machine,
            link: Rc::new(self.inputs.peers.clone()),
            seals,
            settings: self.inputs.settings,
        })
    }

    /// Whether nobody else can have what this node has.
    fn is_alone(&self) -> bool {
        self.inputs.nodes.is_alone() && self.inputs.nodes.own() == FORMING_NODE
    }

    /// The replica comes back under another number, if other nodes may have what it lost (I-L10).
    async fn begin_anew(&self, parts: GroupParts, reason: String) -> Result<ShardGroup, RaftError> {
        let (shard, own) = (parts.shard, self.inputs.nodes.own());
        let (_, membership) = applied_in(&parts.tables)?;
        let has_peers = membership.voter_ids().any(|voter| node_of(voter) != own);
        if self.is_alone() && !has_peers {
            return Err(RaftError::Lost { shard, reason });
        }
        let group = ShardGroup::begin_anew(parts).await?;
        warn!(%shard, reason, voter = group.voter(), "a replica's log is lost; it begins anew and the others fill it");
        Ok(group)
    }
}

/// How a group is opened.
#[derive(Debug, PartialEq, Eq)]
enum How {
    /// Made, this node its only voter.
    Create,
    /// As it is, waiting for a leader.
    Open,
    /// As it is.
    Rejoin,
    /// Empty, for a leader to fill.
    Join,
    /// Under another number, because the log is lost: why.
    BeginAnew(String),
}

/// The voter that this node's replica is.
#[derive(Clone, Copy, Debug)]
struct Voters {
    /// The one that it begins as.
    first: VoterId,
    /// The one that its log names, and otherwise the same.
    recorded: VoterId,
    /// Whether there is no other node.
    is_alone: bool,
}

fn how_to_open(shard: ShardId, status: &GroupStatus, opening: Opening, voters: Voters) -> Result<How, RaftError> {
    match (status, opening) {
        (GroupStatus::Live, Opening::Create) => Ok(How::Open),
        (GroupStatus::Live, Opening::Existing | Opening::Join) => Ok(How::Rejoin),
        (GroupStatus::Fresh, Opening::Create) => may_form(shard, voters.recorded, voters.first).map(|()| How::Create),
        // It was made, and nothing ever happened in it: a leader may still be about to fill it.
        (GroupStatus::Fresh, Opening::Existing) if voters.is_alone => Err(RaftError::Absent { shard }),
        (GroupStatus::Fresh, Opening::Existing | Opening::Join) => Ok(How::Join),
        (GroupStatus::Absent, Opening::Create) => Ok(How::Create),
        (GroupStatus::Absent, Opening::Existing) => Err(RaftError::Absent { shard }),
        (GroupStatus::Absent, Opening::Join) => Ok(How::Join),
        // While a shard is made nobody else has anything of it.
        (GroupStatus::Lost(reason), Opening::Create) => Err(RaftError::Lost { shard, reason: reason.clone() }),
        (GroupStatus::Lost(reason), Opening::Existing | Opening::Join) => Ok(How::BeginAnew(reason.clone())),
    }
}

/// I-L10: who began anew voted before, so the group is there and must not be made again.
fn may_form(shard: ShardId, voter: VoterId, first: VoterId) -> Result<(), RaftError> {
    if voter == first {
        return Ok(());
    }
    let reason = format!("its log was lost, it waits as voter {voter} for a leader that fills it");
    Err(RaftError::Lost { shard, reason })
}

fn refused(shard: ShardId, reason: &str) -> RaftError {
    RaftError::Membership { shard, reason: reason.to_owned() }
}

/// The port as the engine holds it.
pub struct Host(pub Rc<CoreGroups>);

impl GroupHost for Host {
    fn open(&self, spec: GroupSpec) -> LocalBoxFuture<'static, Result<Rc<dyn RaftGroup>, StoreError>> {
        let groups = self.0.clone();
        Box::pin(async move {
            let group = groups.open_group(spec).await.map_err(store_error)?;
            Ok(Rc::new(group) as Rc<dyn RaftGroup>)
        })
    }

    fn hosted(&self) -> Vec<ShardId> {
        let mut shards: Vec<ShardId> = self.0.inputs.logs.values().flat_map(LaneLog::shards).collect();
        shards.sort_unstable();
        shards
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i_l10_what_was_lost_or_never_there_is_not_made_again() {
        let (first, again) = (2, (1 << 48) + 2);
        let lost = || GroupStatus::Lost("test".to_owned());
        let anew = || Ok(How::BeginAnew("test".to_owned()));
        let refused = || Err("refused");
        let (alone, joined) = (true, false);
        for (status, opening, recorded, is_alone, expected) in [
            (GroupStatus::Live, Opening::Create, first, joined, Ok(How::Open)),
            (GroupStatus::Live, Opening::Existing, first, alone, Ok(How::Rejoin)),
            (GroupStatus::Live, Opening::Join, again, joined, Ok(How::Rejoin)),
            (GroupStatus::Fresh, Opening::Create, first, alone, Ok(How::Create)),
            (GroupStatus::Fresh, Opening::Create, again, joined, refused()),
            (GroupStatus::Fresh, Opening::Existing, first, alone, refused()),
            (GroupStatus::Fresh, Opening::Existing, first, joined, Ok(How::Join)),
            (GroupStatus::Fresh, Opening::Join, again, joined, Ok(How::Join)),
            (GroupStatus::Absent, Opening::Create, first, joined, Ok(How::Create)),
            (GroupStatus::Absent, Opening::Existing, first, joined, refused()),
            (GroupStatus::Absent, Opening::Join, first, joined, Ok(How::Join)),
            (lost(), Opening::Create, first, joined, refused()),
            (lost(), Opening::Existing, first, joined, anew()),
            (lost(), Opening::Join, first, joined, anew()),
        ] {
            let how = how_to_open(ShardId(1024), &status, opening, Voters { first, recorded, is_alone });
            assert_eq!(how.map_err(|_| "refused"), expected, "{status:?} {opening:?} {recorded} {is_alone}");
        }
    }
}
