//! The node whose devices the verbs are about: its directory and configuration.

use anyhow::{Result, bail};
use kiseki_server::admin_client::AdminClient;
use kiseki_server::config::{Config, Overrides};
use kiseki_server::paths::DEFAULT_DIR;
use std::path::{Path, PathBuf};

/// Names the node.
#[derive(clap::Args)]
pub struct NodeArgs {
    /// Directory of the node.
    #[arg(long, env = "KISEKI_DIR", default_value = DEFAULT_DIR)]
    pub dir: PathBuf,
}

/// Names a node elsewhere, for verbs that a running node does itself.
#[derive(clap::Args)]
pub struct ElsewhereArgs {
    /// A node elsewhere, HOST:PORT, where its `[peer]` listens; paths are those of its machine.
    #[arg(long = "node", env = "KISEKI_NODE", requires = "cert", value_name = "HOST:PORT")]
    address: Option<String>,
    /// Directory with an administrator's certificate, made by `kiseki ca issue-admin`.
    #[arg(long, env = "KISEKI_CERT", value_name = "DIR")]
    cert: Option<PathBuf>,
}

impl ElsewhereArgs {
    /// The way to it; `None`: the node on this machine is meant.
    pub fn connect(&self) -> Result<Option<AdminClient>> {
        match (&self.address, &self.cert) {
            (Some(address), Some(cert)) => Ok(Some(AdminClient::remote(address, cert)?)),
            _ => Ok(None),
        }
    }

    /// Whether one is named.
    pub fn is_named(&self) -> bool {
        self.address.is_some()
    }
}

/// A path as a node is told it: one that is typed here means what it means here, and only a whole one means something elsewhere.
pub fn path_on_node(path: &Path, is_elsewhere: bool) -> Result<PathBuf> {
    match is_elsewhere {
        true if path.is_absolute() => Ok(path.to_owned()),
        true => bail!("{} is no whole path; name the device as it is called on the node's machine", path.display()),
        false => Ok(std::path::absolute(path)?),
    }
}

/// The configuration in a node's directory.
pub fn load(dir: PathBuf) -> Result<Config> {
    Ok(Config::load(&Overrides { dir, ..Overrides::default() })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_elsewhere_is_not_made_of_where_one_stands() {
        assert_eq!(path_on_node(Path::new("/dev/d1"), true).unwrap(), Path::new("/dev/d1"));
        assert!(path_on_node(Path::new("d1"), true).unwrap_err().to_string().contains("whole path"));
        assert!(path_on_node(Path::new("d1"), false).unwrap().is_absolute());
    }
}
