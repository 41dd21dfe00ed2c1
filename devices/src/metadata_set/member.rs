//! The `member` file of a metadata directory: whose it is, and the last metadata-set epoch that it took part in.

use super::{Identity, MemberFate};
use crate::checksum::crc32c;
use crate::superblock::{METADATA_MEMBERS_MAX, MemberId, MetadataEpoch};
use kiseki_types::ClusterId;
use kiseki_types::codec::{CodecError, Reader, Writer};
use kiseki_types::meta::MetaDir;
use std::io;

/// Name of the file.
pub(super) const MEMBER_FILE: &str = "member";
/// Name under which its next contents are written before they replace it.
pub(super) const MEMBER_FILE_NEXT: &str = "member.next";

const MAGIC: [u8; 8] = *b"KISEKI\x00M";
/// 1: the first format.
const VERSION: u32 = 1;
/// The file with the most members is far below.
const FILE_LEN_BYTES_MAX: u64 = 4096;

/// Contents of a `member` file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MemberRecord {
    pub cluster: ClusterId,
    pub set: [u8; 16],
    pub id: MemberId,
    pub epoch: MetadataEpoch,
}

impl MemberRecord {
    pub fn new(identity: Identity, id: MemberId, epoch: MetadataEpoch) -> MemberRecord {
        MemberRecord { cluster: identity.cluster, set: identity.set, id, epoch }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.raw(&MAGIC).u32(VERSION).raw(&self.cluster.0).raw(&self.set).raw(&self.id.0);
        writer.u64(self.epoch.epoch).u32(u32::try_from(self.epoch.members.len()).expect("at most 16"));
        for member in &self.epoch.members {
            writer.raw(&member.0);
        }
        let mut bytes = writer.finish();
        let checksum = crc32c(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Result<MemberRecord, CodecError> {
        let what = "member file of a metadata directory";
        let (body, sum) = bytes.split_last_chunk::<4>().ok_or(CodecError::Checksum { what })?;
        if crc32c(body) != u32::from_le_bytes(*sum) {
            return Err(CodecError::Checksum { what });
        }
        let mut reader = Reader::new(what, body);
        if reader.array()? != MAGIC {
            return Err(reader.unknown(0));
        }
        let version = reader.u32()?;
        if version != VERSION {
            return Err(reader.unknown(u64::from(version)));
        }
        let cluster = ClusterId(reader.array()?);
        let set = reader.array()?;
        let id = MemberId(reader.array()?);
        let epoch = reader.counter()?;
        let count = reader.count(METADATA_MEMBERS_MAX)?;
        let members = (0..count).map(|_| reader.array().map(MemberId)).collect::<Result<_, _>>()?;
        reader.end()?;
        Ok(MemberRecord { cluster, set, id, epoch: MetadataEpoch { epoch, members } })
    }

    /// Replaces the file; durable on return, and never half written.
    pub fn write(&self, dir: &dyn MetaDir) -> io::Result<()> {
        dir.remove(MEMBER_FILE_NEXT)?;
        let file = dir.create(MEMBER_FILE_NEXT)?;
        file.write_at(0, &self.encode())?;
        file.sync()?;
        dir.rename(MEMBER_FILE_NEXT, MEMBER_FILE)
    }
}

/// The metadata-set epoch that a directory of this cluster last took part in: for tools that look at a stopped node.
/// Errors: why the directory does not count.
pub fn recorded_epoch(dir: &dyn MetaDir, cluster: ClusterId) -> Result<u64, String> {
    match DirState::read(dir, cluster) {
        DirState::Ours(record) => Ok(record.epoch.epoch),
        DirState::Blank => Err("it is empty".to_owned()),
        DirState::Unusable(reason) => Err(reason),
    }
}

/// Decoded and encoded again, for `crate::fuzzing`.
pub(crate) fn fuzz_member(bytes: &[u8]) -> Option<Vec<u8>> {
    MemberRecord::decode(bytes).ok().map(|record| record.encode())
}

/// The file of a set of two, for `crate::fuzzing`.
pub(crate) fn fuzz_member_seed() -> Vec<u8> {
    let members = vec![MemberId([1; 16]), MemberId([2; 16])];
    let epoch = MetadataEpoch { epoch: 3, members };
    MemberRecord { cluster: ClusterId([4; 16]), set: [5; 16], id: MemberId([1; 16]), epoch }.encode()
}

/// What a directory says about itself. "Blank", "ours" and "unreadable" are different answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum DirState {
    /// Nothing is in it.
    Blank,
    /// A directory of this cluster.
    Ours(MemberRecord),
    /// It can't be used, and is left alone.
    Unusable(String),
}

impl DirState {
    pub fn read(dir: &dyn MetaDir, cluster: ClusterId) -> DirState {
        DirState::try_read(dir, cluster)
            .unwrap_or_else(|error| DirState::Unusable(format!("it can't be read: {error}")))
    }

    fn try_read(dir: &dyn MetaDir, cluster: ClusterId) -> io::Result<DirState> {
        let names = dir.list()?;
        if !names.iter().any(|name| name == MEMBER_FILE) {
            // A crash while the set was made leaves the file's next contents alone.
            return Ok(match names.iter().all(|name| name == MEMBER_FILE_NEXT) {
                true => DirState::Blank,
                false => DirState::Unusable("it holds files but no `member` file; empty it to have it filled".into()),
            });
        }
        let file = dir.open(MEMBER_FILE)?;
        let len = file.len()?.min(FILE_LEN_BYTES_MAX);
        let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
        file.read_at(0, &mut bytes)?;
        Ok(match MemberRecord::decode(&bytes) {
            Ok(record) if record.cluster == cluster => DirState::Ours(record),
            Ok(record) => DirState::Unusable(format!("it belongs to cluster {}; it is left alone", record.cluster)),
            Err(error) => {
                DirState::Unusable(format!("its `member` file is damaged ({error}); empty it to have it filled"))
            }
        })
    }

    pub fn record(&self) -> Option<&MemberRecord> {
        match self {
            DirState::Ours(record) => Some(record),
            _ => None,
        }
    }

    /// Only what is empty, or certainly a stale copy of ours, is ever wiped.
    pub fn may_be_filled(&self) -> bool {
        !matches!(self, DirState::Unusable(_))
    }

    pub fn unused_reason(&self) -> MemberFate {
        let reason = match self {
            DirState::Unusable(reason) => reason.clone(),
            _ => "it is stale".to_owned(),
        };
        MemberFate::LeftOut { reason }
    }
}
