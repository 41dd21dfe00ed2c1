//! Rows of the control shard. Byte layouts: `docs/formats/control.md`. Its file is sealed; secrets are sealed once more
//! inside their rows.

use crate::api::{BucketInfo, EtagMode};
use crate::chunker::ChunkFormat;
use crate::message::Dedup;
use crate::stripe::check_shape;
use kiseki_types::codec::{CodecError, Reader, Writer};
use kiseki_types::fragment::StripeShape;
use kiseki_types::ids::{DirId, NamespaceId, PoolId, ShardId, TenantId};

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

const FORMAT: u8 = 1;
const NAME_LEN_BYTES_MAX: usize = 1024;
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
    /// The shard of its root.
    pub shard: ShardId,
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
        writer.u8(FORMAT).u64(self.tenant.0).u64(self.info.namespace.0).str(&self.info.name);
        writer.u64(self.info.created_unix_ms).u8(u8::from(self.info.etag_mode == EtagMode::Opaque));
        writer.u64(self.shard.0).raw(&self.root.0).u16(self.pool.0);
        self.chunks.encode(&mut writer);
        writer.finish()
    }
    /// Back from a row.
    pub fn decode(bytes: &[u8]) -> Result<BucketRow, CodecError> {
        let mut reader = versioned("bucket", bytes)?;
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
        reader.end()?;
        let info = BucketInfo { namespace, name, created_unix_ms, etag_mode };
        Ok(BucketRow { tenant, info, shard, root, pool, chunks })
    }
}

/// A tenant's shard.
pub struct ShardRow {
    /// Whose.
    pub tenant: TenantId,
    /// Whether every group of it has been made; until then it may start empty (I-L10).
    pub active: bool,
    /// Its metadata key, wrapped by the tenant's KEK.
    pub wrapped_metadata_key: Vec<u8>,
}

impl ShardRow {
    /// The bytes of a row.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u8(FORMAT).u64(self.tenant.0).u8(u8::from(self.active)).bytes(&self.wrapped_metadata_key);
        writer.finish()
    }
    /// Back from a row.
    pub fn decode(bytes: &[u8]) -> Result<ShardRow, CodecError> {
        let mut reader = versioned("shard", bytes)?;
        let tenant = TenantId(reader.u64()?);
        let active = match reader.u8()? {
            0 => false,
            1 => true,
            other => return Err(reader.unknown(u64::from(other))),
        };
        let wrapped_metadata_key = reader.bytes(SEALED_LEN_BYTES_MAX)?.to_vec();
        reader.end()?;
        Ok(ShardRow { tenant, active, wrapped_metadata_key })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_that_stores_nothing_is_refused() {
        for (data, parity, fits) in [(4, 2, true), (1, 0, true), (0, 2, false), (200, 200, false)] {
            let row = encode_pool(StripeShape { data, parity });
            assert_eq!(decode_pool(&row).is_ok(), fits, "{data}+{parity}");
        }
    }
}
