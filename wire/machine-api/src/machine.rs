//! A machine as the API shows it, its states and events.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Attempt, MachineConfig, PhaseTime};

/// A machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Machine {
    /// 14 hexadecimal digits; never changes.
    pub id: String,
    /// Unique among machines that are not destroyed.
    pub name: String,
    /// Where it is in its life.
    pub state: MachineState,
    /// Always `local`.
    pub region: String,
    /// Version: changes with each update.
    pub instance_id: String,
    /// Its configuration.
    pub config: MachineConfig,
    /// The image it was made from.
    pub image_ref: ImageRef,
    /// Empty: guests have no network interface; ports are published over vsock.
    pub private_ip: String,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// RFC 3339, UTC.
    pub updated_at: String,
    /// Newest first.
    #[serde(default)]
    pub events: Vec<MachineEvent>,
    /// Results of its checks.
    #[serde(default)]
    pub checks: Vec<CheckStatus>,
    /// `ok` while the supervisor can drive it.
    pub host_status: String,
    /// No new connections are routed to it.
    #[serde(default)]
    pub cordoned: bool,
    /// *Extension*: raised at each launch of a VMM.
    #[serde(default)]
    pub generation: u64,
    /// *Extension*: how the last start went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_start: Option<StartKind>,
    /// *Extension*: readiness attempts of the last start or resume.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub readiness: Vec<Attempt>,
    /// *Extension*: what the supervisor wants an operator to know, one sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// *Extension*: ports that the host has published for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub published: Vec<PublishedPort>,
    /// *Extension*: process id of its VMM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmm_pid: Option<u32>,
    /// Nonce of the current lease, in the answer to a create or update with `lease_ttl`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
}

/// States of the Fly Machines API. Those in -ing mean that the supervisor is working.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum MachineState {
    /// Stored, never started.
    Created,
    /// On its way to started: a cold boot or a resume.
    Starting,
    /// A readiness check has succeeded.
    Started,
    /// On its way to suspended.
    Suspending,
    /// On disk.
    Suspended,
    /// On its way to stopped.
    Stopping,
    /// Has no VMM and no image.
    Stopped,
    /// Stopping in order to start again.
    Restarting,
    /// Taking a new configuration.
    Updating,
    /// Being removed.
    Destroying,
    /// Gone; kept for `list --all` for a while.
    Destroyed,
    /// Could not be started, or its memory was found damaged.
    Failed,
}

impl MachineState {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Created,
        Self::Starting,
        Self::Started,
        Self::Suspending,
        Self::Suspended,
        Self::Stopping,
        Self::Stopped,
        Self::Restarting,
        Self::Updating,
        Self::Destroying,
        Self::Destroyed,
        Self::Failed,
    ];

    /// The name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Started => "started",
            Self::Suspending => "suspending",
            Self::Suspended => "suspended",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Restarting => "restarting",
            Self::Updating => "updating",
            Self::Destroying => "destroying",
            Self::Destroyed => "destroyed",
            Self::Failed => "failed",
        }
    }
}

impl std::fmt::Display for MachineState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// *Extension*: a port of the guest as the host has published it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PublishedPort {
    /// Address and port on which the host listens, such as `127.0.0.1:8080`.
    pub address: String,
    /// Port on the guest's loopback.
    pub internal_port: u16,
}

/// The image a machine was made from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageRef {
    /// Always `local`.
    pub registry: String,
    /// Name in the image store.
    pub repository: String,
    /// Always `latest`.
    pub tag: String,
    /// `sha256:…` of kernel and initramfs.
    pub digest: String,
}

/// Something that happened to a machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MachineEvent {
    /// Sorts by time.
    pub id: String,
    /// What.
    #[serde(rename = "type")]
    pub kind: EventType,
    /// The state it led to.
    pub status: String,
    /// `user` (an API request), `flyd` (the supervisor by itself) or `guest`.
    pub source: String,
    /// Milliseconds since 1970.
    pub timestamp: i64,
    /// Details.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<EventRequest>,
    /// *Extension*: how long the transition took, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<f64>,
    /// *Extension*: its phases; they sum to the duration.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub phases: Vec<PhaseTime>,
    /// *Extension*: warm or cold, with the reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<StartKind>,
    /// *Extension*: one sentence, such as the chain of causes of a failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Kinds of [`MachineEvent`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventType {
    /// Created, or updated to a new version.
    Launch,
    /// A new version was accepted.
    Update,
    /// On the way to started, or there.
    Start,
    /// On the way to suspended, or there.
    Suspend,
    /// On the way to stopped, or there.
    Stop,
    /// Restarting.
    Restart,
    /// The main process or the VMM ended.
    Exit,
    /// Removed.
    Destroy,
    /// A check changed its result.
    Check,
    /// A supervisor took over a running machine.
    Adopt,
    /// Something an operator should know.
    Warning,
}

/// Details of a [`MachineEvent`], nested as that API does.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EventRequest {
    /// With `exit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_event: Option<ExitEvent>,
    /// How many restarts in a row came before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_count: Option<u32>,
}

/// How a main process ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExitEvent {
    /// Exit code of the main process; -1 if it has none.
    pub exit_code: i32,
    /// Signal that killed it; 0 if none; -1 if not known.
    pub signal: i32,
    /// The same as the guest tells it; -1 if it has none, or did not tell.
    #[serde(default = "untold")]
    pub guest_exit_code: i32,
    /// The same as the guest tells it; 0 if none; -1 if it did not tell.
    #[serde(default = "untold")]
    pub guest_signal: i32,
    /// The guest's out-of-memory killer did it.
    pub oom_killed: bool,
    /// A user asked for it.
    pub requested_stop: bool,
    /// The supervisor starts it again.
    pub restarting: bool,
    /// RFC 3339, UTC.
    #[serde(deserialize_with = "crate::moment::read")]
    pub exited_at: String,
}

/// What events that were stored by earlier supervisors say of it.
const fn untold() -> i32 {
    -1
}

/// *Extension*: warm or cold, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum StartKind {
    /// Continued from its image.
    Resumed,
    /// Booted because it was not suspended.
    Booted,
    /// Booted although it was suspended; the guest's memory is lost.
    ColdBooted {
        /// `image missing`, `checksum mismatch`, `configuration changed`, …
        reason: String,
    },
    /// A suspend was broken off; the same process went on.
    SuspendCancelled,
}

/// Result of a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckStatus {
    /// Name in the configuration.
    pub name: String,
    /// `passing`, `warning` or `critical`.
    pub status: String,
    /// What it saw.
    pub output: String,
    /// RFC 3339, UTC.
    pub updated_at: String,
}

/// A version of a machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MachineVersion {
    /// The `instance_id`.
    pub version: String,
    /// Its configuration.
    pub user_config: MachineConfig,
}

/// Body of every answer that is not a success.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// For people.
    pub error: String,
    /// *Extension*: for programs, such as `not_found`, `lease_held`, `wrong_state`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub status: String,
    /// *Extension*: what to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// *Extension*: further facts, such as the machine's state.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub details: BTreeMap<String, String>,
}
