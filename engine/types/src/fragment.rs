//! The port between the engine (which knows envelopes) and the devices room (which knows extents): fragments.

use crate::buf::IoBytes;
use crate::ids::{DeviceId, Generation, Locator, MapEpoch, NodeId, PoolId};
use crate::runtime::LocalBoxFuture;
use crate::units::{BlockIndex, Extent};
use std::ops::Range;
use thiserror::Error;

/// Which fragment of which stripe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FragmentKey {
    /// The chunk.
    pub locator: Locator,
    /// Which sealing and encoding of it.
    pub generation: Generation,
    /// Index in the stripe: data fragments first, then parity. With copies every index holds the whole envelope.
    pub index: u8,
}

/// How a stripe is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StripeShape {
    /// Data fragments; 1 means copies.
    pub data: u8,
    /// Parity fragments, or further copies.
    pub parity: u8,
}

impl FragmentError {
    /// Whether only space was missing.
    #[must_use]
    pub fn is_space(&self) -> bool {
        matches!(self, FragmentError::Full { .. } | FragmentError::PoolCritical { .. })
    }
}

impl StripeShape {
    /// Fragments in all.
    #[must_use]
    pub fn width(&self) -> usize {
        usize::from(self.data) + usize::from(self.parity)
    }
    /// Fewest durable fragments that still survive the loss of any one device: the ack width on one node. What several
    /// nodes want beyond it depends on where the fragments lie.
    #[must_use]
    pub fn ack_width(&self) -> usize {
        (usize::from(self.data) + 1).min(self.width())
    }
    /// Copies that survive the loss of as many devices.
    #[must_use]
    pub fn as_copies(&self) -> StripeShape {
        StripeShape { data: 1, parity: self.parity }
    }
}

/// What a fragment's header says beside its key; everything that a device needs to explain itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FragmentMeta {
    /// Which fragment.
    pub key: FragmentKey,
    /// Shape of its stripe.
    pub shape: StripeShape,
    /// The pool that it was written for.
    pub pool: PoolId,
    /// Bytes of the envelope (all tags included, no padding).
    pub envelope_len_bytes: u32,
    /// Bytes of this fragment's payload, a multiple of 4096; the same for every fragment of a stripe.
    pub payload_len_bytes: u32,
    /// Epoch of the device map that placed it.
    pub map_epoch: MapEpoch,
    /// The stripe's devices by index: a hint only.
    pub devices: Vec<DeviceId>,
}

/// A fragment and where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredFragment {
    /// What its header says; the hint of devices may be empty here.
    pub meta: FragmentMeta,
    /// Where: header and payload together.
    pub extent: Extent,
}

/// What is known of where the fragments of a generation lie.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Located {
    /// Those that were found.
    pub found: Vec<StoredFragment>,
    /// Nodes that may hold others and did not answer: while there are any, what was not found may be there all the same.
    pub unanswered: Vec<NodeId>,
}

impl Located {
    /// Whether nobody can hold others, so that what was not found is nowhere.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.unanswered.is_empty()
    }

    /// All fragments that there are; [`FragmentError::Unknown`] when that is not known.
    pub fn all(self) -> Result<Vec<StoredFragment>, FragmentError> {
        match self.unanswered.first() {
            None => Ok(self.found),
            Some(node) => Err(FragmentError::Unknown {
                reason: format!("{node} does not say which fragments it holds; bring it back, or remove it for good"),
            }),
        }
    }
}

/// State of a device (I-D2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeviceState {
    /// Takes reads and writes.
    Healthy,
    /// Takes reads and writes, and something about it is not as it should be: worn, and an operator keeps it.
    Degraded,
    /// Not at its path, or its node does not answer: neither read nor written; it may come back.
    Unreachable,
    /// Read, and written only where a stripe would not get its full width otherwise; what it holds moves to others.
    Evacuating,
    /// Fenced after an error, or damaged: neither read nor written until it is reopened and checked (I-D6).
    Failed,
    /// Not part of the node any more, for good: what it may still hold counts as gone.
    Removed,
}

impl DeviceState {
    /// All of them.
    pub const ALL: [DeviceState; 6] = [
        DeviceState::Healthy,
        DeviceState::Degraded,
        DeviceState::Unreachable,
        DeviceState::Evacuating,
        DeviceState::Failed,
        DeviceState::Removed,
    ];

