//! Calls between simulated nodes: a network that delays, reorders, loses and delivers late, by seed, and that can be cut
//! between any two nodes, one way or both.
//!
//! It keeps what `PeerCalls` promises (at most once, unchanged, the answer to its question) and nothing more: a call may
//! be acted upon long after its caller gave up, and an answer may be lost when everything was done.

use crate::executor::{Sim, SimHandle};
use futures::channel::oneshot;
use futures::future::{Either, select};
use kiseki_types::ids::{LaneId, NodeId};
use kiseki_types::peer::{Parcel, PeerCallError, PeerCalls, PeerHandler, PeerIdentity, PeerLane, ServiceId};
use kiseki_types::runtime::{LocalBoxFuture, Ports, RuntimeExt};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

/// Calls of one node that are under way; one over the bound waits.
pub const CALLS_IN_FLIGHT_MAX: usize = 1024;

/// A caller over the bound looks again so often.
const ROOM_POLL: Duration = Duration::from_millis(1);

/// How bad the network is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetFaults {
    /// Of a thousand messages so many are lost.
    pub lost_per_mille: u64,
    /// Of a thousand messages so many are late.
    pub late_per_mille: u64,
    /// Delay of a message, in microseconds.
    pub delay_us: Range<u64>,
    /// Delay of a late one, in milliseconds.
    pub late_ms: Range<u64>,
}

impl NetFaults {
    /// A sound local network.
    #[must_use]
    pub fn none() -> NetFaults {
        NetFaults { lost_per_mille: 0, late_per_mille: 0, delay_us: 20..200, late_ms: 1..2 }
    }
}

type Served = (Ports, PeerHandler);

struct State {
    served: RefCell<BTreeMap<(NodeId, u16), Served>>,
    /// Nothing gets from the one to the other.
    cut: RefCell<BTreeSet<(NodeId, NodeId)>>,
    faults: RefCell<NetFaults>,
    in_flight: RefCell<BTreeMap<NodeId, usize>>,
    delivered: Cell<u64>,
    lost: Cell<u64>,
}

/// The network between all nodes. A clone is another handle.
#[derive(Clone)]
pub struct SimNet {
    state: Rc<State>,
    sim: SimHandle,
}

impl SimNet {
    /// A sound network that reaches nobody yet.
    #[must_use]
    pub fn new(sim: &Sim) -> SimNet {
        let state = State {
            served: RefCell::default(),
            cut: RefCell::default(),
            faults: RefCell::new(NetFaults::none()),
            in_flight: RefCell::default(),
            delivered: Cell::new(0),
            lost: Cell::new(0),
        };
        SimNet { state: Rc::new(state), sim: sim.handle() }
    }

    /// `handler` answers for a service of `node` from now on, in tasks on `ports`: its core's.
    pub fn serve(&self, node: NodeId, service: ServiceId, ports: Ports, handler: PeerHandler) {
        let old = self.state.served.borrow_mut().insert((node, service.0), (ports, handler));
        drop(old);
    }

    /// Nobody answers at `node` any more.
    pub fn unplug(&self, node: NodeId) {
        let mut served = self.state.served.borrow_mut();
        let keys: Vec<_> = served.keys().filter(|(of, _)| *of == node).copied().collect();
        let old: Vec<_> = keys.iter().filter_map(|key| served.remove(key)).collect();
        drop(served);
        drop(old);
    }

    /// What `node` calls others with.
    #[must_use]
    pub fn calls(&self, node: NodeId, ports: Ports) -> Rc<dyn PeerCalls> {
        Rc::new(Caller { net: self.clone(), node, ports })
    }

    /// How bad the network is from now on.
    pub fn set_faults(&self, faults: NetFaults) {
        self.state.faults.replace(faults);
    }

    /// Nothing gets from `from` to `to` any more; what is under way is lost. The other way stays as it is.
    pub fn cut(&self, from: NodeId, to: NodeId) {
        self.state.cut.borrow_mut().insert((from, to));
    }

