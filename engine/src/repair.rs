//! Repair of one stripe: which fragments are good, what the others were, and each of those again on a device of its
//! own (I-D4), and as evenly over the nodes as devices allow.
//!
//! While a node is awaited, nobody knows what it holds: a stripe that can afford another loss waits for it, one that can't is
//! repaired as if those fragments were gone. Should they come back, they are needless and freed. A node that is silent for
//! too long counts as lost ([`crate::nodes`]).
//!
//! A good fragment is never touched but for a second copy of it. A bad one is freed when its replacement is durable;
//! only where no other device is left it makes room first, which costs nothing, since it is not readable anyway.

use crate::core::Core;
use crate::delta::ChunkName;
use crate::home_service::RepairGuard;
use crate::nodes::Standing;
use crate::placement::{self, PlacementCandidate};
use crate::racks::Racks;
use crate::repair_queue::Margin;
use crate::spread::ByNode;
use crate::stripe::fragment_payload_len;
use futures::future::join_all;
use kiseki_types::buf::IoBytes;
use kiseki_types::fragment::{
    DeviceStatus, FragmentError, FragmentKey, FragmentMeta, Located, StoredFragment, StripeShape,
};
use kiseki_types::ids::{DeviceId, Locator, MapEpoch, PoolId};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use tracing::{info, warn};

/// Epoch of the device map: as for writers, 1 until devices come and go while a node runs.
const MAP_EPOCH: MapEpoch = MapEpoch(1);

/// What a home knows of a stripe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StripeRecord {
    /// Its pool.
    pub pool: PoolId,
    /// Its shape.
    pub shape: StripeShape,
    /// Bytes of its envelope.
    pub envelope_len_bytes: u32,
}

impl StripeRecord {
    /// Bytes of each fragment's payload.
    #[must_use]
    pub fn payload_len_bytes(&self) -> u32 {
        fragment_payload_len(self.envelope_len_bytes, self.shape)
    }

    /// How many more of `good` fragments may be lost.
    #[must_use]
    pub fn margin(&self, good: usize) -> Margin {
        good as Margin - Margin::from(self.shape.data)
    }

    pub(crate) fn fits(&self, name: ChunkName, meta: &FragmentMeta) -> bool {
        let FragmentKey { locator, generation, index } = meta.key;
        (ChunkName { locator, generation }) == name
            && meta.shape == self.shape
            && usize::from(index) < self.shape.width()
            && meta.envelope_len_bytes == self.envelope_len_bytes
            && meta.payload_len_bytes == self.payload_len_bytes()
    }
}

/// How a repair ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repaired {
    /// The stripe has its full width now, or had it all along.
    Whole,
    /// No device is left for the rest: fewer are usable than the stripe has fragments.
    Short {
        /// Devices of its pool that are usable.
        usable: usize,
    },
    /// Devices there are, but they took nothing, most likely because they are full.
    NoRoom,
    /// A node is awaited that may hold what is missing.
    Awaited,
    /// Fewer fragments are good than the data need.
    Lost {
        /// Good ones.
        good: usize,
    },
}

/// What repair has done on a core.
#[derive(Default)]
pub struct RepairCounters {
    /// Fragments written anew.
    pub fragments: Cell<u64>,
    /// Payload bytes of those.
    pub fragment_bytes: Cell<u64>,
    /// Payload bytes read and written for it: what the pace counts.
    pub bytes_moved: Cell<u64>,
    /// Fragments moved off devices that are to be emptied.
    pub fragments_moved: Cell<u64>,
    /// Payload bytes of those.
    pub fragment_bytes_moved: Cell<u64>,
    /// Fragments freed on such devices that no home knew.
    pub orphans_freed: Cell<u64>,
    /// Bad or needless fragments that were freed.
    pub released: Cell<u64>,
    /// Repairs that did not end as they should, all tried again.
    pub failures: Cell<u64>,
    /// Stripes found lost.
    pub lost: Cell<u64>,
    /// Walks over all generations of the core's homes.
    pub walks: Cell<u64>,
}

