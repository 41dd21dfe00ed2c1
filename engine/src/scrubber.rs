//! Scrub on one core: reads and checks every fragment of every generation of the core's homes within a stated time, and
//! queues for repair what fails (I-C9). Rot is found while enough good fragments are left.
//!
//! Pace: what the core's lanes hold, over the interval, but no slower than [`RATE_MIN`] (a small store is done soon, and
//! then waits for its next turn) and no faster than the configured cap. Each home remembers how far it is, so a restart
//! goes on from there, at most ten minutes of work behind.

use crate::api::StoreError;
use crate::core::Core;
use crate::home_service::{HeldGeneration, HomeService, ScrubMark};
use crate::pace::Pace;
use crate::repair::{Glance, add};
use crate::repair_queue::RepairCause;
use kiseki_types::fragment::FragmentError;
use kiseki_types::ids::{Locator, ShardId};
use kiseki_types::runtime::{Instant, RuntimeExt};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use tracing::{info, warn};

/// Slowest pace of a core, in payload bytes a second: any disk gives that away unnoticed.
pub const RATE_MIN: u64 = 1 << 20;

/// A pass aims to end this part of the interval early, since more is stored meanwhile.
const HEADROOM_DIVISOR: u64 = 10;

/// Generations that one look at a home's table takes.
const STEP: usize = 64;

/// How often the position is committed: what a restart checks twice at most.
const KEEP_INTERVAL: Duration = Duration::from_secs(600);

/// Between two looks whether a pass is due, and before one that failed goes on.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// How often everything is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubSettings {
    /// Everything is read once in this time.
    pub interval: Duration,
    /// Payload bytes a second that this core reads at most for it.
    pub bytes_per_second_max: u64,
}

impl Default for ScrubSettings {
    fn default() -> ScrubSettings {
        ScrubSettings { interval: Duration::from_secs(14 * 24 * 3600), bytes_per_second_max: 100 << 20 }
    }
}

/// Which share of the node a core has.
#[derive(Clone, Copy, Debug)]
pub struct LaneShare {
    /// Its lanes.
    pub lanes: usize,
    /// Lanes of the node.
    pub of: usize,
}

/// How far scrub is on a core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubState {
    /// Thousandths of the pass that are done; 1000 between passes.
    pub position_permille: u64,
    /// When the last whole pass of all homes ended, in milliseconds since 1970; 0 when none has.
    pub last_full_pass_unix_ms: u64,
    /// Whole passes over a home since the start.
    pub passes: u64,
    /// Payload bytes read and found good.
    pub bytes: u64,
    /// Fragments that failed their check.
    pub bad: u64,
    /// Homes whose pass takes longer than the interval.
    pub overdue: u64,
}

/// Scrub on one core.
pub struct Scrubber {
    core: Rc<Core>,
    share: LaneShare,
    settings: ScrubSettings,
    pace: Pace,
    /// One for each home that is led here and was looked at.
    marks: RefCell<BTreeMap<ShardId, ScrubMark>>,
    passes: Cell<u64>,
    bytes: Cell<u64>,
    bad: Cell<u64>,
}

impl Scrubber {
    /// Starts scrubbing; it ends with the core's background work.
    pub fn start(core: &Rc<Core>, share: LaneShare, settings: ScrubSettings) -> Rc<Scrubber> {
        let scrubber = Rc::new(Scrubber {
            core: core.clone(),
            marks: RefCell::default(),
            share,
            settings,
            pace: Pace::new(core.ports.clone()),
            passes: Cell::new(0),
            bytes: Cell::new(0),
            bad: Cell::new(0),
        });
        core.background.repeat("scrub", Box::pin(scrubber.clone().scrub_forever()));
        scrubber
    }

    /// For status and metrics.
    #[must_use]
    pub fn state(&self) -> ScrubState {
        let marks = self.marks.borrow();
        let now = self.core.ports.unix_time_ms();
        let parts = marks.values().map(|mark| mark.after.map_or(1000, |name| permille(&name.locator)));
        let limit = self.interval_ms() + self.interval_ms() / HEADROOM_DIVISOR;
        let is_overdue = |mark: &&ScrubMark| mark.after.is_some() && now.saturating_sub(mark.started_unix_ms) > limit;
        ScrubState {
            position_permille: if marks.is_empty() { 1000 } else { parts.sum::<u64>() / marks.len() as u64 },
            last_full_pass_unix_ms: marks.values().map(|mark| mark.finished_unix_ms).min().unwrap_or_default(),
            passes: self.passes.get(),
            bytes: self.bytes.get(),
            bad: self.bad.get(),
            overdue: marks.values().filter(is_overdue).count() as u64,
        }
    }

    fn interval_ms(&self) -> u64 {
        u64::try_from(self.settings.interval.as_millis()).unwrap_or(u64::MAX / 2)
    }

    async fn scrub_forever(self: Rc<Self>) {
        let mut turn = None;
        loop {
            let homes = self.core.homes.all();
            if turn.replace(self.core.homes.turn()) != Some(self.core.homes.turn()) {
                // Another node may have gone on with what came or comes back.
                self.marks.borrow_mut().clear();
            }
            for home in &homes {
                if let Err(error) = self.scrub_home(home).await {
                    warn!(home = %home.shard(), %error, "scrub stopped; it goes on later");
                }
            }
            self.core.ports.sleep(LOOK_INTERVAL).await;
        }
    }

