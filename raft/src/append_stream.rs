//! A leader's appends of one group to one peer. One with entries is under way at a time; news that an entry is committed
//! may wait for company on its way, but holds no entries of its stream back: the next append brings it along. Where openraft
//! ends the stream behind the news, its answer is waited for.

use crate::network::{AppendRequest, AppendResponse, PeerClient};
use crate::type_config::{LogId, TypeConfig};
use futures::future::{Either, select};
use futures::stream::{LocalBoxStream, Stream, StreamExt, unfold};
use openraft::errors::RPCError;
use openraft::raft::{StreamAppendError, StreamAppendResult};
use std::collections::VecDeque;
use std::pin::pin;
use std::time::Duration;

/// The answer to one request of openraft's.
type Answer = Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>;

/// What an append carried, as far as its answer depends on it. openraft believes answers, and panics over some that can't be.
#[derive(Clone, Copy)]
pub(crate) struct Sent {
    previous: Option<LogId>,
    last: Option<LogId>,
}

impl Sent {
    pub(crate) fn of(request: &AppendRequest) -> Sent {
        let last = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
        Sent { previous: request.prev_log_id, last }
    }

    /// Whether a sound peer can have answered so.
    pub(crate) fn explains(&self, response: &AppendResponse) -> bool {
        match response {
            AppendResponse::Success | AppendResponse::HigherVote(_) => true,
            AppendResponse::Conflict => self.previous.is_some(),
            AppendResponse::PartialSuccess(last) => (self.previous..=self.last).contains(last),
        }
    }
}

/// Answers to the requests of `input`, in their order; ends with the first that is not all that was asked.
pub(crate) fn appends<'s, S>(client: &'s PeerClient, input: S, within: Duration) -> LocalBoxStream<'s, Answer>
where
    S: Stream<Item = AppendRequest> + Unpin + 'static,
{
    let appends = Appends { client, input, within, ready: VecDeque::new(), input_ended: false, is_over: false };
    unfold(appends, |mut appends| async move { appends.next().await.map(|answer| (answer, appends)) }).boxed_local()
}

struct Appends<'s, S> {
    client: &'s PeerClient,
    input: S,
    within: Duration,
    /// Answers that openraft has not taken yet.
    ready: VecDeque<Answer>,
    input_ended: bool,
    is_over: bool,
}

impl<S: Stream<Item = AppendRequest> + Unpin> Appends<'_, S> {
    async fn next(&mut self) -> Option<Answer> {
        if let Some(answer) = self.ready.pop_front() {
            return Some(answer);
        }
        if self.is_over || self.input_ended {
            return None;
        }
        let request = self.input.next().await?;
        self.send(request).await;
        self.ready.pop_front()
    }

    /// Sends a request. While it is news alone, one that comes behind it takes its place, since it says the same and more;
    /// its answer then answers both, none before the peer has spoken: a lease hangs on it.
    async fn send(&mut self, mut request: AppendRequest) {
        let client = self.client;
        loop {
            let (sent, is_news) = (Sent::of(&request), request.entries.is_empty());
            let call = pin!(client.append(request, self.within));
            if !is_news {
                let answer = call.await;
                return self.take(sent, answer);
            }
            let answer = match select(call, self.input.next()).await {
                Either::Left((answer, _)) => answer,
                Either::Right((Some(next), _news)) => {
                    self.ready.push_back(Ok(Ok(sent.last)));
                    request = next;
                    continue;
                }
                Either::Right((None, call)) => {
                    self.input_ended = true;
                    call.await
                }
            };
            return self.take(sent, answer);
        }
    }

    fn take(&mut self, sent: Sent, answer: Result<AppendResponse, RPCError<TypeConfig>>) {
        let answer = match (answer, sent.previous) {
            (Ok(AppendResponse::Success), _) => Ok(Ok(sent.last)),
            (Ok(AppendResponse::PartialSuccess(up_to)), _) => {
                self.is_over = up_to != sent.last;
                Ok(Ok(up_to))
            }
            (Ok(AppendResponse::HigherVote(vote)), _) => Ok(Err(StreamAppendError::HigherVote(vote))),
            (Ok(AppendResponse::Conflict), Some(previous)) => Ok(Err(StreamAppendError::Conflict(previous))),
            (Ok(AppendResponse::Conflict), None) => Ok(Ok(None)), // `explains` lets none through
            (Err(error), _) => Err(error),
        };
        if !matches!(answer, Ok(Ok(_))) {
            self.is_over = true;
            self.ready.clear(); // nobody has answered what was passed over
        }
        self.ready.push_back(answer);
    }
}
