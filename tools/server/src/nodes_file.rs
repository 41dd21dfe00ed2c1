//! What a node knows of the cluster before it has asked anybody: `nodes.json` beside its configuration, so that a start depends
//! on nobody. It is written again whenever the node learns of a change, and is the same on every node: a lost one is copied
//! from another node. Which of the nodes this one is stands in its metadata directories, not here.

use crate::files::{Readers, read_bounded, write_whole};
use crate::paths::KisekiDir;
use anyhow::{Context, Result, anyhow, bail};
use kiseki_engine::message::{NodeEntry, NodeState};
use kiseki_types::ids::{ClusterId, NodeId};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;

/// Longest file: thousands of nodes with long addresses (I-O5).
pub const NODES_LEN_BYTES_MAX: u64 = 1 << 20;

/// A node as files, requests and reports write it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRow {
    /// Its number.
    pub node: u64,
    /// `invited`, `active`, `draining` or `removed`.
    pub state: String,
    /// Where its links are, HOST:PORT, the best first.
    pub addresses: Vec<String>,
    /// Its lanes; 0 while it is only invited.
    pub lanes: u16,
    /// Its cores when it started last.
    pub cores: u16,
    /// The version of its program then.
    pub version: String,
    /// Since when it is in this state, milliseconds since 1970.
    pub since_unix_ms: u64,
    /// Its rack; empty: none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub rack: String,
}

impl From<&NodeEntry> for NodeRow {
    fn from(entry: &NodeEntry) -> NodeRow {
        NodeRow {
            node: entry.node.0,
            state: entry.state.name().to_owned(),
            addresses: entry.addresses.clone(),
            lanes: entry.lanes,
            cores: entry.cores,
            version: entry.version.clone(),
            since_unix_ms: entry.since_unix_ms,
            rack: entry.rack.clone(),
        }
    }
}

impl NodeRow {
    /// As the engine records it; `None` for a state that this release does not know.
    #[must_use]
    pub fn entry(&self) -> Option<NodeEntry> {
        let states = [NodeState::Invited, NodeState::Active, NodeState::Draining, NodeState::Removed];
        let state = states.into_iter().find(|state| state.name() == self.state)?;
        Some(NodeEntry {
            node: NodeId(self.node),
            state,
            addresses: self.addresses.clone(),
            lanes: self.lanes,
            cores: self.cores,
            version: self.version.clone(),
            since_unix_ms: self.since_unix_ms,
            rack: self.rack.clone(),
        })
    }
}

/// The file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodesFile {
    /// The cluster's id.
    pub cluster: String,
    /// Homes of the cluster, fixed when it was formed.
    pub homes: u16,
    /// Which change of the records this is.
    pub version: u64,
    /// All nodes that were ever recorded.
    pub nodes: Vec<NodeRow>,
}

impl NodesFile {
    /// What is known from the control shard.
    #[must_use]
    pub fn of(cluster: ClusterId, homes: u16, version: u64, entries: &[NodeEntry]) -> NodesFile {
        NodesFile { cluster: cluster.to_string(), homes, version, nodes: entries.iter().map(NodeRow::from).collect() }
    }

    /// The file in `dir`; `None` when there is none.
    pub fn read(dir: &KisekiDir) -> Result<Option<NodesFile>> {
        let path = dir.nodes_file();
        match read_bounded(&path, NODES_LEN_BYTES_MAX) {
            Ok(bytes) => NodesFile::parse(&bytes).map(Some).with_context(|| {
                format!("{} can't be used; copy the file of another node of the cluster over it", path.display())
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("can't read {}", path.display())),
        }
    }

    /// From its bytes.
    pub fn parse(bytes: &[u8]) -> Result<NodesFile> {
        let file: NodesFile = serde_json::from_slice(bytes)?;
        if file.homes == 0 {
            bail!("a cluster has at least one home");
        }
        file.entries()?;
        Ok(file)
    }

    /// What it says of the nodes.
    pub fn entries(&self) -> Result<Vec<NodeEntry>> {
        let entry =
            |row: &NodeRow| row.entry().ok_or_else(|| anyhow!("node {}: {:?} is no state", row.node, row.state));
        self.nodes.iter().map(entry).collect()
    }

    /// As bytes.
    #[must_use]
    pub fn text(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(self).expect("rows are plain data");
        text.push(b'\n');
        text
    }

    /// Replaces the file in `dir`; durable on return.
    pub fn write(&self, dir: &KisekiDir) -> Result<()> {
        let path: PathBuf = dir.nodes_file();
        write_whole(&path, &self.text(), Readers::Everybody).with_context(|| format!("can't write {}", path.display()))
    }
}

/// Whether a text is HOST:PORT.
#[must_use]
pub fn is_address(text: &str) -> bool {
    let named = || {
        let (host, port) = text.rsplit_once(':')?;
        let host = host.strip_prefix('[').map_or(Some(host), |host| host.strip_suffix(']'))?;
        Some(!host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0))
    };
    text.parse::<SocketAddr>().is_ok_and(|address| address.port() > 0) || named().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn what_is_known_comes_back_and_a_damaged_file_is_told() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = KisekiDir::at(temporary.path()).unwrap();
        assert_eq!(NodesFile::read(&dir).unwrap(), None);
        let entry = NodeEntry {
            node: NodeId(3),
            state: NodeState::Draining,
            addresses: vec!["10.0.0.3:9100".to_owned()],
            lanes: 4,
            cores: 2,
            version: "0.1.0".to_owned(),
            since_unix_ms: 7,
            rack: "r1".to_owned(),
        };
        let file = NodesFile::of(ClusterId([1; 16]), 4, 9, std::slice::from_ref(&entry));
        file.write(&dir).unwrap();
        let read = NodesFile::read(&dir).unwrap().unwrap();
        assert_eq!((&read, read.entries().unwrap()), (&file, vec![entry]));
        for bad in ["{}", "", "{\"cluster\":\"\",\"homes\":0,\"version\":0,\"nodes\":[]}"] {
            std::fs::write(dir.nodes_file(), bad).unwrap();
            let error = NodesFile::read(&dir).unwrap_err().to_string();
            assert!(error.contains("copy the file of another node"), "{bad}: {error}");
        }
        assert!(dir.nodes_file().starts_with(Path::new(temporary.path())));
    }

    #[test]
    fn addresses_are_a_host_and_a_port() {
        for good in ["10.0.0.1:9100", "[::1]:9100", "storage1:1"] {
            assert!(is_address(good), "{good}");
        }
        for bad in ["10.0.0.1", ":9100", "storage1:0", "storage1:x", "[::1:9100", ""] {
            assert!(!is_address(bad), "{bad}");
        }
    }
}
