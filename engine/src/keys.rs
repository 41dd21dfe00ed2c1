//! Keys: where DEKs come from, how a tenant's KEK wraps them, how metadata payloads are sealed.
//!
//! Every AEAD here is AES-256-GCM of aws-lc-rs, wrapping included: one provider is one set of tests and one place where
//! key schedules are cleansed (its contexts are wiped when freed). All keys derive by HKDF-SHA256 with a label of
//! their own, so that no key serves two purposes. Layouts: docs/formats/envelope.md.

#[cfg(test)]
mod tests;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use kiseki_types::ids::{ChunkId, CompositionId, MasterEpoch, TenantId};
use kiseki_types::limits::{SEGMENT_LEN_BYTES, TAG_LEN_BYTES};
use kiseki_types::runtime::Rng;
use kiseki_types::secret::SecretKey;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use thiserror::Error;
use zeroize::Zeroize;

/// Bytes of a wrapped DEK: counter, key, tag.
pub const WRAPPED_DEK_LEN_BYTES: usize = 4 + 32 + TAG_LEN_BYTES;

/// Bytes that sealing adds to a metadata payload: salt, counter, tag.
pub const META_SEAL_OVERHEAD_BYTES: usize = SALT_LEN_BYTES + 8 + TAG_LEN_BYTES;

const SALT_LEN_BYTES: usize = 16;

/// Derived keys that a sealer keeps for opening: one for each process that sealed what is read now. More would be a
/// cluster of more cores than that, restarted while we read; a miss costs one HKDF.
const OPENING_KEYS_MAX: usize = 64;

/// Epoch of a tenant's KEK; a rotation makes the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KekEpoch(pub u32);

/// Why a key is not to be had. Nothing about the key itself is ever in it (I-K8).
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyError {
    /// There is no default key (I-K18).
    #[error("no master key was given; a node without its keys does not start")]
    NoMasterKey,
    /// The chunk was sealed under an epoch whose key this node does not have.
    #[error("master key of epoch {epoch} is not in the key store")]
    NoMasterEpoch {
        /// The epoch.
        epoch: MasterEpoch,
    },
    /// Another KEK, chunk, tenant, epoch or composition, or damaged bytes (I-K17).
    #[error("a wrapped key of tenant {tenant} does not open under KEK epoch {}", epoch.0)]
    Unwrap {
        /// The tenant.
        tenant: TenantId,
        /// The epoch.
        epoch: KekEpoch,
    },
    /// Another metadata key or AAD, or damaged bytes.
    #[error("a sealed metadata payload of {len_bytes} bytes does not open")]
    SealedPayload {
        /// Its length.
        len_bytes: usize,
    },
}

/// HKDF-SHA256: one more secret from `secret`, bound to `salt` and to the parts of `info`.
///
/// The first part of `info` is a label with a version. Only the last may vary in length: the parts are joined as they
/// are, so two lists of parts must never join to the same bytes.
#[must_use]
pub fn derive(secret: &SecretKey, salt: &[u8], info: &[&[u8]]) -> SecretKey {
    let extracted = Salt::new(HKDF_SHA256, salt).extract(secret.expose());
    let mut bytes = [0; 32];
    extracted
        .expand(info, HKDF_SHA256)
        .and_then(|expanded| expanded.fill(&mut bytes))
        .expect("32 bytes are within HKDF's limit");
    SecretKey::take(&mut bytes)
}

/// A key ready for AES-256-GCM.
pub(crate) fn aead_key(key: &SecretKey) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.expose()).expect("the key has 256 bits"))
}

/// The nonce made of a counter: little-endian, then zeros.
pub(crate) fn counter_nonce(counter: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// The system's master keys, one for each epoch that still has chunks.
pub struct MasterKeys {
    keys: BTreeMap<MasterEpoch, SecretKey>,
}

impl MasterKeys {
    /// Takes the keys over. At least one: there is no default key (I-K18).
    pub fn new(keys: BTreeMap<MasterEpoch, SecretKey>) -> Result<MasterKeys, KeyError> {
        if keys.is_empty() { Err(KeyError::NoMasterKey) } else { Ok(MasterKeys { keys }) }
    }

    /// The epoch that new chunks are sealed under: the highest.
    #[must_use]
    pub fn current(&self) -> MasterEpoch {
        *self.keys.keys().next_back().expect("I-K18: MasterKeys is never empty")
    }

    /// The DEK of a chunk in the shared dedup domain. Any tenant that holds the plaintext gets the same one.
    pub fn shared_dek(&self, epoch: MasterEpoch, chunk: &ChunkId, kind: SealKind) -> Result<SecretKey, KeyError> {
        let master = self.keys.get(&epoch).ok_or(KeyError::NoMasterEpoch { epoch })?;
        Ok(dek(master, b"kiseki/dek/shared/1", chunk, kind))
    }
}

/// What a DEK is for: a key never serves two formats or algorithms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealKind {
    /// Format of the envelope, [`crate::envelope::FORMAT`].
    pub format: u16,
    /// Algorithm of the envelope, such as [`crate::envelope::ALGORITHM_AES_256_GCM_64_KIB`].
    pub algorithm: u16,
}

