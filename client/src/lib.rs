//! Typed asynchronous client of the Machines API, over a Unix socket or TCP, with TLS or without.
//!
//! The only code of the project that speaks HTTP as a client: `mctl` and the end-to-end harness
//! call it. It opens one connection per request, keeps no state between requests, reads no
//! configuration and prints nothing. Every request has a deadline, and every error says what was
//! attempted on what, what the server said, and where possible what to do.

#![forbid(unsafe_code)]

mod attributes;
mod call;
mod connect;
mod endpoint;
mod error;
mod exec_stream;
mod files;
mod machines;
mod ndjson;
mod tls;
mod tokens;
mod wait;

pub use call::Client;
pub use endpoint::{Endpoint, EndpointError};
pub use error::{Error, ErrorKind};
pub use exec_stream::{Command, CommandEnd, CommandInput, CommandOutput, Piece};
pub use files::FileContent;
pub use hyper::body::Bytes;
pub use machines::{ListFilter, LogFilter};
pub use ndjson::Lines;
pub use tls::{Trust, TrustError};
