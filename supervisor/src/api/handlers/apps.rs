//! Apps: a host has one, which holds all of its machines.

use std::collections::HashMap;

use axum::Json;
use axum::extract::State;
use machine_api::{
    App as Shown, AppList, AppOrganization, DEFAULT_APP, ErrorBody, ListedApp, MachineState,
};

use crate::api::Api;
use crate::api::error::ApiError;
use crate::api::request::extract::{App, Params};

/// Slug and name of the one organization, and the name of the one network.
const LOCAL: &str = "local";

fn machine_count(api: &Api) -> u64 {
    let machines = api.registry.all();
    let exists = |state| state != MachineState::Destroyed;
    let count = machines.iter().filter(|handle| exists(handle.view().state));
    count.count() as u64
}

/// Lists apps; `org_slug` and `app_role` are ignored.
#[utoipa::path(get, operation_id = "Apps_list", path = "/v1/apps", tag = "apps",
    params(("org_slug" = Option<String>, Query), ("app_role" = Option<String>, Query)),
    responses((status = 200, body = AppList), (status = "default", body = ErrorBody)))]
pub(crate) async fn list(
    State(api): State<Api>,
    Params(_): Params<HashMap<String, String>>,
) -> Result<Json<AppList>, ApiError> {
    let app = ListedApp {
        id: DEFAULT_APP.to_owned(),
        name: DEFAULT_APP.to_owned(),
        machine_count: machine_count(&api),
        network: LOCAL.to_owned(),
    };
    Ok(Json(AppList {
        total_apps: 1,
        apps: vec![app],
    }))
}

/// Shows an app.
#[utoipa::path(get, operation_id = "Apps_show", path = "/v1/apps/{app}", tag = "apps",
    params(("app" = String, Path)),
    responses((status = 200, body = Shown), (status = "default", body = ErrorBody)))]
pub(crate) async fn show(_: App, State(api): State<Api>) -> Json<Shown> {
    let machine_count = machine_count(&api);
    let status = if machine_count > 0 {
        "deployed"
    } else {
        "pending"
    };
    Json(Shown {
        id: DEFAULT_APP.to_owned(),
        name: DEFAULT_APP.to_owned(),
        status: status.to_owned(),
        machine_count,
        network: LOCAL.to_owned(),
        organization: AppOrganization {
            name: LOCAL.to_owned(),
            slug: LOCAL.to_owned(),
        },
    })
}
