//! Snapshots on their way to a peer: length-prefixed JSON records of one consistent position, in bounded memory.
//!
//! Ids and counts are readable. Rows of a sealed file travel sealed again, under a key of this one stream (I-K1); rows
//! of a clear file travel as base64. The last record carries a SHA-256 of everything before it *as it was sent*, so it
//! is no hash of plaintext. The layout is told in docs/formats/snapshot.md.

use crate::error::RaftError;
use crate::log_store::record::decode_applied;
use crate::shard_machine::META_APPLIED;
use crate::table_set::{SetExport, SetImport, SetRow, TableSet};
use crate::type_config::SnapshotMeta;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::digest::{Context, SHA256};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use kiseki_types::ShardId;
use kiseki_types::codec::{CodecError, Reader, Writer};
use kiseki_types::runtime::{Ports, RuntimeExt};
use kiseki_types::secret::SecretKey;
use kiseki_types::table::Row;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Version of the records.
pub const SNAPSHOT_VERSION: u32 = 1;

/// Row bytes in one record, about.
const ROWS_LEN_BYTES: usize = 256 * 1024;

/// Longest record that a receiver takes: a batch of rows and one row of the greatest length, in base64.
pub const FRAME_LEN_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Longest key or value in a row.
const FIELD_LEN_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Most rows in one record.
const ROWS_PER_FRAME_MAX: usize = 1 << 20;

/// What a snapshot is for openraft: the tables here, or new files that a peer's rows were put into.
pub enum SnapshotData {
    /// This node's tables: they are read when a peer asks.
    Local(TableSet),
    /// Received and checked; to be swapped in.
    Received(Box<SetImport>),
}

/// Seals rows of a sealed file for one stream.
///
/// To be correct: `number` is used once in a stream and `stream` is fresh random, so no key and nonce pair seals
/// twice (I-K7); `open` is an error for anything that `seal` did not make for the same stream and number.
pub trait RowSeal {
    /// Seals rows.
    fn seal(&self, stream: &[u8; 16], number: u64, plain: Vec<u8>) -> Vec<u8>;
    /// Opens rows; `None` when they don't verify.
    fn open(&self, stream: &[u8; 16], number: u64, sealed: Vec<u8>) -> Option<Vec<u8>>;
}

/// Seals rows under a key derived from a file's metadata key and the stream's random number.
pub struct KeyedRowSeal {
    key: SecretKey,
}

impl KeyedRowSeal {
    /// `key`: the key of the file's rows, the same on all replicas of the shard.
    #[must_use]
    pub fn new(key: SecretKey) -> KeyedRowSeal {
        KeyedRowSeal { key }
    }

    fn stream_key(&self, stream: &[u8; 16]) -> LessSafeKey {
        let pseudo_random = Salt::new(HKDF_SHA256, stream).extract(self.key.expose());
        let info: [&[u8]; 1] = [b"kiseki snapshot stream 1"];
        let okm = pseudo_random.expand(&info, &AES_256_GCM).expect("32 bytes can be derived");
        LessSafeKey::new(UnboundKey::from(okm))
    }
}

fn counter_nonce(number: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&number.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

impl RowSeal for KeyedRowSeal {
    fn seal(&self, stream: &[u8; 16], number: u64, mut plain: Vec<u8>) -> Vec<u8> {
        self.stream_key(stream)
            .seal_in_place_append_tag(counter_nonce(number), Aad::from(stream), &mut plain)
            .expect("a batch of rows is far below the cipher's limit");
        plain
    }

    fn open(&self, stream: &[u8; 16], number: u64, mut sealed: Vec<u8>) -> Option<Vec<u8>> {
        let key = self.stream_key(stream);
        let len = key.open_in_place(counter_nonce(number), Aad::from(stream), &mut sealed).ok()?.len();
        sealed.truncate(len);
        Some(sealed)
    }
}

/// How each file of a set travels: the seal of each sealed file. A file that is not named here travels in clear.
#[derive(Clone, Default)]
pub struct SnapshotSeals {
    seals: BTreeMap<u8, Rc<dyn RowSeal>>,
}

impl SnapshotSeals {
    /// No file is sealed.
    #[must_use]
    pub fn none() -> SnapshotSeals {
        SnapshotSeals::default()
    }

    /// File `file` travels under `seal`.
    #[must_use]
    pub fn with(mut self, file: u8, seal: Rc<dyn RowSeal>) -> SnapshotSeals {
        self.seals.insert(file, seal);
        self
    }
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "snake_case", deny_unknown_fields)]
enum Frame {
    Begin { version: u32, shard: u64, position: u64, stream: String, meta: Vec<(String, String)> },
    Rows { number: u64, file: u8, rows: Vec<(u8, String, String)> },
    Sealed { number: u64, file: u8, count: usize, rows: String },
    End { rows: u64, sha256: String },
}

