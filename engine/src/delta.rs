//! The commands of a shard's log: a clear header that anyone who holds the log may act on, and a payload of row
//! changes, sealed where it carries names. Byte layout: `docs/formats/delta.md`.
//!
//! One form serves all kinds of shards. A tenant's shard uses all of it; homes and the control shard count no
//! references, and the payload of a home is clear, since it knows locators only.

use kiseki_types::codec::{CodecError, Reader, Writer};
use kiseki_types::ids::{Generation, Locator, NamespaceId, PinEpoch, RequestId, Term};
use kiseki_types::limits::COMMAND_LEN_BYTES_MAX;

/// Version of the command layout.
const COMMAND_FORMAT: u8 = 1;

/// Most references that one delta adds or drops; longer lists are split by pages.
pub const REFERENCES_PER_DELTA_MAX: usize = 4096;

/// Most row changes in one delta.
pub const ROWS_PER_DELTA_MAX: usize = 65_536;

/// One generation of one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkName {
    /// The chunk.
    pub locator: Locator,
    /// Which sealing of it.
    pub generation: Generation,
}

impl ChunkName {
    /// As a key of a table: locator, then generation in big endian.
    #[must_use]
    pub fn to_key(self) -> Vec<u8> {
        let mut key = self.locator.0.to_vec();
        key.extend_from_slice(&self.generation.0.to_be_bytes());
        key
    }

    /// Back from a key.
    pub fn from_key(key: &[u8]) -> Result<ChunkName, CodecError> {
        let mut reader = Reader::new("chunk name", key);
        let locator = Locator(reader.array()?);
        let generation = Generation(u64::from_be_bytes(reader.array()?));
        reader.end()?;
        Ok(ChunkName { locator, generation })
    }
}

/// A change of one row of the shard's first file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowChange {
    /// Which table.
    pub table: u8,
    /// The key.
    pub key: Vec<u8>,
    /// The new value; `None` removes the row.
    pub value: Option<Vec<u8>>,
}

impl RowChange {
    /// Sets a row.
    #[must_use]
    pub fn put(table: u8, key: Vec<u8>, value: Vec<u8>) -> RowChange {
        RowChange { table, key, value: Some(value) }
    }
    /// Removes a row.
    #[must_use]
    pub fn remove(table: u8, key: Vec<u8>) -> RowChange {
        RowChange { table, key, value: None }
    }
}

/// The row changes of a delta as they travel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Encoded rows in clear: ids and counts only.
    Clear(Vec<u8>),
    /// Encoded rows sealed under the shard's metadata key.
    Sealed(Vec<u8>),
}

/// One immutable change of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta {
    /// Term in which the leader decided; every replica refuses the delta when it was committed in another.
    pub term: Term,
    /// Oldest epoch of the pins that this delta relies on; a shard refuses epochs that it has closed.
    pub pin_epoch: PinEpoch,
    /// The request; a retry carries the same one.
    pub request: RequestId,
    /// The namespace, bound into the sealed payload; 0 where there is none.
    pub namespace: NamespaceId,
    /// References added, with how many each.
    pub added: Vec<(ChunkName, u32)>,
    /// References dropped, with how many each.
    pub dropped: Vec<(ChunkName, u32)>,
    /// Bytes of content that become visible.
    pub added_bytes: u64,
    /// Bytes of content that vanish.
    pub dropped_bytes: u64,
    /// The row changes.
    pub payload: Payload,
}

impl Delta {
    /// What the sealed payload is bound to (its AAD): namespace, request, format.
    #[must_use]
    pub fn binding(namespace: NamespaceId, request: RequestId) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u64(namespace.0).raw(&request.0).u8(COMMAND_FORMAT);
        writer.finish()
    }
}

/// A command of a shard's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// A change of rows and counts.
    Delta(Delta),
    /// From now on refuse deltas that name this generation, and answer how often it is named.
    Fence(ChunkName),
    /// The generation may be named again.
    Unfence(ChunkName),
    /// Refuse deltas of pin epochs below this one, which is the one that writers were given so far, and forget fences set
    /// in them; writers get the next one. Again with the same epoch: forget more of them.
    ClosePinEpochs(PinEpoch),
    /// The shard has told the home that it names this generation no more.
    ForgetCandidate(ChunkName),
}

