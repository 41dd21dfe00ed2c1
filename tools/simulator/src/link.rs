//! Calls between simulated cores: a handler per lane, delays from the seed.

use crate::executor::{Sim, SimHandle};
use futures::channel::oneshot;
use kiseki_types::ids::LaneId;
use kiseki_types::link::{Link, LinkError};
use kiseki_types::runtime::{LocalBoxFuture, Ports, RuntimeExt};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

/// Calls in flight over one link; a caller over the bound waits.
pub const CALLS_IN_FLIGHT_MAX: usize = 1024;

/// Delay of a message in one direction, in nanoseconds.
const DELAY_NS: Range<u64> = 500..50_000;

type Handler<Request, Response> = Rc<dyn Fn(Request) -> LocalBoxFuture<'static, Response>>;

struct State<Request, Response> {
    lanes: BTreeMap<LaneId, (Ports, Handler<Request, Response>)>,
    in_flight: usize,
    waiting: VecDeque<oneshot::Sender<()>>,
}

/// The links of one kind between all cores of a node. Clones share everything.
pub struct SimLink<Request, Response> {
    state: Rc<RefCell<State<Request, Response>>>,
    sim: SimHandle,
}

impl<Request, Response> Clone for SimLink<Request, Response> {
    fn clone(&self) -> Self {
        SimLink { state: self.state.clone(), sim: self.sim.clone() }
    }
}

impl<Request: 'static, Response: 'static> SimLink<Request, Response> {
    /// A link that reaches nobody yet.
    #[must_use]
    pub fn new(sim: &Sim) -> Self {
        let state = State { lanes: BTreeMap::new(), in_flight: 0, waiting: VecDeque::new() };
        SimLink { state: Rc::new(RefCell::new(state)), sim: sim.handle() }
    }

    /// `handler` answers for `lane` from now on, in tasks on `ports`: its core's.
    pub fn serve(
        &self,
        lane: LaneId,
        ports: Ports,
        handler: impl Fn(Request) -> LocalBoxFuture<'static, Response> + 'static,
    ) {
        let old = self.state.borrow_mut().lanes.insert(lane, (ports, Rc::new(handler)));
        drop(old);
    }

    /// Nobody answers for `lane` any more.
    pub fn unplug(&self, lane: LaneId) {
        let old = self.state.borrow_mut().lanes.remove(&lane);
        drop(old);
    }

    fn delay(&self) -> Duration {
        let delay = self.sim.world.chance.between(DELAY_NS);
        self.sim.world.mix(delay);
        Duration::from_nanos(delay)
    }

    async fn slot(&self) -> Slot<Request, Response> {
        let turn = {
            let mut state = self.state.borrow_mut();
            if state.in_flight < CALLS_IN_FLIGHT_MAX {
                state.in_flight += 1;
                None
            } else {
                let (sender, receiver) = oneshot::channel();
                state.waiting.push_back(sender);
                Some(receiver)
            }
        };
        if let Some(turn) = turn {
            // The slot of a call that ended is handed over, so the count stays.
            turn.await.expect("the queue of waiting callers lives as long as the link");
        }
        Slot(self.clone())
    }

    async fn deliver(self, to: LaneId, request: Request) -> Result<Response, LinkError> {
        let unreachable = LinkError::Unreachable { lane: to };
        let slot = self.slot().await;
        let target = self.state.borrow().lanes.get(&to).cloned();
        let Some((ports, handler)) = target else { return Err(unreachable) };
        let (there, back) = (self.delay(), self.delay());
        let (sender, receiver) = oneshot::channel();
        // The call goes on when its caller is gone, as it does between real cores.
        ports.clone().spawn(
            "sim-link",
            Box::pin(async move {
                let _slot = slot;
                ports.sleep(there).await;
                let response = handler(request).await;
                ports.sleep(back).await;
                let _ = sender.send(response); // the caller may be gone
            }),
        );
        receiver.await.map_err(|_| unreachable)
    }
}

/// One call in flight.
struct Slot<Request, Response>(SimLink<Request, Response>);

impl<Request, Response> Drop for Slot<Request, Response> {
    fn drop(&mut self) {
        let mut state = self.0.state.borrow_mut();
        while let Some(next) = state.waiting.pop_front() {
            if next.send(()).is_ok() {
                return;
            }
        }
        state.in_flight -= 1;
    }
}

impl<Request: 'static, Response: 'static> Link<Request, Response> for SimLink<Request, Response> {
    fn call(&self, to: LaneId, request: Request) -> LocalBoxFuture<'static, Result<Response, LinkError>> {
        Box::pin(self.clone().deliver(to, request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::NodeId;
    use futures::future::join_all;
    use kiseki_types::ids::CoreId;
    use std::cell::Cell;

    const NODE: NodeId = NodeId(1);

    #[test]
    fn calls_reach_the_core_of_their_lane_and_take_time() {
        let sim = Sim::new(1);
        let link = SimLink::<u64, u64>::new(&sim);
        for lane in 0..2 {
            let add = u64::from(lane) * 100;
            let ports = sim.core_ports(NODE, CoreId(lane));
            link.serve(LaneId(lane), ports, move |n| Box::pin(async move { n + add }));
        }
        let start = sim.now();
        assert_eq!(sim.block_on(NODE, link.call(LaneId(1), 7)), Ok(107));
        assert_eq!(sim.block_on(NODE, link.call(LaneId(0), 7)), Ok(7));
        assert!(sim.now() > start);
        let absent = LaneId(9);
        assert_eq!(sim.block_on(NODE, link.call(absent, 7)), Err(LinkError::Unreachable { lane: absent }));
    }

    #[test]
    fn calls_in_flight_are_bounded_and_all_end() {
        let sim = Sim::new(2);
        let link = SimLink::<u64, u64>::new(&sim);
        let (now, most) = (Rc::new(Cell::new(0_usize)), Rc::new(Cell::new(0_usize)));
        let (counted, highest, ports) = (now.clone(), most.clone(), sim.ports(NODE));
        link.serve(LaneId(0), ports.clone(), move |n| {
            let (now, most, ports) = (counted.clone(), highest.clone(), ports.clone());
            Box::pin(async move {
                now.set(now.get() + 1);
                most.set(most.get().max(now.get()));
                ports.sleep(Duration::from_millis(1)).await;
                now.set(now.get() - 1);
                n
            })
        });
        let calls = (0..3 * CALLS_IN_FLIGHT_MAX as u64).map(|n| link.call(LaneId(0), n));
        let answers = sim.block_on(NODE, join_all(calls));
        assert!(answers.iter().enumerate().all(|(n, answer)| *answer == Ok(n as u64)));
        assert!((2..=CALLS_IN_FLIGHT_MAX).contains(&most.get()), "{}", most.get());
    }

    #[test]
    fn a_killed_core_leaves_its_callers_with_an_error() {
        let sim = Sim::new(3);
        let link = SimLink::<(), ()>::new(&sim);
        link.serve(LaneId(0), sim.ports(NODE), |()| Box::pin(std::future::pending()));
        let caller = NodeId(2);
        let ports = sim.ports(caller);
        let answer = sim.block_on(caller, async {
            let call = link.call(LaneId(0), ());
            let kill = async {
                ports.sleep(Duration::from_millis(5)).await;
                sim.kill(NODE);
            };
            futures::future::join(call, kill).await.0
        });
        assert_eq!(answer, Err(LinkError::Unreachable { lane: LaneId(0) }));
    }
}
