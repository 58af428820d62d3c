//! *Extension*: where the time of a start, suspend, resume or stop went.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::start::{Attempt, PhaseTime, StartKind};
use crate::vsock::GuestView;

/// *Extension*: one measured start, suspend, resume or stop. `GET …/timings` lists the newest
/// first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Timing {
    /// The operation that was measured.
    pub operation: Operation,
    /// Generation of the machine; for a start or resume, the new one.
    pub generation: u64,
    /// When the request was accepted: RFC 3339 in UTC, with microseconds.
    pub started_at: String,
    /// Time from the acceptance of the request to the new state, in milliseconds.
    pub total_ms: f64,
    /// Phases in their order. Together with the last one, `unattributed`, they sum to the total.
    pub phases: Vec<PhaseTime>,
    /// Readiness attempts of a start or resume.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub readiness: Vec<Attempt>,
    /// Whether a start or resume was warm or cold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<StartKind>,
    /// Bytes that a suspend wrote to the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_bytes_written: Option<u64>,
    /// Bytes of these that are guest memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes_written: Option<u64>,
    /// Bytes that the image of a suspend occupies on disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_bytes_allocated: Option<u64>,
    /// First status that guest-init reported after a start or resume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestView>,
    /// Why the operation failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// *Extension*: an operation that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// A cold boot.
    Start,
    /// Memory is saved to disk.
    Suspend,
    /// Memory is restored from disk.
    Resume,
    /// An orderly shutdown.
    Stop,
}

impl Operation {
    /// All operations.
    pub const ALL: [Self; 4] = [Self::Start, Self::Suspend, Self::Resume, Self::Stop];

    /// The name of the operation on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Suspend => "suspend",
            Self::Resume => "resume",
            Self::Stop => "stop",
        }
    }
}
