//! The device nodes of NVMe: `/dev/nvme0` (a controller), `/dev/nvme0n1` (a namespace as a block device), `/dev/ng0n1`
//! (the same namespace as a character device, which takes raw commands).

use std::path::{Path, PathBuf};

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NvmeNodeKind {
    /// A controller.
    Controller,
    /// A namespace as a block device.
    Block,
    /// A namespace as a character device.
    Generic,
}

/// A node by its name. It says nothing about whether it is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NvmeNode {
    directory: PathBuf,
    kind: NvmeNodeKind,
    /// Number of the controller or, with several ways to a drive, of the subsystem.
    instance: u32,
    /// Number in the name of a namespace, which need not be its id.
    namespace: Option<u32>,
}

impl NvmeNode {
    /// From a path; links are followed where there are any. `None`: not a node of NVMe, or a partition.
    #[must_use]
    pub fn of(path: &Path) -> Option<NvmeNode> {
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let name = path.file_name()?.to_str()?;
        let directory = path.parent()?.to_owned();
        let (rest, is_generic) = match (name.strip_prefix("nvme"), name.strip_prefix("ng")) {
            (Some(rest), _) => (rest, false),
            (_, Some(rest)) => (rest, true),
            _ => return None,
        };
        match rest.split_once('n') {
            Some((instance, namespace)) => Some(NvmeNode {
                directory,
                kind: if is_generic { NvmeNodeKind::Generic } else { NvmeNodeKind::Block },
                instance: number(instance)?,
                namespace: Some(number(namespace)?),
            }),
            None if !is_generic => {
                let instance = number(rest)?;
                Some(NvmeNode { directory, kind: NvmeNodeKind::Controller, instance, namespace: None })
            }
            None => None,
        }
    }

    /// What the node is.
    #[must_use]
    pub fn kind(&self) -> NvmeNodeKind {
        self.kind
    }

    /// The namespace as a block device; `None` for a controller.
    #[must_use]
    pub fn block(&self) -> Option<PathBuf> {
        self.namespace.map(|namespace| self.directory.join(format!("nvme{}n{namespace}", self.instance)))
    }

    /// The namespace as a character device; `None` for a controller.
    #[must_use]
    pub fn generic(&self) -> Option<PathBuf> {
        self.namespace.map(|namespace| self.directory.join(format!("ng{}n{namespace}", self.instance)))
    }

    /// The controller of that number. With several ways to a drive there may be none of it; namespaces take admin
    /// commands through their own nodes.
    #[must_use]
    pub fn controller(&self) -> PathBuf {
        self.directory.join(format!("nvme{}", self.instance))
    }

    /// The kernel's name of the block device, which is also its directory in `/sys/block`.
    #[must_use]
    pub fn block_name(&self) -> Option<String> {
        self.namespace.map(|namespace| format!("nvme{}n{namespace}", self.instance))
    }
}

/// Digits and nothing else: a sign or a partition's suffix is another name.
fn number(text: &str) -> Option<u32> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_nodes() {
        let of = |path: &str| NvmeNode::of(Path::new(path));
        let block = of("/nowhere/nvme12n3").unwrap();
        assert_eq!(block.kind(), NvmeNodeKind::Block);
        assert_eq!(block.generic().unwrap(), Path::new("/nowhere/ng12n3"));
        assert_eq!(block.controller(), Path::new("/nowhere/nvme12"));
        let generic = of("/nowhere/ng0n1").unwrap();
        assert_eq!((generic.kind(), generic.block().unwrap()), (NvmeNodeKind::Generic, "/nowhere/nvme0n1".into()));
        let controller = of("/nowhere/nvme0").unwrap();
        assert_eq!((controller.kind(), controller.block()), (NvmeNodeKind::Controller, None));
        for other in ["/nowhere/nvme0n1p1", "/nowhere/sda", "/nowhere/ng0", "/nowhere/nvme", "/nowhere/nvme0n+1", "/"] {
            assert_eq!(of(other), None, "{other}");
        }
        // A path to one way of several.
        assert_eq!(of("/nowhere/nvme0c1n1"), None);
    }

    #[test]
    fn links_are_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("nvme0n1"), b"").unwrap();
        std::os::unix::fs::symlink("nvme0n1", dir.path().join("by-id")).unwrap();
        let found = NvmeNode::of(&dir.path().join("by-id")).unwrap();
        assert_eq!(found.block_name().unwrap(), "nvme0n1");
    }
}
