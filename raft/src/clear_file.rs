//! Clear redb files: pages as they are, with a checksum that binds each to its file and place.
//!
//! redb checks its own checksums only when it repairs, so a rotten page would be read as rows; here it is an error on
//! read. A slot is `[counter 8][CRC64/NVME 8][page 4096]`. Layout: docs/formats/sealed-file.md.

use crate::file_header::FileHeader;
use crate::paged_file::{FileWatch, PAGE_BYTES, PageCodec, PagedFile};
use crc_fast::{CrcAlgorithm, Digest};
use kiseki_types::meta::MetaFile;
use std::io;
use std::sync::Arc;

const MAGIC: [u8; 8] = *b"KISEKIcf";
const COUNTER_END: usize = 8;
const CRC_END: usize = 16;

/// A [`redb::StorageBackend`] that checksums pages.
#[derive(Debug)]
pub struct ClearFile(PagedFile<ChecksumCodec>);

impl ClearFile {
    /// Makes a clear file of an empty one. `uuid` is fresh randomness.
    pub fn create(file: Arc<dyn MetaFile>, uuid: [u8; 16], name: &str) -> io::Result<ClearFile> {
        let header = FileHeader { magic: MAGIC, uuid, generation: 1, check: [0; 16] };
        header.write_new(&*file, PAGE_BYTES as u32)?;
        Ok(ClearFile(PagedFile::new_empty(file, name, ChecksumCodec { uuid })?))
    }

    /// Opens a clear file.
    pub fn open(file: Arc<dyn MetaFile>, name: &str) -> io::Result<ClearFile> {
        let (header, uneven) = FileHeader::read(&*file, MAGIC, PAGE_BYTES as u32, name)?;
        if uneven {
            header.heal(&*file, PAGE_BYTES as u32)?;
        }
        Ok(ClearFile(PagedFile::open(file, name, ChecksumCodec { uuid: header.uuid })?))
    }

    /// See [`PagedFile::watch`].
    pub fn watch(&self) -> Arc<FileWatch> {
        self.0.watch()
    }
}

impl redb::StorageBackend for ClearFile {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.0.set_len(len_bytes)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
}

#[derive(Debug)]
struct ChecksumCodec {
    uuid: [u8; 16],
}

impl ChecksumCodec {
    fn checksum(&self, page: u64, counter: &[u8], content: &[u8]) -> [u8; 8] {
        let mut digest = Digest::new(CrcAlgorithm::Crc64Nvme);
        digest.update(&self.uuid);
        digest.update(&page.to_le_bytes());
        digest.update(counter);
        digest.update(content);
        digest.finalize().to_le_bytes()
    }
}

impl PageCodec for ChecksumCodec {
    const OVERHEAD_BYTES: usize = CRC_END;

    fn seal(&self, page: u64, counter: u64, slot: &mut [u8]) {
        let (head, content) = slot.split_at_mut(CRC_END);
        let counter = counter.to_le_bytes();
        head[COUNTER_END..].copy_from_slice(&self.checksum(page, &counter, content));
        head[..COUNTER_END].copy_from_slice(&counter);
    }

    fn open(&self, page: u64, slot: &mut [u8]) -> Option<u64> {
        let (head, content) = slot.split_at(CRC_END);
        let valid = head[COUNTER_END..] == self.checksum(page, &head[..COUNTER_END], content);
        valid.then(|| u64::from_le_bytes(head[..COUNTER_END].try_into().expect("eight bytes")))
    }
}
