//! Links between nodes over real sockets: what arrives, who is let in, and what strangers can not do.

mod calls;
mod identity;
mod rules;
mod support;
