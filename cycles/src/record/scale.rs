//! Scale: resumes of a guest that starts with thousands of leaked pairs at the front of the port
//! range. What they may cost is judged in `judge`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::cycle::{Attempt, AttemptOutcome, count_by_outcome};
use super::phases::Phases;
use super::subject::PortPolicy;

/// Resumes under one port policy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScaleRun {
    /// How local ports were chosen.
    pub port_policy: PortPolicy,
    /// Whether pairs were evicted.
    pub eviction: bool,
    /// Pairs opened and abandoned before the first suspend.
    pub leaked_pairs: u32,
    /// Latency of each resume that succeeded.
    pub resume_ms: Vec<f64>,
    /// Phases and attempts of each of these, in the same order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resumes: Vec<ScaleResume>,
    /// Most readiness attempts that one resume took, a failed one included.
    pub attempts_max: u32,
    /// The error that ended the run early.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Phases and attempts of one resume of a scale run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScaleResume {
    /// Sums to its latency.
    pub phases_ms: Phases,
    /// Readiness attempts by how they ended.
    pub attempts_by_outcome: BTreeMap<AttemptOutcome, u64>,
}

impl ScaleRun {
    /// A run that has measured nothing yet.
    pub fn new(port_policy: PortPolicy, eviction: bool, leaked_pairs: u32) -> Self {
        Self {
            port_policy,
            eviction,
            leaked_pairs,
            resume_ms: Vec::new(),
            resumes: Vec::new(),
            attempts_max: 0,
            error: None,
        }
    }

    /// Records a resume that succeeded.
    pub fn add_resume(&mut self, total_ms: f64, phases: Phases, readiness: &[Attempt]) {
        let attempts = u32::try_from(readiness.len()).unwrap_or(u32::MAX);
        self.attempts_max = self.attempts_max.max(attempts);
        self.resume_ms.push(total_ms);
        self.resumes.push(ScaleResume {
            phases_ms: phases,
            attempts_by_outcome: count_by_outcome(readiness),
        });
    }

    /// All attempts of the resumes that succeeded, by outcome.
    pub(crate) fn attempts_by_outcome(&self) -> BTreeMap<AttemptOutcome, u64> {
        let mut all = BTreeMap::new();
        for (outcome, count) in self.resumes.iter().flat_map(|one| &one.attempts_by_outcome) {
            let sum: &mut u64 = all.entry(*outcome).or_insert(0);
            *sum = sum.saturating_add(*count);
        }
        all
    }

    /// The longest phase of the slowest resume, with its duration.
    pub(crate) fn longest_phase(&self) -> Option<(&str, f64)> {
        let slowest = self
            .resume_ms
            .iter()
            .zip(&self.resumes)
            .max_by(|(a, _), (b, _)| a.total_cmp(b));
        let phases = &slowest?.1.phases_ms;
        phases.iter().max_by(|(_, a), (_, b)| a.total_cmp(b))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_run_sums_attempts_and_finds_the_longest_phase() {
        let attempt = |outcome| Attempt {
            local_port: None,
            outcome,
            ms: 1.0,
        };
        let (ok, reset) = (AttemptOutcome::Ok, AttemptOutcome::Reset);
        let phases = [("spawn".to_owned(), 90.0), ("readiness".to_owned(), 300.0)];
        let phases = Phases::with_remainder(phases, 400.0);
        let mut run = ScaleRun::new(PortPolicy::Random, false, 10_000);
        run.add_resume(400.0, phases.clone(), &[attempt(ok)]);
        run.add_resume(400.0, phases, &[reset, reset, ok].map(attempt));
        let counts: Vec<_> = run.attempts_by_outcome().into_iter().collect();
        assert_eq!(counts, [(ok, 2), (reset, 2)]);
        assert_eq!(run.longest_phase(), Some(("readiness", 300.0)));
    }
}
