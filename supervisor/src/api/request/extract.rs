//! What handlers take from a request. Anything invalid becomes one of our errors.

use std::collections::HashMap;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Query, RawPathParams, Request};
use axum::http::request::Parts;
use machine_api::{DEFAULT_APP, LEASE_NONCE_HEADER, TokenScope};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::api::Api;
use crate::api::error::ApiError;
use crate::api::request::body;
use crate::api::request::unsupported;
use crate::clock;
use crate::duration;
use crate::machine::Handle;
use crate::model::config_check::METADATA_CHARACTERS;

/// Rows of a listing if the query names no number, and the most.
const ROWS: u32 = 100;
pub(crate) const ROWS_MOST: u32 = 5_000;
/// Deadline for a whole body, files excepted.
const BODY_LIMIT: Duration = Duration::from_secs(30);

/// The machine that the path names.
pub(crate) struct Target(pub(crate) Handle);

impl FromRequestParts<Api> for Target {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        App::from_request_parts(parts, api).await?;
        let id = path_parameter(parts, api, "machine").await?;
        Ok(Self(api.registry.find(&id)?))
    }
}

/// The app that the path names. A host has one.
pub(crate) struct App;

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

/// The generation of an image that the path names.
pub(crate) struct Generation(pub(crate) u64);

impl FromRequestParts<Api> for Generation {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        let text = path_parameter(parts, api, "generation").await?;
        text.parse()
            .map(Self)
            .map_err(|_| ApiError::invalid(format!("{text:?} is not a generation")))
    }
}

/// The folder of an unlisted machine that the path names.
pub(crate) struct Folder(pub(crate) String);

impl FromRequestParts<Api> for Folder {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        path_parameter(parts, api, "folder").await.map(Self)
    }
}

/// The metadata key that the path names.
pub(crate) struct Key(pub(crate) String);

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
pub(crate) struct Nonce(pub(crate) Option<String>);

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
pub(crate) struct Scope(pub(crate) TokenScope);

impl FromRequestParts<Api> for Scope {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Api) -> Result<Self, ApiError> {
        let scope = parts.extensions.get::<TokenScope>().copied();
        Ok(Self(scope.unwrap_or(TokenScope::Read)))
    }
}

/// The query string.
pub(crate) struct Params<T>(pub(crate) T);

impl<T: DeserializeOwned + Send> FromRequestParts<Api> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        match Query::<T>::from_request_parts(parts, api).await {
            Ok(Query(value)) => Ok(Self(value)),
            Err(rejection) => Err(ApiError::invalid(rejection.body_text())),
        }
    }
}

/// The query string as pairs, for names that are given more than once.
pub(crate) struct PairParams(pub(crate) Vec<(String, String)>);

impl FromRequestParts<Api> for PairParams {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        let Params(pairs) = Params::from_request_parts(parts, api).await?;
        Ok(Self(pairs))
    }
}

/// A JSON body.
pub(crate) struct JsonBody<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<Api> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request<Body>, api: &Api) -> Result<Self, ApiError> {
        parse(&read(request, api).await?).map(Self)
    }
}

/// A JSON body with a machine's configuration, of which all fields can be honoured.
pub(crate) struct ConfiguredBody<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<Api> for ConfiguredBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request<Body>, api: &Api) -> Result<Self, ApiError> {
        configured(&read(request, api).await?).map(Self)
    }
}

/// A JSON body that may be absent.
pub(crate) struct OptionalBody<T>(pub(crate) T);

impl<T: DeserializeOwned + Default> FromRequest<Api> for OptionalBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request<Body>, api: &Api) -> Result<Self, ApiError> {
        optional(&read(request, api).await?).map(Self)
    }
}

async fn read<S: Send + Sync>(request: Request<Body>, state: &S) -> Result<Bytes, ApiError> {
    match timeout(BODY_LIMIT, Bytes::from_request(request, state)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(_)) => Err(ApiError::too_large()),
        Err(_) => Err(ApiError::too_slow()),
    }
}

/// Reads a body with a machine's configuration.
pub(crate) fn configured<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let whole = parse(bytes)?;
    unsupported::check(&serde_json::from_slice(bytes).unwrap_or_default())?;
    Ok(whole)
}

/// Reads a body that may be absent.
pub(crate) fn optional<T: DeserializeOwned + Default>(bytes: &[u8]) -> Result<T, ApiError> {
    match bytes.trim_ascii() {
        b"" | b"null" => Ok(T::default()),
        _ => parse(bytes),
    }
}

/// The content type is ignored: clients of the Fly Machines API do not always send one.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    body::read(bytes).map_err(|error| ApiError::invalid(format!("the body is invalid: {error}")))
}

/// The number of rows that a query asks for.
pub(crate) fn limit(query: &HashMap<String, String>) -> Result<u32, ApiError> {
    let limit = query
        .get("limit")
        .map(|text| text.parse::<u32>())
        .transpose();
    let limit = limit.map_err(|_| ApiError::invalid("limit: a number is needed"))?;
    Ok(limit.unwrap_or(ROWS).min(ROWS_MOST))
}

/// A duration of a query, such as `60`, `1.5` or `60s`.
pub(crate) fn seconds(text: &str) -> Result<Duration, ApiError> {
    duration::parse(text).map_err(|error| ApiError::invalid(error.to_string()))
}

/// A point in time of a query, RFC 3339, in the one form that our own times have: those sort as text.
pub(crate) fn moment(text: &str) -> Result<String, ApiError> {
    let time: jiff::Timestamp = text.parse().map_err(|_| {
        ApiError::invalid(format!(
            "{text:?} is no point in time such as 2026-01-31T12:00:00Z"
        ))
    })?;
    // Before 1970 there is nothing of ours.
    Ok(clock::rfc3339(
        u64::try_from(time.as_nanosecond()).unwrap_or(0),
    ))
}

/// A switch of a query: `true`, `1`, `false` or `0`. Nothing after the name is refused, as by Go's
/// `strconv.ParseBool`, with which the Fly Machines API reads it.
pub(crate) fn is_set(text: Option<&str>) -> Result<bool, ApiError> {
    match text {
        None | Some("false" | "0") => Ok(false),
        Some("true" | "1") => Ok(true),
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

    #[test]
    fn a_point_in_time_has_one_form_however_it_is_written() {
        for (written, form) in [
            ("2026-11-27T20:29:13.22955Z", "2026-11-27T20:29:13.229550Z"),
            ("2026-11-27T20:29:13Z", "2026-11-27T20:29:13.000000Z"),
            ("2026-11-27T22:29:13.1+02:00", "2026-11-27T20:29:13.100000Z"),
            (
                "2026-11-27T20:29:13.2295509Z",
                "2026-11-27T20:29:13.229550Z",
            ),
            ("1969-12-31T23:59:59Z", "1970-01-01T00:00:00.000000Z"),
        ] {
            assert_eq!(moment(written).unwrap(), form);
        }
        for written in [
            "",
            "10m",
            "2026-11-27",
            "2026-13-01T00:00:00Z",
            "1795811353",
        ] {
            assert!(moment(written).is_err(), "{written}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_arrive_is_given_up() {
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
