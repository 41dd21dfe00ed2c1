//! Evacuation: a device that is to be emptied gives what it holds to others, while everything stays readable.
//!
//! - Each core sweeps over what its lanes hold on such a device and tells the homes of the stripes, which queue them
//!   behind every stripe that repair wants (their margin is that of a whole stripe). A sweep is repeated until nothing
//!   is left, so what was being written, collected or waited for a device finds its turn.
//! - A stripe is *moved*: the new fragment is durable and indexed on another device of the placement order (I-D4) before
//!   the old one is released. Cut off anywhere, it leaves a stripe that is whole, at worst with a fragment twice, of
//!   which the next walk frees one. So an evacuation can be cancelled at any time.
//! - Fragments that no home knows are freed: nobody can name them (see [`crate::home_service`]).

use crate::core::Core;
use crate::delta::ChunkName;
use crate::device_board::DeviceBoard;
use crate::home_service::RepairGuard;
use crate::message::{HomeRequest, HomeResponse};
use crate::racks::Racks;
use crate::repair::{Glance, StripeRecord, add, by_node, fragment_meta, placement_order};
use futures::future::join_all;
use kiseki_types::buf::IoBytes;
use kiseki_types::fragment::{DeviceState, DeviceStatus, FragmentError, StoredFragment};
use kiseki_types::ids::{DeviceId, ShardId};
use kiseki_types::runtime::RuntimeExt;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;
use tracing::{debug, warn};

/// Fragments that one step of a sweep looks at.
const SWEEP_STEP: usize = 128;

/// Between two sweeps over a device, and between two looks for devices to empty.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// The same while stripes can't be moved: nothing changes until devices or room do.
const WAITING_INTERVAL: Duration = Duration::from_secs(10);

/// Pause between steps, so that a sweep over millions of fragments does not slow the node.
const SWEEP_PACE: Duration = Duration::from_millis(5);

/// Before stripes are offered again that found the queue full.
const QUEUE_FULL_INTERVAL: Duration = Duration::from_millis(100);

/// Before a sweep that met an error begins again.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// How a move ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// Nothing of the stripe lies on a device that is to be emptied.
    Done,
    /// No other device is left for the rest.
    Short,
    /// Devices there are, but they took nothing, most likely because they are full.
    NoRoom,
    /// A node does not answer that may hold the rest of it.
    Awaited,
    /// The stripe has to be repaired first.
    NotWhole,
}

/// What a home made of stripes that are to be moved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EvacuationAnswer {
    /// Generations that it does not know and that no delta can name: their fragments are orphans.
    pub unknown: Vec<ChunkName>,
    /// Those that its queue has no room for now.
    pub refused: Vec<ChunkName>,
    /// Stripes that can't be moved with the devices that take fragments now.
    pub waiting: usize,
    /// Devices that the widest of those needs.
    pub devices_wanted: usize,
    /// Whether devices had no room for a fragment a moment ago.
    pub no_room: bool,
}

/// Moves what a whole stripe has on devices that are to be emptied. `guard` as of
/// [`repair_stripe`](crate::repair::repair_stripe).
///
/// Errors mean "unknown", as of [`repair_stripe`](crate::repair::repair_stripe); `moved` counts bytes read and written.
pub async fn move_stripe(
    core: &Core,
    name: ChunkName,
    stripe: &StripeRecord,
    moved: &Cell<u64>,
    guard: &RepairGuard,
) -> Result<Moved, FragmentError> {
    let _placement = core.devices.place();
    let located = core.fragments.locate(name.locator, name.generation).await?;
    let is_all = located.is_all();
    let located = located.found;
    if !Glance::at(name, stripe, &located, &core.devices.readable()).is_whole {
        return Ok(if is_all { Moved::NotWhole } else { Moved::Awaited });
    }
    let devices = core.devices.devices();
    let mut held_by: BTreeMap<u8, DeviceId> =
        located.iter().map(|found| (found.meta.key.index, found.extent.device)).collect();
    let mut free: VecDeque<DeviceId> = free_devices(name, stripe, &devices, &core.nodes.racks(), &located).into();
    let leaving = core.devices.evacuating();
    let mut refused = false;
    for found in located.iter().filter(|found| leaving.contains(&found.extent.device)) {
        let len = found.meta.payload_len_bytes;
        let payload = match core.fragments.read(found, 0..len).await {
            Ok(payload) => payload,
            Err(FragmentError::Corrupt { .. } | FragmentError::DeviceFailed { .. }) => return Ok(Moved::NotWhole),
            Err(unknown) => return Err(unknown),
        };
        add(moved, u64::from(len));
        loop {
            let Some(device) = free.pop_front() else {
                return Ok(if refused { Moved::NoRoom } else { Moved::Short });
            };
            if put_copy(core, name, stripe, found.meta.key.index, device, &payload, &mut held_by).await? {
                break;
            }
            refused = true;
        }
        add(moved, u64::from(len));
        let_go(core, found, guard).await?;
        add(&core.repair_counters.fragments_moved, 1);
        add(&core.repair_counters.fragment_bytes_moved, u64::from(len));
        debug!(locator = %name.locator, from = %found.extent.device, "fragment moved");
    }
    Ok(Moved::Done)
}

