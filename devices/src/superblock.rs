//! The superblock: whose a device is, how it is divided, and which metadata directories were current when it was last
//! written. Four copies, written in turn; the newest that verifies counts. Bytes: `docs/formats/device.md`.
//!
//! Generation `g` goes to copy `g % 2` of each end, first in front, flushed, then at the far end, flushed. The other
//! copy of each end still holds generation `g - 1`, so a crash at any write leaves a superblock that verifies.

mod keeper;
mod marker;
#[cfg(test)]
mod tests;

pub use keeper::{Enrolled, SuperblockKeeper, SuperblockWitness};
pub use marker::FormatMarker;

use crate::checksum::crc32c;
use crate::error::DeviceError;
use crate::layout::{DeviceLayout, SUPERBLOCK_COPIES, SUPERBLOCK_LEN_BYTES};
use kiseki_types::codec::{CodecError, Reader, Writer};
use kiseki_types::device::{Device, DeviceGeometry};
use kiseki_types::meta::MetaFile;
use kiseki_types::{BlockIndex, ClusterId, DeviceId, IoBuf, PoolId};
use std::fmt;
use std::io;

/// First bytes of every copy.
pub const SUPERBLOCK_MAGIC: [u8; 8] = *b"KISEKI\x00D";

/// The format that this release writes. 1: the first one.
pub const SUPERBLOCK_VERSION: u32 = 1;

/// The pool of a device that left its node with nothing on it: there is no such pool.
pub const RETIRED_POOL: PoolId = PoolId(u16::MAX);

/// Most metadata directories in one set: their ids lie in every superblock.
pub const METADATA_MEMBERS_MAX: usize = 16;

/// Where the checksum of a copy lies: its last four bytes.
const CHECKSUM_OFFSET: usize = SUPERBLOCK_LEN_BYTES - 4;

/// What kind of hardware a device is; a pool holds devices of one class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeviceClass {
    /// NVMe flash.
    Nvme,
    /// Other flash.
    Ssd,
    /// A disk that turns.
    Hdd,
    /// An image file: for trying out and for tests.
    File,
}

impl DeviceClass {
    const ALL: [DeviceClass; 4] = [DeviceClass::Nvme, DeviceClass::Ssd, DeviceClass::Hdd, DeviceClass::File];

    fn code(self) -> u8 {
        match self {
            DeviceClass::Nvme => 1,
            DeviceClass::Ssd => 2,
            DeviceClass::Hdd => 3,
            DeviceClass::File => 4,
        }
    }

    /// The name in configuration and messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            DeviceClass::Nvme => "nvme",
            DeviceClass::Ssd => "ssd",
            DeviceClass::Hdd => "hdd",
            DeviceClass::File => "file",
        }
    }

    /// The class of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<DeviceClass> {
        DeviceClass::ALL.into_iter().find(|class| class.name() == name)
    }
}

/// Id of one metadata directory, chosen at random when it joins; a directory filled anew gets a new one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MemberId(pub [u8; 16]);

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Which metadata directories hold everything, as of a metadata-set epoch. Epoch 0: no set was ever recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetadataEpoch {
    /// Raised whenever a directory leaves or joins.
    pub epoch: u64,
    /// The current directories, at most [`METADATA_MEMBERS_MAX`].
    pub members: Vec<MemberId>,
}

/// Contents of the superblock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// The cluster that the device belongs to.
    pub cluster: ClusterId,
    /// The device.
    pub device: DeviceId,
    /// Its pool.
    pub pool: PoolId,
    /// Its class.
    pub class: DeviceClass,
    /// How it is divided.
    pub layout: DeviceLayout,
    /// Raised by every write of the superblock.
    pub generation: u64,
    /// Raised and flushed by every start of a node before it appends to a journal of the device.
    pub incarnation: u64,
    /// The highest metadata-set epoch that was recorded here.
    pub metadata: MetadataEpoch,
}

