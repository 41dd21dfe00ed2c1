//! Rows of the control shard. Byte layouts: `docs/formats/control.md`. Its file is sealed; secrets are sealed once more
//! inside their rows.

use crate::api::{BucketInfo, EtagMode};
use crate::chunker::ChunkFormat;
use crate::key_ranges::KeyRanges;
use crate::message::{Dedup, NodeEntry, NodeState};
use crate::racks::RACK_LEN_BYTES_MAX;
use crate::split_message::SplitOrder;
use crate::stripe::check_shape;
use kiseki_types::codec::{CodecError, Reader, Writer};
use kiseki_types::fragment::StripeShape;
use kiseki_types::ids::{DirId, NamespaceId, NodeId, PoolId, ShardId, TenantId};

/// Tenant -> [`TenantRow`].
pub const TENANTS: u8 = 1;
/// Name -> tenant.
pub const TENANT_NAMES: u8 = 2;
/// Access key id -> [`AccessKeyRow`].
pub const ACCESS_KEYS: u8 = 3;
/// HMAC of the name -> [`BucketRow`].
pub const BUCKETS: u8 = 4;
/// (tenant, namespace) -> HMAC of the name.
pub const TENANT_BUCKETS: u8 = 5;
/// Shard -> [`ShardRow`].
pub const SHARDS: u8 = 6;
/// Name of a counter -> its next value.
pub const COUNTERS: u8 = 7;
/// Pool -> shape of its stripes, see [`encode_pool`].
pub const POOLS: u8 = 8;
/// Device -> [`DeviceRecord`](crate::device_record::DeviceRecord).
pub const DEVICES: u8 = 9;
/// Node -> see [`encode_node`].
pub const NODES: u8 = 10;
/// Shard that is being split -> [`SplitRow`].
pub const SPLITS: u8 = 11;

/// Records of nodes, those that were removed among them (I-O5).
pub const NODES_MAX: usize = 1024;
/// Addresses of a node.
pub const NODE_ADDRESSES_MAX: usize = 8;
/// Longest address of a node.
pub const NODE_ADDRESS_LEN_BYTES_MAX: usize = 255;
/// Longest version of a node's program.
pub const NODE_VERSION_LEN_BYTES_MAX: usize = 64;

const FORMAT: u8 = 1;
/// Rows of shards that name their founder, since it is not the first node.
const SHARD_FORMAT: u8 = 2;
/// Rows of buckets whose keys lie in several shards.
const SPLIT_BUCKET_FORMAT: u8 = 2;
/// Rows of nodes that are in a rack.
const RACK_FORMAT: u8 = 2;
/// The node that formed the cluster.
const FIRST_NODE: NodeId = NodeId(1);
pub(crate) const NAME_LEN_BYTES_MAX: usize = 1024;
const SEALED_LEN_BYTES_MAX: usize = 4096;

fn versioned<'a>(what: &'static str, bytes: &'a [u8]) -> Result<Reader<'a>, CodecError> {
    let mut reader = Reader::new(what, bytes);
    match reader.u8()? {
        FORMAT => Ok(reader),
        other => Err(reader.unknown(u64::from(other))),
    }
}

/// A tenant.
pub struct TenantRow {
    /// Its name.
    pub name: String,
    /// Its dedup policy.
    pub dedup: Dedup,
    /// When it was made, milliseconds since 1970.
    pub created_unix_ms: u64,
    /// Epoch of its KEK.
    pub kek_epoch: u32,
    /// KEK and private secret, sealed.
    pub sealed_secrets: Vec<u8>,
}