/// Writes a fragment once more, on a device that holds none of the stripe; `held_by` says where each index lies and is brought up to
/// date. Whether the device took it: if not, another one may.
pub(crate) async fn put_copy(
    core: &Core,
    name: ChunkName,
    stripe: &StripeRecord,
    index: u8,
    device: DeviceId,
    payload: &IoBytes,
    held_by: &mut BTreeMap<u8, DeviceId>,
) -> Result<bool, FragmentError> {
    let mut hint = held_by.clone();
    hint.insert(index, device);
    // I-D4: a lost device may cost a stripe one fragment, never two.
    let distinct: BTreeSet<DeviceId> = hint.values().copied().collect();
    assert_eq!(distinct.len(), hint.len(), "I-D4: a move of {name:?} used a device twice");
    let meta = fragment_meta(name, stripe, index, hint.values().copied().collect());
    match core.fragments.put_for_upkeep(device, meta, vec![payload.clone()]).await {
        Ok(_) => {
            *held_by = hint;
            Ok(true)
        }
        Err(unknown @ (FragmentError::Unknown { .. } | FragmentError::Unanswered { .. })) => Err(unknown),
        Err(error) => {
            if !error.is_space() {
                warn!(%error, "a fragment could not be moved there; another device takes it");
            }
            Ok(false)
        }
    }
}

