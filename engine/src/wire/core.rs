//! What cores are asked and answer, and what opens a shard.

use super::WireError;
use super::device::{put_records, take_records};
use super::field::{array, cut, elements, sent, take_key, take_text, take_usize};
use super::frame::{count, fits, malformed, within};
use super::{ADDRESSES_MAX, NODES_MAX, POOLS_MAX, REASON_LEN_BYTES_MAX, WORD_LEN_BYTES_MAX};
use crate::engine_capnp::{Closing as WireClosing, NodeState as WireState};
use crate::engine_capnp::{
    core_request, device_look, holdings, metadata_room, node_entries, node_entry, open_shard, pool, without,
};
use crate::holdings::Holdings;
use crate::message::{Closing, CoreRequest, DeviceLook, NodeEntry, NodeState, OpenShard};
use crate::metadata_room::{MetadataBudget, MetadataRoom};
use crate::racks::RACK_LEN_BYTES_MAX;
use crate::stripe::check_shape;
use crate::without::{Leaving, MARGINS, REASONS_MAX, Without};
use capnp::struct_list;
use kiseki_types::fragment::{DeviceUse, StripeShape};
use kiseki_types::ids::{DeviceId, LaneId, NodeId, PoolId, TenantId};
use kiseki_types::limits::LANES_MAX;

/// Writes what opens a shard.
pub(super) fn put_open(mut out: open_shard::Builder<'_>, open: &OpenShard) {
    out.set_tenant(open.tenant.0);
    out.set_metadata_key(open.metadata_key.expose());
    out.set_create(open.create);
}

/// What opens a shard.
pub(super) fn take_open(open: open_shard::Reader<'_>) -> Result<OpenShard, WireError> {
    Ok(OpenShard {
        tenant: TenantId(open.get_tenant()),
        metadata_key: take_key("a metadata key", open.get_metadata_key())?,
        create: open.get_create(),
    })
}

/// Writes a request.
pub(super) fn put_request(mut out: core_request::Builder<'_>, request: &CoreRequest) -> Result<(), WireError> {
    match request {
        CoreRequest::Forget => out.set_forget(()),
        CoreRequest::Devices { version, records } => put_records(out.init_devices(), *version, records)?,
        CoreRequest::LookAtDevice(device, closing) => {
            let mut out = out.init_look_at_device();
            out.set_device(&device.0);
            out.set_closing(match closing {
                Closing::Close => WireClosing::Close,
                Closing::Open => WireClosing::Open,
                Closing::AsItIs => WireClosing::AsItIs,
            });
        }
        CoreRequest::Nodes { version, entries } => put_nodes(out.init_nodes(), *version, entries)?,
        CoreRequest::Host => out.set_host(()),
        CoreRequest::MetadataRoom => out.set_metadata_room(()),
        CoreRequest::Holdings(node) => out.set_holdings_of(node.0),
        CoreRequest::Without(Leaving::Node(node)) => out.set_without(node.0),
        CoreRequest::Without(Leaving::Rack(rack)) => {
            out.set_without_rack(sent("bytes of a rack", rack, RACK_LEN_BYTES_MAX)?);
        }
    }
    Ok(())
}

/// A request.
pub(super) fn take_request(request: core_request::Reader<'_>) -> Result<CoreRequest, WireError> {
    Ok(match request.which()? {
        core_request::Forget(()) => CoreRequest::Forget,
        core_request::Devices(records) => {
            let (version, records) = take_records(records?)?;
            CoreRequest::Devices { version, records }
        }
        core_request::LookAtDevice(look) => {
            let look = look?;
            let closing = match look.get_closing()? {
                WireClosing::Close => Closing::Close,
                WireClosing::Open => Closing::Open,
                WireClosing::AsItIs => Closing::AsItIs,
            };
            CoreRequest::LookAtDevice(DeviceId(array("a device id", look.get_device())?), closing)
        }
        core_request::Nodes(nodes) => {
            let (version, entries) = take_nodes(nodes?)?;
            CoreRequest::Nodes { version, entries }
        }
        core_request::Host(()) => CoreRequest::Host,
        core_request::MetadataRoom(()) => CoreRequest::MetadataRoom,
        // "Nothing" would be taken for an answer, and the node that holds it all removed (I-D5).
        core_request::Holdings(()) => {
            return Err(malformed("holdings without a node; update the node that asks".to_owned()));
        }
        core_request::HoldingsOf(node) => CoreRequest::Holdings(NodeId(node)),
        core_request::Without(node) => CoreRequest::Without(Leaving::Node(NodeId(node))),
        core_request::WithoutRack(rack) => {
            CoreRequest::Without(Leaving::Rack(take_text("bytes of a rack", RACK_LEN_BYTES_MAX, rack)?))
        }
    })
}

