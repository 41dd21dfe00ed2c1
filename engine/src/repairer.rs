//! Repair on one core, unattended (I-D1): looks at the devices, walks the generations of the core's homes when
//! something changed, and has every stripe repaired that is not whole, the most endangered first.
//!
//! - A walk reads the index only. It runs at each start and whenever the usable devices change, a minute after that once
//!   more (for what was being written meanwhile), and now and then while stripes wait for devices. Devices of a node that
//!   is awaited count as usable, so the restart of a node repairs nothing that has time; when every node answers again, or
//!   counts as lost, a walk looks at what waited, and at what was repaired although it came back.
//! - While a walk goes on only stripes are repaired that can't afford another loss: none is more urgent. The rest waits
//!   until the walk has found those.
//! - Reads, writes and scrub offer what they meet through [`report`].

use crate::api::StoreError;
use crate::core::Core;
use crate::delta::ChunkName;
use crate::evacuation::{Moved, move_stripe};
use crate::home_service::{HeldGeneration, RepairPermit};
use crate::message::HomeRequest;
use crate::racks::Racks;
use crate::reliance::{Reliance, by_node};
use crate::repair::{Glance, Repaired, Silence, StripeRecord, add, repair_stripe};
use crate::repair_queue::{MOVE_MARGIN, Margin, NO_ROOM_MARGIN, RepairCause};
use crate::throttle::Throttle;
use crate::upkeep_pace::{UpkeepPace, Urgency};
use crate::without::would_survive_any_rack;
use futures::channel::oneshot;
use futures::future::{join_all, select};
use kiseki_types::fragment::{FragmentError, StoredFragment, StripeShape};
use kiseki_types::ids::{DeviceId, NodeId, PoolId};
use kiseki_types::runtime::{Instant, RuntimeExt};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;
use tracing::{error, info, warn};

/// Between two looks at the devices.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Generations that one step of a walk looks at.
const WALK_STEP: usize = 128;

/// Pause between steps, so that a walk over millions of generations does not slow the node.
const WALK_PACE: Duration = Duration::from_millis(5);

/// After the devices changed a second walk finds what was being written while the first one passed.
const CONFIRM_AFTER: Duration = Duration::from_secs(60);

/// Between two walks while stripes wait for devices: some may be deleted, others rot.
const WAITING_WALK_INTERVAL: Duration = Duration::from_secs(300);

/// Before a stripe is looked at again whose writer is not done.
const NOT_YET_INTERVAL: Duration = Duration::from_secs(1);

/// Before a repair that did not work is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Before a stripe is looked at again that waits for a node.
const AWAITED_INTERVAL: Duration = Duration::from_secs(10);

/// Before a stripe that found no room is tried again, behind all others.
const NO_ROOM_INTERVAL: Duration = Duration::from_secs(30);

/// Before another stripe is tried after one that found no room: where all devices are full, the next one finds none
/// either, and would be read for nothing.
const NO_ROOM_PAUSE: Duration = Duration::from_secs(2);

/// Stripes reported to their homes at once by one core; more are found again by the next read or walk (I-O5).
const REPORTS_MAX: usize = 256;

/// How fast a core may repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RepairSettings {
    /// Payload bytes read and written a second by this core while no client is served; a quarter of it while one is.
    /// Stripes that can't afford another loss do not wait for clients.
    pub bytes_per_second_max: u64,
    /// Stripes repaired at once by this core.
    pub stripes_at_once: usize,
}

impl Default for RepairSettings {
    fn default() -> RepairSettings {
        RepairSettings { bytes_per_second_max: 400 << 20, stripes_at_once: 2 }
    }
}

/// Tells the home of a stripe that it is not whole. Each stripe once at a time, and never waited for.
pub fn report(core: &Rc<Core>, name: ChunkName, margin: Margin, cause: RepairCause) {
    {
        let mut reported = core.repair_reports.borrow_mut();
        if reported.len() >= REPORTS_MAX || !reported.insert(name) {
            return;
        }
    }
    let core_of_task = core.clone();
    core.background.finish("report stripe", async move {
        let home = core_of_task.calls.home_of(&name.locator);
        // A home that does not answer is stopping; its walk after the next start finds the stripe.
        let _answer = core_of_task.calls.home(home, HomeRequest::Repair { name, margin, cause }).await;
        core_of_task.repair_reports.borrow_mut().remove(&name);
    });
}

