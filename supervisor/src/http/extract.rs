//! What handlers take from a request; whatever does not fit becomes one of our errors.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Query, RawPathParams, Request};
use axum::http::request::Parts;
use machine_api::{DEFAULT_APP, LEASE_NONCE_HEADER, TokenScope};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::Api;
use super::body;
use super::error::ApiError;
use super::unsupported;
use crate::duration;
use crate::machine::Handle;
use crate::machine::config::METADATA_CHARACTERS;

/// Deadline for a whole body; files have none of their own.
const BODY_LIMIT: Duration = Duration::from_secs(30);

/// The machine that the path names.
pub(super) struct Target(pub(super) Handle);

impl FromRequestParts<Api> for Target {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        App::from_request_parts(parts, api).await?;
        let id = path_parameter(parts, api, "machine").await?;
        Ok(Self(api.registry.find(&id)?))
    }
}

/// The app that the path names; there is one.
pub(super) struct App;

impl FromRequestParts<Api> for App {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        let app = path_parameter(parts, api, "app").await?;
        if app == DEFAULT_APP {
            Ok(Self)
        } else {
            Err(ApiError::not_found(format!(
                "no app {app:?}; this host has {DEFAULT_APP:?}"
            )))
        }
    }
}

/// The metadata key that the path names.
pub(super) struct Key(pub(super) String);

impl FromRequestParts<Api> for Key {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        let key = path_parameter(parts, api, "key").await?;
        if (1..=METADATA_CHARACTERS).contains(&key.chars().count()) {
            Ok(Self(key))
        } else {
            Err(ApiError::invalid(format!(
                "a metadata key has 1 to {METADATA_CHARACTERS} characters"
            )))
        }
    }
}

async fn path_parameter(parts: &mut Parts, api: &Api, name: &str) -> Result<String, ApiError> {
    let parameters = RawPathParams::from_request_parts(parts, api)
        .await
        .map_err(|_| ApiError::invalid("the path is not valid UTF-8"))?;
    parameters
        .iter()
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value.to_owned())
        .ok_or_else(|| ApiError::invalid(format!("the path lacks {name}")))
}

/// Nonce of the lease that the client holds.
pub(super) struct Nonce(pub(super) Option<String>);

impl FromRequestParts<Api> for Nonce {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Api) -> Result<Self, ApiError> {
        let value = parts.headers.get(LEASE_NONCE_HEADER);
        Ok(Self(
            value
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned),
        ))
    }
}

/// What the request's token, or the socket, allows.
pub(super) struct Scope(pub(super) TokenScope);

impl FromRequestParts<Api> for Scope {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Api) -> Result<Self, ApiError> {
        let scope = parts.extensions.get::<TokenScope>().copied();
        Ok(Self(scope.unwrap_or(TokenScope::Read)))
    }
}

/// The query string.
pub(super) struct Params<T>(pub(super) T);

impl<T: DeserializeOwned + Send> FromRequestParts<Api> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        match Query::<T>::from_request_parts(parts, api).await {
            Ok(Query(value)) => Ok(Self(value)),
            Err(rejection) => Err(ApiError::invalid(rejection.body_text())),
        }
    }
}

/// The query string as pairs, for names that come more than once.
pub(super) struct PairParams(pub(super) Vec<(String, String)>);

impl FromRequestParts<Api> for PairParams {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        let Params(pairs) = Params::from_request_parts(parts, api).await?;
        Ok(Self(pairs))
    }
}

/// A JSON body that must be there.
pub(super) struct JsonBody<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Api> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request<Body>, api: &Api) -> Result<Self, ApiError> {
        parse(&read(request, api).await?).map(Self)
    }
}

/// A JSON body with a machine's configuration, all of which is honoured.
pub(super) struct ConfiguredBody<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Api> for ConfiguredBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request<Body>, api: &Api) -> Result<Self, ApiError> {
        let bytes = read(request, api).await?;
        let whole = parse(&bytes)?;
        unsupported::check(&serde_json::from_slice(&bytes).unwrap_or_default())?;
        Ok(Self(whole))
    }
}

/// A JSON body that may be missing.
pub(super) struct OptionalBody<T>(pub(super) T);

impl<T: DeserializeOwned + Default> FromRequest<Api> for OptionalBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request<Body>, api: &Api) -> Result<Self, ApiError> {
        let bytes = read(request, api).await?;
        if matches!(bytes.trim_ascii(), b"" | b"null") {
            Ok(Self(T::default()))
        } else {
            parse(&bytes).map(Self)
        }
    }
}

async fn read<S: Send + Sync>(request: Request<Body>, state: &S) -> Result<Bytes, ApiError> {
    match timeout(BODY_LIMIT, Bytes::from_request(request, state)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(_)) => Err(ApiError::too_large()),
        Err(_) => Err(ApiError::too_slow()),
    }
}

/// The content type is not looked at: clients of that API do not always send one.
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    body::read(bytes)
        .map_err(|error| ApiError::invalid(format!("the body is not what is expected: {error}")))
}

/// A duration of a query, such as `60`, `1.5` or `60s`.
pub(super) fn seconds(text: &str) -> Result<Duration, ApiError> {
    duration::parse(text).map_err(|error| ApiError::invalid(error.to_string()))
}

/// A switch of a query: `true`, `1` or nothing after the name.
pub(super) fn is_set(text: Option<&str>) -> Result<bool, ApiError> {
    match text {
        None | Some("false" | "0") => Ok(false),
        Some("true" | "1" | "") => Ok(true),
        Some(other) => Err(ApiError::invalid(format!(
            "{other:?} is neither true nor false"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use axum::response::IntoResponse;
    use futures_util::stream;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_is_given_up() {
        let never = stream::pending::<Result<Bytes, std::io::Error>>();
        let begun = tokio::time::Instant::now();
        let error = read(Request::new(Body::from_stream(never)), &()).await;
        let status = error.unwrap_err().into_response().status();
        assert_eq!(
            (status, begun.elapsed()),
            (StatusCode::REQUEST_TIMEOUT, BODY_LIMIT)
        );
    }
}
