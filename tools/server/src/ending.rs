//! What a node ends after the signal, and in which order: it gives away what it leads and serves on meanwhile, then its clients, then
//! the other members. So nobody is cut off who could have been answered, and nobody waits for a node that is gone.

use kiseki_net::{StopSignal, Stopper};
use std::time::Duration;

/// Longest time for giving away what the node leads. Whatever has no heir by then gets a leader by election, as after a crash.
pub const HANDOVER_MAX: Duration = Duration::from_secs(5);

/// Switches that are thrown one after the other, each by whichever core comes to it first.
pub struct Ending {
    clients: (Stopper, StopSignal),
    members: (Stopper, StopSignal),
}

impl Default for Ending {
    fn default() -> Ending {
        Ending { clients: Stopper::new(), members: Stopper::new() }
    }
}

impl Ending {
    /// Clients get no new connections, and theirs end with the request in flight.
    pub fn end_clients(&self) {
        self.clients.0.stop();
    }

    /// Other nodes' calls are refused, and what runs is answered.
    pub fn end_members(&self) {
        self.members.0.stop();
    }

    /// Thrown by [`Ending::end_clients`].
    #[must_use]
    pub fn clients(&self) -> StopSignal {
        self.clients.1.clone()
    }

    /// Thrown by [`Ending::end_members`].
    #[must_use]
    pub fn members(&self) -> StopSignal {
        self.members.1.clone()
    }
}
