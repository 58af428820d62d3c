//! Reads bodies as their handlers do, without a machine: for fuzz targets.

use machine_api::{
    AdoptMachine, CreateMachine, CreateToken, ExecRequest, LeaseRequest, MachineConfig,
    MetadataValue, SignalRequest, StopRequest, UpdateMachine,
};
use serde::Serialize;

use crate::api::error::ApiError;
use crate::api::handlers::{guest, lease};
use crate::api::request::extract;
use crate::api::request::normalise::normalise;
use crate::duration;
use crate::model::config_check;
use crate::model::graceful_stop::{GracefulStop, signal_number};

/// What a body is for.
#[derive(Debug, Clone, Copy)]
pub enum BodyKind {
    /// A new machine.
    Create,
    /// A new configuration.
    Update,
    /// A stop.
    Stop,
    /// A signal.
    Signal,
    /// A command.
    Exec,
    /// A lease.
    Lease,
    /// The value of a metadata key.
    Metadata,
    /// A token.
    Token,
    /// A machine that is taken back.
    Adopt,
    /// A duration of a query.
    Duration,
}

/// All kinds.
pub const BODY_KINDS: [BodyKind; 10] = [
    BodyKind::Create,
    BodyKind::Update,
    BodyKind::Stop,
    BodyKind::Signal,
    BodyKind::Exec,
    BodyKind::Lease,
    BodyKind::Metadata,
    BodyKind::Token,
    BodyKind::Adopt,
    BodyKind::Duration,
];

/// Reads a body; returns it as it is understood.
///
/// # Errors
/// Why it is refused, for people.
pub fn read(kind: BodyKind, bytes: &[u8]) -> Result<Vec<u8>, String> {
    understood(kind, bytes).map_err(|error| error.message().to_owned())
}

fn understood(kind: BodyKind, bytes: &[u8]) -> Result<Vec<u8>, ApiError> {
    match kind {
        BodyKind::Create => {
            let mut request: CreateMachine = extract::configured(bytes)?;
            check(&mut request.config)?;
            lease::requested(request.lease_ttl, None)?;
            Ok(encoded(&request))
        }
        BodyKind::Update => {
            let mut request: UpdateMachine = extract::configured(bytes)?;
            check(&mut request.config)?;
            Ok(encoded(&request))
        }
        BodyKind::Stop => {
            let request: StopRequest = extract::optional(bytes)?;
            let (signal, timeout) = (request.signal.as_deref(), request.timeout.as_deref());
            GracefulStop::resolve(signal, timeout, None).map_err(ApiError::invalid)?;
            Ok(encoded(&request))
        }
        BodyKind::Signal => {
            let request: SignalRequest = extract::parse(bytes)?;
            match signal_number(&request.signal) {
                Some(_) => Ok(encoded(&request)),
                None => Err(ApiError::invalid("signal: unknown")),
            }
        }
        BodyKind::Exec => {
            let request: ExecRequest = extract::parse(bytes)?;
            guest::argv(&request)?;
            Ok(encoded(&request))
        }
        BodyKind::Lease => Ok(encoded(&extract::optional::<LeaseRequest>(bytes)?)),
        BodyKind::Metadata => Ok(encoded(&extract::parse::<MetadataValue>(bytes)?)),
        BodyKind::Token => Ok(encoded(&extract::parse::<CreateToken>(bytes)?)),
        BodyKind::Adopt => Ok(encoded(&extract::parse::<AdoptMachine>(bytes)?)),
        BodyKind::Duration => {
            let text = String::from_utf8_lossy(bytes);
            Ok(duration::format_like_go(extract::seconds(&text)?).into_bytes())
        }
    }
}

fn check(config: &mut MachineConfig) -> Result<(), ApiError> {
    normalise(config)?;
    config_check::check(config).map_err(|error| ApiError::invalid(error.to_string()))
}

fn encoded(body: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(body).expect("bodies are plain JSON")
}
