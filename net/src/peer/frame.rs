//! Heads of frames: what they may say, checked before anything is allocated for what follows (I-O5).

use kiseki_types::codec::{CodecError, Reader, Writer};
use kiseki_types::ids::LaneId;
use kiseki_types::peer::{BULK_BUFFERS_MAX, BULK_LEN_BYTES_MAX, MESSAGE_LEN_BYTES_MAX, ServiceId};
use kiseki_types::request::RequestId;

/// Bytes of a head without the lengths of its bulk buffers.
pub const HEAD_LEN_BYTES: usize = 32;

/// Longest message of a control frame.
pub const CONTROL_LEN_BYTES_MAX: usize = 4096;

/// Longest reason that a peer can give; longer ones are cut.
pub const REASON_LEN_BYTES_MAX: usize = 1024;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// A message to the carrier itself, see [`crate::peer::control`].
    Control,
    /// A parcel for a service.
    Call,
    /// The parcel that answers a call.
    Answer,
    /// A call that is not served; the message says why.
    Refused,
    /// A call that was canceled has ended; its answer stays here.
    Dropped,
}

impl FrameKind {
    const ALL: [FrameKind; 5] =
        [FrameKind::Control, FrameKind::Call, FrameKind::Answer, FrameKind::Refused, FrameKind::Dropped];

    fn number(self) -> u8 {
        1 + FrameKind::ALL.iter().position(|kind| *kind == self).expect("all kinds are listed") as u8
    }

    fn message_len_bytes_max(self) -> usize {
        match self {
            FrameKind::Control => CONTROL_LEN_BYTES_MAX,
            FrameKind::Call | FrameKind::Answer => MESSAGE_LEN_BYTES_MAX,
            FrameKind::Refused => REASON_LEN_BYTES_MAX,
            FrameKind::Dropped => 0,
        }
    }

    fn carries_bulk(self) -> bool {
        matches!(self, FrameKind::Call | FrameKind::Answer)
    }
}

/// The head of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// What it is.
    pub kind: FrameKind,
    /// For a call: whose it is.
    pub service: ServiceId,
    /// For a call: which lane it is for.
    pub lane: LaneId,
    /// The number of the call; 0 in control frames.
    pub call: u64,
    /// For a call: the client's request that it is made for, if any.
    pub request: Option<RequestId>,
    /// Bytes of the message.
    pub message_len: usize,
    /// Bytes of each bulk buffer.
    pub bulk_lens: Vec<usize>,
}

impl Head {
    /// A head without message and bulk.
    #[must_use]
    pub fn empty(kind: FrameKind, call: u64) -> Head {
        let (service, lane, request) = (ServiceId(0), LaneId(0), None);
        Head { kind, service, lane, call, request, message_len: 0, bulk_lens: Vec::new() }
    }

    /// Bytes of message and bulk.
    #[must_use]
    pub fn content_len(&self) -> usize {
        self.message_len + self.bulk_lens.iter().sum::<usize>()
    }

    /// The bytes. Panics when a limit is broken: whoever makes a head has checked the parcel.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let bulk_len: usize = self.bulk_lens.iter().sum();
        assert!(
            self.message_len <= self.kind.message_len_bytes_max()
                && self.bulk_lens.len() <= BULK_BUFFERS_MAX
                && bulk_len <= BULK_LEN_BYTES_MAX
                && (self.kind.carries_bulk() || self.bulk_lens.is_empty()),
            "I-O5: a frame over a limit is never sent: {self:?}"
        );
        let mut writer = Writer::new();
        writer.u8(self.kind.number()).u8(self.bulk_lens.len() as u8).u16(self.service.0);
        writer.u32(self.message_len as u32).u64(self.call).u32(bulk_len as u32).u16(self.lane.0);
        writer.u16(0).u64(RequestId::to_wire(self.request));
        self.bulk_lens.iter().for_each(|len| {
            writer.u32(*len as u32);
        });
        writer.finish()
    }

    /// How many bytes of lengths follow the fixed part of a head; all of it is checked here but those.
    pub fn lengths_len(fixed: &[u8; HEAD_LEN_BYTES]) -> Result<usize, CodecError> {
        Fixed::decode(fixed).map(|fixed| fixed.bulk_count * 4)
    }

    /// A whole head: the fixed part and the lengths behind it.
    pub fn decode(fixed: &[u8; HEAD_LEN_BYTES], lengths: &[u8]) -> Result<Head, CodecError> {
        let Fixed { kind, service, lane, call, request, message_len, bulk_count, bulk_len } = Fixed::decode(fixed)?;
        let mut reader = Reader::new("lengths of bulk buffers", lengths);
        let mut bulk_lens = Vec::with_capacity(bulk_count);
        for _ in 0..bulk_count {
            bulk_lens.push(reader.count(BULK_LEN_BYTES_MAX)?);
        }
        let sum: usize = bulk_lens.iter().sum();
        if sum != bulk_len {
            return Err(reader.unknown(sum as u64));
        }
        reader.end()?;
        Ok(Head { kind, service, lane, call, request, message_len, bulk_lens })
    }
}

