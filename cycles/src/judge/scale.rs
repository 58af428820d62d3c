//! What resumes of a guest with thousands of leaked pairs may cost.
//!
//! They must cost nothing where ports do not start among the leaked pairs or pairs are evicted.
//! Otherwise the pairs must be in the way, or the run proves nothing.

use std::fmt;

use crate::record::{PortPolicy, ScaleRun};

/// Attempts that a resume may take however many pairs the guest has leaked: on an emulated host
/// some attempts get no answer in time. Thousands of pairs in the way cost as many attempts as the
/// time allows.
const MAX_ATTEMPTS: u32 = 10;

/// What a scale run must show and does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleMismatch {
    /// It ended early, or measured nothing.
    Failed,
    /// A resume took more attempts than allowed.
    Attempts,
    /// Pairs that must be in the way were not.
    NotInTheWay,
}

impl fmt::Display for ScaleMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed => f.write_str("no resume may fail"),
            Self::Attempts => write!(f, "a resume may take at most {MAX_ATTEMPTS} attempts"),
            Self::NotInTheWay => write!(
                f,
                "the leaked pairs must cost more than {MAX_ATTEMPTS} attempts"
            ),
        }
    }
}

impl ScaleRun {
    /// Whether it shows what it must.
    pub fn as_expected(&self) -> bool {
        self.mismatch().is_none()
    }

    /// What it must show and does not.
    pub fn mismatch(&self) -> Option<ScaleMismatch> {
        let many = self.attempts_max > MAX_ATTEMPTS;
        if self.port_policy == PortPolicy::Fixed && !self.eviction {
            // With that many pairs the supervisor gives up. This run must show just that.
            let in_the_way = many || self.leaked_pairs <= MAX_ATTEMPTS;
            return (!in_the_way).then_some(ScaleMismatch::NotInTheWay);
        }
        if self.error.is_some() || self.resume_ms.is_empty() {
            return Some(ScaleMismatch::Failed);
        }
        many.then_some(ScaleMismatch::Attempts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Attempt, AttemptOutcome, Phases};

    fn run(port_policy: PortPolicy, eviction: bool, attempts: &[usize]) -> ScaleRun {
        let mut run = ScaleRun::new(port_policy, eviction, 10_000);
        for count in attempts {
            let attempt = |outcome| Attempt {
                local_port: None,
                outcome,
                ms: 1.0,
            };
            let mut readiness = vec![attempt(AttemptOutcome::Reset); count - 1];
            readiness.push(attempt(AttemptOutcome::Ok));
            run.add_resume(400.0, Phases::default(), &readiness);
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
            assert_eq!(run(&[1, 3]).mismatch(), None);
            let many = Some(ScaleMismatch::Attempts);
            assert_eq!(run(&[1, 11]).mismatch(), many);
            let failed_run = Some(ScaleMismatch::Failed);
            assert_eq!(failed(run(&[1]), 1).mismatch(), failed_run);
            assert_eq!(run(&[]).mismatch(), failed_run);
        }
    }

    #[test]
    fn pairs_that_must_be_in_the_way_prove_that_there_are_any() {
        let fixed = |attempts: &[usize]| run(PortPolicy::Fixed, false, attempts);
        assert_eq!(failed(fixed(&[]), 71).mismatch(), None);
        let nothing = Some(ScaleMismatch::NotInTheWay);
        assert_eq!(fixed(&[1, 1]).mismatch(), nothing);
        assert_eq!(failed(fixed(&[]), 0).mismatch(), nothing);
    }
}
