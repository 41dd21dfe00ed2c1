//! Calls for fragments on another node's devices, and what it answers. Payloads travel beside these messages, so that they
//! leave from and arrive in buffers that suit devices.

use super::field::{
    array, cut, elements, id_of_words, id_words, ids_len, locator_of_words, locator_words, needed, put_ids, put_name,
    take_ids, take_name, take_shape, take_text,
};
use super::frame::{self, count, fits, malformed, within};
use super::{PLAIN_VERSION, WireError, device, fragment_error};
use crate::delta::ChunkName;
use crate::device_record::PATH_LEN_BYTES_MAX;
use crate::engine_capnp::{device_status, extent, fragment_call, fragment_meta, fragment_reply, stored_fragment};
use kiseki_types::fragment::{DeviceStatus, FragmentError, FragmentKey, FragmentMeta, StoredFragment};
use kiseki_types::ids::{DeviceId, Generation, Locator, MapEpoch, NodeId, PoolId};
use kiseki_types::limits::{DEVICE_BLOCK_BYTES_MAX, DEVICES_PER_NODE_MAX, ENVELOPE_LEN_BYTES_MAX, STRIPE_WIDTH_MAX};
use kiseki_types::units::{BlockCount, BlockIndex, Extent};
use std::ops::Range;

/// Bytes of the longest payload of a fragment: a copy of the longest envelope, padded.
const PAYLOAD_LEN_BYTES_MAX: usize = ENVELOPE_LEN_BYTES_MAX.next_multiple_of(DEVICE_BLOCK_BYTES_MAX);

/// Fragments of one generation on one node: one on each device, and one more while it is moved.
const LOCATED_MAX: usize = 2 * DEVICES_PER_NODE_MAX;

/// What a node is asked about the fragments on its devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FragmentCall {
    /// Writes a fragment; the payload stands beside the message.
    Put {
        /// The device.
        device: DeviceId,
        /// What its header says.
        meta: FragmentMeta,
        /// Whether it is for repair or evacuation (I-C5).
        is_upkeep: bool,
    },
    /// Reads part of a payload.
    Read {
        /// Which fragment.
        fragment: StoredFragment,
        /// Which of its payload's bytes.
        range: Range<u32>,
    },
    /// Fragments of one generation.
    Locate {
        /// The chunk.
        locator: Locator,
        /// Which sealing of it.
        generation: Generation,
    },
    /// Frees a fragment.
    Release {
        /// Which.
        fragment: StoredFragment,
    },
    /// Takes a fragment out of the index whose device is gone for good.
    Forget {
        /// Which.
        fragment: StoredFragment,
    },
    /// The node's devices.
    Devices,
}

/// What a node answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FragmentReply {
    /// To `Put`.
    Put(Result<Extent, FragmentError>),
    /// To `Read`; the bytes stand beside the message.
    Read(Result<(), FragmentError>),
    /// To `Locate`.
    Located(Result<Vec<StoredFragment>, FragmentError>),
    /// To `Release` and `Forget`.
    Done(Result<(), FragmentError>),
    /// To `Devices`.
    Devices(Vec<DeviceStatus>),
}

/// A call as the message of a parcel.
pub fn encode_fragment_call(call: &FragmentCall) -> Result<Vec<u8>, WireError> {
    frame::encode(|draft| {
        let mut out = draft.message.init_root::<fragment_call::Builder<'_>>();
        out.set_version(PLAIN_VERSION);
        match call {
            FragmentCall::Put { device, meta, is_upkeep } => {
                let mut out = out.init_put();
                out.set_device(&device.0);
                out.set_is_upkeep(*is_upkeep);
                put_meta(out.init_meta(), meta)?;
            }
            FragmentCall::Read { fragment, range } => {
                let mut out = out.init_read();
                out.set_start(range.start);
                out.set_end(range.end);
                put_fragment(out.init_fragment(), fragment)?;
            }
            FragmentCall::Locate { locator, generation } => {
                put_name(out.init_locate(), &ChunkName { locator: *locator, generation: *generation });
            }
            FragmentCall::Release { fragment } => put_fragment(out.init_release(), fragment)?,
            FragmentCall::Forget { fragment } => put_fragment(out.init_forget(), fragment)?,
            FragmentCall::Devices => out.set_devices(()),
        }
        Ok(())
    })
}

