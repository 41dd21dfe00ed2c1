//! Calls between nodes that are made for a client's request and are slow or fail: told of in the log of both nodes, with the id that
//! the client sees, so that one request can be followed through all nodes.

use kiseki_engine::throttle::Throttle;
use kiseki_types::ids::NodeId;
use kiseki_types::peer::{PeerHandler, PeerIdentity, ServiceId};
use kiseki_types::request::{self, RequestId};
use kiseki_types::runtime::{Instant, Ports};
use std::fmt::Display;
use std::rc::Rc;
use std::time::Duration;

/// Who called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// This node.
    Out,
    /// The other one.
    In,
}

/// What is told of one call.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    request: RequestId,
    took_ms: u64,
    failure: Option<String>,
}

/// Watches the calls of a core.
pub struct SlowCalls {
    ports: Ports,
    /// `None`: nothing is told.
    slow_after: Option<Duration>,
    throttle: Throttle,
}

impl SlowCalls {
    /// Tells of calls that take longer than `slow_after`, or fail.
    #[must_use]
    pub fn new(ports: Ports, slow_after: Option<Duration>) -> Rc<SlowCalls> {
        Rc::new(SlowCalls { ports, slow_after, throttle: Throttle::default() })
    }

    fn judge(&self, began: Instant, failure: Option<String>) -> Option<Told> {
        let (request, slow_after) = (request::current()?, self.slow_after?);
        let took = self.ports.now().since(began);
        let is_worth_it = failure.is_some() || took > slow_after;
        is_worth_it.then_some(Told { request, took_ms: took.as_millis() as u64, failure })
    }

    /// A call has ended. Where many are slow, one line in five seconds is a warning; the others are for whoever wants all.
    pub fn note(&self, way: Way, node: NodeId, service: ServiceId, began: Instant, failure: Option<&impl Display>) {
        let Some(told) = self.judge(began, failure.map(ToString::to_string)) else { return };
        let Told { request, took_ms, failure } = told;
        let (failure, service) = (failure.unwrap_or_default(), service.0);
        match self.throttle.pass(self.ports.now()) {
            Some(more) => tracing::warn!(
                %request, ?way, %node, service, took_ms, failure, more, "a call between nodes was slow or failed"
            ),
            None => tracing::debug!(
                %request, ?way, %node, service, took_ms, failure, "a call between nodes was slow or failed"
            ),
        }
    }

    /// A handler whose calls are watched.
    #[must_use]
    pub fn watched(self: &Rc<Self>, service: ServiceId, handler: PeerHandler) -> PeerHandler {
        let slow = self.clone();
        Rc::new(move |from, lane, parcel| {
            let PeerIdentity::Node(node) = from else { return handler(from, lane, parcel) };
            if request::current().is_none() {
                return handler(from, lane, parcel);
            }
            let (answer, slow) = (handler(from, lane, parcel), slow.clone());
            Box::pin(async move {
                let began = slow.ports.now();
                let answer = answer.await;
                slow.note(Way::In, node, service, began, answer.as_ref().err());
                answer
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiseki_net::{CoreRuntime, SidePool};
    use kiseki_types::ids::CoreId;

    #[test]
    fn what_is_slow_or_fails_is_told_when_it_was_for_a_request() {
        let ports: Ports = Rc::new(CoreRuntime::new(CoreId(0), SidePool::start(1).unwrap()));
        let slow = SlowCalls::new(ports.clone(), Some(Duration::from_secs(3_600)));
        let long_ago = Instant(ports.now().0.saturating_sub(4_000_000_000_000));
        let failure = || Some("gone".to_owned());
        assert_eq!(slow.judge(long_ago, failure()), None, "it was for nobody");
        let _entered = request::enter(Some(RequestId(5)));
        assert_eq!(slow.judge(ports.now(), None), None, "it was quick");
        assert_eq!(slow.judge(ports.now(), failure()).unwrap().failure, failure());
        let never = SlowCalls::new(ports.clone(), None);
        assert_eq!(never.judge(ports.now(), failure()), None);
        let always = SlowCalls::new(ports.clone(), Some(Duration::ZERO));
        let told = always.judge(Instant(ports.now().0 - 1_000), None).unwrap();
        assert_eq!((told.request, told.failure), (RequestId(5), None));
    }
}
