//! The tenant that a new node starts with, and the files that let clients in.

use crate::admin::{AdminStore, Dedup};
use crate::config::Config;
use crate::credentials::{Credentials, read_env, write_client_files};
use anyhow::{Context, Result};
use kiseki_engine::api::Store;
use zeroize::Zeroizing;

/// Its name.
pub const FIRST_TENANT: &str = "default";

/// Makes the first tenant when there is none at all, and an access key for it when `env` holds none that works; writes
/// the clients' files anew, since ports and TLS may have changed.
pub async fn ensure(config: &Config, store: &Store, admin: &dyn AdminStore) -> Result<()> {
    let tenants = admin.tenants().await?;
    if tenants.is_empty() {
        admin.create_tenant(FIRST_TENANT.to_owned(), Dedup::Shared).await?;
    } else if !tenants.iter().any(|tenant| tenant.name == FIRST_TENANT) {
        return Ok(()); // the operator has removed it, or never had it
    }
    let known = read_env(config).with_context(|| format!("can't read {}", config.dir.env_file().display()))?;
    let credentials = match known {
        Some(known) if is_valid(store, &known).await? => known,
        _ => {
            let key = admin.create_key(FIRST_TENANT.to_owned()).await?;
            Credentials { access_key_id: key.access_key_id, secret_access_key: Zeroizing::new(key.secret_access_key) }
        }
    };
    write_client_files(config, &credentials).with_context(|| format!("can't write {}", config.dir.env_file().display()))
}

async fn is_valid(store: &Store, credentials: &Credentials) -> Result<bool> {
    let found = store.access_key(&credentials.access_key_id).await?;
    Ok(found.is_some_and(|key| *key.secret == *credentials.secret_access_key))
}
