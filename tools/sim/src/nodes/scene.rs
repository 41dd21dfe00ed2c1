//! A run: the cluster is formed node by node; clients work while nodes die and the network breaks; then peace, in which
//! everything must come right again.

mod handover;

pub use handover::run_handover;

use crate::model::{BUCKETS, Place};
use crate::node::OpenNode;
use crate::nodes::placed::badly_placed;
use crate::nodes::splitter::Splitter;
use crate::nodes::worker::{Book, Serving, Worker};
use crate::real::{Lie, Membership, RealNode, RealOptions};
use futures::channel::oneshot;
use futures::lock::Mutex;
use kiseki_engine::message::{ControlRequest, ControlResponse, NodeEntry};
use kiseki_engine::split_message::{ShardMapAnswer, ShardMapRequest};
use kiseki_server::core_node::CoreNode;
use kiseki_simulator::executor::Interrupted;
use kiseki_simulator::{CutSwitch, Limits, NetFaults, NodeId as Machine, SeededRng, Sim, SimNet};
use kiseki_types::NodeId;
use kiseki_types::fragment::StripeShape;
use kiseki_types::group::{VoterId, node_of};
use kiseki_types::ids::ShardId;
use kiseki_types::runtime::Ports;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// The machine of clients and bookkeeping; it has power all the time.
const HARNESS: Machine = Machine(u32::MAX);

/// A node joins, and a cluster comes right again, within this time of peace.
const PEACE_MAX: Duration = Duration::from_secs(500);

/// The same, of what surveys find that come each hour.
const SURVEYED_WITHIN: Duration = Duration::from_secs(9000);

/// Devices of each node.
const DEVICES: u16 = 2;

/// Shape of a run.
#[derive(Clone, Copy, Debug)]
pub struct NodesOptions {
    /// Nodes.
    pub nodes: u32,
    /// Those of them that join when data are there; troubles go on while what was written spreads over them.
    pub late: u32,
    /// Clients at work at once.
    pub clients: u64,
    /// Troubles, one after the other.
    pub troubles: u64,
    /// How chunks are protected.
    pub shape: StripeShape,
    /// Racks that the nodes are in, in turns; 0: each fails alone.
    pub racks: u32,
    /// A control that has to fail: the disks of the Raft journals answer flushes and save nothing.
    pub journals_lie: bool,
}

impl NodesOptions {
    /// The shape that a seed has.
    #[must_use]
    pub fn for_seed(seed: u64) -> NodesOptions {
        let rng = SeededRng::for_part(seed, 80);
        let (nodes, shape) = match rng.chance(2, 3) {
            // Coded, such a stripe is written as copies while one of the nodes is away.
            true if SeededRng::for_part(seed, 85).chance(1, 2) => (3, StripeShape { data: 4, parity: 2 }),
            true => (3, StripeShape { data: 1, parity: 2 }),
            false => (5, StripeShape { data: 2, parity: 2 }),
        };
        // With two devices each, three nodes hold two fragments of a stripe on one of them.
        let late = if nodes == 5 && rng.chance(1, 2) { 2 } else { 0 };
        // So many that a stripe of that shape survives the loss of one.
        let racks = match (SeededRng::for_part(seed, 84).chance(1, 2), nodes, shape.data) {
            (true, 3, 1) => 2,
            (true, 5, _) => 3,
            _ => 0,
        };
        NodesOptions { nodes, late, clients: 4, troubles: 12, shape, racks, journals_lie: false }
    }
}

/// What a run found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodesReport {
    /// Its seed.
    pub seed: u64,
    /// Writes acknowledged.
    pub acknowledged: u64,
    /// Reads answered.
    pub reads: u64,
    /// Requests without a final answer.
    pub unknown: u64,
    /// Power cuts.
    pub cuts: u64,
    /// Fragments that the nodes which ran in the end had moved to where placement wants them.
    pub moved: u64,
    /// Stripes that those had written as copies because a node was away.
    pub as_copies: u64,
    /// Splits of shards that were begun.
    pub splits: u64,
    /// Messages that arrived, and that did not.
    pub messages: (u64, u64),
    /// Polls made.
    pub steps: u64,
    /// Equal for equal runs.
    pub trace_hash: u64,
    /// What is wrong; empty is good.
    pub violations: Vec<String>,
}

