//! A run: nodes, shards and clients; troubles; then peace, in which everything must come right again.

use crate::cluster::judge::Judge;
use crate::cluster::machine::{FILE_REGISTERS, Put, chain};
use crate::cluster::member::{Member, Renewed};
use crate::cluster::trouble::{Trouble, draw, pause};
use crate::cluster::worker::{Nodes, Worker};
use futures::channel::oneshot;
use kiseki_raft::ShardGroup;
use kiseki_raft::type_config::{VoterId, node_of, voter_of};
use kiseki_simulator::executor::Interrupted;
use kiseki_simulator::{CutSwitch, Limits, NetFaults, NodeId as Machine, SeededRng, Sim, SimNet};
use kiseki_types::group::RaftGroup;
use kiseki_types::runtime::Ports;
use kiseki_types::table::Scan;
use kiseki_types::{NodeId, ShardId};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

/// The machine of clients and bookkeeping; it has power all the time.
const HARNESS: Machine = Machine(u32::MAX);

/// Everything must be right again within this time of peace.
const PEACE_MAX: Duration = Duration::from_secs(90);

/// Rows of one replica that are compared.
const ROWS_MAX: usize = 10_000;

/// Shape of a run.
#[derive(Clone, Copy, Debug)]
pub struct ClusterOptions {
    /// Nodes.
    pub nodes: u32,
    /// Shards.
    pub shards: u64,
    /// Clients at work at once.
    pub clients: u64,
    /// Troubles, one after the other.
    pub troubles: u64,
    /// A control that has to fail: the disks of the Raft journals answer flushes and save nothing.
    pub journals_lie: bool,
}

impl ClusterOptions {
    /// The shape that a seed has.
    #[must_use]
    pub fn for_seed(seed: u64) -> ClusterOptions {
        let rng = SeededRng::for_part(seed, 70);
        let nodes = if rng.chance(1, 2) { 3 } else { 5 };
        ClusterOptions { nodes, shards: 2 + rng.below(3), clients: 4, troubles: 40, journals_lie: false }
    }
}

/// What a run found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterReport {
    /// Its seed.
    pub seed: u64,
    /// Writes acknowledged.
    pub acknowledged: u64,
    /// Reads answered.
    pub reads: u64,
    /// Power cuts.
    pub cuts: u64,
    /// Leaders seen: of all terms of all shards.
    pub leaders: u64,
    /// Voters replaced.
    pub replaced: u64,
    /// Journals lost for good.
    pub lost: u64,
    /// Leaderships given away.
    pub transferred: u64,
    /// Messages that arrived, and that did not.
    pub messages: (u64, u64),
    /// Polls made.
    pub steps: u64,
    /// Equal for equal runs.
    pub trace_hash: u64,
    /// What is wrong; empty is good.
    pub violations: Vec<String>,
}

impl ClusterReport {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.violations.is_empty()
    }
}

impl fmt::Display for ClusterReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (delivered, lost) = self.messages;
        write!(
            f,
            "seed {}: {} writes, {} reads, {} cuts, {} leaders, {} journals lost, {} replaced, {} transferred, {delivered} messages, {lost} \
             lost, {} steps, trace {:016x}",
            self.seed,
            self.acknowledged,
            self.reads,
            self.cuts,
            self.leaders,
            self.lost,
            self.replaced,
            self.transferred,
            self.steps,
            self.trace_hash
        )?;
        self.violations.iter().try_for_each(|violation| write!(f, "\n  {violation}"))
    }
}

/// Runs one seed. A panic of a node is a finding too.
#[must_use]
pub fn run_cluster(seed: u64, options: ClusterOptions) -> ClusterReport {
    let sim = Sim::new(seed);
    sim.set_limits(Limits { steps: 20_000_000, time: Duration::from_secs(600) });
    let judge = Rc::new(Judge::default());
    let counts = Rc::new(Counts::default());
    let net = SimNet::new(&sim);
    let result = catch_unwind(AssertUnwindSafe(|| {
        Scene::new(&sim, &net, &judge, &counts, options).play();
    }));
    if let Err(panic) = result {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        judge.violation(format!("panic: {}", text.unwrap_or("without a message")));
    }
    sim.note(judge.digest());
    let (acknowledged, reads) = judge.counts();
    ClusterReport {
        seed,
        acknowledged,
        reads,
        cuts: counts.cuts.get(),
        leaders: judge.terms(),
        replaced: counts.replaced.get(),
        transferred: counts.transferred.get(),
        lost: counts.lost.get(),
        messages: net.counts(),
        steps: sim.steps(),
        trace_hash: sim.trace_hash(),
        violations: judge.violations(),
    }
}

