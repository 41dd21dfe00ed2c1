//! Requests between cores: each goes to the core that holds a shard, on whichever node leads it. Between nodes they have a wire format.

use crate::api::{
    Attributes, BucketInfo, CompletePart, Condition, EtagMode, ListPage, ListRequest, ObjectInfo, PartInfo, StoreError,
    UploadInfo,
};
use crate::chunker::ChunkFormat;
use crate::composition::{FileEntry, Page, PageReference, PartEntry};
use crate::delta::ChunkName;
use crate::device_record::{DeviceRecord, DeviceUpdate};
use crate::evacuation::EvacuationAnswer;
use crate::holdings::Holdings;
use crate::inline_message::{InlineRequest, InlineView};
use crate::key_ranges::KeyRanges;
use crate::metadata_room::MetadataRoom;
use crate::repair_queue::{Margin, RepairCause};
use crate::request_log::{Mark, RequestStamp};
use crate::split_message::{ShardMapAnswer, ShardMapRequest, SplitAnswer, SplitRequest};
use crate::without::{Leaving, Without};
use kiseki_types::fragment::{DeviceUse, StripeShape};
use kiseki_types::group::VoterId;
use kiseki_types::ids::{
    DeviceId, DirId, Generation, LaneId, Locator, MasterEpoch, NamespaceId, NodeId, PageId, PinEpoch, PoolId, ShardId,
    TenantId, UploadId,
};
use kiseki_types::secret::SecretKey;
use zeroize::Zeroizing;

/// One call to a shard.
pub struct EngineRequest {
    /// Which shard; it decides the lane and so the core.
    pub shard: ShardId,
    /// What is asked.
    pub body: RequestBody,
    /// What makes one request of this and of whatever else asks the same, where a change may be asked again.
    pub stamp: Option<RequestStamp>,
}

/// What is asked of a shard.
pub enum RequestBody {
    /// Of the control shard.
    Control(ControlRequest),
    /// Of a home.
    Home(HomeRequest),
    /// Of a tenant's shard.
    Shard(Box<ShardRequest>),
    /// Of whoever holds the lane: open a tenant's shard.
    Open(OpenShard),
    /// Of the core of the lane.
    Core(CoreRequest),
    /// Of all cores of the node that gets it.
    Node(CoreRequest),
}

/// What is asked of a core.
#[derive(Clone)]
#[cfg_attr(test, derive(Debug))]
pub enum CoreRequest {
    /// Forget what you remember of the control shard.
    Forget,
    /// Act on what is recorded of the devices from now on.
    Devices {
        /// Which change of the records this is.
        version: u64,
        /// All of them.
        records: Vec<DeviceRecord>,
    },
    /// What do you know of a device that is to be removed?
    LookAtDevice(DeviceId, Closing),
    /// Act on what is recorded of the nodes from now on.
    Nodes {
        /// Which change of the records this is.
        version: u64,
        /// All of them.
        entries: Vec<NodeEntry>,
    },
    /// Have a replica of the request's shard, as a learner where there is none yet.
    Host,
    /// What would be missing without this node, as far as you know: its own cores know its fragments, leaders know who has votes.
    Holdings(NodeId),
    /// Would everything that you know of go on if this node left now?
    Without(Leaving),
    /// What have your metadata directories room for?
    MetadataRoom,
}

/// What the control shard records of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeEntry {
    /// Its number.
    pub node: NodeId,
    /// What it is to the cluster.
    pub state: NodeState,
    /// Where it was last: host and port of its links, the best first.
    pub addresses: Vec<String>,
    /// Its lanes, fixed when it was formatted; 0 while it is only invited.
    pub lanes: u16,
    /// Cores that it had when it started last.
    pub cores: u16,
    /// The version of the program that it started last.
    pub version: String,
    /// Since when it is in this state, milliseconds since 1970.
    pub since_unix_ms: u64,
    /// The rack that it said it is in ([`crate::racks`]); empty: in none.
    pub rack: String,
}