const KIND_DELTA: u8 = 1;
const KIND_FENCE: u8 = 2;
const KIND_UNFENCE: u8 = 3;
const KIND_CLOSE: u8 = 4;
const KIND_FORGET: u8 = 5;

impl Command {
    /// The bytes for the log.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u8(COMMAND_FORMAT);
        match self {
            Command::Delta(delta) => {
                writer.u8(KIND_DELTA).u64(delta.term.0).u64(delta.pin_epoch.0).raw(&delta.request.0);
                writer.u64(delta.namespace.0).u64(delta.added_bytes).u64(delta.dropped_bytes);
                encode_references(&mut writer, &delta.added);
                encode_references(&mut writer, &delta.dropped);
                match &delta.payload {
                    Payload::Clear(bytes) => writer.u8(0).bytes(bytes),
                    Payload::Sealed(bytes) => writer.u8(1).bytes(bytes),
                };
            }
            Command::Fence(name) => encode_name(&mut writer, KIND_FENCE, name),
            Command::Unfence(name) => encode_name(&mut writer, KIND_UNFENCE, name),
            Command::ForgetCandidate(name) => encode_name(&mut writer, KIND_FORGET, name),
            Command::ClosePinEpochs(epoch) => {
                writer.u8(KIND_CLOSE).u64(epoch.0);
            }
        }
        writer.finish()
    }

    /// Back from the log.
    pub fn decode(bytes: &[u8]) -> Result<Command, CodecError> {
        let mut reader = Reader::new("command", bytes);
        let format = reader.u8()?;
        if format != COMMAND_FORMAT {
            return Err(reader.unknown(u64::from(format)));
        }
        let kind = reader.u8()?;
        let command = match kind {
            KIND_DELTA => Command::Delta(decode_delta(&mut reader)?),
            KIND_FENCE => Command::Fence(decode_name(&mut reader)?),
            KIND_UNFENCE => Command::Unfence(decode_name(&mut reader)?),
            KIND_FORGET => Command::ForgetCandidate(decode_name(&mut reader)?),
            KIND_CLOSE => Command::ClosePinEpochs(PinEpoch(reader.u64()?)),
            other => return Err(reader.unknown(u64::from(other))),
        };
        reader.end()?;
        Ok(command)
    }
}

fn encode_name(writer: &mut Writer, kind: u8, name: &ChunkName) {
    writer.u8(kind).raw(&name.locator.0).u64(name.generation.0);
}

fn decode_name(reader: &mut Reader<'_>) -> Result<ChunkName, CodecError> {
    Ok(ChunkName { locator: Locator(reader.array()?), generation: Generation(reader.u64()?) })
}

fn encode_references(writer: &mut Writer, references: &[(ChunkName, u32)]) {
    writer.u32(u32::try_from(references.len()).expect("bounded by REFERENCES_PER_DELTA_MAX"));
    for (name, count) in references {
        writer.raw(&name.locator.0).u64(name.generation.0).u32(*count);
    }
}

fn decode_references(reader: &mut Reader<'_>) -> Result<Vec<(ChunkName, u32)>, CodecError> {
    let count = reader.count(REFERENCES_PER_DELTA_MAX)?;
    (0..count).map(|_| Ok((decode_name(reader)?, reader.u32()?))).collect()
}

fn decode_delta(reader: &mut Reader<'_>) -> Result<Delta, CodecError> {
    let term = Term(reader.u64()?);
    let pin_epoch = PinEpoch(reader.u64()?);
    let request = RequestId(reader.array()?);
    let namespace = NamespaceId(reader.u64()?);
    let added_bytes = reader.u64()?;
    let dropped_bytes = reader.u64()?;
    let added = decode_references(reader)?;
    let dropped = decode_references(reader)?;
    let payload = match reader.u8()? {
        0 => Payload::Clear(reader.bytes(COMMAND_LEN_BYTES_MAX)?.to_vec()),
        1 => Payload::Sealed(reader.bytes(COMMAND_LEN_BYTES_MAX)?.to_vec()),
        other => return Err(reader.unknown(u64::from(other))),
    };
    Ok(Delta { term, pin_epoch, request, namespace, added, dropped, added_bytes, dropped_bytes, payload })
}

