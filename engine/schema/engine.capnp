@0xe6d44cbdfe4bbd12;
# Messages between the engines of different nodes, versions 1 to 3. What they mean, their limits and how they may grow is told in
# docs/formats/engine-messages.md. Fields are never renumbered or reused; a reader ignores those that it does not know.
#
# Ids of 16 bytes: Data of that length, lists of them one after the other in one Data; inside elements of lists two words,
# the first bytes first. A "row" is Data in the layout of the table row of that name.

# --- what many use

struct ChunkName {
  a          @0 :UInt64;  # the locator's 32 bytes
  b          @1 :UInt64;
  c          @2 :UInt64;
  d          @3 :UInt64;
  generation @4 :UInt64;
}

struct ObjectPath {
  namespace @0 :UInt64;
  root      @1 :Data;
  key       @2 :Text;
}

struct PageReference {
  low      @0 :UInt64;
  high     @1 :UInt64;
  lenBytes @2 :UInt64;
}

struct Written {
  pages    @0 :List(PageReference);
  loose    @1 :Data;    # page ids
  lastId   @2 :Data;    # absent: no last page
  lastPage @3 :Data;    # row of a page
  pinEpoch @4 :UInt64;
}

struct Condition {
  union {
    none        @0 :Void;
    ifAbsent    @1 :Void;
    ifMatch     @2 :Text;
    ifNoneMatch @3 :Text;
  }
}

struct OpenShard {
  tenant      @0 :UInt64;
  metadataKey @1 :Data;   # secret
  create      @2 :Bool;
}

enum Dedup { shared @0; private @1; }
enum EtagMode { md5 @0; opaque @1; }
enum DeviceState { healthy @0; degraded @1; unreachable @2; evacuating @3; failed @4; removed @5; }
enum DeviceActor { operator @0; node @1; wear @2; }
enum WearCause { none @0; used @1; mediaErrors @2; criticalWarning @3; readErrors @4; }
enum NodeState { invited @0; active @1; draining @2; removed @3; }
enum Closing { close @0; open @1; asItIs @2; }
enum RepairCause { missing @0; unreadable @1; }
enum Collected { freed @0; named @1; busy @2; }

struct DeviceRecord {
  device @0 :Data;
  row    @1 :Data;
}

struct DeviceRecords {
  version @0 :UInt64;
  records @1 :List(DeviceRecord);
}

struct DeviceEvent {
  atUnixMs @0 :UInt64;
  state    @1 :DeviceState;
  actor    @2 :DeviceActor;
  reason   @3 :Text;
}

struct NodeEntry {
  node        @0 :UInt64;
  state       @1 :NodeState;
  addresses   @2 :List(Text);
  lanes       @3 :UInt16;
  cores       @4 :UInt16;
  version     @5 :Text;
  sinceUnixMs @6 :UInt64;
  rack        @7 :Text;                # empty: none
}

struct NodeEntries {
  version @0 :UInt64;
  entries @1 :List(NodeEntry);
}

# --- requests

struct Request {
  version @0 :UInt16;
  shard   @1 :UInt64;
  union {
    control @2 :ControlRequest;
    home    @3 :HomeRequest;
    tenant  @4 :ShardRequest;
    open    @5 :OpenShard;
    core    @6 :CoreRequest;
    node    @7 :CoreRequest;
  }
  speaks @8 :UInt16;  # the highest version that the sender understands; 0: that of the message
  stamp  @9 :Stamp;   # absent: it is not asked again
}

struct Stamp {
  low   @0 :UInt64;  # the request's id
  high  @1 :UInt64;
  seen  @2 :UInt64;  # how far the shard had counted before it was asked for the first time
}

struct CoreRequest {
  union {
    forget       @0 :Void;
    devices      @1 :DeviceRecords;
    lookAtDevice @2 :LookAtDevice;
    nodes        @3 :NodeEntries;
    host         @4 :Void;
    holdings     @5 :Void;    # of an earlier release, which did not say of which node: refused
    without      @6 :UInt64;  # which node
    holdingsOf   @7 :UInt64;  # which node
    withoutRack  @8 :Text;    # which rack
    metadataRoom @9 :Void;
  }
}