fn frame_bytes(frame: &Frame) -> Vec<u8> {
    let json = serde_json::to_vec(frame).expect("a frame is plain data");
    let len = u32::try_from(json.len()).expect("a frame is far below 4 GiB");
    [&len.to_le_bytes()[..], &json].concat()
}

fn parse_frame(bytes: &[u8]) -> Result<Frame, &'static str> {
    let (len, json) = bytes.split_first_chunk::<4>().ok_or("a record has no length")?;
    if json.len() > FRAME_LEN_BYTES_MAX || u32::from_le_bytes(*len) as usize != json.len() {
        return Err("a record's length is wrong");
    }
    serde_json::from_slice(json).map_err(|_| "a record is no valid JSON")
}

/// A frame decoded as a receiver does, and encoded again, for `crate::fuzzing`.
#[must_use]
pub fn fuzz_frame(bytes: &[u8]) -> Option<Vec<u8>> {
    let frame = parse_frame(bytes).ok()?;
    if let Frame::Begin { shard, position, meta, .. } = &frame {
        let rows = meta.iter().map(|(key, value)| Some((BASE64.decode(key).ok()?, BASE64.decode(value).ok()?)));
        let _meta = meta_of(ShardId(*shard), *position, &rows.collect::<Option<Vec<Row>>>()?);
    }
    Some(frame_bytes(&frame))
}

/// One frame of each kind, for `crate::fuzzing`; `applied` is the meta row of an entry applied.
#[must_use]
pub fn fuzz_frame_seeds(applied: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let meta = vec![(BASE64.encode(META_APPLIED), BASE64.encode(applied))];
    let begin =
        Frame::Begin { version: SNAPSHOT_VERSION, shard: 1024, position: 10, stream: BASE64.encode([1; 16]), meta };
    let rows = vec![(1, BASE64.encode("key"), BASE64.encode("value"))];
    vec![
        ("begin", frame_bytes(&begin)),
        ("rows", frame_bytes(&Frame::Rows { number: 0, file: 1, rows })),
        ("sealed", frame_bytes(&Frame::Sealed { number: 1, file: 0, count: 2, rows: BASE64.encode([9; 40]) })),
        ("end", frame_bytes(&Frame::End { rows: 3, sha256: BASE64.encode([7; 32]) })),
    ]
}

/// The opened rows of a sealed frame, after a u32 that says how many; for `crate::fuzzing`.
#[must_use]
pub fn fuzz_rows(bytes: &[u8]) -> Option<Vec<u8>> {
    let (count, plain) = bytes.split_first_chunk::<4>()?;
    let rows = decode_rows(0, u32::from_le_bytes(*count) as usize, plain).ok()?;
    assert_eq!(rows.len(), u32::from_le_bytes(*count) as usize, "all rows are there that were announced");
    Some([&count[..], &encode_rows(&rows)].concat())
}

/// Reads a set and gives out frames.
pub struct SnapshotSender {
    shard: ShardId,
    stream: [u8; 16],
    seals: SnapshotSeals,
    export: SetExport,
    digest: Context,
    number: u64,
    rows: u64,
    /// Rows read and not sent yet: of the next file.
    left: Vec<SetRow>,
    step: Step,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Begin,
    Rows,
    Done,
}

impl SnapshotSender {
    /// Starts reading `tables` at one position.
    pub async fn start(
        ports: &Ports,
        shard: ShardId,
        tables: &TableSet,
        seals: SnapshotSeals,
    ) -> Result<SnapshotSender, RaftError> {
        Ok(SnapshotSender {
            shard,
            stream: ports.random(),
            seals,
            export: tables.export().await?,
            digest: Context::new(&SHA256),
            number: 0,
            rows: 0,
            left: Vec::new(),
            step: Step::Begin,
        })
    }

    /// Meta of what is being sent.
    pub fn meta(&self) -> Result<SnapshotMeta, RaftError> {
        meta_of(self.shard, self.export.position(), &self.export.meta())
    }