impl NodeEntry {
    /// A node that has a number and has said nothing yet.
    #[must_use]
    pub fn invited(node: NodeId, since_unix_ms: u64) -> NodeEntry {
        NodeEntry {
            node,
            state: NodeState::Invited,
            addresses: Vec::new(),
            lanes: 0,
            cores: 0,
            version: String::new(),
            since_unix_ms,
            rack: String::new(),
        }
    }
}

/// What a node is to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeState {
    /// It has a number and has not joined yet.
    Invited,
    /// It holds replicas and fragments.
    Active,
    /// What it holds is to move to others.
    Draining,
    /// It left for good: whoever comes in its name is refused.
    Removed,
}

impl NodeState {
    /// Whether it may hold replicas and fragments.
    #[must_use]
    pub fn is_member(self) -> bool {
        matches!(self, NodeState::Active | NodeState::Draining)
    }

    /// The name in reports and messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            NodeState::Invited => "invited",
            NodeState::Active => "active",
            NodeState::Draining => "draining",
            NodeState::Removed => "removed",
        }
    }
}

/// What a shard answers.
pub type EngineResponse = Result<ResponseBody, StoreError>;

/// An answer, by kind of request.
pub enum ResponseBody {
    /// Done, nothing to say.
    Done,
    /// From the control shard, and how far it has counted its requests.
    Control(ControlResponse, Mark),
    /// From a home.
    Home(HomeResponse),
    /// From a tenant's shard, and how far it has counted its requests.
    Shard(ShardResponse, Mark),
    /// From a core, or from all of a node.
    Looks(Vec<DeviceLook>),
    /// To `Host`: the voter that the replica here is.
    Hosted(VoterId),
    /// To `Holdings`: of a core, or of all of a node.
    Holdings(Holdings),
    /// To `Without`: of a core, or of all of a node.
    Without(Box<Without>),
    /// To `MetadataRoom`: of a core, or of all of a node.
    MetadataRoom(MetadataRoom),
    /// The shard is not led here; nothing happened.
    NotHere {
        /// The node to ask, as far as it is known.
        leader: Option<NodeId>,
        /// What was asked, given back within a node.
        request: Option<Box<RequestBody>>,
    },
}

/// What a look at a device does to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// Nothing is placed on it any more.
    Close,
    /// It is as its state says again.
    Open,
    /// Nothing.
    AsItIs,
}

/// What a core knows of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceLook {
    /// The node that answers.
    pub node: NodeId,
    /// The first lane of the core that answers: a core may be asked through each of its lanes.
    pub core: LaneId,
    /// What the core's lanes hold on it; `None` when that is not known.
    pub used: Option<DeviceUse>,
    /// Writes that began before the last change and may still place something there.
    pub older_placements: usize,
    /// Stripes of the core's homes that are not whole; `None` while it has not looked at all with today's devices.
    pub open_stripes: Option<usize>,
}

/// Opens a tenant's shard on the core that holds its lane.
pub struct OpenShard {
    /// Whose.
    pub tenant: TenantId,
    /// Metadata key of the shard, unwrapped.
    pub metadata_key: SecretKey,
    /// Whether the shard is being made: only then may it start empty (I-L10).
    pub create: bool,
}

/// Names a chunk's write attempt at its home; chosen at random by the writer.
pub type PinId = [u8; 16];

/// One chunk that a writer is about to reference.
#[derive(Clone, Debug)]
pub struct BeginChunk {
    /// The chunk.
    pub locator: Locator,
    /// Bytes of its envelope.
    pub envelope_len_bytes: u32,
    /// This attempt.
    pub pin: PinId,
}

