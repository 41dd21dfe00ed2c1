//! Records of nodes, as the control shard keeps them.

use crate::support::World;
use kiseki_engine::api::StoreError;
use kiseki_engine::message::{ControlRequest, ControlResponse, Dedup, NodeEntry, NodeState, ResponseBody};
use kiseki_engine::wire::{RACK_VERSION, encode_response};
use kiseki_types::fragment::StripeShape;
use kiseki_types::ids::{NodeId, ShardId};
use kiseki_types::peer::{Parcel, PeerHandler, ServiceId};
use std::rc::Rc;

fn node(world: &World, request: ControlRequest) -> Result<NodeEntry, StoreError> {
    match world.run(world.engine.calls().control(request))? {
        ControlResponse::Node(entry) => Ok(entry),
        _ => panic!("the control shard answers with a node"),
    }
}

fn nodes(world: &World) -> (u64, Vec<NodeEntry>) {
    match world.run(world.engine.calls().control(ControlRequest::Nodes)).unwrap() {
        ControlResponse::Nodes(version, entries) => (version, entries),
        _ => panic!("the control shard answers Nodes with Nodes"),
    }
}

fn here(number: u64, address: &str) -> ControlRequest {
    let (addresses, version) = (vec![address.to_owned()], "1".to_owned());
    ControlRequest::NodeHere { node: NodeId(number), addresses, lanes: 2, cores: 1, version, rack: String::new() }
}

/// The same, of a node that says which rack it is in.
fn here_in(number: u64, rack: &str) -> ControlRequest {
    let (addresses, version) = (vec![format!("n{number}:1")], "1".to_owned());
    ControlRequest::NodeHere { node: NodeId(number), addresses, lanes: 2, cores: 1, version, rack: rack.to_owned() }
}

#[test]
fn the_first_rack_is_recorded_when_every_node_knows_racks() {
    let world = World::new(92);
    let board = &world.engine.core().nodes;
    let rack = |number, rack| node(&world, here_in(number, rack)).unwrap().rack;
    assert_eq!(rack(1, ""), "");
    assert_eq!(node(&world, ControlRequest::InviteNode).unwrap().node, NodeId(2));
    assert_eq!(rack(2, "b"), "b", "nobody else is a member");
    assert_eq!(rack(2, ""), "");
    // From here on node 2 is asked whether it knows racks: it has not said so, or runs the release before.
    assert_eq!(rack(1, "a"), "", "it could not read the record");
    board.speaks(NodeId(2), RACK_VERSION - 1);
    assert_eq!(rack(1, "a"), "");
    board.speaks(NodeId(2), RACK_VERSION);
    assert_eq!(rack(1, "a"), "a");
    // Who has recorded one knows them: that a node is away is no reason any more.
    board.speaks(NodeId(2), RACK_VERSION - 1);
    assert_eq!(rack(2, "b"), "b");
    assert_eq!(rack(2, "c"), "c");
    assert!(node(&world, here_in(2, "no rack")).is_err(), "a blank");
}

#[test]
fn a_node_that_has_not_said_what_it_speaks_is_asked_before_the_first_rack_waits_for_it() {
    let world = World::on_nodes(93, 2, 4, StripeShape { data: 1, parity: 1 });
    let rack = |number, rack| node(&world, here_in(number, rack)).unwrap().rack;
    assert_eq!(rack(1, ""), "");
    assert_eq!(node(&world, ControlRequest::InviteNode).unwrap().node, NodeId(2));
    assert_eq!(rack(2, ""), "");
    assert_eq!(rack(1, "a"), "", "node 2 does not answer");
    let answers: PeerHandler = Rc::new(|_, _, _| {
        let message = encode_response(&Ok(ResponseBody::Done)).expect("it is short");
        Box::pin(async move { Ok(Parcel { message, bulk: Vec::new() }) })
    });
    let net = &world.apart.as_ref().expect("there are others").net;
    net.serve(NodeId(2), ServiceId::ENGINE, world.sim.ports(kiseki_simulator::NodeId(2)), answers);
    assert_eq!(rack(1, "a"), "a", "nobody had asked it anything");
}

#[test]
fn nodes_are_numbered_recorded_and_remembered() {
    let mut world = World::new(90);
    assert!(nodes(&world).1.is_empty(), "a node that is alone need not be recorded");
    assert!(node(&world, here(2, "b:1")).is_err(), "nobody invited it");
    let first = node(&world, here(1, "a:1")).unwrap();
    assert_eq!((first.node, first.state, first.lanes), (NodeId(1), NodeState::Active, 2));
    let invited = |number| {
        let entry = node(&world, ControlRequest::InviteNode).unwrap();
        assert_eq!((entry.node, entry.state), (NodeId(number), NodeState::Invited));
    };
    invited(2);
    invited(3);
    let (version, _) = nodes(&world);
    assert_eq!(node(&world, here(1, "a:1")).unwrap(), first);
    assert_eq!(nodes(&world).0, version, "nothing has changed");
    let given_up = ControlRequest::SetNodeState { node: NodeId(3), state: NodeState::Removed };
    assert_eq!(node(&world, given_up).unwrap().state, NodeState::Removed);
    assert!(node(&world, here(3, "c:1")).is_err(), "it was removed before it joined");
    assert_eq!(node(&world, here(1, "a:2")).unwrap().addresses, ["a:2"]);
    let before = nodes(&world);
    assert_eq!(before.0, version + 2);
    world.restart();
    assert_eq!(nodes(&world), before);
    assert_eq!(node(&world, ControlRequest::InviteNode).unwrap().node, NodeId(4), "no number comes again");
}

#[test]
fn a_shard_is_opened_with_the_key_that_it_was_made_with_and_never_made_again() {
    let world = World::new(91);
    let tenant = world.tenant("a", Dedup::Shared);
    let key = |shard| world.run(world.engine.calls().control(ControlRequest::ShardKey(shard)));
    match key(ShardId(ShardId::TENANT_FIRST)).unwrap() {
        ControlResponse::ShardKey(open) => assert!(open.tenant == tenant && !open.create),
        _ => panic!("the control shard answers ShardKey with ShardKey"),
    }
    assert!(key(ShardId(ShardId::TENANT_FIRST + 100)).is_err(), "no such shard");
}
