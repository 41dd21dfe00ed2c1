//! Sockets, cores and the calls between them.
//!
//! This room implements the ports of time, chance, spawning and side threads on an executor ([`runtime`], [`side`]), carries calls
//! between the cores of a node ([`mesh`]), and brings client connections to whoever serves them ([`listener`],
//! [`socket`], [`tls`], [`hyper_io`], [`mod@serve`]). It knows neither S3 nor storage, and it never looks at a message that
//! it carries.
//!
//! Calls between nodes and from administrators come over mTLS ([`peer`]).
#![forbid(unsafe_code)]

pub mod error;
pub mod hyper_io;
pub mod listener;
pub mod mesh;
pub mod peer;
pub mod runtime;
pub mod serve;
pub mod side;
pub mod socket;
pub mod tls;

pub use error::NetError;
pub use hyper_io::HyperIo;
pub use listener::Listener;
pub use mesh::{Mesh, MeshCaller, MeshLink, MeshShape};
pub use runtime::CoreRuntime;
pub use serve::{Connection, ServeLimits, StopSignal, Stopper, serve};
pub use side::SidePool;
pub use socket::{Stream, TcpSocket};
pub use tls::TlsAcceptor;
