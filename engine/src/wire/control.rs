//! What the control shard is asked and answers.

use super::core::{put_node, put_nodes, put_open, put_state, take_node, take_nodes, take_open, take_state};
use super::device::{put_record, put_records, put_update, take_record, take_records, take_update};
use super::field::{elements, needed, row, sent, take_key, take_secret, take_shape, take_text};
use super::frame::{count, fits, within};
use super::{WORD_LEN_BYTES_MAX, WireError};
use crate::api::{BucketInfo, EtagMode};
use crate::control_rows::{BucketRow, NAME_LEN_BYTES_MAX};
use crate::control_service::LISTED_MAX;
use crate::engine_capnp::{Dedup as WireDedup, EtagMode as WireMode};
use crate::engine_capnp::{
    bucket, bucket_info, bucket_name, control_request, control_response, node_entry, tenant_info, tenant_secrets,
};
use crate::message::{Bucket, ControlRequest, ControlResponse, Dedup, NodeEntry, NodeState, TenantInfo, TenantSecrets};
use crate::split_message::{ShardMapAnswer, ShardMapRequest};
use kiseki_types::ids::{NamespaceId, NodeId, ShardId, TenantId};

fn sent_name(name: &str) -> Result<&str, WireError> {
    sent("bytes of a name", name, NAME_LEN_BYTES_MAX)
}

fn take_name(name: capnp::Result<capnp::text::Reader<'_>>) -> Result<String, WireError> {
    take_text("bytes of a name", NAME_LEN_BYTES_MAX, name)
}

/// Writes a request.
pub(super) fn put_request(mut out: control_request::Builder<'_>, request: &ControlRequest) -> Result<(), WireError> {
    match request {
        ControlRequest::AccessKey(id) => out.set_access_key(sent_name(id)?),
        ControlRequest::TenantSecrets(tenant) => out.set_tenant_secrets(tenant.0),
        ControlRequest::CreateTenant { name, dedup } => {
            let mut out = out.init_create_tenant();
            out.set_name(sent_name(name)?);
            out.set_dedup(put_dedup(*dedup));
        }
        ControlRequest::Tenants => out.set_tenants(()),
        ControlRequest::CreateAccessKey { tenant } => out.set_create_access_key(sent_name(tenant)?),
        ControlRequest::AccessKeys { tenant } => out.set_access_keys(sent_name(tenant)?),
        ControlRequest::CreateBucket { tenant, name } => put_bucket_name(out.init_create_bucket(), *tenant, name)?,
        ControlRequest::Bucket { tenant, name } => put_bucket_name(out.init_bucket(), *tenant, name)?,
        ControlRequest::DeleteBucket { tenant, name } => put_bucket_name(out.init_delete_bucket(), *tenant, name)?,
        ControlRequest::Buckets(tenant) => out.set_buckets(tenant.0),
        ControlRequest::SetBucketEtag { tenant, name, mode } => {
            let mut out = out.init_set_bucket_etag();
            out.set_tenant(sent_name(tenant)?);
            out.set_name(sent_name(name)?);
            out.set_mode(put_mode(*mode));
        }
        ControlRequest::Devices => out.set_devices(()),
        ControlRequest::UpdateDevice { device, update } => put_update(out.init_update_device(), *device, update)?,
        ControlRequest::Nodes => out.set_nodes(()),
        ControlRequest::InviteNode => out.set_invite_node(()),
        ControlRequest::NodeHere { node, addresses, lanes, cores, version, rack } => {
            let entry = NodeEntry {
                node: *node,
                state: NodeState::Invited,
                addresses: addresses.clone(),
                lanes: *lanes,
                cores: *cores,
                version: version.clone(),
                since_unix_ms: 0,
                rack: rack.clone(),
            };
            put_node(out.init_node_here(), &entry)?;
        }
        ControlRequest::SetNodeState { node, state } => {
            let mut out = out.init_set_node_state();
            out.set_node(node.0);
            out.set_state(put_state(*state));
        }
        ControlRequest::ShardKey(shard) => out.set_shard_key(shard.0),
        ControlRequest::Shards(request) => out.set_shards(&request.encode()),
    }
    Ok(())
}

