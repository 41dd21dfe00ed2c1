//! Who is asked for a shard: the node that answered last, then whom a node names that does not lead it, then one after the
//! other. And what may be asked again of the next one.

use crate::api::StoreError;
use crate::message::{ControlRequest, EngineRequest, EngineResponse, HomeRequest, RequestBody, ShardRequest};
use crate::nodes::NodeBoard;
use crate::request_log::{Mark, RequestStamp};
use crate::split_message::{ShardMapRequest, SplitRequest};
use crate::wire;
use kiseki_types::ids::{NodeId, ShardId};
use kiseki_types::runtime::Instant;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// Shards whose nodes are remembered; with more all are forgotten (I-O5).
const ROUTES_MAX: usize = 65_536;

/// Pause when every node has been asked.
const ROUND_PAUSE: Duration = Duration::from_millis(50);

/// Names that are followed without a pause: two nodes may each name the other while a leader changes.
const NAMES_FOLLOWED_MAX: u32 = 3;

/// What became of a request to one node.
pub(crate) enum Attempt {
    /// It has an answer.
    Answered(EngineResponse),
    /// Nothing happened there; the node to ask, if it is known.
    NotThere(Option<NodeId>),
    /// It may have happened there, and it may be asked again.
    Unanswered(StoreError),
    /// It can't be asked again.
    Failed(StoreError),
}

/// A request, as it is wanted within a node or between nodes.
pub(crate) enum Asked {
    /// As it is.
    Here(RequestBody),
    /// Encoded, with this stamp.
    There(Vec<u8>, Option<RequestStamp>),
    /// On its way.
    Taken,
}

impl Asked {
    /// The request as it is, once.
    pub(crate) fn take(&mut self) -> Result<RequestBody, StoreError> {
        match std::mem::replace(self, Asked::Taken) {
            Asked::Here(body) => Ok(body),
            Asked::There(message, _) => {
                let decoded = wire::decode_request(&message);
                Ok(decoded.map_err(|error| StoreError::Unavailable { reason: error.to_string() })?.body)
            }
            Asked::Taken => Err(StoreError::Unavailable { reason: "a request was taken twice".to_owned() }),
        }
    }

    /// Its bytes, to be sent.
    pub(crate) fn encode(&mut self, shard: ShardId, stamp: Option<RequestStamp>) -> Result<Vec<u8>, StoreError> {
        if let Asked::There(message, with) = self
            && *with == stamp
        {
            return Ok(message.clone());
        }
        let request = EngineRequest { shard, body: self.take()?, stamp };
        let message =
            wire::encode_request(&request).map_err(|error| StoreError::TooLarge { what: error.to_string() })?;
        *self = Asked::There(message.clone(), stamp);
        Ok(message)
    }
}

/// Which node answered last for which shard.
pub(crate) struct Routes {
    nodes: Rc<NodeBoard>,
    known: RefCell<BTreeMap<ShardId, NodeId>>,
    /// How far shards had counted their requests when they answered last.
    marks: RefCell<BTreeMap<ShardId, (Mark, Instant)>>,
}

/// The way of one request.
pub(crate) struct Route {
    /// Who is asked now.
    pub(crate) node: NodeId,
    followed: u32,
    tried: usize,
}

impl Routes {
    pub(crate) fn new(nodes: Rc<NodeBoard>) -> Routes {
        Routes { nodes, known: RefCell::default(), marks: RefCell::default() }
    }

    /// Where to begin: this node, unless another one answered last.
    pub(crate) fn begin(&self, shard: ShardId) -> Route {
        let known = self.known.borrow().get(&shard).copied();
        Route { node: known.unwrap_or(self.nodes.own()), followed: 0, tried: 0 }
    }

    /// A node has answered.
    pub(crate) fn found(&self, shard: ShardId, node: NodeId) {
        let mut known = self.known.borrow_mut();
        if node == self.nodes.own() {
            known.remove(&shard);
        } else if known.get(&shard) != Some(&node) {
            if known.len() >= ROUTES_MAX {
                known.clear();
            }
            known.insert(shard, node);
        }
    }

