//! A run: rounds of work on an open node, each ended by a power cut, a recovery (itself cut short at times) and a
//! complete check.

use crate::client::Client;
use crate::model::{BUCKETS, Model};
use crate::node::{NodeUnderTest, OpenNode};
use futures::future::join_all;
use kiseki_simulator::executor::Interrupted;
use kiseki_simulator::{Limits, NodeId, SeededRng, Sim};
use std::cell::RefCell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// The machine that the clients' bookkeeping runs on; it has power all the time.
const HARNESS: NodeId = NodeId(u32::MAX);

/// Recoveries in a row that may be cut short before one is left in peace.
const CUT_RECOVERIES_MAX: u32 = 3;

/// Writes per operation that are assumed before any were measured.
const WRITES_PER_OPERATION: u64 = 20;

/// Shape of a run.
#[derive(Clone, Copy, Debug)]
pub struct RunOptions {
    /// Operations in all.
    pub operations: u64,
    /// Stretches of work, each ended by a cut; a stretch that is cut short is made up for by further ones.
    pub rounds: u64,
    /// Clients at work at once.
    pub clients: u64,
    /// Longest object.
    pub content_len_max: u64,
    /// Limits of each stretch of work and of each recovery.
    pub limits: Limits,
}

impl Default for RunOptions {
    fn default() -> RunOptions {
        RunOptions {
            operations: 500,
            rounds: 4,
            clients: 6,
            content_len_max: 2 << 20,
            limits: Limits { steps: 20_000_000, time: Duration::from_secs(600) },
        }
    }
}

/// What a run found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// Operations begun.
    pub operations: u64,
    /// Writes acknowledged.
    pub acknowledged: u64,
    /// Power cuts, those during a recovery included.
    pub cuts: u64,
    /// Writes to media.
    pub media_writes: u64,
    /// Polls made.
    pub steps: u64,
    /// Equal for equal runs.
    pub trace_hash: u64,
    /// What is wrong; empty is good.
    pub violations: Vec<String>,
}

impl Report {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.violations.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "seed {}: {} operations, {} acknowledged, {} cuts, {} media writes, {} steps, trace {:016x}",
            self.seed, self.operations, self.acknowledged, self.cuts, self.media_writes, self.steps, self.trace_hash
        )?;
        self.violations.iter().try_for_each(|violation| write!(f, "\n  {violation}"))
    }
}

/// Runs one seed on the node that `make` makes. A panic of the node is a finding too.
pub fn run_seed<N: NodeUnderTest>(seed: u64, options: RunOptions, make: impl FnOnce(&Sim) -> N) -> Report {
    let sim = Sim::new(seed);
    sim.set_limits(options.limits);
    let model = Rc::new(RefCell::new(Model::new(Arc::default())));
    let cuts = std::cell::Cell::new(0);
    let writes = std::cell::Cell::new(0);
    let result = catch_unwind(AssertUnwindSafe(|| {
        let node = make(&sim);
        model.replace(Model::new(node.switch()));
        let rng = SeededRng::for_part(seed, 4);
        let run = Run { sim: &sim, node, model: model.clone(), rng, options, cuts: &cuts, writes: &writes };
        run.all_rounds();
    }));
    let mut model = model.borrow_mut();
    if let Err(panic) = result {
        model.restore_power();
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        model.violation(format!("panic: {}", text.unwrap_or("without a message")));
    }
    Report {
        seed,
        operations: model.begun,
        acknowledged: model.acknowledged,
        cuts: cuts.get(),
        media_writes: writes.get(),
        steps: sim.steps(),
        trace_hash: sim.trace_hash(),
        violations: std::mem::take(&mut model.violations),
    }
}

struct Run<'a, N> {
    sim: &'a Sim,
    node: N,
    model: Rc<RefCell<Model>>,
    rng: SeededRng,
    options: RunOptions,
    cuts: &'a std::cell::Cell<u64>,
    writes: &'a std::cell::Cell<u64>,
}