/// What a home is asked.
#[derive(Clone)]
#[cfg_attr(test, derive(Debug))]
pub enum HomeRequest {
    /// Looks chunks up and pins what is there; notes an intent for what is not. Answered when it is decided, so that the
    /// writer writes while the home commits; no delta may name the chunks before [`HomeRequest::Confirm`] is answered.
    Begin {
        /// The shard whose delta will name them.
        shard: ShardId,
        /// Its pin epoch.
        pin_epoch: PinEpoch,
        /// Pool that the data goes to; hits of other pools do not count.
        pool: PoolId,
        /// Shape of new stripes, of chunks that are long enough for it.
        shape: StripeShape,
        /// Master epoch that the writer seals under; hits of other epochs do not count, since their DEKs differ.
        master_epoch: MasterEpoch,
        /// The chunks.
        chunks: Vec<BeginChunk>,
    },
    /// Answered when the pin or intent is committed.
    Confirm(PinId),
    /// Ends pins and intents.
    Settle {
        /// Their delta is committed: the generation is complete and counts for hits.
        complete: Vec<(ChunkName, PinId)>,
        /// Their delta will never come.
        abort: Vec<(ChunkName, PinId)>,
    },
    /// A shard names a generation no more: collect it if nobody does.
    Collect(ChunkName),
    /// Which of these generations does the home not know, so that fragments of them are orphans?
    Unknown(Vec<ChunkName>),
    /// Somebody met a stripe that is not whole: queue it for repair.
    Repair {
        /// Which.
        name: ChunkName,
        /// How many more fragments it may lose, as far as the caller knows.
        margin: Margin,
        /// What is wrong.
        cause: RepairCause,
    },
    /// These have a fragment on a device that is to be emptied: queue them to be moved.
    Evacuate(Vec<ChunkName>),
    /// This shard may name these from now on too: it is asked before they are freed. Answered by those of them that nothing may
    /// name any more.
    Adopt {
        /// The shard.
        shard: ShardId,
        /// Generations that somebody names or has pinned.
        names: Vec<ChunkName>,
    },
}

/// What a home says of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is there, durable and readable.
    Hit(Generation),
    /// Write it under this generation.
    Miss(Generation),
}

/// How a collection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collected {
    /// Its space is free.
    Freed,
    /// Somebody still names it: it stays, and the asking shard need not ask again.
    Named,
    /// A writer is about to name it, or a shard or device does not answer: ask again later.
    Busy,
}

/// What a home answers.
#[cfg_attr(test, derive(Debug))]
pub enum HomeResponse {
    /// To `Begin`, in order; none to requests that only want to be heard.
    Decisions(Vec<Decision>),
    /// To `Collect`.
    Collected(Collected),
    /// To `Unknown` and `Adopt`.
    Unknown(Vec<ChunkName>),
    /// To `Evacuate`.
    Evacuating(EvacuationAnswer),
}

/// Where an object lies: its namespace's root, and its key.
#[derive(Clone, Debug)]
pub struct ObjectPath {
    /// The namespace.
    pub namespace: NamespaceId,
    /// Root directory of the namespace.
    pub root: DirId,
    /// The key.
    pub key: String,
}

/// Pages of a write: all but the last are committed already and reached by no name.
#[derive(Clone)]
#[cfg_attr(test, derive(Debug))]
pub struct WrittenPages {
    /// All pages, in order.
    pub pages: Vec<PageReference>,
    /// The pages that were committed before.
    pub loose: Vec<PageId>,
    /// The last page, which travels with the naming delta.
    pub last: Option<(PageId, Page)>,
    /// Oldest pin epoch of the last page's pins.
    pub pin_epoch: PinEpoch,
}

/// One read of an object; its reader chose it at random.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReadId(pub [u8; 16]);

