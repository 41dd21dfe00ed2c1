//! Names: how an S3 key becomes a path of directories and an entry, and how an entry's key sorts in its table.
//! Byte layout: `docs/formats/names.md`.
//!
//! An entry's key is (directory id, name, inverted version). A directory's name ends in '/', so `a` and `a/` stand side
//! by side, and the order of the table is S3's byte order.

use kiseki_types::ids::DirId;

/// The version of an entry before versioning exists: S3's "null".
pub const NULL_VERSION: u64 = 0;

/// An S3 key taken apart: each directory with its trailing '/', and the name of the entry (empty when the key ends
/// in '/').
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPath<'a> {
    /// Directory names, outermost first, each with its '/'.
    pub directories: Vec<&'a str>,
    /// Name of the entry in the innermost directory.
    pub name: &'a str,
}

/// Takes a key apart. `a//b` has a directory of the name "/", which POSIX never sees.
#[must_use]
pub fn split_key(key: &str) -> KeyPath<'_> {
    let mut directories: Vec<&str> = key.split_inclusive('/').collect();
    let name = match directories.last() {
        Some(last) if !last.ends_with('/') => directories.pop().expect("there is a last one"),
        _ => "",
    };
    KeyPath { directories, name }
}

/// Appends `bytes` so that the result sorts as the bytes do and nothing behind it can disturb that: 0x00 becomes
/// 0x00 0xff, and 0x00 0x01 ends the string.
pub fn push_escaped(out: &mut Vec<u8>, bytes: &[u8]) {
    push_escaped_prefix(out, bytes);
    out.extend_from_slice(&[0, 1]);
}

/// [`push_escaped`] without the end mark: the common start of all strings that begin with `bytes`.
pub fn push_escaped_prefix(out: &mut Vec<u8>, bytes: &[u8]) {
    for byte in bytes {
        out.push(*byte);
        if *byte == 0 {
            out.push(0xff);
        }
    }
}

/// Takes an escaped string off the front: the string and what is left. `None` when the bytes are not well formed.
#[must_use]
pub fn take_escaped(bytes: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut out = Vec::new();
    let mut at = 0;
    loop {
        let byte = *bytes.get(at)?;
        at += 1;
        if byte != 0 {
            out.push(byte);
            continue;
        }
        match *bytes.get(at)? {
            0xff => out.push(0),
            1 => return Some((out, &bytes[at + 1..])),
            _ => return None,
        }
        at += 1;
    }
}

/// The table key of an entry.
#[must_use]
pub fn entry_key(directory: DirId, name: &str) -> Vec<u8> {
    let mut key = directory.0.to_vec();
    push_escaped(&mut key, name.as_bytes());
    key.extend_from_slice(&(!NULL_VERSION).to_be_bytes());
    key
}

/// The lowest table key of all entries of `directory` whose name is `name` or sorts behind it.
#[must_use]
pub fn entry_bound(directory: DirId, name: &[u8]) -> Vec<u8> {
    let mut key = directory.0.to_vec();
    push_escaped_prefix(&mut key, name);
    key
}

/// The name in an entry's table key; `None` when the key is not well formed.
#[must_use]
pub fn name_of_entry_key(key: &[u8]) -> Option<String> {
    let (name, rest) = take_escaped(key.get(16..)?)?;
    (rest.len() == 8).then_some(())?;
    String::from_utf8(name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_apart_and_together() {
        let cases: [(&str, &[&str], &str); 8] = [
            ("a", &[], "a"),
            ("a/b", &["a/"], "b"),
            ("a//b", &["a/", "/"], "b"),
            ("a/", &["a/"], ""),
            ("/", &["/"], ""),
            ("", &[], ""),
            ("../.", &["../"], "."),
            ("//", &["/", "/"], ""),
        ];
        for (key, directories, name) in cases {
            let path = split_key(key);
            assert_eq!((path.directories.as_slice(), path.name), (directories, name), "{key:?}");
            assert_eq!(path.directories.concat() + path.name, key);
        }
    }

    #[test]
    fn table_order_is_byte_order_of_names() {
        let directory = DirId([7; 16]);
        let mut names = vec!["", "a", "a\0", "a\0b", "a!", "a/", "a0", "ab", "b", "\u{ffff}", "a\u{1}", "/"];
        names.sort_unstable_by(|left, right| left.as_bytes().cmp(right.as_bytes()));
        let keys: Vec<_> = names.iter().map(|name| entry_key(directory, name)).collect();
        assert!(keys.is_sorted(), "{names:?}");
        for (name, key) in names.iter().zip(&keys) {
            assert_eq!(name_of_entry_key(key).as_deref(), Some(*name));
            assert!(entry_bound(directory, name.as_bytes()) <= *key);
        }
        assert_eq!(name_of_entry_key(&[1; 20]), None);
    }
}
