//! `/metrics`: collects the figures of all machines for Prometheus.

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use futures_util::future::join_all;
use machine_api::{Operation, Timing};

use crate::api::Api;
use crate::api::error::ApiError;
use crate::api::handlers::inspect::counters;
use crate::api::handlers::metrics_text::{self, MachineFigures};
use crate::machine::{Handle, MachineError};

/// Timings that are read to find the last start and the last suspend.
const LOOK_BACK: u32 = 8;

/// Figures of all machines in Prometheus's text format.
#[utoipa::path(get, operation_id = "Metrics_render", path = "/metrics", tag = "host",
    responses((status = 200, body = String, content_type = "text/plain"),
        (status = "default", body = machine_api::ErrorBody)))]
pub(crate) async fn render(State(api): State<Api>) -> Result<Response, ApiError> {
    let machines = api.registry.all();
    let figures = join_all(machines.iter().map(|handle| figures(&api, handle))).await;
    let figures: Vec<MachineFigures> = figures.into_iter().collect::<Result<_, _>>()?;
    let text = metrics_text::render(&figures);
    Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response())
}

async fn figures(api: &Api, handle: &Handle) -> Result<MachineFigures, MachineError> {
    let view = handle.view();
    let vsock = match handle.live() {
        Ok(live) => counters(&live).await,
        Err(_) => None,
    };
    let timings = api
        .registry
        .context()
        .store
        .timings(handle.id(), LOOK_BACK)
        .await?;
    let last = |wanted: fn(Operation) -> bool| -> Option<Timing> {
        timings
            .iter()
            .find(|timing| wanted(timing.operation))
            .cloned()
    };
    let last_start = last(|one| matches!(one, Operation::Start | Operation::Resume));
    let guest = last_start.as_ref().and_then(|timing| timing.guest.as_ref());
    Ok(MachineFigures {
        machine: view.id.clone(),
        name: view.name.clone(),
        state: view.state,
        generation: view.generation,
        vsock,
        guest_sockets: guest.map(|guest| (guest.sockets.total, guest.sockets.older_generations)),
        readiness: view.readiness.clone(),
        last_suspend: last(|one| one == Operation::Suspend),
        last_start,
    })
}
