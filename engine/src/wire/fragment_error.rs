//! Why a fragment was not written, read or found on another node.

use super::field::{array, cut, needed, put_name, take_name, take_text};
use super::fragments::{put_extent, take_extent};
use super::{REASON_LEN_BYTES_MAX, WireError};
use crate::delta::ChunkName;
use crate::engine_capnp::fragment_error;
use kiseki_types::fragment::FragmentError;
use kiseki_types::ids::{DeviceId, Locator, PoolId};

/// Writes an error.
pub(super) fn put(mut out: fragment_error::Builder<'_>, error: &FragmentError) {
    match error {
        FragmentError::Full { device, needed_bytes } => {
            let mut out = out.init_full();
            out.set_device(&device.0);
            out.set_needed_bytes(*needed_bytes);
        }
        FragmentError::PoolCritical { pool, critical_percent } => {
            let mut out = out.init_pool_critical();
            out.set_pool(pool.0);
            out.set_critical_percent(*critical_percent);
        }
        FragmentError::DeviceFailed { device, reason } => {
            let mut out = out.init_device_failed();
            out.set_device(&device.0);
            out.set_reason(cut(reason, REASON_LEN_BYTES_MAX));
        }
        FragmentError::Corrupt { locator, index, extent } => {
            let mut out = out.init_corrupt();
            out.set_locator(&locator.0);
            out.set_index(*index);
            put_extent(out.init_extent(), extent);
        }
        FragmentError::SecondOfStripe { device, locator, generation } => {
            let mut out = out.init_second_of_stripe();
            out.set_device(&device.0);
            put_name(out.init_name(), &ChunkName { locator: *locator, generation: *generation });
        }
        FragmentError::Unknown { reason } => out.set_unknown(cut(reason, REASON_LEN_BYTES_MAX)),
        // A kind that the schema does not have yet: what happened is not known to whoever asked.
        other => out.set_unknown(cut(&other.to_string(), REASON_LEN_BYTES_MAX)),
    }
}

/// An error.
pub(super) fn take(error: fragment_error::Reader<'_>) -> Result<FragmentError, WireError> {
    let reason = |reason| take_text("bytes of a reason", REASON_LEN_BYTES_MAX, reason);
    let device = |id| Ok::<_, WireError>(DeviceId(array("a device id", id)?));
    Ok(match error.which()? {
        fragment_error::Full(full) => {
            FragmentError::Full { device: device(full.get_device())?, needed_bytes: full.get_needed_bytes() }
        }
        fragment_error::PoolCritical(critical) => FragmentError::PoolCritical {
            pool: PoolId(critical.get_pool()),
            critical_percent: critical.get_critical_percent(),
        },
        fragment_error::DeviceFailed(failed) => {
            FragmentError::DeviceFailed { device: device(failed.get_device())?, reason: reason(failed.get_reason())? }
        }
        fragment_error::Corrupt(corrupt) => FragmentError::Corrupt {
            locator: Locator(array("a locator", corrupt.get_locator())?),
            index: corrupt.get_index(),
            extent: take_extent(corrupt.get_extent()?)?,
        },
        fragment_error::SecondOfStripe(second) => {
            needed("the generation of which a second fragment is there", second.has_name())?;
            let ChunkName { locator, generation } = take_name(second.get_name()?);
            FragmentError::SecondOfStripe { device: device(second.get_device())?, locator, generation }
        }
        fragment_error::Unknown(text) => FragmentError::Unknown { reason: reason(text)? },
    })
}
