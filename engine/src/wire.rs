//! What engines of different nodes say to each other, as bytes: requests and responses of shards and cores, and calls for
//! fragments. The layout, its limits and how it may grow: `docs/formats/engine-messages.md`.
//!
//! Whatever a peer sends is input: every count, length and id is checked, and what does not fit is an error that says what
//! (I-O5). Keys travel here, since the link below is mutually authenticated and encrypted; no error shows one (I-K8).

mod control;
mod core;
mod device;
mod field;
mod fragment_error;
mod fragments;
mod frame;
pub(crate) mod fuzz;
mod home;
mod object;
mod page;
pub(crate) mod samples;
mod shard;
mod shard_answer;
mod store_error;
#[cfg(test)]
mod tests;

pub use fragments::{
    FragmentCall, FragmentReply, decode_fragment_call, decode_fragment_reply, encode_fragment_call,
    encode_fragment_reply,
};

use crate::engine_capnp::{request, response, stamp};
use crate::message::{
    ControlRequest, ControlResponse, EngineRequest, EngineResponse, HomeRequest, RequestBody, ResponseBody,
    ShardRequest,
};
use crate::request_log::{Mark, RequestStamp};
use frame::{Draft, count};
use kiseki_types::ids::{NodeId, RequestId, ShardId};
use kiseki_types::limits::LANES_MAX;
use thiserror::Error;

/// What this release speaks. A message of a higher version is refused; see `docs/formats/engine-messages.md`.
pub const MESSAGE_VERSION: u16 = 6;

/// What a reader has to speak to act rightly on a message that is neither [`STAMPED_VERSION`] nor [`SPLIT_VERSION`].
const PLAIN_VERSION: u16 = 1;

/// What a reader has to speak to act rightly on a request that may be asked again: one that does not know what a request id is
/// would do it twice.
pub const STAMPED_VERSION: u16 = 2;

/// What every node has to speak before keys of a bucket lie in several shards.
pub const SPLIT_VERSION: u16 = 3;

/// What every node has to speak before the record of one names a rack.
pub const RACK_VERSION: u16 = 4;

/// What every node has to speak before content lies in pages.
pub const INLINE_VERSION: u16 = 5;

/// What every node has to speak before a shard says up to which length it takes content inline, and that is more than at first.
pub const ROOM_VERSION: u16 = 6;

/// Longest text that is meant for people; a longer one is cut.
pub const REASON_LEN_BYTES_MAX: usize = 2048;

/// Longest secret or id of an access key, and longest name of a version or address.
pub const WORD_LEN_BYTES_MAX: usize = 512;

/// Nodes that the control shard may record.
pub const NODES_MAX: usize = 1024;

/// Pools that an answer names.
pub const POOLS_MAX: usize = 64;

/// Addresses of one node.
pub const ADDRESSES_MAX: usize = 16;

/// Why a value is no message, or bytes are none. What is being decoded may have been acted upon by whoever sent it; what is
/// being encoded was not sent.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum WireError {
    /// The bytes are no message of this schema.
    #[error("no engine message: {0}")]
    Malformed(String),
    /// Only a newer release understands it.
    #[error("the engine message is of version {version}, this node speaks {MESSAGE_VERSION}; update this node")]
    TooNew {
        /// Its version.
        version: u16,
    },
    /// What is to be sent is over a named limit (I-O5); it was not sent.
    #[error("{what} of an engine message to be sent: {found}, at most {limit} allowed")]
    TooLarge {
        /// What.
        what: &'static str,
        /// How much.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// What came is over a named limit (I-O5).
    #[error("{what} of an engine message that came: {found}, at most {limit} allowed")]
    OverLimit {
        /// What.
        what: &'static str,
        /// How much.
        found: u64,
        /// The limit.
        limit: u64,
    },
}

