//! The key store: the node's own keys in one file, sealed under a passphrase. Bytes: `docs/formats/key-store.md`.
//!
//! It holds the system master keys by epoch, the cluster's locator key and the keys of the shards that belong to the
//! system. Tenants' secrets are not here: they lie wrapped in the control shard. There is no default key and no way to
//! start without the right ones (I-K18).

use crate::files::{Readers, read_bounded, write_whole};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::pbkdf2;
use kiseki_types::codec::{CodecError, Reader, Writer};
use kiseki_types::ids::{ClusterId, MasterEpoch};
use kiseki_types::secret::SecretKey;
use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use thiserror::Error;
use zeroize::{Zeroize, Zeroizing};

/// First bytes of the file.
const MAGIC: &[u8; 8] = b"KISEKEYS";
/// Version of the format. 1: the first one.
const VERSION: u16 = 1;
/// Key derivation: PBKDF2 with HMAC-SHA256.
const KDF_PBKDF2_SHA256: u8 = 1;
/// Rounds for new files: a fifth of a second on a server core, each guess costs an attacker as much.
const ITERATIONS: u32 = 600_000;
/// A file that asks for fewer rounds is no file of ours; one that asks for more would hang the start (I-O5).
const ITERATIONS_RANGE: std::ops::RangeInclusive<u32> = 100_000..=20_000_000;
const SALT_LEN_BYTES: usize = 32;
const NONCE_LEN_BYTES: usize = 12;
/// Master epochs that a key store can hold.
const EPOCHS_MAX: usize = 1024;
/// Longest key store file.
const FILE_LEN_BYTES_MAX: u64 = 64 * 1024;
/// Longest passphrase file.
const PASSPHRASE_LEN_BYTES_MAX: u64 = 4096;
/// Bytes in front of the sealed part; all of them are authenticated.
const HEADER_LEN_BYTES: usize = 8 + 2 + 1 + 1 + 4 + SALT_LEN_BYTES + NONCE_LEN_BYTES + 4;

/// Why there are no keys. The node does not start then.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum KeyStoreError {
    /// A file can't be read or written.
    #[error("{path}: {source}; {remedy}")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// The passphrase does not open the file (or a bit of it has changed; the two can't be told apart).
    #[error(
        "the passphrase does not open the key store {path}; point KISEKI_PASSPHRASE_FILE at the file with the right \
         passphrase, or restore the key store from its copy"
    )]
    WrongPassphrase {
        /// The key store.
        path: PathBuf,
    },
    /// The file is not a key store that this release knows.
    #[error("{path} is not a key store that this release can read ({reason}); restore it from its copy")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: CodecError,
    },
    /// The passphrase file holds nothing.
    #[error("the passphrase file {path} is empty; there is no default passphrase")]
    EmptyPassphrase {
        /// The file.
        path: PathBuf,
    },
    /// A key store is there already.
    #[error("{path} exists; a key store is never replaced, since the data of its cluster would be lost with it")]
    Exists {
        /// The file.
        path: PathBuf,
    },
}

/// The keys of a node. Everything secret in it is zeroed on drop (I-K8).
pub struct KeyStore {
    /// The cluster that these keys belong to.
    pub cluster: ClusterId,
    /// System master keys; the highest epoch seals new chunks.
    pub masters: BTreeMap<MasterEpoch, SecretKey>,
    /// Makes locators of chunk ids; never changes in a cluster's life.
    pub locator: SecretKey,
    /// Seals the metadata of the control shard.
    pub control: SecretKey,
    /// Seals the metadata of the homes and of other system shards.
    pub system: SecretKey,
}

impl KeyStore {
    /// New keys for a new cluster; `fill_random` is the kernel's generator.
    #[must_use]
    pub fn generate(mut fill_random: impl FnMut(&mut [u8])) -> KeyStore {
        let mut key = || {
            let mut bytes = [0; 32];
            fill_random(&mut bytes);
            SecretKey::take(&mut bytes)
        };
        let masters = BTreeMap::from([(MasterEpoch(1), key())]);
        let (locator, control, system) = (key(), key(), key());
        let mut cluster = ClusterId::default();
        fill_random(&mut cluster.0);
        KeyStore { cluster, masters, locator, control, system }
    }

    /// The epoch that new chunks are sealed under.
    #[must_use]
    pub fn current_epoch(&self) -> MasterEpoch {
        *self.masters.keys().next_back().expect("a key store holds at least one master key")
    }

    /// Another copy in memory, for a node that joins.
    #[must_use]
    pub fn duplicate(&self) -> KeyStore {
        KeyStore {
            cluster: self.cluster,
            masters: self.masters.iter().map(|(epoch, key)| (*epoch, key.duplicate())).collect(),
            locator: self.locator.duplicate(),
            control: self.control.duplicate(),
            system: self.system.duplicate(),
        }
    }

