//! One chunk from plaintext to durable fragments: id, dedup, seal, encode, place, write (steps 3 to 7 of the write
//! path in `docs/ARCHITECTURE.md`).

use crate::api::StoreError;
use crate::core::{Core, DataCounters};
use crate::delta::ChunkName;
use crate::envelope::{EnvelopeBinding, envelope_len, seal};
use crate::keyring::TenantKeys;
use crate::message::{BeginChunk, Bucket, Decision, HomeRequest, HomeResponse, PinId};
use crate::placement::{self, PlacementCandidate};
use crate::repair_queue::{Margin, RepairCause};
use crate::repairer;
use crate::spread::ByNode;
use crate::stages::Stage;
use crate::stripe::{fragment_payload_len, padded_len, parity_buffer_count, shape_for};
use crate::without;
use futures::StreamExt;
use futures::future::join;
use futures::stream::FuturesUnordered;
use kiseki_types::buf::{BufferSource, IoBuf, IoBytes};
use kiseki_types::fragment::{DeviceStatus, FragmentError, FragmentKey, FragmentMeta, StripeShape};
use kiseki_types::ids::{ChunkId, DeviceId, Generation, MapEpoch, NodeId, PinEpoch, PoolId, ShardId};
use kiseki_types::limits::CHUNK_LEN_BYTES_MAX;
use kiseki_types::runtime::RuntimeExt;
use kiseki_types::secret::SecretKey;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;
use tracing::warn;

/// Epoch of the device map: it stays 1 until devices come and go while a node runs.
const MAP_EPOCH: MapEpoch = MapEpoch(1);

/// What all chunks of one write have in common.
#[derive(Clone)]
pub struct WriteScope {
    /// Where it goes.
    pub bucket: Bucket,
    /// The shard whose delta is to name it.
    pub shard: ShardId,
    /// Whose it is.
    pub keys: Rc<TenantKeys>,
}

/// A chunk that may be named now: its fragments, or those of an equal chunk, are durable and pinned.
pub struct StoredChunk {
    /// Its name by content.
    pub chunk: ChunkId,
    /// The generation that the reference counts.
    pub name: ChunkName,
    /// Bytes of plaintext.
    pub len_bytes: u32,
    /// Its key, to be wrapped for the reference.
    pub dek: SecretKey,
    /// To be settled at the home when the delta is committed, or when it never will be.
    pub pin: PinId,
}

/// A pin that was taken before the chunk failed; the caller settles it.
pub struct ChunkFailure {
    /// Why.
    pub error: StoreError,
    /// What to abort at the home, if it got so far.
    pub pinned: Option<(ChunkName, PinId)>,
}

impl From<StoreError> for ChunkFailure {
    fn from(error: StoreError) -> ChunkFailure {
        ChunkFailure { error, pinned: None }
    }
}

/// An empty buffer that holds a chunk of `len_bytes` and, sealed in place, its envelope with padding. What lies behind
/// its length is whatever an earlier user left; sealing clears what it does not overwrite (I-K1).
#[must_use]
pub fn chunk_buffer(buffers: &BufferSource, len_bytes: usize, shape: StripeShape) -> IoBuf {
    buffers(chunk_buffer_len(len_bytes, shape)).resized(0)
}

/// Bytes that [`chunk_buffer`] needs.
fn chunk_buffer_len(len_bytes: usize, shape: StripeShape) -> usize {
    let len = len_bytes.clamp(1, CHUNK_LEN_BYTES_MAX);
    let envelope = envelope_len(len as u32);
    // The padded length of a slightly shorter chunk in another shape may be longer: take the larger of both shapes.
    let copies = padded_len(envelope, shape.as_copies());
    copies.max(padded_len(envelope, shape))
}

/// How long a chunk is begun anew whose home changes its leader, or whose nodes fall silent: an election and what leads to it.
const BEGIN_WAIT: Duration = Duration::from_secs(20);

