//! What an operator says of tenants' shards: who holds them and what, that one is split, and when they split by themselves. Answered on
//! core 0.

use crate::admin::{AdminRequest, AdminResponse};
use crate::admin_store::not_done;
use crate::core_node::CoreNode;
use crate::outcome::{NodeError, Outcome};
use crate::shard_inline;
use futures::StreamExt;
use futures::stream;
use kiseki_engine::api::StoreError;
use kiseki_engine::inline_message::InlineRequest;
use kiseki_engine::message::{ControlRequest, ControlResponse, ShardRequest, ShardResponse};
use kiseki_engine::split_message::{
    ShardEntry, ShardMapAnswer, ShardMapRequest, ShardStanding, SplitAnswer, SplitCeilings, SplitRequest, SplitState,
};
use kiseki_engine::wire::ROOM_VERSION;
use kiseki_types::ids::{ShardId, TenantId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Shards that are asked at once.
const ASKED_AT_ONCE: usize = 32;

/// Section `[shards]`: when a tenant's shard has itself split (I-L6); 0: never for this.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ShardsSection {
    /// Objects.
    pub split_objects: u64,
    /// GiB of those.
    pub split_gib: u64,
    /// Changes of names in a minute.
    pub split_writes_per_minute: u64,
}

impl ShardsSection {
    /// As the engine has them.
    #[must_use]
    pub fn ceilings(&self) -> SplitCeilings {
        SplitCeilings {
            keys: self.split_objects,
            bytes: self.split_gib.saturating_mul(1 << 30),
            writes_per_minute: self.split_writes_per_minute,
        }
    }
}

/// A tenant's shard as lists show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardRow {
    /// Its number.
    pub shard: u64,
    /// Whose.
    pub tenant: String,
    /// The node that leads it; `None` when it does not answer.
    pub leader: Option<u64>,
    /// The nodes that vote.
    pub voters: Vec<u64>,
    /// Objects; `None` while they have not been counted.
    pub keys: Option<u64>,
    /// Bytes of those, before they are stored once or several times.
    pub bytes: Option<u64>,
    /// Changes of names in a minute.
    pub writes_per_minute: u64,
    /// Reads in a minute.
    pub reads_per_minute: u64,
    /// Ranges of keys that it has given to other shards.
    pub given: u64,
    /// The shard that its keys come from while it is filled.
    pub split_of: Option<u64>,
    /// What goes on, or why it does not answer.
    pub state: String,
}

/// The answering part.
pub struct ShardAdmin {
    node: Rc<CoreNode>,
}

fn unfit() -> NodeError {
    let message = "another node answers something else; do all run the same release?".to_owned();
    NodeError { message, outcome: Outcome::Failed }
}

impl ShardAdmin {
    /// For core 0.
    #[must_use]
    pub fn new(node: Rc<CoreNode>) -> Rc<ShardAdmin> {
        Rc::new(ShardAdmin { node })
    }

    /// Whether a request is one of these.
    #[must_use]
    pub fn answers(request: &AdminRequest) -> bool {
        matches!(
            request,
            AdminRequest::ShardList
                | AdminRequest::ShardSplit { .. }
                | AdminRequest::ShardShow { .. }
                | AdminRequest::ShardThreshold { .. }
        )
    }

    /// Answers it.
    pub async fn answer(&self, request: AdminRequest) -> AdminResponse {
        let answer = match request {
            AdminRequest::ShardList => self.list().await.map(|shards| AdminResponse::Shards { shards }),
            AdminRequest::ShardSplit { shard, bucket, at } => self.split(ShardId(shard), bucket, at).await,
            AdminRequest::ShardShow { shard } => self.show(ShardId(shard), InlineRequest::Show).await,
            AdminRequest::ShardThreshold { shard, bytes } => {
                self.show(ShardId(shard), InlineRequest::Set { len_bytes: bytes }).await
            }
            other => {
                let message = format!("{other:?} is answered elsewhere");
                Err(NodeError { message, outcome: Outcome::Refused })
            }
        };
        answer.unwrap_or_else(AdminResponse::not_done)
    }

    async fn control(&self, request: ControlRequest) -> Result<ControlResponse, NodeError> {
        self.node.engine().calls().control(request).await.map_err(|error| not_done(&error))
    }

    /// One shard, after what is asked of it.
    async fn show(&self, shard: ShardId, request: InlineRequest) -> Result<AdminResponse, NodeError> {
        let (entry, name) =
            self.entries().await?.into_iter().find(|(entry, _)| entry.shard == shard).ok_or_else(|| {
                let message = format!("no tenant has a shard {}; `kiseki shard list` shows all", shard.0);
                NodeError { message, outcome: Outcome::Refused }
            })?;
        if let Some(node) = self.node.engine().calls().known_to_lack(ROOM_VERSION) {
            let message = format!("node {} does not understand this yet; update it first", node.0);
            return Err(NodeError { message, outcome: Outcome::Refused });
        }
        let inline = match self.node.engine().calls().shard(shard, ShardRequest::Inline(request)).await {
            Ok(ShardResponse::Inline(view)) => shard_inline::row(&view),
            Ok(_) => return Err(unfit()),
            Err(error) => return Err(not_done(&error)),
        };
        let row = row(&entry, name, self.standing(shard).await);
        Ok(AdminResponse::Shard { row: Box::new(row), inline: Box::new(inline) })
    }

