//! Errors of requests: what was attempted, why it failed, and what to do about it.

use std::io;
use std::time::Duration;

use machine_api::{ErrorBody, MachineState};

use crate::endpoint::Endpoint;
use crate::tls::{self, TrustError};

/// A request that did not succeed. `action` is what it attempted and on what; it completes the
/// sentence "could not {action}".
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection was not accepted.
    #[error("could not {action}: no connection to {endpoint}")]
    Connect {
        /// What was attempted.
        action: String,
        /// Address of the supervisor.
        endpoint: Endpoint,
        /// Why.
        source: io::Error,
    },
    /// The connection was accepted, but could not be secured.
    #[error("could not {action}: no secure connection to {endpoint}")]
    Handshake {
        /// What was attempted.
        action: String,
        /// Address of the supervisor.
        endpoint: Endpoint,
        /// Why.
        source: io::Error,
    },
    /// There are no trusted certificates.
    #[error("could not {action}: no trusted certificates")]
    Trust {
        /// What was attempted.
        action: String,
        /// Why.
        source: TrustError,
    },
    /// Something expected did not arrive in time.
    #[error("could not {action}: {waited_for} did not come within {after:?}")]
    Deadline {
        /// What was attempted.
        action: String,
        /// What was waited for.
        waited_for: &'static str,
        /// How long the client waited.
        after: Duration,
    },
    /// The connection broke between request and answer.
    #[error("could not {action}: the connection broke")]
    Broken {
        /// What was attempted.
        action: String,
        /// Why.
        source: hyper::Error,
    },
    /// The stream of a command broke.
    #[error("could not {action}: the stream broke")]
    Stream {
        /// What was attempted.
        action: String,
        /// Why.
        source: Box<tokio_tungstenite::tungstenite::Error>,
    },
    /// The server ended the stream of a command before the command ended.
    #[error("could not {action} to its end: {message}")]
    Interrupted {
        /// What was attempted.
        action: String,
        /// What the server reported.
        message: String,
    },
    /// The server refused the request or failed to do it.
    #[error("could not {action}: {}", body.error)]
    Refused {
        /// What was attempted.
        action: String,
        /// HTTP status.
        status: u16,
        /// What the server reported.
        body: Box<ErrorBody>,
    },
    /// The answer is not JSON of the expected type.
    #[error("could not {action}: the answer is not one of the Machines API")]
    UnexpectedAnswer {
        /// What was attempted.
        action: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The answer has neither the expected status nor the API's error body: another program
    /// answers at that address.
    #[error(
        "could not {action}: the answer has status {status} and is not one of the Machines API"
    )]
    NotTheApi {
        /// What was attempted.
        action: String,
        /// HTTP status.
        status: u16,
    },
    /// An answer or a line is too long.
    #[error("could not {action}: the answer is longer than {limit_bytes} bytes")]
    TooLong {
        /// What was attempted.
        action: String,
        /// The most bytes that are read.
        limit_bytes: usize,
    },
    /// The arguments cannot be written as an HTTP request.
    #[error("could not {action}: the arguments cannot be sent")]
    Unsendable {
        /// What was attempted.
        action: String,
        /// What is wrong with them.
        source: hyper::http::Error,
    },
    /// The machine is in a state from which it does not reach the wanted one by itself.
    #[error("machine {machine} did not become {wanted}: it is {seen}{}", in_parentheses(.message.as_deref()))]
    OtherState {
        /// Id of the machine.
        machine: String,
        /// The wanted state.
        wanted: MachineState,
        /// The current state.
        seen: MachineState,
        /// Message of its last event that has one.
        message: Option<String>,
    },
    /// The machine did not reach the wanted state in time.
    #[error("machine {machine} did not become {wanted} within {after:?}: it is {seen}")]
    StateDeadline {
        /// Id of the machine.
        machine: String,
        /// The wanted state.
        wanted: MachineState,
        /// The current state.
        seen: MachineState,
        /// How long the client waited.
        after: Duration,
    },
}