pub(crate) fn add(counter: &Cell<u64>, amount: u64) {
    counter.set(counter.get() + amount);
}

/// What it means for repair that nodes did not say what they hold of a stripe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silence {
    /// Every node answered, or counts as lost: what was not found is to be rebuilt.
    None,
    /// A node is awaited: what was not found may come back with it.
    Awaited,
}

impl Silence {
    /// Errors: a node that is there did not answer; nothing follows from that.
    pub fn of(core: &Core, located: &Located) -> Result<Silence, FragmentError> {
        let now = core.ports.now();
        let mut silence = Silence::None;
        for node in &located.unanswered {
            match core.nodes.standing(*node, now) {
                Standing::Lost => {}
                Standing::Awaited => silence = Silence::Awaited,
                Standing::Here => {
                    let reason = format!("{node} does not say which fragments it holds");
                    return Err(FragmentError::Unknown { reason });
                }
            }
        }
        Ok(silence)
    }

    /// Whether a stripe with so many good fragments waits for the node: a stripe that can't afford another loss does not,
    /// and one with fewer can't be helped.
    #[must_use]
    pub fn holds_back(self, margin: Margin) -> bool {
        self == Silence::Awaited && margin != 0
    }
}

/// A stripe as the index has it: nothing is read.
pub struct Glance {
    /// Indices that lie on usable devices.
    pub good: usize,
    /// Whether exactly one fragment was found for each index, each on a device of its own.
    pub is_whole: bool,
}

impl Glance {
    /// Looks at what [`FragmentStore::locate`](kiseki_types::fragment::FragmentStore::locate) answered.
    #[must_use]
    pub fn at(
        name: ChunkName,
        stripe: &StripeRecord,
        located: &[StoredFragment],
        readable: &BTreeSet<DeviceId>,
    ) -> Glance {
        let usable = || located.iter().filter(|found| readable.contains(&found.extent.device));
        let fitting = || usable().filter(|found| stripe.fits(name, &found.meta));
        let indices: BTreeSet<u8> = fitting().map(|found| found.meta.key.index).collect();
        let devices: BTreeSet<DeviceId> = fitting().map(|found| found.extent.device).collect();
        let width = stripe.shape.width();
        let is_whole = usable().count() == width && indices.len() == width && devices.len() == width;
        Glance { good: indices.len(), is_whole }
    }
}

/// What was found of a stripe.
#[derive(Default)]
struct Examined {
    /// Payloads of the good fragments, by index.
    payloads: BTreeMap<u8, IoBytes>,
    /// The good fragments that stay: one for each index, each on a device of its own.
    good: BTreeMap<u8, DeviceId>,
    /// On usable devices, but not readable as what they should be, and why.
    bad: Vec<(StoredFragment, String)>,
    /// Good ones that do not stay: a device came back whose fragments were rebuilt meanwhile, or a crash left two
    /// fragments of a stripe on one device.
    surplus: Vec<StoredFragment>,
    /// Devices that are not used, by index.
    unusable: BTreeMap<u8, DeviceId>,
}