    /// All nodes reach each other again.
    pub fn heal(&self) {
        self.state.cut.borrow_mut().clear();
    }

    /// Messages that arrived, and messages that did not.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        (self.state.delivered.get(), self.state.lost.get())
    }

    fn is_cut(&self, from: NodeId, to: NodeId) -> bool {
        self.state.cut.borrow().contains(&(from, to))
    }

    fn count_lost(&self) {
        self.state.lost.set(self.state.lost.get() + 1);
    }

    /// When a message that leaves now arrives; `None`: never.
    fn delay(&self, from: NodeId, to: NodeId) -> Option<Duration> {
        let chance = &self.sim.world.chance;
        let faults = self.state.faults.borrow();
        let delay = if chance.chance(faults.late_per_mille, 1000) {
            Duration::from_millis(chance.between(faults.late_ms.clone()))
        } else {
            Duration::from_micros(chance.between(faults.delay_us.clone()))
        };
        let lost = chance.chance(faults.lost_per_mille, 1000) || self.is_cut(from, to);
        self.sim.world.mix(if lost { 1 } else { delay.as_nanos() as u64 });
        if lost {
            self.count_lost();
        }
        (!lost).then_some(delay)
    }

    /// Delivers `act` to `to` after its delay, unless the way is cut by then.
    fn carry(&self, from: NodeId, to: NodeId, act: impl FnOnce(&SimNet) + 'static) {
        let Some(delay) = self.delay(from, to) else { return };
        let net = self.clone();
        self.sim.world.run_at(self.sim.now() + delay, move || {
            if net.is_cut(from, to) {
                net.count_lost();
                return;
            }
            net.state.delivered.set(net.state.delivered.get() + 1);
            act(&net);
        });
    }

    /// The question has arrived: whoever answers there does, and the answer goes back.
    fn arrive(&self, from: NodeId, to: PeerLane, service: ServiceId, parcel: Parcel, answer: AnswerSender) {
        let served = self.state.served.borrow().get(&(to.node, service.0)).cloned();
        let Some((ports, handler)) = served else { return };
        let (net, lane): (SimNet, LaneId) = (self.clone(), to.lane);
        ports.spawn(
            "sim-net",
            Box::pin(async move {
                let given = handler(PeerIdentity::Node(from), lane, parcel).await;
                net.carry(to.node, from, move |_| {
                    let _ = answer.send(given); // the caller may have given up
                });
            }),
        );
    }
}

type AnswerSender = oneshot::Sender<Result<Parcel, String>>;

/// What one node calls others with.
struct Caller {
    net: SimNet,
    node: NodeId,
    ports: Ports,
}

/// One call under way.
struct Slot(SimNet, NodeId);

impl Slot {
    async fn take(net: SimNet, node: NodeId, ports: &Ports) -> Slot {
        while net.state.in_flight.borrow().get(&node).is_some_and(|count| *count >= CALLS_IN_FLIGHT_MAX) {
            ports.sleep(ROOM_POLL).await;
        }
        *net.state.in_flight.borrow_mut().entry(node).or_default() += 1;
        Slot(net, node)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        *self.0.state.in_flight.borrow_mut().entry(self.1).or_default() -= 1;
    }
}