    /// The next frame with its length in front; `None` behind the last.
    pub async fn next_frame(&mut self) -> Result<Option<Vec<u8>>, RaftError> {
        let frame = match self.step {
            Step::Done => return Ok(None),
            Step::Begin => {
                self.step = Step::Rows;
                let encode = |(key, value): Row| (BASE64.encode(key), BASE64.encode(value));
                Frame::Begin {
                    version: SNAPSHOT_VERSION,
                    shard: self.shard.0,
                    position: self.export.position(),
                    stream: BASE64.encode(self.stream),
                    meta: self.export.meta().into_iter().map(encode).collect(),
                }
            }
            Step::Rows => self.next_rows().await?,
        };
        let bytes = frame_bytes(&frame);
        self.digest.update(&bytes);
        Ok(Some(bytes))
    }

    async fn next_rows(&mut self) -> Result<Frame, RaftError> {
        let rows = self.pending_rows().await?;
        let Some(file) = rows.first().map(|row| row.file) else {
            self.step = Step::Done;
            let sha256 = BASE64.encode(self.digest.clone().finish());
            return Ok(Frame::End { rows: self.rows, sha256 });
        };
        let number = self.number;
        self.number += 1;
        self.rows += rows.len() as u64;
        Ok(match self.seals.seals.get(&file) {
            Some(seal) => {
                let sealed = seal.seal(&self.stream, number, encode_rows(&rows));
                Frame::Sealed { number, file, count: rows.len(), rows: BASE64.encode(sealed) }
            }
            None => {
                let encode = |row: SetRow| (row.table, BASE64.encode(row.key), BASE64.encode(row.value));
                Frame::Rows { number, file, rows: rows.into_iter().map(encode).collect() }
            }
        })
    }

    /// Rows of one file.
    async fn pending_rows(&mut self) -> Result<Vec<SetRow>, RaftError> {
        if self.left.is_empty() {
            self.left = self.export.next_rows(ROWS_LEN_BYTES).await?;
        }
        let file = self.left.first().map(|row| row.file);
        let same = self.left.iter().take_while(|row| Some(row.file) == file).count();
        let behind = self.left.split_off(same);
        Ok(std::mem::replace(&mut self.left, behind))
    }
}

fn encode_rows(rows: &[SetRow]) -> Vec<u8> {
    let mut out = Writer::new();
    for row in rows {
        out.u8(row.table).bytes(&row.key).bytes(&row.value);
    }
    out.finish()
}

fn decode_rows(file: u8, count: usize, bytes: &[u8]) -> Result<Vec<SetRow>, RaftError> {
    let mut input = Reader::new("snapshot rows", bytes);
    if count > ROWS_PER_FRAME_MAX {
        return Err(CodecError::TooLong { what: "snapshot rows", len: count as u64, limit: ROWS_PER_FRAME_MAX }.into());
    }
    let mut rows = Vec::new();
    for _ in 0..count {
        let table = input.u8()?;
        let key = input.bytes(FIELD_LEN_BYTES_MAX)?.to_vec();
        let value = input.bytes(FIELD_LEN_BYTES_MAX)?.to_vec();
        rows.push(SetRow { file, table, key, value });
    }
    input.end()?;
    Ok(rows)
}

fn meta_of(shard: ShardId, position: u64, meta: &[Row]) -> Result<SnapshotMeta, RaftError> {
    let refuse = |reason: &str| RaftError::Snapshot { shard, reason: reason.to_owned() };
    let (_, row) = meta.iter().find(|(key, _)| key == META_APPLIED).ok_or_else(|| refuse("it names no entry"))?;
    let (applied, membership) = decode_applied(row)?;
    if applied.index + 1 != position {
        return Err(refuse("its rows and its meta row stand at different positions"));
    }
    Ok(SnapshotMeta { last_log_id: Some(applied), last_membership: membership })
}

/// Takes frames and fills new files with them.
pub struct SnapshotReceiver {
    shard: ShardId,
    tables: TableSet,
    seals: SnapshotSeals,
    digest: Context,
    started: Option<Started>,
    number: u64,
    rows: u64,
    whole: bool,
}

struct Started {
    stream: [u8; 16],
    meta: SnapshotMeta,
    import: SetImport,
}

impl SnapshotReceiver {
    /// Nothing is made before the first frame.
    #[must_use]
    pub fn new(shard: ShardId, tables: TableSet, seals: SnapshotSeals) -> SnapshotReceiver {
        let digest = Context::new(&SHA256);
        SnapshotReceiver { shard, tables, seals, digest, started: None, number: 0, rows: 0, whole: false }
    }

    fn refuse(&self, reason: impl Into<String>) -> RaftError {
        RaftError::Snapshot { shard: self.shard, reason: reason.into() }
    }

    fn bytes(&self, text: &str) -> Result<Vec<u8>, RaftError> {
        BASE64.decode(text).map_err(|_| self.refuse("a field is no base64"))
    }