struct LookAtDevice {
  device  @0 :Data;
  closing @1 :Closing;
}

struct HomeRequest {
  union {
    begin    @0 :Begin;
    confirm  @1 :Data;     # a pin
    settle   @2 :Settle;
    collect  @3 :ChunkName;
    unknown  @4 :List(ChunkName);
    repair   @5 :Repair;
    evacuate @6 :List(ChunkName);
    adopt    @7 :Adopt;
  }
}

struct Adopt {
  shard @0 :UInt64;
  names @1 :List(ChunkName);
}

struct Begin {
  shard       @0 :UInt64;
  pinEpoch    @1 :UInt64;
  pool        @2 :UInt16;
  data        @3 :UInt8;
  parity      @4 :UInt8;
  masterEpoch @5 :UInt32;
  chunks      @6 :List(BeginChunk);
}

struct BeginChunk {
  a                @0 :UInt64;  # the locator
  b                @1 :UInt64;
  c                @2 :UInt64;
  d                @3 :UInt64;
  pinLow           @4 :UInt64;
  pinHigh          @5 :UInt64;
  envelopeLenBytes @6 :UInt32;
}

struct Settle {
  complete @0 :List(NamedPin);
  abort    @1 :List(NamedPin);
}

struct NamedPin {
  a          @0 :UInt64;  # the locator
  b          @1 :UInt64;
  c          @2 :UInt64;
  d          @3 :UInt64;
  generation @4 :UInt64;
  pinLow     @5 :UInt64;
  pinHigh    @6 :UInt64;
}

struct Repair {
  name   @0 :ChunkName;
  margin @1 :Int16;
  cause  @2 :RepairCause;
}

struct ShardRequest {
  union {
    pinEpoch       @0  :Void;
    putLoosePage   @1  :PutLoosePage;
    abandonPages   @2  :Data;         # page ids
    putEntry       @3  :PutEntry;
    createUpload   @4  :CreateUpload;
    putPart        @5  :PutPart;
    parts          @6  :ListParts;
    uploads        @7  :ListUploads;
    completeUpload @8  :CompleteUpload;
    abortUpload    @9  :NamedUpload;
    head           @10 :ObjectPath;
    openRead       @11 :ObjectPath;
    readPage       @12 :Data;         # a page id
    closeRead      @13 :Data;         # page ids
    delete         @14 :Delete;
    list           @15 :ListObjects;
    closeNamespace @16 :CloseNamespace;
    fence          @17 :ChunkName;
    unfence        @18 :ChunkName;
    split          @20 :Data;         # request about a split
    inline         @21 :Data;         # request about the inline threshold
  }
  readId @19 :Data;  # of openRead, readPage, closeRead; absent: the reader's node speaks version 1
}

struct PutLoosePage {
  namespace @0 :UInt64;
  pinEpoch  @1 :UInt64;
  id        @2 :Data;
  page      @3 :Data;  # row of a page
}

struct PutEntry {
  path      @0 :ObjectPath;
  condition @1 :Condition;  # absent: none
  file      @2 :Data;       # row of an entry
  written   @3 :Written;
}

struct CreateUpload {
  path       @0 :ObjectPath;
  attributes @1 :Data;  # as in a row; absent: none
}

struct PutPart {
  path    @0 :ObjectPath;
  upload  @1 :Data;
  part    @2 :UInt16;
  entry   @3 :Data;     # row of a part
  written @4 :Written;
}

struct ListParts {
  path   @0 :ObjectPath;
  upload @1 :Data;
  after  @2 :UInt16;
  limit  @3 :UInt32;
}

struct ListUploads {
  namespace   @0 :UInt64;
  prefix      @1 :Text;
  afterKey    @2 :Text;
  afterUpload @3 :Data;  # absent: from the first on
  limit       @4 :UInt32;
  from        @5 :Text;  # as in ListObjects
  until       @6 :Text;
}

struct CompleteUpload {
  path       @0 :ObjectPath;
  upload     @1 :Data;
  parts      @2 :List(CompletePart);
  condition  @3 :Condition;
  etag       @4 :Text;  # absent: an opaque one
  attributes @5 :Data;
}

