//! Keys of tables: names of entries, uploads, chunks and pins.

use crate::target::{Seed, Target, Verdict, bytes_survive};
use kiseki_engine::delta::ChunkName;
use kiseki_engine::fuzzing;
use kiseki_engine::names::{entry_key, name_of_entry_key, split_key};
use kiseki_engine::shard_tables::{parse_part_key, parse_upload_key, upload_key};
use kiseki_types::ids::{DirId, Generation, Locator, NamespaceId, UploadId};

/// (directory, name, inverted version).
pub const ENTRY_KEY: Target = Target::new("entry_key", entry_key_name, entry_key_seeds);
/// (namespace, key, upload id); and (upload id, part number).
pub const UPLOAD_KEY: Target = Target::new("upload_key", upload_key_parts, upload_key_seeds);
/// (locator, generation).
pub const CHUNK_NAME_KEY: Target = Target::new("chunk_name_key", chunk_name_key, chunk_name_key_seeds);
/// (locator, generation, pin id).
pub const PIN_KEY: Target = Target::new("pin_key", pin_key, || vec![("pin", vec![8; 56])]);
/// An S3 key as a path.
pub const S3_KEY: Target = Target::new("s3_key", s3_key, s3_key_seeds);

fn entry_key_name(bytes: &[u8]) -> Verdict {
    let Some(name) = name_of_entry_key(bytes) else { return Verdict::Refused };
    let directory = bytes.first_chunk::<16>().expect("an entry's key starts with its directory");
    let again = entry_key(DirId(*directory), &name);
    assert_eq!(name_of_entry_key(&again), Some(name));
    assert_eq!(again.len(), bytes.len());
    Verdict::Accepted
}

fn entry_key_seeds() -> Vec<Seed> {
    vec![("file", entry_key(DirId([1; 16]), "a\0b")), ("directory", entry_key(DirId([2; 16]), "dir/"))]
}

fn upload_key_parts(bytes: &[u8]) -> Verdict {
    let _part = parse_part_key(bytes);
    bytes_survive(bytes, |bytes| {
        let (key, upload) = parse_upload_key(bytes)?;
        let namespace = u64::from_be_bytes(*bytes.first_chunk::<8>()?);
        Some(upload_key(NamespaceId(namespace), &key, upload))
    })
}

fn upload_key_seeds() -> Vec<Seed> {
    vec![("upload", upload_key(NamespaceId(2), "a/b\0c", UploadId([7; 16])))]
}

fn chunk_name_key(bytes: &[u8]) -> Verdict {
    bytes_survive(bytes, |bytes| ChunkName::from_key(bytes).ok().map(ChunkName::to_key))
}

fn chunk_name_key_seeds() -> Vec<Seed> {
    vec![("chunk", ChunkName { locator: Locator([1; 32]), generation: Generation(2) }.to_key())]
}

fn pin_key(bytes: &[u8]) -> Verdict {
    bytes_survive(bytes, fuzzing::pin_key)
}

fn s3_key(bytes: &[u8]) -> Verdict {
    let Ok(key) = std::str::from_utf8(bytes) else { return Verdict::Refused };
    let path = split_key(key);
    assert_eq!(path.directories.concat() + path.name, key, "no byte of a key is lost");
    assert!(path.directories.iter().all(|directory| directory.ends_with('/')) && !path.name.contains('/'));
    Verdict::Accepted
}

fn s3_key_seeds() -> Vec<Seed> {
    vec![("deep", b"a//b/\xc3\xa9/c".to_vec()), ("directory", b"a/".to_vec())]
}
