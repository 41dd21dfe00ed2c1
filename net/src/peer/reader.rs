//! Takes frames off a stream: heads are checked and admitted first, bulk bytes land in the buffers that they stay in.

use crate::peer::frame::{HEAD_LEN_BYTES, Head};
use futures::io::AsyncRead;
use kiseki_types::buf::{BufferSource, IoBuf};
use kiseki_types::peer::BULK_BUFFERS_MAX;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use thiserror::Error;

/// Bytes that are read in one turn of a connection before other tasks of the core have theirs.
const TURN_LEN_BYTES: usize = 512 * 1024;

/// A frame as it arrived.
pub struct Frame {
    /// Its head.
    pub head: Head,
    /// Its message.
    pub message: Vec<u8>,
    /// Its bulk bytes.
    pub bulk: Vec<IoBuf>,
}

/// Why no frame comes any more.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The other side has closed, between two frames or in one.
    #[error("the other side has closed the connection")]
    Closed,
    /// The socket or TLS.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The other side breaks the rules.
    #[error("{0}")]
    Rules(String),
}

/// Decides about a frame by its head, before memory is taken for it.
pub type Admit<'a> = &'a mut dyn FnMut(&Head) -> Result<(), String>;

#[derive(Clone, Copy)]
enum Step {
    Fixed,
    Lengths(usize),
    Message,
    Bulk,
}

/// Reads the frames of one connection.
pub struct FrameReader {
    buffers: BufferSource,
    fixed: [u8; HEAD_LEN_BYTES],
    lengths: [u8; 4 * BULK_BUFFERS_MAX],
    step: Step,
    /// Bytes of the part that is being read.
    filled: usize,
    frame: Option<Frame>,
    bytes_read: u64,
    turn_left: usize,
}

impl FrameReader {
    /// Bulk bytes go into buffers of `buffers`.
    #[must_use]
    pub fn new(buffers: BufferSource) -> FrameReader {
        FrameReader {
            buffers,
            fixed: [0; HEAD_LEN_BYTES],
            lengths: [0; 4 * BULK_BUFFERS_MAX],
            step: Step::Fixed,
            filled: 0,
            frame: None,
            bytes_read: 0,
            turn_left: TURN_LEN_BYTES,
        }
    }

    /// Bytes of frames read so far.
    #[must_use]
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// A new turn of the connection begins.
    pub fn begin_turn(&mut self) {
        self.turn_left = TURN_LEN_BYTES;
    }

    /// The next frame. When much has been read in this turn it is pending and wakes at once.
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut (impl AsyncRead + Unpin),
        admit: Admit<'_>,
    ) -> Poll<Result<Frame, ReadError>> {
        loop {
            match self.step {
                Step::Fixed => {
                    ready!(self.poll_part(cx, stream))?;
                    let lengths =
                        Head::lengths_len(&self.fixed).map_err(|error| ReadError::Rules(error.to_string()))?;
                    self.begin(Step::Lengths(lengths));
                }
                Step::Lengths(len) => {
                    ready!(self.poll_part(cx, stream))?;
                    let head = Head::decode(&self.fixed, &self.lengths[..len]);
                    let head = head.map_err(|error| ReadError::Rules(error.to_string()))?;
                    admit(&head).map_err(ReadError::Rules)?;
                    self.frame = Some(Frame { message: vec![0; head.message_len], bulk: Vec::new(), head });
                    self.begin(Step::Message);
                }
                Step::Message => {
                    ready!(self.poll_part(cx, stream))?;
                    self.begin(Step::Bulk);
                }
                Step::Bulk => {
                    ready!(self.poll_part(cx, stream))?;
                    self.filled = 0;
                    let frame = self.frame.as_mut().expect("set with the head");
                    match frame.head.bulk_lens.get(frame.bulk.len()) {
                        // One at a time: what is announced and never sent costs one buffer.
                        Some(len) => frame.bulk.push((self.buffers)(*len)),
                        None => {
                            self.begin(Step::Fixed);
                            return Poll::Ready(Ok(self.frame.take().expect("set with the head")));
                        }
                    }
                }
            }
        }
    }

    fn begin(&mut self, step: Step) {
        self.step = step;
        self.filled = 0;
    }

    /// Fills the part that the step is about.
    fn poll_part(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut (impl AsyncRead + Unpin),
    ) -> Poll<Result<(), ReadError>> {
        let part: &mut [u8] = match (self.step, &mut self.frame) {
            (Step::Fixed, _) => &mut self.fixed,
            (Step::Lengths(len), _) => &mut self.lengths[..len],
            (Step::Message, Some(frame)) => &mut frame.message,
            (Step::Bulk, Some(Frame { bulk, .. })) => bulk.last_mut().map(|buf| &mut buf[..]).unwrap_or_default(),
            (Step::Message | Step::Bulk, None) => unreachable!("set with the head"),
        };
        while self.filled < part.len() {
            if self.turn_left == 0 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let end = part.len().min(self.filled + self.turn_left);
            let read = match ready!(Pin::new(&mut *stream).poll_read(cx, &mut part[self.filled..end])) {
                Ok(0) => return Poll::Ready(Err(ReadError::Closed)),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Poll::Ready(Err(ReadError::Closed));
                }
                read => read?,
            };
            self.filled += read;
            self.turn_left -= read;
            self.bytes_read += read as u64;
        }
        Poll::Ready(Ok(()))
    }
}