/// Back from the message of a parcel.
pub fn decode_fragment_call(message: &[u8]) -> Result<FragmentCall, WireError> {
    frame::decode(message, |reader| {
        let root = reader.get_root::<fragment_call::Reader<'_>>()?;
        frame::check_version(root.get_version())?;
        Ok(match root.which()? {
            fragment_call::Put(put) => {
                let put = put?;
                let device = DeviceId(array("a device id", put.get_device())?);
                FragmentCall::Put { device, meta: take_meta(put.get_meta()?)?, is_upkeep: put.get_is_upkeep() }
            }
            fragment_call::Read(read) => {
                let read = read?;
                let (fragment, range) = (take_fragment(read.get_fragment()?)?, read.get_start()..read.get_end());
                // Whoever reads takes for granted that the range lies in the payload.
                if range.start > range.end || range.end > fragment.meta.payload_len_bytes {
                    let len = fragment.meta.payload_len_bytes;
                    return Err(malformed(format!("bytes {range:?} of a payload of {len}")));
                }
                FragmentCall::Read { fragment, range }
            }
            fragment_call::Locate(name) => {
                needed("the generation to find", root.has_locate())?;
                let ChunkName { locator, generation } = take_name(name?);
                FragmentCall::Locate { locator, generation }
            }
            fragment_call::Release(fragment) => FragmentCall::Release { fragment: take_fragment(fragment?)? },
            fragment_call::Forget(fragment) => FragmentCall::Forget { fragment: take_fragment(fragment?)? },
            fragment_call::Devices(()) => FragmentCall::Devices,
        })
    })
}

/// A reply as the message of a parcel.
pub fn encode_fragment_reply(reply: &FragmentReply) -> Result<Vec<u8>, WireError> {
    frame::encode(|draft| {
        let mut out = draft.message.init_root::<fragment_reply::Builder<'_>>();
        out.set_version(PLAIN_VERSION);
        match reply {
            FragmentReply::Put(Ok(extent)) => put_extent(out.init_put(), extent),
            FragmentReply::Put(Err(error)) => fragment_error::put(out.init_put_failed(), error),
            FragmentReply::Read(Ok(())) => out.set_read(()),
            FragmentReply::Read(Err(error)) => fragment_error::put(out.init_read_failed(), error),
            FragmentReply::Located(Ok(fragments)) => {
                fits("fragments of a generation", fragments.len(), LOCATED_MAX)?;
                let mut list = out.init_located(count(fragments.len()));
                for (at, fragment) in fragments.iter().enumerate() {
                    put_fragment(list.reborrow().get(count(at)), fragment)?;
                }
            }
            FragmentReply::Located(Err(error)) => fragment_error::put(out.init_locate_failed(), error),
            FragmentReply::Done(Ok(())) => out.set_done(()),
            FragmentReply::Done(Err(error)) => fragment_error::put(out.init_failed(), error),
            FragmentReply::Devices(devices) => {
                fits("devices of a node", devices.len(), DEVICES_PER_NODE_MAX)?;
                let mut list = out.init_devices(count(devices.len()));
                for (at, device) in devices.iter().enumerate() {
                    put_status(list.reborrow().get(count(at)), device);
                }
            }
        }
        Ok(())
    })
}

/// Back from the message of a parcel.
pub fn decode_fragment_reply(message: &[u8]) -> Result<FragmentReply, WireError> {
    frame::decode(message, |reader| {
        let root = reader.get_root::<fragment_reply::Reader<'_>>()?;
        frame::check_version(root.get_version())?;
        Ok(match root.which()? {
            fragment_reply::Put(extent) => {
                needed("the extent", root.has_put())?;
                FragmentReply::Put(Ok(take_extent(extent?)?))
            }
            fragment_reply::PutFailed(error) => FragmentReply::Put(Err(fragment_error::take(error?)?)),
            fragment_reply::Read(()) => FragmentReply::Read(Ok(())),
            fragment_reply::ReadFailed(error) => FragmentReply::Read(Err(fragment_error::take(error?)?)),
            fragment_reply::Located(fragments) => {
                // "None here" is a statement of its own: it is said and never left out.
                needed("the list of fragments", root.has_located())?;
                let fragments = elements("fragments of a generation", LOCATED_MAX, fragments)?.map(take_fragment);
                FragmentReply::Located(Ok(fragments.collect::<Result<_, WireError>>()?))
            }
            fragment_reply::LocateFailed(error) => FragmentReply::Located(Err(fragment_error::take(error?)?)),
            fragment_reply::Done(()) => FragmentReply::Done(Ok(())),
            fragment_reply::Failed(error) => FragmentReply::Done(Err(fragment_error::take(error?)?)),
            fragment_reply::Devices(devices) => {
                let devices = elements("devices of a node", DEVICES_PER_NODE_MAX, devices)?.map(take_status);
                FragmentReply::Devices(devices.collect::<Result<_, WireError>>()?)
            }
        })
    })
}

/// Writes an extent.
pub(super) fn put_extent(mut out: extent::Builder<'_>, extent: &Extent) {
    let [low, high] = id_words(&extent.device.0);
    out.set_device_low(low);
    out.set_device_high(high);
    out.set_start(extent.start.0);
    out.set_len(extent.len.0);
}

