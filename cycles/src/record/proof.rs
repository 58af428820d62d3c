//! A proof: the same work on several kinds of KVM, one part for each.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::report::Report;
use super::verdict::Outcome;

/// What `proof.json` holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Proof {
    /// Version of the program that made it.
    pub version: String,
    /// Digest of the programs, and how much was asked of them: a proof is continued with the same only.
    #[serde(default)]
    pub work: String,
    /// When it started, RFC 3339.
    pub started_at: String,
    /// The machine on which it was made, by name: processor, kernel, memory, kind of KVM.
    pub machine: BTreeMap<String, String>,
    /// One for each kind of KVM, those that were left out included.
    pub parts: Vec<ProofPart>,
}

/// The work on one kind of KVM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProofPart {
    /// Short name, such as `intel`.
    pub name: String,
    /// The KVM module, the processor, and how many there are.
    pub kvm: String,
    /// Why the part was left out. Nothing else is there then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<String>,
    /// The cycles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<Report>,
    /// The tests on real guests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub promises: Vec<PromiseResult>,
    /// What went wrong apart from cycles and promises.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<String>,
    /// Seconds that cycles and promises took, by the clock of the machine that made the proof.
    #[serde(default)]
    pub seconds: u64,
    /// How often it was run: more than once where it was continued after a run in which it did not hold. What held
    /// in an earlier run is not run again.
    #[serde(default = "once")]
    pub runs: u32,
}

fn once() -> u32 {
    1
}

/// One test on real guests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromiseResult {
    /// Its name.
    pub name: String,
    /// How it ended.
    pub outcome: PromiseOutcome,
    /// Why it was broken, perhaps in an earlier run only, or not tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// In which run of its part it ended so.
    #[serde(default = "once")]
    pub run: u32,
}

/// How a test on real guests ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PromiseOutcome {
    /// It passed.
    Kept,
    /// It failed.
    Broken,
    /// It needs something that is not there.
    NotTried,
}

impl Proof {
    /// Whether every part that was not left out holds, and there is one.
    pub fn holds(&self) -> bool {
        let mut tried = self.parts.iter().filter(|part| part.left_out.is_none());
        self.parts.iter().any(|part| part.left_out.is_none()) && tried.all(ProofPart::holds)
    }
}

impl ProofPart {
    /// The verdict on the cycles, if there is one and nothing else went wrong.
    pub fn outcome(&self) -> Option<Outcome> {
        let is_sound = self.errors.is_empty()
            && self.count(PromiseOutcome::Broken) == 0
            && self.count(PromiseOutcome::Kept) > 0;
        let report = self.report.as_ref()?;
        (is_sound && report.failed_check.is_none()).then_some(report.flatness.outcome)
    }

    /// Whether the cycles are flat and no promise is broken.
    pub fn holds(&self) -> bool {
        self.outcome() == Some(Outcome::Flat)
    }

    /// How many promises ended so.
    pub fn count(&self, outcome: PromiseOutcome) -> usize {
        let promises = self.promises.iter();
        promises.filter(|one| one.outcome == outcome).count()
    }
}
