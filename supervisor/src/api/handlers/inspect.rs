//! How long things took, which versions there were, and what a machine's vsock looks like.

use std::collections::HashMap;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use guest_protocol::{Reply, Request};
use machine_api::{ErrorBody, GuestView, MachineVersion, Timing, VsockView};
use tokio::time::{sleep, timeout};
use vmm_control::{Reply as VmmReply, RequestBody, VsockCounters};

use crate::api::Api;
use crate::api::error::ApiError;
use crate::api::request::extract::{Params, Target, limit};
use crate::guest::GuestError;
use crate::machine::MachineError;
use crate::machine::handle::LiveGuest;
use crate::model::view;
use crate::model::vsock_diagnosis::{Evidence, diagnose};

/// Deadline of a question to guest or VMM.
pub(super) const ASK_LIMIT: Duration = Duration::from_secs(5);
/// Pause after a question that the guest refused.
const ASK_AGAIN: Duration = Duration::from_millis(5);

type Query = Params<HashMap<String, String>>;

/// Measured starts, suspends, resumes and stops, newest first.
#[utoipa::path(get, operation_id = "Machines_timings", path = "/v1/apps/{app}/machines/{machine}/timings", tag = "inspect",
    params(("app" = String, Path), ("machine" = String, Path), ("limit" = Option<u32>, Query)),
    responses((status = 200, body = Vec<Timing>), (status = "default", body = ErrorBody)))]
pub(crate) async fn timings(
    State(api): State<Api>,
    Target(handle): Target,
    Params(query): Query,
) -> Result<Json<Vec<Timing>>, ApiError> {
    let rows = api
        .registry
        .context()
        .store
        .timings(handle.id(), limit(&query)?)
        .await;
    Ok(Json(rows.map_err(MachineError::from)?))
}

/// All versions of a machine, newest first.
#[utoipa::path(get, operation_id = "Machines_versions", path = "/v1/apps/{app}/machines/{machine}/versions", tag = "inspect",
    params(("app" = String, Path), ("machine" = String, Path)),
    responses((status = 200, body = Vec<MachineVersion>), (status = "default", body = ErrorBody)))]
pub(crate) async fn versions(
    State(api): State<Api>,
    Target(handle): Target,
) -> Result<Json<Vec<MachineVersion>>, ApiError> {
    let rows = api.registry.context().store.versions(handle.id()).await;
    Ok(Json(rows.map_err(MachineError::from)?))
}

/// Both ends' view of a machine's vsock, and what it means.
#[utoipa::path(get, operation_id = "Machines_vsock", path = "/v1/apps/{app}/machines/{machine}/vsock", tag = "inspect",
    params(("app" = String, Path), ("machine" = String, Path)),
    responses((status = 200, body = VsockView), (status = "default", body = ErrorBody)))]
pub(crate) async fn vsock(
    State(api): State<Api>,
    Target(handle): Target,
) -> Result<Json<VsockView>, ApiError> {
    let live = handle.live_soon().await?;
    let (counters, guest) = tokio::join!(counters(&live), guest(&live));
    let machine = handle.view();
    let defaults = &api.registry.context().configuration.start_settings;
    let settings = defaults.overridden_by(machine.config.vsock.as_ref());
    let evidence = Evidence {
        guest: guest.as_ref(),
        readiness: &machine.readiness,
        last_start: machine.last_start.as_ref(),
        port_policy: settings.port_policy.into(),
        eviction: settings.eviction,
        limits: &settings.readiness,
    };
    let diagnosis = diagnose(&evidence);
    let host = counters.map_or(serde_json::Value::Null, |counters| {
        serde_json::to_value(counters).unwrap_or_default()
    });
    let last_readiness = machine.readiness.clone();
    Ok(Json(VsockView {
        host,
        guest,
        last_readiness,
        last_start: machine.last_start.clone(),
        diagnosis,
    }))
}

/// The VMM's counters, if it answers.
pub(crate) async fn counters(live: &LiveGuest) -> Option<VsockCounters> {
    let asked = live
        .control
        .request("report its counters", RequestBody::Counters, ASK_LIMIT);
    match asked.await {
        Ok(VmmReply::Counters(counters)) => Some(counters),
        Ok(_) | Err(_) => None,
    }
}

/// The guest's view, if init answers in time.
async fn guest(live: &LiveGuest) -> Option<GuestView> {
    let ask = || live.address.call(Request::Status, None);
    match timeout(ASK_LIMIT, past_leaked_pairs(ask)).await {
        Ok(Ok((Reply::Status(status), _))) => Some(view::guest(&status)),
        Ok(Ok(_) | Err(_)) | Err(_) => None,
    }
}

/// Asks again where the guest refuses the connection: the question may meet a leaked pair itself,
/// just where it is most needed, and the next one has another port.
pub(super) async fn past_leaked_pairs<T, F: Future<Output = Result<T, GuestError>>>(
    mut ask: impl FnMut() -> F,
) -> Result<T, GuestError> {
    loop {
        match ask().await {
            Err(GuestError::Reset { .. }) => sleep(ASK_AGAIN).await,
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_question_is_repeated_past_leaked_pairs_and_no_other_failure() {
        let mut asked = 0;
        let answer = past_leaked_pairs(|| {
            asked += 1;
            let local_port = asked;
            async move {
                match local_port {
                    1..=3 => Err(GuestError::Reset { local_port }),
                    _ => Ok(local_port),
                }
            }
        });
        assert_eq!(answer.await.unwrap(), 4);
        let answer =
            past_leaked_pairs(async || Err::<(), _>(GuestError::NoReply { local_port: 1 }));
        assert!(matches!(answer.await, Err(GuestError::NoReply { .. })));
    }
}