/// A stripe that is to be looked at again, how urgently and from when on.
enum Again {
    /// It is not whole.
    Repair(Margin, Instant),
    /// No delta names it yet.
    Unfinished(Margin, Instant),
}

type UsableDevices = BTreeMap<DeviceId, PoolId>;

/// The devices that stripes count on, which turn of the homes it is, the racks, and how often nodes came back.
type Seen = (UsableDevices, u64, Racks, u64);

/// Repair on one core.
pub struct Repairer {
    core: Rc<Core>,
    settings: RepairSettings,
    pace: Rc<UpkeepPace>,
    /// What the last whole walk counted on.
    walked: RefCell<Option<Seen>>,
    is_walking: Cell<bool>,
    /// Nodes that were awaited while stripes were walked over or repaired: they may hold more of them.
    met_silence: RefCell<BTreeSet<NodeId>>,
    /// How many more devices the widest waiting stripe needs.
    devices_wanted: Cell<usize>,
    /// No stripe is tried before this: the last one found no room. 0 when the last one did.
    no_room_until: Cell<Instant>,
    losses: Throttle,
    /// What the last whole walk found of nodes that stripes can't do without.
    reliance: RefCell<Reliance>,
    /// Whether stripes were waiting then that may not rely on a node any more when they are repaired.
    recount: Cell<bool>,
}

/// What repair is about, for the status of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RepairState {
    /// Stripes queued or being repaired.
    pub backlog: usize,
    /// Stripes that no delta names: their writers are at work, or gone and not settled yet. Nobody has stored them.
    pub unfinished: usize,
    /// Whole stripes that are queued to be moved off a device, or being so.
    pub moving: usize,
    /// Stripes that wait for devices.
    pub waiting: usize,
    /// Stripes with fewer good fragments than their data need.
    pub lost: usize,
    /// Devices that are missing for the stripes that wait.
    pub devices_wanted: usize,
    /// Whether devices had no room for a rebuilt fragment.
    pub no_room: bool,
    /// Devices that the last whole walk counted on; 0 before it and while the next one is due.
    pub devices_walked: usize,
    /// Those of them that are this node's.
    pub own_devices_walked: usize,
}

impl Repairer {
    /// Starts walks and repairs; they end with the core's background work.
    pub fn start(core: &Rc<Core>, settings: RepairSettings) -> Rc<Repairer> {
        let repairer = Rc::new(Repairer {
            core: core.clone(),
            settings,
            pace: Rc::new(UpkeepPace::new(core.ports.clone(), settings.bytes_per_second_max)),
            walked: RefCell::default(),
            is_walking: Cell::new(true),
            met_silence: RefCell::default(),
            devices_wanted: Cell::new(0),
            no_room_until: Cell::default(),
            losses: Throttle::default(),
            reliance: RefCell::default(),
            recount: Cell::new(false),
        });
        core.background.repeat("walk for repair", Box::pin(repairer.clone().walk_forever()));
        for _ in 0..repairer.stripes_at_once() {
            core.background.repeat("repair", Box::pin(repairer.clone().repair_forever()));
        }
        repairer
    }

    /// What else moves fragments on this core keeps to the same pace.
    #[must_use]
    pub fn pace(&self) -> Rc<UpkeepPace> {
        self.pace.clone()
    }

    /// How many stripes may be worked on at once.
    #[must_use]
    pub fn stripes_at_once(&self) -> usize {
        self.settings.stripes_at_once.max(1)
    }