/// An extent whose end is a block index.
pub(super) fn take_extent(extent: extent::Reader<'_>) -> Result<Extent, WireError> {
    let (start, len) = (extent.get_start(), extent.get_len());
    if start.checked_add(len).is_none() {
        return Err(malformed(format!("an extent of {len} blocks from block {start} on")));
    }
    let device = DeviceId(id_of_words(extent.get_device_low(), extent.get_device_high()));
    Ok(Extent { device, start: BlockIndex(start), len: BlockCount(len) })
}

fn put_meta(mut out: fragment_meta::Builder<'_>, meta: &FragmentMeta) -> Result<(), WireError> {
    let [a, b, c, d] = locator_words(&meta.key.locator);
    out.set_a(a);
    out.set_b(b);
    out.set_c(c);
    out.set_d(d);
    out.set_generation(meta.key.generation.0);
    out.set_index(meta.key.index);
    out.set_data(meta.shape.data);
    out.set_parity(meta.shape.parity);
    out.set_pool(meta.pool.0);
    out.set_envelope_len_bytes(meta.envelope_len_bytes);
    out.set_payload_len_bytes(meta.payload_len_bytes);
    out.set_map_epoch(meta.map_epoch.0);
    if !meta.devices.is_empty() {
        let len = ids_len("devices of a stripe", meta.devices.len(), STRIPE_WIDTH_MAX)?;
        put_ids(out.init_devices(len), meta.devices.iter().map(|device| &device.0));
    }
    Ok(())
}

fn take_meta(meta: fragment_meta::Reader<'_>) -> Result<FragmentMeta, WireError> {
    let shape = take_shape(meta.get_data(), meta.get_parity())?;
    let (index, payload) = (meta.get_index(), meta.get_payload_len_bytes());
    within("index of a fragment", u64::from(index), shape.width() as u64 - 1)?;
    within("bytes of an envelope", u64::from(meta.get_envelope_len_bytes()), ENVELOPE_LEN_BYTES_MAX as u64)?;
    within("bytes of a payload", u64::from(payload), PAYLOAD_LEN_BYTES_MAX as u64)?;
    if !(payload as usize).is_multiple_of(DEVICE_BLOCK_BYTES_MAX) {
        return Err(malformed(format!("a payload of {payload} bytes fills no whole blocks")));
    }
    let locator = locator_of_words([meta.get_a(), meta.get_b(), meta.get_c(), meta.get_d()]);
    Ok(FragmentMeta {
        key: FragmentKey { locator, generation: Generation(meta.get_generation()), index },
        shape,
        pool: PoolId(meta.get_pool()),
        envelope_len_bytes: meta.get_envelope_len_bytes(),
        payload_len_bytes: payload,
        map_epoch: MapEpoch(meta.get_map_epoch()),
        devices: take_ids("devices of a stripe", STRIPE_WIDTH_MAX, meta.get_devices(), DeviceId)?,
    })
}

fn put_fragment(mut out: stored_fragment::Builder<'_>, fragment: &StoredFragment) -> Result<(), WireError> {
    put_meta(out.reborrow().init_meta(), &fragment.meta)?;
    put_extent(out.init_extent(), &fragment.extent);
    Ok(())
}

fn take_fragment(fragment: stored_fragment::Reader<'_>) -> Result<StoredFragment, WireError> {
    needed("the extent of a fragment", fragment.has_extent())?;
    Ok(StoredFragment { meta: take_meta(fragment.get_meta()?)?, extent: take_extent(fragment.get_extent()?)? })
}

fn put_status(mut out: device_status::Builder<'_>, status: &DeviceStatus) {
    let DeviceStatus { id, node, name, pool, capacity_bytes, free_bytes, lanes_bytes, state, read_errors } = status;
    let [low, high] = id_words(&id.0);
    out.set_device_low(low);
    out.set_device_high(high);
    out.set_node(node.0);
    out.set_name(cut(name, PATH_LEN_BYTES_MAX));
    out.set_pool(pool.0);
    out.set_capacity_bytes(*capacity_bytes);
    out.set_free_bytes(*free_bytes);
    out.set_lanes_bytes(*lanes_bytes);
    out.set_state(device::put_state(*state));
    out.set_read_errors(*read_errors);
}

fn take_status(status: device_status::Reader<'_>) -> Result<DeviceStatus, WireError> {
    Ok(DeviceStatus {
        id: DeviceId(id_of_words(status.get_device_low(), status.get_device_high())),
        node: NodeId(status.get_node()),
        name: take_text("bytes of a device's path", PATH_LEN_BYTES_MAX, status.get_name())?,
        pool: PoolId(status.get_pool()),
        capacity_bytes: status.get_capacity_bytes(),
        free_bytes: status.get_free_bytes(),
        lanes_bytes: status.get_lanes_bytes(),
        state: device::take_state(status.get_state()?),
        read_errors: status.get_read_errors(),
    })
}
