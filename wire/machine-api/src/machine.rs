//! A machine as the API shows it: its state, its events and its checks.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::config::MachineConfig;
use crate::start::{Attempt, PhaseTime, StartKind};

/// A machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Machine {
    /// Id of the machine: 14 hexadecimal digits; never changes.
    pub id: String,
    /// Name of the machine; unique among machines that are not destroyed.
    pub name: String,
    /// Current state.
    pub state: MachineState,
    /// Region of the machine; always `local`.
    pub region: String,
    /// Version of the machine; changes with each update.
    pub instance_id: String,
    /// Configuration of the machine.
    pub config: MachineConfig,
    /// Image that the machine boots.
    pub image_ref: ImageRef,
    /// Always empty: guests have no network interface. Ports are published over vsock.
    pub private_ip: String,
    /// When the machine was created: RFC 3339 in UTC.
    pub created_at: String,
    /// When the machine last changed: RFC 3339 in UTC.
    pub updated_at: String,
    /// The latest events, newest first.
    #[serde(default)]
    pub events: Vec<MachineEvent>,
    /// Results of the machine's checks.
    #[serde(default)]
    pub checks: Vec<CheckStatus>,
    /// Status of the host; always `ok`.
    pub host_status: String,
    /// Whether the machine is cordoned: new connections are not routed to it.
    #[serde(default)]
    pub cordoned: bool,
    /// *Extension*: counter that is raised at each launch of a VMM.
    #[serde(default)]
    pub generation: u64,
    /// *Extension*: whether the last start was warm or cold, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_start: Option<StartKind>,
    /// *Extension*: readiness attempts of the last start or resume.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub readiness: Vec<Attempt>,
    /// *Extension*: warnings for an operator, one sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// *Extension*: ports that the host publishes for the machine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub published: Vec<PublishedPort>,
    /// *Extension*: process id of the machine's VMM; absent if it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmm_pid: Option<u32>,
    /// Nonce of the machine's lease; only in the answer to a create or update with `lease_ttl`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
}

/// State of a machine. A state whose name ends in -ing means that the supervisor is working.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum MachineState {
    /// The machine is stored, but was never started.
    Created,
    /// A boot or resume is under way.
    Starting,
    /// The guest runs, and its readiness check has succeeded.
    Started,
    /// A suspend is under way.
    Suspending,
    /// The guest's memory is on disk; the machine has no VMM.
    Suspended,
    /// A stop is under way.
    Stopping,
    /// The machine has neither a VMM nor an image.
    Stopped,
    /// The machine stops in order to start again.
    Restarting,
    /// The machine gets a new configuration.
    Updating,
    /// The machine is being removed.
    Destroying,
    /// The machine is removed. It is still shown for a while if asked for.
    Destroyed,
    /// The machine could not be started, or its memory was damaged.
    Failed,
}

impl MachineState {
    /// All states.
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

    /// The name of the state on the wire.
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

/// *Extension*: a port of the guest that the host publishes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PublishedPort {
    /// IP address and port on which the host listens, such as `127.0.0.1:8080`.
    pub address: String,
    /// Port on the guest's loopback address.
    pub internal_port: u16,
}

/// The image that a machine boots.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageRef {
    /// Registry of the image; always `local`.
    pub registry: String,
    /// Name of the image, without its tag.
    pub repository: String,
    /// Tag of the image; `latest` if the configuration names none.
    pub tag: String,
    /// Digest over the image's content, such as `sha256:…`.
    pub digest: String,
}

/// An event in the life of a machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MachineEvent {
    /// Id of the event; ids sort by time.
    pub id: String,
    /// What happened.
    #[serde(rename = "type")]
    pub kind: EventType,
    /// State of the machine after the event.
    pub status: String,
    /// Who caused the event: `user` (a request), `flyd` (the supervisor) or `guest`.
    pub source: String,
    /// When it happened, in milliseconds since 1970.
    pub timestamp: i64,
    /// Details of the event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<EventRequest>,
    /// *Extension*: how long the transition took, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<f64>,
    /// *Extension*: phases of the transition; they sum to `duration_ms`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub phases: Vec<PhaseTime>,
    /// *Extension*: whether a start was warm or cold, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<StartKind>,
    /// *Extension*: one sentence for people, such as why a start failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// What an event reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventType {
    /// The machine was created, or got a new version.
    Launch,
    /// A new version was accepted.
    Update,
    /// A start or resume has begun or ended.
    Start,
    /// A suspend has begun or ended.
    Suspend,
    /// A stop has begun or ended.
    Stop,
    /// A restart has begun.
    Restart,
    /// The main process or the VMM ended.
    Exit,
    /// A removal has begun or ended.
    Destroy,
    /// The result of a check changed.
    Check,
    /// A supervisor took over a running machine.
    Adopt,
    /// There is a warning for an operator.
    Warning,
}

/// Details of an event, nested as in the Fly Machines API.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EventRequest {
    /// How the main process ended; only in events of type `exit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_event: Option<ExitEvent>,
    /// Number of restarts in a row before this event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_count: Option<u32>,
}

/// How a main process ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExitEvent {
    /// Exit code of the main process; -1 if it has none or it is not known.
    pub exit_code: i32,
    /// Number of the signal that ended the main process; 0 if none did, -1 if not known.
    pub signal: i32,
    /// Exit code as the guest reported it; -1 if it reported none.
    #[serde(default = "not_reported")]
    pub guest_exit_code: i32,
    /// Signal as the guest reported it; 0 if none ended the process, -1 if nothing was reported.
    #[serde(default = "not_reported")]
    pub guest_signal: i32,
    /// Whether the guest's out-of-memory killer ended the main process.
    pub oom_killed: bool,
    /// Whether a user asked for the stop.
    pub requested_stop: bool,
    /// Whether the supervisor starts the machine again.
    pub restarting: bool,
    /// When the main process ended: RFC 3339 in UTC.
    #[serde(deserialize_with = "crate::moment::deserialize")]
    pub exited_at: String,
}

/// Events that earlier supervisors stored do not have these fields.
const fn not_reported() -> i32 {
    -1
}

/// Latest result of a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckStatus {
    /// Name of the check in the configuration.
    pub name: String,
    /// Result: `passing`, `warning` or `critical`.
    pub status: String,
    /// Output of the check, for people.
    pub output: String,
    /// When the check last ran: RFC 3339 in UTC.
    pub updated_at: String,
}

/// A version of a machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MachineVersion {
    /// `instance_id` of the version.
    pub version: String,
    /// Configuration of the version.
    pub user_config: MachineConfig,
}