    /// For status and metrics.
    #[must_use]
    pub fn state(&self) -> RepairState {
        let queue = &self.core.repairs;
        let walked = self.walked.borrow();
        let state = self.seen();
        let is_current =
            !self.is_walking.get() && self.met_silence.borrow().is_empty() && walked.as_ref() == Some(&state);
        let current = walked.as_ref().filter(|_| is_current).map(|(devices, ..)| devices);
        let own = self.core.devices.devices().into_iter().filter(|device| device.node == self.core.nodes.own());
        let own_walked = |devices: &UsableDevices| own.filter(|device| devices.contains_key(&device.id)).count();
        RepairState {
            backlog: queue.backlog(),
            unfinished: queue.unfinished(),
            moving: queue.moving(),
            waiting: queue.waiting_count(),
            lost: queue.lost_count(),
            devices_wanted: if queue.waiting_count() > 0 { self.devices_wanted.get() } else { 0 },
            no_room: self.no_room_until.get() > Instant(0),
            devices_walked: current.map_or(0, |devices| devices.len()),
            own_devices_walked: current.map_or(0, own_walked),
        }
    }

    /// How stripes lie on the nodes, as the last whole walk found them.
    #[must_use]
    pub fn reliance(&self) -> Reliance {
        self.reliance.borrow().clone()
    }

    /// Whether the last walk tells what would be if a node left: that this node alone was silent meanwhile does no harm, since
    /// stripes were counted without what it has.
    #[must_use]
    pub fn has_walked_without(&self, nodes: &BTreeSet<NodeId>) -> bool {
        let state = self.seen();
        let is_known = self.met_silence.borrow().iter().all(|silent| nodes.contains(silent));
        !self.is_walking.get() && is_known && self.walked.borrow().as_ref().is_some_and(|walked| *walked == state)
    }

    fn seen(&self) -> Seen {
        let nodes = &self.core.nodes;
        (self.usable(), self.core.homes.turn(), nodes.racks(), nodes.returns_that_matter())
    }

    fn usable(&self) -> UsableDevices {
        self.core.devices.counted_on(&self.core.nodes, self.core.ports.now())
    }

    /// Just after a start nobody has been heard yet, and silence means nothing.
    async fn settle(&self) {
        while !self.core.nodes.has_settled(self.core.ports.now()) {
            self.core.ports.sleep(LOOK_INTERVAL).await;
        }
    }

    fn awaited(&self) -> Vec<NodeId> {
        self.core.nodes.awaited(self.core.ports.now())
    }

    async fn walk_forever(self: Rc<Self>) {
        let mut next_walk: Option<Instant> = None;
        loop {
            self.settle().await;
            self.pace.serves(&self.core.counters); // what was moved long ago must not look new when the first repair asks
            let state = self.seen();
            let has_changed = self.walked.borrow().as_ref() != Some(&state);
            let is_due = next_walk.is_some_and(|at| at <= self.core.ports.now());
            let is_drained = self.core.repairs.has_overflowed() && self.core.repairs.backlog() == 0;
            let is_silence_over = !self.met_silence.borrow().is_empty() && self.awaited().is_empty();
            let is_to_recount = self.recount.get() && self.core.repairs.backlog() == 0;
            if has_changed || is_due || is_drained || is_silence_over || is_to_recount {
                self.is_walking.set(true);
                match self.walk(&state).await {
                    Ok(true) => {
                        let is_first = self.walked.borrow().is_none();
                        self.walked.replace(Some(state));
                        self.is_walking.set(false);
                        add(&self.core.repair_counters.walks, 1);
                        self.recount.set(self.relies_on_nodes() && self.core.repairs.backlog() > 0);
                        let now = self.core.ports.now();
                        next_walk = match has_changed && !is_first {
                            true => Some(now + CONFIRM_AFTER),
                            false => Some(now + WAITING_WALK_INTERVAL).filter(|_| self.needs_another_walk()),
                        };
                    }
                    Ok(false) => continue, // the devices changed meanwhile: begin again with those that are left
                    Err(error) => {
                        warn!(%error, "the walk for repair stopped; it begins again");
                        self.core.ports.sleep(RETRY_INTERVAL).await;
                        continue;
                    }
                }
            }
            if next_walk.is_none() && self.needs_another_walk() {
                next_walk = Some(self.core.ports.now() + WAITING_WALK_INTERVAL);
            }
            self.core.ports.sleep(LOOK_INTERVAL).await;
        }
    }