/// Before a chunk is begun anew; it doubles up to the longest.
const BEGIN_PAUSE: Duration = Duration::from_millis(50);
const BEGIN_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Stores one chunk. `plaintext` is sealed in place; the delta that names the chunk has to state `pin_epoch` or an older one.
pub async fn store_chunk(
    core: &Rc<Core>,
    scope: &WriteScope,
    pin_epoch: PinEpoch,
    plaintext: IoBuf,
) -> Result<StoredChunk, ChunkFailure> {
    let len_bytes = plaintext.len() as u32;
    let (stages, ports) = (&core.stages, &core.ports);
    let hashed = core.hash_queue.chunk_id(&scope.keys.domain, plaintext);
    let (mut plaintext, chunk) = stages.time(Stage::Hash, ports, hashed).await;
    let locator = crate::chunk_id::locator(&core.keys.locator, &chunk);
    core.ports.yield_now().await;
    let binding = EnvelopeBinding::current(locator, len_bytes);
    let envelope_len_bytes = envelope_len(len_bytes);
    let wanted = shape_for(scope.bucket.shape, envelope_len_bytes);
    let mut failed = BTreeSet::new();
    let shape = shape_now(core, scope.bucket.pool, wanted, &mut failed);
    let master_epoch = core.keys.masters.current();
    let dek = scope.keys.dek(&core.keys.masters, master_epoch, &chunk, binding.kind())?;
    let begin = |shape, pin| HomeRequest::Begin {
        shard: scope.shard,
        pin_epoch,
        pool: scope.bucket.pool,
        shape,
        master_epoch,
        chunks: vec![BeginChunk { locator, envelope_len_bytes, pin }],
    };
    let home = core.calls.home_of(&locator);
    let pin: PinId = core.ports.random();
    let decision = stages.time(Stage::Begin, ports, begin_chunk(core, home, begin(shape, pin)));
    // The home looks while we seal; for a hit the sealing was for nothing, for a miss it cost no time.
    let sealed = async {
        let since = ports.now();
        // Copies need no more than that.
        seal(&dek, &binding, &mut plaintext, padded_len(envelope_len_bytes, wanted));
        stages.ended(Stage::Seal, since, ports);
        plaintext.freeze()
    };
    let (mut decision, envelope) = join(decision, sealed).await;
    let mut stripe = Stripe {
        name: ChunkName { locator, generation: Generation(0) },
        wanted,
        shape,
        envelope_len_bytes,
        plaintext_len_bytes: len_bytes,
        pool: scope.bucket.pool,
        envelope,
        encoded: None,
        failed,
    };
    let (mut pin, mut pause) = (pin, BEGIN_PAUSE);
    let until = core.ports.now() + BEGIN_WAIT;
    loop {
        let failed_before = stripe.failed.len();
        let failure = match decision {
            Ok(decided) => match settle_decision(core, home, pin, decided, &mut stripe).await {
                Ok(name) => return Ok(StoredChunk { chunk, name, len_bytes, dek, pin }),
                Err(failure) => failure,
            },
            Err(error) => error.into(),
        };
        if core.ports.now() >= until || core.calls.is_alone() || !matches!(failure.error, StoreError::Unsettled { .. })
        {
            return Err(failure);
        }
        // The home has another leader, which knows nothing of this writer, or nodes fell silent under the stripe. What was pinned
        // or written is given up, and the chunk is begun anew under another pin and in the shape of now: who did not hear whether
        // its pin is durable must not rely on it (I-C2).
        give_up(core, home, failure.pinned);
        stripe.shape = shape_now(core, scope.bucket.pool, wanted, &mut stripe.failed);
        // Where it is known whom to leave out there is nothing to wait for.
        if stripe.failed.len() <= failed_before {
            core.ports.sleep(pause).await;
            pause = (pause * 2).min(BEGIN_PAUSE_MAX);
            stripe.shape = shape_now(core, scope.bucket.pool, wanted, &mut stripe.failed);
        }
        pin = core.ports.random();
        decision = begin_chunk(core, home, begin(stripe.shape, pin)).await;
    }
}

async fn begin_chunk(core: &Core, home: ShardId, begin: HomeRequest) -> Result<Decision, StoreError> {
    match core.calls.home(home, begin).await? {
        HomeResponse::Decisions(decisions) => Ok(decisions[0]),
        _ => panic!("a home answers Begin with Decisions"),
    }
}

