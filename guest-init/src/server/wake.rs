//! Applies a wake-up: steps the clock and reseeds the random pool. During a suspend the clock does
//! not run, and a resumed guest has the random pool of the saved image. The server decides when to
//! apply one.

use std::io;

use guest_protocol::{ENTROPY_BYTES, Wake};
use nix::sys::time::TimeSpec;

use crate::os::clock::realtime_ns;
use crate::os::kernel::Kernel;

/// How far the guest's clock may be ahead of the host's time in a call. The call takes a while to
/// arrive, and the clock should not step back for that.
const DELIVERY_NS: i64 = 1_000_000_000;

/// Why a wake-up call was not fully applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WakeError {
    #[error("the host's time, {0} ns since 1970, is out of range")]
    Time(u64),
    #[error("cannot set the clock")]
    Clock(#[source] io::Error),
    #[error("the host's entropy is not {ENTROPY_BYTES} bytes in hexadecimal")]
    Entropy,
    #[error("cannot reseed the random pool")]
    Reseed(#[source] io::Error),
}

/// Steps the clock to the host's time; returns the step in milliseconds.
pub(crate) fn step_clock(wake: &Wake, kernel: &dyn Kernel) -> Result<i64, WakeError> {
    let target = to_timespec(wake.realtime_ns).ok_or(WakeError::Time(wake.realtime_ns))?;
    let step_ns = i128::from(wake.realtime_ns) - i128::from(realtime_ns());
    let step_ns = i64::try_from(step_ns).map_err(|_| WakeError::Time(wake.realtime_ns))?;
    if !is_step_due(step_ns) {
        return Ok(0);
    }
    kernel.set_realtime(target).map_err(WakeError::Clock)?;
    Ok(step_ns / 1_000_000)
}

/// Adds the host's entropy to the random pool.
pub(crate) fn reseed(wake: &Wake, kernel: &dyn Kernel) -> Result<(), WakeError> {
    let entropy = wake.entropy().ok_or(WakeError::Entropy)?;
    kernel.reseed(entropy).map_err(WakeError::Reseed)
}

fn is_step_due(step_ns: i64) -> bool {
    !(-DELIVERY_NS..=0).contains(&step_ns)
}

fn to_timespec(realtime_ns: u64) -> Option<TimeSpec> {
    let seconds = i64::try_from(realtime_ns / 1_000_000_000).ok()?;
    let nanoseconds = i64::try_from(realtime_ns % 1_000_000_000).ok()?;
    (seconds > 0).then(|| TimeSpec::new(seconds, nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_stepped_forward_always_and_back_only_beyond_the_delivery_time() {
        let cases = [
            (1, true),
            (3_600_000_000_000, true),
            (0, false),
            (-DELIVERY_NS, false),
            (-DELIVERY_NS - 1, true),
        ];
        for (step_ns, due) in cases {
            assert_eq!(is_step_due(step_ns), due, "{step_ns}");
        }
    }

    #[test]
    fn times_out_of_range_are_refused() {
        assert!(to_timespec(0).is_none());
        assert!(to_timespec(1_800_000_000_000_000_001).is_some());
    }
}