struct CompletePart {
  part @0 :UInt16;
  etag @1 :Text;
}

struct NamedUpload {
  path   @0 :ObjectPath;
  upload @1 :Data;
}

struct Delete {
  path      @0 :ObjectPath;
  condition @1 :Condition;
}

struct ListObjects {
  root      @0 :Data;
  prefix    @1 :Text;
  after     @2 :Text;  # absent: from the first on
  delimiter @3 :Text;  # absent: none
  limit     @4 :UInt32;
  namespace @5 :UInt64;
  from      @6 :Text;  # only keys from here on
  until     @7 :Text;  # only keys below; absent: all that follow
}

struct CloseNamespace {
  namespace @0 :UInt64;
  root      @1 :Data;
}

struct ControlRequest {
  union {
    accessKey       @0  :Text;
    tenantSecrets   @1  :UInt64;
    createTenant    @2  :CreateTenant;
    tenants         @3  :Void;
    createAccessKey @4  :Text;
    accessKeys      @5  :Text;
    createBucket    @6  :BucketName;
    bucket          @7  :BucketName;
    deleteBucket    @8  :BucketName;
    buckets         @9  :UInt64;
    setBucketEtag   @10 :SetBucketEtag;
    devices         @11 :Void;
    updateDevice    @12 :UpdateDevice;
    nodes           @13 :Void;
    inviteNode      @14 :Void;
    nodeHere        @15 :NodeEntry;     # state and since mean nothing
    setNodeState    @16 :SetNodeState;
    shardKey        @17 :UInt64;
    shards          @18 :Data;          # request about shards
  }
}

struct CreateTenant {
  name  @0 :Text;
  dedup @1 :Dedup;
}

struct BucketName {
  tenant @0 :UInt64;
  name   @1 :Text;
}

struct SetBucketEtag {
  tenant @0 :Text;
  name   @1 :Text;
  mode   @2 :EtagMode;
}

struct SetNodeState {
  node  @0 :UInt64;
  state @1 :NodeState;
}

struct UpdateDevice {
  device @0 :Data;
  union {
    opened           @1 :DeviceOpened;
    lost             @2 :DeviceEvent;   # time and actor mean nothing
    evacuate         @3 :EvacuateDevice;
    cancelEvacuation @4 :Text;          # the reason
    remove           @5 :RemoveDevice;
    readErrors       @6 :UInt64;
  }
}

struct DeviceOpened {
  path   @0 :Text;
  pool   @1 :UInt16;
  class  @2 :Text;
  actor  @3 :DeviceActor;
  reason @4 :Text;
}

struct EvacuateDevice {
  actor  @0 :DeviceActor;
  reason @1 :Text;
  cause  @2 :WearCause;
}

struct RemoveDevice {
  reason @0 :Text;
  seen   @1 :DeviceEvent;  # absent: whatever the state is
}

# --- responses

struct Response {
  version @0 :UInt16;
  union {
    done    @1 :Void;
    control @2 :ControlResponse;
    home    @3 :HomeResponse;
    tenant  @4 :ShardResponse;
    looks   @5 :List(DeviceLook);
    hosted  @6 :UInt64;
    notHere @7 :NotHere;
    error   @8 :StoreError;
    holdings @9 :Holdings;
    without @12 :Without;
    metadataRoom @13 :MetadataRoom;
  }
  speaks @10 :UInt16;  # the highest version that the sender understands; 0: that of the message
  mark   @11 :UInt64;  # of the control shard or a tenant's: how far it has counted its requests
}

struct Without {
  core           @0 :UInt16;
  led            @1 :UInt64;
  shards         @2 :UInt64;
  pools          @3 :List(Pool);
  reasons        @4 :List(Text);
  more           @5 :UInt64;
  reliantStripes @6 :UInt64;
  mostOnANode    @7 :UInt64;
  endangered     @8 :List(UInt64);  # stripes to be repaired that can lose 0, 1, 2, ... fragments
  coresNotWalked @9 :UInt64;
  mostInARack    @10 :UInt64;
}

struct Pool {
  id     @0 :UInt16;
  data   @1 :UInt8;
  parity @2 :UInt8;
}