    /// How far a shard had counted its requests when it answered last, and when that was.
    pub(crate) fn mark(&self, shard: ShardId) -> Option<(Mark, Instant)> {
        self.marks.borrow().get(&shard).copied()
    }

    /// A shard has counted so far.
    pub(crate) fn marked(&self, shard: ShardId, mark: Mark, now: Instant) {
        let mut marks = self.marks.borrow_mut();
        match marks.get_mut(&shard) {
            Some(known) => *known = (mark.max(known.0), now),
            None => {
                if marks.len() >= ROUTES_MAX {
                    marks.clear();
                }
                marks.insert(shard, (mark, now));
            }
        }
    }

    /// A node does not answer for the shard.
    pub(crate) fn lost(&self, shard: ShardId, node: NodeId) {
        let mut known = self.known.borrow_mut();
        if known.get(&shard) == Some(&node) {
            known.remove(&shard);
        }
    }
}

impl Route {
    /// Chooses whom to ask next, and how long to wait before.
    pub(crate) fn next(&mut self, nodes: &NodeBoard, named: Option<NodeId>) -> Option<Duration> {
        if let Some(named) = named.filter(|named| *named != self.node)
            && self.followed < NAMES_FOLLOWED_MAX
        {
            self.followed += 1;
            self.node = named;
            return None;
        }
        self.followed = 0;
        let mut all = vec![nodes.own()];
        all.extend(nodes.others().iter().map(|entry| entry.node));
        self.node = all[self.tried % all.len()];
        self.tried += 1;
        (self.tried % all.len() == 1 || all.len() == 1).then_some(ROUND_PAUSE)
    }
}

/// Whether a request may be asked again when it is not known whether it was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// It changes nothing, or the second time changes nothing more.
    Freely,
    /// Under the same request id only: the shard does it once.
    Stamped,
    /// No.
    Never,
}

impl Repeat {
    /// Of a request.
    pub(crate) fn of(body: &RequestBody) -> Repeat {
        match body {
            RequestBody::Control(request) if request.is_done_once() => Repeat::Stamped,
            RequestBody::Shard(request) if request.is_done_once() => Repeat::Stamped,
            body if repeats_freely(body) => Repeat::Freely,
            _ => Repeat::Never,
        }
    }
}

/// A request that may have to be asked again, before it is given away.
pub(crate) fn copy_of(body: &RequestBody) -> Option<RequestBody> {
    match body {
        RequestBody::Control(request) => Some(RequestBody::Control(request.clone())),
        RequestBody::Home(request) => Some(RequestBody::Home(request.clone())),
        RequestBody::Shard(request) => Some(RequestBody::Shard(request.clone())),
        RequestBody::Core(request) => Some(RequestBody::Core(request.clone())),
        RequestBody::Node(request) => Some(RequestBody::Node(request.clone())),
        RequestBody::Open(_) => None, // it holds a key
    }
}

