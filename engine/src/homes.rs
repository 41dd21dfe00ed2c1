//! The homes that this core leads just now: they come and go with terms.

use crate::home_service::{HomeCounters, HomeService};
use kiseki_types::ids::ShardId;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Homes led here.
#[derive(Default)]
pub struct Homes {
    led: RefCell<BTreeMap<ShardId, Rc<HomeService>>>,
    turn: Cell<u64>,
    /// What they have done, and those that were led here before them.
    pub counters: Rc<HomeCounters>,
}

impl Homes {
    /// All of them, in the order of their numbers.
    #[must_use]
    pub fn all(&self) -> Vec<Rc<HomeService>> {
        self.led.borrow().values().cloned().collect()
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, shard: ShardId) -> Option<Rc<HomeService>> {
        self.led.borrow().get(&shard).cloned()
    }

    /// Counts how often one came or went.
    #[must_use]
    pub fn turn(&self) -> u64 {
        self.turn.get()
    }

    pub(crate) fn begin(&self, home: Rc<HomeService>) {
        self.led.borrow_mut().insert(home.shard(), home);
        self.turn.set(self.turn.get() + 1);
    }

    pub(crate) fn end(&self, shard: ShardId) {
        self.led.borrow_mut().remove(&shard);
        self.turn.set(self.turn.get() + 1);
    }
}