impl TenantRow {
    /// The bytes of a row.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u8(FORMAT).str(&self.name).u8(u8::from(self.dedup == Dedup::Private)).u64(self.created_unix_ms);
        writer.u32(self.kek_epoch).bytes(&self.sealed_secrets);
        writer.finish()
    }
    /// Back from a row.
    pub fn decode(bytes: &[u8]) -> Result<TenantRow, CodecError> {
        let mut reader = versioned("tenant", bytes)?;
        let name = reader.str(NAME_LEN_BYTES_MAX)?.to_owned();
        let dedup = match reader.u8()? {
            0 => Dedup::Shared,
            1 => Dedup::Private,
            other => return Err(reader.unknown(u64::from(other))),
        };
        let created_unix_ms = reader.u64()?;
        let kek_epoch = reader.u32()?;
        let sealed_secrets = reader.bytes(SEALED_LEN_BYTES_MAX)?.to_vec();
        reader.end()?;
        Ok(TenantRow { name, dedup, created_unix_ms, kek_epoch, sealed_secrets })
    }
}

/// An access key.
pub struct AccessKeyRow {
    /// Whose.
    pub tenant: TenantId,
    /// When it was made, milliseconds since 1970.
    pub created_unix_ms: u64,
    /// Its secret, sealed.
    pub sealed_secret: Vec<u8>,
}

impl AccessKeyRow {
    /// The bytes of a row.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u8(FORMAT).u64(self.tenant.0).u64(self.created_unix_ms).bytes(&self.sealed_secret);
        writer.finish()
    }
    /// Back from a row.
    pub fn decode(bytes: &[u8]) -> Result<AccessKeyRow, CodecError> {
        let mut reader = versioned("access key", bytes)?;
        let tenant = TenantId(reader.u64()?);
        let created_unix_ms = reader.u64()?;
        let sealed_secret = reader.bytes(SEALED_LEN_BYTES_MAX)?.to_vec();
        reader.end()?;
        Ok(AccessKeyRow { tenant, created_unix_ms, sealed_secret })
    }
}

/// A bucket.
pub struct BucketRow {
    /// Whose.
    pub tenant: TenantId,
    /// What users see.
    pub info: BucketInfo,
    /// The shard of its root, and of every key that no range names.
    pub shard: ShardId,
    /// Where other keys lie.
    pub ranges: KeyRanges,
    /// Its root.
    pub root: DirId,
    /// Its pool.
    pub pool: PoolId,
    /// How it is cut.
    pub chunks: ChunkFormat,
}

impl BucketRow {
    /// The bytes of a row.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        let is_whole = self.ranges.is_empty();
        writer.u8(if is_whole { FORMAT } else { SPLIT_BUCKET_FORMAT });
        writer.u64(self.tenant.0).u64(self.info.namespace.0).str(&self.info.name);
        writer.u64(self.info.created_unix_ms).u8(u8::from(self.info.etag_mode == EtagMode::Opaque));
        writer.u64(self.shard.0).raw(&self.root.0).u16(self.pool.0);
        self.chunks.encode(&mut writer);
        if !is_whole {
            self.ranges.encode(&mut writer);
        }
        writer.finish()
    }
    /// Back from a row.
    pub fn decode(bytes: &[u8]) -> Result<BucketRow, CodecError> {
        let mut reader = Reader::new("bucket", bytes);
        let format = reader.u8()?;
        if format != FORMAT && format != SPLIT_BUCKET_FORMAT {
            return Err(reader.unknown(u64::from(format)));
        }
        let tenant = TenantId(reader.u64()?);
        let namespace = NamespaceId(reader.u64()?);
        let name = reader.str(NAME_LEN_BYTES_MAX)?.to_owned();
        let created_unix_ms = reader.u64()?;
        let etag_mode = match reader.u8()? {
            0 => EtagMode::Md5,
            1 => EtagMode::Opaque,
            other => return Err(reader.unknown(u64::from(other))),
        };
        let shard = ShardId(reader.u64()?);
        let root = DirId(reader.array()?);
        let pool = PoolId(reader.u16()?);
        let chunks = ChunkFormat::decode(&mut reader)?;
        let ranges = match format {
            FORMAT => KeyRanges::default(),
            _ => KeyRanges::decode(&mut reader)?,
        };
        if format == SPLIT_BUCKET_FORMAT && ranges.is_empty() {
            return Err(reader.unknown(0)); // such a row is of format 1
        }
        reader.end()?;
        let info = BucketInfo { namespace, name, created_unix_ms, etag_mode };
        Ok(BucketRow { tenant, info, shard, ranges, root, pool, chunks })
    }
}