/// Brings one stripe to full width, as far as devices are usable. `guard` is the caller's for this stripe; before anything is
/// freed it is asked whether this node still leads, so that two leaders never free two different copies.
///
/// Errors mean "unknown": an index lane or a device did not answer as it should, and the stripe has to be looked at again.
/// `moved` counts the payload bytes read and written, however it ends.
pub async fn repair_stripe(
    core: &Core,
    name: ChunkName,
    stripe: &StripeRecord,
    moved: &Cell<u64>,
    guard: &RepairGuard,
) -> Result<Repaired, FragmentError> {
    let _placement = core.devices.place();
    let located = core.fragments.locate(name.locator, name.generation).await?;
    let silence = Silence::of(core, &located)?;
    let located = located.found;
    let devices = core.devices.devices();
    let readable = core.devices.readable();
    if silence.holds_back(stripe.margin(Glance::at(name, stripe, &located, &readable).good)) {
        return Ok(Repaired::Awaited);
    }
    let order = destinations(core, name, stripe, &devices, (&ByNode::new(), &BTreeSet::new()));
    let holders: BTreeSet<DeviceId> = located.iter().map(|found| found.extent.device).collect();
    let mut examined = examine(core, name, stripe, located, &readable, &order, moved).await?;
    let good = examined.payloads.len();
    if silence.holds_back(stripe.margin(good)) {
        return Ok(Repaired::Awaited);
    }
    if good < usize::from(stripe.shape.data) {
        return Ok(Repaired::Lost { good });
    }
    let missing: Vec<u8> = (0..stripe.shape.width() as u8).filter(|index| !examined.good.contains_key(index)).collect();
    let sources: Vec<(u8, &[u8])> = examined.payloads.iter().map(|(index, payload)| (*index, &**payload)).collect();
    let rebuilt = core.coder.rebuild(stripe.shape, &sources, &missing);
    let rebuilt = rebuilt.map_err(|error| FragmentError::Unknown { reason: error.to_string() })?;
    let held = by_node(&devices, examined.good.values());
    let order_of_rest = destinations(core, name, stripe, &devices, (&held, &holders));
    let mut work = Work {
        core,
        guard,
        name,
        stripe,
        devices: &devices,
        moved,
        free: order_of_rest.into(),
        held_by: examined.good.clone(),
        refused: false,
    };
    for (index, payload) in missing.iter().zip(rebuilt) {
        work.replace(*index, payload.freeze(), &mut examined).await?;
    }
    // I-D4: a lost device may cost a stripe one fragment, never two.
    let distinct: BTreeSet<DeviceId> = work.held_by.values().copied().collect();
    assert_eq!(distinct.len(), work.held_by.len(), "I-D4: repair of {name:?} used a device twice");
    let (is_whole, refused) = (work.held_by.len() == stripe.shape.width(), work.refused);
    work.clear_away(&examined).await?;
    Ok(match is_whole {
        true => Repaired::Whole,
        false if order.len() < stripe.shape.width() && !refused => Repaired::Short { usable: order.len() },
        false => Repaired::NoRoom,
    })
}

/// The devices that fragments of a stripe may be put on, in placement order; one that is being emptied comes last, and
/// only while the stripe would not get its full width on the others. `held` and holders as of [`placement::by_turns`].
fn destinations(
    core: &Core,
    name: ChunkName,
    stripe: &StripeRecord,
    devices: &[DeviceStatus],
    held: (&ByNode, &BTreeSet<DeviceId>),
) -> Vec<DeviceId> {
    let of_pool = || devices.iter().filter(|device| device.pool == stripe.pool);
    let racks = core.nodes.racks();
    let order = |devices: &mut dyn Iterator<Item = &DeviceStatus>| {
        placement_order(&name.locator, devices, &racks, held, stripe.shape)
    };
    let takes = || of_pool().filter(|device| device.state.takes_fragments());
    let mut all = order(&mut takes());
    if takes().count() < stripe.shape.width() {
        let last = core.devices.last_resort(stripe.pool);
        all.extend(order(&mut of_pool().filter(|device| last.contains(&device.id))));
    }
    all
}

/// Devices in the order in which they hold the stripe of `locator`, of which nodes hold so many fragments already.
pub(crate) fn placement_order<'a>(
    locator: &Locator,
    devices: impl Iterator<Item = &'a DeviceStatus>,
    racks: &Racks,
    held: (&ByNode, &BTreeSet<DeviceId>),
    shape: StripeShape,
) -> Vec<DeviceId> {
    let (mut candidates, mut nodes) = (Vec::new(), BTreeMap::new());
    for device in devices {
        candidates.push(PlacementCandidate { device: device.id, weight: device.capacity_bytes });
        nodes.insert(device.id, device.node);
    }
    placement::by_turns(placement::order(locator, &candidates), |device| nodes[device], racks, held, shape)
}

/// How many of some devices each node has.
pub(crate) fn by_node<'a>(devices: &[DeviceStatus], some: impl Iterator<Item = &'a DeviceId>) -> ByNode {
    let mut counts = ByNode::new();
    for device in some.filter_map(|id| devices.iter().find(|device| device.id == *id)) {
        *counts.entry(device.node).or_default() += 1;
    }
    counts
}