/// Writes the chunk if the home does not have it, while the home commits the pin or the intent; both have to be durable before
/// a delta names the chunk.
async fn settle_decision(
    core: &Rc<Core>,
    home: ShardId,
    pin: PinId,
    decision: Decision,
    stripe: &mut Stripe,
) -> Result<ChunkName, ChunkFailure> {
    let confirmed = core.stages.time(Stage::Confirm, &core.ports, core.calls.home(home, HomeRequest::Confirm(pin)));
    let (Decision::Hit(generation) | Decision::Miss(generation)) = decision;
    stripe.name.generation = generation;
    let name = stripe.name;
    let len_bytes = u64::from(stripe.plaintext_len_bytes);
    let failed = |error| ChunkFailure { error, pinned: Some((name, pin)) };
    match decision {
        Decision::Hit(_) => {
            confirmed.await.map_err(failed)?;
            DataCounters::add(&core.counters.chunks_deduplicated, 1);
            DataCounters::add(&core.counters.chunk_bytes_deduplicated, len_bytes);
        }
        Decision::Miss(_) => {
            let (written, confirmed) = join(write_stripe(core, stripe), confirmed).await;
            written.and(confirmed.map(drop)).map_err(failed)?;
            DataCounters::add(&core.counters.chunks_written, 1);
            DataCounters::add(&core.counters.chunk_bytes_written, len_bytes);
        }
    }
    Ok(name)
}

/// Tells the home, in the background, that no delta will name this.
fn give_up(core: &Rc<Core>, home: ShardId, pinned: Option<(ChunkName, PinId)>) {
    let Some(pinned) = pinned else { return };
    let told = core.clone();
    let task = async move {
        let request = HomeRequest::Settle { complete: Vec::new(), abort: vec![pinned] };
        if let Err(error) = told.calls.home(home, request).await {
            warn!(%home, %error, "a home was not told of a chunk that was begun anew; the next start collects it");
        }
    };
    core.background.finish("give up pin", task);
}

struct Stripe {
    name: ChunkName,
    /// As its pool wants it.
    wanted: StripeShape,
    /// As it is written.
    shape: StripeShape,
    envelope_len_bytes: u32,
    plaintext_len_bytes: u32,
    pool: PoolId,
    /// Padded to the longest that its pool's shape needs.
    envelope: IoBytes,
    /// What is written: made when it is first known that it has to be, and for which shape.
    encoded: Option<(StripeShape, Vec<IoBytes>)>,
    /// Devices that did not take a fragment of it, and all of a node that did not answer for one: it is planned without them for
    /// as long as the others can take it. Others learn only after seconds that a node is silent.
    failed: BTreeSet<DeviceId>,
}

impl Stripe {
    /// The payloads, in the order of their indices.
    fn payloads(&mut self, core: &Core) -> Vec<IoBytes> {
        let fits = self.encoded.take().filter(|(shape, _)| *shape == self.shape);
        let (shape, payloads) = fits.unwrap_or_else(|| (self.shape, encode(core, self)));
        self.encoded = Some((shape, payloads.clone()));
        payloads
    }
}

/// The payloads of a stripe, in the order of their indices.
fn encode(core: &Core, stripe: &Stripe) -> Vec<IoBytes> {
    let (shape, envelope) = (stripe.shape, &stripe.envelope);
    let payload_len = fragment_payload_len(stripe.envelope_len_bytes, shape) as usize;
    if shape.data == 1 {
        return vec![envelope.slice(0..payload_len); shape.width()];
    }
    // I-K1: encoding overwrites all of them.
    let mut parity: Vec<IoBuf> = (0..parity_buffer_count(shape)).map(|_| (core.buffers)(payload_len)).collect();
    core.coder.encode(envelope, shape, &mut parity);
    let data = (0..usize::from(shape.data)).map(|index| {
        let start = index * payload_len;
        envelope.slice(start..start + payload_len)
    });
    data.chain(parity.into_iter().map(IoBuf::freeze)).collect()
}

