//! One value of each kind that is ever said, for tests and as seeds for fuzzing.

use super::{FragmentCall, FragmentReply};
use crate::api::{
    Attributes, BucketInfo, CompletePart, Condition, EtagMode, ListItem, ListPage, ListRequest, ObjectInfo, PartInfo,
    StoreError, UploadInfo,
};
use crate::chunker::ChunkFormat;
use crate::composition::{ChunkReference, FileEntry, Page, PageReference, PartEntry};
use crate::delta::ChunkName;
use crate::device_record::{DeviceActor, DeviceEvent, DevicePlace, DeviceRecord, DeviceUpdate, WearCause};
use crate::evacuation::EvacuationAnswer;
use crate::holdings::Holdings;
use crate::inline::InlineContent;
use crate::inline_message::{InlineRequest, InlineView, VoterRoom};
use crate::inline_threshold::{Threshold, ThresholdBy};
use crate::key_ranges::{KeyRange, KeyRanges};
use crate::keys::{WRAPPED_DEK_LEN_BYTES, WrappedDek};
use crate::message::{
    BeginChunk, Bucket, Clip, Closing, Collected, ControlRequest, ControlResponse, CoreRequest, Decision, Dedup,
    DeviceLook, EngineRequest, EngineResponse, HomeRequest, HomeResponse, NodeEntry, NodeState, ObjectPath, OpenShard,
    ReadId, RequestBody, ResponseBody, ShardRequest, ShardResponse, TenantInfo, TenantSecrets, WrittenPages,
};
use crate::metadata_room::{MetadataBudget, MetadataRoom};
use crate::repair_queue::RepairCause;
use crate::request_log::{Mark, RequestStamp};
use crate::split_message::{ShardMapAnswer, ShardMapRequest, SplitAnswer, SplitRequest};
use crate::without::{Leaving, Without};
use kiseki_types::fragment::{
    DeviceState, DeviceStatus, DeviceUse, FragmentError, FragmentKey, FragmentMeta, StoredFragment, StripeShape,
};
use kiseki_types::ids::{
    ChunkId, CompositionId, DeviceId, DirId, Generation, LaneId, Locator, MapEpoch, MasterEpoch, NamespaceId, NodeId,
    PageId, PinEpoch, PoolId, RequestId, ShardId, TenantId, UploadId,
};
use kiseki_types::secret::SecretKey;
use kiseki_types::units::{BlockCount, BlockIndex, Extent};
use std::array::from_fn;
use zeroize::Zeroizing;

/// Bytes that tell each place from all others.
fn bytes<const N: usize>(first: u8) -> [u8; N] {
    from_fn(|at| first.wrapping_add(at as u8))
}

fn key(first: u8) -> SecretKey {
    SecretKey::take(&mut bytes(first))
}

fn name(first: u8) -> ChunkName {
    ChunkName { locator: Locator(bytes(first)), generation: Generation(1 << 40 | u64::from(first)) }
}

fn attributes() -> Attributes {
    Attributes::from([("h.content-type", "text/plain"), ("sum", "ü")].map(|(name, value)| (name.into(), value.into())))
}

fn path() -> ObjectPath {
    ObjectPath { namespace: NamespaceId(5), root: DirId(bytes(0x20)), key: "photos/2026/é.jpg".to_owned() }
}

/// A page that holds its content.
fn inline_page() -> Page {
    let inline = InlineContent { wrapped_dek: WrappedDek(bytes(0x32)), sealed: vec![7; 20] };
    Page { references: Vec::new(), inline: Some(Box::new(inline)), ..page(0) }
}

/// A page of `count` chunks.
pub(super) fn page(count: usize) -> Page {
    let reference = |at: usize| ChunkReference {
        chunk: ChunkId(bytes(at as u8)),
        locator: Locator(bytes(1)),
        generation: Generation(7),
        len_bytes: 1 << 20,
        wrapped_dek: WrappedDek(bytes::<WRAPPED_DEK_LEN_BYTES>(9)),
    };
    let references = (0..count).map(reference).collect();
    Page { composition: CompositionId(bytes(0x30)), wrap_salt: bytes(0x31), kek_epoch: 3, references, inline: None }
}

