//! Errors as HTTP answers: which status and code each one has.

use axum::Json;
use axum::http::header::{UPGRADE, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use guest_protocol::RefusalKind;
use machine_api::ErrorBody;

use crate::error_chain::error_chain;
use crate::exhaustion;
use crate::guest::GuestError;
use crate::images::ImageError;
use crate::machine::MachineError;
use crate::store::StoreError;

/// An answer that is not a success.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    body: ErrorBody,
}

impl ApiError {
    fn new(status: StatusCode, code: &str, message: String) -> Self {
        let body = ErrorBody {
            error: message,
            status: code.to_owned(),
            ..ErrorBody::default()
        };
        Self { status, body }
    }

    /// The same error, about a part of `whole`.
    pub(crate) fn about(mut self, whole: &str) -> Self {
        self.body.error = format!("{whole}: {}", self.body.error);
        self
    }

    /// What is said to people.
    pub(crate) fn message(&self) -> &str {
        &self.body.error
    }

    fn hint(mut self, hint: &str) -> Self {
        self.body.hint = Some(hint.to_owned());
        self
    }

    fn detail(mut self, key: &str, value: impl ToString) -> Self {
        self.body.details.insert(key.to_owned(), value.to_string());
        self
    }

    /// The request is invalid.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_argument", message.into())
    }

    /// The parts of the request contradict each other.
    pub(crate) fn contradictory(message: impl Into<String>) -> Self {
        Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "contradictory",
            message.into(),
        )
    }

    /// The body is larger than accepted.
    pub(crate) fn too_large() -> Self {
        let message = "the request's body is too large".to_owned();
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
    }

    /// The body did not arrive in time.
    pub(crate) fn too_slow() -> Self {
        let message = "the request's body did not arrive in time".to_owned();
        Self::new(StatusCode::REQUEST_TIMEOUT, "too_slow", message)
    }

    /// The path is a WebSocket, and the request is not an upgrade.
    pub(crate) fn no_upgrade(problem: &str) -> Self {
        let message = format!("this path is a WebSocket: {problem}");
        Self::new(StatusCode::UPGRADE_REQUIRED, "upgrade_required", message)
    }

    /// What the path names does not exist.
    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message.into())
    }

    /// No token, or not a valid one.
    pub(crate) fn unauthorized() -> Self {
        let message = "a valid bearer token is needed".to_owned();
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
            .hint("make one with `mctl token create` on the host and set MCTL_TOKEN")
    }

    /// The token does not allow it.
    pub(crate) fn forbidden() -> Self {
        let message = "this token only allows reading".to_owned();
        Self::new(StatusCode::FORBIDDEN, "forbidden", message)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body)).into_response();
        let offered = match self.status {
            StatusCode::UNAUTHORIZED => Some((WWW_AUTHENTICATE, "Bearer")),
            StatusCode::UPGRADE_REQUIRED => Some((UPGRADE, "websocket")),
            _ => None,
        };
        if let Some((header, value)) = offered {
            response
                .headers_mut()
                .insert(header, HeaderValue::from_static(value));
        }
        response
    }
}

/// For unknown paths.
pub(crate) async fn no_such_path() -> ApiError {
    ApiError::not_found("no such path")
}

/// For known paths with another method.
pub(crate) async fn no_such_method() -> ApiError {
    let message = "this path does not have that method".to_owned();
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        message,
    )
}

