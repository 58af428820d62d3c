//! The readiness check of a peer: attempts, the pauses between them, and their records. Bounds and
//! outcomes are those of the supervisor (`supervisor/src/machine/readiness.rs`), so that both VMMs
//! are measured with one yardstick.

use std::time::Duration;

use cycles::{Attempt, AttemptOutcome};
use rand::RngExt;
use tokio::time::Instant;

use super::guest::CallError;

/// Bounds of a readiness check.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// For one attempt.
    pub(super) attempt: Duration,
    /// Pause after the first failed attempt; doubles with each.
    pub(super) first_pause: Duration,
    /// Longest pause.
    pub(super) longest_pause: Duration,
    /// For the whole check.
    pub(super) total: Duration,
}

/// As the supervisor's defaults, but for the whole: a peer may take as long as a step of ours.
pub(super) const LIMITS: Limits = Limits {
    attempt: Duration::from_secs(2),
    first_pause: Duration::from_millis(25),
    longest_pause: Duration::from_secs(1),
    total: Duration::from_secs(120),
};

/// No attempt succeeded in time.
#[derive(Debug, thiserror::Error)]
#[error("{what}: not ready within {} s, {attempts} attempts", limit.as_secs())]
pub struct NotReady {
    what: &'static str,
    limit: Duration,
    attempts: usize,
    /// What came of the last one.
    source: CallError,
}

/// One attempt's local port, where one was chosen, and its result.
pub(super) type Tried<T> = (Option<u32>, Result<T, CallError>);

/// Repeats `attempt` until it succeeds or the limits are reached, noting each in `attempts`.
pub(super) async fn repeat<T, F: Future<Output = Tried<T>>>(
    limits: &Limits,
    what: &'static str,
    attempts: &mut Vec<Attempt>,
    mut attempt: impl FnMut() -> F,
) -> Result<T, NotReady> {
    let deadline = Instant::now() + limits.total;
    let mut failed = 0;
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
        let next = Instant::now() + pause(limits, failed, rand::rng().random_range(0.5..1.0));
        if next >= deadline {
            return Err(NotReady {
                what,
                limit: limits.total,
                attempts: attempts.len(),
                source,
            });
        }
        tokio::time::sleep_until(next).await;
        failed += 1;
    }
}

/// How an attempt is counted.
fn outcome_of(error: Option<&CallError>) -> AttemptOutcome {
    match error {
        None => AttemptOutcome::Ok,
        Some(CallError::Reset) => AttemptOutcome::Reset,
        Some(CallError::NoReply { .. }) => AttemptOutcome::NoReply,
        // Nobody has asked the guest yet where the VMM's socket can't be connected to.
        Some(CallError::Connect { .. } | CallError::Closed(_)) => AttemptOutcome::Closed,
        Some(CallError::BadReply { .. }) => AttemptOutcome::BadReply,
    }
}

/// Pause after `failed` earlier failures; `jitter` lies between 0.5 and 1.
fn pause(limits: &Limits, failed: u32, jitter: f64) -> Duration {
    let doubled = limits.first_pause.saturating_mul(1 << failed.min(16));
    doubled.min(limits.longest_pause).mul_f64(jitter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_from_25_ms_to_a_second() {
        let ms: Vec<u128> = (0..8)
            .map(|failed| pause(&LIMITS, failed, 1.0).as_millis())
            .collect();
        assert_eq!(ms, [25, 50, 100, 200, 400, 800, 1000, 1000]);
        assert_eq!(pause(&LIMITS, 40, 0.5).as_millis(), 500);
    }

    #[test]
    fn only_a_guests_refusal_is_a_reset() {
        let closed = CallError::Connect {
            socket: "/gone".into(),
            source: std::io::Error::other("nobody"),
        };
        assert_eq!(outcome_of(Some(&closed)), AttemptOutcome::Closed);
        assert_eq!(outcome_of(Some(&CallError::Reset)), AttemptOutcome::Reset);
        assert_eq!(outcome_of(None), AttemptOutcome::Ok);
    }
}