/// The shape of a stripe that is written now, without devices that failed it; where that could not be acknowledged these are
/// forgiven. A node alone has only drives to lose: there the pool's shape holds, and writes end below its ack width.
fn shape_now(core: &Core, pool: PoolId, wanted: StripeShape, failed: &mut BTreeSet<DeviceId>) -> StripeShape {
    if core.calls.is_alone() {
        return wanted;
    }
    let (devices, racks) = (core.devices.devices(), core.nodes.racks());
    // What failed goes on counting as part of the cluster whose loss is to be survived.
    let spread = core.devices.spread(&devices, pool, core.ports.now());
    let shape_without = |failed: &BTreeSet<DeviceId>| {
        let left: Vec<_> = devices.iter().filter(|device| !failed.contains(&device.id)).cloned().collect();
        let shape = spread.shape_now(wanted, |shape| without::placed(&left, &racks, pool, shape));
        (shape, spread.is_enough(shape, &without::placed(&left, &racks, pool, shape)))
    };
    let (shape, is_enough) = shape_without(failed);
    if is_enough || failed.is_empty() {
        return shape;
    }
    failed.clear();
    shape_without(failed).0
}

/// The devices that may take fragments of a stripe, in placement order, with racks and nodes taking turns (I-D4). Those that are
/// being emptied come last: a stripe gets its full width even so.
fn usable_devices(core: &Core, stripe: &Stripe, devices: &[DeviceStatus]) -> Vec<DeviceId> {
    let candidates: Vec<PlacementCandidate> = devices
        .iter()
        .filter(|device| device.pool == stripe.pool && !stripe.failed.contains(&device.id))
        .map(|device| PlacementCandidate { device: device.id, weight: device.capacity_bytes })
        .collect();
    let order = placement::order(&stripe.name.locator, &candidates);
    let takes = |id: DeviceId| devices.iter().any(|device| device.id == id && device.state.takes_fragments());
    let (racks, held, holders) = (core.nodes.racks(), ByNode::new(), BTreeSet::new());
    let by_turns =
        |chosen| placement::by_turns(chosen, |id| node_of(devices, *id), &racks, (&held, &holders), stripe.shape);
    let mut usable = by_turns(placement::choose(&order, order.len(), takes));
    if usable.len() < stripe.shape.width() {
        let last = core.devices.last_resort(stripe.pool);
        usable.extend(by_turns(placement::choose(&order, order.len(), |id| last.contains(&id))));
    }
    usable
}

fn node_of(devices: &[DeviceStatus], id: DeviceId) -> NodeId {
    devices.iter().find(|device| device.id == id).expect("devices are chosen among those there are").node
}