/// What a tenant's shard is asked.
#[derive(Clone)]
#[cfg_attr(test, derive(Debug))]
pub enum ShardRequest {
    /// The pin epoch that a write starting now states.
    PinEpoch,
    /// Commits a page that no name reaches yet.
    PutLoosePage {
        /// The namespace.
        namespace: NamespaceId,
        /// Oldest epoch of the page's pins.
        pin_epoch: PinEpoch,
        /// Its id.
        id: PageId,
        /// The page.
        page: Page,
    },
    /// The writer of these loose pages gave up.
    AbandonPages(Vec<PageId>),
    /// Names an object.
    PutEntry {
        /// Where.
        path: ObjectPath,
        /// When.
        condition: Condition,
        /// What; its pages are those of `written`.
        file: FileEntry,
        /// The content.
        written: WrittenPages,
    },
    /// Begins an upload.
    CreateUpload {
        /// Where.
        path: ObjectPath,
        /// The gateway's properties.
        attributes: Attributes,
    },
    /// Names a part of an upload.
    PutPart {
        /// Where.
        path: ObjectPath,
        /// Which upload.
        upload: UploadId,
        /// Which part.
        part: u16,
        /// What; its pages are those of `written`.
        entry: PartEntry,
        /// The content.
        written: WrittenPages,
    },
    /// An upload and its parts.
    Parts {
        /// Where.
        path: ObjectPath,
        /// Which upload.
        upload: UploadId,
        /// Parts behind this number.
        after: u16,
        /// At most so many.
        limit: usize,
    },
    /// Uploads in progress.
    Uploads {
        /// Of this namespace.
        namespace: NamespaceId,
        /// Whose keys start so.
        prefix: String,
        /// Only of these keys.
        clip: Clip,
        /// Behind this one.
        after: Option<(String, UploadId)>,
        /// At most so many.
        limit: usize,
    },
    /// Makes an object of parts.
    CompleteUpload {
        /// Where.
        path: ObjectPath,
        /// Which upload.
        upload: UploadId,
        /// The parts.
        parts: Vec<CompletePart>,
        /// When.
        condition: Condition,
        /// ETag of the object; `None` makes an opaque one.
        etag: Option<String>,
        /// Added to the upload's properties.
        attributes: Attributes,
    },
    /// Gives an upload up.
    AbortUpload {
        /// Where.
        path: ObjectPath,
        /// Which upload.
        upload: UploadId,
    },
    /// An object's properties.
    Head(ObjectPath),
    /// Opens an object for reading: its pages stay until the hold is closed.
    OpenRead {
        /// Where.
        path: ObjectPath,
        /// Who will read it; a node of an earlier release does not say.
        read: Option<ReadId>,
    },
    /// A page of an object that is open.
    ReadPage {
        /// Which.
        page: PageId,
        /// Who reads it.
        read: Option<ReadId>,
    },
    /// The reader is done.
    CloseRead {
        /// All pages of the object.
        pages: Vec<PageId>,
        /// Who has read it.
        read: Option<ReadId>,
    },
    /// Removes an object.
    Delete {
        /// Where.
        path: ObjectPath,
        /// When.
        condition: Condition,
    },
    /// Lists objects.
    List {
        /// The namespace.
        namespace: NamespaceId,
        /// Its root.
        root: DirId,
        /// Only of these keys.
        clip: Clip,
        /// What.
        request: ListRequest,
    },
    /// Refuses further objects in the namespace if it is empty.
    CloseNamespace {
        /// The namespace.
        namespace: NamespaceId,
        /// Its root.
        root: DirId,
    },
    /// Collection: refuse deltas that name this generation; answers how often it is named.
    Fence(ChunkName),
    /// Collection: the generation is pardoned.
    Unfence(ChunkName),
    /// About a split.
    Split(Box<SplitRequest>),
    /// About the length up to which content lies inline.
    Inline(InlineRequest),
}

/// The keys that a caller asks a shard about: others of the same bucket may lie elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clip {
    /// The first key.
    pub from: String,
    /// The first behind them; `None`: all that follow.
    pub until: Option<String>,
}