    /// Writes a new key store; it is durable on return. Never replaces one.
    pub fn create(
        &self,
        path: &Path,
        passphrase: &[u8],
        fill_random: impl FnMut(&mut [u8]),
    ) -> Result<(), KeyStoreError> {
        if path.exists() {
            return Err(KeyStoreError::Exists { path: path.to_owned() });
        }
        let sealed = self.seal(passphrase, ITERATIONS, fill_random);
        write_whole(path, &sealed, Readers::Owner).map_err(|source| KeyStoreError::File {
            path: path.to_owned(),
            source,
            remedy: "make its directory writable for the server",
        })
    }

    /// Opens a key store.
    pub fn open(path: &Path, passphrase: &[u8]) -> Result<KeyStore, KeyStoreError> {
        let sealed = read_bounded(path, FILE_LEN_BYTES_MAX).map_err(|source| KeyStoreError::File {
            path: path.to_owned(),
            source,
            remedy: "without its keys a node can't read its data; restore the key store from its copy",
        })?;
        KeyStore::unseal(&sealed, passphrase).map_err(|error| match error {
            UnsealError::Codec(reason) => KeyStoreError::Damaged { path: path.to_owned(), reason },
            UnsealError::Refused => KeyStoreError::WrongPassphrase { path: path.to_owned() },
        })
    }

    /// In clear, for a link that is sealed itself (I-K8).
    pub(crate) fn encode(&self) -> Zeroizing<Vec<u8>> {
        let len = 16 + 3 * 32 + 4 + self.masters.len() * (4 + 32);
        // Of final size: one that grows would leave keys behind in memory that nobody wipes (I-K8).
        let mut writer = Writer::with_capacity(len);
        writer.raw(&self.cluster.0).raw(self.locator.expose()).raw(self.control.expose()).raw(self.system.expose());
        writer.u32(u32::try_from(self.masters.len()).expect("bounded by EPOCHS_MAX"));
        for (epoch, key) in &self.masters {
            writer.u32(epoch.0).raw(key.expose());
        }
        debug_assert_eq!(writer.len(), len, "I-K8");
        Zeroizing::new(writer.finish())
    }

    /// From what [`KeyStore::encode`] gave.
    pub(crate) fn decode(plain: &[u8]) -> Result<KeyStore, CodecError> {
        let mut reader = Reader::new("key store", plain);
        let cluster = ClusterId(reader.array()?);
        let locator = SecretKey::take(&mut reader.array()?);
        let control = SecretKey::take(&mut reader.array()?);
        let system = SecretKey::take(&mut reader.array()?);
        let mut masters = BTreeMap::new();
        for _ in 0..reader.count(EPOCHS_MAX)? {
            let epoch = MasterEpoch(reader.u32()?);
            masters.insert(epoch, SecretKey::take(&mut reader.array()?));
        }
        if masters.is_empty() {
            return Err(reader.unknown(0));
        }
        reader.end()?;
        Ok(KeyStore { cluster, masters, locator, control, system })
    }

    fn seal(&self, passphrase: &[u8], iterations: u32, mut fill_random: impl FnMut(&mut [u8])) -> Vec<u8> {
        let plain = self.encode();
        let (mut salt, mut nonce) = ([0; SALT_LEN_BYTES], [0; NONCE_LEN_BYTES]);
        fill_random(&mut salt);
        fill_random(&mut nonce);
        let sealed_len = plain.len() + AES_256_GCM.tag_len();
        let mut writer = Writer::new();
        writer.raw(MAGIC).u16(VERSION).u8(KDF_PBKDF2_SHA256).u8(0).u32(iterations).raw(&salt).raw(&nonce);
        writer.u32(u32::try_from(sealed_len).expect("a key store is small"));
        let header = writer.finish();
        assert_eq!(header.len(), HEADER_LEN_BYTES, "the header is what docs/formats/key-store.md says");
        // Sealed in a buffer of final size: a growing one would leave copies of keys behind.
        let mut sealed = Zeroizing::new(Vec::with_capacity(sealed_len));
        sealed.extend_from_slice(&plain);
        // The key is new with every salt, so a nonce never meets a second plaintext (I-K7).
        let key = derive(passphrase, &salt, iterations);
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(&header), &mut *sealed)
            .expect("a key store is far below the cipher's limit");
        [&header[..], &sealed[..]].concat()
    }

    fn unseal(file: &[u8], passphrase: &[u8]) -> Result<KeyStore, UnsealError> {
        let SealedFile { iterations, salt, nonce, mut sealed } = SealedFile::parse(file)?;
        let key = derive(passphrase, &salt, iterations);
        let aad = Aad::from(&file[..HEADER_LEN_BYTES]);
        let plain = key
            .open_in_place(Nonce::assume_unique_for_key(nonce), aad, &mut sealed)
            .map_err(|_| UnsealError::Refused)?;
        Ok(KeyStore::decode(plain)?)
    }
}

/// What stands in a key store file in clear, and the sealed rest.
struct SealedFile {
    iterations: u32,
    salt: [u8; SALT_LEN_BYTES],
    nonce: [u8; NONCE_LEN_BYTES],
    sealed: Zeroizing<Vec<u8>>,
}

