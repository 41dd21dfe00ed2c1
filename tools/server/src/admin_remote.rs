//! The operator's end of administration from elsewhere: a link to a node, with an administrator's certificate.

use crate::admin::{AdminRequest, AdminResponse};
use crate::pki::Bundle;
use crate::pki::issued::read_revoked;
use kiseki_executor::{Executor, ExecutorOptions};
use kiseki_net::peer::revoked::Serial;
use kiseki_net::peer::{CallFailure, Expect, Link, LinkInputs, LinkTarget};
use kiseki_net::{CoreRuntime, SidePool};
use kiseki_types::buf::plain_buffers;
use kiseki_types::ids::{CoreId, LaneId};
use kiseki_types::peer::{Parcel, ServiceId};
use kiseki_types::runtime::Ports;
use rustls::pki_types::ServerName;
use std::collections::BTreeSet;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use thiserror::Error;

/// Why a node elsewhere did not answer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// The address makes no sense.
    #[error("{0:?} is no HOST:PORT; it is where the node's [peer] listens")]
    Address(String),
    /// The name leads nowhere.
    #[error("{name} can't be resolved: {source}")]
    Name {
        /// The name.
        name: String,
        /// Why.
        source: std::io::Error,
    },
    /// The own certificate can't be used.
    #[error("{0:#}")]
    Certificate(anyhow::Error),
    /// This machine can't make connections.
    #[error("no executor can be made: {0}; `kiseki-server doctor` tells what hinders it")]
    Executor(std::io::Error),
    /// The node can't be reached.
    #[error("{node} can't be reached: {reason}; is [peer] listen set there, and the port open?")]
    Unreachable {
        /// Where it was looked for.
        node: String,
        /// Why.
        reason: String,
    },
    /// The node will not answer, or is not believed.
    #[error("{node}: {reason}")]
    Refused {
        /// Where.
        node: String,
        /// Why.
        reason: String,
    },
    /// It was asked, and its answer did not come or is not understood; whether it was done is not known.
    #[error("{node} was asked, and gave no answer: {reason}; whether it was done is not known: look with `status`")]
    Unanswered {
        /// Where.
        node: String,
        /// Why.
        reason: String,
    },
    /// No answer in time; whether it was done is not known.
    #[error("{node} has not answered within {} s; ask `status` whether it was done", waited.as_secs())]
    Deadline {
        /// Where.
        node: String,
        /// How long.
        waited: Duration,
    },
}

/// What is believed no more, when a copy of the list lies beside the own certificate.
fn revoked_beside(certificate_dir: &Path) -> anyhow::Result<BTreeSet<Serial>> {
    let list = certificate_dir.join("revoked");
    match list.exists() {
        true => read_revoked(&list).map(|(_, serials)| serials),
        false => Ok(BTreeSet::new()),
    }
}

/// A link to a node elsewhere.
pub struct RemoteAdmin {
    node: String,
    // In this order: what runs on the executor ends before it.
    link: Rc<Link>,
    executor: Executor,
}

impl RemoteAdmin {
    /// Makes ready to call the node at `node` (HOST:PORT) with the certificate in `certificate_dir`.
    pub fn new(node: &str, certificate_dir: &Path) -> Result<RemoteAdmin, RemoteError> {
        let no_address = || RemoteError::Address(node.to_owned());
        let (host, _port) = node.rsplit_once(':').ok_or_else(no_address)?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned()).map_err(|_| no_address())?;
        let resolved = node.to_socket_addrs();
        let resolved = resolved.map_err(|source| RemoteError::Name { name: node.to_owned(), source })?;
        let addresses: Vec<SocketAddr> = resolved.collect();
        let bundle = Bundle::read(certificate_dir).map_err(RemoteError::Certificate)?;
        let revoked = revoked_beside(certificate_dir).map_err(RemoteError::Certificate)?;
        let trust = bundle.trust(certificate_dir, revoked).map_err(RemoteError::Certificate)?;
        let executor = Executor::new(ExecutorOptions::default()).map_err(RemoteError::Executor)?;
        let side = SidePool::start(1).map_err(RemoteError::Executor)?;
        let ports: Ports = Rc::new(CoreRuntime::new(CoreId(0), side));
        let target = LinkTarget { addresses, expect: Expect::Host(name), lane: LaneId(0) };
        let link = Link::new(LinkInputs { ports, trust, buffers: plain_buffers() }, target);
        Ok(RemoteAdmin { node: node.to_owned(), link, executor })
    }

    /// Asks and waits for the answer.
    pub fn call(&self, request: &AdminRequest, answer_max: Duration) -> Result<AdminResponse, RemoteError> {
        let strange = |error: serde_json::Error| RemoteError::Unanswered {
            node: self.node.clone(),
            reason: format!("it is not understood ({error}), use the `kiseki` of the same release"),
        };
        let unsaid =
            |error: serde_json::Error| RemoteError::Refused { node: self.node.clone(), reason: error.to_string() };
        let message = serde_json::to_vec(request).map_err(unsaid)?;
        let parcel = Parcel { message, bulk: Vec::new() };
        let call = self.link.clone().call(ServiceId::ADMIN, LaneId(0), parcel, answer_max);
        let node = self.node.clone();
        match self.executor.run(call) {
            Ok(answer) => serde_json::from_slice(&answer.message).map_err(strange),
            Err(CallFailure::Deadline) => Err(RemoteError::Deadline { node, waited: answer_max }),
            Err(CallFailure::Unreachable(reason)) => Err(RemoteError::Unreachable { node, reason }),
            Err(CallFailure::Unanswered(reason)) => Err(RemoteError::Unanswered { node, reason }),
            Err(failure) => Err(RemoteError::Refused { node, reason: failure.to_string() }),
        }
    }
}
