//! Rebalancing on one core, unattended: when nodes or devices have joined, stripes of the core's homes that are whole move to
//! where placement would put them today, as far as that is worth it ([`crate::rebalance`]).
//!
//! - A *survey* passes over all generations of the core's homes, reads the index only, and counts what is to move. It runs after each
//!   start, whenever the devices that take fragments or the racks change, a minute after that once more (for what was being written
//!   meanwhile, and again while it still is), and each hour while devices differ in fill or after repairs and evacuations.
//! - If it finds something, one pass *spreads* (no node holds more of a stripe than placement gives any, I-D4) and one *balances*
//!   (devices that are much fuller than others give to those), until a survey finds nothing: then it is at rest.
//! - Everything else comes first: nothing moves while repair has something to do or to look at, an evacuation moves
//!   fragments, or a node is awaited. It keeps to the pace of repair and waits for clients.
//! - Nothing of it has to survive a crash: the next start surveys again.

use crate::api::StoreError;
use crate::core::Core;
use crate::delta::ChunkName;
use crate::home_service::{HeldGeneration, RepairPermit};
use crate::message::{Closing, CoreRequest, ResponseBody};
use crate::racks::Racks;
use crate::rebalance::{Amount, Goal, Relocated, StripeMap, Work, relocate};
use crate::repair::{Glance, Silence, StripeRecord, add};
use crate::repair_queue::{Margin, RepairCause};
use crate::repairer::{self, Repairer};
use crate::upkeep_pace::{UpkeepPace, Urgency};
use futures::StreamExt;
use futures::channel::oneshot;
use futures::future::join_all;
use kiseki_types::fragment::{DeviceStatus, FragmentError};
use kiseki_types::ids::{DeviceId, NodeId, PoolId};
use kiseki_types::runtime::{Instant, RuntimeExt};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;
use tracing::{info, warn};

/// Between two looks whether there is something to do, and while something else comes first.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Generations that one step of a pass looks at.
const STEP: usize = 128;

/// Before another stripe is tried after one that found no room: the next one most likely finds none either, and would be read for
/// nothing.
const NO_ROOM_PAUSE: Duration = Duration::from_secs(2);

/// Whether what was to move found a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    Enough,
    None,
}

/// Pause between steps, so that a pass over millions of generations does not slow the node.
const STEP_PACE: Duration = Duration::from_millis(5);

/// After the devices changed another survey finds what was being written while the first one passed.
const CONFIRM_AFTER: Duration = Duration::from_secs(60);

/// Between two surveys while nothing joins or leaves.
const SURVEY_INTERVAL: Duration = Duration::from_secs(3600);

/// Before it is tried again when nothing could be moved of what should.
const STUCK_INTERVAL: Duration = Duration::from_secs(30);

/// Before a pass that met an error begins again.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// What the cores of this node say of its devices is asked for anew after so long while something moves, and while nothing does.
const FILL_AGE_MAX: Duration = Duration::from_secs(2);
const FILL_AGE_MAX_AT_REST: Duration = Duration::from_secs(300);

/// The rate that is shown is that of the last one or two such spans.
const RATE_SPAN: Duration = Duration::from_secs(5);

/// When devices are balanced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RebalanceSettings {
    /// Percent of fill by which the fullest and the emptiest device of a pool may differ; 0: whatever they do. Stripes are
    /// spread over nodes in any case.
    pub fill_difference_percent: u8,
}

impl Default for RebalanceSettings {
    fn default() -> RebalanceSettings {
        RebalanceSettings { fill_difference_percent: 5 }
    }
}

impl RebalanceSettings {
    /// From this difference on devices are balanced.
    fn begins_permille(self) -> Option<u64> {
        (self.fill_difference_percent > 0).then_some(u64::from(self.fill_difference_percent) * 10)
    }

    /// Up to this difference: lower, so that what is written meanwhile does not start it again at once.
    fn ends_permille(self) -> u64 {
        u64::from(self.fill_difference_percent) * 5
    }
}

