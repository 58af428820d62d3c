//! Leases: the exclusive right to change a machine, for a limited time.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::request::Ok;

/// Body of `POST …/lease`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeaseRequest {
    /// How long the lease lasts, in seconds: 1 to 86,400; 60 if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u32>,
    /// Purpose of the lease, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// A lease.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Lease {
    /// Value of the header `fly-machine-lease-nonce` that makes a request one of the holder.
    /// Shown only to tokens that may change machines.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub nonce: String,
    /// When the lease ends, in seconds since 1970.
    pub expires_at: i64,
    /// Who took the lease.
    #[serde(default)]
    pub owner: String,
    /// Purpose of the lease, for people.
    #[serde(default)]
    pub description: String,
    /// Version of the machine when the lease was taken.
    #[serde(default)]
    pub version: String,
}

/// Answer to `GET …/lease` and `POST …/lease`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeaseResponse {
    /// Always `success`.
    pub status: String,
    /// The lease.
    pub data: Lease,
}

/// Answer to `DELETE …/lease`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeaseReleased {
    /// Always `success`.
    pub status: String,
    /// The lease is released.
    pub data: Ok,
}
