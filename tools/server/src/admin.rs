//! The admin protocol: one JSON object a line, a request and its answer, over the socket in the node's directory.

pub mod http;
pub mod server;

use crate::device_admin::DeviceAnswer;
use crate::enroll::{ChangeMode, JoinedDevice};
use crate::health::HealthReport;
use crate::join::Invitation;
use crate::nodes_file::NodeRow;
use crate::outcome::{NodeError, Outcome};
use crate::shard_admin::ShardRow;
use crate::shard_inline::InlineRow;
use crate::status::NodeReport;
use kiseki_types::runtime::LocalBoxFuture;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Longest line in either direction (I-O5).
pub const LINE_LEN_BYTES_MAX: usize = 1 << 20;

/// Whether a tenant shares chunks with others that also share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dedup {
    /// Equal content of sharing tenants is stored once; an upload's speed may tell that content exists.
    #[default]
    Shared,
    /// Equal content is stored once within the tenant only; destroying its key destroys its data.
    Private,
}

/// How a bucket makes ETags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Etag {
    /// Hex MD5.
    Md5,
    /// Opaque: saves the MD5.
    Opaque,
}

/// A change of what a node is to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeChange {
    /// What it holds moves to others.
    Drain,
    /// It is kept after all.
    Keep,
    /// It left for good.
    Remove {
        /// Whether what only it holds is given up: it will not come back.
        lost: bool,
    },
}

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum AdminRequest {
    /// Makes a tenant.
    TenantCreate {
        /// Its name.
        name: String,
        /// Its dedup policy.
        #[serde(default)]
        dedup: Dedup,
    },
    /// Lists tenants.
    TenantList,
    /// Makes an access key.
    KeyCreate {
        /// Whose.
        tenant: String,
    },
    /// Lists access key ids.
    KeyList {
        /// Whose.
        tenant: String,
    },
    /// Changes a bucket.
    BucketSet {
        /// Whose.
        tenant: String,
        /// Its name.
        bucket: String,
        /// How it makes ETags from now on.
        etag: Etag,
    },
    /// Describes the node.
    Status,
    /// Asks all members whether the cluster would hold if a node, or all nodes of a rack, left now.
    Health {
        /// Its number; absent: the node that is asked.
        #[serde(default)]
        node: Option<u64>,
        /// The rack, instead of a node.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rack: Option<String>,
    },
    /// Gives a number to a node that is to join.
    NodeInvite,
    /// Lists the cluster's nodes.
    NodeList,
    /// Changes what a node is to the cluster.
    NodeSet {
        /// Its number.
        node: u64,
        /// How.
        change: NodeChange,
    },
    /// Lists tenants' shards: who holds them, and what they hold.
    ShardList,
    /// Splits a shard: some of its keys move to a new one, while they are used.
    ShardSplit {
        /// Its number.
        shard: u64,
        /// In which bucket; absent: the one that has most to do.
        #[serde(default)]
        bucket: Option<String>,
        /// From which key on; absent: in the middle of what is asked for.
        #[serde(default)]
        at: Option<String>,
    },
    /// Describes one shard: who holds it, what it holds, and up to which length its objects lie beside their names.
    ShardShow {
        /// Its number.
        shard: u64,
    },
    /// Sets up to which length objects of a shard lie beside their names.
    ShardThreshold {
        /// Its number.
        shard: u64,
        /// Bytes; absent: as many as its voters have room for.
        #[serde(default)]
        bytes: Option<u32>,
    },
    /// Moves everything on a device to the others.
    DeviceDrain {
        /// Its path, its id, or the first digits of its id.
        device: String,
        /// Why; it is recorded.
        reason: String,
        /// Whether it is only tried.
        #[serde(default)]
        mode: ChangeMode,
    },
    /// Keeps a device in use after all.
    DeviceDrainCancel {
        /// Its path, its id, or the first digits of its id.
        device: String,
        /// Why; it is recorded.
        reason: String,
        /// Whether it is only tried.
        #[serde(default)]
        mode: ChangeMode,
    },
    /// Lets a device go on which nothing lives (I-D5).
    DeviceRetire {
        /// Its path, its id, or the first digits of its id.
        device: String,
        /// Why; it is recorded.
        reason: String,
        /// Whether what only this device holds is given up: it is failed or away, and will not come back.
        #[serde(default)]
        lost: bool,
        /// Whether it is only tried.
        #[serde(default)]
        mode: ChangeMode,
    },
    /// Takes a device into the node, or back into it, while it runs.
    DeviceEnroll {
        /// Where it is.
        path: PathBuf,
        /// Who wants it.
        actor: String,
        /// Whether it is only tried.
        #[serde(default)]
        mode: ChangeMode,
    },
    /// Puts a device into the place of one that can't be used any more.
    DeviceReplace {
        /// The one that leaves: its path or the first digits of its id.
        device: String,
        /// The one that comes.
        path: PathBuf,
        /// Who wants it.
        actor: String,
        /// Whether it is only tried.
        #[serde(default)]
        mode: ChangeMode,
    },
}

/// A tenant as lists show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantRow {
    /// Its name.
    pub name: String,
    /// Its number.
    pub id: u64,
    /// Its dedup policy.
    pub dedup: Dedup,
}

/// An access key as it is shown once, when it is made.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewKey {
    /// Whose.
    pub tenant: String,
    /// Its id.
    pub access_key_id: String,
    /// Its secret.
    pub secret_access_key: String,
}

