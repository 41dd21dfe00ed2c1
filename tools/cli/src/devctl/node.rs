//! The node whose devices the verbs are about: its directory and configuration.

use anyhow::Result;
use kiseki_server::config::{Config, Overrides};
use kiseki_server::paths::DEFAULT_DIR;
use std::path::PathBuf;

/// Names the node.
#[derive(clap::Args)]
pub struct NodeArgs {
    /// Directory of the node.
    #[arg(long, env = "KISEKI_DIR", default_value = DEFAULT_DIR)]
    pub dir: PathBuf,
}

/// The configuration in a node's directory.
pub fn load(dir: PathBuf) -> Result<Config> {
    Ok(Config::load(&Overrides { dir, ..Overrides::default() })?)
}