/// What comes first, or has to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hindrance {
    /// A node that is awaited.
    Node(NodeId),
    /// Repair, or an evacuation.
    Repair,
    /// Room on the devices that should take fragments.
    Room,
}

/// What rebalancing is about, for the status of the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RebalanceState {
    /// Whether every stripe was looked at with the devices that there are, and nothing is left to move.
    pub is_at_rest: bool,
    /// Devices that the last survey which found nothing counted on, of all nodes; 0 while the next one is due.
    pub devices_surveyed: usize,
    /// What is left to spread.
    pub spread_left: Amount,
    /// What is left to balance, at most: it ends as soon as devices are about as full.
    pub balance_left: Amount,
    /// What was spread since the start.
    pub spread: Amount,
    /// What was balanced since the start.
    pub balanced: Amount,
    /// What was to move when rebalancing began, over all times since the start.
    pub needed: Amount,
    /// Payload bytes moved a second just now.
    pub bytes_per_second: u64,
    /// Surveys that ended.
    pub surveys: u64,
    /// Moves that did not work out.
    pub failures: u64,
    /// What it waits for.
    pub waits_for: Option<Hindrance>,
}

/// The devices that fragments are placed on, and which turn of the homes it is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    devices: BTreeMap<DeviceId, (PoolId, NodeId, u64)>,
    racks: Racks,
    returns: u64,
    turn: u64,
}

struct Rest {
    seen: Seen,
    since: Instant,
    /// Whether another survey has to confirm it soon.
    is_fresh: bool,
    /// How many fragments repair and evacuations had put elsewhere by then, and how many stripes were reported.
    changed: u64,
}

/// How a round ended.
enum Round {
    AtRest,
    Moved,
    Stuck,
    /// Devices or homes changed.
    Interrupted,
}

/// What is to move, as a pass finds it.
#[derive(Clone, Copy, Default)]
struct Left {
    spread: Amount,
    balance: Amount,
}

impl Left {
    fn all(self) -> Amount {
        self.spread.plus(self.balance)
    }
}

/// A stripe that something is to move of.
struct Found {
    name: ChunkName,
    left: Left,
    /// Whether it may be moved: its writer is done.
    is_complete: bool,
}

/// Rebalancing on one core.
pub struct Rebalancer {
    core: Rc<Core>,
    repairer: Rc<Repairer>,
    pace: Rc<UpkeepPace>,
    settings: RebalanceSettings,
    rest: RefCell<Option<Rest>>,
    /// Whether the last round was broken off, so that another one is due.
    is_broken_off: Cell<bool>,
    /// Whether something was found to move and not all of it has moved.
    is_under_way: Cell<bool>,
    left: Cell<Left>,
    spread: Cell<Amount>,
    balanced: Cell<Amount>,
    needed: Cell<Amount>,
    surveys: Cell<u64>,
    failures: Cell<u64>,
    waits_for: Cell<Option<Hindrance>>,
    /// Bytes that all cores of this node hold on its devices, and when they said so.
    used: RefCell<(Instant, BTreeMap<DeviceId, u64>)>,
    /// Whether the last survey found something to move of what is still being written, or what has to be repaired first.
    met_unfinished: Cell<bool>,
    /// Whether a device that should take a fragment did not, in this round.
    met_no_room: Cell<bool>,
    rate: Rate,
}

impl Rebalancer {
    /// Starts surveys and moves; they end with the core's background work.
    pub fn start(core: &Rc<Core>, repairer: Rc<Repairer>, settings: RebalanceSettings) -> Rc<Rebalancer> {
        let rebalancer = Rc::new(Rebalancer {
            core: core.clone(),
            pace: repairer.pace(),
            repairer,
            settings,
            rest: RefCell::default(),
            is_broken_off: Cell::default(),
            is_under_way: Cell::default(),
            left: Cell::default(),
            spread: Cell::default(),
            balanced: Cell::default(),
            needed: Cell::default(),
            surveys: Cell::default(),
            failures: Cell::default(),
            waits_for: Cell::default(),
            used: RefCell::default(),
            met_unfinished: Cell::default(),
            met_no_room: Cell::default(),
            rate: Rate::default(),
        });
        core.background.repeat("rebalance", Box::pin(rebalancer.clone().rebalance_forever()));
        rebalancer
    }