fn in_parentheses(message: Option<&str>) -> String {
    message
        .map(|message| format!(" ({message})"))
        .unwrap_or_default()
}

/// Kind of an [`Error`], for exit codes and decisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// No connection, or it broke.
    Unreachable,
    /// A deadline passed.
    Deadline,
    /// There is no such machine, key, token, …
    NotFound,
    /// Not possible in the current state, or somebody else holds the lease.
    Conflict,
    /// The token is missing, wrong, or does not allow the request.
    Denied,
    /// The request is not valid.
    Invalid,
    /// The supervisor or the machine failed.
    Failed,
    /// The server does not speak this API.
    Protocol,
}

impl Error {
    /// The kind of the failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Connect { .. }
            | Self::Handshake { .. }
            | Self::Broken { .. }
            | Self::Stream { .. } => ErrorKind::Unreachable,
            Self::Deadline { .. } | Self::StateDeadline { .. } => ErrorKind::Deadline,
            // The machine exists, but not what the request names in its guest.
            Self::Refused { body, .. } if body.status == "not_found_in_guest" => {
                ErrorKind::NotFound
            }
            Self::Refused { status, .. } => match *status {
                401 | 403 => ErrorKind::Denied,
                404 | 410 => ErrorKind::NotFound,
                408 | 504 => ErrorKind::Deadline,
                409 | 412 | 423 | 429 => ErrorKind::Conflict,
                400..=499 => ErrorKind::Invalid,
                _ => ErrorKind::Failed,
            },
            Self::UnexpectedAnswer { .. } | Self::NotTheApi { .. } | Self::TooLong { .. } => {
                ErrorKind::Protocol
            }
            Self::Unsendable { .. } | Self::Trust { .. } => ErrorKind::Invalid,
            Self::OtherState { .. } | Self::Interrupted { .. } => ErrorKind::Failed,
        }
    }

    /// What to do about the failure, in one sentence, if that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Connect {
                endpoint, source, ..
            } => Some(connect_hint(endpoint, source)),
            Self::Handshake { source, .. } => tls::hint(source).map(str::to_owned),
            Self::Trust { .. } => Some(
                "give a file with the certificate to trust as --ca-cert or MCTL_CA_CERT".to_owned(),
            ),
            Self::Refused {
                status: 401 | 403,
                body,
                ..
            } => Some(body.hint.clone().unwrap_or_else(|| {
                "give a token that allows this as --token or MCTL_TOKEN".to_owned()
            })),
            Self::Refused { body, .. } => body.hint.clone(),
            Self::NotTheApi { .. } | Self::UnexpectedAnswer { .. } => Some(
                "check that an mctl-supervisor of the same version listens at this address"
                    .to_owned(),
            ),
            Self::OtherState { machine, .. } => Some(format!(
                "`mctl logs {machine}` and `mctl events {machine}` show more"
            )),
            Self::Broken { .. } => Some(
                "the supervisor may have been restarted: check the machine's state, then try again"
                    .to_owned(),
            ),
            Self::StateDeadline { machine, .. } => Some(format!(
                "it may still get there: `mctl status {machine}` shows its state"
            )),
            Self::Stream { .. } | Self::Interrupted { .. } => None,
            Self::Deadline { .. } | Self::TooLong { .. } | Self::Unsendable { .. } => None,
        }
    }
}

fn connect_hint(endpoint: &Endpoint, source: &io::Error) -> String {
    match (endpoint, source.kind()) {
        (Endpoint::Unix(_), io::ErrorKind::PermissionDenied) => {
            "the socket belongs to another user or group: use mctl as that user, or join the group"
                .to_owned()
        }
        (_, io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            "is mctl-supervisor running? `mctl doctor` checks this host; --host or MCTL_HOST \
             sets another address"
                .to_owned()
        }
        (_, _) => "check the address: `mctl config` shows where it came from".to_owned(),
    }
}
