//! What a core answers to other nodes and to administrators.

use kiseki_types::peer::{PeerHandler, PeerIdentity, ServiceId};
use std::cell::RefCell;
use std::collections::BTreeMap;

/// Who may call a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Callers {
    /// Nodes of the cluster.
    Nodes,
    /// Administrators.
    Admins,
}

impl Callers {
    fn include(self, identity: PeerIdentity) -> bool {
        matches!((self, identity), (Callers::Nodes, PeerIdentity::Node(_)) | (Callers::Admins, PeerIdentity::Admin))
    }

    fn words(self) -> &'static str {
        match self {
            Callers::Nodes => "nodes",
            Callers::Admins => "administrators",
        }
    }
}

/// The services of one core.
#[derive(Default)]
pub struct PeerServices {
    handlers: RefCell<BTreeMap<ServiceId, (Callers, PeerHandler)>>,
}

impl PeerServices {
    /// Lets `handler` answer the calls of `callers` to `service`, in place of what answered before.
    pub fn serve(&self, service: ServiceId, callers: Callers, handler: PeerHandler) {
        self.handlers.borrow_mut().insert(service, (callers, handler));
    }

    /// The handler for a call, or why there is none.
    pub(crate) fn find(&self, service: ServiceId, identity: PeerIdentity) -> Result<PeerHandler, String> {
        match self.handlers.borrow().get(&service) {
            None => Err(format!("this node does not serve service {}", service.0)),
            Some((callers, handler)) if callers.include(identity) => Ok(handler.clone()),
            Some((callers, _)) => Err(format!("service {} is for {} only", service.0, callers.words())),
        }
    }
}
