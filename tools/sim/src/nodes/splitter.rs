//! An operator who has shards split while clients work and nodes die.

use crate::model::{BUCKETS, KEYS};
use crate::nodes::worker::{Book, Serving};
use futures::channel::oneshot;
use futures::future::{Either, select};
use kiseki_engine::message::{ControlRequest, ControlResponse};
use kiseki_engine::split_message::{ShardEntry, ShardMapAnswer, ShardMapRequest};
use kiseki_server::core_node::CoreNode;
use kiseki_simulator::SeededRng;
use kiseki_types::runtime::{Ports, RuntimeExt};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

/// Splits of one run.
const SPLITS_MAX: u64 = 8;

/// A request that has no answer after so long never gets one.
const PATIENCE: Duration = Duration::from_secs(30);

/// Cores of each node, while it runs.
pub type Cores = BTreeMap<u32, Rc<RefCell<Vec<Rc<CoreNode>>>>>;

/// The operator.
pub struct Splitter {
    /// Ports of the harness.
    pub ports: Ports,
    /// The nodes that serve.
    pub serving: Serving,
    /// Their cores.
    pub cores: Cores,
    /// Where what was begun is counted.
    pub book: Rc<Book>,
    /// Its chance.
    pub rng: SeededRng,
    /// It works for as long as this says so.
    pub is_on: Rc<Cell<bool>>,
}

impl Splitter {
    /// Has shards split, now and then.
    pub async fn work(self) {
        while self.is_on.get() && self.book.splits.get() < SPLITS_MAX {
            self.ports.sleep(Duration::from_millis(self.rng.between(500..6_000))).await;
            let Some(shards) = self.shards().await else { continue };
            let active: Vec<&ShardEntry> = shards.iter().filter(|shard| shard.is_active).collect();
            if active.is_empty() {
                continue;
            }
            let shard = self.rng.pick(&active).shard;
            // Of the keys that clients use, most do not lie in that shard: then it is refused.
            let at = Some(KEYS[self.rng.index(12)].to_owned());
            let bucket = Some(BUCKETS[0].to_owned());
            if let Some(ShardMapAnswer::Begun(_)) = self.ask(ShardMapRequest::Split { shard, bucket, at }).await {
                self.book.splits.set(self.book.splits.get() + 1);
            }
        }
    }

    async fn shards(&self) -> Option<Vec<ShardEntry>> {
        match self.ask(ShardMapRequest::List).await? {
            ShardMapAnswer::Shards(shards) => Some(shards),
            ShardMapAnswer::Begun(_) => None,
        }
    }

    async fn ask(&self, request: ShardMapRequest) -> Option<ShardMapAnswer> {
        let numbers: Vec<u32> = self.serving.borrow().keys().copied().collect();
        if numbers.is_empty() {
            return None;
        }
        let number = *self.rng.pick(&numbers);
        let node = self.serving.borrow().get(&number).cloned()?;
        let core = self.cores.get(&number)?.borrow().first().cloned()?;
        let calls = core.engine().calls().clone();
        let (sender, receiver) = oneshot::channel();
        let task = async move {
            let _gone = sender.send(calls.control(ControlRequest::Shards(request)).await);
        };
        node.cores[0].ports.spawn("operator", Box::pin(task));
        match select(receiver, pin!(self.ports.sleep(PATIENCE))).await {
            Either::Left((Ok(Ok(ControlResponse::Shards(answer))), _)) => Some(answer),
            _ => None,
        }
    }
}
