//! Scale: resumes of a guest that starts with thousands of leaked pairs at the front of the port
//! range, and what they may cost.
//!
//! They must cost nothing where ports do not begin there or pairs are evicted, and must be in the
//! way where neither is so, or the run proves nothing.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::matrix::PortPolicy;
use crate::phases::Phases;
use crate::record::AttemptOutcome;
use crate::subject::ResumeOutcome;

/// Attempts that a resume may take whatever the guest has leaked: an emulated host leaves some
/// without an answer in time. Thousands of pairs in the way cost as many as there is time for.
const ATTEMPTS_MOST: u32 = 10;

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
    /// What each of these consists of, in the same order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resumes: Vec<ScaleResume>,
    /// Most readiness attempts that one resume took, a failed one included.
    pub attempts_max: u32,
    /// What stopped the run, where something did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// One resume of a scale run, taken apart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScaleResume {
    /// Sums to its latency.
    pub phases_ms: Phases,
    /// Readiness attempts by how they ended.
    pub attempts_by_outcome: BTreeMap<AttemptOutcome, u32>,
}

/// What a scale run must show and does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleObjection {
    /// It broke off, or measured nothing.
    Stopped,
    /// Resumes took more attempts than may be.
    Attempts,
    /// Pairs that must be in the way were not.
    NotInTheWay,
}

impl fmt::Display for ScaleObjection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped => f.write_str("no resume may fail"),
            Self::Attempts => write!(f, "a resume may take at most {ATTEMPTS_MOST} attempts"),
            Self::NotInTheWay => write!(
                f,
                "the pairs must be in the way: more than {ATTEMPTS_MOST} attempts"
            ),
        }
    }
}

impl ScaleRun {
    /// Notes a resume that succeeded.
    pub fn resumed(&mut self, outcome: ResumeOutcome) {
        let mut attempts_by_outcome = BTreeMap::new();
        for attempt in &outcome.readiness {
            *attempts_by_outcome.entry(attempt.outcome).or_insert(0) += 1;
        }
        let attempts = u32::try_from(outcome.readiness.len()).unwrap_or(u32::MAX);
        self.attempts_max = self.attempts_max.max(attempts);
        self.resume_ms.push(outcome.total_ms);
        self.resumes.push(ScaleResume {
            phases_ms: outcome.phases,
            attempts_by_outcome,
        });
    }

    /// Whether it shows what it must.
    pub fn as_expected(&self) -> bool {
        self.objection().is_none()
    }

    /// What it must show and does not.
    pub fn objection(&self) -> Option<ScaleObjection> {
        let many = self.attempts_max > ATTEMPTS_MOST;
        if self.port_policy == PortPolicy::Fixed && !self.eviction {
            // With that many pairs the supervisor gives up, which is what this run is to show.
            let in_the_way = many || self.leaked_pairs <= ATTEMPTS_MOST;
            return (!in_the_way).then_some(ScaleObjection::NotInTheWay);
        }
        if self.error.is_some() || self.resume_ms.is_empty() {
            return Some(ScaleObjection::Stopped);
        }
        many.then_some(ScaleObjection::Attempts)
    }

    /// All attempts of the resumes that succeeded, by outcome.
    pub(crate) fn attempts_by_outcome(&self) -> BTreeMap<AttemptOutcome, u32> {
        let mut all = BTreeMap::new();
        for (outcome, count) in self.resumes.iter().flat_map(|one| &one.attempts_by_outcome) {
            let sum: &mut u32 = all.entry(*outcome).or_insert(0);
            *sum = sum.saturating_add(*count);
        }
        all
    }

    /// The phase that took longest in the slowest resume, with its time.
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
    use crate::record::Attempt;
    use crate::subject::GuestObservation;

    fn run(port_policy: PortPolicy, eviction: bool, attempts: &[usize]) -> ScaleRun {
        let mut run = ScaleRun {
            port_policy,
            eviction,
            leaked_pairs: 10_000,
            resume_ms: Vec::new(),
            resumes: Vec::new(),
            attempts_max: 0,
            error: None,
        };
        for count in attempts {
            let attempt = |outcome| Attempt {
                local_port: None,
                outcome,
                ms: 1.0,
            };
            let mut readiness = vec![attempt(AttemptOutcome::Reset); count - 1];
            readiness.push(attempt(AttemptOutcome::Ok));
            run.resumed(ResumeOutcome {
                total_ms: 400.0,
                phases: Phases::with_remainder(
                    [("spawn".to_owned(), 90.0), ("readiness".to_owned(), 300.0)],
                    400.0,
                ),
                readiness,
                guest: GuestObservation::default(),
            });
        }
        run
    }

    fn failed(mut run: ScaleRun, attempts: u32) -> ScaleRun {
        run.error = Some("not ready within 60 s".to_owned());
        run.attempts_max = attempts;
        run
    }

    #[test]
    fn pairs_that_are_not_in_the_way_cost_a_bounded_number_of_attempts() {
        for (policy, eviction) in [
            (PortPolicy::Random, false),
            (PortPolicy::Random, true),
            (PortPolicy::Continue, false),
            (PortPolicy::Fixed, true),
        ] {
            let run = |attempts: &[usize]| run(policy, eviction, attempts);
            assert_eq!(run(&[1, 3]).objection(), None);
            let many = Some(ScaleObjection::Attempts);
            assert_eq!(run(&[1, 11]).objection(), many);
            let stopped = Some(ScaleObjection::Stopped);
            assert_eq!(failed(run(&[1]), 1).objection(), stopped);
            assert_eq!(run(&[]).objection(), stopped);
        }
    }

    #[test]
    fn pairs_that_must_be_in_the_way_are_the_proof_that_there_are_any() {
        let fixed = |attempts: &[usize]| run(PortPolicy::Fixed, false, attempts);
        assert_eq!(failed(fixed(&[]), 71).objection(), None);
        let nothing = Some(ScaleObjection::NotInTheWay);
        assert_eq!(fixed(&[1, 1]).objection(), nothing);
        assert_eq!(failed(fixed(&[]), 0).objection(), nothing);
    }

    #[test]
    fn resumes_are_taken_apart() {
        let run = run(PortPolicy::Random, false, &[1, 3]);
        let counts: Vec<_> = run.attempts_by_outcome().into_iter().collect();
        assert_eq!(
            counts,
            [(AttemptOutcome::Ok, 2), (AttemptOutcome::Reset, 2)]
        );
        assert_eq!(run.longest_phase(), Some(("readiness", 300.0)));
    }
}
