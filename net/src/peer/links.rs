//! The port of calls between nodes: a link to each core of each node that is called.

use crate::peer::caller::CallFailure;
use crate::peer::counters::LinkFigures;
use crate::peer::link::{Link, LinkInputs, LinkTarget};
use crate::peer::trust::Expect;
use futures::future::{Either, select};
use kiseki_types::ids::{LaneId, NodeId};
use kiseki_types::peer::{Parcel, PeerCallError, PeerCalls, PeerLane, ServiceId};
use kiseki_types::runtime::{LocalBoxFuture, RuntimeExt};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

/// How often a call looks again for the core of its lane, when the peer came back with another number of cores meanwhile.
const CORES_CHANGED_MAX: u32 = 4;

/// One core's links to other nodes.
pub struct PeerLinks {
    inputs: LinkInputs,
    nodes: RefCell<BTreeMap<NodeId, Rc<PeerNode>>>,
}

struct PeerNode {
    node: NodeId,
    address: SocketAddr,
    /// Known once it has been connected to.
    cores: Cell<Option<u16>>,
    /// By the number of the core there.
    links: RefCell<BTreeMap<u16, Rc<Link>>>,
}

impl PeerLinks {
    /// Links to no node yet.
    #[must_use]
    pub fn new(inputs: LinkInputs) -> Rc<PeerLinks> {
        Rc::new(PeerLinks { inputs, nodes: RefCell::default() })
    }

    /// Where a node is. Links to where it was are closed.
    pub fn set_address(&self, node: NodeId, address: SocketAddr) {
        let mut nodes = self.nodes.borrow_mut();
        if nodes.get(&node).is_some_and(|known| known.address == address) {
            return;
        }
        let peer = PeerNode { node, address, cores: Cell::new(None), links: RefCell::default() };
        if let Some(before) = nodes.insert(node, Rc::new(peer)) {
            before.links.borrow().values().for_each(|link| link.close("the node has another address now"));
        }
    }

    /// Figures of every link, by node and its core.
    #[must_use]
    pub fn figures(&self) -> Vec<(NodeId, u16, LinkFigures)> {
        let nodes = self.nodes.borrow();
        let of_node = |node: &Rc<PeerNode>| {
            let links = node.links.borrow();
            links.iter().map(|(core, link)| (node.node, *core, link.figures())).collect::<Vec<_>>()
        };
        nodes.values().flat_map(of_node).collect()
    }
}

impl PeerNode {
    /// The link to the core of a lane; to core 0 as long as nobody knows how many there are.
    fn link(&self, lane: LaneId, inputs: &LinkInputs) -> (u16, Rc<Link>) {
        let core = self.cores.get().map_or(0, |cores| lane.0 % cores);
        let mut links = self.links.borrow_mut();
        let link = links.entry(core).or_insert_with(|| {
            let target =
                LinkTarget { addresses: vec![self.address], expect: Expect::Node(self.node), lane: LaneId(core) };
            Link::new(inputs.clone(), target)
        });
        (core, link.clone())
    }

    async fn call(
        &self,
        inputs: LinkInputs,
        service: ServiceId,
        lane: LaneId,
        parcel: Parcel,
    ) -> Result<Parcel, CallFailure> {
        for _ in 0..CORES_CHANGED_MAX {
            let (core, link) = self.link(lane, &inputs);
            let caller = link.connected().await?;
            let cores = caller.peer().cores.max(1);
            if self.cores.replace(Some(cores)) != Some(cores) {
                self.links.borrow_mut().retain(|core, link| {
                    let is_there = *core < cores;
                    if !is_there {
                        link.close("the node has fewer cores now");
                    }
                    is_there
                });
            }
            if core == lane.0 % cores {
                return caller.call(service, lane, parcel).await;
            }
        }
        Err(CallFailure::Unreachable("its number of cores keeps changing".to_owned()))
    }
}

impl PeerCalls for PeerLinks {
    fn call(
        &self,
        to: PeerLane,
        service: ServiceId,
        parcel: Parcel,
        deadline: Duration,
    ) -> LocalBoxFuture<'static, Result<Parcel, PeerCallError>> {
        let (inputs, node) = (self.inputs.clone(), to.node);
        let Some(peer) = self.nodes.borrow().get(&node).cloned() else {
            let reason = "nobody knows its address".to_owned();
            return Box::pin(async move { Err(PeerCallError::NotSent { node, reason }) });
        };
        Box::pin(async move {
            let late = inputs.ports.sleep(deadline);
            let calling = peer.call(inputs, service, to.lane, parcel);
            let outcome = match select(pin!(calling), late).await {
                Either::Left((outcome, _)) => outcome,
                Either::Right(_) => Err(CallFailure::Deadline),
            };
            outcome.map_err(|failure| match failure {
                CallFailure::Unreachable(reason) => PeerCallError::NotSent { node, reason },
                CallFailure::Unanswered(reason) => PeerCallError::Unreachable { node, reason },
                CallFailure::Refused(reason) => PeerCallError::Refused { node, reason },
                CallFailure::TooLarge(what) => PeerCallError::TooLarge { node, what },
                CallFailure::Deadline => PeerCallError::Deadline { node, waited: deadline },
            })
        })
    }
}
