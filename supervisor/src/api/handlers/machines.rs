//! `/machines` and `/machines/{machine}`.

use std::collections::HashMap;

use axum::Json;
use axum::extract::State;
use machine_api::{CreateMachine, ErrorBody, Machine, MachineState, Ok as Done, UpdateMachine};

use crate::api::Api;
use crate::api::error::ApiError;
use crate::api::handlers::lease;
use crate::api::request::extract::{App, ConfiguredBody, Nonce, Params, Target, is_set};
use crate::api::request::normalise::normalise;
use crate::machine::MachineError;
use crate::machine::request::{Command, Until, Update};
use crate::model::config_check;

/// Creates a machine and starts it, unless `skip_launch`.
#[utoipa::path(post, operation_id = "Machines_create", path = "/v1/apps/{app}/machines", tag = "machines",
    params(("app" = String, Path)), request_body = CreateMachine,
    responses((status = 200, body = Machine), (status = "default", body = ErrorBody)))]
pub(crate) async fn create(
    _: App,
    State(api): State<Api>,
    ConfiguredBody(mut request): ConfiguredBody<CreateMachine>,
) -> Result<Json<Machine>, ApiError> {
    normalise(&mut request.config)?;
    let lease = lease::requested(request.lease_ttl, None)?;
    let starts = !request.skip_launch;
    let (handle, nonce) = api
        .registry
        .create(machine_api::DEFAULT_APP, request, lease)
        .await?;
    if starts {
        // Its driver starts it in any case; this answers once that has begun, or says why it does not.
        handle
            .request(
                Command::Start { cold: false },
                Until::Admitted,
                nonce.clone(),
            )
            .await?;
    }
    Ok(Json(Machine {
        nonce,
        ..Machine::clone(&handle.view())
    }))
}

/// Lists machines. `state`, `metadata.KEY`, `region` and `include_deleted` filter.
#[utoipa::path(get, operation_id = "Machines_list", path = "/v1/apps/{app}/machines", tag = "machines",
    params(("app" = String, Path), ("state" = Option<String>, Query),
        ("include_deleted" = Option<bool>, Query), ("region" = Option<String>, Query)),
    responses((status = 200, body = Vec<Machine>), (status = "default", body = ErrorBody)))]
pub(crate) async fn list(
    _: App,
    State(api): State<Api>,
    Params(query): Params<HashMap<String, String>>,
) -> Result<Json<Vec<Machine>>, ApiError> {
    let deleted = is_set(query.get("include_deleted").map(String::as_str))?;
    let states = states(query.get("state").map_or("", String::as_str))?;
    let wanted = |machine: &Machine| {
        let state = if states.is_empty() {
            deleted || machine.state != MachineState::Destroyed
        } else {
            states.contains(&machine.state)
        };
        let metadata = query.iter().all(|(key, value)| {
            key.strip_prefix("metadata.").is_none_or(|key| {
                machine
                    .config
                    .metadata
                    .get(key)
                    .is_some_and(|found| found == value)
            })
        });
        let region = query
            .get("region")
            .is_none_or(|region| *region == machine.region);
        state && metadata && region
    };
    let views = api.registry.all().into_iter().map(|handle| handle.view());
    let mut found: Vec<Machine> = views
        .filter(|view| wanted(view))
        .map(|view| Machine::clone(&view))
        .collect();
    found.sort_by(|a, b| (&a.created_at, &a.id).cmp(&(&b.created_at, &b.id)));
    Ok(Json(found))
}

fn states(text: &str) -> Result<Vec<MachineState>, ApiError> {
    text.split(',')
        .filter(|name| !name.is_empty())
        .map(|name| state(name).ok_or_else(|| ApiError::invalid(format!("no state {name:?}"))))
        .collect()
}

/// The state of that name.
pub(crate) fn state(name: &str) -> Option<MachineState> {
    MachineState::ALL
        .into_iter()
        .find(|state| state.name() == name)
}

/// Shows a machine.
#[utoipa::path(get, operation_id = "Machines_show", path = "/v1/apps/{app}/machines/{machine}", tag = "machines",
    params(("app" = String, Path), ("machine" = String, Path)),
    responses((status = 200, body = Machine), (status = "default", body = ErrorBody)))]
pub(crate) async fn show(Target(handle): Target) -> Json<Machine> {
    Json(Machine::clone(&handle.view()))
}

/// Gives a machine a new version.
#[utoipa::path(post, operation_id = "Machines_update", path = "/v1/apps/{app}/machines/{machine}", tag = "machines",
    params(("app" = String, Path), ("machine" = String, Path)), request_body = UpdateMachine,
    responses((status = 200, body = Machine), (status = "default", body = ErrorBody)))]
pub(crate) async fn update(
    State(api): State<Api>,
    Target(handle): Target,
    Nonce(nonce): Nonce,
    ConfiguredBody(mut request): ConfiguredBody<UpdateMachine>,
) -> Result<Json<Machine>, ApiError> {
    normalise(&mut request.config)?;
    config_check::check(&request.config).map_err(MachineError::from)?;
    if let Some(name) = &request.name {
        api.registry.check_name(name, Some(handle.id()))?;
    }
    let lease = lease::requested(request.lease_ttl, nonce.clone())?;
    let leases = lease.is_some();
    let update = Update {
        config: request.config,
        name: request.name,
        current_version: request.current_version,
        skip_launch: request.skip_launch,
        lease,
        cordon: request.skip_service_registration,
    };
    handle
        .request(Command::Update(Box::new(update)), Until::Admitted, nonce)
        .await?;
    let nonce = match leases {
        true => lease::nonce_of(&handle).await?,
        false => None,
    };
    Ok(Json(Machine {
        nonce,
        ..Machine::clone(&handle.view())
    }))
}

/// Removes a machine; with `force` or `kill`, which mean the same, even while it runs.
#[utoipa::path(delete, operation_id = "Machines_destroy", path = "/v1/apps/{app}/machines/{machine}", tag = "machines",
    params(("app" = String, Path), ("machine" = String, Path), ("force" = Option<bool>, Query),
        ("kill" = Option<bool>, Query)),
    responses((status = 200, body = Done), (status = "default", body = ErrorBody)))]
pub(crate) async fn destroy(
    Target(handle): Target,
    Nonce(nonce): Nonce,
    Params(query): Params<HashMap<String, String>>,
) -> Result<Json<Done>, ApiError> {
    let set = |name: &str| is_set(query.get(name).map(String::as_str));
    let force = set("force")? | set("kill")?;
    handle
        .request(Command::Destroy { force }, Until::Completed, nonce)
        .await?;
    Ok(Json(Done { ok: true }))
}
