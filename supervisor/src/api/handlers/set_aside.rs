//! `/v1/set-aside`: images that no resume uses any more.

use axum::Json;
use axum::extract::State;
use machine_api::{ErrorBody, ImageSetAside, Ok as Done};

use crate::api::Api;
use crate::api::error::ApiError;
use crate::api::request::extract::{Generation, Target};
use crate::disk_usage;
use crate::machine::MachineError;
use crate::machine_folder::{images_set_aside, remove_set_aside};

/// Lists images that were set aside.
#[utoipa::path(get, operation_id = "SetAside_list", path = "/v1/set-aside", tag = "set-aside",
    responses((status = 200, body = Vec<ImageSetAside>), (status = "default", body = ErrorBody)))]
pub(crate) async fn list(State(api): State<Api>) -> Result<Json<Vec<ImageSetAside>>, ApiError> {
    let looked = tokio::task::spawn_blocking(move || collect(&api)).await;
    let found = looked.map_err(|_| MachineError::ShuttingDown)?;
    found.map(Json).map_err(|source| {
        let what = "look for images that were set aside";
        MachineError::Files { what, source }.into()
    })
}

fn collect(api: &Api) -> std::io::Result<Vec<ImageSetAside>> {
    let state_dir = &api.registry.context().configuration.state_dir;
    let mut all = Vec::new();
    for handle in api.registry.all() {
        for (generation, path) in images_set_aside(&state_dir.machine(handle.id()))? {
            all.push(ImageSetAside {
                machine_id: handle.id().to_owned(),
                generation,
                bytes: disk_usage::of_folder(&path)?.bytes,
                path: path.display().to_string(),
            });
        }
    }
    Ok(all)
}

/// Removes an image that was set aside.
#[utoipa::path(delete, operation_id = "SetAside_remove", path = "/v1/apps/{app}/machines/{machine}/set-aside/{generation}", tag = "set-aside",
    params(("app" = String, Path), ("machine" = String, Path), ("generation" = u64, Path)),
    responses((status = 200, body = Done), (status = "default", body = ErrorBody)))]
pub(crate) async fn remove(
    State(api): State<Api>,
    Target(handle): Target,
    Generation(generation): Generation,
) -> Result<Json<Done>, ApiError> {
    let state_dir = &api.registry.context().configuration.state_dir;
    let dir = state_dir.machine(handle.id());
    let removed = tokio::task::spawn_blocking(move || remove_set_aside(&dir, generation)).await;
    let removed = removed.map_err(|_| MachineError::ShuttingDown)?;
    match removed {
        Ok(true) => Ok(Json(Done { ok: true })),
        Ok(false) => Err(ApiError::not_found(format!(
            "machine {} has no image of generation {generation} that was set aside",
            handle.id()
        ))),
        Err(source) => {
            let what = "remove the image";
            Err(MachineError::Files { what, source }.into())
        }
    }
}