impl ShardRequest {
    /// Whether a second time would change something more, or fail on what the first one did.
    #[must_use]
    pub fn is_done_once(&self) -> bool {
        matches!(
            self,
            ShardRequest::PutLoosePage { .. }
                | ShardRequest::PutEntry { .. }
                | ShardRequest::CreateUpload { .. }
                | ShardRequest::PutPart { .. }
                | ShardRequest::CompleteUpload { .. }
                | ShardRequest::AbortUpload { .. }
                | ShardRequest::Delete { .. }
        )
    }
}

/// What a tenant's shard answers.
#[cfg_attr(test, derive(Debug))]
pub enum ShardResponse {
    /// To `PinEpoch`.
    PinEpoch(PinEpoch),
    /// An object.
    Object(ObjectInfo),
    /// To `OpenRead`: the object and its first page.
    Opened {
        /// The entry.
        file: FileEntry,
        /// Its first page, if it has any.
        first: Option<Page>,
    },
    /// To `ReadPage`.
    Page(Page),
    /// To `Delete`: whether there was something.
    Deleted(bool),
    /// To `List`.
    Listing(ListPage),
    /// To `CreateUpload`.
    Upload(UploadId),
    /// To `PutPart`.
    Part(PartInfo),
    /// To `Parts`.
    Parts(UploadInfo, Vec<PartInfo>),
    /// To `Uploads`.
    Uploads(Vec<UploadInfo>),
    /// To `Fence`.
    Count(u64),
    /// To `Split`.
    Split(SplitAnswer),
    /// To `Inline`.
    Inline(Box<InlineView>),
    /// To `PutEntry` and `PutPart`: nothing has happened, since the shard does not take the content inline. Make chunks of it.
    NotInline {
        /// What it takes, when the content is longer and all nodes understand that.
        limit: Option<u32>,
    },
}

/// A tenant's dedup policy (I-X1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dedup {
    /// Equal content is stored once across all tenants that share.
    Shared,
    /// Chunk ids and keys are the tenant's own; a shred is absolute.
    Private,
}

/// A tenant, without its secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantInfo {
    /// Its id.
    pub tenant: TenantId,
    /// Its name.
    pub name: String,
    /// Its dedup policy.
    pub dedup: Dedup,
    /// When it was made, milliseconds since 1970.
    pub created_unix_ms: u64,
}

/// A bucket as the control shard knows it.
#[derive(Clone, Debug)]
pub struct Bucket {
    /// What users see.
    pub info: BucketInfo,
    /// Whose it is.
    pub tenant: TenantId,
    /// The shard that holds its root, and every key that no range names.
    pub shard: ShardId,
    /// Where other keys lie, as far as it is known: who is asked for keys that it does not hold says so.
    pub ranges: KeyRanges,
    /// Its root directory.
    pub root: DirId,
    /// The pool that its data goes to.
    pub pool: PoolId,
    /// Shape of the pool's stripes.
    pub shape: StripeShape,
    /// How it is cut.
    pub chunks: ChunkFormat,
}

/// A tenant's secrets, for the keyring of a core.
pub struct TenantSecrets {
    /// Its dedup policy.
    pub dedup: Dedup,
    /// Epoch of the KEK.
    pub kek_epoch: u32,
    /// The KEK.
    pub kek: SecretKey,
    /// Makes chunk ids and DEKs of a private dedup domain.
    pub private: SecretKey,
}

