//! Changes whose answer does not come, and nodes of an earlier release.

use super::*;
use crate::api::Condition;
use crate::engine_capnp::response;
use crate::message::{NodeState, ObjectPath};
use crate::nodes::NODE_SILENT_AFTER;
use kiseki_simulator::Sim;
use kiseki_types::ids::{DirId, NamespaceId};
use kiseki_types::link::LinkError;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

const SHARD: ShardId = ShardId(1024);

/// What one of the other nodes is like.
#[derive(Clone, Copy, Default)]
struct Manner {
    leads: bool,
    /// It was made before requests had ids.
    is_old: bool,
    /// It does what it is asked and dies over the answer.
    dies: bool,
    /// It is cut off: nothing comes back, and no error either.
    hangs: bool,
    /// Nobody listens there.
    is_down: bool,
}

/// Nodes 2 and 3, which share what they have done, as replicas do.
#[derive(Default)]
struct Others {
    manners: RefCell<BTreeMap<NodeId, Manner>>,
    /// Who leads when the leader has died.
    heir: Cell<Option<NodeId>>,
    done: RefCell<BTreeSet<RequestId>>,
    /// How often something was really done.
    changes: Cell<u32>,
    /// How often one was asked that hangs.
    waits: Cell<u32>,
    asked: RefCell<Vec<(u64, Option<RequestStamp>)>>,
}

impl Others {
    fn set(&self, node: u64, manner: Manner) {
        self.manners.borrow_mut().insert(NodeId(node), manner);
    }

    fn answer(&self, node: NodeId, message: &[u8]) -> Result<Vec<u8>, PeerCallError> {
        let Manner { leads, is_old, dies, .. } = self.manners.borrow().get(&node).copied().unwrap_or_default();
        let request = wire::decode_request(message).expect("a request");
        let RequestBody::Shard(body) = request.body else { panic!("only shards are asked") };
        if is_old && request.stamp.is_some() {
            // As the reader of version 1 does.
            return Err(PeerCallError::Refused { node, reason: "the engine message is of version 2".to_owned() });
        }
        let is_change = body.is_done_once();
        if is_change {
            self.asked.borrow_mut().push((node.0, request.stamp));
        }
        if !leads {
            return Ok(self.say(is_old, Err(None)));
        }
        if is_change && request.stamp.is_none_or(|stamp| self.done.borrow_mut().insert(stamp.id)) {
            self.changes.set(self.changes.get() + 1);
        }
        if is_change && dies {
            self.set(node.0, Manner { leads: false, is_old, dies, ..Manner::default() });
            if let Some(heir) = self.heir.get() {
                let manner = self.manners.borrow().get(&heir).copied().unwrap_or_default();
                self.set(heir.0, Manner { leads: true, ..manner });
            }
            return Err(PeerCallError::Unreachable { node, reason: "it is gone".to_owned() });
        }
        Ok(self.say(is_old, Ok(is_change)))
    }

    fn say(&self, is_old: bool, what: Result<bool, Option<NodeId>>) -> Vec<u8> {
        let mut message = capnp::message::Builder::new_default();
        let mut out = message.init_root::<response::Builder<'_>>();
        out.set_version(1);
        if !is_old {
            out.set_speaks(2);
            out.set_mark(7);
        }
        match what {
            Ok(true) => out.init_tenant().set_deleted(true),
            Ok(false) => out.init_tenant().set_pin_epoch(3),
            Err(_) => out.init_not_here().set_is_known(false),
        }
        capnp::serialize::write_message_to_words(&message)
    }
}

struct ToOthers(Rc<Others>);

impl PeerCalls for ToOthers {
    fn call(
        &self,
        to: PeerLane,
        service: ServiceId,
        parcel: Parcel,
        _deadline: Duration,
    ) -> LocalBoxFuture<'static, Result<Parcel, PeerCallError>> {
        assert_eq!(service, ServiceId::ENGINE);
        let manner = self.0.manners.borrow().get(&to.node).copied().unwrap_or_default();
        if manner.is_down {
            let reason = "connection refused".to_owned();
            return Box::pin(async move { Err(PeerCallError::NotSent { node: to.node, reason }) });
        }
        if manner.hangs {
            self.0.waits.set(self.0.waits.get() + 1);
            return Box::pin(std::future::pending());
        }
        let answer = self.0.answer(to.node, &parcel.message).map(|message| Parcel { message, bulk: Vec::new() });
        Box::pin(async move { answer })
    }
}

/// This node leads nothing.
struct NothingHere;

impl Link<EngineRequest, EngineResponse> for NothingHere {
    fn call(&self, _to: LaneId, request: EngineRequest) -> LocalBoxFuture<'static, Result<EngineResponse, LinkError>> {
        let request = Some(Box::new(request.body));
        Box::pin(async move { Ok(Ok(ResponseBody::NotHere { leader: None, request })) })
    }
}

struct World {
    sim: Sim,
    others: Rc<Others>,
    calls: Calls,
}

impl World {
    fn new() -> World {
        let sim = Sim::new(1);
        let others = Rc::new(Others::default());
        let nodes = NodeBoard::new(NodeId(1));
        let entry =
            |node| NodeEntry { state: NodeState::Active, lanes: 1, cores: 1, ..NodeEntry::invited(NodeId(node), 0) };
        nodes.take_up(1, &[entry(1), entry(2), entry(3)]);
        let calls = Calls::new(CallsInputs {
            ports: sim.ports(kiseki_simulator::NodeId(0)),
            link: Rc::new(NothingHere),
            lane_count: 1,
            home_count: 1,
            nodes,
            peers: Rc::new(ToOthers(others.clone())),
        });
        World { sim, others, calls }
    }