/// What the header of a fragment says that is written for a stripe that is there already.
pub(crate) fn fragment_meta(name: ChunkName, stripe: &StripeRecord, index: u8, devices: Vec<DeviceId>) -> FragmentMeta {
    let ChunkName { locator, generation } = name;
    FragmentMeta {
        key: FragmentKey { locator, generation, index },
        shape: stripe.shape,
        pool: stripe.pool,
        envelope_len_bytes: stripe.envelope_len_bytes,
        payload_len_bytes: stripe.payload_len_bytes(),
        map_epoch: MAP_EPOCH,
        devices,
    }
}

/// Reads every fragment of the generation whole; each piece is checked against its header (I-C9).
async fn examine(
    core: &Core,
    name: ChunkName,
    stripe: &StripeRecord,
    located: Vec<StoredFragment>,
    readable: &BTreeSet<DeviceId>,
    order: &[DeviceId],
    moved: &Cell<u64>,
) -> Result<Examined, FragmentError> {
    let mut examined = Examined::default();
    let mut fitting = Vec::new();
    for found in located {
        if !readable.contains(&found.extent.device) {
            examined.unusable.insert(found.meta.key.index, found.extent.device);
        } else if stripe.fits(name, &found.meta) {
            fitting.push(found);
        } else {
            examined.bad.push((found, "it is of another shape than its stripe".to_owned()));
        }
    }
    // Of two good ones of an index the one stays whose device comes first.
    let rank = |device: &DeviceId| order.iter().position(|other| other == device).unwrap_or(usize::MAX);
    fitting.sort_by_key(|found| (found.meta.key.index, rank(&found.extent.device), found.extent.device));
    let len = stripe.payload_len_bytes();
    let reads = fitting.iter().map(|found| core.fragments.read(found, 0..len));
    for (found, read) in fitting.iter().zip(join_all(reads).await) {
        let index = found.meta.key.index;
        match read {
            Ok(payload) => {
                add(moved, u64::from(len));
                examined.payloads.entry(index).or_insert(payload);
                let device = found.extent.device;
                if examined.good.contains_key(&index) || examined.good.values().any(|other| *other == device) {
                    examined.surplus.push(found.clone());
                } else {
                    examined.good.insert(index, device);
                }
            }
            Err(error @ FragmentError::Corrupt { .. }) => examined.bad.push((found.clone(), error.to_string())),
            Err(FragmentError::DeviceFailed { device, .. }) => {
                examined.unusable.insert(index, device);
            }
            Err(other) => return Err(other),
        }
    }
    Ok(examined)
}

/// The writing part of one repair.
struct Work<'a> {
    core: &'a Core,
    guard: &'a RepairGuard,
    name: ChunkName,
    stripe: &'a StripeRecord,
    devices: &'a [DeviceStatus],
    moved: &'a Cell<u64>,
    /// Usable devices that hold nothing of the generation, in placement order.
    free: VecDeque<DeviceId>,
    /// Where each index lies now.
    held_by: BTreeMap<u8, DeviceId>,
    /// Whether a usable device did not take a fragment.
    refused: bool,
}