struct NotHere {
  isKnown @0 :Bool;
  leader  @1 :UInt64;
}

struct StoreError {
  kind @0 :UInt16;  # docs/formats/engine-messages.md; one that a reader does not know is "not available now"
  part @1 :UInt16;
  text @2 :Text;
  range @3 :Data;  # of keys that lie in another shard now
}

struct Holdings {
  core      @4 :UInt16;
  fragments @0 :UInt64;
  bytes     @1 :UInt64;
  votes     @2 :UInt64;
  led       @5 :UInt64;
  shards    @6 :UInt64;
  isWhole   @3 :Bool;    # false: something of the node can't be looked at
}

struct MetadataRoom {
  core         @0 :UInt16;
  replicas     @1 :UInt64;
  isMeasured   @2 :Bool;    # false: the fields below say nothing
  fillPercent  @3 :UInt8;
  softPercent  @4 :UInt8;
  hardPercent  @5 :UInt8;
  contentBytes @6 :UInt64;  # of inline content that all shards together may still store
}

struct DeviceLook {
  node               @0 :UInt64;
  core               @1 :UInt16;
  isUseKnown         @2 :Bool;
  usedFragments      @3 :UInt64;
  usedBytes          @4 :UInt64;
  olderPlacements    @5 :UInt64;
  areOpenStripesKnown @6 :Bool;
  openStripes        @7 :UInt64;
}

struct HomeResponse {
  union {
    decisions  @0 :List(Decision);
    collected  @1 :Collected;
    unknown    @2 :List(ChunkName);
    evacuating @3 :Evacuating;
  }
}

struct Decision {
  generation @0 :UInt64;
  isHit      @1 :Bool;
}

struct Evacuating {
  unknown       @0 :List(ChunkName);
  refused       @1 :List(ChunkName);
  waiting       @2 :UInt64;
  devicesWanted @3 :UInt64;
  noRoom        @4 :Bool;
}

struct ShardResponse {
  union {
    pinEpoch @0  :UInt64;
    object   @1  :ObjectInfo;
    opened   @2  :Opened;
    page     @3  :Data;          # row of a page
    deleted  @4  :Bool;
    listing  @5  :Listing;
    upload   @6  :Data;
    part     @7  :PartInfo;
    parts    @8  :Parts;
    uploads  @9  :List(UploadInfo);
    count    @10 :UInt64;
    split    @11 :Data;          # answer about a split
    notInline @12 :Void;         # the content is to go into chunks
    notInlineBeyond @13 :UInt32; # likewise: it is longer than so many bytes
    inline   @14 :Data;          # answer about the inline threshold
  }
}

struct ObjectInfo {
  key            @0 :Text;
  lenBytes       @1 :UInt64;
  modifiedUnixMs @2 :UInt64;
  etag           @3 :Text;
  attributes     @4 :Data;
  partLensBytes  @5 :List(UInt64);
}

struct Opened {
  file  @0 :Data;  # row of an entry
  first @1 :Data;  # row of a page; absent: the object is empty
}

struct Listing {
  items     @0 :List(ListItem);
  truncated @1 :Bool;
}

struct ListItem {
  union {
    object       @0 :ObjectInfo;
    commonPrefix @1 :Text;
  }
}

struct PartInfo {
  part           @0 :UInt16;
  lenBytes       @1 :UInt64;
  modifiedUnixMs @2 :UInt64;
  etag           @3 :Text;
  attributes     @4 :Data;
}

struct UploadInfo {
  upload          @0 :Data;
  key             @1 :Text;
  initiatedUnixMs @2 :UInt64;
  attributes      @3 :Data;
}

struct Parts {
  upload @0 :UploadInfo;
  parts  @1 :List(PartInfo);
}

struct ControlResponse {
  union {
    noAccessKey  @0  :Void;
    accessKey    @1  :AccessKey;
    secrets      @2  :TenantSecrets;
    tenant       @3  :TenantInfo;
    tenants      @4  :List(TenantInfo);
    newAccessKey @5  :NewAccessKey;
    accessKeys   @6  :List(Text);
    bucket       @7  :Bucket;
    buckets      @8  :List(BucketInfo);
    devices      @9  :DeviceRecords;
    device       @10 :DeviceRecord;
    nodes        @11 :NodeEntries;
    node         @12 :NodeEntry;
    shardKey     @13 :OpenShard;
    shards       @14 :Data;       # answer about shards
  }
}

