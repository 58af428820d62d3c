//! One cycle: how long its suspend and its resume took, phase by phase, and the readiness attempts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::phases::{Phases, to_the_microsecond};
use super::resources::Resources;

/// One suspend and the resume that followed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cycle {
    /// From 1.
    pub cycle: u32,
    /// From the request until the image is durable and the VMM gone.
    #[serde(serialize_with = "to_the_microsecond")]
    pub suspend_ms: f64,
    /// From the request until the machine counts as started.
    #[serde(serialize_with = "to_the_microsecond")]
    pub resume_ms: f64,
    /// Sums to `suspend_ms`.
    pub suspend_phases_ms: Phases,
    /// Sums to `resume_ms`.
    pub resume_phases_ms: Phases,
    /// Every attempt to reach init after the resume, in order.
    pub readiness: Vec<Attempt>,
    /// Open vsock sockets in the guest after the cycle.
    #[serde(default)]
    pub guest_open_vsocks: Option<u32>,
    /// Bytes that the suspend wrote.
    #[serde(default)]
    pub image_bytes_written: Option<u64>,
    /// What was in use after the cycle.
    #[serde(default, skip_serializing_if = "Resources::is_empty")]
    pub resources: Resources,
}

impl Cycle {
    /// How many readiness attempts were made, the successful one included.
    pub fn attempts(&self) -> u32 {
        u32::try_from(self.readiness.len()).unwrap_or(u32::MAX)
    }
}

/// One attempt of a readiness check.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// Host end of the connection, where one was chosen.
    #[serde(default)]
    pub local_port: Option<u32>,
    /// How it ended.
    pub outcome: AttemptOutcome,
    /// How long it took.
    #[serde(serialize_with = "to_the_microsecond")]
    pub ms: f64,
}

/// How a readiness attempt ended.
///
/// A type of its own and not that of the Machines API: reports of peers have it too, and old
/// reports must load whatever becomes of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptOutcome {
    /// Init answered with its status.
    Ok,
    /// The guest answered the connection request with RST.
    Reset,
    /// No answer before the attempt's deadline.
    NoReply,
    /// The connection was closed before the reply.
    Closed,
    /// The reply was not init's status.
    BadReply,
}

impl AttemptOutcome {
    /// The name that reports and tables use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Reset => "reset",
            Self::NoReply => "no_reply",
            Self::Closed => "closed",
            Self::BadReply => "bad_reply",
        }
    }
}

/// How many of `attempts` ended in which way.
pub(crate) fn count_by_outcome<'a>(
    attempts: impl IntoIterator<Item = &'a Attempt>,
) -> BTreeMap<AttemptOutcome, u64> {
    let mut counts = BTreeMap::new();
    for attempt in attempts {
        *counts.entry(attempt.outcome).or_insert(0) += 1;
    }
    counts
}
