//! A run without faults: one node after the other gives away what it leads, as at a clean stop, while clients work. They must not
//! notice: no request fails, and none waits for an election.

use super::{Counts, NodesOptions, NodesReport, PEACE_MAX, Scene};
use crate::nodes::worker::Book;
use futures::future::join_all;
use kiseki_simulator::{Limits, Sim, SimNet};
use std::rc::Rc;
use std::time::Duration;

/// A node gives away what it leads within this time; an election alone takes longer.
const HANDOVER_MAX: Duration = Duration::from_secs(1);

/// How long clients work around each handover.
const WORK: Duration = Duration::from_secs(3);

/// Runs one seed: each node hands over once.
#[must_use]
pub fn run_handover(seed: u64, options: NodesOptions) -> NodesReport {
    let sim = Rc::new(Sim::new(seed));
    sim.set_limits(Limits { steps: 60_000_000, time: PEACE_MAX * 3 });
    let (book, counts, net) = (Rc::new(Book::default()), Rc::<Counts>::default(), SimNet::new(&sim));
    let mut scene = Scene::new(&sim, &net, &book, &counts, options);
    scene.form();
    scene.hire();
    for number in 1..=options.nodes {
        scene.let_pass(WORK);
        scene.hand_over(number);
    }
    scene.is_on.set(false);
    scene.let_pass(WORK);
    scene.check_all();
    NodesReport::of(seed, &sim, &net, &book, &counts)
}

impl Scene<'_> {
    /// A node gives away what it leads; from then on it takes no part in elections for as long as `WORK`, in which nobody elects.
    fn hand_over(&mut self, number: u32) {
        if !self.book.violations().is_empty() {
            return;
        }
        let cores = self.member(number).cores.borrow().clone();
        let led = |scene: &Self| -> usize {
            let cores = scene.member(number).cores.borrow().clone();
            let replicas = cores.iter().flat_map(|core| core.engine().replicas());
            // A shard that is being made has no other voter yet, and nobody is sent to it.
            replicas.filter(|(_, leadership, voters)| leadership.is_here && voters.len() > 1).count()
        };
        if led(self) == 0 {
            return;
        }
        let (failed, began) = (self.book.unknown.get(), self.sim.now());
        let handed = self.on_node(number, async move {
            join_all(cores.iter().map(|core| core.hand_over(HANDOVER_MAX * 5))).await;
        });
        if handed.is_none() {
            return;
        }
        let took = self.sim.now().since(began);
        if took > HANDOVER_MAX {
            self.book.violation(format!("node {number} took {} ms to hand over", took.as_millis()));
        }
        let left = led(self);
        if left > 0 {
            self.book.violation(format!("node {number} still leads {left} shards after it handed over"));
        }
        let acknowledged = self.book.acknowledged.get();
        self.let_pass(WORK);
        if self.book.acknowledged.get() == acknowledged {
            self.book.violation(format!("nothing is written after node {number} handed over"));
        }
        let noticed = self.book.unknown.get() - failed;
        if noticed > 0 {
            let last = self.book.last_unknown.borrow().clone();
            self.book.violation(format!("{noticed} requests failed when node {number} handed over, the last: {last}"));
        }
    }
}