impl Superblock {
    /// The bytes of copy `copy`.
    #[must_use]
    pub fn encode(&self, copy: usize) -> Vec<u8> {
        assert!(copy < SUPERBLOCK_COPIES, "copy {copy} of {SUPERBLOCK_COPIES}");
        assert!(self.metadata.members.len() <= METADATA_MEMBERS_MAX, "I-O5: too many metadata directories");
        let mut writer = Writer::new();
        writer.raw(&SUPERBLOCK_MAGIC).u32(SUPERBLOCK_VERSION).u8(u8::try_from(copy).expect("below four"));
        writer.raw(&self.cluster.0).raw(&self.device.0).u16(self.pool.0).u8(self.class.code());
        writer.u64(self.generation).u64(self.incarnation);
        self.layout.encode(&mut writer);
        writer.u64(self.metadata.epoch);
        writer.u32(u32::try_from(self.metadata.members.len()).expect("at most 16"));
        for member in &self.metadata.members {
            writer.raw(&member.0);
        }
        let mut bytes = writer.finish();
        assert!(bytes.len() <= CHECKSUM_OFFSET, "the superblock fits its copy");
        bytes.resize(CHECKSUM_OFFSET, 0);
        let checksum = crc32c(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads copy `copy`. A copy that lies where another belongs is as bad as a damaged one.
    pub fn decode(bytes: &[u8], copy: usize) -> Result<Superblock, SuperblockDamage> {
        if let Some(marker) = FormatMarker::decode(bytes) {
            return Err(SuperblockDamage::FormatInterrupted(marker));
        }
        if bytes.len() != SUPERBLOCK_LEN_BYTES || bytes[..8] != SUPERBLOCK_MAGIC {
            return Err(SuperblockDamage::NoMagic);
        }
        let mut reader = Reader::new("superblock", &bytes[8..CHECKSUM_OFFSET]);
        let stored = u32::from_le_bytes(bytes[CHECKSUM_OFFSET..].try_into().expect("four bytes"));
        if crc32c(&bytes[..CHECKSUM_OFFSET]) != stored {
            return Err(SuperblockDamage::Codec(CodecError::Checksum { what: "superblock" }));
        }
        // The version comes before anything that a later format may have moved.
        match reader.u32()? {
            SUPERBLOCK_VERSION => {}
            version if version > SUPERBLOCK_VERSION => return Err(SuperblockDamage::TooNew(version)),
            version => return Err(SuperblockDamage::Codec(reader.unknown(u64::from(version)))),
        }
        let found_copy = reader.u8()?;
        if usize::from(found_copy) != copy {
            return Err(SuperblockDamage::Codec(reader.unknown(u64::from(found_copy))));
        }
        let cluster = ClusterId(reader.array()?);
        let device = DeviceId(reader.array()?);
        let pool = PoolId(reader.u16()?);
        let code = reader.u8()?;
        let class = DeviceClass::ALL.into_iter().find(|class| class.code() == code);
        let class = class.ok_or_else(|| reader.unknown(u64::from(code)))?;
        let generation = reader.counter()?;
        let incarnation = reader.counter()?;
        let layout = DeviceLayout::decode(&mut reader)?;
        let epoch = reader.counter()?;
        let count = reader.count(METADATA_MEMBERS_MAX)?;
        let members = (0..count).map(|_| reader.array().map(MemberId)).collect::<Result<_, _>>()?;
        let metadata = MetadataEpoch { epoch, members };
        Ok(Superblock { cluster, device, pool, class, layout, generation, incarnation, metadata })
    }

    /// Whether the device was retired: nothing lives on it, and no node uses it before it is formatted anew.
    #[must_use]
    pub fn is_retired(&self) -> bool {
        self.pool == RETIRED_POOL
    }

    /// Where this generation is written, in order: a flush follows each. (Byte offset, bytes.)
    #[must_use]
    pub fn writes(&self) -> [(u64, Vec<u8>); 2] {
        let offsets = DeviceLayout::superblock_offsets(self.layout.geometry());
        let turn = usize::from(!self.generation.is_multiple_of(2));
        [turn, 2 + turn].map(|copy| (offsets[copy], self.encode(copy)))
    }

    /// Whether no node ever had the device: the first start raises the incarnation before it writes anything else.
    #[must_use]
    pub fn is_unused(&self) -> bool {
        self.incarnation == 0
    }

    /// Whether the format that `marker` stands for was interrupted between the first and the second generation: half of
    /// the copies are missing. Every later write takes the marker's place.
    pub(crate) fn is_half_written(&self, marker: &FormatMarker) -> bool {
        self.generation == 1 && self.device == marker.device
    }

    /// Checks that the device still is what was formatted.
    pub fn check_geometry(&self, name: &str, found: DeviceGeometry) -> Result<(), DeviceError> {
        let formatted = self.layout.geometry();
        if found.block_len_bytes != formatted.block_len_bytes {
            return Err(DeviceError::BlockLenChanged {
                device: name.to_owned(),
                found: found.block_len_bytes,
                formatted: formatted.block_len_bytes,
            });
        }
        if found.block_count < formatted.block_count {
            return Err(DeviceError::Shrunk {
                device: name.to_owned(),
                found_bytes: found.len_bytes(),
                formatted_bytes: formatted.len_bytes(),
            });
        }
        Ok(())
    }
}

/// Why one copy of the superblock is no good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SuperblockDamage {
    /// The copy does not start with the magic bytes: it was never written, or overwritten by others.
    #[error("no magic")]
    NoMagic,
    /// A format was begun here and not finished.
    #[error("a format for cluster {} was begun here", .0.cluster)]
    FormatInterrupted(FormatMarker),
    /// The copy could not be read.
    #[error("read failed: {0}")]
    Read(String),
    /// The copy was written by a later release.
    #[error("format {0} is from a later release")]
    TooNew(u32),
    /// The bytes do not verify.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

/// What the copies of a device say together. Three answers: an `Option` would turn a lost superblock into a fresh one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SuperblockState {
    /// No copy was ever written here, or all were overwritten by something else.
    NeverWritten,
    /// The newest copy that verifies, and how many copies do not.
    Present {
        /// The newest one.
        superblock: Box<Superblock>,
        /// Copies that are damaged or missing; the writes to come replace them.
        damaged_copies: usize,
    },
    /// A format was begun and not finished: the device is nobody's, and formatting it again loses nothing.
    FormatInterrupted(FormatMarker),
    /// There is or was a superblock, and no copy verifies.
    Unreadable {
        /// What is wrong with each copy.
        reason: String,
    },
    /// The newest format found is from a later release.
    TooNew {
        /// The version.
        version: u32,
    },
}

impl SuperblockState {
    /// Decides from what became of reading the four copies.
    #[must_use]
    pub fn choose(copies: [Result<Superblock, SuperblockDamage>; SUPERBLOCK_COPIES]) -> SuperblockState {
        let damaged_copies = copies.iter().filter(|copy| copy.is_err()).count();
        // A later release may have upgraded one copy only: never fall back to what it left behind.
        let too_new = copies.iter().find_map(|copy| match copy {
            Err(SuperblockDamage::TooNew(version)) => Some(*version),
            _ => None,
        });
        if let Some(version) = too_new {
            return SuperblockState::TooNew { version };
        }
        if copies.iter().all(|copy| *copy == Err(SuperblockDamage::NoMagic)) {
            return SuperblockState::NeverWritten;
        }
        let marker = copies.iter().find_map(|copy| match copy {
            Err(SuperblockDamage::FormatInterrupted(marker)) => Some(*marker),
            _ => None,
        });
        let mut reasons = String::new();
        let mut newest: Option<Superblock> = None;
        for (index, copy) in copies.into_iter().enumerate() {
            match copy {
                Ok(found) if newest.as_ref().is_none_or(|best| best.generation < found.generation) => {
                    newest = Some(found);
                }
                Ok(_) => {}
                Err(damage) => {
                    reasons.push_str(&format!("{}copy {index}: {damage}", if reasons.is_empty() { "" } else { "; " }))
                }
            }
        }
        match (newest, marker) {
            (Some(superblock), Some(marker)) if superblock.is_half_written(&marker) => {
                SuperblockState::FormatInterrupted(marker)
            }
            (Some(superblock), _) => SuperblockState::Present { superblock: Box::new(superblock), damaged_copies },
            // The copies that are neither were on their way out.
            (None, Some(marker)) => SuperblockState::FormatInterrupted(marker),
            (None, None) => SuperblockState::Unreadable { reason: reasons },
        }
    }