    /// For status and metrics.
    #[must_use]
    pub fn state(&self) -> RebalanceState {
        let (rest, seen) = (self.rest.borrow(), self.seen());
        let is_open = self.is_under_way.get() || self.is_broken_off.get();
        let is_at_rest = !is_open && rest.as_ref().is_some_and(|rest| rest.seen == seen);
        let left = self.left.get();
        RebalanceState {
            is_at_rest,
            devices_surveyed: if is_at_rest { seen.devices.len() } else { 0 },
            spread_left: left.spread,
            balance_left: left.balance,
            spread: self.spread.get(),
            balanced: self.balanced.get(),
            needed: self.needed.get(),
            bytes_per_second: self.rate.at(self.core.ports.now()),
            surveys: self.surveys.get(),
            failures: self.failures.get(),
            waits_for: self.waits_for.get().filter(|_| !is_at_rest),
        }
    }

    fn seen(&self) -> Seen {
        let devices = self.core.devices.devices().into_iter().filter(|device| device.state.takes_fragments());
        let devices = devices.map(|device| (device.id, (device.pool, device.node, device.capacity_bytes))).collect();
        let (racks, returns) = (self.core.nodes.racks(), self.core.nodes.returns_that_matter());
        Seen { devices, racks, returns, turn: self.core.homes.turn() }
    }

    /// What comes first just now.
    fn hindrance(&self) -> Option<Hindrance> {
        let now = self.core.ports.now();
        if let Some(node) = self.core.nodes.awaited(now).first() {
            return Some(Hindrance::Node(*node));
        }
        let repair = self.repairer.state();
        let has_walked = self.core.nodes.has_settled(now) && repair.devices_walked > 0;
        (!has_walked || repair.backlog + repair.moving > 0).then_some(Hindrance::Repair)
    }

    /// All devices and how full they are. Those of other nodes say it themselves; of this node's each core knows a part.
    fn devices(&self) -> Vec<DeviceStatus> {
        let (mut devices, used) = (self.core.devices.devices(), self.used.borrow());
        for device in devices.iter_mut().filter(|device| device.node == self.core.nodes.own()) {
            let held = used.1.get(&device.id);
            device.lanes_bytes = held.map_or(0, |_| device.capacity_bytes);
            device.free_bytes = device.capacity_bytes.saturating_sub(held.copied().unwrap_or_default());
        }
        devices
    }

    /// Asks the cores of this node what they hold on its devices, unless that was done a moment ago.
    async fn ask_fill(&self, age_max: Duration) {
        let now = self.core.ports.now();
        if self.settings.begins_permille().is_none() || now.since(self.used.borrow().0) < age_max {
            return;
        }
        let devices = self.core.devices.devices().into_iter();
        let own = devices.filter(|device| device.node == self.core.nodes.own() && device.state.is_readable());
        let asked = own.map(async |device| {
            let request = CoreRequest::LookAtDevice(device.id, Closing::AsItIs);
            // Where a core does not say it, nothing follows.
            let Ok(ResponseBody::Looks(looks)) = self.core.calls.ask_whole_node(&request).await else { return None };
            let bytes = looks.iter().map(|look| look.used.map(|used| used.bytes)).sum::<Option<u64>>()?;
            Some((device.id, bytes))
        });
        let used = join_all(asked).await.into_iter().flatten().collect();
        self.used.replace((now, used));
    }

