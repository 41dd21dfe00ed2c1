//! What every part of the data path on one core shares, and its counters.

use crate::api::StoreError;
use crate::background::Background;
use crate::calls::Calls;
use crate::chunker::{ChunkFormat, Chunker};
use crate::cluster_fragments::ClusterFragments;
use crate::control_cache::{BELIEF_MAX, ControlCache};
use crate::delta::ChunkName;
use crate::device_board::DeviceBoard;
use crate::hash_queue::HashQueue;
use crate::homes::Homes;
use crate::inline::{InlinePolicy, InlineSettings};
use crate::key_ranges::KeyRange;
use crate::keyring::{Keyring, NodeKeys};
use crate::late_puts::LatePuts;
use crate::latency::{HedgeBudget, Latencies};
use crate::message::{Bucket, ControlRequest, ControlResponse, ShardRequest, ShardResponse};
use crate::nodes::NodeBoard;
use crate::repair::RepairCounters;
use crate::repair_queue::RepairQueue;
use crate::shard_service::CollectionCounters;
use crate::stages::Stages;
use crate::stripe::StripeCoder;
use crate::throttle::Throttle;
use crate::write_budget::WriteBudget;
use kiseki_types::Ports;
use kiseki_types::buf::BufferSource;
use kiseki_types::fragment::FragmentStore;
use kiseki_types::ids::{ShardId, TenantId};
use kiseki_types::runtime::Instant;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;
use zeroize::Zeroizing;

/// Chunk formats whose tables one core keeps.
const CHUNKERS_MAX: usize = 64;

/// Shards that one request is sent on to: each of a chain of splits that this core did not hear of.
pub const MOVES_FOLLOWED_MAX: usize = 32;

/// Counters of the data path on one core.
#[derive(Default)]
pub struct DataCounters {
    /// Chunks written by this core.
    pub chunks_written: Cell<u64>,
    /// Plaintext bytes of those chunks.
    pub chunk_bytes_written: Cell<u64>,
    /// Chunks that were found and not written again.
    pub chunks_deduplicated: Cell<u64>,
    /// Plaintext bytes of those chunks.
    pub chunk_bytes_deduplicated: Cell<u64>,
    /// Stripes acknowledged with a fragment missing because its device is failed: to be completed.
    pub stripes_degraded: Cell<u64>,
    /// Stripes written as copies because the nodes that answered could not take the shape of their pool.
    pub stripes_as_copies: Cell<u64>,
    /// Plaintext bytes handed to readers.
    pub bytes_read: Cell<u64>,
    /// Parts of fragments that were rebuilt from others during a read.
    pub rebuilds: Cell<u64>,
    /// Writes that were abandoned before they were named.
    pub writes_abandoned: Cell<u64>,
    /// Answers of shards that said where keys lie by now.
    pub moves_followed: Cell<u64>,
    /// Reads of further fragments because others were late.
    pub hedged_reads: Cell<u64>,
    /// Parts of fragments that came sooner for it.
    pub hedged_reads_won: Cell<u64>,
    /// Times that a further one was not asked though one was late: the budget was spent, or there was none.
    pub hedged_reads_refused: Cell<u64>,
    /// Reads that went to other fragments because a device was slow.
    pub slow_reads_avoided: Cell<u64>,
}

impl DataCounters {
    /// Adds to a counter.
    pub fn add(counter: &Cell<u64>, amount: u64) {
        counter.set(counter.get() + amount);
    }
}

/// What of the data path is set.
#[derive(Clone, Copy, Debug)]
pub struct CoreSettings {
    /// Time between two closings of pin epochs.
    pub pin_epoch_age: Duration,
    /// How much of small objects lies beside their names.
    pub inline: InlineSettings,
}

/// The data path of one core.
pub struct Core {
    /// Time, chance, tasks.
    pub ports: Ports,
    /// The way to every shard.
    pub calls: Calls,
    /// This node, and the others.
    pub nodes: Rc<NodeBoard>,
    /// The fragments of all nodes.
    pub fragments: Rc<dyn FragmentStore>,
    /// The devices that they lie on, and what is recorded of those.
    pub devices: Rc<DeviceBoard>,
    /// The node's own keys.
    pub keys: Rc<NodeKeys>,
    /// Tenants' keys.
    pub keyring: Keyring,
    /// Buckets and access keys that this core knows.
    pub control_cache: ControlCache,
    /// Where buffers of chunks and parity come from.
    pub buffers: BufferSource,
    /// Memory that writes may hold.
    pub write_budget: WriteBudget,
    /// Hashes chunks.
    pub hash_queue: Rc<HashQueue>,
    /// Encodes and rebuilds.
    pub coder: StripeCoder,
    /// What of small objects lies beside their names.
    pub inline: Rc<InlinePolicy>,
    /// What was done.
    pub counters: DataCounters,
    /// How long each piece of work takes.
    pub stages: Stages,
    /// How long devices and nodes take to answer.
    pub latencies: Rc<Latencies>,
    /// How many reads may be asked for a second time.
    pub hedge_budget: HedgeBudget,
    /// Reads that nobody waits for any more and that have not ended.
    pub late_reads: Cell<usize>,
    /// Holds back warnings of fragments that can't be read.
    pub unreadable: Throttle,
    /// Stripes of this core's homes that are to be repaired.
    pub repairs: Rc<RepairQueue>,
    /// Stripes whose homes are being told that they are not whole.
    pub repair_reports: RefCell<BTreeSet<ChunkName>>,
    /// Stripes that may hold a fragment twice.
    pub(crate) late_puts: LatePuts,
    /// What repair has done.
    pub repair_counters: RepairCounters,
    /// Homes that this core leads.
    pub homes: Rc<Homes>,
    /// What its tenants' shards have done behind the answers.
    pub collection_counters: Rc<CollectionCounters>,
    /// Work behind the answers.
    pub background: Rc<Background>,
    /// How often a writer asks for the pin epoch.
    pub pin_epoch_refresh: Duration,
    chunkers: RefCell<Vec<Rc<Chunker>>>,
}