/// The DEK of a chunk in a tenant's private dedup domain; it dies with the tenant's secret.
#[must_use]
pub fn private_dek(tenant_secret: &SecretKey, chunk: &ChunkId, kind: SealKind) -> SecretKey {
    dek(tenant_secret, b"kiseki/dek/private/1", chunk, kind)
}

/// The secret that names a tenant's chunks in its private dedup domain, for [`crate::chunk_id::DedupDomain::private`].
#[must_use]
pub fn private_naming_secret(tenant_secret: &SecretKey) -> SecretKey {
    derive(tenant_secret, &[], &[b"kiseki/chunk-id/private/1"])
}

fn dek(secret: &SecretKey, label: &[u8], chunk: &ChunkId, kind: SealKind) -> SecretKey {
    let (format, algorithm) = (kind.format.to_le_bytes(), kind.algorithm.to_le_bytes());
    derive(secret, &chunk.0, &[label, &format, &algorithm, &(SEGMENT_LEN_BYTES as u32).to_le_bytes()])
}

/// Whose keys are wrapped, for what, and by which attempt: stands beside the wrapped keys in the sealed payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrapScope {
    /// The tenant whose KEK it is.
    pub tenant: TenantId,
    /// Which of its KEKs.
    pub kek_epoch: KekEpoch,
    /// The composition that refers to the chunks.
    pub composition: CompositionId,
    /// Drawn at random for each attempt to write: a retry that wraps other chunks does so under another key (I-K7).
    pub attempt: [u8; SALT_LEN_BYTES],
}

impl WrapScope {
    fn key(&self, kek: &SecretKey) -> LessSafeKey {
        aead_key(&derive(kek, &self.attempt, &[b"kiseki/dek-wrap/1", &self.composition.0]))
    }

    /// I-K17: moved to another chunk, tenant or epoch, a wrapped key does not open.
    fn aad(&self, chunk: &ChunkId) -> Aad<[u8; 44]> {
        let mut aad = [0; 44];
        aad[..32].copy_from_slice(&chunk.0);
        aad[32..40].copy_from_slice(&self.tenant.0.to_le_bytes());
        aad[40..].copy_from_slice(&self.kek_epoch.0.to_le_bytes());
        Aad::from(aad)
    }
}

/// A DEK under a tenant's KEK: counter (little-endian), encrypted key, tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrappedDek(pub [u8; WRAPPED_DEK_LEN_BYTES]);

/// Wraps the DEKs of one write attempt. Not `Clone`: two with one scope would use one nonce twice (I-K7).
pub struct DekWrapper {
    scope: WrapScope,
    key: LessSafeKey,
    next: u32,
}

impl DekWrapper {
    /// Begins an attempt to write `composition`, with 128 random bits of its own.
    #[must_use]
    pub fn begin(
        kek: &SecretKey,
        kek_epoch: KekEpoch,
        tenant: TenantId,
        composition: CompositionId,
        rng: &dyn Rng,
    ) -> DekWrapper {
        let mut attempt = [0; SALT_LEN_BYTES];
        rng.fill_random(&mut attempt);
        let scope = WrapScope { tenant, kek_epoch, composition, attempt };
        DekWrapper { scope, key: scope.key(kek), next: 0 }
    }

    /// What must be stored beside the wrapped keys.
    #[must_use]
    pub fn scope(&self) -> WrapScope {
        self.scope
    }

    /// Wraps the DEK of one chunk.
    #[must_use]
    pub fn wrap(&mut self, chunk: &ChunkId, dek: &SecretKey) -> WrappedDek {
        let counter = self.next;
        self.next = counter.checked_add(1).expect("I-K7: a write attempt wraps fewer than 2^32 keys");
        let mut wrapped = WrappedDek([0; WRAPPED_DEK_LEN_BYTES]);
        let (head, rest) = wrapped.0.split_at_mut(4);
        let (text, tag) = rest.split_at_mut(32);
        head.copy_from_slice(&counter.to_le_bytes());
        text.copy_from_slice(dek.expose());
        let made = self
            .key
            .seal_in_place_separate_tag(counter_nonce(u64::from(counter)), self.scope.aad(chunk), text)
            .expect("32 bytes are within the cipher's limit");
        tag.copy_from_slice(made.as_ref());
        wrapped
    }
}

/// Unwraps the DEKs of one scope; the wrapping key is derived once.
pub struct DekUnwrapper {
    scope: WrapScope,
    key: LessSafeKey,
}