/// A request as the message of a parcel. One with a stamp is refused by whoever does not speak [`STAMPED_VERSION`].
///
/// Errors: `TooLarge` over [`MESSAGE_LEN_BYTES_MAX`](kiseki_types::peer::MESSAGE_LEN_BYTES_MAX) or a limit of what it holds.
pub fn encode_request(request: &EngineRequest) -> Result<Vec<u8>, WireError> {
    frame::encode(|draft| {
        let mut out = draft.message.init_root::<request::Builder<'_>>();
        out.set_version(version_of(request));
        out.set_speaks(MESSAGE_VERSION);
        out.set_shard(request.shard.0);
        if let Some(stamp) = &request.stamp {
            put_stamp(out.reborrow().init_stamp(), stamp);
        }
        put_body(out, &request.body, &mut draft.is_secret)
    })
}

fn version_of(request: &EngineRequest) -> u16 {
    let is_about_splits = match &request.body {
        RequestBody::Control(ControlRequest::Shards(_)) | RequestBody::Home(HomeRequest::Adopt { .. }) => true,
        RequestBody::Shard(request) => matches!(**request, ShardRequest::Split(_)),
        _ => false,
    };
    match request.stamp {
        _ if is_about_splits => SPLIT_VERSION,
        Some(_) => STAMPED_VERSION,
        None => PLAIN_VERSION,
    }
}

fn put_body(out: request::Builder<'_>, body: &RequestBody, is_secret: &mut bool) -> Result<(), WireError> {
    match body {
        RequestBody::Control(request) => control::put_request(out.init_control(), request),
        RequestBody::Home(request) => home::put_request(out.init_home(), request),
        RequestBody::Shard(request) => shard::put_request(out.init_tenant(), request),
        RequestBody::Open(open) => {
            *is_secret = true;
            core::put_open(out.init_open(), open);
            Ok(())
        }
        RequestBody::Core(request) => core::put_request(out.init_core(), request),
        RequestBody::Node(request) => core::put_request(out.init_node(), request),
    }
}

/// Back from the message of a parcel.
pub fn decode_request(message: &[u8]) -> Result<EngineRequest, WireError> {
    decode_spoken_request(message).map(|(request, _)| request)
}

/// The same, with the highest version that its sender understands, as far as it says.
pub fn decode_spoken_request(message: &[u8]) -> Result<(EngineRequest, u16), WireError> {
    frame::decode(message, |reader| {
        let root = reader.get_root::<request::Reader<'_>>()?;
        frame::check_version(root.get_version())?;
        let body = match root.which()? {
            request::Control(control) => RequestBody::Control(control::take_request(control?)?),
            request::Home(home) => RequestBody::Home(home::take_request(home?)?),
            request::Tenant(tenant) => RequestBody::Shard(Box::new(shard::take_request(tenant?)?)),
            request::Open(open) => RequestBody::Open(core::take_open(open?)?),
            request::Core(core) => RequestBody::Core(core::take_request(core?)?),
            request::Node(node) => RequestBody::Node(core::take_request(node?)?),
        };
        let stamp = take_stamp(root)?;
        let spoken = root.get_version().max(root.get_speaks());
        Ok((EngineRequest { shard: ShardId(root.get_shard()), body, stamp }, spoken))
    })
}

fn take_stamp(root: request::Reader<'_>) -> Result<Option<RequestStamp>, WireError> {
    if !root.has_stamp() {
        return Ok(None);
    }
    let stamp = root.get_stamp()?;
    let id = RequestId(field::id_of_words(stamp.get_low(), stamp.get_high()));
    Ok(Some(RequestStamp { id, seen: Mark(stamp.get_seen()) }))
}

fn put_stamp(mut out: stamp::Builder<'_>, stamp: &RequestStamp) {
    let [low, high] = field::id_words(&stamp.id.0);
    out.set_low(low);
    out.set_high(high);
    out.set_seen(stamp.seen.0);
}