impl From<MachineError> for ApiError {
    fn from(error: MachineError) -> Self {
        use MachineError as E;
        use StatusCode as S;
        let message = error_chain(&error);
        let plain = |status, code: &str| Self::new(status, code, message.clone());
        match &error {
            E::Image(_) | E::Files { .. } if exhaustion::is_passing(&error) => {
                plain(S::SERVICE_UNAVAILABLE, "exhausted")
            }
            E::NotFound(_) => {
                plain(S::NOT_FOUND, "not_found").hint("`mctl list` shows all machines")
            }
            E::NameTaken(_) => plain(S::CONFLICT, "name_taken"),
            E::Disk(_) => plain(S::CONFLICT, "disk").hint(
                "a disk has one writer; that of a suspended machine is free once that is stopped",
            ),
            E::Refused { state, .. } => {
                plain(S::PRECONDITION_FAILED, "wrong_state").detail("state", state)
            }
            E::LeaseHeld { expires_at_s, .. } => {
                plain(S::CONFLICT, "lease_held").detail("expires_at", expires_at_s)
            }
            E::NoLease(_) => plain(S::NOT_FOUND, "no_lease"),
            E::Failed { state, .. } => plain(S::CONFLICT, "failed").detail("state", state),
            E::WaitDeadline { state, .. } => {
                plain(S::REQUEST_TIMEOUT, "deadline_exceeded").detail("state", state)
            }
            E::Config(invalid) if invalid.absent => {
                plain(S::UNPROCESSABLE_ENTITY, "volume_missing")
            }
            E::Config(_) | E::Invalid(_) => plain(S::BAD_REQUEST, "invalid_argument"),
            E::Image(error) => image(error, message),
            E::Store(error) => store(error, message),
            E::Guest { source, .. } => guest(source, message),
            E::TooManyWait { .. } => plain(S::TOO_MANY_REQUESTS, "too_many")
                .hint("wait for the machine with `GET …/wait`, or ask again later"),
            E::GuestDeadline { .. } => plain(S::REQUEST_TIMEOUT, "deadline_exceeded"),
            E::Files { .. } => {
                tracing::error!(error = message, "files of a machine");
                plain(S::INSUFFICIENT_STORAGE, "files")
            }
            E::OtherVersion { found, .. } => {
                plain(S::PRECONDITION_FAILED, "other_version").detail("version", found)
            }
            E::GuestProtocol { theirs } => {
                plain(S::CONFLICT, "other_release").detail("protocol", theirs)
            }
            E::NotUnlisted(_) => {
                plain(S::NOT_FOUND, "not_found").hint("`mctl adopt` shows those that there are")
            }
            E::NotDescribed { .. } => plain(S::UNPROCESSABLE_ENTITY, "not_described"),
            E::UnlistedRuns(_) => plain(S::PRECONDITION_FAILED, "wrong_state")
                .hint("take it back with `mctl adopt`, or remove it with --force, which kills it"),
            E::ShuttingDown => plain(S::SERVICE_UNAVAILABLE, "shutting_down"),
        }
    }
}

fn image(error: &ImageError, message: String) -> ApiError {
    match error {
        ImageError::Name { .. } => ApiError::invalid(message),
        ImageError::Missing { .. } => {
            ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "image_missing", message)
                .hint("`mctl doctor` says how to build the default image")
        }
        ImageError::Read { .. }
        | ImageError::Description { .. }
        | ImageError::Digest { .. }
        | ImageError::Schema { .. } => {
            ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "image_unusable", message)
        }
    }
}

fn store(error: &StoreError, message: String) -> ApiError {
    tracing::error!(error = message, "database");
    match error {
        StoreError::Unwritable { .. } => {
            ApiError::new(StatusCode::INSUFFICIENT_STORAGE, "no_space", message)
        }
        StoreError::Exists { .. } => ApiError::new(StatusCode::CONFLICT, "exists", message),
        StoreError::Sqlite { .. } => {
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "database", message)
        }
        StoreError::Closed { .. } => {
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", message)
        }
    }
}

fn guest(error: &GuestError, message: String) -> ApiError {
    let unusable = StatusCode::UNPROCESSABLE_ENTITY;
    match error {
        GuestError::Refused(refusal) => match refusal.kind {
            RefusalKind::NotFound => ApiError::new(unusable, "not_found_in_guest", message),
            RefusalKind::Invalid => ApiError::new(unusable, "invalid_in_guest", message),
            RefusalKind::Conflict => ApiError::new(StatusCode::CONFLICT, "conflict", message),
            RefusalKind::Failed | RefusalKind::Version | RefusalKind::StaleGeneration => {
                ApiError::new(unusable, "failed_in_guest", message)
            }
        },
        GuestError::TooMany { what, most } => {
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, "too_many", message)
                .hint(
                    "end some of them or try again later; mctl-supervisor's --guest-execs is the \
                     number of commands",
                )
                .detail(what, most)
        }
        GuestError::Dial(_)
        | GuestError::Reset { .. }
        | GuestError::NoReply { .. }
        | GuestError::Closed { .. }
        | GuestError::Frame(_)
        | GuestError::BadReply { .. } => {
            ApiError::new(StatusCode::BAD_GATEWAY, "guest_unreachable", message)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use rustix::io::Errno;

    use super::*;

    #[test]
    fn a_host_without_descriptors_is_not_taken_for_an_image_that_cannot_be_used() {
        let answer = |source: io::Error| {
            let path = "/images/default/image.json".into();
            ApiError::from(MachineError::Image(ImageError::Read { path, source }))
        };
        let passing = answer(Errno::MFILE.into());
        assert_eq!(passing.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(passing.body.status, "exhausted");
        assert!(passing.message().contains("LimitNOFILE"), "{passing:?}");
        let damaged = answer(Errno::IO.into());
        assert_eq!(damaged.status, StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(damaged.body.status, "image_unusable");
    }
}
