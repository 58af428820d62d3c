//! *Extension*: `GET …/vsock`, how host and guest see a machine's vsock connections, and what that
//! means.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::start::{Attempt, StartKind};

/// *Extension*: the status that guest-init reports.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GuestView {
    /// Id of the boot: changes with each boot, never with a resume.
    pub boot_id: String,
    /// Newest generation that guest-init has seen.
    pub generation: u64,
    /// Version of guest-init.
    pub init_version: String,
    /// Uptime of the guest, in milliseconds.
    pub uptime_ms: u64,
    /// How far the guest's wall clock was stepped at the resume, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_step_ms: Option<i64>,
    /// Open vsock sockets of the guest.
    pub sockets: GuestSockets,
}

/// *Extension*: open vsock sockets of a guest. The socket on which this was asked is left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GuestSockets {
    /// Number of open sockets, without those that listen.
    pub total: u32,
    /// Number of these that are known to belong to an older generation.
    pub older_generations: u32,
    /// The sockets by state and generation.
    pub counts: Vec<SocketCount>,
    /// Who counted: `vsock_diag` (the guest's kernel) or `init`.
    pub source: String,
}

/// *Extension*: the number of sockets of one state and generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SocketCount {
    /// State of the sockets: `established`, `closed`, …
    pub state: String,
    /// Generation in which the sockets were opened. For dead sockets of other processes than
    /// guest-init, the generation whose end left them over. Absent if the guest does not know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// Number of sockets.
    pub count: u32,
}

/// *Extension*: answer to `GET …/vsock`: the host's and the guest's view of the machine's vsock
/// connections, and a diagnosis.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VsockView {
    /// Counters of the VMM; the metrics of the same names explain them.
    pub host: serde_json::Value,
    /// The guest's view, asked for this answer; absent if guest-init did not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestView>,
    /// Readiness attempts of the last start or resume.
    pub last_readiness: Vec<Attempt>,
    /// Whether that was a start or a resume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_start: Option<StartKind>,
    /// What the figures mean.
    pub diagnosis: VsockDiagnosis,
}

/// *Extension*: what a machine's vsock figures mean.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VsockDiagnosis {
    /// The result.
    pub verdict: Verdict,
    /// Number of pairs that are open in the guest although their host end is gone.
    pub leaked_pairs: u32,
    /// Number of sockets whose pair the guest's kernel has freed, but which their owner has not
    /// closed.
    #[serde(default)]
    pub unclosed_sockets: u32,
    /// Oldest generation of which leaked sockets are seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_generation: Option<u64>,
    /// Failed attempts to expect at the next resume, with this machine's port policy.
    pub expected_failed_attempts: f64,
    /// Time that these attempts cost, in milliseconds.
    pub expected_delay_ms: f64,
    /// Sentences for people: what was found, what it costs, what to do.
    pub findings: Vec<String>,
}

/// *Extension*: whether a machine leaks vsock connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// No socket of an older generation is open.
    Healthy,
    /// Sockets of older generations are open, but do not delay resumes.
    Leaking,
    /// Readiness attempts of a resume fail because of leaked pairs.
    Colliding,
    /// guest-init did not answer, or attempts failed without a leaked pair that explains it.
    Unknown,
}