impl Work<'_> {
    /// Writes one fragment on a device that holds no other of the stripe, if there is one.
    async fn replace(&mut self, index: u8, payload: IoBytes, examined: &mut Examined) -> Result<(), FragmentError> {
        loop {
            let Some(device) = self.next_device(index, examined).await? else { return Ok(()) };
            let put = self.core.fragments.put_for_upkeep(device, self.meta(index, device), vec![payload.clone()]);
            match put.await {
                Ok(_) => {
                    self.held_by.insert(index, device);
                    self.log(index, device, examined);
                    let len = u64::from(self.stripe.payload_len_bytes());
                    add(&self.core.repair_counters.fragments, 1);
                    add(&self.core.repair_counters.fragment_bytes, len);
                    add(self.moved, len);
                    return Ok(());
                }
                // It may be there, or come to be there: what comes next has to see that first.
                Err(unknown @ (FragmentError::Unknown { .. } | FragmentError::Unanswered { .. })) => {
                    return Err(unknown);
                }
                Err(error) => {
                    self.refused = true;
                    if !error.is_space() {
                        warn!(%error, "a rebuilt fragment could not be written; another device takes it");
                    }
                }
            }
        }
    }

    /// A device without a fragment of the stripe; when there is none, one whose fragment is bad or needless, freed
    /// first, because a device takes no second fragment of a stripe (I-D4).
    async fn next_device(&mut self, index: u8, examined: &mut Examined) -> Result<Option<DeviceId>, FragmentError> {
        if let Some(device) = self.free.pop_front() {
            return Ok(Some(device));
        }
        let in_use: BTreeSet<DeviceId> = self.held_by.values().copied().collect();
        let may_go = |found: &StoredFragment| !in_use.contains(&found.extent.device);
        let same = |(found, _): &(StoredFragment, String)| found.meta.key.index == index && may_go(found);
        let bad = examined.bad.iter().position(same);
        let bad = bad.or_else(|| examined.bad.iter().position(|(found, _)| may_go(found)));
        let freed = match bad {
            Some(position) => {
                let (found, reason) = examined.bad[position].clone();
                self.release(&found).await?;
                info!(
                    device = %found.extent.device, index = found.meta.key.index, %reason,
                    "a bad fragment made room for its replacement: no other device is left"
                );
                examined.bad.remove(position);
                found
            }
            None => {
                let Some(position) = examined.surplus.iter().position(may_go) else { return Ok(None) };
                let found = examined.surplus.remove(position);
                self.release(&found).await?;
                found
            }
        };
        Ok(Some(freed.extent.device))
    }

    fn meta(&self, index: u8, device: DeviceId) -> FragmentMeta {
        let mut hint = self.held_by.clone();
        hint.insert(index, device);
        fragment_meta(self.name, self.stripe, index, hint.into_values().collect())
    }

    fn device_name(&self, id: DeviceId) -> String {
        let found = self.devices.iter().find(|device| device.id == id);
        found.map_or_else(|| id.to_string(), |device| device.name.clone())
    }

    /// One event for each repaired fragment: where it is now, and what was wrong where.
    fn log(&self, index: u8, device: DeviceId, examined: &Examined) {
        let (locator, device) = (self.name.locator, self.device_name(device));
        if let Some((found, reason)) = examined.bad.iter().find(|(found, _)| found.meta.key.index == index) {
            let was_on = self.device_name(found.extent.device);
            warn!(%locator, index, %was_on, %reason, now_on = %device, "fragment repaired");
        } else if let Some(lost) = examined.unusable.get(&index) {
            let was_on = self.device_name(*lost);
            info!(%locator, index, %was_on, reason = "its device is not used", now_on = %device, "fragment repaired");
        } else {
            info!(%locator, index, reason = "it was nowhere", now_on = %device, "fragment repaired");
        }
    }

    async fn release(&self, found: &StoredFragment) -> Result<(), FragmentError> {
        self.guard.check().await?;
        self.core.fragments.release(found).await?;
        add(&self.core.repair_counters.released, 1);
        Ok(())
    }

    /// Frees bad fragments whose replacement is durable, and second copies.
    async fn clear_away(&self, examined: &Examined) -> Result<(), FragmentError> {
        let replaced = |(found, _): &&(StoredFragment, String)| {
            usize::from(found.meta.key.index) >= self.stripe.shape.width()
                || self.held_by.contains_key(&found.meta.key.index)
        };
        let bad = examined.bad.iter().filter(replaced).map(|(found, _)| found);
        let needless = examined.surplus.iter().filter(|found| self.held_by.contains_key(&found.meta.key.index));
        for found in bad.chain(needless) {
            match self.release(found).await {
                // A device that has just failed keeps it; should it come back, the next walk finds it.
                Ok(()) | Err(FragmentError::DeviceFailed { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
