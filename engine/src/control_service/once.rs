//! Changes that are asked again get their first answer (`request_log`), and whoever has to know of them is told again: the leader
//! that made the change may have died before it told anybody.

use super::{ControlService, damaged, read_be};
use crate::api::StoreError;
use crate::control_rows::BucketRow;
use crate::leader::row_damaged;
use crate::message::{ControlRequest, ControlResponse, TenantInfo};
use crate::request_log::{Entered, Mark, RequestStamp};
use kiseki_types::ids::{NodeId, TenantId};

impl ControlService {
    /// Answers a request. One that changes something and has a stamp is done once, however often it is asked.
    pub async fn handle(
        &self,
        request: ControlRequest,
        stamp: Option<RequestStamp>,
    ) -> Result<ControlResponse, StoreError> {
        self.leader.barrier().await?;
        let Some(stamp) = stamp.filter(|_| request.is_done_once()) else {
            return self.answer(request, None).await;
        };
        match self.leader.requests.enter(stamp, &*self.leader.tables()).await? {
            Entered::First(_running) => self.answer(request, Some(stamp.id)).await,
            Entered::Done(remembered) => self.answer_again(request, &remembered).await,
        }
    }

    /// How far the control shard has counted its requests.
    #[must_use]
    pub fn mark(&self) -> Mark {
        self.leader.requests.mark()
    }

    /// The first answer, from what was remembered: a bucket's row, or the name of what was made or changed.
    async fn answer_again(&self, request: ControlRequest, remembered: &[u8]) -> Result<ControlResponse, StoreError> {
        match request {
            ControlRequest::CreateBucket { .. } => {
                let row = BucketRow::decode(remembered).map_err(row_damaged)?;
                Ok(ControlResponse::Bucket(Box::new(self.with_pool(row).await?)))
            }
            ControlRequest::DeleteBucket { .. } | ControlRequest::SetBucketEtag { .. } => {
                let row = BucketRow::decode(remembered).map_err(row_damaged)?;
                let bucket = self.with_pool(row).await;
                self.forgotten(bucket).await
            }
            ControlRequest::CreateTenant { .. } => {
                let tenant = TenantId(read_be(remembered)?);
                let row = self.tenant(tenant).await?;
                // Its shards may be half made.
                self.open_tenant_shards(false).await?;
                let (name, dedup, created_unix_ms) = (row.name, row.dedup, row.created_unix_ms);
                Ok(ControlResponse::Tenant(TenantInfo { tenant, name, dedup, created_unix_ms }))
            }
            ControlRequest::CreateAccessKey { .. } => {
                let id =
                    String::from_utf8(remembered.to_vec()).map_err(|_| damaged(&"an access key id is not text"))?;
                let (_, secret) = self.access_key(&id).await?.ok_or_else(|| damaged(&"an access key is gone"))?;
                Ok(ControlResponse::NewAccessKey(id, secret))
            }
            ControlRequest::UpdateDevice { device, .. } => {
                let (version, records) = self.device_records().await?;
                self.calls.tell_devices_everywhere(version, &records).await;
                let record = records.into_iter().find(|record| record.device == device);
                let record = record.ok_or_else(|| StoreError::NotFound { what: format!("device {device}") })?;
                Ok(ControlResponse::Device(Box::new(record)))
            }
            ControlRequest::InviteNode | ControlRequest::SetNodeState { .. } => {
                let node = NodeId(read_be(remembered)?);
                let (version, entries) = self.node_entries().await?;
                self.calls.tell_nodes_everywhere(version, &entries).await;
                let entry = entries.into_iter().find(|entry| entry.node == node);
                let entry = entry.ok_or_else(|| StoreError::NotFound { what: format!("{node}") })?;
                Ok(ControlResponse::Node(entry))
            }
            _ => Err(damaged(&"what is remembered of a request is none of its kind")),
        }
    }
}
