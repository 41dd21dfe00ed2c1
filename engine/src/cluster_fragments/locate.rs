//! Where the fragments of a generation lie: all members are asked at once, and whoever does not answer is named.

use super::Inner;
use crate::latency::Source;
use crate::nodes::Standing;
use crate::wire::{FragmentCall, FragmentReply};
use futures::StreamExt;
use futures::future::{Either, join, join_all, select};
use futures::stream::FuturesUnordered;
use kiseki_types::fragment::{FragmentError, Located, StoredFragment};
use kiseki_types::ids::{Generation, Locator, NodeId};
use kiseki_types::runtime::{Instant, LocalBoxFuture};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;
use tracing::debug;

/// How long a node may take to say which fragments it holds.
const LOCATE_DEADLINE: Duration = Duration::from_secs(2);

/// Takes up what a node says.
fn note(located: &mut Located, node: NodeId, answer: Result<Vec<StoredFragment>, FragmentError>) {
    match answer {
        Ok(found) => {
            for fragment in found {
                // A device that was moved may still stand in the index of the node that it came from.
                if !located.found.iter().any(|other| other.extent == fragment.extent) {
                    located.found.push(fragment);
                }
            }
        }
        Err(error) => {
            debug!(%node, %error, "a node does not say which fragments it holds");
            located.unanswered.push(node);
        }
    }
}

/// Whether what was found holds all of the data.
fn is_enough(located: &Located) -> bool {
    let Some(first) = located.found.first() else { return false };
    let of_shape = located.found.iter().filter(|found| found.meta.shape == first.meta.shape);
    let indices: BTreeSet<u8> = of_shape.map(|found| found.meta.key.index).collect();
    indices.len() >= usize::from(first.meta.shape.data)
}

type Answer = (NodeId, Result<Vec<StoredFragment>, FragmentError>);

impl Inner {
    /// The same for a read: who is late, or slow as of late, is not waited for when the others have enough.
    pub(super) async fn locate_soon(
        self: Rc<Inner>,
        locator: Locator,
        generation: Generation,
    ) -> Result<Located, FragmentError> {
        let (own, began) = (self.nodes.own(), self.ports.now());
        let mut asking: FuturesUnordered<LocalBoxFuture<'_, Answer>> = FuturesUnordered::new();
        // Until when the answer of each is worth waiting for.
        let mut open = BTreeMap::<NodeId, Instant>::new();
        let inner = &self;
        for (node, lanes) in self.nodes.members() {
            let source = Source::Locate(node);
            let is_slow = self.latencies.is_slow(source, began);
            open.insert(node, if is_slow { began } else { began + self.latencies.late_after(source) });
            asking.push(Box::pin(async move { (node, inner.locate_at(node, lanes, locator, generation).await) }));
        }
        let here = self.local.locate_here(locator, generation);
        asking.push(Box::pin(async move { (own, here.await) }));
        let mut located = Located::default();
        let mut tick: Option<(Instant, LocalBoxFuture<'static, ()>)> = None;
        let mut is_here_known = false;
        loop {
            let now = self.ports.now();
            let worth = open.values().copied().filter(|until| *until > now).max();
            let may_leave = is_here_known && is_enough(&located);
            if may_leave && worth.is_none() {
                break;
            }
            let next = match worth.filter(|_| may_leave) {
                None => asking.next().await,
                Some(until) => {
                    if tick.as_ref().is_none_or(|(at, _)| *at != until) {
                        tick = Some((until, self.ports.sleep_until(until)));
                    }
                    let (_, timer) = tick.as_mut().expect("it was just set");
                    let next = match select(asking.next(), timer).await {
                        Either::Left((next, _)) => Some(next),
                        Either::Right(_) => None,
                    };
                    let Some(next) = next else { continue };
                    next
                }
            };
            let Some((node, answer)) = next else { break };
            let now = self.ports.now();
            if open.remove(&node).is_some() && answer.is_ok() {
                self.latencies.record(Source::Locate(node), now.since(began), now);
            }
            is_here_known |= node == own;
            note(&mut located, node, answer);
        }
        let now = self.ports.now();
        for (node, until) in open {
            // One that was not waited for at all is no worse for it.
            if until > began {
                self.latencies.record(Source::Locate(node), now.since(began), now);
            }
            located.unanswered.push(node);
        }
        Ok(located)
    }

    pub(super) async fn locate(
        self: Rc<Inner>,
        locator: Locator,
        generation: Generation,
    ) -> Result<Located, FragmentError> {
        let here = self.local.locate_here(locator, generation);
        let members = self.nodes.members();
        let others = members.iter().map(|(node, lanes)| self.locate_at(*node, *lanes, locator, generation));
        let (here, others) = join(here, join_all(others)).await;
        let mut located = Located::default();
        let answers = std::iter::once((self.nodes.own(), here));
        for (node, answer) in answers.chain(members.iter().map(|(node, _)| *node).zip(others)) {
            note(&mut located, node, answer);
        }
        Ok(located)
    }

    async fn locate_at(
        &self,
        node: NodeId,
        lanes: u16,
        locator: Locator,
        generation: Generation,
    ) -> Result<Vec<StoredFragment>, FragmentError> {
        let unknown = |reason: String| FragmentError::Unknown { reason };
        if self.nodes.standing(node, self.ports.now()) != Standing::Here {
            return Err(unknown(format!("{node} is silent")));
        }
        let call = FragmentCall::Locate { locator, generation };
        let lane = locator.index_lane(lanes);
        match self.remote.call(node, lane, &call, Vec::new(), LOCATE_DEADLINE).await {
            Ok((FragmentReply::Located(found), _)) => {
                self.nodes.heard(node, self.ports.now());
                let is_asked = |found: &StoredFragment| {
                    found.meta.key.locator == locator && found.meta.key.generation == generation
                };
                match found {
                    Ok(found) if !found.iter().all(is_asked) => {
                        Err(unknown(format!("{node} answered of another chunk")))
                    }
                    found => found,
                }
            }
            Ok(_) => Err(unknown(format!("{node} answered something else"))),
            Err(failure) => Err(unknown(failure.reason().to_owned())),
        }
    }
}
