//! Who signed the request, and whether what it asks for exists here.

use crate::context::{Shared, current};
use crate::errors::{from_store, refuse};
use crate::s3::OPERATIONS;
use crate::unsupported;
use kiseki_types::TenantId;
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{S3Auth, SecretKey};
use s3s::{S3ErrorCode, S3Result};
use send_wrapper::SendWrapper;
use std::rc::Rc;

/// Looks access keys up in the store and notes whose they are.
pub(crate) struct StoreAuth(pub(crate) SendWrapper<Rc<Shared>>);

#[async_trait::async_trait]
impl S3Auth for StoreAuth {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        let shared = self.0.clone();
        SendWrapper::new(async move {
            let key = shared.store.access_key(access_key).await.map_err(from_store)?.ok_or_else(|| {
                refuse(
                    S3ErrorCode::InvalidAccessKeyId,
                    "The AWS access key ID that you provided does not exist in our records.",
                )
            })?;
            current().tenant.set(Some(key.tenant));
            Ok(SecretKey::from(key.secret.as_str()))
        })
        .await
    }
}

/// Lets in who signed; names the operation; refuses what is not there before a byte of body is read.
pub(crate) struct SignedOnly;

#[async_trait::async_trait]
impl S3Access for SignedOnly {
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        let request = current();
        let name = context.s3_op().name();
        request.operation.set(OPERATIONS.iter().find(|known| **known == name).copied().unwrap_or("Unsupported"));
        let (Some(_), Some(tenant)) = (context.credentials(), request.tenant.get()) else {
            return Err(refuse(S3ErrorCode::AccessDenied, "Access Denied: requests must be signed."));
        };
        unsupported::check_headers(context.headers())?;
        unsupported::check_query(name, context.uri().query().unwrap_or_default())?;
        if let Some(expected) = context.headers().get("x-amz-expected-bucket-owner")
            && expected.as_bytes() != owner_id(tenant).as_bytes()
        {
            return Err(refuse(S3ErrorCode::AccessDenied, "Access Denied: the bucket is not that owner's."));
        }
        Ok(())
    }
}

/// A tenant as owner ids show it.
pub(crate) fn owner_id(tenant: TenantId) -> String {
    format!("{:064x}", tenant.0)
}