    /// Pools whose devices differ in fill by more than so much.
    fn apart(&self, permille: u64) -> BTreeSet<PoolId> {
        let mut fills = BTreeMap::<PoolId, (u64, u64)>::new();
        for device in self.devices().iter().filter(|device| device.state.takes_fragments()) {
            if let Some(fill) = device.fill_permille() {
                let range = fills.entry(device.pool).or_insert((fill, fill));
                *range = (range.0.min(fill), range.1.max(fill));
            }
        }
        fills.into_iter().filter(|(_, (least, most))| most - least > permille).map(|(pool, _)| pool).collect()
    }

    /// Pools that are to be balanced.
    fn unbalanced(&self) -> BTreeSet<PoolId> {
        self.settings.begins_permille().map(|permille| self.apart(permille)).unwrap_or_default()
    }

    async fn rebalance_forever(self: Rc<Self>) {
        loop {
            self.ask_fill(FILL_AGE_MAX_AT_REST).await;
            let (hindrance, seen) = (self.hindrance(), self.seen());
            self.waits_for.set(hindrance);
            if hindrance.is_some() || !self.is_due(&seen) {
                self.core.ports.sleep(LOOK_INTERVAL).await;
                continue;
            }
            match self.round(&seen).await {
                Ok(Round::AtRest) => self.rest(seen),
                Ok(Round::Moved) => {}
                Ok(Round::Interrupted) => self.break_off(),
                Ok(Round::Stuck) => {
                    let room = self.met_no_room.get().then_some(Hindrance::Room);
                    self.waits_for.set(room.or(Some(Hindrance::Repair)));
                    self.core.ports.sleep(STUCK_INTERVAL).await;
                }
                Err(error) => {
                    self.break_off();
                    warn!(%error, "a pass of rebalancing stopped; it begins again");
                    self.core.ports.sleep(RETRY_INTERVAL).await;
                }
            }
        }
    }

    fn is_due(&self, seen: &Seen) -> bool {
        let rest = self.rest.borrow();
        let is_open = self.is_under_way.get() || self.is_broken_off.get();
        let Some(rest) = rest.as_ref().filter(|rest| rest.seen == *seen && !is_open) else { return true };
        let since = self.core.ports.now().since(rest.since);
        let has_changed = self.changed() != rest.changed;
        rest.is_fresh && since >= CONFIRM_AFTER
            || since >= SURVEY_INTERVAL && (has_changed || !self.unbalanced().is_empty())
    }

    fn changed(&self) -> u64 {
        let counters = &self.core.repair_counters;
        counters.fragments.get() + counters.fragments_moved.get() + self.core.repairs.reports()
    }

    /// One survey, and what it found is moved.
    async fn round(self: &Rc<Self>, seen: &Seen) -> Result<Round, StoreError> {
        self.met_no_room.set(false);
        self.ask_fill(FILL_AGE_MAX).await;
        let pools = self.unbalanced();
        let Some(left) = self.survey(seen, &pools).await? else { return Ok(Round::Interrupted) };
        add(&self.surveys, 1);
        self.left.set(left);
        if left.all().fragments == 0 {
            return Ok(Round::AtRest);
        }
        if !self.is_under_way.replace(true) {
            self.needed.set(self.needed.get().plus(left.all()));
            let (spread, balance) = (left.spread, left.balance);
            info!(
                to_spread = spread.fragments,
                spread_bytes = spread.bytes,
                to_balance = balance.fragments,
                balance_bytes = balance.bytes,
                "rebalancing begins"
            );
        }
        let before = self.moved();
        let balance = Goal::Balance { apart_permille: self.settings.ends_permille() };
        for (goal, left) in [(Goal::Spread, left.spread), (balance, left.balance)] {
            if left.fragments > 0 && !self.pass(seen, goal, &pools).await? {
                return Ok(Round::Interrupted);
            }
        }
        Ok(if self.moved() == before { Round::Stuck } else { Round::Moved })
    }

