//! What a home's table says of one generation. Byte layout: `docs/formats/control.md`.

use super::{FORMAT, SHARDS_PER_GENERATION_MAX};
use crate::stripe::{check_shape, shape_for};
use kiseki_types::codec::{CodecError, Reader, Writer};
use kiseki_types::fragment::StripeShape;
use kiseki_types::ids::{MasterEpoch, PoolId, ShardId};
use kiseki_types::limits::ENVELOPE_LEN_BYTES_MAX;
use std::collections::BTreeSet;

/// How far a generation has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GenerationState {
    /// A writer means to write it.
    Intent,
    /// A committed delta names it: hits count.
    Complete,
    /// Being collected: no hits.
    Condemned,
    /// Fenced in every shard involved, and named by none: only its space has still to be freed.
    Freeing,
}

impl GenerationState {
    /// Whether a delta may name it, so that its stripe is looked after. A condemned one may stay so for as long as a shard does
    /// not answer, and be named there (I-C2).
    pub(super) fn is_kept(self) -> bool {
        matches!(self, GenerationState::Complete | GenerationState::Condemned)
    }
}

/// What a home knows of one generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GenerationRecord {
    pub(super) state: GenerationState,
    pub(super) pool: PoolId,
    pub(super) shape: StripeShape,
    pub(super) envelope_len_bytes: u32,
    pub(super) master_epoch: MasterEpoch,
    /// Shards that may name it: those that ever pinned it.
    pub(super) shards: BTreeSet<ShardId>,
}

impl GenerationRecord {
    /// Whether a shard may come to name it.
    pub(super) fn may_be_named_by(&self, shard: ShardId) -> bool {
        matches!(self.state, GenerationState::Intent | GenerationState::Complete)
            && (self.shards.contains(&shard) || self.shards.len() < SHARDS_PER_GENERATION_MAX)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        let state = match self.state {
            GenerationState::Intent => 0,
            GenerationState::Complete => 1,
            GenerationState::Condemned => 2,
            GenerationState::Freeing => 3,
        };
        writer.u8(FORMAT).u8(state).u16(self.pool.0).u8(self.shape.data).u8(self.shape.parity);
        writer.u32(self.envelope_len_bytes).u32(self.master_epoch.0).u32(self.shards.len() as u32);
        for shard in &self.shards {
            writer.u64(shard.0);
        }
        writer.finish()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<GenerationRecord, CodecError> {
        let mut reader = Reader::new("generation record", bytes);
        let format = reader.u8()?;
        if format != FORMAT {
            return Err(reader.unknown(u64::from(format)));
        }
        let state = match reader.u8()? {
            0 => GenerationState::Intent,
            1 => GenerationState::Complete,
            2 => GenerationState::Condemned,
            3 => GenerationState::Freeing,
            other => return Err(reader.unknown(u64::from(other))),
        };
        let pool = PoolId(reader.u16()?);
        let shape = StripeShape { data: reader.u8()?, parity: reader.u8()? };
        check_shape(shape).map_err(|_| reader.unknown(u64::from(shape.data)))?;
        let envelope_len_bytes = reader.u32()?;
        if envelope_len_bytes as usize > ENVELOPE_LEN_BYTES_MAX {
            return Err(reader.unknown(u64::from(envelope_len_bytes)));
        }
        let master_epoch = MasterEpoch(reader.u32()?);
        let count = reader.count(SHARDS_PER_GENERATION_MAX)?;
        let shards = (0..count).map(|_| Ok(ShardId(reader.u64()?))).collect::<Result<_, CodecError>>()?;
        reader.end()?;
        Ok(GenerationRecord { state, pool, shape, envelope_len_bytes, master_epoch, shards })
    }
}

/// The record of a generation decoded and encoded again, for `crate::fuzzing`.
pub(crate) fn fuzz_generation(bytes: &[u8]) -> Option<Vec<u8>> {
    let record = GenerationRecord::decode(bytes).ok()?;
    let _shape = shape_for(record.shape, record.envelope_len_bytes);
    let _payload_len = crate::stripe::fragment_payload_len(record.envelope_len_bytes, record.shape);
    Some(record.encode())
}

/// The record of a complete generation, for `crate::fuzzing`.
pub(crate) fn fuzz_generation_seed() -> Vec<u8> {
    let record = GenerationRecord {
        state: GenerationState::Complete,
        pool: PoolId(1),
        shape: StripeShape { data: 4, parity: 2 },
        envelope_len_bytes: 300_000,
        master_epoch: MasterEpoch(1),
        shards: BTreeSet::from([ShardId(1024), ShardId(1025)]),
    };
    record.encode()
}