fn put_bucket_name(mut out: bucket_name::Builder<'_>, tenant: TenantId, name: &str) -> Result<(), WireError> {
    out.set_tenant(tenant.0);
    out.set_name(sent_name(name)?);
    Ok(())
}

/// A request.
pub(super) fn take_request(request: control_request::Reader<'_>) -> Result<ControlRequest, WireError> {
    Ok(match request.which()? {
        control_request::AccessKey(id) => ControlRequest::AccessKey(take_name(id)?),
        control_request::TenantSecrets(tenant) => ControlRequest::TenantSecrets(TenantId(tenant)),
        control_request::CreateTenant(create) => {
            let create = create?;
            let (name, dedup) = (take_name(create.get_name())?, take_dedup(create.get_dedup()?));
            ControlRequest::CreateTenant { name, dedup }
        }
        control_request::Tenants(()) => ControlRequest::Tenants,
        control_request::CreateAccessKey(tenant) => ControlRequest::CreateAccessKey { tenant: take_name(tenant)? },
        control_request::AccessKeys(tenant) => ControlRequest::AccessKeys { tenant: take_name(tenant)? },
        control_request::CreateBucket(bucket) => {
            let (tenant, name) = take_bucket_name(bucket?)?;
            ControlRequest::CreateBucket { tenant, name }
        }
        control_request::Bucket(bucket) => {
            let (tenant, name) = take_bucket_name(bucket?)?;
            ControlRequest::Bucket { tenant, name }
        }
        control_request::DeleteBucket(bucket) => {
            let (tenant, name) = take_bucket_name(bucket?)?;
            ControlRequest::DeleteBucket { tenant, name }
        }
        control_request::Buckets(tenant) => ControlRequest::Buckets(TenantId(tenant)),
        control_request::SetBucketEtag(set) => {
            let set = set?;
            let (tenant, name) = (take_name(set.get_tenant())?, take_name(set.get_name())?);
            ControlRequest::SetBucketEtag { tenant, name, mode: take_mode(set.get_mode()?) }
        }
        control_request::Devices(()) => ControlRequest::Devices,
        control_request::UpdateDevice(update) => {
            let (device, update) = take_update(update?)?;
            ControlRequest::UpdateDevice { device, update }
        }
        control_request::Nodes(()) => ControlRequest::Nodes,
        control_request::InviteNode(()) => ControlRequest::InviteNode,
        control_request::NodeHere(entry) => {
            needed("the node that is here", request.has_node_here())?;
            take_node_here(entry?)?
        }
        control_request::SetNodeState(set) => {
            needed("the node and its state", request.has_set_node_state())?;
            let set = set?;
            ControlRequest::SetNodeState { node: NodeId(set.get_node()), state: take_state(set.get_state()?) }
        }
        control_request::ShardKey(shard) => ControlRequest::ShardKey(ShardId(shard)),
        control_request::Shards(request) => ControlRequest::Shards(ShardMapRequest::decode(request?)?),
    })
}

fn take_bucket_name(name: bucket_name::Reader<'_>) -> Result<(TenantId, String), WireError> {
    Ok((TenantId(name.get_tenant()), take_name(name.get_name())?))
}

fn take_node_here(entry: node_entry::Reader<'_>) -> Result<ControlRequest, WireError> {
    let NodeEntry { node, addresses, lanes, cores, version, rack, .. } = take_node(entry)?;
    Ok(ControlRequest::NodeHere { node, addresses, lanes, cores, version, rack })
}

