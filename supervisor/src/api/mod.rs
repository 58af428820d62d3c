//! The Machines API over HTTP: bodies, routes, statuses, tokens, sockets, and nothing about machines.
//!
//! Handlers check, convert and forward. A request over the Unix socket is trusted, since the socket's
//! mode decides who may open it. A request over TCP carries a bearer token, with TLS or without.

pub(crate) mod bodies;
mod description;
mod error;
mod handlers;
mod ndjson;
mod request;
mod routes;
mod sockets;

use std::sync::Arc;

pub(crate) use request::auth::Tokens;
pub(crate) use sockets::serve;
pub(crate) use sockets::tls::Tls;

use crate::machine::Registry;

/// What handlers need.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    /// The machines.
    pub(crate) registry: Registry,
    /// The tokens that are valid over TCP.
    pub(crate) tokens: Arc<Tokens>,
    /// Its address, if it is served over TCP.
    pub(crate) address: Option<Arc<str>>,
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Somebody who may open the Unix socket.
    Local,
    /// Anybody, who needs a token.
    Network,
}
