//! Orphan fragments: written by a node that went down before their intent was committed, put long after their writer gave
//! up waiting, or finished by a repair whose home was led by another node by then. The home does not know them, no delta can
//! name them, and they are freed. Each node looks at what its own devices hold.

use crate::core::Core;
use crate::delta::ChunkName;
use crate::message::{HomeRequest, HomeResponse};
use kiseki_types::ids::ShardId;
use kiseki_types::runtime::RuntimeExt;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use tracing::{info, warn};

/// Generations that one step looks at.
const STEP: usize = 256;

/// Pause between steps, so that a pass over millions of generations does not slow the node.
const PACE: Duration = Duration::from_millis(50);

/// Pause before a pass that failed begins again.
const RETRY: Duration = Duration::from_secs(10);

/// Between two passes where nothing happened that leaves orphans behind.
const INTERVAL: Duration = Duration::from_secs(3600);

/// Between two looks whether a pass is due.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Passes over the index slices of this core: after a start, when a node was heard again after a silence (others led its
/// homes meanwhile), and every hour.
pub fn start(core: &Rc<Core>) {
    let pass_core = core.clone();
    let task = async move {
        loop {
            let (began, returns) = (pass_core.ports.now(), pass_core.nodes.returns());
            match pass(&pass_core).await {
                Ok(0) => {}
                Ok(freed) => info!(freed, "generations that no home knows were freed"),
                Err(reason) => {
                    warn!(%reason, "the search for orphan fragments stopped; it begins again");
                    pass_core.ports.sleep(RETRY).await;
                    continue;
                }
            }
            while pass_core.nodes.returns() == returns && pass_core.ports.now().since(began) < INTERVAL {
                pass_core.ports.sleep(LOOK_INTERVAL).await;
            }
        }
    };
    core.background.repeat("orphans", Box::pin(task));
}

async fn pass(core: &Core) -> Result<u64, String> {
    let mut after = None;
    let freed = Cell::new(0);
    loop {
        let listed = core.fragments.list(after, STEP).await.map_err(|error| error.to_string())?;
        let Some(last) = listed.last() else { return Ok(freed.get()) };
        after = Some(*last);
        let mut by_home = BTreeMap::<ShardId, Vec<ChunkName>>::new();
        for (locator, generation) in listed {
            by_home.entry(core.calls.home_of(&locator)).or_default().push(ChunkName { locator, generation });
        }
        for (home, names) in by_home {
            let answer = core.calls.home(home, HomeRequest::Unknown(names)).await;
            let HomeResponse::Unknown(unknown) = answer.map_err(|error| error.to_string())? else {
                panic!("a home answers Unknown with Unknown");
            };
            for name in unknown {
                let stored = core.fragments.locate_here(name.locator, name.generation).await;
                let readable = core.devices.readable();
                for fragment in stored.map_err(|error| error.to_string())? {
                    let device = fragment.extent.device;
                    let freed = match core.devices.is_removed(device) {
                        true => core.fragments.forget(&fragment).await,
                        false if readable.contains(&device) => core.fragments.release(&fragment).await,
                        false => continue, // should the device come back, the start that finds it looks again
                    };
                    freed.map_err(|error| error.to_string())?;
                }
                freed.set(freed.get() + 1);
            }
        }
        core.ports.sleep(PACE).await;
    }
}