fn repeats_freely(body: &RequestBody) -> bool {
    match body {
        RequestBody::Control(ControlRequest::Shards(request)) => !matches!(request, ShardMapRequest::Split { .. }),
        RequestBody::Control(request) => !request.is_done_once(),
        RequestBody::Home(request) => match request {
            HomeRequest::Settle { abort, .. } => abort.is_empty(), // what is complete stays so
            HomeRequest::Collect(_)
            | HomeRequest::Unknown(_)
            | HomeRequest::Repair { .. }
            | HomeRequest::Evacuate(_)
            | HomeRequest::Adopt { .. } => true,
            HomeRequest::Begin { .. } | HomeRequest::Confirm(_) => false,
        },
        RequestBody::Shard(request) => match &**request {
            ShardRequest::Split(request) => matches!(
                **request,
                SplitRequest::Standing
                    | SplitRequest::Choose { .. }
                    | SplitRequest::Begin(_)
                    | SplitRequest::CountOf(_)
                    | SplitRequest::Open { .. }
                    | SplitRequest::Purge { .. }
            ),
            request => matches!(
                request,
                ShardRequest::PinEpoch
                    | ShardRequest::Inline(_)
                    | ShardRequest::Parts { .. }
                    | ShardRequest::Uploads { .. }
                    | ShardRequest::Head(_)
                    | ShardRequest::OpenRead { .. }
                    | ShardRequest::ReadPage { .. }
                    | ShardRequest::CloseRead { read: Some(_), .. }
                    | ShardRequest::AbandonPages(_)
                    | ShardRequest::CloseNamespace { .. }
                    | ShardRequest::List { .. }
                    | ShardRequest::Fence(_)
                    | ShardRequest::Unfence(_)
            ),
        },
        RequestBody::Core(_) | RequestBody::Node(_) => true,
        RequestBody::Open(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delta::ChunkName;
    use crate::message::{NodeEntry, NodeState};
    use kiseki_types::ids::{Generation, Locator};

    fn board(others: &[u64]) -> Rc<NodeBoard> {
        let board = NodeBoard::new(NodeId(1));
        let entry = |node: u64| NodeEntry {
            state: NodeState::Active,
            lanes: 2,
            cores: 1,
            ..NodeEntry::invited(NodeId(node), 0)
        };
        let entries: Vec<NodeEntry> = others.iter().map(|node| entry(*node)).collect();
        board.take_up(1, &entries);
        board
    }

    const SHARD: ShardId = ShardId(7);

    #[test]
    fn whom_a_node_names_is_asked_next_and_two_that_name_each_other_do_not_keep_it() {
        let nodes = board(&[2, 3]);
        let mut route = Routes::new(nodes.clone()).begin(SHARD);
        assert_eq!(route.node, NodeId(1));
        let mut asked = Vec::new();
        for _ in 0..8 {
            let named = if route.node == NodeId(2) { NodeId(3) } else { NodeId(2) };
            let pause = route.next(&nodes, Some(named));
            asked.push((route.node.0, pause.is_some()));
        }
        assert_eq!(&asked[..4], &[(2, false), (3, false), (2, false), (1, true)]);
    }

    #[test]
    fn where_nobody_names_anybody_all_are_asked_with_a_pause_each_round() {
        let nodes = board(&[2, 3]);
        let mut route = Routes::new(nodes.clone()).begin(SHARD);
        let asked: Vec<(u64, bool)> =
            (0..6).map(|_| (route.next(&nodes, None).is_some(), route.node.0)).map(|(p, n)| (n, p)).collect();
        assert_eq!(asked, [(1, true), (2, false), (3, false), (1, true), (2, false), (3, false)]);
    }

    #[test]
    fn a_node_that_is_alone_pauses_each_time() {
        let nodes = board(&[]);
        let mut route = Routes::new(nodes.clone()).begin(SHARD);
        assert!((0..3).all(|_| route.next(&nodes, None).is_some() && route.node == NodeId(1)));
    }

    #[test]
    fn what_changes_nothing_more_is_asked_again() {
        let name = ChunkName { locator: Locator([1; 32]), generation: Generation(1) };
        let settle = |complete, abort| repeats_freely(&RequestBody::Home(HomeRequest::Settle { complete, abort }));
        assert!(settle(vec![(name, [1; 16])], Vec::new()));
        assert!(!settle(Vec::new(), vec![(name, [1; 16])]));
        assert!(repeats_freely(&RequestBody::Shard(Box::new(ShardRequest::AbandonPages(Vec::new())))));
        assert!(!repeats_freely(&RequestBody::Home(HomeRequest::Confirm([1; 16]))));
    }

    #[test]
    fn who_answered_last_is_asked_first() {
        let routes = Routes::new(board(&[2, 3]));
        routes.found(SHARD, NodeId(3));
        assert_eq!(routes.begin(SHARD).node, NodeId(3));
        routes.lost(SHARD, NodeId(2));
        assert_eq!(routes.begin(SHARD).node, NodeId(3));
        routes.lost(SHARD, NodeId(3));
        assert_eq!(routes.begin(SHARD).node, NodeId(1));
    }
}