    /// Takes the next frame, with its length in front.
    pub async fn push(&mut self, bytes: &[u8]) -> Result<(), RaftError> {
        if self.whole {
            return Err(self.refuse("a record follows the last"));
        }
        match parse_frame(bytes).map_err(|reason| self.refuse(reason))? {
            Frame::End { rows, sha256 } => self.end(rows, &sha256)?,
            Frame::Begin { version, shard, position, stream, meta } => {
                if version != SNAPSHOT_VERSION || shard != self.shard.0 || self.started.is_some() {
                    return Err(self.refuse("it does not begin as a snapshot of this shard and version"));
                }
                self.begin(position, &stream, meta).await?;
            }
            Frame::Rows { number, file, rows } => {
                if self.seals.seals.contains_key(&file) {
                    return Err(self.refuse("rows of a sealed file came in clear"));
                }
                let mut decoded = Vec::new();
                for (table, key, value) in rows {
                    decoded.push(SetRow { file, table, key: self.bytes(&key)?, value: self.bytes(&value)? });
                }
                self.put(number, decoded).await?;
            }
            Frame::Sealed { number, file, count, rows } => {
                let sealed = self.bytes(&rows)?;
                let stream = self.started.as_ref().map(|started| started.stream).unwrap_or_default();
                let seal = self.seals.seals.get(&file).ok_or_else(|| self.refuse("this file's key is not here"))?;
                let plain = seal.open(&stream, number, sealed).ok_or_else(|| self.refuse("sealed rows don't open"))?;
                let decoded = decode_rows(file, count, &plain)?;
                self.put(number, decoded).await?;
            }
        }
        self.digest.update(bytes);
        Ok(())
    }

    async fn begin(&mut self, position: u64, stream: &str, meta: Vec<(String, String)>) -> Result<(), RaftError> {
        let stream: [u8; 16] =
            self.bytes(stream)?.try_into().map_err(|_| self.refuse("the stream's number is not 16 bytes"))?;
        let mut rows = Vec::new();
        for (key, value) in &meta {
            rows.push((self.bytes(key)?, self.bytes(value)?));
        }
        let meta = meta_of(self.shard, position, &rows)?;
        let import = self.tables.import(position, rows).await?;
        self.started = Some(Started { stream, meta, import });
        Ok(())
    }

    async fn put(&mut self, number: u64, rows: Vec<SetRow>) -> Result<(), RaftError> {
        if number != self.number || rows.is_empty() {
            return Err(self.refuse("records are missing or out of order"));
        }
        self.number += 1;
        self.rows += rows.len() as u64;
        match &mut self.started {
            Some(started) => Ok(started.import.push(rows).await?),
            None => Err(self.refuse("rows came before the beginning")),
        }
    }

    fn end(&mut self, rows: u64, sha256: &str) -> Result<(), RaftError> {
        let here = BASE64.encode(self.digest.clone().finish());
        if rows != self.rows || sha256 != here {
            return Err(self.refuse("its checksum does not match"));
        }
        self.whole = true;
        Ok(())
    }

    /// The new files, checked and ready to be swapped in.
    ///
    /// Errors: the stream ended before its last record.
    pub fn finish(self) -> Result<(SnapshotMeta, SnapshotData), RaftError> {
        let refused = self.refuse("it was cut off");
        match (self.whole, self.started) {
            (true, Some(started)) => Ok((started.meta, SnapshotData::Received(Box::new(started.import)))),
            _ => Err(refused),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_as_many_as_the_record_says() {
        let row = |key: &[u8]| SetRow { file: 0, table: 1, key: key.to_vec(), value: b"value".to_vec() };
        let plain = encode_rows(&[row(b"a"), row(b"b")]);
        assert_eq!(decode_rows(0, 2, &plain).expect("two rows").len(), 2);
        for count in [0, 1, 3, ROWS_PER_FRAME_MAX + 1, usize::MAX] {
            assert!(decode_rows(0, count, &plain).is_err(), "{count} rows");
        }
    }

    #[test]
    fn a_snapshot_of_the_last_index_of_all_is_refused() {
        let membership = crate::type_config::StoredMembership::default();
        let of = |index| {
            let applied = crate::log_store::record::encode_applied(
                crate::type_config::log_id(1, index),
                &crate::log_store::record::encode_membership(&membership),
            );
            meta_of(ShardId(1024), 10, &[(META_APPLIED.to_vec(), applied)])
        };
        assert!(of(9).is_ok());
        assert!(of(u64::MAX).is_err(), "no position follows it");
    }
}