    /// The superblock, or the error that says why there is none and what to do.
    pub fn present(self, name: &str) -> Result<Superblock, DeviceError> {
        let device = name.to_owned();
        match self {
            SuperblockState::Present { superblock, .. } => Ok(*superblock),
            SuperblockState::NeverWritten => Err(DeviceError::NeverFormatted { device }),
            SuperblockState::FormatInterrupted(marker) => {
                Err(DeviceError::FormatInterrupted { device, cluster: marker.cluster })
            }
            SuperblockState::Unreadable { reason } => Err(DeviceError::SuperblockUnreadable { device, reason }),
            SuperblockState::TooNew { version } => {
                Err(DeviceError::FormatTooNew { device, found: version, known: SUPERBLOCK_VERSION })
            }
        }
    }
}

/// Where the far copies lie: where the front ones say, else where the device ends now.
pub(crate) fn far_offsets(
    front: &[Result<Superblock, SuperblockDamage>],
    found: DeviceGeometry,
) -> [u64; SUPERBLOCK_COPIES] {
    let formatted = front.iter().flatten().max_by_key(|superblock| superblock.generation);
    DeviceLayout::superblock_offsets(formatted.map_or(found, |superblock| superblock.layout.geometry()))
}

pub(crate) fn four<T>(front: Vec<T>, far: Vec<T>) -> [T; SUPERBLOCK_COPIES] {
    let all: Vec<T> = front.into_iter().chain(far).collect();
    all.try_into().unwrap_or_else(|_| unreachable!("two copies at each end"))
}

/// Reads all copies through the device port.
pub async fn read_superblock(device: &dyn Device) -> SuperblockState {
    let found = device.geometry();
    let mut copies: Vec<Result<Superblock, SuperblockDamage>> = Vec::new();
    for copy in 0..SUPERBLOCK_COPIES {
        let offset = far_offsets(&copies[..copy.min(2)], found)[copy];
        copies.push(read_copy(device, copy, offset).await);
    }
    let far = copies.split_off(2);
    SuperblockState::choose(four(copies, far))
}

async fn read_copy(device: &dyn Device, copy: usize, offset: u64) -> Result<Superblock, SuperblockDamage> {
    let geometry = device.geometry();
    if offset + SUPERBLOCK_LEN_BYTES as u64 > geometry.len_bytes() {
        return Err(SuperblockDamage::Read("it lies past the end of the device".to_owned()));
    }
    let start = BlockIndex(offset / u64::from(geometry.block_len_bytes));
    match device.read(start, IoBuf::zeroed(SUPERBLOCK_LEN_BYTES)).await {
        Ok(bytes) => Superblock::decode(&bytes, copy),
        Err(error) => Err(SuperblockDamage::Read(error.to_string())),
    }
}

/// Writes the superblock through the device port, as its generation says; it is durable on return.
///
/// The caller raises the generation first; see [`SuperblockKeeper`] for the one who does that on a running node.
pub async fn write_superblock(device: &dyn Device, superblock: &Superblock) -> Result<(), DeviceError> {
    let block = u64::from(device.geometry().block_len_bytes);
    for (offset, bytes) in superblock.writes() {
        let part = IoBuf::copy_of(&bytes).freeze();
        let written = device.write(BlockIndex(offset / block), vec![part]).await;
        written.map_err(|source| DeviceError::io(device.name(), "writing the superblock", source))?;
        let flushed = device.flush().await;
        flushed.map_err(|source| DeviceError::io(device.name(), "flushing the superblock", source))?;
    }
    Ok(())
}

/// [`read_superblock`] without an executor: `file` is the whole device, its blocks are `block_len_bytes` long.
pub fn read_superblock_blocking(file: &dyn MetaFile, block_len_bytes: u32) -> io::Result<SuperblockState> {
    let copies = read_copies_blocking(file, block_len_bytes)?;
    Ok(SuperblockState::choose(copies.map(|copy| copy.found)))
}

/// One of the copies, as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SuperblockCopy {
    /// Where it lies.
    pub offset_bytes: u64,
    /// What it says, or what is wrong with it.
    pub found: Result<Superblock, SuperblockDamage>,
}