    /// Whether fragments on it can be read, and so count as good.
    #[must_use]
    pub fn is_readable(self) -> bool {
        matches!(self, DeviceState::Healthy | DeviceState::Degraded | DeviceState::Evacuating)
    }

    /// Whether new fragments are placed on it.
    #[must_use]
    pub fn takes_fragments(self) -> bool {
        matches!(self, DeviceState::Healthy | DeviceState::Degraded)
    }

    /// The name in reports and messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            DeviceState::Healthy => "healthy",
            DeviceState::Degraded => "degraded",
            DeviceState::Unreachable => "unreachable",
            DeviceState::Evacuating => "evacuating",
            DeviceState::Failed => "failed",
            DeviceState::Removed => "removed",
        }
    }

    /// The state of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<DeviceState> {
        DeviceState::ALL.into_iter().find(|state| state.name() == name)
    }
}

/// A device as placement sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceStatus {
    /// Which.
    pub id: DeviceId,
    /// The node that has it.
    pub node: NodeId,
    /// Its path, for messages.
    pub name: String,
    /// Its pool.
    pub pool: PoolId,
    /// Bytes that fragments can use in all: its weight in placement.
    pub capacity_bytes: u64,
    /// Bytes that are free, on all lanes of the core that says so; of a device of another node, on all lanes of the cores
    /// that have said so.
    pub free_bytes: u64,
    /// Bytes of all zones of those lanes; 0 where that is not said.
    pub lanes_bytes: u64,
    /// Its state.
    pub state: DeviceState,
    /// Reads that it failed since this core opened it.
    pub read_errors: u64,
}

impl DeviceStatus {
    /// How full the device is in thousandths, as far as its lanes were heard of.
    #[must_use]
    pub fn fill_permille(&self) -> Option<u64> {
        let used = self.lanes_bytes.saturating_sub(self.free_bytes);
        let permille = (u128::from(used) * 1000).checked_div(u128::from(self.lanes_bytes))?;
        u64::try_from(permille).ok()
    }
}

/// How much of a device is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceUse {
    /// Extents that hold fragments, those being written and those just released included.
    pub fragments: u64,
    /// Bytes of those.
    pub bytes: u64,
}

/// Why a fragment was not written or read.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum FragmentError {
    /// No extent is free on the device.
    #[error("device {device} is full: {needed_bytes} bytes needed; add a device or delete data")]
    Full {
        /// The device.
        device: DeviceId,
        /// Bytes asked for.
        needed_bytes: u64,
    },
    /// The pool is at its critical fill: what is left is for repair and evacuation (I-C5).
    #[error("pool {pool} is at its critical fill of {critical_percent} %; add a device or delete data")]
    PoolCritical {
        /// The pool.
        pool: PoolId,
        /// Where it is.
        critical_percent: u8,
    },
    /// The device is not there, fenced, or failed this operation (which fences it, I-D6).
    #[error("device {device} can't be used: {reason}")]
    DeviceFailed {
        /// The device.
        device: DeviceId,
        /// Why.
        reason: String,
    },
    /// The device's node did not answer: whether it was done is unknown, and may be done later still.
    #[error("the node of device {device} has not answered: {reason}")]
    Unanswered {
        /// The device.
        device: DeviceId,
        /// What happened.
        reason: String,
    },
    /// The bytes on the device are not the fragment asked for; it has to be rebuilt (I-C9).
    #[error("fragment {index} of {locator} at {extent} fails its check; it will be rebuilt")]
    Corrupt {
        /// The chunk.
        locator: Locator,
        /// Index in the stripe.
        index: u8,
        /// Where it was read.
        extent: Extent,
    },
    /// The device already holds a fragment of this stripe (I-D4).
    #[error("device {device} already holds a fragment of generation {generation} of {locator}")]
    SecondOfStripe {
        /// The device.
        device: DeviceId,
        /// The chunk.
        locator: Locator,
        /// The generation.
        generation: Generation,
    },
    /// The index could not be read or a lane does not answer: present or absent is unknown.
    #[error("the fragment index can't answer: {reason}")]
    Unknown {
        /// Why.
        reason: String,
    },
}

