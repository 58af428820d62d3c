//! How a start or resume went: warm or cold, the readiness attempts, the phases.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// *Extension*: whether a start was warm or cold, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum StartKind {
    /// The machine continued from its image.
    Resumed,
    /// The machine booted, because it was not suspended.
    Booted,
    /// The machine booted although it was suspended; the guest's memory is lost.
    ColdBooted {
        /// Why: `image missing`, `checksum mismatch`, `configuration changed`, …
        reason: String,
    },
    /// A suspend was cancelled, and the same VMM went on.
    SuspendCancelled,
}

/// *Extension*: one attempt of a readiness check.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Attempt {
    /// Vsock port of the host's end; absent if the VMM had not reported it yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_port: Option<u32>,
    /// Result of the attempt.
    pub outcome: AttemptOutcome,
    /// How long the attempt took, in milliseconds.
    pub ms: f64,
    /// Why it failed, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// *Extension*: result of a readiness attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AttemptOutcome {
    /// guest-init answered with the current generation.
    Ok,
    /// The guest answered with RST: the pair is still open there, or nobody listens.
    Reset,
    /// No answer within the attempt's deadline.
    NoReply,
    /// The connection broke after it was made.
    Closed,
    /// An answer came, but not the expected one.
    BadReply,
}

/// *Extension*: one phase of a transition, and how long it took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PhaseTime {
    /// Name in lower case with underscores; `unattributed` is the time that belongs to no phase.
    pub name: String,
    /// How long the phase took, in milliseconds.
    pub ms: f64,
}