    fn moved(&self) -> Amount {
        self.spread.get().plus(self.balanced.get())
    }

    fn rest(&self, seen: Seen) {
        let has_changed = self.rest.borrow().as_ref().is_some_and(|rest| rest.seen != seen);
        let is_fresh = has_changed || self.met_unfinished.get();
        if self.is_under_way.replace(false) {
            // Where others move as well, devices are even sooner than was foreseen.
            self.needed.set(self.needed.get().at_most(self.moved()));
            let (spread, balanced, needed) = (self.spread.get(), self.balanced.get(), self.needed.get());
            info!(
                spread = spread.fragments,
                spread_bytes = spread.bytes,
                balanced = balanced.fragments,
                balanced_bytes = balanced.bytes,
                needed_bytes = needed.bytes,
                "rebalancing has ended; sums since the start"
            );
        }
        let (since, changed) = (self.core.ports.now(), self.changed());
        self.is_broken_off.set(false);
        self.rest.replace(Some(Rest { seen, since, is_fresh, changed }));
    }

    /// What was found holds no more; the next survey finds anew what is to move.
    fn break_off(&self) {
        if self.is_under_way.replace(false) {
            self.needed.set(self.needed.get().minus(self.left.get().all()));
        }
        self.left.set(Left::default());
        self.is_broken_off.set(true);
    }

    /// Counts what is to move; `None` when devices or homes changed on the way.
    async fn survey(&self, seen: &Seen, pools: &BTreeSet<PoolId>) -> Result<Option<Left>, StoreError> {
        let sum = Cell::new(Left::default());
        self.met_unfinished.set(false);
        let is_whole = self.each_step(seen, pools, async |found: Vec<Found>| {
            if found.iter().any(|found| !found.is_complete) {
                self.met_unfinished.set(true);
            }
            for Left { spread, balance } in found.iter().filter(|found| found.is_complete).map(|found| found.left) {
                let so_far = sum.get();
                sum.set(Left { spread: so_far.spread.plus(spread), balance: so_far.balance.plus(balance) });
            }
            self.core.ports.sleep(STEP_PACE).await;
            self.seen() == *seen
        });
        Ok(is_whole.await?.then(|| sum.get()))
    }

    /// Moves what is found for one goal; false when devices or homes changed on the way.
    async fn pass(self: &Rc<Self>, seen: &Seen, goal: Goal, pools: &BTreeSet<PoolId>) -> Result<bool, StoreError> {
        self.each_step(seen, pools, async |found: Vec<Found>| {
            let is_meant = |found: &Found| match goal {
                Goal::Spread => found.left.spread.fragments > 0,
                Goal::Balance { .. } => found.left.balance.fragments > 0,
            };
            let is_as_it_was = Cell::new(true);
            let complete = found.into_iter().filter(|found| found.is_complete);
            let moves = futures::stream::iter(complete.filter(is_meant));
            let relocate = async |found: Found| {
                if is_as_it_was.get() && self.turn_comes(seen).await {
                    if self.relocate(found.name, goal).await == Room::None {
                        self.core.ports.sleep(NO_ROOM_PAUSE).await;
                    }
                } else {
                    is_as_it_was.set(false);
                }
            };
            moves.for_each_concurrent(self.repairer.stripes_at_once(), relocate).await;
            self.core.ports.sleep(STEP_PACE).await;
            is_as_it_was.get() && self.seen() == *seen
        })
        .await
    }

    /// Hands the stripes of all homes over in steps, those that something is to move of, until `act` says that this is over.
    async fn each_step(
        &self,
        seen: &Seen,
        pools: &BTreeSet<PoolId>,
        act: impl AsyncFn(Vec<Found>) -> bool,
    ) -> Result<bool, StoreError> {
        for home in self.core.homes.all() {
            let mut after = None;
            loop {
                let batch = home.generations_after(after, STEP).await?;
                let devices = self.devices();
                let looks = join_all(batch.held.iter().map(|held| self.look(held, pools, &devices))).await;
                let found = looks.into_iter().filter_map(Result::transpose).collect::<Result<Vec<_>, _>>()?;
                if !act(found).await {
                    return Ok(false);
                }
                after = batch.next;
                if after.is_none() {
                    break;
                }
            }
        }
        Ok(self.seen() == *seen)
    }

