//! What cores of a node ask each other about fragments.

use crate::index::InsertMode;
use crate::space::PutPurpose;
use bytes::Bytes;
use kiseki_types::fragment::{FragmentError, FragmentKey, FragmentMeta, StoredFragment};
use kiseki_types::units::Extent;
use kiseki_types::{DeviceId, Generation, Locator};

/// A request to the core that holds a lane.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LaneRequest {
    /// The index lane takes up a fragment that is durable on its device.
    IndexInsert {
        /// The fragment.
        fragment: StoredFragment,
        /// Whether a journal replay found it: then it is kept beside another one of its generation on the device.
        is_recovered: bool,
    },
    /// The index lane forgets a fragment, if its row names that extent.
    IndexRemove {
        /// The fragment.
        key: FragmentKey,
        /// Where it was.
        extent: Extent,
    },
    /// The fragments of one generation.
    IndexLookup {
        /// The chunk.
        locator: Locator,
        /// Its generation.
        generation: Generation,
    },
    /// The index lane makes durable what it was told so far.
    IndexCheckpoint,
    /// The core of the lane writes a fragment for one whose own lanes are full on the device.
    Put {
        /// The device.
        device: DeviceId,
        /// What it is.
        meta: FragmentMeta,
        /// Its payload, copied: it happens only when space is short.
        payload: Bytes,
        /// For whom.
        purpose: PutPurpose,
    },
    /// The lane frees a fragment that it allocated.
    ReleaseExtent {
        /// The fragment.
        fragment: StoredFragment,
    },
    /// The core of the lane waits until its reads of a released extent have ended.
    AwaitReads {
        /// The extent.
        extent: Extent,
    },
    /// (locator, generation) pairs in the lane's index slice behind `after`.
    ListFrom {
        /// Where the last listing ended.
        after: Option<(Locator, Generation)>,
        /// At most so many.
        limit: usize,
    },
    /// Another core saw the device fail (I-D6).
    DeviceFailed {
        /// The device.
        device: DeviceId,
        /// What failed.
        reason: String,
    },
}

/// The answer to a [`LaneRequest`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LaneResponse {
    /// Done.
    Done,
    /// Fragments found.
    Found(Vec<StoredFragment>),
    /// The fragment is durable there.
    Stored(Extent),
    /// Pairs found.
    Pairs(Vec<(Locator, Generation)>),
    /// Refused, or not possible.
    Failed(FragmentError),
}

impl LaneRequest {
    pub(crate) fn insert(fragment: StoredFragment, mode: InsertMode) -> LaneRequest {
        LaneRequest::IndexInsert { fragment, is_recovered: mode == InsertMode::Recovered }
    }
}
