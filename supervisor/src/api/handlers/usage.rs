//! CPU and memory of a machine, from its monitor.

use axum::Json;
use machine_api::{ErrorBody, Usage};

use crate::api::error::ApiError;
use crate::api::request::extract::Target;

/// CPU and memory of a started machine, from the last samples of its monitor.
#[utoipa::path(get, operation_id = "Machines_usage_show", path = "/v1/apps/{app}/machines/{machine}/usage", tag = "inspect",
    params(("app" = String, Path), ("machine" = String, Path)),
    responses((status = 200, body = Usage), (status = "default", body = ErrorBody)))]
pub(crate) async fn show(Target(handle): Target) -> Result<Json<Usage>, ApiError> {
    let live = handle.live_soon().await?;
    let observations = live.observations.borrow().clone();
    let Some((latest, before)) = observations.samples else {
        return Ok(Json(Usage::default()));
    };
    let (busy_ms, uptime_ms) = match &before {
        Some(before) => (
            latest.busy_ms.saturating_sub(before.busy_ms),
            latest.uptime_ms.saturating_sub(before.uptime_ms),
        ),
        None => (latest.busy_ms, latest.uptime_ms),
    };
    Ok(Json(Usage {
        known: true,
        cpu_percent: percent(busy_ms, uptime_ms),
        load: latest.load,
        memory_total_kib: latest.memory_total_kib,
        memory_available_kib: latest.memory_available_kib,
        uptime_ms: latest.uptime_ms,
    }))
}

#[expect(
    clippy::cast_precision_loss,
    reason = "milliseconds of an interval are far below 2^53"
)]
fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 * 100.0 / whole as f64
    }
}