/// Encodes row changes for a payload.
#[must_use]
pub fn encode_rows(rows: &[RowChange]) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.u32(u32::try_from(rows.len()).expect("bounded by ROWS_PER_DELTA_MAX"));
    for row in rows {
        writer.u8(row.table).bytes(&row.key);
        match &row.value {
            Some(value) => writer.u8(1).bytes(value),
            None => writer.u8(0),
        };
    }
    writer.finish()
}

/// Decodes row changes of a payload.
pub fn decode_rows(bytes: &[u8]) -> Result<Vec<RowChange>, CodecError> {
    let mut reader = Reader::new("delta rows", bytes);
    let count = reader.count(ROWS_PER_DELTA_MAX)?;
    let mut rows = Vec::with_capacity(count.min(1024));
    for _ in 0..count {
        let table = reader.u8()?;
        let key = reader.bytes(COMMAND_LEN_BYTES_MAX)?.to_vec();
        let value = match reader.u8()? {
            0 => None,
            1 => Some(reader.bytes(COMMAND_LEN_BYTES_MAX)?.to_vec()),
            other => return Err(reader.unknown(u64::from(other))),
        };
        rows.push(RowChange { table, key, value });
    }
    reader.end()?;
    Ok(rows)
}

/// What a replica answers to a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done. For a fence: how often the shard names the generation.
    Done {
        /// The count, 0 where it means nothing.
        count: u64,
    },
    /// The delta was committed in another term than it was decided in; decide again.
    RefusedTerm,
    /// The delta relies on a pin epoch that is closed; pin again.
    RefusedEpoch,
    /// The delta names a fenced generation; write that chunk again.
    RefusedFenced(ChunkName),
}

impl Outcome {
    /// The bytes of a response.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        match self {
            Outcome::Done { count } => writer.u8(0).u64(*count),
            Outcome::RefusedTerm => writer.u8(1),
            Outcome::RefusedEpoch => writer.u8(2),
            Outcome::RefusedFenced(name) => writer.u8(3).raw(&name.locator.0).u64(name.generation.0),
        };
        writer.finish()
    }

    /// Back from a response.
    pub fn decode(bytes: &[u8]) -> Result<Outcome, CodecError> {
        let mut reader = Reader::new("outcome", bytes);
        let outcome = match reader.u8()? {
            0 => Outcome::Done { count: reader.u64()? },
            1 => Outcome::RefusedTerm,
            2 => Outcome::RefusedEpoch,
            3 => Outcome::RefusedFenced(decode_name(&mut reader)?),
            other => return Err(reader.unknown(u64::from(other))),
        };
        reader.end()?;
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(byte: u8) -> ChunkName {
        ChunkName { locator: Locator([byte; 32]), generation: Generation(u64::from(byte)) }
    }

    #[test]
    fn commands_survive_the_round_trip_and_truncation_is_an_error() {
        let rows = vec![RowChange::put(1, b"k".to_vec(), b"v".to_vec()), RowChange::remove(2, b"gone".to_vec())];
        assert_eq!(decode_rows(&encode_rows(&rows)).unwrap(), rows);
        let delta = Delta {
            term: Term(3),
            pin_epoch: PinEpoch(4),
            request: RequestId([5; 16]),
            namespace: NamespaceId(6),
            added: vec![(name(7), 1)],
            dropped: vec![(name(8), 2), (name(9), 3)],
            added_bytes: 10,
            dropped_bytes: 11,
            payload: Payload::Sealed(encode_rows(&rows)),
        };
        let commands = [
            Command::Delta(delta),
            Command::Fence(name(1)),
            Command::Unfence(name(2)),
            Command::ClosePinEpochs(PinEpoch(9)),
            Command::ForgetCandidate(name(3)),
        ];
        for command in commands {
            let bytes = command.encode();
            assert_eq!(Command::decode(&bytes).unwrap(), command);
            for len in 0..bytes.len() {
                assert!(Command::decode(&bytes[..len]).is_err(), "{command:?} cut to {len}");
            }
        }
    }
}