/// Each of the copies by itself, for people who look into a device.
pub fn read_copies_blocking(
    file: &dyn MetaFile,
    block_len_bytes: u32,
) -> io::Result<[SuperblockCopy; SUPERBLOCK_COPIES]> {
    let blocks = file.len()? / u64::from(block_len_bytes);
    let found = DeviceGeometry { block_len_bytes, block_count: kiseki_types::BlockCount(blocks) };
    let mut copies: Vec<Result<Superblock, SuperblockDamage>> = Vec::new();
    let mut offsets = Vec::new();
    for copy in 0..SUPERBLOCK_COPIES {
        let offset = far_offsets(&copies[..copy.min(2)], found)[copy];
        let mut bytes = vec![0; SUPERBLOCK_LEN_BYTES];
        offsets.push(offset);
        copies.push(match file.read_at(offset, &mut bytes) {
            Ok(()) => Superblock::decode(&bytes, copy),
            Err(error) => Err(SuperblockDamage::Read(error.to_string())),
        });
    }
    let mut all = offsets.into_iter().zip(copies).map(|(offset_bytes, found)| SuperblockCopy { offset_bytes, found });
    Ok(std::array::from_fn(|_| all.next().expect("as many as there are copies")))
}

/// [`write_superblock`] without an executor.
pub fn write_superblock_blocking(file: &dyn MetaFile, superblock: &Superblock) -> io::Result<()> {
    for (offset, bytes) in superblock.writes() {
        file.write_at(offset, &bytes)?;
        file.sync()?;
    }
    Ok(())
}
