//! Bodies of requests, and the small answers to them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{MachineConfig, MachineState, StartKind};

/// `POST /v1/apps/{app}/machines`, and `…/{id}` as an update.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CreateMachine {
    /// Chosen by the supervisor if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Kept for that API: a host is one region, and machines are made there whatever it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// What it is made of.
    pub config: MachineConfig,
    /// Do not start it.
    #[serde(default)]
    pub skip_launch: bool,
    /// Make it cordoned: new connections are not routed to it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skip_service_registration: bool,
    /// Take a lease of that many seconds with it; 0 takes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_ttl: Option<u32>,
}

/// `POST /v1/apps/{app}/machines/{id}`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UpdateMachine {
    /// The whole new configuration.
    pub config: MachineConfig,
    /// New name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Refuse unless this is the version in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_version: Option<String>,
    /// Do not start it.
    #[serde(default)]
    pub skip_launch: bool,
    /// Cordon it with this: new connections are not routed to it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skip_service_registration: bool,
    /// Take a lease of that many seconds before it, or refresh the one that is held; 0 does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_ttl: Option<u32>,
}

/// Answer where there is nothing to tell.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Ok {
    /// Always true.
    pub ok: bool,
}

/// Answer to `…/start`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StartResponse {
    /// Where it came from.
    pub previous_state: MachineState,
    /// True once accepted.
    #[serde(default)]
    pub migrated: bool,
    /// What the host it will run on says; always empty.
    #[serde(default)]
    pub new_host: String,
    /// *Extension*: how it went, with `?wait=true`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<StartKind>,
}

/// `…/stop`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StopRequest {
    /// Signal name such as `SIGTERM`, or its number.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::lenient::maybe_signal"
    )]
    pub signal: Option<String>,
    /// Duration such as `30s`; then it is killed.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::duration::read"
    )]
    pub timeout: Option<String>,
}

/// `…/signal`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SignalRequest {
    /// Signal name such as `SIGHUP`, or its number.
    #[serde(deserialize_with = "crate::lenient::signal")]
    pub signal: String,
}

/// `…/exec`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExecRequest {
    /// Program and arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// The same as one string, split as a shell splits words; older clients send it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmd: Option<String>,
    /// Bytes for its standard input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
    /// Seconds; then it is killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u32>,
}

/// Answer to `…/exec`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExecResponse {
    /// -1 if a signal ended it.
    pub exit_code: i32,
    /// 0 if none.
    #[serde(default)]
    pub exit_signal: i32,
    /// Standard output; invalid UTF-8 replaced.
    #[serde(default)]
    pub stdout: String,
    /// Standard error; invalid UTF-8 replaced.
    #[serde(default)]
    pub stderr: String,
    /// *Extension*: either was longer than 4 MiB, and the rest of it is not here. `…/exec/stream`
    /// has no such bound.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
}

/// `POST …/lease`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeaseRequest {
    /// Seconds; 1 to 86,400.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u32>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// A lease.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Lease {
    /// Sent in [`crate::LEASE_NONCE_HEADER`]. Shown to who may change machines.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub nonce: String,
    /// Seconds since 1970.
    pub expires_at: i64,
    /// Who took it.
    #[serde(default)]
    pub owner: String,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// The machine's version when it was taken.
    #[serde(default)]
    pub version: String,
}

/// Answer about a lease.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeaseResponse {
    /// `success`.
    pub status: String,
    /// The lease.
    pub data: Lease,
}

/// Answer to `DELETE …/lease`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeaseReleased {
    /// `success`.
    pub status: String,
    /// That it is done.
    pub data: Ok,
}

/// `POST …/metadata/{key}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MetadataValue {
    /// The value.
    pub value: String,
}

/// One row of `…/ps`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ListedProcess {
    /// Process id in the guest.
    pub pid: i32,
    /// Its command line.
    pub command: String,
    /// Its working directory; empty where not known.
    #[serde(default)]
    pub directory: String,
    /// CPU time in seconds.
    pub cpu: u64,
    /// Resident memory in bytes.
    pub rss: u64,
    /// Seconds that it has run; 0 where not known.
    #[serde(default)]
    pub rtime: u64,
    /// When it was started, in seconds since 1970; 0 where not known.
    #[serde(default)]
    pub stime: u64,
    /// Sockets on which it listens.
    #[serde(default)]
    pub listen_sockets: Vec<ListenSocket>,
}

/// A socket of a [`ListedProcess`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ListenSocket {
    /// `tcp`.
    pub proto: String,
    /// Address and port, such as `127.0.0.1:80` or `[::]:80`.
    pub address: String,
}

/// *Extension*: one line of `…/logs` (a JSON object per line).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogLine {
    /// RFC 3339 with microseconds, UTC.
    pub time: String,
    /// Where it came from.
    pub source: LogSource,
    /// Without its line end.
    pub text: String,
}

/// Sources of a [`LogLine`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogSource {
    /// Main process's standard output.
    Stdout,
    /// Main process's standard error.
    Stderr,
    /// The serial console: kernel and guest-init.
    Console,
    /// The supervisor about this machine.
    Supervisor,
}

/// *Extension*: answer to `PUT …/files`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileWritten {
    /// Bytes in the file now.
    pub bytes: u64,
}

/// *Extension*: `GET …/usage`, from the machine's CPU monitor.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// The monitor has told something; all else is zero until then.
    pub known: bool,
    /// CPU time used between the last two samples, 100 for one vCPU.
    pub cpu_percent: f64,
    /// Load averages over 1, 5 and 15 minutes.
    pub load: [f32; 3],
    /// All memory the guest's kernel manages.
    pub memory_total_kib: u64,
    /// Memory available to new processes.
    pub memory_available_kib: u64,
    /// The guest's uptime, time asleep included.
    pub uptime_ms: u64,
}
