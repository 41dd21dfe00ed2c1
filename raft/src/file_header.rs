//! The header of a paged file: two copies of one block, of which the newest valid one counts.
//!
//! The layout is told in docs/formats/sealed-file.md.

use kiseki_types::meta::MetaFile;
use std::io;

/// Bytes of one copy.
pub(crate) const HEADER_COPY_BYTES: usize = 4096;
/// Bytes of both copies; the pages start behind them.
pub(crate) const HEADER_BYTES: u64 = 2 * HEADER_COPY_BYTES as u64;
/// Version of the layout of headers, slots and pages. 1: the first.
pub(crate) const FORMAT_VERSION: u32 = 1;

const VERSION_AT: usize = 8;
const PAGE_BYTES_AT: usize = 12;
const UUID_AT: usize = 16;
const GENERATION_AT: usize = 32;
const CHECK_AT: usize = 40;
const HEADER_END: usize = 56;
const CRC_AT: usize = HEADER_COPY_BYTES - 4;
const _: () = assert!(HEADER_END < CRC_AT);

/// What a paged file says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileHeader {
    /// Kind of the file.
    pub magic: [u8; 8],
    /// Bound into every page.
    pub uuid: [u8; 16],
    /// Number of this header; the higher one of two valid copies counts.
    pub generation: u64,
    /// Tells a wrong key from damage (sealed files); zeros in a clear file.
    pub check: [u8; 16],
}

impl FileHeader {
    pub fn encode(&self, page_bytes: u32) -> Vec<u8> {
        let mut block = vec![0; HEADER_COPY_BYTES];
        block[..VERSION_AT].copy_from_slice(&self.magic);
        block[VERSION_AT..PAGE_BYTES_AT].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        block[PAGE_BYTES_AT..UUID_AT].copy_from_slice(&page_bytes.to_le_bytes());
        block[UUID_AT..GENERATION_AT].copy_from_slice(&self.uuid);
        block[GENERATION_AT..CHECK_AT].copy_from_slice(&self.generation.to_le_bytes());
        block[CHECK_AT..HEADER_END].copy_from_slice(&self.check);
        let crc = crc_fast::crc32_iscsi(&block[..CRC_AT]);
        block[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        block
    }

    /// `None` when the copy fails its checksum; an error when it is whole but not ours to read.
    pub fn decode(block: &[u8], magic: [u8; 8], page_bytes: u32, name: &str) -> io::Result<Option<FileHeader>> {
        let crc = crc_fast::crc32_iscsi(&block[..CRC_AT]);
        if block[CRC_AT..] != crc.to_le_bytes() {
            return Ok(None);
        }
        if block[..VERSION_AT] != magic {
            return Err(invalid(format!("{name} is a file of another kind")));
        }
        let version = u32::from_le_bytes(array(&block[VERSION_AT..PAGE_BYTES_AT]));
        if version != FORMAT_VERSION {
            return Err(invalid(format!("{name} has format version {version}; this build reads {FORMAT_VERSION}")));
        }
        if block[PAGE_BYTES_AT..UUID_AT] != page_bytes.to_le_bytes() {
            return Err(invalid(format!("{name} has pages of another size")));
        }
        Ok(Some(FileHeader {
            magic,
            uuid: array(&block[UUID_AT..GENERATION_AT]),
            generation: u64::from_le_bytes(array(&block[GENERATION_AT..CHECK_AT])),
            check: array(&block[CHECK_AT..HEADER_END]),
        }))
    }

    /// Writes both copies of a new file. Not yet durable.
    pub fn write_new(&self, file: &dyn MetaFile, page_bytes: u32) -> io::Result<()> {
        let block = self.encode(page_bytes);
        file.write_at(0, &block)?;
        file.write_at(HEADER_COPY_BYTES as u64, &block)
    }

    /// Reads the newest valid copy. The second value is whether the other copy needs writing.
    pub fn read(file: &dyn MetaFile, magic: [u8; 8], page_bytes: u32, name: &str) -> io::Result<(FileHeader, bool)> {
        if file.len()? < HEADER_BYTES {
            return Err(invalid(format!("{name} is too short to be a table file")));
        }
        let mut blocks = vec![0; 2 * HEADER_COPY_BYTES];
        file.read_at(0, &mut blocks)?;
        let first = FileHeader::decode(&blocks[..HEADER_COPY_BYTES], magic, page_bytes, name)?;
        let second = FileHeader::decode(&blocks[HEADER_COPY_BYTES..], magic, page_bytes, name)?;
        match (first, second) {
            (Some(first), Some(second)) => {
                let uneven = first != second;
                Ok((if second.generation > first.generation { second } else { first }, uneven))
            }
            (Some(one), None) | (None, Some(one)) => Ok((one, true)),
            (None, None) => Err(invalid(format!("both header copies of {name} are damaged"))),
        }
    }

    /// Writes the bad copy again, never touching a good one: the good one is known by its bytes.
    pub fn heal(&self, file: &dyn MetaFile, page_bytes: u32) -> io::Result<()> {
        let block = self.encode(page_bytes);
        for at in [0, HEADER_COPY_BYTES as u64] {
            let mut present = vec![0; HEADER_COPY_BYTES];
            file.read_at(at, &mut present)?;
            if present != block {
                file.write_at(at, &block)?;
            }
        }
        Ok(())
    }
}

/// An error that says that the bytes of a file are not what we wrote.
pub(crate) fn invalid(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("the slice has the length of its field")
}