impl<N: NodeUnderTest> Run<'_, N> {
    fn all_rounds(mut self) {
        let rounds = self.options.rounds.max(1);
        let per_round = self.options.operations.div_ceil(rounds);
        let mut is_first = true;
        while !self.has_failed() && self.model.borrow().begun < self.options.operations {
            let Some(open) = self.open(!is_first) else { return };
            if is_first {
                self.make_buckets(&open)
            } else {
                self.verify(&open)
            }
            is_first = false;
            if self.has_failed() {
                return;
            }
            let goal = (self.model.borrow().begun + per_round).min(self.options.operations);
            self.work(open, goal);
            if self.has_failed() {
                return;
            }
            self.crash();
        }
        if let Some(open) = self.open(true) {
            self.verify(&open);
        }
    }

    fn has_failed(&self) -> bool {
        !self.model.borrow().violations.is_empty()
    }

    fn violation(&self, text: String) {
        self.model.borrow_mut().violation(text);
    }

    /// Opens the node. A recovery may be cut short: then the next one must do.
    fn open(&mut self, is_recovery: bool) -> Option<OpenNode> {
        let switch = self.node.switch();
        for attempt in 0..=CUT_RECOVERIES_MAX {
            if is_recovery && attempt < CUT_RECOVERIES_MAX && self.rng.chance(1, 4) {
                // Short distances as often as long ones: recoveries write little or much.
                let reach = 1 << self.rng.between(1..10);
                switch.arm(1 + self.rng.below(reach));
            }
            let id = self.node.id();
            let result = self.sim.block_on_or_cut(id, self.node.open(self.sim), &switch);
            match result {
                // The poll that met the cut may have ended with whatever; the media are without power all the same.
                _ if switch.is_cut() => self.crash(),
                Ok(Ok(open)) => {
                    switch.restore();
                    return Some(open);
                }
                Ok(Err(error)) => {
                    self.violation(format!("the node does not open: {error}"));
                    return None;
                }
                Err(Interrupted::Stalled(stalled)) => {
                    self.violation(format!("the node does not open: {stalled}"));
                    return None;
                }
                Err(Interrupted::PowerCut) => unreachable!("the switch has fired then"),
            }
        }
        unreachable!("the last recovery is not cut short");
    }

    fn crash(&mut self) {
        let switch = self.node.switch();
        switch.cut_now();
        self.sim.kill(self.node.id());
        self.node.power_cut(self.rng.next_u64());
        switch.restore();
        self.cuts.set(self.cuts.get() + 1);
        self.writes.set(switch.writes());
        // Requests in flight are gone; what became of them is for the check to find out.
    }

    fn client(&self, open: &OpenNode, core: usize) -> Client {
        Client {
            core: open.cores[core].clone(),
            tenant: open.tenant,
            model: self.model.clone(),
            rng: Rc::new(SeededRng::new(self.rng.next_u64())),
            content_len_max: self.options.content_len_max,
        }
    }

    /// Runs a part of the harness on core 0 of the node; nothing may fail meanwhile.
    fn run(&self, what: &str, part: impl Future<Output = ()>) {
        if let Err(stalled) = self.sim.try_block_on(self.node.id(), part) {
            self.violation(format!("{what}: {stalled}"));
        }
    }

    fn make_buckets(&self, open: &OpenNode) {
        let store = &open.cores[0].store;
        self.run("making buckets", async {
            for name in BUCKETS {
                if let Err(error) = store.create_bucket(open.tenant, name).await {
                    self.violation(format!("bucket {name} can't be made: {error}"));
                }
            }
        });
    }

    fn verify(&self, open: &OpenNode) {
        let client = self.client(open, self.rng.index(open.cores.len()));
        self.run("the check after a cut", client.verify());
    }

    /// Lets clients work until `goal` operations were begun or the power fails.
    fn work(&self, open: OpenNode, goal: u64) {
        let switch = self.node.switch();
        let left = goal.saturating_sub(self.model.borrow().begun).max(1);
        let begun = self.model.borrow().begun.max(1);
        let per_operation = if begun > 20 { switch.writes() / begun + 1 } else { WRITES_PER_OPERATION };
        // Some cuts come right away, most in the middle, some only after the work is done.
        let reach = if self.rng.chance(1, 8) { 20 } else { left * per_operation * 5 / 4 };
        switch.arm(1 + self.rng.below(reach));
        let clients: Vec<_> = (0..self.options.clients)
            .map(|_| {
                let client = self.client(&open, self.rng.index(open.cores.len()));
                let (sender, receiver) = futures::channel::oneshot::channel::<()>();
                let ports = client.core.ports.clone();
                ports.spawn(
                    "client",
                    Box::pin(async move {
                        client.work(goal).await;
                        let _ = sender.send(()); // nobody waits when the power is gone
                    }),
                );
                receiver
            })
            .collect();
        let all = async { drop(join_all(clients).await) };
        match self.sim.block_on_or_cut(HARNESS, all, &switch) {
            Ok(()) => switch.restore(),
            Err(Interrupted::PowerCut) => {}
            Err(Interrupted::Stalled(stalled)) => self.violation(format!("clients wait for ever: {stalled}")),
        }
    }
}