/// A response as the message of a parcel. What was asked is not given back with `NotHere`: whoever asked has it.
///
/// Errors: as of [`encode_request`].
pub fn encode_response(response: &EngineResponse) -> Result<Vec<u8>, WireError> {
    frame::encode(|draft| {
        let Draft { message, is_secret } = draft;
        let mut out = message.init_root::<response::Builder<'_>>();
        out.set_version(PLAIN_VERSION);
        out.set_speaks(MESSAGE_VERSION);
        match response {
            Ok(body) => put_answer(out, body, is_secret),
            Err(error) => {
                store_error::put(out.init_error(), error);
                Ok(())
            }
        }
    })
}

fn put_answer(mut out: response::Builder<'_>, body: &ResponseBody, is_secret: &mut bool) -> Result<(), WireError> {
    match body {
        ResponseBody::Done => out.set_done(()),
        ResponseBody::Control(response, mark) => {
            out.set_mark(mark.0);
            *is_secret = control_is_secret(response);
            control::put_response(out.init_control(), response)?;
        }
        ResponseBody::Home(response) => home::put_response(out.init_home(), response)?,
        ResponseBody::Shard(response, mark) => {
            out.set_mark(mark.0);
            shard_answer::put_response(out.init_tenant(), response)?;
        }
        ResponseBody::Looks(looks) => {
            frame::fits("looks", looks.len(), usize::from(LANES_MAX))?;
            core::put_looks(out.init_looks(count(looks.len())), looks);
        }
        ResponseBody::Hosted(voter) => out.set_hosted(*voter),
        ResponseBody::Holdings(held) => core::put_holdings(out.init_holdings(), held),
        ResponseBody::Without(without) => core::put_without(out.init_without(), without)?,
        ResponseBody::MetadataRoom(room) => core::put_room(out.init_metadata_room(), room),
        ResponseBody::NotHere { leader, request: _ } => {
            let mut out = out.init_not_here();
            out.set_is_known(leader.is_some());
            out.set_leader(leader.map_or(0, |node| node.0));
        }
    }
    Ok(())
}

fn control_is_secret(response: &ControlResponse) -> bool {
    matches!(
        response,
        ControlResponse::AccessKey(_)
            | ControlResponse::NewAccessKey(..)
            | ControlResponse::Secrets(_)
            | ControlResponse::ShardKey(_)
    )
}

/// The highest version that the sender of a response understands, as far as it says.
#[must_use]
pub fn spoken(message: &[u8]) -> u16 {
    let spoken = frame::decode(message, |reader| {
        let root = reader.get_root::<response::Reader<'_>>()?;
        Ok(root.get_version().max(root.get_speaks()))
    });
    spoken.unwrap_or(PLAIN_VERSION)
}

/// Back from the message of a parcel.
pub fn decode_response(message: &[u8]) -> Result<EngineResponse, WireError> {
    frame::decode(message, |reader| {
        let root = reader.get_root::<response::Reader<'_>>()?;
        frame::check_version(root.get_version())?;
        Ok(Ok(match root.which()? {
            response::Done(()) => ResponseBody::Done,
            response::Control(control) => {
                ResponseBody::Control(control::take_response(control?)?, Mark(root.get_mark()))
            }
            response::Home(home) => ResponseBody::Home(home::take_response(home?)?),
            response::Tenant(tenant) => {
                ResponseBody::Shard(shard_answer::take_response(tenant?)?, Mark(root.get_mark()))
            }
            response::Looks(looks) => ResponseBody::Looks(core::take_looks(looks?)?),
            response::Hosted(voter) => ResponseBody::Hosted(voter),
            response::Holdings(held) => ResponseBody::Holdings(core::take_holdings(held?)),
            response::Without(without) => ResponseBody::Without(Box::new(core::take_without(without?)?)),
            response::MetadataRoom(room) => ResponseBody::MetadataRoom(core::take_room(room?)),
            response::NotHere(not_here) => {
                let not_here = not_here?;
                let leader = not_here.get_is_known().then(|| NodeId(not_here.get_leader()));
                ResponseBody::NotHere { leader, request: None }
            }
            response::Error(error) => return Ok(Err(store_error::take(error?)?)),
        }))
    })
}