/// The answer.
#[derive(Clone, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum AdminResponse {
    /// A tenant was made.
    Tenant(TenantRow),
    /// All tenants, by name.
    Tenants {
        /// The rows.
        tenants: Vec<TenantRow>,
    },
    /// An access key was made.
    Key(NewKey),
    /// A tenant's access key ids.
    Keys {
        /// The ids.
        access_key_ids: Vec<String>,
    },
    /// A node may join.
    Invited(Box<Invitation>),
    /// All nodes that were ever recorded.
    Nodes {
        /// The rows.
        nodes: Vec<NodeRow>,
    },
    /// A node, after a request about it.
    Node(NodeRow),
    /// All tenants' shards.
    Shards {
        /// The rows.
        shards: Vec<ShardRow>,
    },
    /// One shard.
    Shard {
        /// As in lists.
        #[serde(flatten)]
        row: Box<ShardRow>,
        /// Its small objects.
        inline: Box<InlineRow>,
    },
    /// A split has begun, and goes on by itself.
    Split {
        /// The shard that gives.
        shard: u64,
        /// The new one.
        child: u64,
    },
    /// It is done.
    Done,
    /// The node.
    Status(Box<NodeReport>),
    /// Whether the cluster would hold.
    Health(HealthReport),
    /// A device that is in use, after a request about it.
    Device(Box<DeviceAnswer>),
    /// A device joined, or would.
    Joined(Box<JoinedDevice>),
    /// It is not done.
    Error {
        /// Why, and what to do.
        message: String,
        /// Whether it was refused, or failed.
        #[serde(default)]
        outcome: Outcome,
    },
}

impl AdminResponse {
    /// It is refused; nothing has changed.
    #[must_use]
    pub fn refused(message: String) -> AdminResponse {
        AdminResponse::Error { message, outcome: Outcome::Refused }
    }

    /// Something failed on the way.
    #[must_use]
    pub fn failed(message: String) -> AdminResponse {
        AdminResponse::Error { message, outcome: Outcome::Failed }
    }

    /// Not done, and how that ended.
    #[must_use]
    pub fn not_done(error: NodeError) -> AdminResponse {
        AdminResponse::Error { message: error.message, outcome: error.outcome }
    }
}

/// Short form.
pub type AdminFuture<T> = LocalBoxFuture<'static, Result<T, NodeError>>;

/// What administration needs from a core.
pub trait AdminStore {
    /// Makes a tenant.
    fn create_tenant(&self, name: String, dedup: Dedup) -> AdminFuture<TenantRow>;
    /// All tenants, by name.
    fn tenants(&self) -> AdminFuture<Vec<TenantRow>>;
    /// Makes an access key.
    fn create_key(&self, tenant: String) -> AdminFuture<NewKey>;
    /// Ids of a tenant's access keys.
    fn keys(&self, tenant: String) -> AdminFuture<Vec<String>>;
    /// Chooses how a bucket makes ETags.
    fn set_bucket_etag(&self, tenant: String, bucket: String, etag: Etag) -> AdminFuture<()>;
}

/// Answers a request from a store; what blocks, or needs no core, is answered by [`server`].
pub async fn answer(store: &dyn AdminStore, request: AdminRequest) -> AdminResponse {
    let answer = match request {
        AdminRequest::TenantCreate { name, dedup } => match check_name(&name) {
            Ok(()) => store.create_tenant(name, dedup).await.map(AdminResponse::Tenant),
            Err(message) => Err(NodeError { message, outcome: Outcome::Refused }),
        },
        AdminRequest::TenantList => store.tenants().await.map(|tenants| AdminResponse::Tenants { tenants }),
        AdminRequest::KeyCreate { tenant } => store.create_key(tenant).await.map(AdminResponse::Key),
        AdminRequest::KeyList { tenant } => {
            store.keys(tenant).await.map(|access_key_ids| AdminResponse::Keys { access_key_ids })
        }
        AdminRequest::BucketSet { tenant, bucket, etag } => {
            store.set_bucket_etag(tenant, bucket, etag).await.map(|()| AdminResponse::Done)
        }
        AdminRequest::Status | AdminRequest::DeviceEnroll { .. } | AdminRequest::DeviceReplace { .. } => {
            return AdminResponse::refused("this is answered beside the cores".to_owned());
        }
        AdminRequest::DeviceDrain { .. }
        | AdminRequest::DeviceDrainCancel { .. }
        | AdminRequest::DeviceRetire { .. }
        | AdminRequest::Health { .. }
        | AdminRequest::ShardList
        | AdminRequest::ShardSplit { .. }
        | AdminRequest::ShardShow { .. }
        | AdminRequest::ShardThreshold { .. }
        | AdminRequest::NodeInvite
        | AdminRequest::NodeList
        | AdminRequest::NodeSet { .. } => {
            return AdminResponse::refused("this needs the node, not only its store".to_owned());
        }
    };
    answer.unwrap_or_else(AdminResponse::not_done)
}

/// Names of tenants are for operators' shells: short and plain.
fn check_name(name: &str) -> Result<(), String> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
    if (1..=63).contains(&name.len()) && name.bytes().all(plain) && name.as_bytes()[0].is_ascii_alphanumeric() {
        return Ok(());
    }
    Err("a tenant's name is 1 to 63 of a-z, 0-9, '-', '_' and '.', and starts with a letter or digit".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_json_objects_with_a_command_and_unknown_fields_are_refused() {
        let request: AdminRequest = serde_json::from_str(r#"{"command":"tenant-create","name":"a"}"#).unwrap();
        assert_eq!(request, AdminRequest::TenantCreate { name: "a".to_owned(), dedup: Dedup::Shared });
        for bad in [r#"{"command":"tenant-create","name":"a","colour":"red"}"#, r#"{"command":"reboot"}"#, "{}"] {
            assert!(serde_json::from_str::<AdminRequest>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn tenant_names_are_plain() {
        for good in ["a", "team-1", "0.x_y"] {
            check_name(good).unwrap();
        }
        for bad in ["", "-a", "A", "a b", "ä", &"a".repeat(64)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