    fn needs_another_walk(&self) -> bool {
        self.core.repairs.waiting_count() > 0 || self.core.repairs.lost_count() > 0 || self.relies_on_nodes()
    }

    /// Whether stripes need a node or a rack that would not have to, were they written now: health says so until they are gone.
    fn relies_on_nodes(&self) -> bool {
        let (reliance, nodes) = (self.reliance.borrow(), &self.core.nodes);
        let avoidable = |(pool, shape): &(PoolId, StripeShape)| {
            would_survive_any_rack(&self.core.devices.devices(), &nodes.racks(), *pool, *shape)
        };
        nodes.members().len() >= 2 && (!reliance.stripes.is_empty() || reliance.shapes.iter().any(avoidable))
    }

    /// One walk over all generations of this core's homes; false when the devices or the homes changed on the way.
    async fn walk(&self, state: &Seen) -> Result<bool, StoreError> {
        let devices = &state.0;
        let queue = &self.core.repairs;
        queue.take_overflow();
        queue.forget_waiting();
        self.met_silence.replace(self.awaited().into_iter().collect());
        let lost: BTreeSet<ChunkName> = queue.lost().into_iter().collect();
        let mut still_lost = BTreeSet::new();
        let reliance = RefCell::new(Reliance::default());
        let is_as_it_was = || self.seen() == *state;
        for home in self.core.homes.all() {
            let mut after = None;
            loop {
                let batch = home.generations_after(after, WALK_STEP).await?;
                let (before, nodes) = (reliance.borrow().clone(), self.nodes_of_devices());
                let looks = batch
                    .held
                    .iter()
                    .map(|held| self.look(held, devices, &nodes, lost.contains(&held.name), &reliance));
                let failed = join_all(looks).await.into_iter().find_map(Result::err);
                if let Some(error) = failed {
                    // The same step again: what was seen so far still holds, but for what this step counted.
                    reliance.replace(before);
                    warn!(%error, "the walk for repair can't look at some stripes; it tries them again");
                    self.core.ports.sleep(RETRY_INTERVAL).await;
                    if !is_as_it_was() {
                        return Ok(false);
                    }
                    continue;
                }
                still_lost.extend(batch.held.iter().map(|held| held.name).filter(|name| lost.contains(name)));
                after = batch.next;
                if after.is_none() {
                    break;
                }
                if !is_as_it_was() {
                    return Ok(false);
                }
                self.core.ports.sleep(WALK_PACE).await;
            }
        }
        for name in lost.difference(&still_lost) {
            queue.forget_lost(name); // deleted
        }
        if !is_as_it_was() {
            return Ok(false);
        }
        self.reliance.replace(reliance.into_inner());
        Ok(true)
    }

    /// Queues one generation if it is not whole.
    async fn look(
        &self,
        held: &HeldGeneration,
        devices: &UsableDevices,
        nodes: &BTreeMap<DeviceId, NodeId>,
        was_lost: bool,
        reliance: &RefCell<Reliance>,
    ) -> Result<(), StoreError> {
        let queue = &self.core.repairs;
        let located = self.core.fragments.locate(held.name.locator, held.name.generation).await;
        // "Unknown" is not "missing": the walk looks again.
        let unknown = |error: FragmentError| StoreError::Unavailable { reason: error.to_string() };
        let located = located.map_err(unknown)?;
        let silence = Silence::of(&self.core, &located).map_err(unknown)?;
        let (located, unanswered) = (located.found, located.unanswered);
        let healthy: BTreeSet<DeviceId> = devices.keys().copied().collect();
        let glance = Glance::at(held.name, &held.stripe, &located, &healthy);
        if held.is_complete && !self.core.nodes.is_alone() {
            let by_node = by_node(held, &located, &healthy, nodes);
            let (pool, shape) = (held.stripe.pool, held.stripe.shape);
            reliance.borrow_mut().count(pool, shape, &by_node, &unanswered, &self.core.nodes.racks());
        }
        if glance.is_whole && !was_lost {
            return Ok(());
        }
        let margin = held.stripe.margin(glance.good);
        if silence.holds_back(margin) {
            self.met_silence.borrow_mut().extend(self.awaited());
            return Ok(());
        }
        if !held.is_complete {
            // Its writer may just be writing it; the permit tells.
            let later = self.core.ports.now() + NOT_YET_INTERVAL;
            queue.offer_unfinished(held.name, margin, later);
        } else if margin < 0 {
            self.lost(held.name, &held.stripe, glance.good);
        } else if glance.good < held.stripe.shape.width() && !has_room_for(held, &located, devices) && !was_lost {
            self.wait(held.name, &held.stripe, usable_in(devices, held.stripe.pool));
        } else {
            queue.offer(held.name, margin, RepairCause::Missing);
        }
        Ok(())
    }

