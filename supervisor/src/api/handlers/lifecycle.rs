//! Transitions on request.

use std::collections::HashMap;

use axum::Json;
use machine_api::{ErrorBody, MachineState, Ok as Done, StartResponse, StopRequest};

use crate::api::error::ApiError;
use crate::api::request::extract::{Nonce, OptionalBody, Params, Target, is_set};
use crate::machine::request::{Command, LeaseCheck, Until};
use crate::machine::{Handle, MachineError};
use crate::model::graceful_stop::GracefulStop;

type Query = Params<HashMap<String, String>>;

fn until(query: &HashMap<String, String>) -> Result<Until, ApiError> {
    let wait = is_set(query.get("wait").map(String::as_str))?;
    Ok(if wait {
        Until::Completed
    } else {
        Until::Admitted
    })
}

fn graceful_stop(handle: &Handle, request: &StopRequest) -> Result<GracefulStop, ApiError> {
    let view = handle.view();
    let config = view.config.stop_config.as_ref();
    GracefulStop::resolve(
        request.signal.as_deref(),
        request.timeout.as_deref(),
        config,
    )
    .map_err(ApiError::invalid)
}

/// Starts or resumes a machine; `wait=true` answers when it is started. *Extension*: with `cold=true` a
/// suspended machine boots; the image that it had is set aside.
#[utoipa::path(post, operation_id = "Machines_start", path = "/v1/apps/{app}/machines/{machine}/start", tag = "lifecycle",
    params(("app" = String, Path), ("machine" = String, Path), ("wait" = Option<bool>, Query), ("cold" = Option<bool>, Query)),
    responses((status = 200, body = StartResponse), (status = "default", body = ErrorBody)))]
pub(crate) async fn start(
    Target(handle): Target,
    Nonce(nonce): Nonce,
    Params(query): Query,
) -> Result<Json<StartResponse>, ApiError> {
    let cold = is_set(query.get("cold").map(String::as_str))?;
    let granted = handle
        .request(Command::Start { cold }, until(&query)?, nonce)
        .await?;
    Ok(Json(StartResponse {
        previous_state: granted.previous_state,
        migrated: false,
        new_host: String::new(),
        start: granted.start,
    }))
}

/// Stops a machine.
#[utoipa::path(post, operation_id = "Machines_stop", path = "/v1/apps/{app}/machines/{machine}/stop", tag = "lifecycle",
    params(("app" = String, Path), ("machine" = String, Path), ("wait" = Option<bool>, Query)),
    request_body = Option<StopRequest>,
    responses((status = 200, body = Done), (status = "default", body = ErrorBody)))]
pub(crate) async fn stop(
    Target(handle): Target,
    Nonce(nonce): Nonce,
    Params(query): Query,
    OptionalBody(request): OptionalBody<StopRequest>,
) -> Result<Json<Done>, ApiError> {
    let stop = graceful_stop(&handle, &request)?;
    handle
        .request(Command::Stop(stop), until(&query)?, nonce)
        .await?;
    Ok(Json(Done { ok: true }))
}

/// Suspends a machine.
#[utoipa::path(post, operation_id = "Machines_suspend", path = "/v1/apps/{app}/machines/{machine}/suspend", tag = "lifecycle",
    params(("app" = String, Path), ("machine" = String, Path), ("wait" = Option<bool>, Query)),
    responses((status = 200, body = Done), (status = "default", body = ErrorBody)))]
pub(crate) async fn suspend(
    Target(handle): Target,
    Nonce(nonce): Nonce,
    Params(query): Query,
) -> Result<Json<Done>, ApiError> {
    handle
        .request(Command::Suspend, until(&query)?, nonce)
        .await?;
    Ok(Json(Done { ok: true }))
}

/// Stops and starts a machine; `force_stop=true` does not ask the guest.
#[utoipa::path(post, operation_id = "Machines_restart", path = "/v1/apps/{app}/machines/{machine}/restart", tag = "lifecycle",
    params(("app" = String, Path), ("machine" = String, Path), ("wait" = Option<bool>, Query),
        ("signal" = Option<String>, Query), ("timeout" = Option<String>, Query),
        ("force_stop" = Option<bool>, Query)),
    responses((status = 200, body = Done), (status = "default", body = ErrorBody)))]
pub(crate) async fn restart(
    Target(handle): Target,
    Nonce(nonce): Nonce,
    Params(query): Query,
) -> Result<Json<Done>, ApiError> {
    let request = StopRequest {
        signal: query.get("signal").cloned(),
        timeout: query.get("timeout").cloned(),
    };
    let stop = graceful_stop(&handle, &request)?;
    let force = is_set(query.get("force_stop").map(String::as_str))?;
    handle
        .request(Command::Restart { stop, force }, until(&query)?, nonce)
        .await?;
    Ok(Json(Done { ok: true }))
}

/// Excludes a machine from new connections.
#[utoipa::path(post, operation_id = "Machines_cordon", path = "/v1/apps/{app}/machines/{machine}/cordon", tag = "lifecycle",
    params(("app" = String, Path), ("machine" = String, Path)),
    responses((status = 200, body = Done), (status = "default", body = ErrorBody)))]
pub(crate) async fn cordon(
    Target(handle): Target,
    Nonce(nonce): Nonce,
) -> Result<Json<Done>, ApiError> {
    set_cordoned(&handle, nonce, true).await?;
    Ok(Json(Done { ok: true }))
}

/// Lets a machine have new connections again.
#[utoipa::path(post, operation_id = "Machines_uncordon", path = "/v1/apps/{app}/machines/{machine}/uncordon", tag = "lifecycle",
    params(("app" = String, Path), ("machine" = String, Path)),
    responses((status = 200, body = Done), (status = "default", body = ErrorBody)))]
pub(crate) async fn uncordon(
    Target(handle): Target,
    Nonce(nonce): Nonce,
) -> Result<Json<Done>, ApiError> {
    set_cordoned(&handle, nonce, false).await?;
    Ok(Json(Done { ok: true }))
}

/// Excludes a machine from new connections, or ends that.
async fn set_cordoned(
    handle: &Handle,
    nonce: Option<String>,
    cordoned: bool,
) -> Result<(), ApiError> {
    if handle.view().state == MachineState::Destroyed {
        return Err(MachineError::NotFound(handle.id().to_owned()).into());
    }
    let edited = handle.edit(LeaseCheck::Nonce(nonce), move |record| {
        record.facts.cordoned = cordoned;
        Ok(((), None))
    });
    Ok(edited.await?)
}
