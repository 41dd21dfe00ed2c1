//! Bodies of requests: made in pieces that stay in the cache between making and sending, in memory that is used again.

use super::content::{Content, ContentId};
use super::sigv4::sha256_hex;
use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use sha2::{Digest, Sha256};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

/// Bytes of a piece.
const PIECE_LEN_BYTES: usize = 256 * 1024;

/// Pieces made before the request begins: the clock does not run for a megabyte's content.
const READY_PIECES: usize = 4;

/// Pieces kept for the next request; hyper holds two or three at a time.
const KEPT_PIECES_MAX: usize = 8;

/// Memory of pieces that were sent. Of one client; the lock is never contended, hyper only asks for `Send`.
#[derive(Clone, Default)]
pub struct PieceMemory(Arc<Mutex<VecDeque<Bytes>>>);

impl PieceMemory {
    fn take(&self, len: usize) -> BytesMut {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..kept.len() {
            let Some(bytes) = kept.pop_front() else { break };
            match bytes.try_into_mut() {
                Ok(mut memory) if memory.capacity() >= len => {
                    memory.resize(len, 0);
                    return memory;
                }
                Ok(_) => {}
                Err(in_use) => kept.push_back(in_use),
            }
        }
        BytesMut::zeroed(len)
    }

    fn keep(&self, bytes: &Bytes) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT_PIECES_MAX {
            kept.push_back(bytes.clone());
        }
    }
}

/// Where content comes from.
#[derive(Clone)]
pub struct Source {
    /// The run's noise.
    pub content: Arc<Content>,
    /// Memory of the client.
    pub memory: PieceMemory,
}

/// A body.
pub struct Payload {
    ready: VecDeque<Bytes>,
    /// What is left besides what is ready: source, content, next byte, end.
    rest: Option<(Source, ContentId, u64, u64)>,
    left_len_bytes: u64,
}

impl Payload {
    /// No body.
    pub fn empty() -> Payload {
        Payload::of(Bytes::new())
    }

    /// These bytes.
    pub fn of(bytes: Bytes) -> Payload {
        let left_len_bytes = bytes.len() as u64;
        let ready = if bytes.is_empty() { VecDeque::new() } else { VecDeque::from([bytes]) };
        Payload { ready, rest: None, left_len_bytes }
    }

    /// A range of an object's content; its first pieces are made now.
    pub fn content(source: &Source, id: ContentId, start: u64, end: u64) -> Payload {
        let mut payload = Payload {
            ready: VecDeque::new(),
            rest: Some((source.clone(), id, start, end)),
            left_len_bytes: end - start,
        };
        while payload.ready.len() < READY_PIECES
            && let Some(piece) = payload.make()
        {
            payload.ready.push_back(piece);
        }
        payload
    }

    /// Bytes in all, before any was sent.
    pub fn len_bytes(&self) -> u64 {
        self.left_len_bytes
    }

    fn make(&mut self) -> Option<Bytes> {
        let (source, id, next, end) = self.rest.as_mut()?;
        let len = (*end - *next).min(PIECE_LEN_BYTES as u64) as usize;
        if len == 0 {
            return None;
        }
        let mut piece = source.memory.take(len);
        source.content.fill(*id, *next, &mut piece);
        *next += len as u64;
        let piece = piece.freeze();
        source.memory.keep(&piece);
        Some(piece)
    }

    /// Hex SHA-256 of the body. Content is made twice for it: what a client that signs bodies pays for.
    pub fn sha256_hex(&self) -> String {
        let Some((source, id, next, end)) = &self.rest else {
            return sha256_hex(&self.ready.iter().flat_map(|piece| piece.to_vec()).collect::<Vec<u8>>());
        };
        let mut digest = Sha256::new();
        self.ready.iter().for_each(|piece| digest.update(piece));
        let mut rest = Payload {
            ready: VecDeque::new(),
            rest: Some((source.clone(), *id, *next, *end)),
            left_len_bytes: end - next,
        };
        while let Some(piece) = rest.make() {
            digest.update(&piece);
        }
        hex::encode(digest.finalize())
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = match self.ready.pop_front() {
            Some(piece) => Some(piece),
            None => self.make(),
        };
        if let Some(piece) = &piece {
            self.left_len_bytes -= piece.len() as u64;
        }
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left_len_bytes == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left_len_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    #[test]
    fn a_body_is_its_content_and_its_hash() {
        let source = Source { content: Arc::new(Content::new(1)), memory: PieceMemory::default() };
        let id = source.content.id([1, 2, 3], 0.0);
        for (start, end) in [(0, 0), (0, 10), (5, 300_000), (1 << 20, 4 << 20)] {
            for _ in 0..2 {
                let payload = Payload::content(&source, id, start, end);
                let (hash, len) = (payload.sha256_hex(), payload.len_bytes());
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                let bytes = runtime.block_on(payload.collect()).unwrap().to_bytes();
                assert_eq!((bytes.len() as u64, len), (end - start, end - start));
                assert_eq!(source.content.difference(id, start, &bytes), None);
                assert_eq!(hash, sha256_hex(&bytes));
            }
        }
        let payload = Payload::of(Bytes::from_static(b"abc"));
        assert_eq!(payload.sha256_hex(), sha256_hex(b"abc"));
    }

    #[test]
    fn memory_is_used_again_once_it_is_free() {
        let source = Source { content: Arc::new(Content::new(1)), memory: PieceMemory::default() };
        let id = ContentId(1);
        let address = |payload: &Payload| payload.ready[0].as_ptr();
        let first = Payload::content(&source, id, 0, 4096);
        let second = Payload::content(&source, id, 0, 4096);
        assert_ne!(address(&first), address(&second), "the first is still in use");
        let freed = address(&first);
        drop(first);
        assert_eq!(address(&Payload::content(&source, id, 4096, 8192)), freed);
    }
}