struct AccessKey {
  tenant @0 :UInt64;
  secret @1 :Text;    # secret
}

struct NewAccessKey {
  id     @0 :Text;
  secret @1 :Text;    # secret
}

struct TenantSecrets {
  dedup    @0 :Dedup;
  kekEpoch @1 :UInt32;
  kek      @2 :Data;   # secret
  private  @3 :Data;   # secret
}

struct TenantInfo {
  tenant        @0 :UInt64;
  name          @1 :Text;
  dedup         @2 :Dedup;
  createdUnixMs @3 :UInt64;
}

struct Bucket {
  row    @0 :Data;   # row of a bucket
  data   @1 :UInt8;
  parity @2 :UInt8;
}

struct BucketInfo {
  namespace     @0 :UInt64;
  name          @1 :Text;
  createdUnixMs @2 :UInt64;
  etagMode      @3 :EtagMode;
}

# --- fragments

struct Extent {
  deviceLow  @0 :UInt64;
  deviceHigh @1 :UInt64;
  start      @2 :UInt64;  # in blocks
  len        @3 :UInt64;
}

struct FragmentMeta {
  a                @0  :UInt64;  # the locator
  b                @1  :UInt64;
  c                @2  :UInt64;
  d                @3  :UInt64;
  generation       @4  :UInt64;
  index            @5  :UInt8;
  data             @6  :UInt8;
  parity           @7  :UInt8;
  pool             @8  :UInt16;
  envelopeLenBytes @9  :UInt32;
  payloadLenBytes  @10 :UInt32;
  mapEpoch         @11 :UInt64;
  devices          @12 :Data;    # device ids
}

struct StoredFragment {
  meta   @0 :FragmentMeta;
  extent @1 :Extent;
}

struct FragmentCall {
  version @0 :UInt16;
  union {
    put     @1 :PutFragment;
    read    @2 :ReadFragment;
    locate  @3 :ChunkName;
    release @4 :StoredFragment;
    forget  @5 :StoredFragment;
    devices @6 :Void;
  }
}

struct PutFragment {
  device   @0 :Data;
  meta     @1 :FragmentMeta;
  isUpkeep @2 :Bool;
}

struct ReadFragment {
  fragment @0 :StoredFragment;
  start    @1 :UInt32;
  end      @2 :UInt32;
}

struct FragmentReply {
  version @0 :UInt16;
  union {
    put          @1 :Extent;
    putFailed    @2 :FragmentError;
    read         @3 :Void;
    readFailed   @4 :FragmentError;
    located      @5 :List(StoredFragment);
    locateFailed @6 :FragmentError;
    done         @7 :Void;
    failed       @8 :FragmentError;
    devices      @9 :List(DeviceStatus);
  }
}

struct FragmentError {
  union {
    full :group {
      device      @0 :Data;
      neededBytes @1 :UInt64;
    }
    poolCritical :group {
      pool            @2 :UInt16;
      criticalPercent @3 :UInt8;
    }
    deviceFailed :group {
      device @4 :Data;
      reason @5 :Text;
    }
    corrupt :group {
      locator @6 :Data;
      index   @7 :UInt8;
      extent  @8 :Extent;
    }
    secondOfStripe :group {
      device @9  :Data;
      name   @10 :ChunkName;
    }
    unknown @11 :Text;  # why
  }
}

struct DeviceStatus {
  deviceLow     @0 :UInt64;
  deviceHigh    @1 :UInt64;
  node          @2 :UInt64;
  name          @3 :Text;
  pool          @4 :UInt16;
  capacityBytes @5 :UInt64;
  freeBytes     @6 :UInt64;
  state         @7 :DeviceState;
  readErrors    @8 :UInt64;
  lanesBytes    @9 :UInt64;  # of all zones that freeBytes is of; 0 from a node that does not say
}