fn file() -> FileEntry {
    FileEntry {
        len_bytes: 3,
        modified_unix_ms: 1_800_000_000_000,
        etag: "etag".to_owned(),
        attributes: attributes(),
        part_lens_bytes: vec![1, 2],
        pages: vec![PageReference { page: PageId(bytes(0x40)), len_bytes: 3 }],
    }
}

/// The pages of a small object.
pub(super) fn written() -> WrittenPages {
    WrittenPages {
        pages: vec![
            PageReference { page: PageId(bytes(0x41)), len_bytes: 1 << 28 },
            PageReference { page: PageId(bytes(0x42)), len_bytes: 77 },
        ],
        loose: vec![PageId(bytes(0x41))],
        last: Some((PageId(bytes(0x42)), page(2))),
        pin_epoch: PinEpoch(8),
    }
}

/// A plain upload of one chunk under that key: what most writes say.
pub(super) fn put_entry(key: &str) -> ShardRequest {
    let (path, condition) = (ObjectPath { key: key.to_owned(), ..path() }, Condition::None);
    let file = FileEntry { attributes: Attributes::new(), part_lens_bytes: Vec::new(), ..file() };
    let pages = vec![PageReference { page: PageId(bytes(0x43)), len_bytes: 3 }];
    let last = Some((PageId(bytes(0x43)), page(1)));
    let written = WrittenPages { pages, loose: Vec::new(), last, pin_epoch: PinEpoch(8) };
    ShardRequest::PutEntry { path, condition, file, written }
}

fn place() -> DevicePlace {
    DevicePlace { path: "/dev/nvme0n1".to_owned(), pool: PoolId(1), class: "nvme".to_owned() }
}

fn record() -> DeviceRecord {
    let opened = DeviceUpdate::Opened { place: place(), actor: DeviceActor::Node, reason: "checked".to_owned() };
    let record = DeviceRecord::after(None, DeviceId(bytes(0x50)), opened, 5).expect("a device may be opened");
    record.expect("there was no record before")
}

fn node(state: NodeState) -> NodeEntry {
    NodeEntry {
        node: NodeId(3),
        state,
        addresses: vec!["node-3.example:7443".to_owned(), "10.0.0.3:7443".to_owned()],
        lanes: 8,
        cores: 4,
        version: "0.1.0".to_owned(),
        since_unix_ms: 9,
        rack: "row-2".to_owned(),
    }
}

fn open() -> OpenShard {
    OpenShard { tenant: TenantId(4), metadata_key: key(0x60), create: true }
}