    async fn list(&self) -> Result<Vec<ShardRow>, NodeError> {
        let rows = self.entries().await?.into_iter().map(|(entry, name)| async move {
            let standing = match entry.is_active {
                true => self.standing(entry.shard).await,
                false => Err(StoreError::Unavailable { reason: "it is being made".to_owned() }),
            };
            row(&entry, name, standing)
        });
        Ok(stream::iter(rows).buffered(ASKED_AT_ONCE).collect().await)
    }

    /// All tenants' shards, and the tenants' names.
    async fn entries(&self) -> Result<Vec<(ShardEntry, String)>, NodeError> {
        let ControlResponse::Tenants(tenants) = self.control(ControlRequest::Tenants).await? else {
            return Err(unfit());
        };
        let names: BTreeMap<TenantId, String> = tenants.into_iter().map(|info| (info.tenant, info.name)).collect();
        let shards = match self.control(ControlRequest::Shards(ShardMapRequest::List)).await? {
            ControlResponse::Shards(ShardMapAnswer::Shards(shards)) => shards,
            _ => return Err(unfit()),
        };
        let name = |entry: &ShardEntry| names.get(&entry.tenant).cloned().unwrap_or_default();
        Ok(shards.into_iter().map(|entry| (name(&entry), entry)).map(|(name, entry)| (entry, name)).collect())
    }

    async fn standing(&self, shard: ShardId) -> Result<ShardStanding, StoreError> {
        let request = ShardRequest::Split(Box::new(SplitRequest::Standing));
        match self.node.engine().calls().shard(shard, request).await? {
            ShardResponse::Split(SplitAnswer::Standing(standing)) => Ok(*standing),
            _ => Err(StoreError::Unavailable { reason: unfit().message }),
        }
    }

    async fn split(
        &self,
        shard: ShardId,
        bucket: Option<String>,
        at: Option<String>,
    ) -> Result<AdminResponse, NodeError> {
        match self.control(ControlRequest::Shards(ShardMapRequest::Split { shard, bucket, at })).await? {
            ControlResponse::Shards(ShardMapAnswer::Begun(order)) => {
                Ok(AdminResponse::Split { shard: shard.0, child: order.child.0 })
            }
            _ => Err(unfit()),
        }
    }
}

fn row(entry: &ShardEntry, tenant: String, standing: Result<ShardStanding, StoreError>) -> ShardRow {
    let (standing, answered) = match standing {
        Ok(standing) => (standing, Ok(())),
        Err(error) => (ShardStanding::default(), Err(error.to_string())),
    };
    let state = match (&answered, &standing.split) {
        (Err(reason), _) => reason.clone(),
        (Ok(()), None) if !standing.is_complete => "waits for more voters".to_owned(),
        (Ok(()), None) if entry.split_of.is_some() => "is filled".to_owned(),
        (Ok(()), None | Some(SplitState::Done(_) | SplitState::Stopped)) => "serves".to_owned(),
        (Ok(()), Some(SplitState::Waiting { reason })) => format!("is split: {reason}"),
        (Ok(()), Some(SplitState::Moving { problem: Some(problem), .. })) => format!("is split: {problem}"),
        (Ok(()), Some(SplitState::Moving { problem: None, .. })) => "is split".to_owned(),
    };
    let counted = |count| (answered.is_ok() && standing.is_counted).then_some(count);
    ShardRow {
        shard: entry.shard.0,
        tenant,
        leader: answered.is_ok().then_some(standing.leader.0),
        voters: standing.voters.iter().map(|voter| voter.0).collect(),
        keys: counted(standing.keys),
        bytes: counted(standing.bytes),
        writes_per_minute: standing.writes_per_minute,
        reads_per_minute: standing.reads_per_minute,
        given: standing.given,
        split_of: entry.split_of.map(|shard| shard.0),
        state,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_what_goes_on_and_shows_no_key() {
        let entry = ShardEntry { shard: ShardId(1024), tenant: TenantId(1), is_active: true, split_of: None };
        let moving = SplitState::Moving { at: "secret-key".to_owned(), problem: None };
        let standing = ShardStanding { is_complete: true, is_counted: true, keys: 7, ..Default::default() };
        let split = ShardStanding { split: Some(moving), ..standing.clone() };
        for (standing, state, keys) in [
            (Ok(standing.clone()), "serves", Some(7)),
            (Ok(split), "is split", Some(7)),
            (Ok(ShardStanding { is_complete: false, ..standing.clone() }), "waits for more voters", Some(7)),
            (Ok(ShardStanding { is_counted: false, ..standing }), "serves", None),
            (Err(StoreError::NoSuchKey), "there is no object of that key", None),
        ] {
            let row = row(&entry, "a".to_owned(), standing);
            assert_eq!((row.state.as_str(), row.keys), (state, keys));
            assert!(!format!("{row:?}").contains("secret-key"));
        }
    }
}