impl PeerCalls for Caller {
    fn call(
        &self,
        to: PeerLane,
        service: ServiceId,
        parcel: Parcel,
        deadline: Duration,
    ) -> LocalBoxFuture<'static, Result<Parcel, PeerCallError>> {
        let (net, from, ports) = (self.net.clone(), self.node, self.ports.clone());
        let over = ports.sleep(deadline);
        let exchange = async move {
            let _slot = Slot::take(net.clone(), from, &ports).await;
            let (sender, receiver) = oneshot::channel();
            net.carry(from, to.node, move |net| net.arrive(from, to, service, parcel, sender));
            match receiver.await {
                Ok(Ok(parcel)) => Ok(parcel),
                Ok(Err(reason)) => Err(PeerCallError::Refused { node: to.node, reason }),
                // Lost. Sometimes the connection breaks and the caller learns of it, sometimes all is silent.
                Err(oneshot::Canceled) if net.sim.world.chance.chance(1, 2) => {
                    Err(PeerCallError::Unreachable { node: to.node, reason: "the connection broke".to_owned() })
                }
                Err(oneshot::Canceled) => std::future::pending().await,
            }
        };
        Box::pin(async move {
            match select(Box::pin(exchange), over).await {
                Either::Left((answer, _)) => answer,
                Either::Right(_) => Err(PeerCallError::Deadline { node: to.node, waited: deadline }),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);
    const DEADLINE: Duration = Duration::from_millis(500);

    fn lane_of(node: NodeId) -> PeerLane {
        PeerLane { node, lane: LaneId(0) }
    }

    /// Two nodes, of which B answers with what it was sent and counts.
    fn two(sim: &Sim) -> (SimNet, Rc<dyn PeerCalls>, Rc<Cell<u64>>) {
        let net = SimNet::new(sim);
        let served = Rc::new(Cell::new(0));
        let count = served.clone();
        let handler: PeerHandler = Rc::new(move |from, _, parcel| {
            assert_eq!(from, PeerIdentity::Node(A));
            count.set(count.get() + 1);
            Box::pin(async move { Ok(parcel) })
        });
        net.serve(B, ServiceId::RAFT, sim.ports(executor::NodeId(2)), handler);
        let calls = net.calls(A, sim.ports(executor::NodeId(1)));
        (net, calls, served)
    }

    fn call(sim: &Sim, calls: &Rc<dyn PeerCalls>, byte: u8) -> Result<Vec<u8>, PeerCallError> {
        let parcel = Parcel { message: vec![byte], bulk: Vec::new() };
        let answer = sim.block_on(executor::NodeId(1), calls.call(lane_of(B), ServiceId::RAFT, parcel, DEADLINE));
        answer.map(|parcel| parcel.message)
    }

    #[test]
    fn a_call_reaches_its_node_and_the_answer_its_caller() {
        let sim = Sim::new(1);
        let (net, calls, served) = two(&sim);
        assert_eq!(call(&sim, &calls, 7), Ok(vec![7]));
        net.unplug(B);
        assert!(call(&sim, &calls, 7).is_err());
        assert_eq!(served.get(), 1);
    }

    #[test]
    fn a_cut_is_one_way_and_an_answer_that_is_lost_was_acted_upon() {
        let sim = Sim::new(2);
        let (net, calls, served) = two(&sim);
        net.cut(B, A);
        assert!(call(&sim, &calls, 7).is_err());
        assert_eq!(served.get(), 1, "the question got through");
        net.heal();
        net.cut(A, B);
        assert!(call(&sim, &calls, 7).is_err());
        assert_eq!(served.get(), 1, "this one did not");
        net.heal();
        assert_eq!(call(&sim, &calls, 9), Ok(vec![9]));
    }

    #[test]
    fn late_messages_are_acted_upon_once_after_their_caller_gave_up() {
        let sim = Sim::new(3);
        let (net, calls, served) = two(&sim);
        net.set_faults(NetFaults { late_per_mille: 1000, late_ms: 2_000..3_000, ..NetFaults::none() });
        assert!(matches!(call(&sim, &calls, 7), Err(PeerCallError::Deadline { .. })));
        assert_eq!(served.get(), 0);
        sim.block_on(executor::NodeId(1), sim.ports(executor::NodeId(1)).sleep(Duration::from_secs(10)));
        assert_eq!(served.get(), 1);
    }

    #[test]
    fn lost_messages_are_lost_by_the_share_that_was_asked_for() {
        let sim = Sim::new(4);
        let (net, calls, served) = two(&sim);
        net.set_faults(NetFaults { lost_per_mille: 300, ..NetFaults::none() });
        let good = (0..200).filter(|_| call(&sim, &calls, 1).is_ok()).count() as u64;
        assert!((60..140).contains(&good), "{good} of 200 came back");
        assert!(served.get() > good && served.get() < 180, "{} arrived, {good} came back", served.get());
    }
}
