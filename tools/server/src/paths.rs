//! What lies where below `KISEKI_DIR`.

use std::path::{Path, PathBuf};

/// Where a node lives when nobody says otherwise.
pub const DEFAULT_DIR: &str = ".kiseki";

/// The directory of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KisekiDir(PathBuf);

impl KisekiDir {
    /// The directory at `path`, made absolute, so that exports written into it work from anywhere.
    pub fn at(path: &Path) -> std::io::Result<KisekiDir> {
        std::path::absolute(path).map(KisekiDir)
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A path that a configuration names: relative ones start here.
    #[must_use]
    pub fn resolve(&self, path: &Path) -> PathBuf {
        self.0.join(path)
    }

    /// The configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.0.join("kiseki.toml")
    }

    /// Devices that were replaced while the node did not run; see [`replaced`](crate::replaced).
    #[must_use]
    pub fn replaced_file(&self) -> PathBuf {
        self.0.join("replaced.json")
    }

    /// Certificates of the cluster's members.
    #[must_use]
    pub fn pki(&self) -> PathBuf {
        self.0.join("pki")
    }

    /// What is known of the cluster's nodes; see [`nodes_file`](crate::nodes_file).
    #[must_use]
    pub fn nodes_file(&self) -> PathBuf {
        self.0.join("nodes.json")
    }

    /// The admin socket.
    #[must_use]
    pub fn admin_socket(&self) -> PathBuf {
        self.0.join("admin.sock")
    }

    /// Exports for SDKs and the AWS command line.
    #[must_use]
    pub fn env_file(&self) -> PathBuf {
        self.0.join("env")
    }

    /// Configuration for s3cmd.
    #[must_use]
    pub fn s3cfg(&self) -> PathBuf {
        self.0.join("s3cfg")
    }

    /// Configuration for rclone.
    #[must_use]
    pub fn rclone_conf(&self) -> PathBuf {
        self.0.join("rclone.conf")
    }

    /// Held locked by the running node, so that two never share a directory.
    #[must_use]
    pub fn lock_file(&self) -> PathBuf {
        self.0.join("lock")
    }
}
