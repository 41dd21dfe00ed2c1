//! How every core of a running node is told of a device that comes or goes, and how it answers.
//!
//! One thread at a time gives an order to all cores and waits for all of them; no executor waits for another here.

use crate::core_node::CoreNode;
use crate::device_places;
use crate::executor::{CoreShared, open_queue};
use futures::StreamExt;
use futures::channel::mpsc;
use kiseki_devices::pool::BufferPool;
use kiseki_devices::superblock::Superblock;
use kiseki_engine::device_record::{DeviceRecord, DeviceUpdate};
use kiseki_engine::message::{ControlRequest, ControlResponse};
use kiseki_types::fragment::DeviceState;
use kiseki_types::ids::{CoreId, DeviceId};
use kiseki_types::runtime::Ports;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Orders that wait for one core: they are given one after the other, and an undo follows on an order without answer.
const ORDERS_WAITING_MAX: usize = 4;

/// A core that has not carried an order out after this long will not: replaying the journals of a large device takes
/// seconds.
const ORDER_PATIENCE: Duration = Duration::from_secs(300);

/// What every core is to do.
#[derive(Clone, Debug)]
pub enum DeviceOrder {
    /// Open a queue and the core's lanes on a device.
    Add {
        /// Where it is.
        path: PathBuf,
        /// What it says of itself.
        superblock: Box<Superblock>,
    },
    /// Place fragments on it: all cores have it.
    Admit(DeviceId),
    /// Use it no more, and close it.
    Remove(DeviceId),
    /// Write into the control shard what became of a device (I-D2). For one core.
    Record {
        /// Which.
        device: DeviceId,
        /// What.
        update: Box<DeviceUpdate>,
    },
    /// Write into the control shard that a device has left for good, if it is known there. For one core.
    RecordRemoved {
        /// Its id, where that is known.
        device: Option<DeviceId>,
        /// Where it was.
        path: String,
        /// The one that took its place, perhaps at the same path.
        by: DeviceId,
        /// Why.
        reason: String,
    },
}

struct GivenOrder {
    order: DeviceOrder,
    answer: SyncSender<Result<(), String>>,
}

/// Orders as a core receives them.
pub struct OrderQueue(mpsc::Receiver<GivenOrder>);

/// The way to all cores.
pub struct DeviceOrders {
    cores: Vec<Mutex<mpsc::Sender<GivenOrder>>>,
    /// By core, until it takes its own.
    queues: Mutex<Vec<Option<OrderQueue>>>,
}

impl DeviceOrders {
    /// For `cores` cores.
    #[must_use]
    pub fn new(cores: u16) -> DeviceOrders {
        let (senders, queues) = (0..cores).map(|_| mpsc::channel(ORDERS_WAITING_MAX)).unzip::<_, _, Vec<_>, Vec<_>>();
        DeviceOrders {
            cores: senders.into_iter().map(Mutex::new).collect(),
            queues: Mutex::new(queues.into_iter().map(|queue| Some(OrderQueue(queue))).collect()),
        }
    }

    /// A core's end. Panics when it is taken twice.
    #[must_use]
    pub fn take(&self, core: CoreId) -> OrderQueue {
        let mut queues = self.queues.lock().expect("nothing panics under this lock");
        queues[usize::from(core.0)].take().expect("a core takes its orders once")
    }

    /// Has every core carry out an order and waits for all of them. Blocks: never called on an executor.
    ///
    /// Errors: what the first core that could not says; the others have carried it out, or could not either.
    pub fn give(&self, order: &DeviceOrder) -> Result<(), String> {
        await_all(self.cores.iter().map(|core| give_one(core, order.clone())).collect())
    }

    /// Has the first core carry out an order and waits for it. Blocks: never called on an executor.
    pub fn give_first(&self, order: DeviceOrder) -> Result<(), String> {
        await_all(vec![give_one(&self.cores[0], order)])
    }
}

fn await_all(answers: Vec<Receiver<Result<(), String>>>) -> Result<(), String> {
    let deadline = Instant::now() + ORDER_PATIENCE;
    let wait = |(core, answer): (usize, Receiver<Result<(), String>>)| match answer
        .recv_timeout(deadline.saturating_duration_since(Instant::now()))
    {
        Ok(answer) => answer,
        Err(RecvTimeoutError::Timeout) => Err(format!("core {core} does not answer")),
        Err(RecvTimeoutError::Disconnected) => Err("the node is stopping".to_owned()),
    };
    // All of them are waited for, whatever the first one says: an undo must not overtake an order.
    let results: Vec<Result<(), String>> = answers.into_iter().enumerate().map(wait).collect();
    results.into_iter().collect()
}

