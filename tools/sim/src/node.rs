//! What the crash run drives.

use kiseki_engine::api::Store;
use kiseki_engine::calls::Calls;
use kiseki_simulator::{CutSwitch, NodeId, Sim};
use kiseki_types::LocalBoxFuture;
use kiseki_types::ids::TenantId;
use kiseki_types::runtime::Ports;
use std::fmt;
use std::sync::Arc;

/// One core of a node that is open.
#[derive(Clone)]
pub struct OpenCore {
    /// The core's ports: clients of this core run on them, so they die with it.
    pub ports: Ports,
    /// Its store.
    pub store: Store,
    /// Its way to shards, where there are any: an operator splits them.
    pub calls: Option<Calls>,
}

/// A node that is open.
#[derive(Clone)]
pub struct OpenNode {
    /// The tenant that the clients are.
    pub tenant: TenantId,
    /// Its cores; all of them must show the same.
    pub cores: Vec<OpenCore>,
}

/// A node did not open: always a finding, since nothing but a power cut happened to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenError(pub String);

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for OpenError {}

/// A node on simulated media.
///
/// To be correct: everything that has to survive a cut lies on media under `switch`; everything else lives in tasks
/// and handles of the node's ports, and is gone after [`Sim::kill`]. The harness kills first, then calls `power_cut`,
/// then restores the switch and opens again.
pub trait NodeUnderTest {
    /// The machine whose tasks are killed.
    fn id(&self) -> NodeId;
    /// The power of all its media.
    fn switch(&self) -> Arc<CutSwitch>;
    /// Starts the node; the first time on empty media. The future runs on core 0 of the node.
    fn open<'a>(&'a mut self, sim: &'a Sim) -> LocalBoxFuture<'a, Result<OpenNode, OpenError>>;
    /// Lets all media forget what they must, from `seed`.
    fn power_cut(&mut self, seed: u64);
}
