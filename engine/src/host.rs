//! The port through which the engine has Raft groups opened: the server implements it with the Raft room.

use crate::api::StoreError;
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
}

/// A group to be opened.
pub struct GroupSpec {
    /// Which shard.
    pub shard: ShardId,
    /// Its table files, in order.
    pub files: Vec<FileSpec>,
    /// Whether it may start empty. When false a missing log is "lost", never "new" (I-L10). When true and the group
    /// exists, it is opened as it is.
    pub create: bool,
    /// Its logic.
    pub machine: Rc<dyn StateMachine>,
}

/// Opens groups on this core. To be correct: the returned group is led here and has applied everything committed.
pub trait GroupHost {
    /// Opens or makes a group.
    fn open(&self, spec: GroupSpec) -> LocalBoxFuture<'static, Result<Rc<dyn RaftGroup>, StoreError>>;
}