fn give_one(core: &Mutex<mpsc::Sender<GivenOrder>>, order: DeviceOrder) -> Receiver<Result<(), String>> {
    let (answer, receiver) = sync_channel(1);
    let mut sender = core.lock().expect("nothing panics under this lock");
    // A full queue or a core that has ended drops the order, and with it the end of the answer.
    let _stopping = sender.try_send(GivenOrder { order, answer });
    receiver
}

/// Carries orders out until the executor ends.
pub fn serve(shared: &Arc<CoreShared>, core: CoreId, node: &Rc<CoreNode>, pool: Rc<BufferPool>, ports: &Ports) {
    let (shared, node) = (shared.clone(), node.clone());
    let task = async move {
        let mut orders = shared.orders.take(core).0;
        while let Some(given) = orders.next().await {
            let result = carry_out(&shared, &node, &pool, given.order).await;
            let _gave_up = given.answer.try_send(result);
        }
    };
    ports.spawn("device orders", Box::pin(task));
}

async fn carry_out(
    shared: &CoreShared,
    node: &CoreNode,
    pool: &Rc<BufferPool>,
    order: DeviceOrder,
) -> Result<(), String> {
    match order {
        DeviceOrder::Add { path, superblock } => {
            let given = open_queue(&shared.config, &path, &superblock, pool).map_err(|error| format!("{error:#}"))?;
            let report = node.add_device(given).await.map_err(|error| error.to_string())?;
            tracing::debug!(
                device = %report.device, fragments = report.fragments, replayed = report.replayed, "device opened"
            );
            Ok(())
        }
        DeviceOrder::Admit(device) => node.admit_device(device).map_err(|error| error.to_string()),
        DeviceOrder::Remove(device) => node.remove_device(device).await.map_err(|error| error.to_string()),
        DeviceOrder::Record { device, update } => {
            let update = device_places::update(shared.membership.own, *update);
            let request = ControlRequest::UpdateDevice { device, update };
            node.engine().calls().control(request).await.map(drop).map_err(|error| error.to_string())
        }
        DeviceOrder::RecordRemoved { device, path, by, reason } => {
            let path = device_places::recorded(shared.membership.own, &path);
            record_removed(node, device, &path, by, reason).await
        }
    }
}

async fn record_removed(
    node: &CoreNode,
    device: Option<DeviceId>,
    path: &str,
    by: DeviceId,
    reason: String,
) -> Result<(), String> {
    let calls = node.engine().calls();
    let records = match calls.control(ControlRequest::Devices).await.map_err(|error| error.to_string())? {
        ControlResponse::Devices(_, records) => records,
        _ => return Err("the control shard answers in another kind".to_owned()),
    };
    let is_it = |record: &&DeviceRecord| match device {
        Some(device) => record.device == device,
        None => record.place.path == path && record.device != by,
    };
    let there = records.iter().filter(|record| record.state() != DeviceState::Removed);
    let Some(record) = there.filter(is_it).max_by_key(|record| record.last().at_unix_ms) else { return Ok(()) };
    let request =
        ControlRequest::UpdateDevice { device: record.device, update: DeviceUpdate::Remove { reason, seen: None } };
    calls.control(request).await.map(drop).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::executor::block_on;

    #[test]
    fn an_order_is_done_when_all_cores_say_so_and_one_that_can_not_is_heard() {
        let orders = DeviceOrders::new(3);
        let order = DeviceOrder::Admit(DeviceId([1; 16]));
        std::thread::scope(|scope| {
            for core in 0..3 {
                let mut queue = orders.take(CoreId(core)).0;
                scope.spawn(move || {
                    for failing in [false, true] {
                        let given = block_on(queue.next()).unwrap();
                        let answer = if failing && core == 1 { Err("no".to_owned()) } else { Ok(()) };
                        given.answer.send(answer).unwrap();
                    }
                });
            }
            assert_eq!(orders.give(&order), Ok(()));
            assert_eq!(orders.give(&order), Err("no".to_owned()));
        });
        assert!(orders.give(&order).unwrap_err().contains("stopping"), "cores that are gone are an answer");
    }
}
