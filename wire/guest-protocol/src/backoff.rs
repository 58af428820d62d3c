//! Backoff: how a caller paces its attempts at a readiness check. The attempts, their deadlines
//! and the sleeping are the caller's; so is the random number.

use std::ops::Range;
use std::time::Duration;

/// Range of the factor that spreads the waits, so that many machines that wake together do not
/// ask together.
pub const JITTER: Range<f64> = 0.5..1.0;

/// Bounds of the wait between two attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// Wait after the first failed attempt; doubles with each further one.
    pub first: Duration,
    /// Longest wait.
    pub longest: Duration,
}

impl Backoff {
    /// The wait before the next attempt, where `failed_before` attempts failed before the one
    /// that has just failed. `jitter` is a random number out of [`JITTER`].
    #[must_use]
    pub fn wait(&self, failed_before: u32, jitter: f64) -> Duration {
        let doubled = self.first.saturating_mul(1 << failed_before.min(16));
        doubled.min(self.longest).mul_f64(jitter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff = Backoff {
        first: Duration::from_millis(25),
        longest: Duration::from_secs(1),
    };

    #[test]
    fn waits_double_up_to_the_longest() {
        let waits_ms: Vec<u128> = (0..8)
            .map(|failed| BACKOFF.wait(failed, 1.0).as_millis())
            .collect();
        assert_eq!(waits_ms, [25, 50, 100, 200, 400, 800, 1_000, 1_000]);
    }

    #[test]
    fn jitter_shortens_a_wait_to_no_less_than_its_half() {
        assert_eq!(BACKOFF.wait(1, JITTER.start).as_millis(), 25);
        assert_eq!(BACKOFF.wait(1, JITTER.end).as_millis(), 50);
    }

    #[test]
    fn any_number_of_failures_has_a_wait() {
        assert_eq!(BACKOFF.wait(40, 0.5).as_millis(), 500);
        assert_eq!(BACKOFF.wait(u32::MAX, 0.5).as_millis(), 500);
    }
}