/// Frees a fragment whose copy is durable, and which the index answers for.
pub(crate) async fn let_go(core: &Core, found: &StoredFragment, guard: &RepairGuard) -> Result<(), FragmentError> {
    guard.check().await?;
    match core.fragments.release(found).await {
        // A device that has just failed keeps it; should it come back, the walk after that finds it twice.
        Ok(()) | Err(FragmentError::DeviceFailed { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Devices that take fragments and hold none of the generation, in placement order. One that is being emptied is never
/// among them, nor one that holds a fragment that can't be read now: it may come back.
fn free_devices(
    name: ChunkName,
    stripe: &StripeRecord,
    devices: &[DeviceStatus],
    racks: &Racks,
    located: &[StoredFragment],
) -> Vec<DeviceId> {
    let takes = devices.iter().filter(|device| device.pool == stripe.pool && device.state.takes_fragments());
    let leaves = |id: &DeviceId| devices.iter().any(|own| own.id == *id && own.state == DeviceState::Evacuating);
    let stays = located.iter().map(|found| &found.extent.device).filter(|id| !leaves(id));
    let held = by_node(devices, stays);
    let holders = located.iter().map(|found| found.extent.device).collect();
    placement_order(&name.locator, takes, racks, (&held, &holders), stripe.shape)
}

/// What a stripe has on devices that are to be emptied, and where that may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MoveOutlook {
    /// Fragments on such devices.
    pub to_move: usize,
    /// Devices that may take one.
    pub free: usize,
}

impl MoveOutlook {
    /// Looks at what the index says of a stripe.
    #[must_use]
    pub fn at(board: &DeviceBoard, name: ChunkName, stripe: &StripeRecord, located: &[StoredFragment]) -> MoveOutlook {
        let leaving = board.evacuating();
        let to_move = located.iter().filter(|found| leaving.contains(&found.extent.device)).count();
        MoveOutlook { to_move, free: free_devices(name, stripe, &board.devices(), &board.racks(), located).len() }
    }
}

/// What keeps a core's part of an evacuation from going on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EvacuationState {
    /// Stripes that wait for devices, as of the last whole sweep.
    pub waiting: usize,
    /// Devices that the widest of those needs.
    pub devices_wanted: usize,
    /// Whether devices had no room for a fragment.
    pub no_room: bool,
}

/// Empties devices, as far as this core's lanes hold something on them.
pub struct Evacuator {
    core: Rc<Core>,
    states: RefCell<BTreeMap<DeviceId, EvacuationState>>,
}

impl Evacuator {
    /// Starts sweeping; it ends with the core's background work.
    pub fn start(core: &Rc<Core>) -> Rc<Evacuator> {
        let evacuator = Rc::new(Evacuator { core: core.clone(), states: RefCell::default() });
        core.background.repeat("evacuate", Box::pin(evacuator.clone().evacuate_forever()));
        evacuator
    }

    /// For status: what keeps each device that is to be emptied from being so.
    #[must_use]
    pub fn states(&self) -> BTreeMap<DeviceId, EvacuationState> {
        self.states.borrow().clone()
    }

    async fn evacuate_forever(self: Rc<Self>) {
        loop {
            let leaving = self.core.devices.evacuating();
            self.states.borrow_mut().retain(|device, _| leaving.contains(device));
            for device in leaving {
                match self.sweep(device).await {
                    Ok(state) => drop(self.states.borrow_mut().insert(device, state)),
                    Err(error) => {
                        warn!(%device, %error, "a sweep over a device that is to be emptied stopped; it begins again");
                        self.core.ports.sleep(RETRY_INTERVAL).await;
                    }
                }
            }
            let is_stuck = self.states.borrow().values().any(|state| state.waiting > 0 || state.no_room);
            self.core.ports.sleep(if is_stuck { WAITING_INTERVAL } else { SWEEP_INTERVAL }).await;
        }
    }

    /// One pass over what this core's lanes hold on a device.
    async fn sweep(&self, device: DeviceId) -> Result<EvacuationState, FragmentError> {
        let (mut after, mut state) = (None, EvacuationState::default());
        loop {
            let held = self.core.fragments.held_on(device, after, SWEEP_STEP).await?;
            let Some(last) = held.last() else { return Ok(state) };
            after = Some(last.extent.start);
            let mut by_home = BTreeMap::<ShardId, Vec<ChunkName>>::new();
            for found in &held {
                let (locator, generation) = (found.meta.key.locator, found.meta.key.generation);
                by_home.entry(self.core.calls.home_of(&locator)).or_default().push(ChunkName { locator, generation });
            }
            let asked = by_home.into_iter().map(|(home, names)| self.ask(device, home, names));
            for answer in join_all(asked).await {
                let answer = answer?;
                state.waiting += answer.waiting;
                state.devices_wanted = state.devices_wanted.max(answer.devices_wanted);
                state.no_room |= answer.no_room;
                self.free_orphans(&held, &answer.unknown).await?;
            }
            if !self.core.devices.evacuating().contains(&device) {
                return Ok(EvacuationState::default());
            }
            self.core.ports.sleep(SWEEP_PACE).await;
        }
    }

    /// Has a home queue stripes; while its queue is full, those wait here.
    async fn ask(
        &self,
        device: DeviceId,
        home: ShardId,
        mut names: Vec<ChunkName>,
    ) -> Result<EvacuationAnswer, FragmentError> {
        let mut sum = EvacuationAnswer::default();
        loop {
            let answer = match self.core.calls.home(home, HomeRequest::Evacuate(names)).await {
                Ok(HomeResponse::Evacuating(answer)) => answer,
                Ok(_) => panic!("a home answers Evacuate with Evacuating"),
                Err(error) => return Err(FragmentError::Unknown { reason: error.to_string() }),
            };
            sum.unknown.extend(answer.unknown);
            sum.waiting += answer.waiting;
            sum.devices_wanted = sum.devices_wanted.max(answer.devices_wanted);
            sum.no_room = answer.no_room;
            if answer.refused.is_empty() || answer.no_room || !self.core.devices.evacuating().contains(&device) {
                return Ok(sum);
            }
            names = answer.refused;
            self.core.ports.sleep(QUEUE_FULL_INTERVAL).await;
        }
    }

    /// I-C2: their home has said that no delta can name them.
    async fn free_orphans(&self, held: &[StoredFragment], unknown: &[ChunkName]) -> Result<(), FragmentError> {
        let is_unknown = |found: &&StoredFragment| {
            let (locator, generation) = (found.meta.key.locator, found.meta.key.generation);
            unknown.contains(&ChunkName { locator, generation })
        };
        for found in held.iter().filter(is_unknown) {
            self.core.fragments.release(found).await?;
            add(&self.core.repair_counters.orphans_freed, 1);
        }
        Ok(())
    }
}