    async fn repair_forever(self: Rc<Self>) {
        let queue = self.core.repairs.clone();
        loop {
            self.settle().await;
            self.pace.ready().await;
            if self.core.ports.now() < self.no_room_until.get() {
                self.core.ports.sleep(LOOK_INTERVAL).await;
                continue;
            }
            // None is more urgent than one that can't afford a loss; the others wait until the walk has found those.
            let margin_max = if self.is_walking.get() { 0 } else { Margin::MAX };
            let offered = queue.offered();
            let Some((name, margin)) = queue.take(self.core.ports.now(), margin_max) else {
                select(offered, self.core.ports.sleep(LOOK_INTERVAL)).await;
                continue;
            };
            // In a task of its own: a stop waits for what has begun, so that no put outlives the guard.
            let (sender, ended) = oneshot::channel();
            let repairer = self.clone();
            self.core.background.finish("repair stripe", async move {
                let again = repairer.repair(name, margin).await;
                repairer.core.repairs.done(name);
                match again {
                    Some(Again::Repair(margin, at)) => {
                        repairer.core.repairs.offer_later(name, margin, RepairCause::Unreadable, at);
                    }
                    Some(Again::Unfinished(margin, at)) => repairer.core.repairs.offer_unfinished(name, margin, at),
                    None => {}
                }
                let _stopping = sender.send(());
            });
            let _ended = ended.await;
        }
    }

    /// Repairs one stripe, and decides what becomes of it when that is not possible now: how urgently and from when on it
    /// is to be tried again, if it is.
    async fn repair(&self, name: ChunkName, margin: Margin) -> Option<Again> {
        let queue = &self.core.repairs;
        let counters = &self.core.repair_counters;
        let again = |after: Duration| Some(Again::Repair(margin, self.core.ports.now() + after));
        // A stripe whose home is led elsewhere by now is looked after there.
        let home = self.core.homes.get(self.core.calls.home_of(&name.locator))?;
        let (guard, stripe) = match home.permit_repair(name).await {
            Ok(RepairPermit::Granted(guard, stripe)) => (guard, stripe),
            Ok(RepairPermit::NotYet) => {
                return Some(Again::Unfinished(margin, self.core.ports.now() + NOT_YET_INTERVAL));
            }
            Ok(RepairPermit::Gone) => {
                self.no_room_until.set(Instant(0)); // it freed what it held
                queue.forget_lost(&name);
                return None;
            }
            Err(error) => {
                warn!(%error, "a home can't say whether a stripe may be repaired; tried again");
                return again(RETRY_INTERVAL);
            }
        };
        let is_condemned = guard.is_condemned();
        let moved = Cell::new(0);
        if margin == MOVE_MARGIN {
            let result = move_stripe(&self.core, name, &stripe, &moved, &guard).await;
            drop(guard);
            add(&counters.bytes_moved, moved.get());
            self.pay(moved.get(), margin);
            return self.moved(name, result).map(|(margin, at)| Again::Repair(margin, at));
        }
        let result = repair_stripe(&self.core, name, &stripe, &moved, &guard).await;
        drop(guard);
        add(&counters.bytes_moved, moved.get());
        self.pay(moved.get(), margin);
        self.met_silence.borrow_mut().extend(self.awaited());
        if !matches!(result, Ok(Repaired::NoRoom)) {
            self.no_room_until.set(Instant(0));
        }
        match result {
            Ok(Repaired::Whole) => queue.forget_lost(&name),
            Ok(Repaired::Short { usable }) => {
                queue.forget_lost(&name);
                self.wait(name, &stripe, usable);
            }
            Ok(Repaired::NoRoom) => {
                add(&counters.failures, 1);
                self.no_room_until.set(self.core.ports.now() + NO_ROOM_PAUSE);
                return Some(Again::Repair(NO_ROOM_MARGIN, self.core.ports.now() + NO_ROOM_INTERVAL));
            }
            Ok(Repaired::Awaited) => return again(AWAITED_INTERVAL),
            // Most likely its writer gave it up half written; should a delta name it, its pardon offers it again.
            Ok(Repaired::Lost { .. }) if is_condemned => {}
            Ok(Repaired::Lost { good }) => self.lost(name, &stripe, good),
            Err(error) => {
                add(&counters.failures, 1);
                warn!(locator = %name.locator, %error, "a stripe could not be repaired; tried again");
                return again(RETRY_INTERVAL);
            }
        }
        None
    }

