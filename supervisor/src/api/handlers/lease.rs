//! Leases: who may change a machine for a while.

use std::collections::HashMap;

use axum::Json;
use axum::http::StatusCode;
use machine_api::{
    ErrorBody, Lease, LeaseReleased, LeaseRequest, LeaseResponse, Ok as Done, TokenScope,
};

use crate::api::error::ApiError;
use crate::api::request::extract::{Nonce, OptionalBody, Params, Scope, Target};
use crate::clock;
use crate::machine::request::LeaseCheck;
use crate::machine::{Handle, MachineError};
use crate::model::record::{LeaseFact, LeaseWanted, MachineRecord};

/// Seconds of a lease whose request gives none.
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

/// The lease that is requested with a create or an update; none if its time is zero.
pub(crate) fn requested(
    ttl_s: Option<u32>,
    nonce: Option<String>,
) -> Result<Option<LeaseWanted>, ApiError> {
    let wanted = ttl_s.filter(|ttl_s| *ttl_s > 0);
    check_ttl(wanted.unwrap_or(TTL_S)).map_err(|error| error.about("lease_ttl"))?;
    Ok(wanted.map(|ttl_s| LeaseWanted {
        ttl_s,
        description: String::new(),
        nonce,
    }))
}

/// The nonce of the lease in force, for whoever has just taken it.
pub(crate) async fn nonce_of(handle: &Handle) -> Result<Option<String>, ApiError> {
    let read = handle.read(LeaseCheck::Skip, |record| {
        let lease = record.facts.lease_in_force(clock::realtime_ms());
        Ok(lease.map(|lease| lease.nonce.clone()))
    });
    Ok(read.await?)
}

fn check_ttl(ttl_s: u32) -> Result<(), ApiError> {
    if (1..=TTL_MOST_S).contains(&ttl_s) {
        return Ok(());
    }
    Err(ApiError::invalid(format!(
        "ttl: {ttl_s} is not 1 to {TTL_MOST_S} seconds"
    )))
}

/// Acquires a lease, or refreshes the one of `nonce`.
async fn acquire_for(
    handle: &Handle,
    ttl_s: Option<u32>,
    description: String,
    nonce: Option<String>,
) -> Result<Lease, ApiError> {
    let ttl_s = ttl_s.unwrap_or(TTL_S);
    check_ttl(ttl_s)?;
    let wanted = LeaseWanted {
        ttl_s,
        description,
        nonce,
    };
    let acquire = move |record: &mut MachineRecord| {
        let id = record.id.clone();
        let lease = record.take_lease(wanted, clock::realtime_ms());
        let lease = lease.map_err(|refusal| MachineError::of_lease(&id, refusal))?;
        Ok((shown(lease, true), None))
    };
    Ok(handle.edit(LeaseCheck::Skip, acquire).await?)
}

/// Acquires a lease, or refreshes the one whose nonce is in the header. The time may be in the query
/// or in the body.
#[utoipa::path(post, operation_id = "Machines_lease_take", path = "/v1/apps/{app}/machines/{machine}/lease", tag = "lease",
    params(("app" = String, Path), ("machine" = String, Path), ("ttl" = Option<u32>, Query)),
    request_body = Option<LeaseRequest>,
    responses((status = 201, body = LeaseResponse, description = "acquired"),
        (status = 200, body = LeaseResponse, description = "refreshed"),
        (status = "default", body = ErrorBody)))]
pub(crate) async fn acquire(
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
    let lease = acquire_for(&handle, ttl_s.or(request.ttl), description, nonce).await?;
    Ok((status, success(lease)))
}

/// Shows the lease. Its nonce is shown to clients that may change machines.
#[utoipa::path(get, operation_id = "Machines_lease_show", path = "/v1/apps/{app}/machines/{machine}/lease", tag = "lease",
    params(("app" = String, Path), ("machine" = String, Path)),
    responses((status = 200, body = LeaseResponse), (status = "default", body = ErrorBody)))]
pub(crate) async fn show(
    Target(handle): Target,
    Scope(scope): Scope,
) -> Result<Json<LeaseResponse>, ApiError> {
    let lease = handle.read(LeaseCheck::Skip, move |record| {
        let lease = record.facts.lease_in_force(clock::realtime_ms());
        let lease = lease.ok_or_else(|| MachineError::NoLease(record.id.clone()))?;
        Ok(shown(lease, scope == TokenScope::Write))
    });
    Ok(success(lease.await?))
}

/// Releases the lease whose nonce is in the header.
#[utoipa::path(delete, operation_id = "Machines_lease_release", path = "/v1/apps/{app}/machines/{machine}/lease", tag = "lease",
    params(("app" = String, Path), ("machine" = String, Path)),
    responses((status = 200, body = LeaseReleased), (status = "default", body = ErrorBody)))]
pub(crate) async fn release(
    Target(handle): Target,
    Nonce(nonce): Nonce,
) -> Result<Json<LeaseReleased>, ApiError> {
    let release =
        move |record: &mut MachineRecord| match record.facts.lease_in_force(clock::realtime_ms()) {
            Some(lease) if nonce.as_ref() == Some(&lease.nonce) => {
                record.facts.lease = None;
                Ok(((), None))
            }
            Some(_) | None => Err(MachineError::NoLease(record.id.clone())),
        };
    handle.edit(LeaseCheck::Skip, release).await?;
    Ok(Json(LeaseReleased {
        status: "success".to_owned(),
        data: Done { ok: true },
    }))
}
