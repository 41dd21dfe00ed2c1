//! Ids, each a newtype, so that one can't stand where another belongs.

use std::fmt;

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $inner);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

macro_rules! bytes_id {
    ($(#[$doc:meta])* $name:ident[$len:literal]) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub [u8; $len]);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

number_id!(
    /// A tenant, numbered by the control shard, never reused.
    TenantId(u64), "t"
);
number_id!(
    /// A namespace (an S3 bucket), numbered by the control shard, never reused.
    NamespaceId(u64), "n"
);
number_id!(
    /// A shard: one ordered run of deltas, one Raft group.
    ShardId(u64), "s"
);
number_id!(
    /// A node of a cluster, numbered when it joins, never reused (I-L10).
    NodeId(u64), "node "
);
number_id!(
    /// A numbered share of a node's disks and shards; the count is fixed at format.
    LaneId(u16), "l"
);
number_id!(
    /// One executor of a node.
    CoreId(u16), "c"
);
number_id!(
    /// An affinity pool: devices of one class with one durability.
    PoolId(u16), "p"
);
number_id!(
    /// One sealing and encoding of a chunk, numbered by its home, never reused for the same locator.
    Generation(u64), "g"
);
number_id!(
    /// A Raft term.
    Term(u64), "term"
);
number_id!(
    /// Epoch of the system master key that a chunk was sealed under.
    MasterEpoch(u32), "me"
);
number_id!(
    /// Epoch in a shard during which its pins were taken; a shard refuses deltas of epochs that it has closed.
    PinEpoch(u64), "pe"
);
number_id!(
    /// Epoch of the device map that a placement was computed from.
    MapEpoch(u64), "map"
);

bytes_id!(
    /// A cluster's id, chosen at random when it is formed.
    ClusterId[16]
);
bytes_id!(
    /// A device's id, chosen at random when it is formatted.
    DeviceId[16]
);
bytes_id!(
    /// A directory's id, chosen at random when the directory is made.
    DirId[16]
);
bytes_id!(
    /// Keyed name of a chunk outside sealed payloads: HMAC-SHA256(cluster locator key, chunk id) (I-K10).
    Locator[32]
);
bytes_id!(
    /// One composition: a file, an object or one part of a multipart upload.
    CompositionId[16]
);
bytes_id!(
    /// One page of a composition's chunk list.
    PageId[16]
);
bytes_id!(
    /// One multipart upload.
    UploadId[16]
);
bytes_id!(
    /// A request; a retry carries the same one.
    RequestId[16]
);

/// Name of a chunk by its content: SHA-256 of the plaintext, or HMAC-SHA256 under the tenant's key (I-K10).
///
/// It stands only in sealed payloads, so it prints as nothing: a log line can't leak it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkId(pub [u8; 32]);

impl fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChunkId(..)")
    }
}

impl ShardId {
    /// The control shard: nodes, devices, pools, tenants, keys, namespaces, the shard map.
    pub const CONTROL: ShardId = ShardId(0);

    /// First id of the homes; home `i` is `HOME_FIRST + i`.
    pub const HOME_FIRST: u64 = 1;

    /// First id that a tenant's shard can have.
    pub const TENANT_FIRST: u64 = 1024;

    /// The lane that holds this shard on a node with `lane_count` lanes.
    #[must_use]
    pub fn lane(self, lane_count: u16) -> LaneId {
        LaneId((self.0 % u64::from(lane_count)) as u16)
    }
}

impl Locator {
    /// A well mixed number made from the locator (it is an HMAC, so any eight bytes do).
    #[must_use]
    pub fn hash64(&self) -> u64 {
        u64::from_le_bytes(self.0[..8].try_into().expect("eight bytes"))
    }

    /// The lane whose index slice lists the chunk's fragments on a node with `lane_count` lanes.
    #[must_use]
    pub fn index_lane(&self, lane_count: u16) -> LaneId {
        LaneId(((self.hash64() >> 16) % u64::from(lane_count)) as u16)
    }

    /// The home of the chunk among `home_count` homes.
    #[must_use]
    pub fn home(&self, home_count: u16) -> ShardId {
        ShardId(ShardId::HOME_FIRST + (self.hash64() >> 32) % u64::from(home_count))
    }
}
