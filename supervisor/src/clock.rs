//! The two clocks: monotonic time for durations, real time for people.
//!
//! Monotonic nanoseconds are the host's CLOCK_MONOTONIC, which the VMM's phases use too, so that
//! both can be compared. Nothing here waits.

use rustix::time::{ClockId, clock_gettime};

/// CLOCK_MONOTONIC in nanoseconds.
pub(crate) fn monotonic_ns() -> u64 {
    nanoseconds(ClockId::Monotonic)
}

/// CLOCK_REALTIME in nanoseconds since 1970.
pub(crate) fn realtime_ns() -> u64 {
    nanoseconds(ClockId::Realtime)
}

/// CLOCK_REALTIME in milliseconds since 1970.
pub(crate) fn realtime_ms() -> i64 {
    i64::try_from(realtime_ns() / 1_000_000).unwrap_or(i64::MAX)
}

fn nanoseconds(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000) + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// Milliseconds from `start_ns` to `end_ns`; zero if `end_ns` is the earlier one.
#[expect(clippy::cast_precision_loss, reason = "2^53 ns are a hundred days")]
pub(crate) fn ms_between(start_ns: u64, end_ns: u64) -> f64 {
    end_ns.saturating_sub(start_ns) as f64 / 1e6
}

/// RFC 3339 in UTC with microseconds, of nanoseconds since 1970.
pub(crate) fn rfc3339(realtime_ns: u64) -> String {
    let micros = realtime_ns / 1_000 % 1_000_000;
    let seconds = realtime_ns / 1_000_000_000;
    let (year, month, day) = civil_date(seconds / 86_400);
    let of_day = seconds % 86_400;
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{micros:06}Z",
        of_day / 3_600,
        of_day / 60 % 60,
        of_day % 60,
    )
}

/// RFC 3339 of milliseconds since 1970.
pub(crate) fn rfc3339_ms(realtime_ms: i64) -> String {
    rfc3339(
        u64::try_from(realtime_ms)
            .unwrap_or(0)
            .saturating_mul(1_000_000),
    )
}

/// Year, month and day of a count of days since 1970-01-01, by the calendar's 400-year cycle.
fn civil_date(days: u64) -> (u64, u64, u64) {
    // Years begin in March here, so that the leap day is the last day of a year.
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_instants_are_written_as_rfc_3339() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(
            rfc3339(951_782_400_000_000_000),
            "2000-02-29T00:00:00.000000Z"
        );
        assert_eq!(
            rfc3339(1_795_435_262_123_456_789),
            "2026-11-23T12:01:02.123456Z"
        );
    }
}
