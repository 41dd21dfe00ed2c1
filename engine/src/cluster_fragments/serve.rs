//! What a node answers others about the fragments on its devices. All of it is input, and checked.

use crate::stripe::check_shape;
use crate::wire::{FragmentCall, FragmentReply, decode_fragment_call, encode_fragment_reply};
use kiseki_types::buf::IoBuf;
use kiseki_types::fragment::{FragmentMeta, FragmentStore};
use kiseki_types::limits::{DEVICE_BLOCK_BYTES_MAX, ENVELOPE_LEN_BYTES_MAX, STRIPE_WIDTH_MAX};
use kiseki_types::peer::{Parcel, PeerHandler, PeerIdentity};
use std::rc::Rc;

/// Answers [`ServiceId::FRAGMENTS`](kiseki_types::peer::ServiceId::FRAGMENTS) for other nodes, from the store of this core's
/// own node: never from one over all nodes.
#[must_use]
pub fn fragment_handler(local: Rc<dyn FragmentStore>) -> PeerHandler {
    Rc::new(move |from, _lane, parcel: Parcel| {
        let local = local.clone();
        Box::pin(async move {
            if !matches!(from, PeerIdentity::Node(_)) {
                return Err("fragments are for the nodes of the cluster alone".to_owned());
            }
            let call = decode_fragment_call(&parcel.message).map_err(|error| error.to_string())?;
            let (reply, bulk) = answer(&*local, call, parcel.bulk).await?;
            let message = encode_fragment_reply(&reply).map_err(|error| error.to_string())?;
            Ok(Parcel { message, bulk })
        })
    })
}

async fn answer(
    local: &dyn FragmentStore,
    call: FragmentCall,
    bulk: Vec<IoBuf>,
) -> Result<(FragmentReply, Vec<IoBuf>), String> {
    if !bulk.is_empty() && !matches!(call, FragmentCall::Put { .. }) {
        return Err("only a put carries bytes".to_owned());
    }
    let reply = match call {
        FragmentCall::Put { device, meta, is_upkeep } => {
            check_put(&meta, &bulk)?;
            let payload = bulk.into_iter().map(IoBuf::freeze).collect();
            let put = match is_upkeep {
                true => local.put_for_upkeep(device, meta, payload),
                false => local.put(device, meta, payload),
            };
            FragmentReply::Put(put.await)
        }
        FragmentCall::Read { fragment, range } => {
            let len = fragment.meta.payload_len_bytes;
            if range.start > range.end || range.end > len {
                return Err(format!("bytes {}..{} of a payload of {len}", range.start, range.end));
            }
            return Ok(match local.read(&fragment, range).await {
                Ok(bytes) => (FragmentReply::Read(Ok(())), vec![bytes.into_part()]),
                Err(error) => (FragmentReply::Read(Err(error)), Vec::new()),
            });
        }
        FragmentCall::Locate { locator, generation } => {
            FragmentReply::Located(local.locate_here(locator, generation).await)
        }
        FragmentCall::Release { fragment } => FragmentReply::Done(local.release(&fragment).await),
        FragmentCall::Forget { fragment } => FragmentReply::Done(local.forget(&fragment).await),
        FragmentCall::Devices => FragmentReply::Devices(local.devices()),
    };
    Ok((reply, Vec::new()))
}

/// What the store relies on: a fragment that the engine can have made, and as many bytes as it says.
fn check_put(meta: &FragmentMeta, bulk: &[IoBuf]) -> Result<(), String> {
    let (index, width) = (meta.key.index, meta.shape.width());
    check_shape(meta.shape).map_err(|error| error.to_string())?;
    if usize::from(index) >= width || meta.devices.len() > STRIPE_WIDTH_MAX {
        return Err(format!("fragment {index} of a stripe of {width}, {} devices named", meta.devices.len()));
    }
    let (payload, envelope) = (meta.payload_len_bytes as usize, meta.envelope_len_bytes as usize);
    let longest = ENVELOPE_LEN_BYTES_MAX.next_multiple_of(DEVICE_BLOCK_BYTES_MAX);
    let fits = payload > 0 && payload <= longest && payload.is_multiple_of(DEVICE_BLOCK_BYTES_MAX);
    if !fits || envelope > ENVELOPE_LEN_BYTES_MAX {
        return Err(format!("a payload of {payload} bytes, an envelope of {envelope}"));
    }
    match bulk.iter().map(|part| part.len()).sum::<usize>() {
        sent if sent == payload => Ok(()),
        sent => Err(format!("{sent} bytes were sent for a payload of {payload}")),
    }
}