/// A tenant's shard.
pub struct ShardRow {
    /// Whose.
    pub tenant: TenantId,
    /// Whether every group of it has been made; until then it may start empty (I-L10).
    pub active: bool,
    /// The node that made it, or is to: nobody else may (I-O4).
    pub founder: NodeId,
    /// Its metadata key, wrapped by the tenant's KEK.
    pub wrapped_metadata_key: Vec<u8>,
}

impl ShardRow {
    /// The bytes of a row.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        let is_first = self.founder == FIRST_NODE;
        writer.u8(if is_first { FORMAT } else { SHARD_FORMAT }).u64(self.tenant.0).u8(u8::from(self.active));
        if !is_first {
            writer.u64(self.founder.0);
        }
        writer.bytes(&self.wrapped_metadata_key);
        writer.finish()
    }
    /// Back from a row.
    pub fn decode(bytes: &[u8]) -> Result<ShardRow, CodecError> {
        let mut reader = Reader::new("shard", bytes);
        let format = reader.u8()?;
        if format != FORMAT && format != SHARD_FORMAT {
            return Err(reader.unknown(u64::from(format)));
        }
        let tenant = TenantId(reader.u64()?);
        let active = match reader.u8()? {
            0 => false,
            1 => true,
            other => return Err(reader.unknown(u64::from(other))),
        };
        let founder = if format == FORMAT { FIRST_NODE } else { NodeId(reader.u64()?) };
        if format == SHARD_FORMAT && founder == FIRST_NODE {
            return Err(reader.unknown(founder.0)); // such a row is of format 1
        }
        let wrapped_metadata_key = reader.bytes(SEALED_LEN_BYTES_MAX)?.to_vec();
        reader.end()?;
        Ok(ShardRow { tenant, active, founder, wrapped_metadata_key })
    }
}

/// A split that goes on.
pub struct SplitRow {
    /// What moves where.
    pub order: SplitOrder,
    /// HMAC of the bucket's name: its key in [`BUCKETS`].
    pub bucket: Vec<u8>,
}

impl SplitRow {
    /// The bytes of a row.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        self.order.encode(writer.u8(FORMAT));
        writer.bytes(&self.bucket);
        writer.finish()
    }
    /// Back from a row.
    pub fn decode(bytes: &[u8]) -> Result<SplitRow, CodecError> {
        let mut reader = versioned("split", bytes)?;
        let order = SplitOrder::decode(&mut reader)?;
        let bucket = reader.bytes(NAME_LEN_BYTES_MAX)?.to_vec();
        reader.end()?;
        Ok(SplitRow { order, bucket })
    }
}

/// A pool's durability (I-C4): holds for chunks written from now on.
pub fn encode_pool(shape: StripeShape) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.u8(FORMAT).u8(shape.data).u8(shape.parity);
    writer.finish()
}

/// Back from a row of [`POOLS`].
pub fn decode_pool(bytes: &[u8]) -> Result<StripeShape, CodecError> {
    let mut reader = versioned("pool", bytes)?;
    let shape = StripeShape { data: reader.u8()?, parity: reader.u8()? };
    check_shape(shape).map_err(|_| reader.unknown(u64::from(shape.data)))?;
    reader.end()?;
    Ok(shape)
}

/// What is recorded of a node; its number is the key.
#[must_use]
pub fn encode_node(entry: &NodeEntry) -> Vec<u8> {
    let mut writer = Writer::new();
    let state = match entry.state {
        NodeState::Invited => 0,
        NodeState::Active => 1,
        NodeState::Draining => 2,
        NodeState::Removed => 3,
    };
    let format = if entry.rack.is_empty() { FORMAT } else { RACK_FORMAT };
    writer.u8(format).u8(state).u64(entry.since_unix_ms).u16(entry.lanes).u16(entry.cores).str(&entry.version);
    let count = u32::try_from(entry.addresses.len()).expect("a node has few addresses");
    writer.u32(count);
    for address in &entry.addresses {
        writer.str(address);
    }
    if format == RACK_FORMAT {
        writer.str(&entry.rack);
    }
    writer.finish()
}