/// Writes what a node holds.
pub(super) fn put_holdings(mut out: holdings::Builder<'_>, held: &Holdings) {
    out.set_core(held.core.0);
    out.set_fragments(held.fragments);
    out.set_bytes(held.bytes);
    out.set_votes(held.votes);
    out.set_led(held.led);
    out.set_shards(held.shards);
    out.set_is_whole(held.is_whole);
}

/// What a node holds.
pub(super) fn take_holdings(held: holdings::Reader<'_>) -> Holdings {
    Holdings {
        core: LaneId(held.get_core()),
        fragments: held.get_fragments(),
        bytes: held.get_bytes(),
        votes: held.get_votes(),
        led: held.get_led(),
        shards: held.get_shards(),
        is_whole: held.get_is_whole(),
    }
}

/// Writes what metadata directories have room for.
pub(super) fn put_room(mut out: metadata_room::Builder<'_>, room: &MetadataRoom) {
    out.set_core(room.core.0);
    out.set_replicas(room.replicas);
    out.set_is_measured(room.budget.is_some());
    if let Some(budget) = &room.budget {
        out.set_fill_percent(budget.fill_percent);
        out.set_soft_percent(budget.soft_percent);
        out.set_hard_percent(budget.hard_percent);
        out.set_content_bytes(budget.content_bytes);
    }
}

/// What metadata directories have room for.
pub(super) fn take_room(room: metadata_room::Reader<'_>) -> MetadataRoom {
    let budget = room.get_is_measured().then(|| MetadataBudget {
        fill_percent: room.get_fill_percent(),
        soft_percent: room.get_soft_percent(),
        hard_percent: room.get_hard_percent(),
        content_bytes: room.get_content_bytes(),
    });
    MetadataRoom { core: LaneId(room.get_core()), replicas: room.get_replicas(), budget }
}

/// Writes what would be if a node left.
pub(super) fn put_without(mut out: without::Builder<'_>, known: &Without) -> Result<(), WireError> {
    out.set_core(known.core.0);
    out.set_led(known.led);
    out.set_shards(known.shards);
    out.set_more(known.more);
    out.set_reliant_stripes(known.reliant_stripes);
    out.set_most_on_a_node(known.most_on_a_node);
    out.set_most_in_a_rack(known.most_in_a_rack);
    out.set_cores_not_walked(known.cores_not_walked);
    fits("pools", known.pools.len(), POOLS_MAX)?;
    let mut pools = out.reborrow().init_pools(count(known.pools.len()));
    for (at, (pool, shape)) in known.pools.iter().enumerate() {
        let mut out = pools.reborrow().get(count(at));
        out.set_id(pool.0);
        out.set_data(shape.data);
        out.set_parity(shape.parity);
    }
    fits("reasons", known.reasons.len(), REASONS_MAX)?;
    let mut reasons = out.reborrow().init_reasons(count(known.reasons.len()));
    for (at, reason) in known.reasons.iter().enumerate() {
        reasons.set(count(at), cut(reason, REASON_LEN_BYTES_MAX));
    }
    fits("margins", known.endangered.len(), MARGINS)?;
    let mut endangered = out.init_endangered(count(known.endangered.len()));
    for (at, stripes) in known.endangered.iter().enumerate() {
        endangered.set(count(at), *stripes);
    }
    Ok(())
}

/// What would be if a node left.
pub(super) fn take_without(known: without::Reader<'_>) -> Result<Without, WireError> {
    let pool = |pool: pool::Reader<'_>| {
        let shape = StripeShape { data: pool.get_data(), parity: pool.get_parity() };
        check_shape(shape).map_err(|error| malformed(error.to_string()))?;
        Ok((PoolId(pool.get_id()), shape))
    };
    let pools: Result<_, WireError> = elements("pools", POOLS_MAX, known.get_pools())?.map(pool).collect();
    let (reasons, endangered) = (known.get_reasons()?, known.get_endangered()?);
    within("reasons", u64::from(reasons.len()), REASONS_MAX as u64)?;
    within("margins", u64::from(endangered.len()), MARGINS as u64)?;
    let reason = |reason| take_text("bytes of a reason", REASON_LEN_BYTES_MAX, reason);
    Ok(Without {
        core: LaneId(known.get_core()),
        led: known.get_led(),
        shards: known.get_shards(),
        pools: pools?,
        reasons: reasons.iter().map(reason).collect::<Result<_, WireError>>()?,
        more: known.get_more(),
        reliant_stripes: known.get_reliant_stripes(),
        most_on_a_node: known.get_most_on_a_node(),
        most_in_a_rack: known.get_most_in_a_rack(),
        endangered: endangered.iter().collect(),
        cores_not_walked: known.get_cores_not_walked(),
    })
}

