//! What is known of a node's content: a register per key, the uploads in progress, and what contradicts them.

use crate::content::Content;
use crate::register::{Bound, Register, Tick, Value, WriteId};
use kiseki_engine::api::StoreError;
use kiseki_simulator::CutSwitch;
use kiseki_types::ids::UploadId;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Buckets of a run.
pub const BUCKETS: [&str; 2] = ["bucket-0", "bucket-1"];

/// Keys of each bucket: flat ones, nested ones, and the ones that a file system would not have.
pub const KEYS: [&str; 22] = [
    "a",
    "a/",
    "a/b",
    "a//b",
    "a/b/c",
    "a-b",
    ".",
    "..",
    "d0/k0",
    "d0/k1",
    "d0/k2",
    "d0/e/k0",
    "d0/e/k1",
    "d1/k0",
    "d1/k1",
    "d1/e/f/g/k",
    "k0",
    "k1",
    "k2",
    "k3",
    "ä/ö",
    "zz",
];

/// Buckets that come and go.
pub const SCRATCH_BUCKETS: [&str; 3] = ["scratch-0", "scratch-1", "scratch-2"];

/// The object property that carries the number of its write.
pub const WRITE_ATTRIBUTE: &str = "sim-write";

/// Contradictions that a report keeps; more say nothing new.
const VIOLATIONS_MAX: usize = 12;

/// One key of one bucket, by index into [`BUCKETS`] and [`KEYS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Index of the bucket.
    pub bucket: usize,
    /// Index of the key.
    pub key: usize,
}

impl Place {
    /// Name of the bucket.
    #[must_use]
    pub fn bucket(self) -> &'static str {
        BUCKETS[self.bucket]
    }

    /// The key.
    #[must_use]
    pub fn key(self) -> &'static str {
        KEYS[self.key]
    }

    /// Every place.
    pub fn all() -> impl Iterator<Item = Place> {
        (0..BUCKETS.len()).flat_map(|bucket| (0..KEYS.len()).map(move |key| Place { bucket, key }))
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.bucket(), self.key())
    }
}

/// What an upload is busy with; only one client at a time works on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UploadState {
    /// Nobody works on it.
    Idle,
    /// A part is being written.
    Part,
    /// It is being completed, by this write.
    Completing(WriteId),
    /// It is being given up.
    Aborting,
    /// Completed or given up, acknowledged.
    Ended,
    /// The last request on it got no answer.
    Unknown,
}

/// A multipart upload that was begun, acknowledged.
#[derive(Clone, Debug)]
pub struct Upload {
    /// Its id.
    pub upload: UploadId,
    /// Where it will lie.
    pub place: Place,
    /// What goes on.
    pub state: UploadState,
    /// Per part number what it may be; a part of which any version was acknowledged is there.
    pub parts: BTreeMap<u16, Vec<PartVersion>>,
}

/// What a part of an upload may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartVersion {
    /// Its ETag, different for each version.
    pub etag: String,
    /// Its bytes.
    pub content: Content,
    /// Whether it was acknowledged, or seen after a cut.
    pub is_acknowledged: bool,
}

/// Everything that clients and checks share.
#[derive(Debug)]
pub struct Model {
    /// The power of the node's media: what a client sees in the very poll that met the cut proves nothing.
    switch: Arc<CutSwitch>,
    now: Tick,
    next_write: WriteId,
    /// Keys that were ever written.
    pub registers: BTreeMap<Place, Register>,
    /// Buckets that come and go.
    pub scratch: BTreeMap<usize, Register>,
    /// Uploads that were begun.
    pub uploads: Vec<Upload>,
    /// What is wrong.
    pub violations: Vec<String>,
    /// Operations begun.
    pub begun: u64,
    /// Writes acknowledged.
    pub acknowledged: u64,
}

impl Model {
    /// Nothing is known of a node yet.
    #[must_use]
    pub fn new(switch: Arc<CutSwitch>) -> Model {
        Model {
            switch,
            now: 0,
            next_write: 0,
            registers: BTreeMap::new(),
            scratch: BTreeMap::new(),
            uploads: Vec::new(),
            violations: Vec::new(),
            begun: 0,
            acknowledged: 0,
        }
    }

    /// The next point in logical time.
    pub fn tick(&mut self) -> Tick {
        self.now += 1;
        self.now
    }

    /// A number for a new write.
    pub fn new_id(&mut self) -> WriteId {
        self.next_write += 1;
        self.next_write
    }

    /// The register of a place.
    pub fn register(&mut self, place: Place) -> &mut Register {
        self.registers.entry(place).or_default()
    }

    /// A write to a place begins.
    pub fn begin(&mut self, place: Place, value: Value, bound: Bound) -> (WriteId, Tick) {
        let (id, now) = (self.new_id(), self.tick());
        self.register(place).begin(id, value, bound, now);
        (id, now)
    }

    /// A write was acknowledged; returns the time of that.
    pub fn acknowledge(&mut self, place: Place, id: WriteId) -> Tick {
        self.acknowledged += 1;
        let now = self.tick();
        if let Some(wrong) = self.register(place).happened(id, now) {
            self.violation(format!("{place}: {wrong}"));
        }
        now
    }

    /// A write failed: either it never happens, or nobody knows.
    pub fn fail(&mut self, place: Place, id: WriteId, error: &StoreError) {
        // Without power an error says nothing: the write may be on the media all the same.
        if is_final(error) && !self.switch.is_cut() {
            self.register(place).refused(id);
        }
    }

    /// [`Model::fail`] for a bucket that comes and goes.
    pub fn fail_bucket(&mut self, index: usize, id: WriteId, error: &StoreError) {
        if is_final(error) && !self.switch.is_cut() {
            self.scratch.entry(index).or_default().refused(id);
        }
    }

    /// A request failed in a way that nothing explains.
    pub fn unexplained(&mut self, what: &str, error: &StoreError) {
        self.violation(format!("{what} failed though nothing is wrong: {error}"));
    }

    /// The run is over: what is reported from now on counts, whatever the media's power.
    pub fn restore_power(&mut self) {
        self.switch = Arc::default();
    }

    /// Something contradicts the model.
    pub fn violation(&mut self, text: String) {
        if self.violations.len() < VIOLATIONS_MAX && !self.switch.is_cut() {
            self.violations.push(text);
        }
    }
}

/// Whether an error (met while the power was on) says that the request did not happen and never will.
#[must_use]
pub fn is_final(error: &StoreError) -> bool {
    !matches!(error, StoreError::Unavailable { .. } | StoreError::Unsettled { .. } | StoreError::Damaged { .. })
}
