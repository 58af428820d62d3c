//! What a guest does once when it wakes up in a new generation: it steps its clock and takes in
//! fresh entropy, for the clock has stood still and the random pool is that of the saved image.

use std::io;

use guest_protocol::Wake;
use nix::sys::time::TimeSpec;

use crate::kernel::Kernel;
use crate::output::realtime_ns;
use crate::sys::ENTROPY_BYTES;

/// How far the guest's clock may be ahead of the host's time in a call: the call took a while
/// to arrive, and time should not run backwards for that.
const DELIVERY_NS: i64 = 1_000_000_000;

/// Why a wake-up call was not fully applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WakeError {
    #[error("the host's time of {0} ns since 1970 is no time of day")]
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

/// Takes in the host's entropy.
pub(crate) fn reseed(wake: &Wake, kernel: &dyn Kernel) -> Result<(), WakeError> {
    let entropy = decode_hex(&wake.entropy_hex).ok_or(WakeError::Entropy)?;
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

fn decode_hex(text: &str) -> Option<[u8; ENTROPY_BYTES]> {
    if text.len() != 2 * ENTROPY_BYTES {
        return None;
    }
    let mut bytes = [0; ENTROPY_BYTES];
    let (digits, _) = text.as_bytes().as_chunks::<2>();
    for (byte, [high, low]) in bytes.iter_mut().zip(digits) {
        let high = char::from(*high).to_digit(16)?;
        let low = char::from(*low).to_digit(16)?;
        *byte = u8::try_from(high << 4 | low).ok()?;
    }
    Some(bytes)
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
    fn entropy_of_the_wrong_length_or_alphabet_is_refused() {
        let good = "0f".repeat(ENTROPY_BYTES);
        assert_eq!(decode_hex(&good), Some([0x0f; ENTROPY_BYTES]));
        assert_eq!(decode_hex(&good[1..]), None);
        assert_eq!(decode_hex(&"é".repeat(ENTROPY_BYTES)), None);
        assert_eq!(decode_hex(&"0x".repeat(ENTROPY_BYTES)), None);
    }

    #[test]
    fn times_that_are_none_are_refused() {
        assert!(to_timespec(0).is_none());
        assert!(to_timespec(1_800_000_000_000_000_001).is_some());
    }
}
