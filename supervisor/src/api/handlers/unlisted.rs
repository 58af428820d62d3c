//! `/v1/unlisted`: machines that the database does not know.

use axum::Json;
use axum::extract::State;
use machine_api::{AdoptMachine, ErrorBody, Machine, Ok as Done, UnlistedMachine};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::api::Api;
use crate::api::error::ApiError;
use crate::api::request::extract::{Folder, JsonBody, Params};
use crate::machine::MachineError;

/// Lists machines that the database does not know.
#[utoipa::path(get, operation_id = "Unlisted_list", path = "/v1/unlisted", tag = "unlisted",
    responses((status = 200, body = Vec<UnlistedMachine>), (status = "default", body = ErrorBody)))]
pub(crate) async fn list(State(api): State<Api>) -> Result<Json<Vec<UnlistedMachine>>, ApiError> {
    let looked = tokio::task::spawn_blocking(move || api.registry.unlisted()).await;
    let found = looked.map_err(|_| MachineError::ShuttingDown)?;
    found.map(Json).map_err(|source| {
        let what = "look for machines that the database does not know";
        MachineError::Files { what, source }.into()
    })
}

/// Takes a machine back from what its folder says.
#[utoipa::path(post, operation_id = "Unlisted_adopt", path = "/v1/unlisted/{folder}/adopt", tag = "unlisted",
    params(("folder" = String, Path)), request_body = AdoptMachine,
    responses((status = 200, body = Machine), (status = "default", body = ErrorBody)))]
pub(crate) async fn adopt(
    State(api): State<Api>,
    Folder(folder): Folder,
    JsonBody(request): JsonBody<AdoptMachine>,
) -> Result<Json<Machine>, ApiError> {
    let handle = api.registry.take_back(&folder, request.name).await?;
    Ok(Json(Machine::clone(&handle.view())))
}

/// How an unlisted machine is removed.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub(crate) struct RemoveParams {
    /// Remove it even if its VMM runs, which is killed.
    force: bool,
}

/// Removes a machine that the database does not know, with all that it has.
#[utoipa::path(delete, operation_id = "Unlisted_remove", path = "/v1/unlisted/{folder}", tag = "unlisted",
    params(("folder" = String, Path), RemoveParams),
    responses((status = 200, body = Done), (status = "default", body = ErrorBody)))]
pub(crate) async fn remove(
    State(api): State<Api>,
    Folder(folder): Folder,
    Params(params): Params<RemoveParams>,
) -> Result<Json<Done>, ApiError> {
    api.registry.remove_unlisted(&folder, params.force).await?;
    Ok(Json(Done { ok: true }))
}
