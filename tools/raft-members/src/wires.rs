//! Calls between members of one executor: parcels are handed over without a socket.

use kiseki_types::NodeId;
use kiseki_types::peer::{Parcel, PeerCallError, PeerCalls, PeerHandler, PeerIdentity, PeerLane, ServiceId};
use kiseki_types::runtime::LocalBoxFuture;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// Who answers whom. A clone is another handle.
#[derive(Clone, Default)]
pub struct Wires(Rc<RefCell<BTreeMap<NodeId, PeerHandler>>>);

impl Wires {
    /// What the member calls the others with.
    #[must_use]
    pub fn calls(&self, from: NodeId) -> Rc<dyn PeerCalls> {
        Rc::new(Wire { wires: self.clone(), from })
    }

    /// The member is answered for from now on.
    pub fn serve(&self, id: NodeId, handler: PeerHandler) {
        self.0.borrow_mut().insert(id, handler);
    }
}

struct Wire {
    wires: Wires,
    from: NodeId,
}

impl PeerCalls for Wire {
    fn call(
        &self,
        to: PeerLane,
        _service: ServiceId,
        parcel: Parcel,
        _deadline: Duration,
    ) -> LocalBoxFuture<'static, Result<Parcel, PeerCallError>> {
        let (handler, from) = (self.wires.0.borrow().get(&to.node).cloned(), self.from);
        Box::pin(async move {
            let unreachable = || PeerCallError::Unreachable { node: to.node, reason: "it does not run".to_owned() };
            let handler = handler.ok_or_else(unreachable)?;
            let answer = handler(PeerIdentity::Node(from), to.lane, parcel).await;
            answer.map_err(|reason| PeerCallError::Refused { node: to.node, reason })
        })
    }
}