impl SealedFile {
    fn parse(file: &[u8]) -> Result<SealedFile, CodecError> {
        let mut reader = Reader::new("key store", file);
        if reader.array::<8>()? != *MAGIC {
            return Err(reader.unknown(0));
        }
        match reader.u16()? {
            VERSION => {}
            version => return Err(reader.unknown(u64::from(version))),
        }
        match (reader.u8()?, reader.u8()?) {
            (KDF_PBKDF2_SHA256, 0) => {}
            (kdf, _) => return Err(reader.unknown(u64::from(kdf))),
        }
        let iterations = reader.u32()?;
        if !ITERATIONS_RANGE.contains(&iterations) {
            return Err(reader.unknown(u64::from(iterations)));
        }
        let (salt, nonce) = (reader.array()?, reader.array()?);
        let sealed = Zeroizing::new(reader.bytes(FILE_LEN_BYTES_MAX as usize)?.to_vec());
        reader.end()?;
        Ok(SealedFile { iterations, salt, nonce, sealed })
    }
}

/// The opened part decoded and encoded again, for `crate::fuzzing`.
pub(crate) fn fuzz_plain(bytes: &[u8]) -> Option<Vec<u8>> {
    KeyStore::decode(bytes).ok().map(|keys| keys.encode().to_vec())
}

/// Whether the head of a file is one of ours, for `crate::fuzzing`.
pub(crate) fn fuzz_header(bytes: &[u8]) -> bool {
    SealedFile::parse(bytes).is_ok_and(|file| NonZeroU32::new(file.iterations).is_some())
}

#[derive(Debug)]
enum UnsealError {
    Codec(CodecError),
    Refused,
}

impl From<CodecError> for UnsealError {
    fn from(error: CodecError) -> UnsealError {
        UnsealError::Codec(error)
    }
}

fn derive(passphrase: &[u8], salt: &[u8], iterations: u32) -> LessSafeKey {
    let iterations = NonZeroU32::new(iterations).expect("checked against ITERATIONS_RANGE");
    let mut bytes = [0; 32];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, salt, passphrase, &mut bytes);
    let key = UnboundKey::new(&AES_256_GCM, &bytes).expect("32 bytes are an AES-256 key");
    bytes.zeroize();
    LessSafeKey::new(key)
}

/// The passphrase in a file: its bytes without the line end.
pub fn read_passphrase(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyStoreError> {
    let bytes = read_bounded(path, PASSPHRASE_LEN_BYTES_MAX).map_err(|source| KeyStoreError::File {
        path: path.to_owned(),
        source,
        remedy: "point KISEKI_PASSPHRASE_FILE at the file that holds the passphrase of the key store",
    })?;
    let mut bytes = Zeroizing::new(bytes);
    while bytes.last().is_some_and(|last| matches!(last, b'\n' | b'\r')) {
        bytes.pop();
    }
    if bytes.is_empty() {
        return Err(KeyStoreError::EmptyPassphrase { path: path.to_owned() });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(out: &mut [u8]) {
        getrandom::fill(out).unwrap();
    }

    fn same(a: &KeyStore, b: &KeyStore) -> bool {
        *a.encode() == *b.encode()
    }

    #[test]
    fn keys_come_back_under_the_right_passphrase_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key-store");
        let keys = KeyStore::generate(random);
        keys.create(&path, b"correct horse", random).unwrap();
        assert!(same(&KeyStore::open(&path, b"correct horse").unwrap(), &keys));
        let error = KeyStore::open(&path, b"wrong horse").err().unwrap();
        assert!(matches!(error, KeyStoreError::WrongPassphrase { .. }), "{error}");
        assert!(error.to_string().contains("KISEKI_PASSPHRASE_FILE"), "the message names the remedy: {error}");
        assert!(matches!(keys.create(&path, b"x", random), Err(KeyStoreError::Exists { .. })));
    }

    #[test]
    fn i_k8_no_key_stands_in_the_file() {
        let keys = KeyStore::generate(random);
        let sealed = keys.seal(b"passphrase", *ITERATIONS_RANGE.start(), random);
        for key in [&keys.locator, &keys.control, &keys.system, &keys.masters[&MasterEpoch(1)]] {
            assert!(!sealed.windows(8).any(|part| part == &key.expose()[..8]));
        }
    }

    #[test]
    fn every_changed_or_missing_byte_is_noticed() {
        let keys = KeyStore::generate(random);
        let sealed = keys.seal(b"passphrase", *ITERATIONS_RANGE.start(), random);
        assert!(same(&KeyStore::unseal(&sealed, b"passphrase").unwrap(), &keys));
        for at in (0..sealed.len()).step_by(7) {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(KeyStore::unseal(&changed, b"passphrase").is_err(), "byte {at}");
            assert!(KeyStore::unseal(&sealed[..at], b"passphrase").is_err(), "cut at {at}");
        }
    }

    #[test]
    fn i_k18_an_empty_or_missing_passphrase_opens_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("passphrase");
        assert!(matches!(read_passphrase(&path), Err(KeyStoreError::File { .. })));
        std::fs::write(&path, "\n").unwrap();
        assert!(matches!(read_passphrase(&path), Err(KeyStoreError::EmptyPassphrase { .. })));
        std::fs::write(&path, "abc\n").unwrap();
        assert_eq!(**read_passphrase(&path).unwrap(), *b"abc");
    }
}