/// Writes a response.
pub(super) fn put_response(
    mut out: control_response::Builder<'_>,
    response: &ControlResponse,
) -> Result<(), WireError> {
    let word = |what, text| sent(what, text, WORD_LEN_BYTES_MAX);
    match response {
        ControlResponse::AccessKey(None) => out.set_no_access_key(()),
        ControlResponse::AccessKey(Some((tenant, secret))) => {
            let mut out = out.init_access_key();
            out.set_tenant(tenant.0);
            out.set_secret(word("bytes of a secret", secret)?);
        }
        ControlResponse::Secrets(secrets) => {
            let mut out = out.init_secrets();
            out.set_dedup(put_dedup(secrets.dedup));
            out.set_kek_epoch(secrets.kek_epoch);
            out.set_kek(secrets.kek.expose());
            out.set_private(secrets.private.expose());
        }
        ControlResponse::Tenant(tenant) => put_tenant(out.init_tenant(), tenant)?,
        ControlResponse::Tenants(tenants) => {
            fits("tenants", tenants.len(), LISTED_MAX)?;
            let mut list = out.init_tenants(count(tenants.len()));
            let mut put = |(at, tenant)| put_tenant(list.reborrow().get(count(at)), tenant);
            tenants.iter().enumerate().try_for_each(&mut put)?;
        }
        ControlResponse::NewAccessKey(id, secret) => {
            let mut out = out.init_new_access_key();
            out.set_id(word("bytes of an access key's id", id)?);
            out.set_secret(word("bytes of a secret", secret)?);
        }
        ControlResponse::AccessKeys(ids) => {
            fits("access keys", ids.len(), LISTED_MAX)?;
            let mut list = out.init_access_keys(count(ids.len()));
            for (at, id) in ids.iter().enumerate() {
                list.set(count(at), word("bytes of an access key's id", id)?);
            }
        }
        ControlResponse::Bucket(bucket) => put_bucket(out.init_bucket(), bucket)?,
        ControlResponse::Buckets(buckets) => {
            fits("buckets", buckets.len(), LISTED_MAX)?;
            let mut list = out.init_buckets(count(buckets.len()));
            let mut put = |(at, bucket)| put_bucket_info(list.reborrow().get(count(at)), bucket);
            buckets.iter().enumerate().try_for_each(&mut put)?;
        }
        ControlResponse::Devices(version, records) => put_records(out.init_devices(), *version, records)?,
        ControlResponse::Device(record) => put_record(out.init_device(), record),
        ControlResponse::Nodes(version, entries) => put_nodes(out.init_nodes(), *version, entries)?,
        ControlResponse::Node(entry) => put_node(out.init_node(), entry)?,
        ControlResponse::ShardKey(open) => put_open(out.init_shard_key(), open),
        ControlResponse::Shards(answer) => out.set_shards(&row("bytes of an answer about shards", answer.encode())?),
    }
    Ok(())
}

fn put_tenant(mut out: tenant_info::Builder<'_>, tenant: &TenantInfo) -> Result<(), WireError> {
    out.set_tenant(tenant.tenant.0);
    out.set_name(sent_name(&tenant.name)?);
    out.set_dedup(put_dedup(tenant.dedup));
    out.set_created_unix_ms(tenant.created_unix_ms);
    Ok(())
}

fn put_bucket(mut out: bucket::Builder<'_>, bucket: &Bucket) -> Result<(), WireError> {
    sent_name(&bucket.info.name)?;
    let Bucket { info, tenant, shard, ranges, root, pool, shape, chunks } = bucket.clone();
    out.set_row(&row("bytes of a bucket", BucketRow { tenant, info, shard, ranges, root, pool, chunks }.encode())?);
    out.set_data(shape.data);
    out.set_parity(shape.parity);
    Ok(())
}

fn put_bucket_info(mut out: bucket_info::Builder<'_>, info: &BucketInfo) -> Result<(), WireError> {
    out.set_namespace(info.namespace.0);
    out.set_name(sent_name(&info.name)?);
    out.set_created_unix_ms(info.created_unix_ms);
    out.set_etag_mode(put_mode(info.etag_mode));
    Ok(())
}

