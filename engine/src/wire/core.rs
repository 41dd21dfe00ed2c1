//! What cores are asked and answer, and what opens a shard.

use super::WireError;
use super::device::{put_records, take_records};
use super::field::{array, cut, elements, sent, take_key, take_text, take_usize};
use super::frame::{count, fits, within};
use super::{ADDRESSES_MAX, NODES_MAX, WORD_LEN_BYTES_MAX};
use crate::engine_capnp::{Closing as WireClosing, NodeState as WireState};
use crate::engine_capnp::{core_request, device_look, holdings, node_entries, node_entry, open_shard};
use crate::message::{Closing, CoreRequest, DeviceLook, Holdings, NodeEntry, NodeState, OpenShard};
use capnp::struct_list;
use kiseki_types::fragment::DeviceUse;
use kiseki_types::ids::{DeviceId, LaneId, NodeId, TenantId};
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
        CoreRequest::Holdings(node) => out.set_holdings(node.0),
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
        core_request::Holdings(node) => CoreRequest::Holdings(NodeId(node)),
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
    let NodeEntry { node, state, addresses, lanes, cores, version, since_unix_ms } = entry;
    out.set_node(node.0);
    out.set_state(put_state(*state));
    out.set_lanes(*lanes);
    out.set_cores(*cores);
    out.set_version(cut(version, WORD_LEN_BYTES_MAX));
    out.set_since_unix_ms(*since_unix_ms);
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
