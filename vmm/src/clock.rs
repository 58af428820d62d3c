//! The clock whose readings leave this process: CLOCK_MONOTONIC in nanoseconds.
//!
//! `std::time::Instant` hides its number, and the supervisor combines the VMM's times with its own.

use rustix::time::{ClockId, clock_gettime};

/// Now, on CLOCK_MONOTONIC, in nanoseconds.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // Neither part is ever negative on this clock.
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}