#[derive(Default)]
struct Counts {
    cuts: Cell<u64>,
    replaced: Cell<u64>,
    transferred: Cell<u64>,
    lost: Cell<u64>,
}

fn count(cell: &Cell<u64>) {
    cell.set(cell.get() + 1);
}

/// A voter that is being replaced.
#[derive(Clone, Copy, Debug)]
struct Replacement {
    shard: ShardId,
    old: VoterId,
    new: VoterId,
}

struct Scene<'a> {
    sim: &'a Sim,
    net: &'a SimNet,
    judge: &'a Rc<Judge>,
    counts: &'a Rc<Counts>,
    options: ClusterOptions,
    rng: SeededRng,
    members: Vec<Member>,
    dead: BTreeSet<NodeId>,
    shards: Vec<ShardId>,
    /// Nodes that ever had a replica of a shard.
    had: BTreeMap<ShardId, BTreeSet<NodeId>>,
    /// Voters that lost their journal and began anew.
    renewed: Renewed,
    /// A node lost its journal and is not yet known to have begun anew.
    losing: Option<NodeId>,
    /// What was asked for and is not known to be done.
    replacing: Rc<RefCell<Vec<Replacement>>>,
    is_on: Rc<Cell<bool>>,
}

impl<'a> Scene<'a> {
    fn new(
        sim: &'a Sim,
        net: &'a SimNet,
        judge: &'a Rc<Judge>,
        counts: &'a Rc<Counts>,
        options: ClusterOptions,
    ) -> Scene<'a> {
        let members: Vec<Member> =
            (1..=options.nodes).map(|number| Member::new(sim, number, options.journals_lie)).collect();
        Scene {
            sim,
            net,
            judge,
            counts,
            options,
            rng: SeededRng::for_part(sim.seed(), 71),
            members,
            dead: BTreeSet::new(),
            shards: (0..options.shards).map(|number| ShardId(1024 + number)).collect(),
            had: BTreeMap::new(),
            renewed: Rc::default(),
            losing: None,
            replacing: Rc::default(),
            is_on: Rc::new(Cell::new(true)),
        }
    }

    fn play(mut self) {
        self.set_up();
        self.hire();
        for _ in 0..self.options.troubles {
            if self.judge.found() {
                return;
            }
            let span = pause(&self.rng);
            self.let_pass(span);
            self.inspect();
            self.trouble();
        }
        self.make_peace();
    }

    fn harness(&self) -> Ports {
        self.sim.ports(HARNESS)
    }

    fn ids(&self) -> Vec<NodeId> {
        self.members.iter().map(|member| member.id).collect()
    }

    fn member(&self, node: NodeId) -> &Member {
        &self.members[usize::try_from(node.0 - 1).expect("nodes are few")]
    }

    /// Nodes start, shards are made, everything is sound.
    fn set_up(&mut self) {
        for member in &self.members {
            member.format(self.sim);
            member.start(self.sim, self.net, self.judge, &self.renewed);
        }
        self.let_pass(Duration::from_millis(200));
        for shard in self.shards.clone() {
            let mut nodes = self.ids();
            while nodes.len() > 3 && !(nodes.len() == 5 && shard.0 % 4 == 3) {
                nodes.swap_remove(self.rng.index(nodes.len()));
            }
            self.had.insert(shard, nodes.iter().copied().collect());
            let voters: Vec<VoterId> = nodes.iter().filter_map(|node| voter_of(*node, 0)).collect();
            for (number, node) in nodes.iter().enumerate().rev() {
                let Some(running) = self.member(*node).now_running() else { continue };
                let (judge, node, voters) = (self.judge.clone(), *node, voters.clone());
                self.task(node, async move {
                    let made = match number {
                        0 => running.create(node, shard, &voters).await,
                        _ => running.join(node, shard).await,
                    };
                    made.unwrap_or_else(|error| judge.violation(format!("{shard} is not made on {node}: {error}")));
                });
                if number == 1 {
                    self.let_pass(Duration::from_millis(200)); // the others are there before the first asks them
                }
            }
        }
        self.let_pass(Duration::from_secs(8));
    }

    /// Runs `act` on a node, for as long as the node has power. Nobody waits.
    fn task(&self, node: NodeId, act: impl Future<Output = ()> + 'static) {
        self.sim.ports(self.member(node).machine()).spawn("scene", Box::pin(act));
    }

    fn hire(&self) {
        let nodes: Nodes = self.members.iter().map(|member| (member.id, member.running.clone())).collect();
        let nodes = Rc::new(nodes);
        for _ in 0..self.options.clients {
            let worker = Worker {
                ports: self.harness(),
                nodes: nodes.clone(),
                shards: self.shards.clone(),
                judge: self.judge.clone(),
                rng: SeededRng::new(self.rng.next_u64()),
                is_on: self.is_on.clone(),
            };
            self.harness().spawn("client", Box::pin(worker.work()));
        }
    }

    /// Lets time pass; nodes whose power fails meanwhile are gone from that very write on.
    fn let_pass(&mut self, span: Duration) {
        let until = self.sim.now() + span;
        while self.sim.now() < until {
            let switches: Vec<&CutSwitch> = self.members.iter().map(|member| &*member.switch).collect();
            let passed = self.sim.block_on_or_any_cut(HARNESS, self.harness().sleep_until(until), &switches);
            match passed {
                Ok(()) => return,
                Err(Interrupted::PowerCut) => {
                    let cut = self.members.iter().filter(|member| member.switch.is_cut());
                    for node in cut.map(|member| member.id).collect::<Vec<_>>() {
                        self.cut(node);
                    }
                }
                Err(Interrupted::Stalled(stalled)) => {
                    self.judge.violation(format!("nothing goes on: {stalled}"));
                    return;
                }
            }
        }
    }

    fn cut(&mut self, node: NodeId) {
        let seed = self.rng.next_u64();
        self.member(node).power_cut(self.sim, self.net, seed);
        self.dead.insert(node);
        count(&self.counts.cuts);
    }

    fn start(&mut self, node: NodeId) {
        if self.dead.remove(&node) {
            self.member(node).start(self.sim, self.net, self.judge, &self.renewed);
        }
    }

    /// One copy at a time: the next disk breaks only when every shard is whole again.
    fn lose_journal(&mut self, node: NodeId) {
        self.take_renewed();
        if self.losing.is_none() && self.replacing.borrow().is_empty() && !self.options.journals_lie {
            self.member(node).lose_journal(self.sim);
            self.losing = Some(node);
            count(&self.counts.lost);
        }
    }

    /// Voters that began anew take the places of the lost ones.
    fn take_renewed(&mut self) {
        for (shard, old, new) in self.renewed.take() {
            self.replacing.borrow_mut().push(Replacement { shard, old, new });
        }
        // All replicas of a node are open when it runs.
        if self.losing.is_some_and(|node| !self.dead.contains(&node) && self.member(node).now_running().is_some()) {
            self.losing = None;
        }
    }

    fn inspect(&mut self) {
        self.take_renewed();
        for member in &self.members {
            if let Some(running) = member.now_running() {
                running.inspect(member.id, &self.shards);
            }
        }
    }

    fn trouble(&mut self) {
        let dead: Vec<NodeId> = self.dead.iter().copied().collect();
        let ids = self.ids();
        match draw(&self.rng, &ids, &dead) {
            Trouble::Cut(node) if !self.dead.contains(&node) => self.cut(node),
            Trouble::CutAtWrite(node, write) if !self.dead.contains(&node) => self.member(node).switch.arm(write),
            Trouble::Cut(_) | Trouble::CutAtWrite(..) => {}
            Trouble::CutAll => ids.iter().filter(|node| !dead.contains(node)).for_each(|node| self.cut(*node)),
            Trouble::LoseJournal(node) => self.lose_journal(node),
            Trouble::Start(node) => self.start(node),
            Trouble::OneWay(from, to) => self.net.cut(from, to),
            Trouble::Alone(node) => self.split(&[node]),
            Trouble::Split(side) => self.split(&side),
            Trouble::Usurp => self.usurp(),
            Trouble::Heal => self.net.heal(),
            Trouble::Net(faults) => self.net.set_faults(faults),
            Trouble::Transfer => self.transfer(),
            Trouble::Replace => self.replace(),
            Trouble::Checkpoint => self.checkpoint(),
        }
    }

    fn split(&self, side: &[NodeId]) {
        for one in side {
            for other in self.ids().iter().filter(|node| !side.contains(node)) {
                self.net.cut(*one, *other);
                self.net.cut(*other, *one);
            }
        }
    }

    /// The replica that leads a shard, as far as it knows, and its node.
    fn leader(&self, shard: ShardId) -> Option<(NodeId, ShardGroup)> {
        let replicas = self.members.iter().filter_map(|member| {
            let group = member.now_running()?.replicas.get(shard)?;
            Some((member.id, group))
        });
        // The one of the highest term, where an older one has not heard of it.
        replicas.filter(|(_, group)| group.leads()).max_by_key(|(_, group)| group.metrics().current_term)
    }

    fn transfer(&self) {
        let shard = *self.rng.pick(&self.shards);
        let Some((node, leader)) = self.leader(shard) else { return };
        let voters: Vec<VoterId> = leader.voters().into_iter().collect();
        let (to, counts) = (*self.rng.pick(&voters), self.counts.clone());
        self.task(node, async move {
            if to != leader.voter() && leader.transfer_leader(to).await.is_ok() {
                count(&counts.transferred);
            }
        });
    }

    fn usurp(&self) {
        let shard = *self.rng.pick(&self.shards);
        let Some((node, leader)) = self.leader(shard) else { return };
        self.split(&[node]);
        for voter in leader.voters().into_iter().map(node_of).filter(|voter| *voter != node) {
            self.member(voter).switch.arm(1 + self.rng.below(6));
        }
    }

    fn checkpoint(&self) {
        let shard = *self.rng.pick(&self.shards);
        let member = self.rng.pick(&self.members);
        if let Some(group) = member.now_running().and_then(|running| running.replicas.get(shard)) {
            self.task(member.id, async move { drop(group.checkpoint().await) });
        }
    }

    /// Asks for a voter of another node in the place of one, or goes on with what was asked for.
    fn replace(&mut self) {
        let shard = *self.rng.pick(&self.shards);
        let pending = self.replacing.borrow().iter().find(|it| it.shard == shard).copied();
        let replacement = pending.or_else(|| {
            let (_, leader) = self.leader(shard)?;
            let had = self.had.get_mut(&shard)?;
            // A node that had a replica once would need a new voter's number.
            let spare: Vec<NodeId> =
                self.members.iter().map(|member| member.id).filter(|id| !had.contains(id)).collect();
            let to = spare.get(self.rng.index(spare.len().max(1)))?;
            let voters: Vec<VoterId> = leader.voters().into_iter().collect();
            had.insert(*to);
            let replacement = Replacement { shard, old: *self.rng.pick(&voters), new: voter_of(*to, 0)? };
            self.replacing.borrow_mut().push(replacement);
            Some(replacement)
        });
        if let Some(replacement) = replacement {
            self.go_on_replacing(replacement);
        }
    }

    fn go_on_replacing(&self, replacement: Replacement) {
        let Replacement { shard, old, new } = replacement;
        let joins = self.member(node_of(new));
        if let Some(running) = joins.now_running() {
            let node = joins.id;
            self.task(node, async move { drop(running.join(node, shard).await) });
        }
        let Some((node, leader)) = self.leader(shard) else { return };
        let (replacing, counts) = (self.replacing.clone(), self.counts.clone());
        self.task(node, async move {
            if leader.read_barrier().await.is_err() {
                return;
            }
            // Some replicas that began anew had been replaced before, or never were voters: nothing is to be done.
            let is_moot = leader.voters().is_disjoint(&BTreeSet::from([old, new]));
            if is_moot || leader.replace_voter(old, new).await.is_ok() {
                let before = replacing.borrow().len();
                replacing.borrow_mut().retain(|it| it.shard != shard || it.new != new);
                if replacing.borrow().len() < before {
                    count(&counts.replaced);
                }
            }
        });
    }

    /// No more troubles: the shards must come right by themselves, and then everything is compared.
    fn make_peace(&mut self) {
        self.members.iter().for_each(|member| member.switch.restore());
        self.net.heal();
        self.net.set_faults(NetFaults::none());
        for node in self.dead.clone() {
            self.start(node);
        }
        let until = self.sim.now() + PEACE_MAX;
        // Clients go on for a while: a group that serves nobody any more is a finding.
        self.let_pass(Duration::from_secs(20));
        let acknowledged = self.judge.counts().0;
        self.let_pass(Duration::from_secs(3));
        if self.judge.counts().0 == acknowledged {
            let leaders =
                self.shards.iter().map(|shard| self.leader(*shard).map(|(_, group)| group.metrics().to_string()));
            let leaders: Vec<Option<String>> = leaders.collect();
            self.judge.violation(format!("nothing is acknowledged though nothing is wrong any more: {leaders:?}"));
        }
        self.is_on.set(false);
        self.let_pass(Duration::from_secs(9));
        while !self.judge.found() {
            self.inspect();
            let wrong = self.what_is_wrong();
            match wrong {
                None => return,
                Some(wrong) if self.sim.now() > until => self.judge.violation(wrong),
                Some(_) => {
                    let pending: Vec<Replacement> = self.replacing.borrow().clone();
                    pending.into_iter().for_each(|replacement| self.go_on_replacing(replacement));
                    self.let_pass(Duration::from_secs(2));
                }
            }
        }
    }

    /// What is not as it must be in the end.
    fn what_is_wrong(&mut self) -> Option<String> {
        if !self.replacing.borrow().is_empty() {
            return Some(format!("voters are not replaced: {:?}", self.replacing.borrow()));
        }
        self.shards.clone().into_iter().find_map(|shard| self.what_is_wrong_with(shard))
    }

    fn what_is_wrong_with(&mut self, shard: ShardId) -> Option<String> {
        let Some((node, leader)) = self.leader(shard) else { return Some(format!("{shard} has no leader")) };
        // The probe stands behind all that may still be under way.
        let put = Put { key: 0, id: self.judge.begin_write(shard, 0) };
        let probe = leader.clone();
        let written = self.ask(node, async move { probe.propose(put.encode(0)).await });
        match written {
            Some(Ok(response)) => {
                let index = response.try_into().map_or(u64::MAX, u64::from_be_bytes);
                self.judge.acknowledge(shard, put, index);
            }
            other => return Some(format!("{shard} takes no write: {other:?}")),
        }
        self.let_pass(Duration::from_secs(1));
        let (values, expected_chain) = self.judge.expected(shard);
        for voter in leader.voters() {
            let member = self.member(node_of(voter));
            let Some(running) = member.now_running() else { return Some(format!("{} does not run", member.id)) };
            let Some(group) = running.replicas.get(shard) else {
                return Some(format!("{} has no replica of {shard}", member.id));
            };
            let (id, values) = (member.id, values.clone());
            let found = self.ask(id, async move {
                let tables = group.tables();
                let chain = chain(&*tables).await.map_err(|error| error.to_string())?;
                let rows = tables.scan(Scan::prefix(FILE_REGISTERS, 0, &[], ROWS_MAX)).await;
                let rows = rows.map_err(|error| error.to_string())?;
                let number = |bytes: Vec<u8>| bytes.try_into().map_or(u64::MAX, u64::from_be_bytes);
                let here: BTreeMap<u64, u64> = rows.into_iter().map(|(key, id)| (number(key), number(id))).collect();
                if chain == expected_chain && here == values {
                    return Ok(());
                }
                Err(format!("chain {chain:x}, not {expected_chain:x}; {here:?}, not {values:?}; {}", group.metrics()))
            });
            if found != Some(Ok(())) {
                return Some(format!("{shard} on {id} is not as it must be: {found:?}"));
            }
        }
        None
    }

    /// Runs `act` on a node and waits for what it gives, some seconds at most.
    fn ask<T: 'static>(&mut self, node: NodeId, act: impl Future<Output = T> + 'static) -> Option<T> {
        let (sender, mut receiver) = oneshot::channel();
        self.task(node, async move {
            let _ = sender.send(act.await); // nobody waits when it came too late
        });
        for _ in 0..50 {
            self.let_pass(Duration::from_millis(100));
            if let Ok(Some(value)) = receiver.try_recv() {
                return Some(value);
            }
        }
        None
    }
}
