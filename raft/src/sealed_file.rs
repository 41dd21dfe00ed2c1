//! Sealed redb files: pages encrypted under a shard's metadata key (I-K1, I-K7).
//!
//! A slot is `[salt 16][counter 8][tag 16][ciphertext 4096]`. The page key is HKDF-SHA256(metadata key, salt) with a
//! salt of this open of the file, the nonce is the counter, and file, page index and format version are bound as
//! associated data, so that a page opens only where it was written. Layout: docs/formats/sealed-file.md.

use crate::file_header::{FORMAT_VERSION, FileHeader};
use crate::paged_file::{FileWatch, PAGE_BYTES, PageCodec, PagedFile};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use kiseki_types::meta::MetaFile;
use kiseki_types::secret::SecretKey;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex};

const MAGIC: [u8; 8] = *b"KISEKIsf";
const SALT_BYTES: usize = 16;
const COUNTER_END: usize = SALT_BYTES + 8;
const TAG_END: usize = COUNTER_END + 16;
/// Keys of earlier opens kept in memory. A file has as many salts as opens whose pages survive; when there are more,
/// the oldest derivations are made again.
const DERIVED_KEYS_MAX: usize = 256;
const PAGE_INFO: &[u8] = b"kiseki sealed file page v1";
const CHECK_INFO: &[u8] = b"kiseki sealed file check v1";

/// What one open of a sealed file needs.
pub struct SealParameters<'a> {
    /// Name for messages.
    pub name: &'a str,
    /// The metadata key.
    pub key: &'a SecretKey,
    /// 128 fresh random bits of this open: no (key, nonce) pair is used twice because of them (I-K7).
    pub salt: [u8; 16],
}

/// A [`redb::StorageBackend`] that encrypts pages.
#[derive(Debug)]
pub struct SealedFile(PagedFile<SealCodec>);

impl SealedFile {
    /// Makes a sealed file of an empty one. `uuid` is fresh randomness.
    pub fn create(file: Arc<dyn MetaFile>, uuid: [u8; 16], parameters: &SealParameters<'_>) -> io::Result<SealedFile> {
        let mut header = FileHeader { magic: MAGIC, uuid, generation: 1, check: [0; 16] };
        header.check = check_tag(parameters.key, &header);
        header.write_new(&*file, PAGE_BYTES as u32)?;
        let codec = SealCodec::new(uuid, parameters);
        Ok(SealedFile(PagedFile::new_empty(file, parameters.name, codec)?))
    }

    /// Opens a sealed file. A wrong key is an error of kind `PermissionDenied`, found before anything is written.
    pub fn open(file: Arc<dyn MetaFile>, parameters: &SealParameters<'_>) -> io::Result<SealedFile> {
        let name = parameters.name;
        let (header, uneven) = FileHeader::read(&*file, MAGIC, PAGE_BYTES as u32, name)?;
        if check_tag(parameters.key, &header) != header.check {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("{name} is sealed under another key")));
        }
        if uneven {
            header.heal(&*file, PAGE_BYTES as u32)?;
        }
        let codec = SealCodec::new(header.uuid, parameters);
        Ok(SealedFile(PagedFile::open(file, name, codec)?))
    }

    /// See [`PagedFile::watch`].
    pub fn watch(&self) -> Arc<FileWatch> {
        self.0.watch()
    }
}

impl redb::StorageBackend for SealedFile {
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

struct SealCodec {
    uuid: [u8; 16],
    key: SecretKey,
    salt: [u8; 16],
    current: LessSafeKey,
    derived: Mutex<BTreeMap<[u8; 16], Arc<LessSafeKey>>>,
}

impl fmt::Debug for SealCodec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealCodec")
    }
}

impl SealCodec {
    fn new(uuid: [u8; 16], parameters: &SealParameters<'_>) -> SealCodec {
        SealCodec {
            uuid,
            key: parameters.key.duplicate(),
            salt: parameters.salt,
            current: derive(parameters.key, &parameters.salt, PAGE_INFO),
            derived: Mutex::new(BTreeMap::new()),
        }
    }

    fn associated(&self, page: u64) -> [u8; 28] {
        let mut aad = [0; 28];
        aad[..16].copy_from_slice(&self.uuid);
        aad[16..24].copy_from_slice(&page.to_le_bytes());
        aad[24..].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        aad
    }

    fn key_of(&self, salt: [u8; 16]) -> Arc<LessSafeKey> {
        let mut derived = self.derived.lock().expect("no thread panics while it holds the key cache");
        if let Some(key) = derived.get(&salt) {
            return Arc::clone(key);
        }
        if derived.len() >= DERIVED_KEYS_MAX {
            derived.clear();
        }
        let key = Arc::new(derive(&self.key, &salt, PAGE_INFO));
        derived.insert(salt, Arc::clone(&key));
        key
    }
}

impl PageCodec for SealCodec {
    const OVERHEAD_BYTES: usize = TAG_END;

    fn seal(&self, page: u64, counter: u64, slot: &mut [u8]) {
        // I-K7: a key and nonce pair seals once: the key is of this open alone, its counter never goes back.
        let (head, text) = slot.split_at_mut(TAG_END);
        let tag = self
            .current
            .seal_in_place_separate_tag(nonce(counter), Aad::from(self.associated(page)), text)
            .expect("a page is far below the length limit of AES-GCM");
        head[..SALT_BYTES].copy_from_slice(&self.salt);
        head[SALT_BYTES..COUNTER_END].copy_from_slice(&counter.to_le_bytes());
        head[COUNTER_END..].copy_from_slice(tag.as_ref());
    }

    fn open(&self, page: u64, slot: &mut [u8]) -> Option<u64> {
        let (head, text) = slot.split_at_mut(TAG_END);
        let salt: [u8; SALT_BYTES] = head[..SALT_BYTES].try_into().expect("a slot starts with a salt");
        let counter = u64::from_le_bytes(head[SALT_BYTES..COUNTER_END].try_into().expect("eight bytes"));
        let tag = &head[COUNTER_END..];
        let aad = Aad::from(self.associated(page));
        let other;
        let key = if salt == self.salt {
            &self.current
        } else {
            other = self.key_of(salt);
            &other
        };
        let mut plain = vec![0; PAGE_BYTES];
        key.open_separate_gather(nonce(counter), aad, text, tag, &mut plain).ok()?;
        text.copy_from_slice(&plain);
        Some(counter)
    }
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

fn derive(key: &SecretKey, salt: &[u8], info: &[u8]) -> LessSafeKey {
    let secret = Salt::new(HKDF_SHA256, salt).extract(key.expose());
    let parts = [info];
    let okm = secret.expand(&parts, &AES_256_GCM).expect("32 bytes are within the limit of HKDF");
    LessSafeKey::new(UnboundKey::from(okm))
}

/// A tag over the header's fields under a key of the file: equal only under the same metadata key. The generation is
/// the nonce and every header of a file has its own, so no pair is used twice.
fn check_tag(key: &SecretKey, header: &FileHeader) -> [u8; 16] {
    let mut aad = Vec::with_capacity(36);
    aad.extend_from_slice(&header.magic);
    aad.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    aad.extend_from_slice(&header.uuid);
    aad.extend_from_slice(&header.generation.to_le_bytes());
    let tag = derive(key, &header.uuid, CHECK_INFO)
        .seal_in_place_separate_tag(nonce(header.generation), Aad::from(aad), &mut [])
        .expect("an empty text is within the limits of AES-GCM");
    tag.as_ref().try_into().expect("a tag has 16 bytes")
}

#[cfg(test)]
mod tests;
