//! Links between nodes, and from administrators to nodes: one TLS connection for each pair of cores, kept, with many calls on it
//! at once. The bytes on the wire: `docs/formats/link.md`.
//!
//! A connection begins with a [`preamble`] in clear that only routes it to a core ([`gate`]); then both sides prove by
//! certificate who they are ([`name`], [`trust`]), say hello ([`control`], [`open`]) and exchange frames ([`frame`],
//! [`reader`], [`outbox`], [`session`]). The side that connected calls ([`caller`], [`link`], [`links`]), the other one
//! answers ([`services`], `answerer`, [`server`]).
//!
//! Bounds (I-O5): lengths are checked before anything is allocated; each side says how many unanswered calls and bytes of them it
//! takes, and closes a connection that sends more; answers that a peer does not take stop its calls from being read; what has
//! not proved yet who it is gets a deadline, and there are few of them at once.

mod answerer;
pub mod caller;
pub mod control;
pub mod counters;
pub mod frame;
pub mod gate;
pub mod link;
pub mod links;
pub mod name;
pub mod open;
pub mod outbox;
pub mod preamble;
pub mod reader;
pub mod refusals;
pub mod revoked;
pub mod server;
pub mod services;
pub mod session;
pub mod stream;
pub mod trust;
pub mod validity;

pub use answerer::Grant;
pub use caller::CallFailure;
pub use gate::{Arrivals, PeerGate};
pub use link::{Link, LinkInputs, LinkTarget};
pub use links::PeerLinks;
pub use name::{PeerName, PeerRole};
pub use server::PeerServer;
pub use services::{Callers, PeerServices};
pub use trust::{Expect, PeerTrust, TrustMaterial};
