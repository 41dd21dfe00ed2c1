//! Which device an operator means: one rule for a node that runs, one that is stopped, and the tools.
//!
//! A device is named by its path, its id, or the first digits of its id.

use std::collections::BTreeSet;
use std::path::Path;

/// Fewest digits of an id that name a device.
pub const PREFIX_LEN_MIN: usize = 4;

/// A device that can be named.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Its id in hex; empty when it could not be read.
    pub id: &'a str,
    /// Where it is, or was.
    pub path: &'a Path,
    /// How it stands with the node: of several at one path the first standing counts.
    pub standing: Standing,
}

/// How a device stands with its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// The configuration names it.
    Configured,
    /// It is recorded, and has not left.
    Recorded,
    /// It has left for good.
    Left,
}

/// Whether this may be the start of an id.
#[must_use]
pub fn is_prefix(name: &str) -> bool {
    name.len() >= PREFIX_LEN_MIN && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The number of the candidate that is meant.
///
/// - `name`: what the operator wrote; `path`: that as a path, made absolute.
/// - Where several candidates are one device, the first of them is taken.
/// - Errors: none or several, with what to do.
pub fn find(name: &str, path: &Path, candidates: &[Candidate<'_>]) -> Result<usize, String> {
    let all = || candidates.iter().enumerate();
    let best = all().filter(|(_, known)| known.path == path).map(|(_, known)| known.standing).min();
    let prefix = name.to_ascii_lowercase();
    let is_it = |known: &Candidate<'_>| match best {
        Some(best) => known.path == path && known.standing == best,
        None => is_prefix(name) && known.id.starts_with(&prefix),
    };
    let found: Vec<usize> = all().filter(|(_, known)| is_it(known)).map(|(at, _)| at).collect();
    let ids: BTreeSet<&str> = found.iter().map(|at| candidates[*at].id).collect();
    match (found.first(), ids.len()) {
        (Some(first), 1) => Ok(*first),
        (None, _) => Err(format!(
            "{name} is no device of this node; name one by its path or by the first digits of its id ({PREFIX_LEN_MIN} at \
             least), as `kiseki status` and `kiseki-devctl list` show them"
        )),
        (Some(_), many) => {
            let ids: Vec<&str> = ids.into_iter().collect();
            Err(format!("{name} may be any of {many} devices ({}); name it by more of its id", ids.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_named_by_path_id_or_a_prefix_that_fits_one() {
        let ids =
            ["11".repeat(16), format!("{}22", "11".repeat(15)), "33".repeat(16), "44".repeat(16), "55".repeat(16)];
        let known =
            |at: usize, path: &'static str, standing| Candidate { id: &ids[at], path: Path::new(path), standing };
        let candidates = [
            known(0, "/dev/a", Standing::Configured),
            Candidate { id: "", path: Path::new("/dev/gone"), standing: Standing::Configured },
            known(0, "/dev/a-before", Standing::Recorded),
            known(1, "/dev/b", Standing::Left),
            known(2, "/dev/a", Standing::Recorded),
            known(3, "/dev/twice", Standing::Recorded),
            known(4, "/dev/twice", Standing::Recorded),
        ];
        let found = |name: &str| find(name, Path::new(name), &candidates);
        for (name, wanted) in
            [("/dev/a", 0), ("/dev/gone", 1), ("/dev/b", 3), (&ids[0], 0), (&ids[1].to_uppercase(), 3), ("3333", 4)]
        {
            assert_eq!(found(name), Ok(wanted), "{name}");
        }
        for (name, words) in [
            ("1111", "name it by more of its id"),
            ("/dev/twice", "name it by more of its id"),
            ("333", "no device"),
            ("/dev/x", "no device"),
            ("", "no device"),
        ] {
            assert!(found(name).unwrap_err().contains(words), "{name}: {:?}", found(name));
        }
    }
}