    /// What is to move of one generation. Of one that is not whole nothing: repair comes first. Where something is missing it finds
    /// that by itself; a fragment that is there twice, since a put landed that nobody waited for any more, it may never have seen.
    async fn look(
        &self,
        held: &HeldGeneration,
        pools: &BTreeSet<PoolId>,
        devices: &[DeviceStatus],
    ) -> Result<Option<Found>, StoreError> {
        let unknown = |error: FragmentError| StoreError::Unavailable { reason: error.to_string() };
        let (name, stripe) = (held.name, &held.stripe);
        let located = self.core.fragments.locate(name.locator, name.generation).await.map_err(unknown)?;
        let silence = Silence::of(&self.core, &located).map_err(unknown)?;
        let readable: BTreeSet<DeviceId> =
            devices.iter().filter(|device| device.state.is_readable()).map(|device| device.id).collect();
        let mut located = located.found;
        located.retain(|found| readable.contains(&found.extent.device));
        let glance = Glance::at(name, stripe, &located, &readable);
        if silence != Silence::None || !glance.is_whole {
            if silence == Silence::None && held.is_complete && glance.good == stripe.shape.width() {
                self.have_repaired(name, stripe);
                self.met_unfinished.set(true);
            }
            return Ok(None);
        }
        let Some(map) = StripeMap::at(name, stripe, &located, devices, &self.core.nodes.racks()) else {
            return Ok(None);
        };
        let balance = Goal::Balance { apart_permille: self.settings.ends_permille() };
        let is_balanced = !pools.contains(&stripe.pool);
        let balance = if is_balanced { 0 } else { map.clone().count(balance) };
        let left = Left { spread: Amount::of(stripe, map.count(Goal::Spread)), balance: Amount::of(stripe, balance) };
        let is_complete = held.is_complete;
        Ok(Some(Found { name, left, is_complete }).filter(|found| found.left.all().fragments > 0))
    }

    /// Waits until nothing else comes first; false when devices or homes have changed.
    async fn turn_comes(&self, seen: &Seen) -> bool {
        loop {
            self.pace.ready().await;
            if self.seen() != *seen {
                return false;
            }
            let hindrance = self.hindrance();
            self.waits_for.set(hindrance);
            if hindrance.is_none() {
                return true;
            }
            self.core.ports.sleep(LOOK_INTERVAL).await;
        }
    }

    /// In a task of its own: a stop waits for what has begun, so that no put outlives the guard.
    async fn relocate(self: &Rc<Self>, name: ChunkName, goal: Goal) -> Room {
        let (sender, ended) = oneshot::channel();
        let rebalancer = self.clone();
        self.core.background.finish("rebalance stripe", async move {
            let _stopping = sender.send(rebalancer.relocate_now(name, goal).await);
        });
        ended.await.unwrap_or(Room::Enough)
    }

