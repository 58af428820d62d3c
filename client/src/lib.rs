//! Typed asynchronous client of the Machines API, over a Unix socket or TCP, with or without TLS.
//!
//! The only HTTP client code of the project; `mctl`, `cycles` and the end-to-end harness use it. It
//! opens one connection per request, keeps no state between requests, reads no configuration and
//! prints nothing. Every request has a deadline. Every error says what was attempted and on what,
//! what the server reported, and, if that is known, what to do about it.

#![forbid(unsafe_code)]

mod attributes;
mod call;
mod client;
mod connect;
mod endpoint;
mod error;
mod exec_stream;
mod files;
mod machines;
mod ndjson;
mod page;
mod paths;
mod tls;
mod tokens;
mod unlisted;
mod wait;

pub use client::Client;
pub use endpoint::{Endpoint, EndpointError};
pub use error::{Error, ErrorKind};
pub use exec_stream::{Command, CommandEnd, CommandInput, CommandOutput, Piece};
pub use files::FileContent;
pub use hyper::body::Bytes;
pub use machines::{ListFilter, LogFilter};
pub use ndjson::Lines;
pub use page::{Page, PageError};
pub use tls::{Trust, TrustError};
