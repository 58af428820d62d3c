//! The readiness check of a peer: its attempts and their records. Limits and outcomes are those of
//! the supervisor (`supervisor/src/machine/readiness.rs`), so that both VMMs are measured alike.

use std::time::Duration;

use cycles::{Attempt, AttemptOutcome};
use guest_protocol::backoff::{Backoff, JITTER};
use rand::RngExt;
use tokio::time::Instant;

use super::guest::{AttemptResult, CallError};

/// Limits of a readiness check.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Longest that one attempt may take.
    pub(super) attempt: Duration,
    /// Waits between attempts.
    pub(super) backoff: Backoff,
    /// Longest that the whole check may take.
    pub(super) total: Duration,
}

/// The supervisor's defaults, except for the whole check: a peer may take as long as a step of ours.
pub(super) const LIMITS: Limits = Limits {
    attempt: Duration::from_secs(2),
    backoff: Backoff {
        first: Duration::from_millis(25),
        longest: Duration::from_secs(1),
    },
    total: Duration::from_secs(120),
};

/// No attempt succeeded in time.
#[derive(Debug, thiserror::Error)]
#[error("{what}: not ready within {} s, {attempts} attempts", limit.as_secs())]
pub struct NotReady {
    what: &'static str,
    limit: Duration,
    attempts: usize,
    /// Why the last one failed.
    source: CallError,
}

/// Repeats `attempt` until it succeeds or the limits are reached, and records each in `attempts`.
pub(super) async fn retry<T, F: Future<Output = AttemptResult<T>>>(
    limits: &Limits,
    what: &'static str,
    attempts: &mut Vec<Attempt>,
    mut attempt: impl FnMut() -> F,
) -> Result<T, NotReady> {
    let deadline = Instant::now() + limits.total;
    let mut failed_before = 0;
    loop {
        let begun = Instant::now();
        let (local_port, result) = attempt().await;
        attempts.push(Attempt {
            local_port,
            outcome: outcome_of(result.as_ref().err()),
            ms: begun.elapsed().as_secs_f64() * 1e3,
        });
        let source = match result {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let jitter = rand::rng().random_range(JITTER);
        let next = Instant::now() + limits.backoff.wait(failed_before, jitter);
        if next >= deadline {
            return Err(NotReady {
                what,
                limit: limits.total,
                attempts: attempts.len(),
                source,
            });
        }
        tokio::time::sleep_until(next).await;
        failed_before += 1;
    }
}

/// How an attempt is recorded.
fn outcome_of(error: Option<&CallError>) -> AttemptOutcome {
    match error {
        None => AttemptOutcome::Ok,
        Some(CallError::Reset) => AttemptOutcome::Reset,
        Some(CallError::NoReply { .. }) => AttemptOutcome::NoReply,
        // If the VMM's socket does not accept, the guest was not asked.
        Some(CallError::Connect { .. } | CallError::Closed(_)) => AttemptOutcome::Closed,
        Some(CallError::BadReply { .. }) => AttemptOutcome::BadReply,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_from_25_ms_to_a_second() {
        let ms: Vec<u128> = (0..8)
            .map(|failed| LIMITS.backoff.wait(failed, 1.0).as_millis())
            .collect();
        assert_eq!(ms, [25, 50, 100, 200, 400, 800, 1000, 1000]);
        assert_eq!(LIMITS.backoff.wait(40, 0.5).as_millis(), 500);
    }

    #[test]
    fn only_a_refusal_by_the_guest_is_a_reset() {
        let closed = CallError::Connect {
            socket: "/gone".into(),
            source: std::io::Error::other("nobody"),
        };
        assert_eq!(outcome_of(Some(&closed)), AttemptOutcome::Closed);
        assert_eq!(outcome_of(Some(&CallError::Reset)), AttemptOutcome::Reset);
        assert_eq!(outcome_of(None), AttemptOutcome::Ok);
    }
}
