//! Control frames: what carriers say to each other, in Cap'n Proto (`net/schema/link.capnp`).

use crate::peer::frame::{CONTROL_LEN_BYTES_MAX, REASON_LEN_BYTES_MAX, reason};
use capnp::message::{Builder, HeapAllocator, ReaderOptions};
use capnp::serialize;
use kiseki_types::ids::ClusterId;
use thiserror::Error;

#[allow(missing_docs, clippy::all)]
mod link_capnp {
    include!(concat!(env!("OUT_DIR"), "/link_capnp.rs"));
}

use link_capnp::control;

/// Words that reading one message may visit, and pointers that may lie behind each other: messages are small and flat.
const READER_LIMITS: ReaderOptions =
    ReaderOptions { traversal_limit_in_words: Some(CONTROL_LEN_BYTES_MAX / 8), nesting_limit: 4 };

/// What each side says first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Lowest message version that the sender speaks.
    pub version_min: u16,
    /// Highest.
    pub version_max: u16,
    /// The sender's cluster.
    pub cluster: ClusterId,
    /// The sender's number; 0 for an administrator.
    pub node: u64,
    /// Cores of the sender; lane `l` is held by core `l % cores`.
    pub cores: u16,
    /// Lanes of the sender.
    pub lanes: u16,
    /// Unanswered calls that the sender takes at once.
    pub calls_max: u32,
    /// Bytes of those.
    pub bytes_max: u64,
}

/// A control frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// The first frame of each side.
    Hello(Hello),
    /// The last one: why the sender closes.
    Goodbye(String),
    /// Are you there?
    Ping(u64),
    /// Yes.
    Pong(u64),
    /// The answer of this call is not wanted any more.
    Cancel(u64),
}

/// Why a control frame is not understood.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The bytes are no message of the schema.
    #[error("control frame: {0}")]
    Message(#[from] capnp::Error),
    /// A kind that this version does not know.
    #[error("control frame of an unknown kind {}", .0.0)]
    Kind(#[from] capnp::NotInSchema),
    /// A field says what can't be.
    #[error("control frame: {0}")]
    Field(&'static str),
}

impl Control {
    /// The bytes of the message.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut message = Builder::new(HeapAllocator::new().first_segment_words(32));
        let mut root = message.init_root::<control::Builder<'_>>();
        match self {
            Control::Hello(hello) => {
                let mut out = root.init_hello();
                out.set_version_min(hello.version_min);
                out.set_version_max(hello.version_max);
                out.set_cluster(&hello.cluster.0);
                out.set_node(hello.node);
                out.set_cores(hello.cores);
                out.set_lanes(hello.lanes);
                out.set_calls_max(hello.calls_max);
                out.set_bytes_max(hello.bytes_max);
            }
            Control::Goodbye(text) => root.set_goodbye(reason(text)),
            Control::Ping(number) => root.set_ping(*number),
            Control::Pong(number) => root.set_pong(*number),
            Control::Cancel(call) => root.set_cancel(*call),
        }
        serialize::write_message_to_words(&message)
    }

    /// Reads a message.
    pub fn decode(mut bytes: &[u8]) -> Result<Control, ControlError> {
        let message = serialize::read_message(&mut bytes, READER_LIMITS)?;
        if !bytes.is_empty() {
            return Err(ControlError::Field("bytes behind the message"));
        }
        Ok(match message.get_root::<control::Reader<'_>>()?.which()? {
            control::Which::Hello(hello) => Control::Hello(Hello::read(hello?)?),
            control::Which::Goodbye(text) => {
                let text = text?.to_str().map_err(|_| ControlError::Field("a reason that is not UTF-8"))?;
                if text.len() > REASON_LEN_BYTES_MAX {
                    return Err(ControlError::Field("a reason over its limit"));
                }
                Control::Goodbye(text.to_owned())
            }
            control::Which::Ping(number) => Control::Ping(number),
            control::Which::Pong(number) => Control::Pong(number),
            control::Which::Cancel(call) => Control::Cancel(call),
        })
    }
}

impl Hello {
    fn read(hello: link_capnp::hello::Reader<'_>) -> Result<Hello, ControlError> {
        let cluster =
            hello.get_cluster()?.try_into().map_err(|_| ControlError::Field("a cluster id of another length"))?;
        let hello = Hello {
            version_min: hello.get_version_min(),
            version_max: hello.get_version_max(),
            cluster: ClusterId(cluster),
            node: hello.get_node(),
            cores: hello.get_cores(),
            lanes: hello.get_lanes(),
            calls_max: hello.get_calls_max(),
            bytes_max: hello.get_bytes_max(),
        };
        if hello.version_min > hello.version_max {
            return Err(ControlError::Field("a lowest version above the highest"));
        }
        Ok(hello)
    }

    /// The highest version that both speak.
    #[must_use]
    pub fn common_version(&self, other: &Hello) -> Option<u16> {
        let highest = self.version_max.min(other.version_max);
        (highest >= self.version_min.max(other.version_min)).then_some(highest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(min: u16, max: u16) -> Hello {
        Hello {
            version_min: min,
            version_max: max,
            cluster: ClusterId([7; 16]),
            node: 3,
            cores: 2,
            lanes: 4,
            calls_max: 64,
            bytes_max: 1 << 25,
        }
    }

    #[test]
    fn what_is_said_is_understood_and_cut_off_it_is_refused() {
        let all = [
            Control::Hello(hello(1, 2)),
            Control::Goodbye("closing".to_owned()),
            Control::Ping(1),
            Control::Pong(u64::MAX),
            Control::Cancel(9),
        ];
        for control in all {
            let bytes = control.encode();
            assert!(bytes.len() <= CONTROL_LEN_BYTES_MAX);
            assert_eq!(Control::decode(&bytes).unwrap(), control);
            assert!(Control::decode(&bytes[..bytes.len() - 1]).is_err(), "{control:?}");
        }
    }

    #[test]
    fn the_highest_common_version_is_used() {
        for (ours, theirs, common) in
            [((1, 1), (1, 1), Some(1)), ((1, 3), (2, 5), Some(3)), ((4, 5), (1, 4), Some(4)), ((1, 2), (3, 4), None)]
        {
            let (ours, theirs) = (hello(ours.0, ours.1), hello(theirs.0, theirs.1));
            assert_eq!(ours.common_version(&theirs), common, "{ours:?} {theirs:?}");
            assert_eq!(theirs.common_version(&ours), common);
        }
    }
}
