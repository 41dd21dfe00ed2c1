//! Administration over the engine: tenants, keys and buckets live in the control shard, which any core can call.

use crate::admin::{AdminFuture, AdminStore, Dedup, Etag, NewKey, TenantRow};
use crate::outcome::{NodeError, Outcome};
use kiseki_engine::api::{EtagMode, StoreError};
use kiseki_engine::calls::Calls;
use kiseki_engine::message::{self, ControlRequest, ControlResponse, TenantInfo};

/// The control shard as administration sees it.
pub struct EngineAdmin {
    calls: Calls,
}

impl EngineAdmin {
    /// Administration through `calls`.
    #[must_use]
    pub fn new(calls: Calls) -> EngineAdmin {
        EngineAdmin { calls }
    }

    fn ask<T: 'static>(
        &self,
        request: ControlRequest,
        pick: impl FnOnce(ControlResponse) -> Option<T> + 'static,
    ) -> AdminFuture<T> {
        let calls = self.calls.clone();
        Box::pin(async move {
            let response = calls.control(request).await.map_err(|error: StoreError| not_done(&error))?;
            Ok(pick(response).expect("the control shard answers each request in kind"))
        })
    }
}

/// A refusal of the store, or a failure of it, for the operator.
#[must_use]
pub fn not_done(error: &StoreError) -> NodeError {
    let outcome = match error {
        StoreError::Unavailable { .. } | StoreError::Unsettled { .. } | StoreError::Damaged { .. } => Outcome::Failed,
        _ => Outcome::Refused,
    };
    NodeError { message: error.to_string(), outcome }
}

fn row(tenant: TenantInfo) -> TenantRow {
    let dedup = match tenant.dedup {
        message::Dedup::Shared => Dedup::Shared,
        message::Dedup::Private => Dedup::Private,
    };
    TenantRow { name: tenant.name, id: tenant.tenant.0, dedup }
}

impl AdminStore for EngineAdmin {
    fn create_tenant(&self, name: String, dedup: Dedup) -> AdminFuture<TenantRow> {
        let dedup = match dedup {
            Dedup::Shared => message::Dedup::Shared,
            Dedup::Private => message::Dedup::Private,
        };
        self.ask(ControlRequest::CreateTenant { name, dedup }, |response| match response {
            ControlResponse::Tenant(tenant) => Some(row(tenant)),
            _ => None,
        })
    }

    fn tenants(&self) -> AdminFuture<Vec<TenantRow>> {
        self.ask(ControlRequest::Tenants, |response| match response {
            ControlResponse::Tenants(tenants) => Some(tenants.into_iter().map(row).collect()),
            _ => None,
        })
    }

    fn create_key(&self, tenant: String) -> AdminFuture<NewKey> {
        let request = ControlRequest::CreateAccessKey { tenant: tenant.clone() };
        self.ask(request, |response| match response {
            ControlResponse::NewAccessKey(access_key_id, secret) => {
                Some(NewKey { tenant, access_key_id, secret_access_key: secret.to_string() })
            }
            _ => None,
        })
    }

    fn keys(&self, tenant: String) -> AdminFuture<Vec<String>> {
        self.ask(ControlRequest::AccessKeys { tenant }, |response| match response {
            ControlResponse::AccessKeys(ids) => Some(ids),
            _ => None,
        })
    }

    fn set_bucket_etag(&self, tenant: String, bucket: String, etag: Etag) -> AdminFuture<()> {
        let mode = match etag {
            Etag::Md5 => EtagMode::Md5,
            Etag::Opaque => EtagMode::Opaque,
        };
        self.ask(ControlRequest::SetBucketEtag { tenant, name: bucket, mode }, |_| Some(()))
    }
}