impl Core {
    /// Puts the data path of a core together.
    #[must_use]
    pub fn new(
        ports: Ports,
        calls: Calls,
        nodes: Rc<NodeBoard>,
        fragments: &ClusterFragments,
        buffers: BufferSource,
        keys: Rc<NodeKeys>,
        settings: CoreSettings,
    ) -> Rc<Core> {
        let latencies = fragments.latencies();
        let fragments: Rc<dyn FragmentStore> = Rc::new(fragments.clone());
        let keyring = Keyring::new(ports.clone(), calls.clone());
        let (coder, counters) = (StripeCoder::new(), DataCounters::default());
        Rc::new(Core {
            background: Background::new(ports.clone()),
            homes: Rc::default(),
            collection_counters: Rc::default(),
            devices: DeviceBoard::new(fragments.clone(), nodes.clone()),
            control_cache: ControlCache::default(),
            latencies,
            hedge_budget: HedgeBudget::default(),
            stages: Stages::default(),
            late_reads: Cell::new(0),
            unreadable: Throttle::default(),
            repairs: Rc::default(),
            repair_reports: RefCell::default(),
            late_puts: LatePuts::default(),
            repair_counters: RepairCounters::default(),
            write_budget: WriteBudget::new(ports.clone()),
            hash_queue: HashQueue::new(ports.clone()),
            ports,
            calls,
            nodes,
            fragments,
            buffers,
            keys,
            keyring,
            coder,
            inline: Rc::new(InlinePolicy::new(settings.inline)),
            counters,
            pin_epoch_refresh: settings.pin_epoch_age / 10,
            chunkers: RefCell::default(),
        })
    }

    /// The chunker of a format; its tables are made once.
    pub fn chunker(&self, format: &ChunkFormat) -> Result<Rc<Chunker>, StoreError> {
        let mut chunkers = self.chunkers.borrow_mut();
        if let Some(chunker) = chunkers.iter().find(|chunker| chunker.format() == format) {
            return Ok(chunker.clone());
        }
        let chunker = Chunker::open(*format);
        let chunker = Rc::new(chunker.map_err(|error| StoreError::Damaged { reason: error.to_string() })?);
        if chunkers.len() < CHUNKERS_MAX {
            chunkers.push(chunker.clone());
        }
        Ok(chunker)
    }

    /// What was asked for before this is not believed any more: with other nodes in the cluster, one that can't be told of a
    /// change must have stopped believing by itself.
    fn believed_since(&self) -> Instant {
        match self.nodes.is_alone() {
            true => Instant(0),
            false => self.ports.now() - BELIEF_MAX,
        }
    }

    /// A tenant's bucket.
    pub async fn bucket(&self, tenant: TenantId, name: &str) -> Result<Bucket, StoreError> {
        let asked = match self.control_cache.bucket(tenant, name, self.believed_since()) {
            Ok(bucket) => return Ok(bucket),
            Err(asked) => asked,
        };
        let asked_at = self.ports.now();
        match self.calls.control(ControlRequest::Bucket { tenant, name: name.to_owned() }).await? {
            ControlResponse::Bucket(bucket) => {
                self.control_cache.keep_bucket(asked, tenant, name, &bucket, asked_at);
                Ok(*bucket)
            }
            _ => panic!("the control shard answers Bucket with Bucket"),
        }
    }

    /// Asks the shard that holds a key of a bucket, wherever it has moved to; which that is.
    ///
    /// - `request`: made once for each shard that is asked.
    pub async fn ask_holder(
        &self,
        bucket: &mut Bucket,
        key: &str,
        request: impl Fn() -> ShardRequest,
    ) -> Result<(ShardId, ShardResponse), StoreError> {
        let mut shard = bucket.ranges.holder(key, bucket.shard).shard;
        for _ in 0..MOVES_FOLLOWED_MAX {
            match self.calls.shard(shard, request()).await {
                Err(StoreError::Moved(range)) => {
                    self.learn(bucket, &range);
                    shard = range.shard;
                }
                answer => return answer.map(|answer| (shard, answer)),
            }
        }
        Err(StoreError::Unavailable { reason: "keys of the bucket are moving; try again".to_owned() })
    }

    /// A shard has said where some keys of a bucket lie.
    pub fn learn(&self, bucket: &mut Bucket, range: &KeyRange) {
        bucket.ranges.learn(range);
        self.control_cache.learn(bucket.tenant, &bucket.info.name, range);
        self.counters.moves_followed.set(self.counters.moves_followed.get() + 1);
    }

    /// Whose an access key is, and its secret.
    pub async fn access_key(&self, id: &str) -> Result<Option<(TenantId, Zeroizing<String>)>, StoreError> {
        let asked = match self.control_cache.access_key(id, self.believed_since()) {
            Ok(entry) => return Ok(Some(entry)),
            Err(asked) => asked,
        };
        let asked_at = self.ports.now();
        match self.calls.control(ControlRequest::AccessKey(id.to_owned())).await? {
            ControlResponse::AccessKey(found) => {
                if let Some(entry) = &found {
                    self.control_cache.keep_access_key(asked, id, entry, asked_at);
                }
                Ok(found)
            }
            _ => panic!("the control shard answers AccessKey with AccessKey"),
        }
    }
}