/// A response.
pub(super) fn take_response(response: control_response::Reader<'_>) -> Result<ControlResponse, WireError> {
    let word = |what, text| take_text(what, WORD_LEN_BYTES_MAX, text);
    let secret = |text| take_secret("bytes of a secret", WORD_LEN_BYTES_MAX, text);
    Ok(match response.which()? {
        control_response::NoAccessKey(()) => ControlResponse::AccessKey(None),
        control_response::AccessKey(key) => {
            needed("the access key", response.has_access_key())?;
            let key = key?;
            ControlResponse::AccessKey(Some((TenantId(key.get_tenant()), secret(key.get_secret())?)))
        }
        control_response::Secrets(secrets) => ControlResponse::Secrets(take_secrets(secrets?)?),
        control_response::Tenant(tenant) => {
            needed("the tenant", response.has_tenant())?;
            ControlResponse::Tenant(take_tenant(tenant?)?)
        }
        control_response::Tenants(tenants) => {
            let tenants = elements("tenants", LISTED_MAX, tenants)?.map(take_tenant);
            ControlResponse::Tenants(tenants.collect::<Result<_, WireError>>()?)
        }
        control_response::NewAccessKey(key) => {
            needed("the access key", response.has_new_access_key())?;
            let key = key?;
            let id = word("bytes of an access key's id", key.get_id())?;
            ControlResponse::NewAccessKey(id, secret(key.get_secret())?)
        }
        control_response::AccessKeys(ids) => {
            let ids = ids?;
            within("access keys", u64::from(ids.len()), LISTED_MAX as u64)?;
            let ids = ids.iter().map(|id| word("bytes of an access key's id", id));
            ControlResponse::AccessKeys(ids.collect::<Result<_, WireError>>()?)
        }
        control_response::Bucket(bucket) => ControlResponse::Bucket(Box::new(take_bucket(bucket?)?)),
        control_response::Buckets(buckets) => {
            let buckets = elements("buckets", LISTED_MAX, buckets)?.map(take_bucket_info);
            ControlResponse::Buckets(buckets.collect::<Result<_, WireError>>()?)
        }
        control_response::Devices(records) => {
            let (version, records) = take_records(records?)?;
            ControlResponse::Devices(version, records)
        }
        control_response::Device(record) => ControlResponse::Device(Box::new(take_record(record?)?)),
        control_response::Nodes(nodes) => {
            let (version, entries) = take_nodes(nodes?)?;
            ControlResponse::Nodes(version, entries)
        }
        control_response::Node(entry) => {
            needed("the node", response.has_node())?;
            ControlResponse::Node(take_node(entry?)?)
        }
        control_response::ShardKey(open) => ControlResponse::ShardKey(take_open(open?)?),
        control_response::Shards(answer) => ControlResponse::Shards(ShardMapAnswer::decode(answer?)?),
    })
}

fn take_secrets(secrets: tenant_secrets::Reader<'_>) -> Result<TenantSecrets, WireError> {
    Ok(TenantSecrets {
        dedup: take_dedup(secrets.get_dedup()?),
        kek_epoch: secrets.get_kek_epoch(),
        kek: take_key("a KEK", secrets.get_kek())?,
        private: take_key("a private secret", secrets.get_private())?,
    })
}

fn take_tenant(tenant: tenant_info::Reader<'_>) -> Result<TenantInfo, WireError> {
    Ok(TenantInfo {
        tenant: TenantId(tenant.get_tenant()),
        name: take_name(tenant.get_name())?,
        dedup: take_dedup(tenant.get_dedup()?),
        created_unix_ms: tenant.get_created_unix_ms(),
    })
}

fn take_bucket(bucket: bucket::Reader<'_>) -> Result<Bucket, WireError> {
    let BucketRow { tenant, info, shard, ranges, root, pool, chunks } = BucketRow::decode(bucket.get_row()?)?;
    let shape = take_shape(bucket.get_data(), bucket.get_parity())?;
    Ok(Bucket { info, tenant, shard, ranges, root, pool, shape, chunks })
}

fn take_bucket_info(info: bucket_info::Reader<'_>) -> Result<BucketInfo, WireError> {
    Ok(BucketInfo {
        namespace: NamespaceId(info.get_namespace()),
        name: take_name(info.get_name())?,
        created_unix_ms: info.get_created_unix_ms(),
        etag_mode: take_mode(info.get_etag_mode()?),
    })
}

fn put_dedup(dedup: Dedup) -> WireDedup {
    match dedup {
        Dedup::Shared => WireDedup::Shared,
        Dedup::Private => WireDedup::Private,
    }
}

fn take_dedup(dedup: WireDedup) -> Dedup {
    match dedup {
        WireDedup::Shared => Dedup::Shared,
        WireDedup::Private => Dedup::Private,
    }
}

fn put_mode(mode: EtagMode) -> WireMode {
    match mode {
        EtagMode::Md5 => WireMode::Md5,
        EtagMode::Opaque => WireMode::Opaque,
    }
}

fn take_mode(mode: WireMode) -> EtagMode {
    match mode {
        WireMode::Md5 => EtagMode::Md5,
        WireMode::Opaque => EtagMode::Opaque,
    }
}