/// The part of a head that every frame has.
struct Fixed {
    kind: FrameKind,
    service: ServiceId,
    lane: LaneId,
    call: u64,
    request: Option<RequestId>,
    message_len: usize,
    bulk_count: usize,
    bulk_len: usize,
}

impl Fixed {
    fn decode(bytes: &[u8; HEAD_LEN_BYTES]) -> Result<Fixed, CodecError> {
        let mut reader = Reader::new("head of a frame", bytes);
        let number = reader.u8()?;
        let kind = FrameKind::ALL.into_iter().find(|kind| kind.number() == number);
        let kind = kind.ok_or_else(|| reader.unknown(u64::from(number)))?;
        let bulk_count = usize::from(reader.u8()?);
        let service = ServiceId(reader.u16()?);
        let message_len = reader.count(kind.message_len_bytes_max())?;
        let call = reader.u64()?;
        let bulk_len = reader.count(BULK_LEN_BYTES_MAX)?;
        let lane = LaneId(reader.u16()?);
        let (reserved, request) = (reader.u16()?, RequestId::from_wire(reader.u64()?));
        let is_call = kind == FrameKind::Call;
        let has_number = kind != FrameKind::Control;
        if reserved != 0
            || bulk_count > BULK_BUFFERS_MAX
            || (bulk_count > 0 && !kind.carries_bulk())
            || (bulk_len > 0 && bulk_count == 0)
            || has_number != (call != 0)
            || (!is_call && (service.0, lane.0, request) != (0, 0, None))
        {
            return Err(reader.unknown(u64::from(number)));
        }
        reader.end()?;
        Ok(Fixed { kind, service, lane, call, request, message_len, bulk_count, bulk_len })
    }
}

/// A text cut to the length that a reason may have.
#[must_use]
pub fn reason(text: &str) -> &str {
    let mut end = text.len().min(REASON_LEN_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8]) -> Result<Head, CodecError> {
        let (fixed, rest) = bytes.split_first_chunk().unwrap();
        Head::decode(fixed, &rest[..Head::lengths_len(fixed)?.min(rest.len())])
    }

    #[test]
    fn heads_come_back_as_they_were() {
        let call = Head {
            service: ServiceId::ADMIN,
            lane: LaneId(7),
            request: Some(RequestId(0xABCD)),
            message_len: 9,
            bulk_lens: vec![4096, 1],
            ..Head::empty(FrameKind::Call, 5)
        };
        for head in [call, Head::empty(FrameKind::Dropped, 1), Head::empty(FrameKind::Control, 0)] {
            assert_eq!(decode(&head.encode()), Ok(head.clone()), "{head:?}");
        }
    }

    #[test]
    fn i_o5_lengths_over_a_limit_are_refused_before_anything_is_allocated() {
        let good = Head { message_len: 9, bulk_lens: vec![8], ..Head::empty(FrameKind::Answer, 5) }.encode();
        let with = |at: usize, bytes: &[u8]| {
            let mut bad = good.clone();
            bad[at..at + bytes.len()].copy_from_slice(bytes);
            decode(&bad)
        };
        for (what, bad) in [
            ("message", with(4, &(MESSAGE_LEN_BYTES_MAX as u32 + 1).to_le_bytes())),
            ("bulk", with(16, &(BULK_LEN_BYTES_MAX as u32 + 1).to_le_bytes())),
            ("count", with(1, &[BULK_BUFFERS_MAX as u8 + 1])),
            ("sum", with(32, &9u32.to_le_bytes())),
            ("kind", with(0, &[9])),
            ("no call", with(8, &[0; 8])),
            ("reserved", with(24, &[1])),
        ] {
            assert!(bad.is_err(), "I-O5: {what}");
        }
        let long = "é".repeat(REASON_LEN_BYTES_MAX);
        assert_eq!(reason(&long).len(), REASON_LEN_BYTES_MAX);
        let odd = format!("x{long}");
        assert_eq!(reason(&odd).len(), REASON_LEN_BYTES_MAX - 1, "a letter is not cut in two");
    }
}