/// Back from a row of [`NODES`].
pub fn decode_node(node: NodeId, bytes: &[u8]) -> Result<NodeEntry, CodecError> {
    let mut reader = Reader::new("node", bytes);
    let format = reader.u8()?;
    if !matches!(format, FORMAT | RACK_FORMAT) {
        return Err(reader.unknown(u64::from(format)));
    }
    let state = match reader.u8()? {
        0 => NodeState::Invited,
        1 => NodeState::Active,
        2 => NodeState::Draining,
        3 => NodeState::Removed,
        other => return Err(reader.unknown(u64::from(other))),
    };
    let since_unix_ms = reader.u64()?;
    let (lanes, cores) = (reader.u16()?, reader.u16()?);
    let version = reader.str(NODE_VERSION_LEN_BYTES_MAX)?.to_owned();
    let mut addresses = Vec::new();
    for _ in 0..reader.count(NODE_ADDRESSES_MAX)? {
        addresses.push(reader.str(NODE_ADDRESS_LEN_BYTES_MAX)?.to_owned());
    }
    let rack = if format == RACK_FORMAT { reader.str(RACK_LEN_BYTES_MAX)?.to_owned() } else { String::new() };
    reader.end()?;
    Ok(NodeEntry { node, state, addresses, lanes, cores, version, since_unix_ms, rack })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_comes_back_as_it_was_and_nothing_longer_than_allowed() {
        let entry = |state, addresses: &[&str], rack: &str| NodeEntry {
            node: NodeId(7),
            state,
            addresses: addresses.iter().map(|&address| address.to_owned()).collect(),
            lanes: 16,
            cores: 4,
            version: "0.3.1".to_owned(),
            since_unix_ms: 1_700_000_000_000,
            rack: rack.to_owned(),
        };
        for state in [NodeState::Invited, NodeState::Active, NodeState::Draining, NodeState::Removed] {
            for addresses in [&[][..], &["10.0.0.7:9000"], &["node7.example:9000", "[fd00::7]:9000"]] {
                let before = entry(state, addresses, if addresses.len() == 1 { "r1" } else { "" });
                let row = encode_node(&before);
                assert_eq!(decode_node(NodeId(7), &row).ok(), Some(before));
                for len in 0..row.len() {
                    assert!(decode_node(NodeId(7), &row[..len]).is_err(), "{len} of {} bytes", row.len());
                }
                assert!(decode_node(NodeId(7), &[&row[..], &[0]].concat()).is_err(), "a byte follows");
            }
        }
        let long = "a".repeat(NODE_ADDRESS_LEN_BYTES_MAX + 1);
        for addresses in [&["a:1"; NODE_ADDRESSES_MAX + 1][..], &[long.as_str()]] {
            assert!(decode_node(NodeId(7), &encode_node(&entry(NodeState::Active, addresses, ""))).is_err());
        }
        assert!(decode_node(NodeId(7), &[FORMAT, 4]).is_err(), "no such state");
        assert!(decode_node(NodeId(7), &[3, 0]).is_err(), "no such format");
        let long = "r".repeat(RACK_LEN_BYTES_MAX + 1);
        assert!(decode_node(NodeId(7), &encode_node(&entry(NodeState::Active, &[], &long))).is_err());
    }

    #[test]
    fn a_pool_that_stores_nothing_is_refused() {
        for (data, parity, fits) in [(4, 2, true), (1, 0, true), (0, 2, false), (200, 200, false)] {
            let row = encode_pool(StripeShape { data, parity });
            assert_eq!(decode_pool(&row).is_ok(), fits, "{data}+{parity}");
        }
    }
}