/// The fragments of the cluster, or of one node alone, as one core uses them.
///
/// To be correct:
/// - `put` answers Ok only when header, payload and journal record are durable on the device, and the index (whichever
///   lane holds it) answers for the fragment. Waiters on one device share flushes.
/// - `locate` lists all fragments of a generation, on devices of any state, and names who did not answer; an error means
///   "unknown", an empty list that names nobody means "none". What the device's node does not answer in time is
///   [`FragmentError::Unanswered`]: a put that ends so may have put the fragment, or do so later. A put for a node that is known to
///   be silent is never sent and ends as [`FragmentError::DeviceFailed`]. One that its node refuses as a whole (it is stopping)
///   ends as `Unanswered` for a client's data, since none of its devices takes any, and as `DeviceFailed` for upkeep.
/// - `use_of`, `held_on`, `locate_here` and `list` are about this node's own devices: each node looks after what those hold.
/// - `read` returns exactly the payload bytes asked for, each of them checked against the header's checksums.
/// - `release` answers when the release is durable; the extent is reused only then and after its reads have ended. A
///   fragment that is not there is no error.
pub trait FragmentStore {
    /// All devices, sorted by id.
    fn devices(&self) -> Vec<DeviceStatus>;
    /// Whether a device is this node's own, so that reads of it need no link.
    fn is_here(&self, _device: DeviceId) -> bool {
        true
    }
    /// Writes a fragment of a client's new data. `payload` is the concatenation of the parts, `meta.payload_len_bytes` in
    /// all. Refused when the pool is at its critical fill (I-C5).
    fn put(
        &self,
        device: DeviceId,
        meta: FragmentMeta,
        payload: Vec<IoBytes>,
    ) -> LocalBoxFuture<'static, Result<Extent, FragmentError>>;
    /// The same for repair and evacuation, which may use what clients must leave alone (I-C5).
    fn put_for_upkeep(
        &self,
        device: DeviceId,
        meta: FragmentMeta,
        payload: Vec<IoBytes>,
    ) -> LocalBoxFuture<'static, Result<Extent, FragmentError>>;
    /// Fragments of one generation.
    fn locate(
        &self,
        locator: Locator,
        generation: Generation,
    ) -> LocalBoxFuture<'static, Result<Located, FragmentError>>;
    /// The same for a read: where enough fragments for it are found, who is late to answer is not waited for, and counts as
    /// one that has not answered.
    fn locate_soon(
        &self,
        locator: Locator,
        generation: Generation,
    ) -> LocalBoxFuture<'static, Result<Located, FragmentError>> {
        self.locate(locator, generation)
    }
    /// Those of them that this node's own index lists.
    fn locate_here(
        &self,
        locator: Locator,
        generation: Generation,
    ) -> LocalBoxFuture<'static, Result<Vec<StoredFragment>, FragmentError>> {
        let located = self.locate(locator, generation);
        Box::pin(async move { located.await?.all() })
    }
    /// Reads part of a payload: `range` in payload bytes, any alignment.
    fn read(
        &self,
        fragment: &StoredFragment,
        range: Range<u32>,
    ) -> LocalBoxFuture<'static, Result<IoBytes, FragmentError>>;
    /// Frees a fragment.
    fn release(&self, fragment: &StoredFragment) -> LocalBoxFuture<'static, Result<(), FragmentError>>;
    /// What this core's lanes hold on a device: nothing when another node has it; `None` when that is not known, since
    /// the device is not open.
    fn use_of(&self, device: DeviceId) -> Option<DeviceUse>;
    /// The fragments that this core's lanes hold on a device and whose puts have ended, in the order of their first
    /// blocks, behind `after`, at most `limit`: for whoever empties it.
    fn held_on(
        &self,
        device: DeviceId,
        after: Option<BlockIndex>,
        limit: usize,
    ) -> LocalBoxFuture<'static, Result<Vec<StoredFragment>, FragmentError>>;
    /// Takes a fragment out of the index whose device is gone for good. Nothing is written to the device.
    fn forget(&self, fragment: &StoredFragment) -> LocalBoxFuture<'static, Result<(), FragmentError>>;
    /// All (locator, generation) pairs from `after` on in the index slices of this core, at most `limit`: for
    /// collection and scrub.
    fn list(
        &self,
        after: Option<(Locator, Generation)>,
        limit: usize,
    ) -> LocalBoxFuture<'static, Result<Vec<(Locator, Generation)>, FragmentError>>;
}
