//! *Extensions*: where the time of a transition went, and what vsock looked like.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::StartKind;

/// One measured start, suspend, resume or stop. `…/timings`, newest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Timing {
    /// What was done.
    pub operation: Operation,
    /// Generation during it (for a start or resume: the new one).
    pub generation: u64,
    /// RFC 3339 with microseconds, UTC.
    pub started_at: String,
    /// From the request's admission to the new state, in milliseconds.
    pub total_ms: f64,
    /// In order; they sum to the total with the last one, `unattributed`.
    pub phases: Vec<PhaseTime>,
    /// Readiness attempts, of a start or resume.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub readiness: Vec<Attempt>,
    /// Warm or cold, of a start or resume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<StartKind>,
    /// Bytes written to the image, of a suspend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_bytes_written: Option<u64>,
    /// Of these, guest memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes_written: Option<u64>,
    /// Bytes the image occupies on disk, of a suspend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_bytes_allocated: Option<u64>,
    /// What init told in the first status, of a start or resume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestView>,
    /// Why it failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What a [`Timing`] measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// A cold boot.
    Start,
    /// Memory to disk.
    Suspend,
    /// Memory from disk.
    Resume,
    /// Orderly shutdown.
    Stop,
}

/// A phase and its length.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PhaseTime {
    /// Lower case with underscores; `unattributed` for the rest.
    pub name: String,
    /// Milliseconds.
    pub ms: f64,
}

/// One attempt of a readiness check.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Attempt {
    /// Host end of the pair; none where the VMM had not told it yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_port: Option<u32>,
    /// What came of it.
    pub outcome: AttemptOutcome,
    /// How long it took, in milliseconds.
    pub ms: f64,
    /// For people, where it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// What came of an [`Attempt`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AttemptOutcome {
    /// init answered with the current generation.
    Ok,
    /// The guest answered with RST: the pair is taken, or nobody listens.
    Reset,
    /// No answer within the attempt's deadline.
    NoReply,
    /// The connection broke after it was made.
    Closed,
    /// init answered with something else.
    BadReply,
}

/// What init told about its guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GuestView {
    /// Changes with each boot and never on a resume.
    pub boot_id: String,
    /// Newest generation it has seen.
    pub generation: u64,
    /// Version of guest-init.
    pub init_version: String,
    /// Guest's uptime in milliseconds.
    pub uptime_ms: u64,
    /// How far its clock was stepped at the wake-up, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_step_ms: Option<i64>,
    /// Its open vsock sockets.
    pub sockets: GuestSockets,
}

/// Open vsock sockets of a guest, the asking one excluded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GuestSockets {
    /// All, listeners excluded.
    pub total: u32,
    /// Of these, known to belong to an older generation.
    pub older_generations: u32,
    /// By state and generation.
    pub counts: Vec<SocketCount>,
    /// `vsock_diag` or `init`.
    pub source: String,
}

/// Sockets that agree in state and generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SocketCount {
    /// `established`, `closed`, …
    pub state: String,
    /// Generation in which it was opened, or for other processes' sockets that are dead the one that left
    /// them over; none where the guest does not know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// How many.
    pub count: u32,
}

/// `…/vsock`: both ends' view, and what to make of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VsockView {
    /// The VMM's counters (see the metrics of the same names).
    pub host: serde_json::Value,
    /// The guest's view, asked now; none where init did not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestView>,
    /// Attempts of the last start or resume.
    pub last_readiness: Vec<Attempt>,
    /// Which of the two it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_start: Option<StartKind>,
    /// What it means.
    pub diagnosis: VsockDiagnosis,
}

/// What a machine's vsock figures mean.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VsockDiagnosis {
    /// In a word.
    pub verdict: Verdict,
    /// Pairs that stay open in the guest without a living other end.
    pub leaked_pairs: u32,
    /// Sockets that the guest's kernel has freed the pair of, but that their owner has not closed.
    #[serde(default)]
    pub unclosed_sockets: u32,
    /// Generation since which leaked sockets are seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_generation: Option<u64>,
    /// Expected failed attempts at the next resume, under this machine's port policy.
    pub expected_failed_attempts: f64,
    /// Time they cost, in milliseconds.
    pub expected_delay_ms: f64,
    /// Sentences for people: what was found, what it costs, what to do.
    pub findings: Vec<String>,
}

/// Whether a machine leaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Nothing of an older generation is open.
    Healthy,
    /// Sockets of older generations stay open, resumes are not delayed.
    Leaking,
    /// Resumes fail attempts on leaked pairs.
    Colliding,
    /// init did not answer.
    Unknown,
}

/// `GET /v1/host`: what the supervisor knows of its host; for `mctl doctor`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HostInfo {
    /// Version of the supervisor.
    pub version: String,
    /// `hardware`, `virtual`, `software` or `missing`.
    pub kvm: String,
    /// For people, with the measured speed.
    pub kvm_detail: String,
    /// The CPU's name.
    pub cpu: String,
    /// Kernel release of the host.
    pub kernel: String,
    /// CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Names of the images in the store.
    pub images: Vec<String>,
    /// Release of each image's kernel, by the image's name.
    #[serde(default)]
    pub image_kernels: BTreeMap<String, String>,
    /// State directory.
    pub state_dir: String,
    /// VMM binary.
    pub vmm: String,
    /// Whether that is there.
    #[serde(default = "yes")]
    pub vmm_there: bool,
    /// Where the API is served over TCP, such as `https://127.0.0.1:4280`, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

/// Of supervisors that do not say.
const fn yes() -> bool {
    true
}
