//! Steps that every core of a node has to reach before any goes on.

use kiseki_types::runtime::{Ports, RuntimeExt};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Between two looks at the others. Steps happen at start and stop only.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// Counts cores at each step; a core that fails fails the step for all.
pub struct Steps {
    cores: u64,
    arrived: AtomicU64,
    failure: Mutex<Option<String>>,
}

/// Another core failed, so this one does not go on.
#[derive(Debug, thiserror::Error)]
#[error("another core could not start")]
pub struct OtherCoreFailed;

impl Steps {
    /// For `cores` cores.
    #[must_use]
    pub fn new(cores: u16) -> Steps {
        Steps { cores: u64::from(cores), arrived: AtomicU64::new(0), failure: Mutex::new(None) }
    }

    /// Says that this core has done its `number`-th step (from 1), and waits for the others.
    pub async fn done(&self, number: u64, ports: &Ports) -> Result<(), OtherCoreFailed> {
        self.arrived.fetch_add(1, Ordering::AcqRel);
        while self.arrived.load(Ordering::Acquire) < number * self.cores {
            if self.failure().is_some() {
                return Err(OtherCoreFailed);
            }
            ports.sleep(LOOK_INTERVAL).await;
        }
        Ok(())
    }

    /// Fails the start for all cores; the first reason stays.
    pub fn fail(&self, reason: String) {
        self.failure.lock().expect("nothing panics under this lock").get_or_insert(reason);
    }

    /// Why the start failed, if it did.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.failure.lock().expect("nothing panics under this lock").clone()
    }
}
