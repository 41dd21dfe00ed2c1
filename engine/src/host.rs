//! The port through which the engine has Raft groups opened: the server implements it with the Raft room.

use crate::api::StoreError;
use crate::keyring::snapshot_rows;
use kiseki_types::LocalBoxFuture;
use kiseki_types::group::{RaftGroup, StateMachine};
use kiseki_types::ids::ShardId;
use kiseki_types::secret::SecretKey;
use std::rc::Rc;

/// One table file of a shard.
pub struct FileSpec {
    /// Its name in the metadata directories.
    pub name: String,
    /// Key that seals its pages; `None` for a file of locators and counts.
    pub seal: Option<SecretKey>,
    /// Key that seals its rows on their way to another node; `None` for such a file.
    pub rows_seal: Option<SecretKey>,
}

impl FileSpec {
    /// A file whose pages are sealed under `key`; its rows travel under a key of their own that is derived from it.
    #[must_use]
    pub fn sealed(name: String, key: SecretKey) -> FileSpec {
        let rows_seal = Some(snapshot_rows(&key));
        FileSpec { name, seal: Some(key), rows_seal }
    }

    /// A file of locators and counts.
    #[must_use]
    pub fn clear(name: String) -> FileSpec {
        FileSpec { name, seal: None, rows_seal: None }
    }
}

/// What may be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// The group is made, this node its only voter: only while its shard is being made. One that was made is opened.
    Create,
    /// What is here. A missing log is "lost", never "new" (I-L10).
    Existing,
    /// An empty replica that the leader fills; one that is here is opened.
    Join,
}

/// A group to be opened.
pub struct GroupSpec {
    /// Which shard.
    pub shard: ShardId,
    /// Its table files, in order.
    pub files: Vec<FileSpec>,
    /// What may be opened.
    pub opening: Opening,
    /// Its logic.
    pub machine: Rc<dyn StateMachine>,
}

/// Opens groups on this core.
///
/// To be correct: `Create` ends when this replica leads. `Existing` and `Join` wait for no leader: a majority may have to reach this
/// replica first. A group that is open already is given as it is.
pub trait GroupHost {
    /// Opens or makes a group.
    fn open(&self, spec: GroupSpec) -> LocalBoxFuture<'static, Result<Rc<dyn RaftGroup>, StoreError>>;

    /// Shards that this core has a log of, in order, be they open or not.
    fn hosted(&self) -> Vec<ShardId>;
}