impl DekUnwrapper {
    /// For keys wrapped in `scope` under `kek`, the KEK of that epoch.
    #[must_use]
    pub fn new(kek: &SecretKey, scope: WrapScope) -> DekUnwrapper {
        DekUnwrapper { scope, key: scope.key(kek) }
    }

    /// Unwraps the DEK of one chunk, or says that these bytes were not wrapped for it here.
    pub fn unwrap(&self, chunk: &ChunkId, wrapped: &WrappedDek) -> Result<SecretKey, KeyError> {
        let (counter, rest) = wrapped.0.split_first_chunk::<4>().expect("a wrapped DEK starts with its counter");
        let (text, tag) = rest.split_at(32);
        let mut dek = [0; 32];
        let nonce = counter_nonce(u64::from(u32::from_le_bytes(*counter)));
        let opened = self.key.open_separate_gather(nonce, self.scope.aad(chunk), text, tag, &mut dek);
        let dek = SecretKey::take(&mut dek);
        let (tenant, epoch) = (self.scope.tenant, self.scope.kek_epoch);
        opened.map(|()| dek).map_err(|_| KeyError::Unwrap { tenant, epoch })
    }
}

/// Seals and opens metadata payloads (deltas, pages) under one metadata key.
///
/// Each sealer draws a salt of its own and counts from 0 under HKDF(metadata key, salt), so processes and cores that
/// share a metadata key never share a key and nonce (I-K7). A sealed payload is
/// `[salt 16][counter 8][ciphertext][tag 16]`.
pub struct MetaSealer {
    metadata_key: SecretKey,
    salt: [u8; SALT_LEN_BYTES],
    sealing: LessSafeKey,
    next: Cell<u64>,
    opening: RefCell<VecDeque<([u8; SALT_LEN_BYTES], Rc<LessSafeKey>)>>,
}

impl MetaSealer {
    /// A sealer with a new salt of 128 random bits.
    #[must_use]
    pub fn new(metadata_key: SecretKey, rng: &dyn Rng) -> MetaSealer {
        let mut salt = [0; SALT_LEN_BYTES];
        rng.fill_random(&mut salt);
        let sealing = meta_key(&metadata_key, &salt);
        MetaSealer { metadata_key, salt, sealing, next: Cell::new(0), opening: RefCell::new(VecDeque::new()) }
    }

    /// Seals `plaintext`; it opens only with the same `aad` (which names where it belongs).
    #[must_use]
    pub fn seal(&self, aad: &[u8], plaintext: &[u8]) -> Vec<u8> {
        let counter = self.next.get();
        self.next.set(counter.checked_add(1).expect("I-K7: the counter of a metadata key never wraps"));
        let mut sealed = Vec::with_capacity(META_SEAL_OVERHEAD_BYTES + plaintext.len());
        sealed.extend_from_slice(&self.salt);
        sealed.extend_from_slice(&counter.to_le_bytes());
        sealed.extend_from_slice(plaintext);
        let text = &mut sealed[SALT_LEN_BYTES + 8..];
        let tag = self
            .sealing
            .seal_in_place_separate_tag(counter_nonce(counter), Aad::from(aad), text)
            .expect("a metadata payload is within the cipher's limit");
        sealed.extend_from_slice(tag.as_ref());
        sealed
    }

    /// Opens what any sealer of the same metadata key sealed with the same `aad`.
    pub fn open(&self, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>, KeyError> {
        let refused = KeyError::SealedPayload { len_bytes: sealed.len() };
        let (salt, rest) = sealed.split_first_chunk::<SALT_LEN_BYTES>().ok_or(refused)?;
        let (counter, rest) = rest.split_first_chunk::<8>().ok_or(refused)?;
        let text_len = rest.len().checked_sub(TAG_LEN_BYTES).ok_or(refused)?;
        let (text, tag) = rest.split_at(text_len);
        let mut plaintext = vec![0; text_len];
        let nonce = counter_nonce(u64::from_le_bytes(*counter));
        let opened = self.opening_key(salt).open_separate_gather(nonce, Aad::from(aad), text, tag, &mut plaintext);
        opened.map_err(|_| {
            plaintext.zeroize();
            refused
        })?;
        Ok(plaintext)
    }

    /// The key behind a salt, from the cache or derived; the oldest leaves.
    fn opening_key(&self, salt: &[u8; SALT_LEN_BYTES]) -> Rc<LessSafeKey> {
        let mut keys = self.opening.borrow_mut();
        if let Some((_, key)) = keys.iter().find(|(of, _)| of == salt) {
            return key.clone();
        }
        let key = Rc::new(meta_key(&self.metadata_key, salt));
        keys.truncate(OPENING_KEYS_MAX - 1);
        keys.push_front((*salt, key.clone()));
        key
    }
}

fn meta_key(metadata_key: &SecretKey, salt: &[u8; SALT_LEN_BYTES]) -> LessSafeKey {
    aead_key(&derive(metadata_key, salt, &[b"kiseki/metadata/1"]))
}