type Named<T> = (&'static str, T);

fn of_shard<T>(requests: Vec<Named<T>>, body: fn(T) -> RequestBody) -> Vec<Named<EngineRequest>> {
    requests.into_iter().map(|(name, request)| (name, request_to(body(request)))).collect()
}

fn request_to(body: RequestBody) -> EngineRequest {
    EngineRequest { shard: ShardId(1030), body, stamp: None }
}

/// Requests of each kind.
pub(super) fn requests() -> Vec<Named<EngineRequest>> {
    [
        of_shard(home_requests(), RequestBody::Home),
        of_shard(shard_requests(), |request| RequestBody::Shard(Box::new(request))),
        of_shard(upload_requests(), |request| RequestBody::Shard(Box::new(request))),
        of_shard(control_requests(), RequestBody::Control),
        of_shard(update_requests(), RequestBody::Control),
        of_shard(core_requests(), RequestBody::Core),
        vec![("open", request_to(RequestBody::Open(open())))],
        vec![("node-forget", request_to(RequestBody::Node(CoreRequest::Forget)))],
        stamped_requests(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn stamped_requests() -> Vec<Named<EngineRequest>> {
    let stamp = Some(RequestStamp { id: RequestId(bytes(0xb0)), seen: Mark(77) });
    vec![("put-stamped", EngineRequest { stamp, ..request_to(RequestBody::Shard(Box::new(put_entry("key")))) })]
}

/// A request to begin that many chunks.
pub(super) fn begin(chunks: usize) -> HomeRequest {
    let chunk = |at: usize| BeginChunk {
        locator: Locator(bytes(at as u8)),
        envelope_len_bytes: 1_048_832,
        pin: bytes(0x80 | at as u8),
    };
    HomeRequest::Begin {
        shard: ShardId(1024),
        pin_epoch: PinEpoch(2),
        pool: PoolId(3),
        shape: StripeShape { data: 4, parity: 2 },
        master_epoch: MasterEpoch(5),
        chunks: (0..chunks).map(chunk).collect(),
    }
}

fn home_requests() -> Vec<Named<HomeRequest>> {
    let pins = |first| vec![(name(first), bytes(first + 1)), (name(first + 2), bytes(first + 3))];
    vec![
        ("begin", begin(2)),
        ("confirm", HomeRequest::Confirm(bytes(0x70))),
        ("settle", HomeRequest::Settle { complete: pins(1), abort: pins(9) }),
        ("settle-complete", HomeRequest::Settle { complete: pins(1), abort: Vec::new() }),
        ("collect", HomeRequest::Collect(name(1))),
        ("unknown", HomeRequest::Unknown(vec![name(1), name(2)])),
        ("repair", HomeRequest::Repair { name: name(1), margin: -2, cause: RepairCause::Unreadable }),
        ("evacuate", HomeRequest::Evacuate(vec![name(3)])),
        ("adopt", HomeRequest::Adopt { shard: ShardId(1030), names: vec![name(4)] }),
    ]
}

fn shard_requests() -> Vec<Named<ShardRequest>> {
    let (namespace, root, pin_epoch) = (NamespaceId(5), DirId(bytes(0x20)), PinEpoch(6));
    let list = ListRequest {
        prefix: "p".to_owned(),
        after: Some("pa".to_owned()),
        delimiter: Some("/".to_owned()),
        limit: 1000,
    };
    let request = ListRequest { limit: 1, ..ListRequest::default() };
    let list_all = ShardRequest::List { namespace, root, clip: Clip::default(), request };
    let clip = Clip { from: "pa".to_owned(), until: Some("pz".to_owned()) };
    let condition = Condition::IfMatch("\"tag\"".to_owned());
    let read = Some(ReadId(bytes(0xc0)));
    vec![
        ("pin-epoch", ShardRequest::PinEpoch),
        ("loose-page", ShardRequest::PutLoosePage { namespace, pin_epoch, id: PageId(bytes(1)), page: page(3) }),
        ("abandon", ShardRequest::AbandonPages(vec![PageId(bytes(1)), PageId(bytes(2))])),
        ("put-entry", ShardRequest::PutEntry { path: path(), condition, file: file(), written: written() }),
        ("put-small", put_entry("key")),
        ("head", ShardRequest::Head(path())),
        ("open-read", ShardRequest::OpenRead { path: path(), read }),
        ("read-page", ShardRequest::ReadPage { page: PageId(bytes(3)), read }),
        ("close-read", ShardRequest::CloseRead { pages: vec![PageId(bytes(4))], read }),
        ("open-read-nameless", ShardRequest::OpenRead { path: path(), read: None }),
        ("close-read-nameless", ShardRequest::CloseRead { pages: vec![PageId(bytes(4))], read: None }),
        ("delete", ShardRequest::Delete { path: path(), condition: Condition::IfAbsent }),
        ("list", ShardRequest::List { namespace, root, clip, request: list }),
        ("list-all", list_all),
        ("close-namespace", ShardRequest::CloseNamespace { namespace, root }),
        ("fence", ShardRequest::Fence(name(1))),
        ("unfence", ShardRequest::Unfence(name(2))),
        ("inline-show", ShardRequest::Inline(InlineRequest::Show)),
        ("inline-lower", ShardRequest::Inline(InlineRequest::Lower(Threshold::default()))),
        ("inline-set", ShardRequest::Inline(InlineRequest::Set { len_bytes: Some(512) })),
        ("split", ShardRequest::Split(Box::new(SplitRequest::CountOf(vec![name(3)])))),
    ]
}

fn upload_requests() -> Vec<Named<ShardRequest>> {
    let upload = UploadId(bytes(0x90));
    let entry = PartEntry {
        len_bytes: 3,
        modified_unix_ms: 7,
        etag: "p".to_owned(),
        attributes: attributes(),
        pages: vec![PageReference { page: PageId(bytes(0x44)), len_bytes: 3 }],
    };
    let complete = |condition, etag| ShardRequest::CompleteUpload {
        path: path(),
        upload,
        parts: vec![CompletePart { part: 1, etag: "a".to_owned() }, CompletePart { part: 7, etag: "b".to_owned() }],
        condition,
        etag,
        attributes: attributes(),
    };
    let after = Some(("prefix-1".to_owned(), upload));
    let clip = || Clip { from: "prefix".to_owned(), until: Some("q".to_owned()) };
    let (namespace, prefix) = (NamespaceId(5), || "prefix".to_owned());
    let uploads = |after| ShardRequest::Uploads { namespace, prefix: prefix(), clip: clip(), after, limit: 3 };
    vec![
        ("create-upload", ShardRequest::CreateUpload { path: path(), attributes: attributes() }),
        ("put-part", ShardRequest::PutPart { path: path(), upload, part: 12, entry, written: written() }),
        ("parts", ShardRequest::Parts { path: path(), upload, after: 9, limit: 1001 }),
        ("uploads", uploads(after)),
        ("uploads-all", uploads(None)),
        ("complete", complete(Condition::IfNoneMatch("*".to_owned()), Some("etag-2".to_owned()))),
        ("complete-opaque", complete(Condition::None, None)),
        ("abort", ShardRequest::AbortUpload { path: path(), upload }),
    ]
}

fn control_requests() -> Vec<Named<ControlRequest>> {
    let (tenant, name) = (TenantId(4), || "photos".to_owned());
    let team = || "team".to_owned();
    let NodeEntry { node, addresses, lanes, cores, version, rack, .. } = node(NodeState::Active);
    vec![
        ("access-key", ControlRequest::AccessKey("AKID".to_owned())),
        ("tenant-secrets", ControlRequest::TenantSecrets(tenant)),
        ("create-tenant", ControlRequest::CreateTenant { name: team(), dedup: Dedup::Private }),
        ("tenants", ControlRequest::Tenants),
        ("create-access-key", ControlRequest::CreateAccessKey { tenant: team() }),
        ("access-keys", ControlRequest::AccessKeys { tenant: team() }),
        ("create-bucket", ControlRequest::CreateBucket { tenant, name: name() }),
        ("bucket", ControlRequest::Bucket { tenant, name: name() }),
        ("delete-bucket", ControlRequest::DeleteBucket { tenant, name: name() }),
        ("buckets", ControlRequest::Buckets(tenant)),
        ("shards", ControlRequest::Shards(ShardMapRequest::List)),
        ("set-etag", ControlRequest::SetBucketEtag { tenant: team(), name: name(), mode: EtagMode::Opaque }),
        ("devices", ControlRequest::Devices),
        ("nodes", ControlRequest::Nodes),
        ("invite", ControlRequest::InviteNode),
        ("node-here", ControlRequest::NodeHere { node, addresses, lanes, cores, version, rack }),
        ("set-node-state", ControlRequest::SetNodeState { node, state: NodeState::Draining }),
        ("shard-key", ControlRequest::ShardKey(ShardId(1024))),
    ]
}

fn update_requests() -> Vec<Named<ControlRequest>> {
    let reason = || "worn".to_owned();
    let seen =
        DeviceEvent { at_unix_ms: 3, state: DeviceState::Healthy, actor: DeviceActor::Operator, reason: reason() };
    let evacuate = |actor, cause| DeviceUpdate::Evacuate { actor, reason: reason(), cause };
    [
        ("opened", DeviceUpdate::Opened { place: place(), actor: DeviceActor::Node, reason: reason() }),
        ("lost", DeviceUpdate::Lost { state: DeviceState::Unreachable, reason: reason() }),
        ("evacuate-worn", evacuate(DeviceActor::Wear, Some(WearCause::MediaErrors))),
        ("evacuate-device", evacuate(DeviceActor::Operator, None)),
        ("cancel-evacuation", DeviceUpdate::CancelEvacuation { reason: reason() }),
        ("remove", DeviceUpdate::Remove { reason: reason(), seen: Some(seen) }),
        ("remove-anyway", DeviceUpdate::Remove { reason: reason(), seen: None }),
        ("read-errors", DeviceUpdate::ReadErrors(17)),
    ]
    .map(|(name, update)| (name, ControlRequest::UpdateDevice { device: DeviceId(bytes(0x50)), update }))
    .into_iter()
    .collect()
}

/// A view of an inline threshold, with everything in it.
pub(crate) fn inline_view() -> InlineView {
    let room = |node, budget, replicas| VoterRoom { node: NodeId(node), budget, replicas, heard_ms_ago: 12 };
    InlineView {
        leader: NodeId(1),
        threshold: Threshold { len_bytes: 512, by: ThresholdBy::Room, since_unix_ms: 5 },
        effective_len_bytes: 128,
        supported_len_bytes: Some(640),
        floor_len_bytes: 128,
        ceiling_len_bytes: 65_536,
        objects_expected: 1 << 20,
        is_counted: true,
        window_bytes: 7,
        bytes_per_second_max: 10_000_000,
        refused: 3,
        voters: vec![room(1, Some(budget()), 8), room(2, None, 0)],
    }
}

fn budget() -> MetadataBudget {
    MetadataBudget { fill_percent: 55, soft_percent: 50, hard_percent: 75, content_bytes: 1 << 40 }
}

fn core_requests() -> Vec<Named<CoreRequest>> {
    vec![
        ("forget", CoreRequest::Forget),
        ("core-devices", CoreRequest::Devices { version: 12, records: vec![record()] }),
        ("look", CoreRequest::LookAtDevice(DeviceId(bytes(1)), Closing::AsItIs)),
        ("core-nodes", CoreRequest::Nodes { version: 13, entries: vec![node(NodeState::Removed)] }),
        ("host", CoreRequest::Host),
        ("metadata-room", CoreRequest::MetadataRoom),
        ("holdings", CoreRequest::Holdings(NodeId(4))),
        ("without", CoreRequest::Without(Leaving::Node(NodeId(4)))),
        ("without-rack", CoreRequest::Without(Leaving::Rack("row-2".to_owned()))),
    ]
}

/// Responses of each kind.
pub(super) fn responses() -> Vec<Named<EngineResponse>> {
    let look =
        |used, open_stripes| DeviceLook { node: NodeId(2), core: LaneId(4), used, older_placements: 6, open_stripes };
    let used = Some(DeviceUse { fragments: 8, bytes: 9 });
    let not_here = |leader| ResponseBody::NotHere { leader, request: None };
    let plain = vec![
        ("done", ResponseBody::Done),
        ("looks", ResponseBody::Looks(vec![look(used, Some(7)), look(None, None)])),
        ("hosted", ResponseBody::Hosted(1 << 48 | 3)),
        ("room", ResponseBody::MetadataRoom(MetadataRoom { core: LaneId(4), replicas: 9, budget: Some(budget()) })),
        ("room-not-measured", ResponseBody::MetadataRoom(MetadataRoom { core: LaneId(4), replicas: 0, budget: None })),
        (
            "holdings",
            ResponseBody::Holdings(Holdings {
                core: LaneId(4),
                fragments: 1,
                bytes: 2,
                votes: 3,
                led: 5,
                shards: 6,
                is_whole: true,
            }),
        ),
        (
            "without",
            ResponseBody::Without(Box::new(Without {
                core: LaneId(4),
                led: 1,
                shards: 2,
                pools: vec![(PoolId(0), StripeShape { data: 4, parity: 2 })],
                reasons: vec!["shard s7 has its only replica on node 4".to_owned()],
                more: 3,
                reliant_stripes: 5,
                most_on_a_node: 6,
                most_in_a_rack: 10,
                endangered: vec![7, 0, 8],
                cores_not_walked: 9,
            })),
        ),
        ("not-here", not_here(Some(NodeId(2)))),
        ("not-here-unknown", not_here(None)),
    ];
    let bodies = [
        plain,
        home_responses().into_iter().map(|(name, home)| (name, ResponseBody::Home(home))).collect(),
        shard_responses().into_iter().map(|(name, shard)| (name, ResponseBody::Shard(shard, Mark(4)))).collect(),
        control_responses()
            .into_iter()
            .map(|(name, control)| (name, ResponseBody::Control(control, Mark(5))))
            .collect(),
    ];
    let answers = bodies.into_iter().flatten().map(|(name, body)| (name, Ok(body)));
    answers.chain(store_errors().into_iter().map(|(name, error)| (name, Err(error)))).collect()
}

fn home_responses() -> Vec<Named<HomeResponse>> {
    let evacuating = EvacuationAnswer {
        unknown: vec![name(1)],
        refused: vec![name(2), name(3)],
        waiting: 4,
        devices_wanted: 5,
        no_room: true,
    };
    vec![
        ("decisions", HomeResponse::Decisions(vec![Decision::Hit(Generation(1 << 40)), Decision::Miss(Generation(2))])),
        ("collected", HomeResponse::Collected(Collected::Named)),
        ("unknown-names", HomeResponse::Unknown(vec![name(1)])),
        ("evacuating", HomeResponse::Evacuating(evacuating)),
    ]
}

/// An object.
pub(super) fn object() -> ObjectInfo {
    file().info("photos/1.jpg".to_owned())
}

fn shard_responses() -> Vec<Named<ShardResponse>> {
    let upload = UploadInfo {
        upload: UploadId(bytes(0x90)),
        key: "k".to_owned(),
        initiated_unix_ms: 5,
        attributes: attributes(),
    };
    let part = PartInfo {
        part: 10_000,
        len_bytes: 6,
        modified_unix_ms: 7,
        etag: "p".to_owned(),
        attributes: Attributes::new(),
    };
    let items = vec![ListItem::CommonPrefix("a/".to_owned()), ListItem::Object(object())];
    vec![
        ("epoch", ShardResponse::PinEpoch(PinEpoch(3))),
        ("object", ShardResponse::Object(object())),
        ("opened-object", ShardResponse::Opened { file: file(), first: Some(page(2)) }),
        ("opened-empty", ShardResponse::Opened { file: file(), first: None }),
        ("page", ShardResponse::Page(page(1))),
        ("opened-inline", ShardResponse::Opened { file: file(), first: Some(inline_page()) }),
        ("not-inline", ShardResponse::NotInline { limit: None }),
        ("not-inline-beyond", ShardResponse::NotInline { limit: Some(128) }),
        ("inline-view", ShardResponse::Inline(Box::new(inline_view()))),
        ("deleted", ShardResponse::Deleted(true)),
        ("listing", ShardResponse::Listing(ListPage { items, truncated: true })),
        ("upload", ShardResponse::Upload(upload.upload)),
        ("part", ShardResponse::Part(part.clone())),
        ("parts-listed", ShardResponse::Parts(upload.clone(), vec![part.clone(), part])),
        ("uploads-listed", ShardResponse::Uploads(vec![upload.clone(), upload])),
        ("count", ShardResponse::Count(11)),
        ("split-answered", ShardResponse::Split(SplitAnswer::Counts(vec![3]))),
    ]
}

fn control_responses() -> Vec<Named<ControlResponse>> {
    let tenant =
        || TenantInfo { tenant: TenantId(4), name: "team".to_owned(), dedup: Dedup::Private, created_unix_ms: 5 };
    let info = || BucketInfo {
        namespace: NamespaceId(6),
        name: "photos".to_owned(),
        created_unix_ms: 7,
        etag_mode: EtagMode::Opaque,
    };
    let mut ranges = KeyRanges::default();
    let (start, end) = ("m".to_owned(), Some("p".to_owned()));
    ranges.learn(&KeyRange { namespace: NamespaceId(6), start, end, shard: ShardId(1030) });
    let bucket = Bucket {
        info: info(),
        tenant: TenantId(4),
        shard: ShardId(1024),
        ranges,
        root: DirId(bytes(0x20)),
        pool: PoolId(1),
        shape: StripeShape { data: 4, parity: 2 },
        chunks: ChunkFormat::default(),
    };
    let secret = || Zeroizing::new("a secret of a key".to_owned());
    let secrets = TenantSecrets { dedup: Dedup::Private, kek_epoch: 2, kek: key(0x61), private: key(0x62) };
    vec![
        ("no-access-key", ControlResponse::AccessKey(None)),
        ("access-key-found", ControlResponse::AccessKey(Some((TenantId(4), secret())))),
        ("secrets", ControlResponse::Secrets(secrets)),
        ("tenant", ControlResponse::Tenant(tenant())),
        ("tenants-listed", ControlResponse::Tenants(vec![tenant(), tenant()])),
        ("new-access-key", ControlResponse::NewAccessKey("AKID".to_owned(), secret())),
        ("access-keys-listed", ControlResponse::AccessKeys(vec!["AKID".to_owned(), "AKIE".to_owned()])),
        ("shards-listed", ControlResponse::Shards(ShardMapAnswer::Shards(Vec::new()))),
        ("bucket-found", ControlResponse::Bucket(Box::new(bucket))),
        ("buckets-listed", ControlResponse::Buckets(vec![info(), info()])),
        ("devices-listed", ControlResponse::Devices(14, vec![record()])),
        ("device", ControlResponse::Device(Box::new(record()))),
        ("nodes-listed", ControlResponse::Nodes(15, vec![node(NodeState::Invited), node(NodeState::Draining)])),
        ("node", ControlResponse::Node(node(NodeState::Active))),
        ("key-of-shard", ControlResponse::ShardKey(open())),
    ]
}

/// Errors of each kind.
fn store_errors() -> Vec<Named<StoreError>> {
    let text = || "what it is".to_owned();
    vec![
        ("no-bucket", StoreError::NoSuchBucket),
        ("bucket-exists", StoreError::BucketExists),
        ("bucket-taken", StoreError::BucketNameTaken),
        ("bucket-not-empty", StoreError::BucketNotEmpty),
        ("no-key", StoreError::NoSuchKey),
        ("no-upload", StoreError::NoSuchUpload),
        ("invalid-part", StoreError::InvalidPart { part: 3 }),
        ("precondition", StoreError::PreconditionFailed),
        ("exists", StoreError::Exists { what: text() }),
        ("not-found", StoreError::NotFound { what: text() }),
        ("invalid", StoreError::Invalid { what: text() }),
        ("too-large", StoreError::TooLarge { what: text() }),
        ("full", StoreError::Full { reason: text() }),
        ("unavailable", StoreError::Unavailable { reason: text() }),
        ("damaged", StoreError::Damaged { reason: text() }),
        ("unsettled", StoreError::Unsettled { reason: text() }),
    ]
}

/// An extent.
pub(super) fn extent() -> Extent {
    Extent { device: DeviceId(bytes(0x50)), start: BlockIndex(1 << 33), len: BlockCount(66) }
}

/// A fragment.
pub(super) fn fragment() -> StoredFragment {
    let key = FragmentKey { locator: Locator(bytes(1)), generation: Generation(1 << 40), index: 5 };
    let meta = FragmentMeta {
        key,
        shape: StripeShape { data: 4, parity: 2 },
        pool: PoolId(1),
        envelope_len_bytes: 1_048_832,
        payload_len_bytes: 65 * 4096,
        map_epoch: MapEpoch(9),
        devices: (0..6).map(|device| DeviceId(bytes(device))).collect(),
    };
    StoredFragment { meta, extent: extent() }
}

/// Calls for fragments of each kind.
pub(super) fn fragment_calls() -> Vec<Named<FragmentCall>> {
    let StoredFragment { meta, extent } = fragment();
    let FragmentKey { locator, generation, .. } = meta.key;
    let bare = StoredFragment { meta: FragmentMeta { devices: Vec::new(), ..meta.clone() }, extent };
    vec![
        ("put", FragmentCall::Put { device: extent.device, meta: meta.clone(), is_upkeep: false }),
        ("put-upkeep", FragmentCall::Put { device: extent.device, meta, is_upkeep: true }),
        ("read", FragmentCall::Read { fragment: fragment(), range: 4096..4100 }),
        ("locate", FragmentCall::Locate { locator, generation }),
        ("release", FragmentCall::Release { fragment: bare }),
        ("forget", FragmentCall::Forget { fragment: fragment() }),
        ("devices", FragmentCall::Devices),
    ]
}

/// Replies of each kind.
pub(super) fn fragment_replies() -> Vec<Named<FragmentReply>> {
    let (device, locator, generation) = (DeviceId(bytes(0x50)), Locator(bytes(1)), Generation(2));
    let status = DeviceStatus {
        id: device,
        node: NodeId(2),
        name: "/dev/nvme0n1".to_owned(),
        pool: PoolId(1),
        capacity_bytes: 1 << 40,
        free_bytes: 1 << 39,
        lanes_bytes: 1 << 40,
        state: DeviceState::Evacuating,
        read_errors: 3,
    };
    let critical = FragmentError::PoolCritical { pool: PoolId(1), critical_percent: 97 };
    let failed = FragmentError::DeviceFailed { device, reason: "it is gone".to_owned() };
    vec![
        ("put-done", FragmentReply::Put(Ok(extent()))),
        ("put-full", FragmentReply::Put(Err(FragmentError::Full { device, needed_bytes: 1 << 20 }))),
        ("put-critical", FragmentReply::Put(Err(critical))),
        ("put-second", FragmentReply::Put(Err(FragmentError::SecondOfStripe { device, locator, generation }))),
        ("read-done", FragmentReply::Read(Ok(()))),
        ("read-corrupt", FragmentReply::Read(Err(FragmentError::Corrupt { locator, index: 4, extent: extent() }))),
        ("located", FragmentReply::Located(Ok(vec![fragment(), fragment()]))),
        ("located-none", FragmentReply::Located(Ok(Vec::new()))),
        ("locate-unknown", FragmentReply::Located(Err(FragmentError::Unknown { reason: "no index".to_owned() }))),
        ("done", FragmentReply::Done(Ok(()))),
        ("failed", FragmentReply::Done(Err(failed))),
        ("devices", FragmentReply::Devices(vec![status])),
    ]
}