/// Writes looks into a list of their number.
pub(super) fn put_looks(mut out: struct_list::Builder<'_, device_look::Owned>, looks: &[DeviceLook]) {
    for (at, look) in looks.iter().enumerate() {
        let mut out = out.reborrow().get(count(at));
        out.set_node(look.node.0);
        out.set_core(look.core.0);
        if let Some(used) = look.used {
            out.set_is_use_known(true);
            out.set_used_fragments(used.fragments);
            out.set_used_bytes(used.bytes);
        }
        out.set_older_placements(look.older_placements as u64);
        if let Some(open) = look.open_stripes {
            out.set_are_open_stripes_known(true);
            out.set_open_stripes(open as u64);
        }
    }
}

/// Looks at a device.
pub(super) fn take_looks(looks: struct_list::Reader<'_, device_look::Owned>) -> Result<Vec<DeviceLook>, WireError> {
    let look = |look: device_look::Reader<'_>| {
        let used = DeviceUse { fragments: look.get_used_fragments(), bytes: look.get_used_bytes() };
        let open_stripes = match look.get_are_open_stripes_known() {
            true => Some(take_usize("open stripes", look.get_open_stripes())?),
            false => None,
        };
        Ok(DeviceLook {
            node: NodeId(look.get_node()),
            core: LaneId(look.get_core()),
            used: look.get_is_use_known().then_some(used),
            older_placements: take_usize("older placements", look.get_older_placements())?,
            open_stripes,
        })
    };
    elements("looks", usize::from(LANES_MAX), Ok(looks))?.map(look).collect()
}

/// Writes what is recorded of nodes.
pub(super) fn put_nodes(
    mut out: node_entries::Builder<'_>,
    version: u64,
    entries: &[NodeEntry],
) -> Result<(), WireError> {
    out.set_version(version);
    fits("nodes", entries.len(), NODES_MAX)?;
    let mut list = out.init_entries(count(entries.len()));
    entries.iter().enumerate().try_for_each(|(at, entry)| put_node(list.reborrow().get(count(at)), entry))
}

/// What is recorded of nodes.
pub(super) fn take_nodes(nodes: node_entries::Reader<'_>) -> Result<(u64, Vec<NodeEntry>), WireError> {
    let entries = elements("nodes", NODES_MAX, nodes.get_entries())?.map(take_node);
    Ok((nodes.get_version(), entries.collect::<Result<_, WireError>>()?))
}

/// Writes what is recorded of a node.
pub(super) fn put_node(mut out: node_entry::Builder<'_>, entry: &NodeEntry) -> Result<(), WireError> {
    let NodeEntry { node, state, addresses, lanes, cores, version, since_unix_ms, rack } = entry;
    out.set_node(node.0);
    out.set_state(put_state(*state));
    out.set_lanes(*lanes);
    out.set_cores(*cores);
    out.set_version(cut(version, WORD_LEN_BYTES_MAX));
    out.set_since_unix_ms(*since_unix_ms);
    out.set_rack(sent("bytes of a rack", rack, RACK_LEN_BYTES_MAX)?);
    put_addresses(out, addresses)
}

fn put_addresses(out: node_entry::Builder<'_>, addresses: &[String]) -> Result<(), WireError> {
    fits("addresses of a node", addresses.len(), ADDRESSES_MAX)?;
    let mut list = out.init_addresses(count(addresses.len()));
    for (at, address) in addresses.iter().enumerate() {
        list.set(count(at), sent("bytes of an address", address, WORD_LEN_BYTES_MAX)?);
    }
    Ok(())
}

/// What is recorded of a node.
pub(super) fn take_node(entry: node_entry::Reader<'_>) -> Result<NodeEntry, WireError> {
    let addresses = entry.get_addresses()?;
    within("addresses of a node", u64::from(addresses.len()), ADDRESSES_MAX as u64)?;
    let address = |address| take_text("bytes of an address", WORD_LEN_BYTES_MAX, address);
    Ok(NodeEntry {
        node: NodeId(entry.get_node()),
        state: take_state(entry.get_state()?),
        addresses: addresses.iter().map(address).collect::<Result<_, WireError>>()?,
        lanes: within("lanes of a node", u64::from(entry.get_lanes()), u64::from(LANES_MAX))? as u16,
        cores: entry.get_cores(),
        version: take_text("bytes of a version", WORD_LEN_BYTES_MAX, entry.get_version())?,
        since_unix_ms: entry.get_since_unix_ms(),
        rack: take_text("bytes of a rack", RACK_LEN_BYTES_MAX, entry.get_rack())?,
    })
}

/// A node's state on the wire.
pub(super) fn put_state(state: NodeState) -> WireState {
    match state {
        NodeState::Invited => WireState::Invited,
        NodeState::Active => WireState::Active,
        NodeState::Draining => WireState::Draining,
        NodeState::Removed => WireState::Removed,
    }
}

/// A node's state.
pub(super) fn take_state(state: WireState) -> NodeState {
    match state {
        WireState::Invited => NodeState::Invited,
        WireState::Active => NodeState::Active,
        WireState::Draining => NodeState::Draining,
        WireState::Removed => NodeState::Removed,
    }
}
