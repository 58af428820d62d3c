//! Bodies of requests that change a machine, and the small answers to them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::config::MachineConfig;
use crate::machine::MachineState;
use crate::start::StartKind;

// Shares fields with `UpdateMachine`: the Fly Machines API has two schemas, and so has this file.
/// Body of `POST /v1/apps/{app}/machines`, which creates a machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CreateMachine {
    /// Name of the machine; the supervisor chooses one if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Accepted for clients of the Fly Machines API, but not used: a host is one region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Configuration of the machine.
    pub config: MachineConfig,
    /// Do not start the machine.
    #[serde(default)]
    pub skip_launch: bool,
    /// Create the machine cordoned: new connections are not routed to it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skip_service_registration: bool,
    /// Take a lease on the new machine that lasts this many seconds; 0 takes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_ttl: Option<u32>,
}

// Shares fields with `CreateMachine`: the Fly Machines API has two schemas, and so has this file.
/// Body of `POST /v1/apps/{app}/machines/{machine}`, which updates a machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UpdateMachine {
    /// The whole new configuration.
    pub config: MachineConfig,
    /// New name of the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Refuse the update unless this is the machine's current version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_version: Option<String>,
    /// Do not start the machine.
    #[serde(default)]
    pub skip_launch: bool,
    /// Cordon the machine, too: new connections are not routed to it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skip_service_registration: bool,
    /// Before the update, take a lease that lasts this many seconds, or refresh the one that the
    /// client holds; 0 does neither.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_ttl: Option<u32>,
}

/// Answer to a request that has nothing to return.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Ok {
    /// Always true.
    pub ok: bool,
}

/// Answer to `POST …/start`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StartResponse {
    /// State of the machine before the request.
    pub previous_state: MachineState,
    /// Whether the machine moved to another host; always false.
    #[serde(default)]
    pub migrated: bool,
    /// The host that the machine moved to; always empty.
    #[serde(default)]
    pub new_host: String,
    /// *Extension*: whether the start was warm or cold; only with `wait=true`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<StartKind>,
}

// `StopConfig` has the same fields: the Fly Machines API has two schemas with different defaults.
/// Body of `POST …/stop`. Fields that are not given follow the machine's `stop_config`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StopRequest {
    /// Name of the signal to send, such as `SIGTERM`, or its number.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::lenient::optional_signal"
    )]
    pub signal: Option<String>,
    /// How long the main process may take to end before it is killed, such as `30s`; at most 5
    /// minutes.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::lenient::duration"
    )]
    pub timeout: Option<String>,
}

/// Body of `POST …/signal`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SignalRequest {
    /// Name of the signal to send, such as `SIGHUP`, or its number.
    #[serde(deserialize_with = "crate::lenient::signal")]
    pub signal: String,
}

/// Body of `POST …/metadata/{key}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MetadataValue {
    /// The new value.
    pub value: String,
}
