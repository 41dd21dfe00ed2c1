//! Frames that wait to be sent, and what of them is on its way: they leave from where their bytes lie.

use crate::peer::control::Control;
use crate::peer::frame::{FrameKind, Head, reason};
use futures::io::AsyncWrite;
use kiseki_types::ids::LaneId;
use kiseki_types::peer::{Parcel, ServiceId};
use kiseki_types::request::RequestId;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use zeroize::Zeroize;

/// Pieces handed over in one write.
const PIECES_MAX: usize = 64;

/// Bytes of frames that are taken up together. What is taken up keeps its place; the rest lets control frames pass.
const BATCH_LEN_BYTES: usize = 256 * 1024;

struct Outgoing {
    call: u64,
    head: Vec<u8>,
    parcel: Parcel,
}

/// I-K8: what was sent, or never will be, may have held keys; nobody else has its bytes.
impl Drop for Outgoing {
    fn drop(&mut self) {
        self.parcel.message.zeroize();
    }
}

impl Outgoing {
    fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        [&self.head[..], &self.parcel.message[..]].into_iter().chain(self.parcel.bulk.iter().map(|buf| &buf[..]))
    }

    fn len(&self) -> usize {
        self.pieces().map(<[u8]>::len).sum()
    }
}

/// The frames of one connection that are to be sent.
#[derive(Default)]
pub struct Outbox {
    /// Control frames; they go before the rest.
    urgent: VecDeque<Outgoing>,
    waiting: VecDeque<Outgoing>,
    /// Being sent, in this order.
    taken: VecDeque<Outgoing>,
    /// Bytes of the first of those that are sent.
    sent_of_first: usize,
    bytes: usize,
    is_unflushed: bool,
}

impl Outbox {
    /// Bytes that are not sent yet.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether there is something to do.
    #[must_use]
    pub fn wants_write(&self) -> bool {
        self.bytes > 0 || self.is_unflushed
    }

    /// Queues a control frame.
    pub fn control(&mut self, control: &Control) {
        let message = control.encode();
        let head = Head { message_len: message.len(), ..Head::empty(FrameKind::Control, 0) };
        let frame = Outgoing { call: 0, head: head.encode(), parcel: Parcel { message, bulk: Vec::new() } };
        self.bytes += frame.len();
        self.urgent.push_back(frame);
    }

    /// Queues a call. Calls leave in the order of their numbers.
    pub fn call(&mut self, call: u64, service: ServiceId, lane: LaneId, request: Option<RequestId>, parcel: Parcel) {
        self.parcel(Head { service, lane, request, ..Head::empty(FrameKind::Call, call) }, parcel);
    }

    /// Queues the answer of a call.
    pub fn answer(&mut self, call: u64, parcel: Parcel) {
        self.parcel(Head::empty(FrameKind::Answer, call), parcel);
    }

    /// Queues the refusal of a call.
    pub fn refuse(&mut self, call: u64, why: &str) {
        let message = reason(why).as_bytes().to_vec();
        self.parcel(Head::empty(FrameKind::Refused, call), Parcel { message, bulk: Vec::new() });
    }

    /// Queues the end of a call whose answer nobody wants.
    pub fn drop_call(&mut self, call: u64) {
        self.parcel(Head::empty(FrameKind::Dropped, call), Parcel::default());
    }

    fn parcel(&mut self, head: Head, parcel: Parcel) {
        let bulk_lens = parcel.bulk.iter().map(|buf| buf.len()).collect();
        let call = head.call;
        let head = Head { message_len: parcel.message.len(), bulk_lens, ..head }.encode();
        let frame = Outgoing { call, head, parcel };
        self.bytes += frame.len();
        self.waiting.push_back(frame);
    }

    /// What is left to be sent when the connection ends: the frame that is half sent, and the last one.
    #[must_use]
    pub fn last_words(mut self, control: &Control) -> Outbox {
        let half_sent = self.taken.pop_front().filter(|_| self.sent_of_first > 0);
        let mut last = Outbox { is_unflushed: self.is_unflushed, ..Outbox::default() };
        if let Some(frame) = half_sent {
            last.sent_of_first = self.sent_of_first;
            last.bytes = frame.len() - self.sent_of_first;
            last.taken.push_back(frame);
        }
        last.control(control);
        last
    }