    /// What becomes of a stripe after it was to be moved. What is left to do is found by the next sweep.
    fn moved(&self, name: ChunkName, result: Result<Moved, FragmentError>) -> Option<(Margin, Instant)> {
        let (queue, now) = (&self.core.repairs, self.core.ports.now());
        queue.note_room(!matches!(result, Ok(Moved::NoRoom)), now + NO_ROOM_PAUSE);
        match result {
            Ok(Moved::Done | Moved::Short | Moved::NoRoom | Moved::Awaited) => None,
            // It lost a fragment: how endangered it is, its repair finds out.
            Ok(Moved::NotWhole) => Some((0, now)),
            Err(error) => {
                add(&self.core.repair_counters.failures, 1);
                warn!(locator = %name.locator, %error, "a stripe could not be moved; tried again");
                Some((MOVE_MARGIN, now + RETRY_INTERVAL))
            }
        }
    }

    fn nodes_of_devices(&self) -> BTreeMap<DeviceId, NodeId> {
        self.core.fragments.devices().into_iter().map(|device| (device.id, device.node)).collect()
    }

    fn pay(&self, bytes: u64, margin: Margin) {
        let urgency = if margin > 0 { Urgency::CanWait } else { Urgency::NoMargin };
        self.pace.pay(bytes, urgency, &self.core.counters);
    }

    fn wait(&self, name: ChunkName, stripe: &StripeRecord, usable: usize) {
        let queue = &self.core.repairs;
        let wanted = stripe.shape.width().saturating_sub(usable);
        if queue.waiting_count() == 0 {
            self.devices_wanted.set(0);
            info!(usable, width = stripe.shape.width(), "stripes wait for devices to reach full width");
        }
        self.devices_wanted.set(self.devices_wanted.get().max(wanted));
        queue.wait_for_devices(name);
    }

    fn lost(&self, name: ChunkName, stripe: &StripeRecord, good: usize) {
        if !self.core.repairs.note_lost(name) {
            return;
        }
        add(&self.core.repair_counters.lost, 1);
        if let Some(more) = self.losses.pass(self.core.ports.now()) {
            let (locator, generation, needed) = (name.locator, name.generation, stripe.shape.data);
            error!(
                %locator, %generation, good, needed, more,
                "data lost: too few fragments of a stripe are good; bring back devices that hold others"
            );
        }
    }
}

fn usable_in(devices: &UsableDevices, pool: PoolId) -> usize {
    devices.values().filter(|of| **of == pool).count()
}

/// Whether a usable device holds nothing of the stripe, or something that may make room.
fn has_room_for(held: &HeldGeneration, located: &[StoredFragment], devices: &UsableDevices) -> bool {
    let on_usable = || located.iter().filter(|found| devices.contains_key(&found.extent.device));
    let holders: BTreeSet<DeviceId> = on_usable().map(|found| found.extent.device).collect();
    let indices: BTreeSet<u8> = on_usable().map(|found| found.meta.key.index).collect();
    let of_pool = devices.iter().filter(|(_, pool)| **pool == held.stripe.pool);
    of_pool.filter(|(device, _)| !holders.contains(device)).count() > 0 || indices.len() < on_usable().count()
}