    /// The rest of a home's pass, when one is due.
    async fn scrub_home(&self, home: &HomeService) -> Result<(), StoreError> {
        let known = self.marks.borrow().get(&home.shard()).copied();
        let mut mark = match known {
            Some(mark) => mark,
            None => home.scrub_mark().await?,
        };
        self.note(home, mark);
        let now = self.core.ports.unix_time_ms();
        if mark.after.is_none() {
            let since = now.checked_sub(mark.started_unix_ms);
            if mark.finished_unix_ms > 0 && since.is_some_and(|since| since < self.interval_ms()) {
                return Ok(());
            }
            mark.started_unix_ms = now;
        }
        let (bad_before, bytes_before) = (self.bad.get(), self.bytes.get());
        let (mut kept_at, mut has_read) = (self.core.ports.now(), false);
        loop {
            let batch = home.generations_after(mark.after, STEP).await?;
            for held in batch.held.iter().filter(|held| held.is_complete) {
                self.pace.ready().await;
                let bytes = self.check(held).await;
                has_read = true;
                self.pace.pay(bytes, self.rate());
                mark.after = Some(held.name);
                self.note(home, mark);
                self.keep(home, &mark, &mut kept_at).await?;
            }
            match batch.next {
                Some(next) => mark.after = Some(next),
                None => break,
            }
        }
        mark.after = None;
        if !has_read && mark.finished_unix_ms == 0 {
            return Ok(()); // an empty home: its first pass is still to come
        }
        mark.finished_unix_ms = self.core.ports.unix_time_ms().max(1);
        home.keep_scrub_mark(mark).await?;
        self.note(home, mark);
        self.passes.set(self.passes.get() + 1);
        let (bad, bytes) = (self.bad.get() - bad_before, self.bytes.get() - bytes_before);
        info!(home = %home.shard(), bad, bytes, "scrub has read all of a home");
        Ok(())
    }

    fn note(&self, home: &HomeService, mark: ScrubMark) {
        self.marks.borrow_mut().insert(home.shard(), mark);
    }

    async fn keep(&self, home: &HomeService, mark: &ScrubMark, kept_at: &mut Instant) -> Result<(), StoreError> {
        let now = self.core.ports.now();
        if now.since(*kept_at) < KEEP_INTERVAL {
            return Ok(());
        }
        *kept_at = now;
        home.keep_scrub_mark(*mark).await
    }

    /// Reads all fragments of a generation, one after the other; the payload bytes read.
    async fn check(&self, held: &HeldGeneration) -> u64 {
        let readable = self.core.devices.readable();
        // "Unknown" is not bad: the next pass looks again, and whoever reads it looks before.
        let located = self.core.fragments.locate(held.name.locator, held.name.generation).await.unwrap_or_default();
        let (is_all, located) = (located.is_all(), located.found);
        let glance = Glance::at(held.name, &held.stripe, &located, &readable);
        let (mut bytes, mut bad) = (0, 0);
        for found in located.iter().filter(|found| readable.contains(&found.extent.device)) {
            let len = found.meta.payload_len_bytes;
            match self.core.fragments.read(found, 0..len).await {
                Ok(_) => add(&self.bytes, u64::from(len)),
                Err(error @ FragmentError::Corrupt { .. }) => {
                    warn!(device = %found.extent.device, %error, "scrub found a bad fragment");
                    bad += 1;
                }
                Err(_) => {}
            }
            bytes += u64::from(len);
        }
        if bad > 0 {
            add(&self.bad, bad);
            let margin = held.stripe.margin(glance.good.saturating_sub(bad as usize)).max(0);
            self.core.repairs.offer(held.name, margin, RepairCause::Unreadable);
        } else if is_all && !located.is_empty() && !glance.is_whole {
            self.core.repairs.offer(held.name, held.stripe.margin(glance.good).max(0), RepairCause::Missing);
        }
        bytes
    }

    /// Payload bytes a second that end a pass in time.
    fn rate(&self) -> u64 {
        let share = self.share;
        let of_lanes = |capacity: u64| capacity / share.of.max(1) as u64 * share.lanes as u64;
        let devices = self.core.fragments.devices();
        let own = devices.iter().filter(|device| device.node == self.core.nodes.own());
        let held = own.map(|device| of_lanes(device.capacity_bytes).saturating_sub(device.free_bytes));
        let held: u64 = held.sum();
        let rate = held / self.settings.interval.as_secs().max(1);
        (rate + rate / HEADROOM_DIVISOR).max(RATE_MIN).min(self.settings.bytes_per_second_max.max(1))
    }
}

/// Locators are spread evenly, so where a name lies in their order says how far a pass is.
fn permille(locator: &Locator) -> u64 {
    let first = u16::from_be_bytes([locator.0[0], locator.0[1]]);
    u64::from(first) * 1000 / (u64::from(u16::MAX) + 1)
}
