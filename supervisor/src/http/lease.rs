//! Leases: who may change a machine for a while.

use axum::Json;
use axum::extract::State;
use machine_api::{ErrorBody, Lease, LeaseRequest, LeaseResponse, Ok as Done};

use super::Api;
use super::error::ApiError;
use super::extract::{Nonce, OptionalBody, Target};
use crate::clock;
use crate::machine::handle::Order;
use crate::machine::{Handle, MachineError, Until, record};
use crate::store::LeaseFact;

/// Seconds of a lease that asks for none.
const TTL_S: u32 = 60;
/// Most seconds of a lease.
const TTL_MOST_S: u32 = 86_400;

fn shown(lease: &LeaseFact, with_nonce: bool) -> Lease {
    Lease {
        nonce: if with_nonce {
            lease.nonce.clone()
        } else {
            String::new()
        },
        expires_at: lease.expires_at_ms / 1_000,
        owner: "local".to_owned(),
        description: lease.description.clone(),
        version: lease.version.clone(),
    }
}

fn success(data: Lease) -> Json<LeaseResponse> {
    Json(LeaseResponse {
        status: "success".to_owned(),
        data,
    })
}

/// Takes a lease, or refreshes the one of `nonce`.
pub(super) async fn acquire(
    handle: &Handle,
    ttl_s: Option<u32>,
    description: String,
    nonce: Option<String>,
) -> Result<Lease, ApiError> {
    let ttl_s = ttl_s.unwrap_or(TTL_S);
    if !(1..=TTL_MOST_S).contains(&ttl_s) {
        return Err(ApiError::invalid(format!(
            "ttl: {ttl_s} is not 1 to {TTL_MOST_S} seconds"
        )));
    }
    let (sender, taken) = tokio::sync::oneshot::channel();
    let edit = Order::LeaseEdit(Box::new(move |record| {
        let now_ms = clock::realtime_ms();
        let refreshed = match record.facts.standing_lease(now_ms) {
            Some(lease) if nonce.as_ref() == Some(&lease.nonce) => Some(lease.nonce.clone()),
            Some(lease) => {
                let expires_at_s = lease.expires_at_ms / 1_000;
                return Err(MachineError::LeaseHeld {
                    id: record.id.clone(),
                    expires_at_s,
                });
            }
            None if nonce.is_some() => return Err(MachineError::NoLease(record.id.clone())),
            None => None,
        };
        let lease = LeaseFact {
            nonce: refreshed.unwrap_or_else(record::new_ulid),
            expires_at_ms: now_ms + i64::from(ttl_s) * 1_000,
            description,
            version: record.instance_id.clone(),
        };
        let _ = sender.send(shown(&lease, true));
        record.facts.lease = Some(lease);
        Ok(None)
    }));
    handle.request(edit, Until::Admitted, None).await?;
    taken.await.map_err(|_| MachineError::ShuttingDown.into())
}

/// Takes a lease; with its nonce in the header, refreshes it.
#[utoipa::path(post, operation_id = "Machines_lease_take", path = "/v1/apps/{app}/machines/{machine}/lease", tag = "lease",
    params(("app" = String, Path), ("machine" = String, Path)),
    request_body = Option<LeaseRequest>,
    responses((status = 200, body = LeaseResponse), (status = "default", body = ErrorBody)))]
pub(super) async fn take(
    Target(handle): Target,
    Nonce(nonce): Nonce,
    OptionalBody(request): OptionalBody<LeaseRequest>,
) -> Result<Json<LeaseResponse>, ApiError> {
    let description = request.description.unwrap_or_default();
    acquire(&handle, request.ttl, description, nonce)
        .await
        .map(success)
}

/// Shows the lease, without its nonce.
#[utoipa::path(get, operation_id = "Machines_lease_show", path = "/v1/apps/{app}/machines/{machine}/lease", tag = "lease",
    params(("app" = String, Path), ("machine" = String, Path)),
    responses((status = 200, body = LeaseResponse), (status = "default", body = ErrorBody)))]
pub(super) async fn show(
    State(_): State<Api>,
    Target(handle): Target,
) -> Result<Json<LeaseResponse>, ApiError> {
    let (sender, found) = tokio::sync::oneshot::channel();
    let look = Order::LeaseEdit(Box::new(move |record| {
        let lease = record.facts.standing_lease(clock::realtime_ms());
        let lease = lease.ok_or_else(|| MachineError::NoLease(record.id.clone()))?;
        let _ = sender.send(shown(lease, false));
        Ok(None)
    }));
    handle.request(look, Until::Admitted, None).await?;
    Ok(success(
        found.await.map_err(|_| MachineError::ShuttingDown)?,
    ))
}

/// Gives the lease of the header's nonce back.
#[utoipa::path(delete, operation_id = "Machines_lease_release", path = "/v1/apps/{app}/machines/{machine}/lease", tag = "lease",
    params(("app" = String, Path), ("machine" = String, Path)),
    responses((status = 200, body = Done), (status = "default", body = ErrorBody)))]
pub(super) async fn release(
    Target(handle): Target,
    Nonce(nonce): Nonce,
) -> Result<Json<Done>, ApiError> {
    let release = Order::LeaseEdit(Box::new(move |record| {
        match record.facts.standing_lease(clock::realtime_ms()) {
            Some(lease) if nonce.as_ref() == Some(&lease.nonce) => {
                record.facts.lease = None;
                Ok(None)
            }
            Some(_) | None => Err(MachineError::NoLease(record.id.clone())),
        }
    }));
    handle.request(release, Until::Admitted, None).await?;
    Ok(Json(Done { ok: true }))
}
