//! What a client does: it writes and reads registers through whatever node it believes in, and tells the judge.

use crate::cluster::judge::Judge;
use crate::cluster::machine::{Put, register};
use crate::cluster::member::Running;
use futures::future::{Either, select};
use kiseki_raft::ShardGroup;
use kiseki_simulator::SeededRng;
use kiseki_types::group::{ProposeError, RaftGroup};
use kiseki_types::runtime::{Ports, RuntimeExt};
use kiseki_types::{NodeId, ShardId};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// Registers of a shard.
pub const KEYS: u64 = 6;

/// A client waits so long for an answer; then it does not know.
const PATIENCE: Duration = Duration::from_secs(8);

/// Longest padding of a command.
const PADDING_MAX: usize = 6_000;

/// The nodes as clients reach them.
pub type Nodes = BTreeMap<NodeId, Rc<RefCell<Option<Running>>>>;

/// One client.
pub struct Worker {
    /// Time; of a machine that always has power.
    pub ports: Ports,
    /// The nodes.
    pub nodes: Rc<Nodes>,
    /// The shards.
    pub shards: Vec<ShardId>,
    /// Who is told.
    pub judge: Rc<Judge>,
    /// Its chance.
    pub rng: SeededRng,
    /// Whether to go on.
    pub is_on: Rc<Cell<bool>>,
}

impl Worker {
    /// Works until it is told to stop.
    pub async fn work(self) {
        let mut believed: BTreeMap<ShardId, NodeId> = BTreeMap::new();
        while self.is_on.get() {
            let shard = *self.rng.pick(&self.shards);
            let node = believed.get(&shard).copied().unwrap_or_else(|| self.any_node());
            let told = match self.group(node, shard) {
                Some(group) if self.rng.chance(3, 5) => self.write(&group).await,
                Some(group) => self.read(&group).await,
                None => Told::Nothing,
            };
            match told {
                Told::Done => drop(believed.insert(shard, node)),
                Told::Ask(leader) => drop(believed.insert(shard, leader)),
                Told::Nothing => drop(believed.remove(&shard)),
            }
            self.ports.sleep(Duration::from_micros(self.rng.between(100..60_000))).await;
        }
    }

    fn any_node(&self) -> NodeId {
        let nodes: Vec<NodeId> = self.nodes.keys().copied().collect();
        *self.rng.pick(&nodes)
    }

    fn group(&self, node: NodeId, shard: ShardId) -> Option<ShardGroup> {
        self.nodes.get(&node).and_then(|slot| slot.borrow().as_ref().and_then(|running| running.replicas.get(shard)))
    }

    async fn write(&self, group: &ShardGroup) -> Told {
        let (shard, key) = (group.shard_id(), self.rng.below(KEYS));
        let put = Put { key, id: self.judge.begin_write(shard, key) };
        let padding = if self.rng.chance(1, 8) { self.rng.index(PADDING_MAX) } else { self.rng.index(200) };
        let answer = select(group.propose(put.encode(padding)), self.ports.sleep(PATIENCE)).await;
        match answer {
            Either::Left((Ok(response), _)) => {
                let index = response.try_into().map_or(u64::MAX, u64::from_be_bytes);
                self.judge.acknowledge(shard, put, index);
                Told::Done
            }
            Either::Left((Err(ProposeError::NotLeader { leader, .. }), _)) => {
                self.judge.refuse(shard, put);
                leader.map_or(Told::Nothing, Told::Ask)
            }
            Either::Left((Err(_), _)) | Either::Right(_) => Told::Nothing,
        }
    }

    async fn read(&self, group: &ShardGroup) -> Told {
        let (shard, key, from) = (group.shard_id(), self.rng.below(KEYS), self.judge.tick());
        let reading = async {
            group.read_barrier().await?;
            let tables = group.tables();
            let failed = |error| ProposeError::Unavailable { shard, reason: format!("{error}") };
            register(&*tables, key).await.map_err(failed)
        };
        match select(Box::pin(reading), self.ports.sleep(PATIENCE)).await {
            Either::Left((Ok(id), _)) => {
                self.judge.read(shard, key, id, from);
                Told::Done
            }
            Either::Left((Err(ProposeError::NotLeader { leader, .. }), _)) => leader.map_or(Told::Nothing, Told::Ask),
            Either::Left((Err(_), _)) | Either::Right(_) => Told::Nothing,
        }
    }
}

/// What a client learned.
enum Told {
    Done,
    Ask(NodeId),
    Nothing,
}