    async fn relocate_now(&self, name: ChunkName, goal: Goal) -> Room {
        let Some(home) = self.core.homes.get(self.core.calls.home_of(&name.locator)) else { return Room::Enough };
        let (guard, stripe) = match home.permit_repair(name).await {
            Ok(RepairPermit::Granted(guard, stripe)) => (guard, stripe),
            // Deleted, or somebody else has it: the next survey tells.
            Ok(RepairPermit::NotYet | RepairPermit::Gone) => return Room::Enough,
            Err(error) => {
                warn!(%error, "a home can't say whether a stripe may be moved; the next pass asks again");
                return Room::Enough;
            }
        };
        self.ask_fill(FILL_AGE_MAX).await;
        if matches!(goal, Goal::Balance { .. }) && !self.apart(self.settings.ends_permille()).contains(&stripe.pool) {
            return Room::Enough; // by now the devices are about as full as each other
        }
        let work = Work::default();
        let result = relocate(&self.core, name, &stripe, goal, &self.devices(), &work, &guard).await;
        drop(guard);
        self.note(goal, work.moved.get());
        add(&self.core.repair_counters.bytes_moved, work.touched.get());
        self.pace.pay(work.touched.get(), Urgency::CanWait, &self.core.counters);
        match result {
            Ok(Relocated::Done | Relocated::Later) => {}
            Ok(Relocated::NoRoom) => {
                self.met_no_room.set(true);
                return Room::None;
            }
            Ok(Relocated::NotWhole) => self.have_repaired(name, &stripe),
            Err(error) => {
                add(&self.failures, 1);
                warn!(locator = %name.locator, %error, "a stripe could not be moved; repair looks at it");
                self.have_repaired(name, &stripe);
            }
        }
        Room::Enough
    }

    /// A fragment may be missing or there twice: how endangered the stripe is, its repair finds out.
    fn have_repaired(&self, name: ChunkName, stripe: &StripeRecord) {
        let margin = Margin::from(stripe.shape.parity);
        repairer::report(&self.core, name, margin, RepairCause::Unreadable);
    }

    fn note(&self, goal: Goal, moved: Amount) {
        let mut left = self.left.get();
        let (sum, left_of_goal) = match goal {
            Goal::Spread => (&self.spread, &mut left.spread),
            Goal::Balance { .. } => (&self.balanced, &mut left.balance),
        };
        sum.set(sum.get().plus(moved));
        *left_of_goal = left_of_goal.minus(moved);
        self.left.set(left);
        self.rate.count(moved.bytes, self.core.ports.now());
    }
}

/// Bytes a second over the last few seconds.
#[derive(Default)]
struct Rate {
    /// When the present span began, and the bytes of it.
    present: Cell<(Instant, u64)>,
    /// The same of the one before.
    before: Cell<(Instant, u64)>,
}

impl Rate {
    fn count(&self, bytes: u64, now: Instant) {
        let (began, so_far) = self.present.get();
        if now.since(began) < RATE_SPAN {
            return self.present.set((began, so_far + bytes));
        }
        self.before.set(if now.since(began) < 2 * RATE_SPAN { (began, so_far) } else { (now, 0) });
        self.present.set((now, bytes));
    }

    fn at(&self, now: Instant) -> u64 {
        let ((began, bytes), (before, bytes_before)) = (self.present.get(), self.before.get());
        if now.since(began) >= 2 * RATE_SPAN {
            return 0;
        }
        let span = now.since(before.min(began)).max(Duration::from_secs(1));
        ((u128::from(bytes + bytes_before) * 1000) / span.as_millis().max(1)) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i_o2_the_rate_is_that_of_the_last_seconds_and_falls_to_nothing() {
        let (rate, at) = (Rate::default(), |seconds: u64| Instant(seconds * 1_000_000_000));
        assert_eq!(rate.at(at(100)), 0);
        for second in 100..130 {
            rate.count(50, at(second));
        }
        assert!((40..=60).contains(&rate.at(at(130))), "{}", rate.at(at(130)));
        assert!(rate.at(at(133)) < 50 && rate.at(at(150)) == 0);
        rate.count(50, at(200));
        assert!(rate.at(at(201)) <= 50, "what is long past does not count");
    }

    #[test]
    fn balancing_ends_well_below_the_difference_at_which_it_begins_and_may_be_off() {
        let settings = RebalanceSettings::default();
        assert!(settings.begins_permille().unwrap() > settings.ends_permille());
        assert_eq!(RebalanceSettings { fill_difference_percent: 0 }.begins_permille(), None);
    }
}
