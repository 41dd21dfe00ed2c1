//! A replica without peers needs its log for nothing but a start: what its tables hold durably is let go early, before it is old
//! enough to be written a second time, into the log file. With peers entries stay for those that are a little behind
//! ([`GroupSettings::kept_entries`](crate::group::GroupSettings)).

use crate::group::{Inner, ShardGroup};
use futures::future::{Either, select};
use kiseki_types::runtime::{Ports, RuntimeExt};
use openraft::async_runtime::WatchReceiver;
use std::cell::Cell;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::time::Duration;
use tokio::sync::Notify;
use tracing::debug;

/// A snapshot that is not made within this time is waited for no longer; the next one lets go of its entries too.
const SNAPSHOT_WAIT: Duration = Duration::from_secs(10);

/// What was applied since entries were let go, and the wish for more of that.
#[derive(Default)]
pub(crate) struct Release {
    applied_len_bytes: Cell<u64>,
    wanted: Notify,
}

impl Release {
    /// An entry of a replica without peers was applied; from `limit` bytes on it is time.
    pub(crate) fn applied(&self, len_bytes: usize, limit: u64) {
        let all = self.applied_len_bytes.get() + len_bytes as u64;
        match all >= limit {
            true => {
                self.applied_len_bytes.set(0);
                self.wanted.notify_one();
            }
            false => self.applied_len_bytes.set(all),
        }
    }

    /// The task sees that its group is gone.
    pub(crate) fn end(&self) {
        self.wanted.notify_one();
    }
}

/// Starts the task that lets entries go; it ends with the group.
pub(crate) fn watch(group: &ShardGroup) {
    let (ports, release) = (group.inner.parts.ports.clone(), group.inner.counters.release.clone());
    ports.clone().spawn("raft-release", Box::pin(run(ports, release, Rc::downgrade(&group.inner))));
}

async fn run(ports: Ports, release: Rc<Release>, group: Weak<Inner>) {
    loop {
        release.wanted.notified().await;
        let Some(inner) = group.upgrade() else { return };
        let group = ShardGroup { inner };
        match select(pin!(group.release_log()), ports.sleep(SNAPSHOT_WAIT)).await {
            Either::Left(((), _)) => {}
            Either::Right(((), _)) => {
                debug!(shard = %group.shard_id(), "no snapshot in time; the log keeps its entries")
            }
        }
    }
}

impl ShardGroup {
    /// Makes what is applied durable in the tables, and lets the log behind it go. Whoever stopped the group meanwhile
    /// needs neither.
    async fn release_log(&self) {
        let raft = self.raft();
        let mut metrics = raft.metrics();
        let applied = metrics.borrow_watched().last_applied;
        if raft.trigger().snapshot().await.is_err() {
            return;
        }
        let snapshot = loop {
            let snapshot = metrics.borrow_watched().snapshot;
            if snapshot >= applied {
                break snapshot;
            }
            if metrics.changed().await.is_err() {
                return;
            }
        };
        if let Some(snapshot) = snapshot {
            let _ = raft.trigger().purge_log(snapshot.index).await;
        }
    }
}