impl NodesReport {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.violations.is_empty()
    }
}

impl fmt::Display for NodesReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (delivered, lost) = self.messages;
        write!(
            f,
            "seed {}: {} writes, {} reads, {} without an answer, {} cuts, {} splits, {} fragments moved, {} stripes as copies, {delivered} messages, \
             {lost} lost, {} steps, trace {:016x}",
            self.seed,
            self.acknowledged,
            self.reads,
            self.unknown,
            self.cuts,
            self.splits,
            self.moved,
            self.as_copies,
            self.steps,
            self.trace_hash
        )?;
        self.violations.iter().try_for_each(|violation| write!(f, "\n  {violation}"))
    }
}

/// Runs one seed. A panic of a node is a finding too.
#[must_use]
pub fn run_nodes(seed: u64, options: NodesOptions) -> NodesReport {
    let sim = Rc::new(Sim::new(seed));
    sim.set_limits(Limits { steps: 90_000_000, time: Duration::from_secs(1800) });
    let (book, counts, net) = (Rc::new(Book::default()), Rc::<Counts>::default(), SimNet::new(&sim));
    let result = catch_unwind(AssertUnwindSafe(|| {
        Scene::new(&sim, &net, &book, &counts, options).play();
    }));
    if let Err(panic) = result {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        book.violation(format!("panic: {}", text.unwrap_or("without a message")));
    }
    NodesReport::of(seed, &sim, &net, &book, &counts)
}

impl NodesReport {
    fn of(seed: u64, sim: &Sim, net: &SimNet, book: &Book, counts: &Counts) -> NodesReport {
        NodesReport {
            seed,
            acknowledged: book.acknowledged.get(),
            reads: book.reads.get(),
            unknown: book.unknown.get(),
            cuts: counts.cuts.get(),
            splits: book.splits.get(),
            moved: counts.moved.get(),
            as_copies: counts.as_copies.get(),
            messages: net.counts(),
            steps: sim.steps(),
            trace_hash: sim.trace_hash(),
            violations: book.violations(),
        }
    }
}

/// What is counted of a run beside what the book knows.
#[derive(Default)]
struct Counts {
    cuts: Cell<u64>,
    moved: Cell<u64>,
    as_copies: Cell<u64>,
}

/// One node and what runs on it.
struct Member {
    number: u32,
    switch: Arc<CutSwitch>,
    node: Rc<Mutex<RealNode>>,
    cores: Rc<RefCell<Vec<Rc<CoreNode>>>>,
}

struct Scene<'a> {
    sim: &'a Rc<Sim>,
    net: &'a SimNet,
    book: &'a Rc<Book>,
    counts: &'a Rc<Counts>,
    options: NodesOptions,
    rng: SeededRng,
    members: Vec<Member>,
    serving: Serving,
    dead: BTreeSet<u32>,
    is_on: Rc<Cell<bool>>,
    /// What was recorded of the nodes when the last one joined.
    known: (u64, Vec<NodeEntry>),
}

