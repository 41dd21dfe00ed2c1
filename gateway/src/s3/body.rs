//! The body of a GET, pulled from the store as the client takes it.

use crate::errors::from_store;
use bytes::Bytes;
use futures::{Stream, stream};
use kiseki_engine::api::ObjectReader;
use s3s::dto::StreamingBlob;
use s3s::stream::{ByteStream, RemainingLength};
use s3s::{S3Result, StdError};
use send_wrapper::SendWrapper;
use std::pin::Pin;
use std::task::{Context, Poll};

type LocalStream = Pin<Box<dyn Stream<Item = Result<Bytes, StdError>>>>;

/// Opens the body: the first bytes are fetched before the answer begins, so that what can't be read is still an error
/// with a status, and so that head and first bytes leave in one write.
pub(crate) async fn open(mut reader: Box<dyn ObjectReader>, range: std::ops::Range<u64>) -> S3Result<StreamingBlob> {
    let len_bytes = range.end - range.start;
    if len_bytes == 0 {
        return Ok(StreamingBlob::from(Bytes::new()));
    }
    reader.seek(range);
    let first = reader.next().await.map_err(from_store)?.unwrap_or_default();
    if first.len() as u64 == len_bytes {
        return Ok(StreamingBlob::from(first));
    }
    let stream = Box::pin(rest(reader, first, len_bytes));
    Ok(StreamingBlob::new(ObjectBody { stream: SendWrapper::new(stream), left: len_bytes }))
}

/// The bytes behind the head. It yields exactly `len_bytes` or ends in an error, which cuts the connection off: a
/// client must never take a short body for a whole one.
fn rest(
    reader: Box<dyn ObjectReader>,
    first: Bytes,
    len_bytes: u64,
) -> impl Stream<Item = Result<Bytes, StdError>> + 'static {
    stream::unfold(Some((reader, Some(first), len_bytes)), |state| async move {
        let (mut reader, first, left) = state?;
        if left == 0 {
            return None;
        }
        let next = match first.filter(|first| !first.is_empty()) {
            Some(first) => Ok(Some(first)),
            None => reader.next().await,
        };
        match next {
            Ok(Some(bytes)) if bytes.len() as u64 <= left => {
                let left = left - bytes.len() as u64;
                Some((Ok(bytes), Some((reader, None, left))))
            }
            Ok(_) => {
                tracing::error!(left, "the store handed out more or fewer bytes than the object has");
                Some((Err(StdError::from("the object's length and its bytes differ")), None))
            }
            Err(error) => Some((Err(StdError::from(from_store(error))), None)),
        }
    })
}

struct ObjectBody {
    stream: SendWrapper<LocalStream>,
    left: u64,
}

impl Stream for ObjectBody {
    type Item = Result<Bytes, StdError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let item = std::task::ready!(self.stream.as_mut().poll_next(context));
        if let Some(Ok(bytes)) = &item {
            self.left -= bytes.len() as u64;
        }
        Poll::Ready(item)
    }
}

impl ByteStream for ObjectBody {
    fn remaining_length(&self) -> RemainingLength {
        usize::try_from(self.left).map_or_else(|_| RemainingLength::unknown(), RemainingLength::new_exact)
    }
}
