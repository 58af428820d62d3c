//! Reads the guest's clocks. Setting one is a call of `kernel.rs`.

use nix::time::{ClockId, clock_gettime};

/// CLOCK_REALTIME in nanoseconds since 1970; zero for earlier times.
pub(crate) fn realtime_ns() -> u64 {
    read_ns(ClockId::CLOCK_REALTIME)
}

/// CLOCK_BOOTTIME in milliseconds.
pub(crate) fn uptime_ms() -> u64 {
    read_ns(ClockId::CLOCK_BOOTTIME) / 1_000_000
}

fn read_ns(clock: ClockId) -> u64 {
    clock_gettime(clock).map_or(0, |now| {
        let seconds = u64::try_from(now.tv_sec()).unwrap_or(0);
        let nanoseconds = u64::try_from(now.tv_nsec()).unwrap_or(0);
        seconds.saturating_mul(1_000_000_000) + nanoseconds
    })
}