impl<'a> Scene<'a> {
    fn new(
        sim: &'a Rc<Sim>,
        net: &'a SimNet,
        book: &'a Rc<Book>,
        counts: &'a Rc<Counts>,
        options: NodesOptions,
    ) -> Scene<'a> {
        let (serving, dead, is_on) = (Rc::default(), BTreeSet::new(), Rc::new(Cell::new(true)));
        let rng = SeededRng::for_part(sim.seed(), 81);
        let (members, known) = (Vec::new(), (0, Vec::new()));
        Scene { sim, net, book, counts, options, rng, members, serving, dead, is_on, known }
    }

    fn play(mut self) {
        self.form();
        self.hire();
        self.make_trouble(self.options.troubles);
        if self.options.late > 0 {
            if !self.calm_down() {
                return;
            }
            self.let_pass(Duration::from_secs(10)); // shards are led again
            if !self.join_up_to(self.options.nodes) {
                return;
            }
            self.make_trouble(self.options.troubles / 2);
        }
        self.make_peace();
    }

    fn make_trouble(&mut self, times: u64) {
        for _ in 0..times {
            if !self.book.violations().is_empty() {
                return;
            }
            let ms = if self.rng.chance(1, 3) { self.rng.between(1..200) } else { self.rng.between(200..6_000) };
            self.let_pass(Duration::from_millis(ms));
            self.trouble();
        }
    }

    fn harness(&self) -> Ports {
        self.sim.ports(HARNESS)
    }

    /// The first node forms the cluster, the others join, one after the other; all but those that are late.
    fn form(&mut self) {
        if !self.join_up_to(self.options.nodes - self.options.late) {
            return;
        }
        self.until("every shard has its voters", Scene::has_voters);
        let serving = self.serving.borrow().get(&1).cloned();
        let Some(first) = serving else { return };
        let made = self
            .on_node(1, async move { first.cores[0].store.create_bucket(first.tenant, BUCKETS[0]).await.map(drop) });
        if let Some(Err(error)) = made {
            self.book.violation(format!("the bucket can't be made: {error}"));
        }
    }

    /// Nodes join until there are so many; false when that does not work out.
    fn join_up_to(&mut self, count: u32) -> bool {
        let options = RealOptions {
            devices: DEVICES,
            device_len_bytes: 48 << 20,
            metadata_dirs: 1,
            cores: 1,
            shape: self.options.shape,
            lie: if self.options.journals_lie { Lie::RaftJournals } else { Lie::Nobody },
            ..RealOptions::for_seed(self.sim.seed())
        };
        for number in self.members.len() as u32 + 1..=count {
            if number > 1 && !self.invite(number) {
                return false;
            }
            let membership = Membership {
                number,
                net: self.net.clone(),
                known: Rc::new(RefCell::new(self.known.clone())),
                home_count: options.lanes,
                rack: self.rack_of(number),
            };
            let node = RealNode::member(self.sim, options, Some(membership));
            let switch = crate::node::NodeUnderTest::switch(&node);
            self.members.push(Member { number, switch, node: Rc::new(Mutex::new(node)), cores: Rc::default() });
            self.start(number);
            if !self.until("a node joins", |scene| {
                scene.serving.borrow().contains_key(&number)
                    && scene.entry(number).is_some_and(|entry| entry.state.is_member())
            }) {
                return false;
            }
        }
        true
    }

    /// The control shard gives out the number that is the next one's turn.
    fn invite(&mut self, number: u32) -> bool {
        match self.control(ControlRequest::InviteNode) {
            Some(ControlResponse::Node(entry)) if entry.node == NodeId(u64::from(number)) => {}
            Some(_) => {
                self.book.violation(format!("node {number} was to be invited, and somebody else was"));
                return false;
            }
            None => return false,
        }
        match self.control(ControlRequest::Nodes) {
            Some(ControlResponse::Nodes(version, entries)) => self.known = (version, entries),
            _ => return false,
        }
        true
    }

    /// The rack that a node is in; empty: none.
    fn rack_of(&self, number: u32) -> String {
        match self.options.racks {
            0 => String::new(),
            racks => format!("r{}", number % racks),
        }
    }

    fn member(&self, number: u32) -> &Member {
        &self.members[number as usize - 1]
    }

    fn any_core(&self) -> Option<Rc<CoreNode>> {
        let numbers: Vec<u32> = self.serving.borrow().keys().copied().collect();
        numbers.first().and_then(|number| self.member(*number).cores.borrow().first().cloned())
    }

    fn entry(&self, number: u32) -> Option<NodeEntry> {
        self.any_core()?.engine().core().nodes.entry(NodeId(u64::from(number)))
    }

    /// Asks the control shard through the first node that serves.
    fn control(&mut self, request: ControlRequest) -> Option<ControlResponse> {
        let number = *self.serving.borrow().keys().next()?;
        let calls = self.member(number).cores.borrow().first()?.engine().calls().clone();
        match self.on_node(number, async move { calls.control(request).await })? {
            Ok(answer) => Some(answer),
            Err(error) => {
                self.book.violation(format!("the control shard does not answer in peace: {error}"));
                None
            }
        }
    }

    /// Runs something on a node and waits for it.
    fn on_node<T: 'static>(&mut self, number: u32, act: impl Future<Output = T> + 'static) -> Option<T> {
        let (sender, receiver) = oneshot::channel();
        let task = async move {
            let _gone = sender.send(act.await);
        };
        self.sim.ports(Machine(number)).spawn("scene", Box::pin(task));
        match self.sim.try_block_on(HARNESS, receiver) {
            Ok(answer) => answer.ok(),
            Err(stalled) => {
                self.book.violation(format!("nothing goes on: {stalled}"));
                None
            }
        }
    }

    fn hire(&self) {
        for _ in 0..self.options.clients {
            let worker = self.worker(SeededRng::new(self.rng.next_u64()));
            self.harness().spawn("client", Box::pin(worker.work()));
        }
        let splitter = Splitter {
            ports: self.harness(),
            serving: self.serving.clone(),
            cores: self.members.iter().map(|member| (member.number, member.cores.clone())).collect(),
            book: self.book.clone(),
            rng: SeededRng::for_part(self.sim.seed(), 82),
            is_on: self.is_on.clone(),
        };
        self.harness().spawn("operator", Box::pin(splitter.work()));
    }

    fn worker(&self, rng: SeededRng) -> Worker {
        Worker {
            ports: self.harness(),
            serving: self.serving.clone(),
            book: self.book.clone(),
            rng: Rc::new(rng),
            is_on: self.is_on.clone(),
            content_len_max: 900 << 10,
        }
    }

    /// Starts a node as a task of its own.
    fn start(&mut self, number: u32) {
        self.dead.remove(&number);
        let member = self.member(number);
        let (node, switch, cores) = (member.node.clone(), member.switch.clone(), member.cores.clone());
        let (sim, book, serving) = (self.sim.clone(), self.book.clone(), self.serving.clone());
        let task = async move {
            let mut node = node.lock().await;
            let opened = crate::node::NodeUnderTest::open(&mut *node, &sim).await;
            match opened {
                Ok(open) => {
                    cores.replace(node.running().to_vec());
                    serving.borrow_mut().insert(number, open);
                }
                Err(_) if switch.is_cut() => {}
                Err(error) => book.violation(format!("node {number} does not start: {error}")),
            }
        };
        self.sim.ports(Machine(number)).spawn("start", Box::pin(task));
    }

    /// The power of a node fails.
    fn cut(&mut self, number: u32) {
        let seed = self.rng.next_u64();
        let member = self.member(number);
        member.switch.cut_now();
        self.net.unplug(NodeId(u64::from(number)));
        self.sim.kill(Machine(number));
        self.serving.borrow_mut().remove(&number);
        member.cores.take();
        let mut node = member.node.try_lock().expect("whoever held it is gone");
        crate::node::NodeUnderTest::power_cut(&mut *node, seed);
        drop(node);
        member.switch.restore();
        self.dead.insert(number);
        self.counts.cuts.set(self.counts.cuts.get() + 1);
    }

    /// Lets time pass; nodes whose power fails meanwhile are gone from that very write on.
    fn let_pass(&mut self, span: Duration) {
        let until = self.sim.now() + span;
        while self.sim.now() < until {
            let switches: Vec<Arc<CutSwitch>> = self.members.iter().map(|member| member.switch.clone()).collect();
            let switches: Vec<&CutSwitch> = switches.iter().map(|switch| &**switch).collect();
            match self.sim.block_on_or_any_cut(HARNESS, self.harness().sleep_until(until), &switches) {
                Ok(()) => return,
                Err(Interrupted::PowerCut) => {
                    let cut: Vec<u32> = self
                        .members
                        .iter()
                        .filter(|member| member.switch.is_cut())
                        .map(|member| member.number)
                        .collect();
                    cut.into_iter().for_each(|number| self.cut(number));
                }
                Err(Interrupted::Stalled(stalled)) => {
                    self.book.violation(format!("nothing goes on: {stalled}"));
                    return;
                }
            }
        }
    }

    /// Waits in peace until something is so; false when it never is.
    fn until(&mut self, what: &str, is_so: impl Fn(&mut Self) -> bool) -> bool {
        self.within(PEACE_MAX, what, is_so)
    }

    fn within(&mut self, patience: Duration, what: &str, is_so: impl Fn(&mut Self) -> bool) -> bool {
        let deadline = self.sim.now() + patience;
        while self.sim.now() < deadline {
            if !self.book.violations().is_empty() {
                return false;
            }
            if is_so(self) {
                return true;
            }
            self.let_pass(Duration::from_millis(250));
        }
        let state = self.describe();
        self.book.violation(format!("not within {} s of peace: {what}; {state}", patience.as_secs()));
        false
    }

    /// Every shard that a node of three or more should have on three of them.
    fn has_voters(&mut self) -> bool {
        let nodes = self.members.len();
        let wanted = |shard: ShardId| if shard == ShardId::CONTROL && nodes >= 5 { 5 } else { nodes.min(3) };
        // I-L1: racks take as few voters of a shard each as they can.
        let racks = self.options.racks as usize;
        let spreads = |of_shard: &[VoterId]| {
            let used = of_shard.iter().map(|voter| self.rack_of(node_of(*voter).0 as u32));
            used.collect::<BTreeSet<_>>().len() >= racks.min(of_shard.len())
        };
        let mut voters = BTreeMap::<ShardId, usize>::new();
        for member in &self.members {
            for core in member.cores.borrow().iter() {
                for (shard, leadership, of_shard) in core.engine().replicas() {
                    let count = voters.entry(shard).or_default();
                    if leadership.is_here && spreads(&of_shard) {
                        *count = of_shard.len();
                    }
                }
            }
        }
        !voters.is_empty() && voters.iter().all(|(shard, count)| *count >= wanted(*shard))
    }

    /// The control shard knows of no split that goes on.
    fn has_no_split(&mut self) -> bool {
        match self.control(ControlRequest::Shards(ShardMapRequest::List)) {
            Some(ControlResponse::Shards(ShardMapAnswer::Shards(shards))) => {
                shards.iter().all(|shard| shard.is_active && shard.split_of.is_none())
            }
            _ => false,
        }
    }

    /// Every stripe is whole, as far as repair knows.
    fn is_whole(&mut self) -> bool {
        let engines = self.members.iter().flat_map(|member| member.cores.borrow().clone());
        let states: Vec<_> = engines.map(|core| core.engine().repair_state()).collect();
        states.len() == self.members.len()
            && states
                .iter()
                .all(|state| state.backlog == 0 && state.waiting == 0 && state.lost == 0 && state.devices_walked > 0)
    }

    fn describe(&self) -> String {
        let mut text = String::new();
        for member in &self.members {
            for core in member.cores.borrow().iter() {
                let engine = core.engine();
                let replicas: Vec<String> = engine
                    .replicas()
                    .iter()
                    .map(|(shard, leadership, voters)| {
                        format!("{shard}{} {voters:?}", if leadership.is_here { "*" } else { "" })
                    })
                    .collect();
                text.push_str(&format!(
                    "node {}: {} {:?} {:?}; ",
                    member.number,
                    replicas.join(", "),
                    engine.repair_state(),
                    engine.rebalance_state()
                ));
            }
        }
        text
    }

    fn trouble(&mut self) {
        let dead: Vec<u32> = self.dead.iter().copied().collect();
        if !dead.is_empty() && self.rng.chance(1, 2) {
            let number = *self.rng.pick(&dead);
            return self.start(number);
        }
        let all: Vec<u32> = self.members.iter().map(|member| member.number).collect();
        let number = *self.rng.pick(&all);
        let node = |number: u32| NodeId(u64::from(number));
        match self.rng.below(20) {
            0..3 if !self.dead.contains(&number) => self.cut(number),
            3..8 => self.member(number).switch.arm(1 + self.rng.below(1 << self.rng.between(1..10))),
            8 => all.into_iter().for_each(|number| {
                if !self.dead.contains(&number) {
                    self.cut(number);
                }
            }),
            9 | 10 => self.net.cut(node(number), node(*self.rng.pick(&all))),
            11..14 => {
                for other in all.into_iter().filter(|other| *other != number) {
                    self.net.cut(node(number), node(other));
                    self.net.cut(node(other), node(number));
                }
            }
            14..17 => self.net.heal(),
            17 | 18 => self.net.set_faults(NetFaults {
                lost_per_mille: *self.rng.pick(&[0, 5, 50]),
                late_per_mille: *self.rng.pick(&[0, 5, 30]),
                delay_us: if self.rng.chance(1, 2) { 20..2_000 } else { 1_000..60_000 },
                late_ms: 300..4_000,
            }),
            _ => {}
        }
    }

    /// Every node has looked at every stripe with all devices, and has nothing left to move.
    fn is_rebalanced(&mut self) -> bool {
        let cores: Vec<_> = self.members.iter().flat_map(|member| member.cores.borrow().clone()).collect();
        let states: Vec<_> = cores.iter().map(|core| core.engine().rebalance_state()).collect();
        let as_copies = cores.iter().map(|core| core.engine().core().counters.stripes_as_copies.get()).sum();
        self.counts.as_copies.set(as_copies);
        self.counts.moved.set(states.iter().map(|state| state.spread.fragments + state.balanced.fragments).sum());
        let devices = self.members.len() * usize::from(DEVICES);
        states.len() == self.members.len() && states.iter().all(|state| state.devices_surveyed == devices)
    }

    fn is_placed(&mut self) -> bool {
        self.is_whole() && self.is_rebalanced() && self.badly_placed().is_empty()
    }

    /// I-D4: the stripes of all homes lie as placement demands.
    fn check_placed(&mut self) {
        self.badly_placed().into_iter().for_each(|wrong| self.book.violation(wrong));
    }

    fn badly_placed(&mut self) -> Vec<String> {
        let (nodes, mut all) = (self.members.len(), Vec::new());
        let of_node = |number| (NodeId(u64::from(number)), self.rack_of(number));
        let racks: BTreeMap<NodeId, String> = match self.options.racks {
            0 => BTreeMap::new(),
            _ => (1..=nodes as u32).map(of_node).collect(),
        };
        let racks = Rc::new(racks);
        for number in 1..=nodes as u32 {
            let (cores, racks) = (self.member(number).cores.borrow().clone(), racks.clone());
            let looking = async move {
                let mut wrong = Vec::new();
                for core in &cores {
                    wrong.extend(badly_placed(core.engine().core(), nodes, &racks).await);
                }
                wrong
            };
            all.extend(self.on_node(number, looking).unwrap_or_default());
        }
        all
    }

    /// No faults any more; false when not all nodes serve again.
    fn calm_down(&mut self) -> bool {
        self.net.heal();
        self.net.set_faults(NetFaults::none());
        self.members.iter().for_each(|member| member.switch.restore());
        for number in self.dead.clone() {
            self.start(number);
        }
        let nodes = self.members.len();
        self.until("all nodes serve", |scene| scene.serving.borrow().len() == nodes)
    }

    /// The cluster heals and serves, and everything acknowledged is there.
    fn make_peace(&mut self) {
        if !self.calm_down() {
            return;
        }
        self.let_pass(Duration::from_secs(5));
        self.is_on.set(false);
        self.let_pass(Duration::from_secs(70)); // requests without an answer are given up
        self.check_all();
        if self.until("every split is over", Scene::has_no_split)
            && self.until("every shard has its voters", Scene::has_voters)
            && self.until("every stripe is whole", Scene::is_whole)
        {
            // Where a put landed that nobody waited for any more, the next survey says where the rest belongs, within an hour or two.
            if !self.within(SURVEYED_WITHIN, "every stripe lies as placement demands", Scene::is_placed) {
                self.check_placed();
            }
            self.check_all();
        }
    }

    /// Reads every key through every node.
    fn check_all(&mut self) {
        let serving: Vec<OpenNode> = self.serving.borrow().values().cloned().collect();
        let worker = self.worker(SeededRng::new(self.rng.next_u64()));
        let checking = async {
            for key in 0..12 {
                for node in &serving {
                    worker.check(node, Place { bucket: 0, key }).await;
                }
            }
            for node in &serving {
                worker.check_listing(node).await;
            }
        };
        if let Err(stalled) = self.sim.try_block_on(HARNESS, checking) {
            self.book.violation(format!("nothing goes on: {stalled}"));
        }
    }
}