    fn delete(&self) -> Result<ShardResponse, StoreError> {
        let path = ObjectPath { namespace: NamespaceId(1), root: DirId([1; 16]), key: "key".to_owned() };
        let request = ShardRequest::Delete { path, condition: Condition::None };
        self.sim.block_on(kiseki_simulator::NodeId(0), self.calls.shard(SHARD, request))
    }

    /// One that must not be sent twice.
    fn close_read(&self) -> Result<ShardResponse, StoreError> {
        let request = ShardRequest::CloseRead { pages: Vec::new(), read: None };
        self.sim.block_on(kiseki_simulator::NodeId(0), self.calls.shard(SHARD, request))
    }

    fn now(&self) -> Instant {
        self.sim.now()
    }

    fn asked(&self) -> Vec<(u64, Option<RequestStamp>)> {
        std::mem::take(&mut *self.others.asked.borrow_mut())
    }
}

const NEW: Manner = Manner { leads: true, is_old: false, dies: false, hangs: false, is_down: false };

#[test]
fn a_change_whose_leader_dies_is_asked_again_under_its_id_and_done_once() {
    let world = World::new();
    world.others.set(2, Manner { dies: true, ..NEW });
    world.others.heir.set(Some(NodeId(3)));
    assert!(matches!(world.delete(), Ok(ShardResponse::Deleted(true))));
    assert_eq!(world.others.changes.get(), 1);
    let asked = world.asked();
    let (first, last) = (asked.iter().find(|(node, _)| *node == 2), asked.last());
    let (Some((2, Some(first))), Some((3, Some(last)))) = (first, last) else { panic!("who was asked: {asked:?}") };
    assert_eq!((first, first.seen), (last, Mark(7)), "one request, and what was seen before");
}

#[test]
fn a_change_that_nobody_answers_is_unsettled_in_the_end() {
    let world = World::new();
    world.others.set(2, Manner { dies: true, ..NEW });
    assert!(matches!(world.delete(), Err(StoreError::Unsettled { .. })));
    assert_eq!(world.others.changes.get(), 1);
}

#[test]
fn a_node_of_the_version_before_is_asked_without_an_id_and_only_once() {
    let world = World::new();
    world.others.set(2, Manner { is_old: true, ..NEW });
    // Nobody knows yet that it is old: it refuses what it does not understand, and nothing happens.
    assert!(matches!(world.delete(), Ok(ShardResponse::Deleted(true))));
    assert_eq!((world.others.changes.get(), world.asked().last().copied()), (1, Some((2, None))));
    // Its answer is lost: whoever leads next must not do it again, since the old one left no trace of it.
    world.others.set(2, Manner { is_old: true, dies: true, ..NEW });
    world.others.heir.set(Some(NodeId(3)));
    assert!(matches!(world.delete(), Err(StoreError::Unsettled { .. })));
    assert_eq!((world.others.changes.get(), world.asked()), (2, vec![(2, None)]));
}

#[test]
fn what_a_new_leader_may_have_done_no_old_one_does_again() {
    let world = World::new();
    world.others.set(2, Manner { dies: true, ..NEW });
    world.others.set(3, Manner { is_old: true, ..Manner::default() });
    world.others.heir.set(Some(NodeId(3)));
    assert!(matches!(world.delete(), Err(StoreError::Unsettled { .. })));
    assert_eq!(world.others.changes.get(), 1, "the old one refuses what is asked again");
    // When it is updated, everything is as it should be.
    world.others.set(3, NEW);
    assert!(matches!(world.delete(), Ok(ShardResponse::Deleted(true))));
    assert_eq!(world.others.changes.get(), 2);
}

#[test]
fn a_node_that_is_cut_off_is_waited_for_once_and_no_longer_than_until_it_is_silent() {
    let world = World::new();
    world.others.set(2, NEW);
    assert!(matches!(world.delete(), Ok(ShardResponse::Deleted(true))), "it answers, and is known to lead");
    world.others.set(2, Manner { hangs: true, ..NEW });
    world.others.set(3, NEW);
    let began = world.now();
    assert!(matches!(world.delete(), Ok(ShardResponse::Deleted(true))), "whoever leads next does it");
    let waited = world.now().since(began);
    assert!(waited <= NODE_SILENT_AFTER + Duration::from_millis(100), "waited {waited:?}");
    assert_eq!(world.others.waits.get(), 1);
    // What another shard has to do is not asked of it at all.
    let began = world.now();
    let path = ObjectPath { namespace: NamespaceId(1), root: DirId([1; 16]), key: "key".to_owned() };
    let request = ShardRequest::Delete { path, condition: Condition::None };
    let other = world.sim.block_on(kiseki_simulator::NodeId(0), world.calls.shard(ShardId(1025), request));
    assert!(matches!(other, Ok(ShardResponse::Deleted(true))));
    assert!(world.now().since(began) < Duration::from_secs(1) && world.others.waits.get() == 1);
}

#[test]
fn a_change_that_can_not_be_asked_again_does_not_wait_for_a_node_that_is_cut_off() {
    let world = World::new();
    world.others.set(2, NEW);
    world.delete().unwrap();
    world.others.set(2, Manner { hangs: true, ..NEW });
    let began = world.now();
    let answer = world.close_read();
    assert!(matches!(answer, Err(StoreError::Unsettled { .. })), "it may have been done: {answer:?}");
    assert!(world.now().since(began) <= NODE_SILENT_AFTER + Duration::from_millis(200));
}

#[test]
fn what_was_not_sent_is_asked_of_others_whatever_it_is() {
    let world = World::new();
    world.others.set(2, NEW);
    world.delete().unwrap();
    world.others.set(2, Manner { is_down: true, ..NEW });
    world.others.set(3, NEW);
    assert!(world.close_read().is_ok(), "nothing happened where nobody listened, so the next one is asked");
}