/// What the control shard is asked.
#[derive(Clone)]
#[cfg_attr(test, derive(Debug))]
pub enum ControlRequest {
    /// An access key.
    AccessKey(String),
    /// A tenant's secrets.
    TenantSecrets(TenantId),
    /// Makes a tenant.
    CreateTenant {
        /// Its name.
        name: String,
        /// Its dedup policy.
        dedup: Dedup,
    },
    /// All tenants.
    Tenants,
    /// Makes an access key for a tenant, by name.
    CreateAccessKey {
        /// The tenant's name.
        tenant: String,
    },
    /// Access key ids of a tenant, by name.
    AccessKeys {
        /// The tenant's name.
        tenant: String,
    },
    /// Makes a bucket.
    CreateBucket {
        /// Whose.
        tenant: TenantId,
        /// Its name.
        name: String,
    },
    /// Looks a bucket up.
    Bucket {
        /// Whose.
        tenant: TenantId,
        /// Its name.
        name: String,
    },
    /// Removes a bucket whose namespace is closed; one that lies in several shards is closed by this.
    DeleteBucket {
        /// Whose.
        tenant: TenantId,
        /// Its name.
        name: String,
    },
    /// All buckets of a tenant.
    Buckets(TenantId),
    /// Changes how a bucket makes ETags.
    SetBucketEtag {
        /// The tenant's name.
        tenant: String,
        /// The bucket's name.
        name: String,
        /// The new mode.
        mode: EtagMode,
    },
    /// What is recorded of all devices.
    Devices,
    /// Changes what is recorded of a device; answered when every core acts on it.
    UpdateDevice {
        /// Which.
        device: DeviceId,
        /// How.
        update: DeviceUpdate,
    },
    /// What is recorded of all nodes.
    Nodes,
    /// Gives a number to a node that is to join.
    InviteNode,
    /// A node joins, or is back: where it is and what it has. Answered when every core of every node that can be reached knows.
    NodeHere {
        /// Which.
        node: NodeId,
        /// Where its links are.
        addresses: Vec<String>,
        /// Its lanes.
        lanes: u16,
        /// Its cores.
        cores: u16,
        /// The version of its program.
        version: String,
        /// Its rack; empty: none.
        rack: String,
    },
    /// Changes what a node is to the cluster.
    SetNodeState {
        /// Which.
        node: NodeId,
        /// What from now on.
        state: NodeState,
    },
    /// The key of a tenant's shard, for a node that has a replica of it.
    ShardKey(ShardId),
    /// About the shards of tenants.
    Shards(ShardMapRequest),
}

impl ControlRequest {
    /// Whether a second time would change something more, or fail on what the first one did.
    #[must_use]
    pub fn is_done_once(&self) -> bool {
        matches!(
            self,
            ControlRequest::CreateTenant { .. }
                | ControlRequest::CreateAccessKey { .. }
                | ControlRequest::CreateBucket { .. }
                | ControlRequest::DeleteBucket { .. }
                | ControlRequest::SetBucketEtag { .. }
                | ControlRequest::UpdateDevice { .. }
                | ControlRequest::InviteNode
                | ControlRequest::SetNodeState { .. }
        )
    }
}

/// What the control shard answers.
pub enum ControlResponse {
    /// To `AccessKey`.
    AccessKey(Option<(TenantId, Zeroizing<String>)>),
    /// To `TenantSecrets`.
    Secrets(TenantSecrets),
    /// To `CreateTenant`.
    Tenant(TenantInfo),
    /// To `Tenants`.
    Tenants(Vec<TenantInfo>),
    /// To `CreateAccessKey`: id and secret, shown once.
    NewAccessKey(String, Zeroizing<String>),
    /// To `AccessKeys`.
    AccessKeys(Vec<String>),
    /// A bucket.
    Bucket(Box<Bucket>),
    /// To `Buckets`.
    Buckets(Vec<BucketInfo>),
    /// To `Devices`: which change of the records this is, and all of them.
    Devices(u64, Vec<DeviceRecord>),
    /// To `UpdateDevice`: the record as it is now.
    Device(Box<DeviceRecord>),
    /// To `Nodes`: which change of the records this is, and all of them.
    Nodes(u64, Vec<NodeEntry>),
    /// To `InviteNode`, `NodeHere`, `SetNodeState`: the record as it is now.
    Node(NodeEntry),
    /// To `ShardKey`: what opens it.
    ShardKey(OpenShard),
    /// To `Shards`.
    Shards(ShardMapAnswer),
}
