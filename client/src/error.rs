//! What can go wrong with a request: what was attempted, why it failed, what to do about it.

use std::io;
use std::time::Duration;

use machine_api::{ErrorBody, MachineState};

use crate::{Endpoint, TrustError, tls};

/// A request that did not succeed. `what` reads as in "could not {what}", and names its object.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody took the connection.
    #[error("could not {what}: no connection to {endpoint}")]
    Connect {
        /// What was attempted.
        what: String,
        /// Where.
        endpoint: Endpoint,
        /// Why not.
        source: io::Error,
    },
    /// Somebody took the connection, but it could not be secured.
    #[error("could not {what}: no secure connection to {endpoint}")]
    Handshake {
        /// What was attempted.
        what: String,
        /// Where.
        endpoint: Endpoint,
        /// Why not.
        source: io::Error,
    },
    /// It is not known whose certificates count.
    #[error("could not {what}: nobody to trust")]
    Trust {
        /// What was attempted.
        what: String,
        /// Why not.
        source: TrustError,
    },
    /// Something did not come in time.
    #[error("could not {what}: {waited_for} did not come within {after:?}")]
    Deadline {
        /// What was attempted.
        what: String,
        /// What was waited for.
        waited_for: &'static str,
        /// For how long.
        after: Duration,
    },
    /// The connection broke between request and answer.
    #[error("could not {what}: the connection broke")]
    Broken {
        /// What was attempted.
        what: String,
        /// How.
        source: hyper::Error,
    },
    /// The stream of a command broke.
    #[error("could not {what}: the stream broke")]
    Stream {
        /// What was attempted.
        what: String,
        /// How.
        source: Box<tokio_tungstenite::tungstenite::Error>,
    },
    /// The server ended the stream of a command before the command ended.
    #[error("could not {what} to its end: {message}")]
    BrokenOff {
        /// What was attempted.
        what: String,
        /// What the server said.
        message: String,
    },
    /// The server said no.
    #[error("could not {what}: {}", body.error)]
    Refused {
        /// What was attempted.
        what: String,
        /// HTTP status.
        status: u16,
        /// What the server said.
        body: Box<ErrorBody>,
    },
    /// The answer is no JSON of the promised type.
    #[error("could not {what}: the answer is not what the Machines API promises")]
    Answer {
        /// What was attempted.
        what: String,
        /// Where it deviates.
        source: serde_json::Error,
    },
    /// A status without the API's error body: something else answers at that address.
    #[error("could not {what}: status {status} and no error of the Machines API in the answer")]
    Foreign {
        /// What was attempted.
        what: String,
        /// HTTP status.
        status: u16,
    },
    /// An answer or a line that would not end.
    #[error("could not {what}: the answer is longer than {limit_bytes} bytes")]
    TooLong {
        /// What was attempted.
        what: String,
        /// The bound.
        limit_bytes: usize,
    },
    /// The arguments can't be put into an HTTP request.
    #[error("could not {what}: not expressible as a request")]
    Unsendable {
        /// What was attempted.
        what: String,
        /// What is wrong with them.
        source: hyper::http::Error,
    },
    /// The machine went somewhere from where it will not come to the wanted state by itself.
    #[error("machine {machine} did not become {wanted}: it is {seen}{}", because(.message.as_deref()))]
    Astray {
        /// Its id.
        machine: String,
        /// Where it should have gone.
        wanted: MachineState,
        /// Where it is.
        seen: MachineState,
        /// What its last event says.
        message: Option<String>,
    },
    /// The machine did not reach the wanted state in time.
    #[error("machine {machine} did not become {wanted} within {after:?}: it is {seen}")]
    TooSlow {
        /// Its id.
        machine: String,
        /// Where it should have gone.
        wanted: MachineState,
        /// Where it is.
        seen: MachineState,
        /// How long was waited.
        after: Duration,
    },
}

fn because(message: Option<&str>) -> String {
    message
        .map(|message| format!(" ({message})"))
        .unwrap_or_default()
}

/// Kinds of [`Error`], for exit codes and decisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// Nobody listens, or the connection broke.
    Unreachable,
    /// A deadline passed.
    Deadline,
    /// No such machine, key, token…
    NotFound,
    /// Not in this state, or somebody else holds the lease.
    Conflict,
    /// No token, a wrong one, or one of too small a scope.
    Denied,
    /// The request makes no sense to the server.
    Invalid,
    /// The server, or what it drives, failed.
    Failed,
    /// Whoever answers does not speak this API.
    Protocol,
}

impl Error {
    /// What kind of failure it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Connect { .. }
            | Self::Handshake { .. }
            | Self::Broken { .. }
            | Self::Stream { .. } => ErrorKind::Unreachable,
            Self::Deadline { .. } | Self::TooSlow { .. } => ErrorKind::Deadline,
            // The machine is there; what was named in its guest is not.
            Self::Refused { body, .. } if body.status == "not_found_in_guest" => {
                ErrorKind::NotFound
            }
            Self::Refused { status, .. } => match *status {
                401 | 403 => ErrorKind::Denied,
                404 | 410 => ErrorKind::NotFound,
                408 | 504 => ErrorKind::Deadline,
                409 | 412 | 423 => ErrorKind::Conflict,
                400..=499 => ErrorKind::Invalid,
                _ => ErrorKind::Failed,
            },
            Self::Answer { .. } | Self::Foreign { .. } | Self::TooLong { .. } => {
                ErrorKind::Protocol
            }
            Self::Unsendable { .. } | Self::Trust { .. } => ErrorKind::Invalid,
            Self::Astray { .. } | Self::BrokenOff { .. } => ErrorKind::Failed,
        }
    }

    /// What to do about it, as one sentence, where that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Connect {
                endpoint, source, ..
            } => Some(connect_hint(endpoint, source)),
            Self::Handshake { source, .. } => tls::hint(source).map(str::to_owned),
            Self::Trust { .. } => Some(
                "--ca-cert or MCTL_CA_CERT names a file with the certificate to trust".to_owned(),
            ),
            Self::Refused {
                status: 401 | 403,
                body,
                ..
            } => Some(body.hint.clone().unwrap_or_else(|| {
                "give a token of sufficient scope with --token or MCTL_TOKEN".to_owned()
            })),
            Self::Refused { body, .. } => body.hint.clone(),
            Self::Foreign { .. } | Self::Answer { .. } => {
                Some("is the address that of an mctl-supervisor of the same version?".to_owned())
            }
            Self::Astray { machine, .. } => Some(format!(
                "`mctl logs {machine}` and `mctl events {machine}` tell more"
            )),
            Self::Broken { .. } => Some(
                "the supervisor may have been restarted: look at the state, then try again"
                    .to_owned(),
            ),
            Self::TooSlow { machine, .. } => {
                Some(format!("it may still get there: `mctl status {machine}`"))
            }
            Self::Stream { .. } | Self::BrokenOff { .. } => None,
            Self::Deadline { .. } | Self::TooLong { .. } | Self::Unsendable { .. } => None,
        }
    }
}

fn connect_hint(endpoint: &Endpoint, source: &io::Error) -> String {
    match (endpoint, source.kind()) {
        (Endpoint::Unix(_), io::ErrorKind::PermissionDenied) => {
            "the socket belongs to another user or group: run as that user, or ask for group access"
                .to_owned()
        }
        (_, io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            "is mctl-supervisor running? `mctl doctor` looks at this host; --host or MCTL_HOST \
             name another address"
                .to_owned()
        }
        (_, _) => "is the address right? `mctl config` shows where it came from".to_owned(),
    }
}