    /// Takes a call back of which nothing is sent; false when it is too late.
    pub fn take_back(&mut self, call: u64) -> bool {
        let Some(at) = self.waiting.iter().position(|frame| frame.call == call) else { return false };
        let frame = self.waiting.remove(at).expect("just found");
        self.bytes -= frame.len();
        true
    }

    /// Sends until the stream takes no more; ready when everything is sent and flushed. Returns through `sent` how many
    /// bytes went.
    pub fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut (impl AsyncWrite + Unpin),
        sent: &mut usize,
    ) -> Poll<io::Result<()>> {
        loop {
            self.take_up();
            if self.taken.is_empty() {
                break;
            }
            let mut skip = self.sent_of_first;
            let mut pieces = Vec::with_capacity(PIECES_MAX);
            for piece in self.taken.iter().flat_map(Outgoing::pieces) {
                let skipped = skip.min(piece.len());
                skip -= skipped;
                if skipped < piece.len() {
                    pieces.push(IoSlice::new(&piece[skipped..]));
                }
                if pieces.len() == PIECES_MAX {
                    break;
                }
            }
            let written = ready!(Pin::new(&mut *stream).poll_write_vectored(cx, &pieces))?;
            drop(pieces);
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.is_unflushed = true;
            *sent += written;
            self.advance(written);
        }
        if self.is_unflushed {
            ready!(Pin::new(stream).poll_flush(cx))?;
            self.is_unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    fn take_up(&mut self) {
        let mut bytes: usize = self.taken.iter().map(Outgoing::len).sum();
        while bytes < BATCH_LEN_BYTES {
            let Some(frame) = self.urgent.pop_front().or_else(|| self.waiting.pop_front()) else { return };
            bytes += frame.len();
            self.taken.push_back(frame);
        }
    }

    fn advance(&mut self, written: usize) {
        self.bytes -= written;
        self.sent_of_first += written;
        while let Some(first) = self.taken.front() {
            let len = first.len();
            if self.sent_of_first < len {
                return;
            }
            self.sent_of_first -= len;
            self.taken.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::reader::FrameReader;
    use futures::executor::block_on;
    use futures::future::poll_fn;
    use futures::io::Cursor;
    use kiseki_types::buf::{IoBuf, stale_buffers};

    /// Takes at most seven bytes at a time.
    struct Narrow(Vec<u8>);

    impl AsyncWrite for Narrow {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            let len = buf.len().min(7);
            self.0.extend_from_slice(&buf[..len]);
            Poll::Ready(Ok(len))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn frames_arrive_whole_control_first_and_what_is_taken_back_does_not() {
        let mut outbox = Outbox::default();
        let bulk = || vec![IoBuf::copy_of(&[1; 5000]), IoBuf::zeroed(0), IoBuf::copy_of(&[2; 3])];
        outbox.call(1, ServiceId::ADMIN, LaneId(2), None, Parcel { message: b"one".to_vec(), bulk: bulk() });
        outbox.call(2, ServiceId::ADMIN, LaneId(2), None, Parcel::default());
        outbox.refuse(3, "no");
        outbox.control(&Control::Ping(4));
        assert!(outbox.take_back(2) && !outbox.take_back(9));
        let (mut wire, mut sent) = (Narrow(Vec::new()), 0);
        block_on(poll_fn(|cx| outbox.poll_send(cx, &mut wire, &mut sent))).unwrap();
        assert_eq!((outbox.bytes(), sent), (0, wire.0.len()));
        assert!(!outbox.wants_write());
        let (mut input, mut reader) = (Cursor::new(wire.0), FrameReader::new(stale_buffers()));
        let mut next = || {
            reader.begin_turn();
            block_on(poll_fn(|cx| reader.poll_frame(cx, &mut input, &mut |_| Ok(()))))
        };
        assert_eq!(next().unwrap().head.kind, FrameKind::Control);
        let call = next().unwrap();
        assert_eq!((call.head.call, &call.message[..], call.bulk.len()), (1, &b"one"[..], 3));
        assert!(call.bulk[0].iter().all(|byte| *byte == 1) && call.bulk[0].len() == 5000);
        assert!(call.bulk[1].is_empty());
        assert_eq!(&call.bulk[2][..], [2; 3]);
        assert_eq!(next().unwrap().message, b"no");
        assert!(next().is_err(), "the end");
    }
}
