//! Watches each group: a panic of its tasks rebuilds it from disk, a failed storage fences it.
//!
//! openraft's core can panic under snapshots and purges (openraft issue 2116), and a panic of one group must not take
//! the node along. Rebuilding is bounded: a group that panics again and again is fenced, a person must look.

use crate::group::{GroupState, Inner, Instance, ShardGroup, build};
use futures::future::{Either, select};
use kiseki_types::runtime::{Instant, Ports, RuntimeExt};
use openraft::async_runtime::WatchReceiver;
use openraft::errors::Fatal;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::time::Duration;
use tracing::{error, info, warn};

/// Rebuilds within `REBUILD_WINDOW` after which a group is fenced.
pub const REBUILDS_MAX: usize = 5;

/// Rebuilds further apart than this are not counted together.
const REBUILD_WINDOW: Duration = Duration::from_secs(600);

/// Pause before the first rebuild; it doubles with each one.
const REBUILD_PAUSE: Duration = Duration::from_millis(100);

/// An instance that does not stop within this time is left behind: it can't reach the log or the tables any more.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(2);

/// Why an instance ended.
enum End {
    Panicked,
    /// It gave its leadership away, nobody took it, and it can't take it back.
    GivenUp,
    Storage(String),
    Stopped,
}

/// Starts watching.
pub(crate) fn watch(group: &ShardGroup) {
    let ports = group.inner.parts.ports.clone();
    ports.clone().spawn("raft-supervisor", Box::pin(supervise(ports, Rc::downgrade(&group.inner))));
}

async fn supervise(ports: Ports, group: Weak<Inner>) {
    let mut rebuilt_at: Vec<Instant> = Vec::new();
    loop {
        let Some(instance) = group.upgrade().map(|inner| inner.instance.borrow().clone()) else { return };
        let end = end_of(&ports, &instance, &group).await;
        let Some(inner) = group.upgrade() else { return };
        if *inner.state.borrow() == GroupState::Closed {
            return;
        }
        instance.disown();
        let shard = inner.parts.shard;
        match end {
            End::Stopped => return,
            End::Storage(reason) => {
                error!(%shard, reason, "storage of the group failed; it is fenced until the node is restarted");
                inner.state.replace(GroupState::Fenced(reason));
                return;
            }
            End::GivenUp => {
                inner.state.replace(GroupState::Rebuilding);
                warn!(%shard, "a leadership that was given away was not taken; the replica is built again, as a follower");
                let _ = select(pin!(instance.raft.shutdown()), ports.sleep(SHUTDOWN_WAIT)).await;
                if !rebuild(&inner).await {
                    return;
                }
                continue;
            }
            End::Panicked => {}
        }
        inner.state.replace(GroupState::Rebuilding);
        let now = ports.now();
        rebuilt_at.retain(|at| now.since(*at) < REBUILD_WINDOW);
        if rebuilt_at.len() >= REBUILDS_MAX {
            let reason = format!("its tasks panicked {} times", rebuilt_at.len() + 1);
            error!(%shard, reason, "the group is fenced until the node is restarted");
            inner.state.replace(GroupState::Fenced(reason));
            return;
        }
        let _ = select(pin!(instance.raft.shutdown()), ports.sleep(SHUTDOWN_WAIT)).await;
        ports.sleep(REBUILD_PAUSE * 2_u32.pow(u32::try_from(rebuilt_at.len()).unwrap_or(0))).await;
        rebuilt_at.push(ports.now());
        warn!(%shard, rebuilds = rebuilt_at.len(), "a task of the group panicked; rebuilding it from disk");
        if !rebuild(&inner).await {
            return;
        }
        inner.rebuilds.set(inner.rebuilds.get() + 1);
    }
}

/// Builds the group again. False: it is fenced or closed.
async fn rebuild(inner: &Rc<Inner>) -> bool {
    let shard = inner.parts.shard;
    let built = build(&inner.parts, &inner.counters).await;
    if *inner.state.borrow() == GroupState::Closed {
        return false;
    }
    match built {
        Ok(instance) => {
            inner.quiet_until.set(instance.quiet_until);
            inner.rest.begin_anew(inner.parts.ports.now());
            inner.instance.replace(Rc::new(instance));
            inner.state.replace(GroupState::Running);
            ShardGroup { inner: inner.clone() }.stand_if_alone();
            info!(%shard, "the group runs again");
            true
        }
        Err(reason) => {
            error!(%shard, %reason, "the group can't be rebuilt; it is fenced until the node is restarted");
            inner.state.replace(GroupState::Fenced(reason.to_string()));
            false
        }
    }
}

/// Waits until the instance has ended.
async fn end_of(ports: &Ports, instance: &Instance, group: &Weak<Inner>) -> End {
    let mut metrics = instance.raft.metrics();
    let core = async {
        loop {
            let running = metrics.borrow_and_update().running_state.clone();
            match running {
                Err(Fatal::Panicked) => return End::Panicked,
                Err(Fatal::StorageError(error)) => return End::Storage(error.to_string()),
                Err(Fatal::Stopped) => return End::Stopped,
                Ok(()) => {}
            }
            if metrics.changed().await.is_err() {
                // The core is gone without a word: it panicked, or the group was closed and dropped.
                let closed = group.upgrade().is_none_or(|inner| *inner.state.borrow() == GroupState::Closed);
                return if closed { End::Stopped } else { End::Panicked };
            }
        }
    };
    let end = match select(pin!(core), pin!(instance.health.until_over())).await {
        Either::Left((end, _)) => end,
        Either::Right(_) if instance.health.panicked() => End::Panicked,
        Either::Right(_) => End::GivenUp,
    };
    // A storage error is told shortly before or after the task that met it ends: give it a turn to be seen.
    ports.yield_now().await;
    let running = instance.raft.metrics().borrow_watched().running_state.clone();
    match running {
        Err(Fatal::StorageError(error)) => End::Storage(error.to_string()),
        _ => end,
    }
}
