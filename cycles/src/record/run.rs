//! A run of cycles before it becomes a report.

use serde::{Deserialize, Serialize};

use super::cycle::Cycle;
use super::subject::SubjectDescription;
use super::verdict::FailedCheck;

/// Everything that was recorded until the run ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// What was put through the cycles.
    pub subject: SubjectDescription,
    /// How many cycles were requested.
    pub cycles_wanted: u32,
    /// After how many cycles it was judged while it went on; none if it was not.
    pub looks: Vec<u32>,
    /// The completed ones. A cycle whose check failed is included if its figures are usable.
    pub cycles: Vec<Cycle>,
    /// How it ended.
    pub end: RunEnd,
    /// Sockets open in the guest before the first suspend, if the guest reports them.
    pub vsocks_before: Option<u32>,
}

impl Run {
    /// The check that ended the run, if one did.
    pub fn failed_check(&self) -> Option<&FailedCheck> {
        match &self.end {
            RunEnd::CheckFailed(failed) => Some(failed),
            RunEnd::Complete | RunEnd::Interrupted => None,
        }
    }

    /// The resume latency of every cycle.
    pub fn resume_ms(&self) -> Vec<f64> {
        self.cycles.iter().map(|cycle| cycle.resume_ms).collect()
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunEnd {
    /// After the last cycle.
    Complete,
    /// The observer ended it.
    Interrupted,
    /// A check failed, or the subject did.
    CheckFailed(FailedCheck),
}
