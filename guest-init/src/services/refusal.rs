//! The error of a service: it refuses the request, or the connection has failed.

use std::error::Error;

use guest_protocol::{Refusal, RefusalKind};

use crate::connection::ConnectionError;

/// Why a service ended early.
#[derive(Debug)]
pub(crate) enum ServiceError {
    /// Not done, and nothing was sent: the server replies with the refusal.
    Refused(Refusal),
    /// The connection is of no more use.
    Connection(ConnectionError),
}

impl From<Refusal> for ServiceError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<ConnectionError> for ServiceError {
    fn from(error: ConnectionError) -> Self {
        Self::Connection(error)
    }
}

/// The refusal for `error`, with its causes.
pub(crate) fn refusal(kind: RefusalKind, error: &dyn Error) -> Refusal {
    Refusal {
        kind,
        message: error_text::with_causes(error),
    }
}
