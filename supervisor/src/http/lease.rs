//! Leases: who may change a machine for a while.

use std::collections::HashMap;

use axum::Json;
use axum::http::StatusCode;
use machine_api::{
    ErrorBody, Lease, LeaseReleased, LeaseRequest, LeaseResponse, Ok as Done, TokenScope,
};

use super::error::ApiError;
use super::extract::{Nonce, OptionalBody, Params, Scope, Target};
use crate::clock;
use crate::machine::handle::{Look, Order};
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

/// The time of a lease that comes with a create or an update: none where it is zero.
pub(super) fn ttl_beside(ttl_s: Option<u32>) -> Result<Option<u32>, ApiError> {
    let wanted = ttl_s.filter(|ttl_s| *ttl_s > 0);
    check_ttl(wanted.unwrap_or(TTL_S)).map_err(|error| error.about("lease_ttl"))?;
    Ok(wanted)
}

fn check_ttl(ttl_s: u32) -> Result<(), ApiError> {
    if (1..=TTL_MOST_S).contains(&ttl_s) {
        return Ok(());
    }
    Err(ApiError::invalid(format!(
        "ttl: {ttl_s} is not 1 to {TTL_MOST_S} seconds"
    )))
}

/// Takes a lease, or refreshes the one of `nonce`.
pub(super) async fn acquire(
    handle: &Handle,
    ttl_s: Option<u32>,
    description: String,
    nonce: Option<String>,
) -> Result<Lease, ApiError> {
    let ttl_s = ttl_s.unwrap_or(TTL_S);
    check_ttl(ttl_s)?;
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

/// Takes a lease; with its nonce in the header, refreshes it. Clients of that API give the time in
/// the query or in the body.
#[utoipa::path(post, operation_id = "Machines_lease_take", path = "/v1/apps/{app}/machines/{machine}/lease", tag = "lease",
    params(("app" = String, Path), ("machine" = String, Path), ("ttl" = Option<u32>, Query)),
    request_body = Option<LeaseRequest>,
    responses((status = 201, body = LeaseResponse, description = "taken"),
        (status = 200, body = LeaseResponse, description = "refreshed"),
        (status = "default", body = ErrorBody)))]
pub(super) async fn take(
    Target(handle): Target,
    Nonce(nonce): Nonce,
    Params(query): Params<HashMap<String, String>>,
    OptionalBody(request): OptionalBody<LeaseRequest>,
) -> Result<(StatusCode, Json<LeaseResponse>), ApiError> {
    let description = request.description.unwrap_or_default();
    let ttl_s = query.get("ttl").map(|text| text.parse()).transpose();
    let ttl_s = ttl_s.map_err(|_| ApiError::invalid("ttl: a number of seconds is needed"))?;
    let status = match nonce {
        Some(_) => StatusCode::OK,
        None => StatusCode::CREATED,
    };
    let lease = acquire(&handle, ttl_s.or(request.ttl), description, nonce).await?;
    Ok((status, success(lease)))
}

/// Shows the lease, and to who may change machines its nonce.
#[utoipa::path(get, operation_id = "Machines_lease_show", path = "/v1/apps/{app}/machines/{machine}/lease", tag = "lease",
    params(("app" = String, Path), ("machine" = String, Path)),
    responses((status = 200, body = LeaseResponse), (status = "default", body = ErrorBody)))]
pub(super) async fn show(
    Target(handle): Target,
    Scope(scope): Scope,
) -> Result<Json<LeaseResponse>, ApiError> {
    let (sender, found) = tokio::sync::oneshot::channel();
    let look: Look = Box::new(move |record| {
        let lease = record.facts.standing_lease(clock::realtime_ms());
        let lease = lease.ok_or_else(|| MachineError::NoLease(record.id.clone()))?;
        let _ = sender.send(shown(lease, scope == TokenScope::Write));
        Ok(())
    });
    let look = Order::Look {
        as_holder: false,
        look,
    };
    handle.request(look, Until::Admitted, None).await?;
    Ok(success(
        found.await.map_err(|_| MachineError::ShuttingDown)?,
    ))
}

/// Gives the lease of the header's nonce back.
#[utoipa::path(delete, operation_id = "Machines_lease_release", path = "/v1/apps/{app}/machines/{machine}/lease", tag = "lease",
    params(("app" = String, Path), ("machine" = String, Path)),
    responses((status = 200, body = LeaseReleased), (status = "default", body = ErrorBody)))]
pub(super) async fn release(
    Target(handle): Target,
    Nonce(nonce): Nonce,
) -> Result<Json<LeaseReleased>, ApiError> {
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
    Ok(Json(LeaseReleased {
        status: "success".to_owned(),
        data: Done { ok: true },
    }))
}