/// Writes all fragments of a stripe to distinct devices (I-D4). A fragment may be missing only because no usable device
/// is left for it, and only down to what survives the loss of a device and a node ([`crate::spread`]); a full device is no excuse.
///
/// A put that its node did not answer in time counts as failed, and another device takes the fragment; should it have been
/// done all the same, repair frees the second one.
async fn write_stripe(core: &Rc<Core>, stripe: &mut Stripe) -> Result<(), StoreError> {
    let _placement = core.devices.place();
    let devices = core.devices.devices();
    let spread = core.devices.spread(&devices, stripe.pool, core.ports.now());
    let mut usable = usable_devices(core, stripe, &devices);
    let spare = usable.split_off(usable.len().min(stripe.shape.width()));
    let count = |by_node: &mut ByNode, device| *by_node.entry(node_of(&devices, device)).or_default() += 1;
    let mut planned = ByNode::new();
    usable.iter().for_each(|device| count(&mut planned, *device));
    if !spread.survives_a_node(stripe.shape, &planned) {
        // Nothing is written that could not be acknowledged. Since the chunk was begun a node may have fallen silent, or those that
        // it was to do without are needed now.
        let reason = too_few_nodes(stripe, &planned);
        let left_out = stripe.failed.len();
        let shape = shape_now(core, stripe.pool, stripe.wanted, &mut stripe.failed);
        let has_changed = shape != stripe.shape || stripe.failed.len() < left_out;
        return Err(if has_changed { StoreError::Unsettled { reason } } else { StoreError::Unavailable { reason } });
    }
    let since = core.ports.now();
    let payloads = stripe.payloads(core);
    core.stages.ended(Stage::Encode, since, &core.ports);
    let since = core.ports.now();
    let of_stripe = FragmentMeta {
        key: FragmentKey { locator: stripe.name.locator, generation: stripe.name.generation, index: 0 },
        shape: stripe.shape,
        pool: stripe.pool,
        envelope_len_bytes: stripe.envelope_len_bytes,
        payload_len_bytes: payloads[0].len() as u32,
        map_epoch: MAP_EPOCH,
        devices: usable.clone(),
    };
    let put = |index: usize, device: DeviceId| {
        let (payload, mut meta) = (payloads[index].clone(), of_stripe.clone());
        meta.key.index = index as u8;
        let put = core.fragments.put(device, meta, vec![payload]);
        async move { (index, device, put.await) }
    };
    let mut pending: FuturesUnordered<_> =
        usable.iter().enumerate().map(|(index, device)| put(index, *device)).collect();
    let (mut spare, mut by_node) = (spare.into_iter(), ByNode::new());
    let (mut full, mut went_elsewhere) = (None, false);
    while let Some((index, device, result)) = pending.next().await {
        match result {
            Ok(_) => count(&mut by_node, device),
            Err(error) => {
                if error.is_space() {
                    full = Some(error.to_string());
                } else {
                    warn!(%error, "a fragment could not be written; another device takes it");
                    went_elsewhere = true;
                    stripe.failed.extend(failed_with(&error, device, &devices));
                }
                // I-C5: a pool at its critical fill has no device that takes it.
                let is_critical = matches!(error, FragmentError::PoolCritical { .. });
                let next = if is_critical { None } else { spare.find(|device| !stripe.failed.contains(device)) };
                if let Some(device) = next {
                    pending.push(put(index, device));
                }
            }
        }
    }
    core.stages.ended(Stage::Fragments, since, &core.ports);
    let (durable, width) = (by_node.values().sum::<usize>(), stripe.shape.width());
    if let Some(reason) = full.filter(|_| durable < width) {
        return Err(StoreError::Full { reason });
    }
    if !spread.is_enough(stripe.shape, &by_node) {
        let needed = stripe.shape.ack_width();
        let reason = match durable < needed {
            true => format!("{durable} of {width} fragments could be written, {needed} are needed; replace devices"),
            false => too_few_nodes(stripe, &by_node),
        };
        // A node fell silent under it: what is left may take the chunk in another shape.
        return Err(match went_elsewhere && !core.calls.is_alone() {
            true => StoreError::Unsettled { reason },
            false => StoreError::Unavailable { reason },
        });
    }
    if stripe.shape != stripe.wanted {
        DataCounters::add(&core.counters.stripes_as_copies, 1);
    }
    if went_elsewhere {
        core.late_puts.note(stripe.name, stripe.shape, stripe.pool, core.ports.now());
    }
    if durable < width {
        DataCounters::add(&core.counters.stripes_degraded, 1);
        let margin = (durable - usize::from(stripe.shape.data)) as Margin;
        repairer::report(core, stripe.name, margin, RepairCause::Missing);
    }
    Ok(())
}

/// What takes no fragments for now when a put to a device has failed.
fn failed_with(error: &FragmentError, device: DeviceId, devices: &[DeviceStatus]) -> Vec<DeviceId> {
    if !matches!(error, FragmentError::Unanswered { .. }) {
        return vec![device];
    }
    let node = node_of(devices, device);
    devices.iter().filter(|other| other.node == node).map(|other| other.id).collect()
}

fn too_few_nodes(stripe: &Stripe, by_node: &ByNode) -> String {
    let (most, nodes) = (by_node.values().max().unwrap_or(&0), by_node.len());
    let StripeShape { data, parity } = stripe.shape;
    format!(
        "a stripe of {data}+{parity} would have {most} fragments on one of {nodes} nodes and not survive its loss; \
         bring nodes back or add some"
    )
}
