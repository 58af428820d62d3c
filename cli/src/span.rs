//! Times as people write and read them. Only [`parse_since`] reads a clock.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// Parses `90`, `90s`, `1m30s`, `500ms`; a bare number means seconds.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse::<u32>() {
        return Ok(Duration::from_secs(seconds.into()));
    }
    let span: SignedDuration = text
        .parse()
        .map_err(|_| format!("{text:?} is no time such as 30s, 1m30s or 500ms"))?;
    Duration::try_from(span).map_err(|_| format!("{text:?} is negative"))
}

/// Parses a point in time: RFC 3339, or how long ago. Returns RFC 3339.
pub(crate) fn parse_since(text: &str) -> Result<String, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time.to_string());
    }
    let ago = parse_duration(text)
        .map_err(|_| format!("{text:?} is neither a time such as 2026-01-31T12:00:00Z nor 10m"))?;
    let then = Timestamp::now()
        .checked_sub(ago)
        .map_err(|_| format!("{text:?} is too long ago"))?;
    Ok(then.to_string())
}

/// RFC 3339 of milliseconds since 1970.
pub(crate) fn at_millisecond(ms: i64) -> String {
    Timestamp::from_millisecond(ms).map_or_else(|_| format!("{ms} ms"), |time| format!("{time:.3}"))
}

/// RFC 3339 of seconds since 1970.
pub(crate) fn at_second(seconds: i64) -> String {
    Timestamp::from_second(seconds).map_or_else(|_| format!("{seconds} s"), |time| time.to_string())
}

/// Milliseconds with the digits that matter: `3.21 ms`, `412 ms`, `2.4 s`, `1m12s`.
pub(crate) fn milliseconds(ms: f64) -> String {
    if ms < 9.995 {
        format!("{ms:.2} ms")
    } else if ms < 999.5 {
        format!("{ms:.0} ms")
    } else if ms < 59_950.0 {
        format!("{:.1} s", ms / 1e3)
    } else {
        let minutes = (ms / 6e4).floor();
        format!(
            "{minutes:.0}m{:02.0}s",
            ((ms - minutes * 6e4) / 1e3).floor()
        )
    }
}

/// Bytes in binary units: `512 B`, `3.4 KiB`, `118 MiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value < 9.95 {
        format!("{value:.1} {}", UNITS[unit])
    } else {
        format!("{value:.0} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_and_without_units() {
        let read = ["90", "1m30s", "500ms", "2h"].map(|text| parse_duration(text).unwrap());
        assert_eq!(
            read.map(|d| d.as_millis()),
            [90_000, 90_000, 500, 7_200_000]
        );
    }

    #[test]
    fn what_is_no_duration_is_named() {
        let errors = ["soon", "-5s", "", "5 apples"].map(|text| parse_duration(text).unwrap_err());
        assert!(errors[0].contains("\"soon\""), "{}", errors[0]);
        assert!(errors[1].contains("negative"), "{}", errors[1]);
    }

    #[test]
    fn lengths_keep_the_digits_that_matter() {
        let shown = [0.0, 3.214, 9.999, 412.4, 999.6, 2_449.0, 72_900.0].map(milliseconds);
        assert_eq!(
            shown,
            [
                "0.00 ms", "3.21 ms", "10 ms", "412 ms", "1.0 s", "2.4 s", "1m12s"
            ]
        );
    }

    #[test]
    fn bytes_change_their_unit_before_they_need_four_digits() {
        let shown = [0, 1023, 1024, 10 << 10, 1023 << 10, (1 << 20) - 1, 5 << 30].map(bytes);
        assert_eq!(
            shown,
            [
                "0 B", "1023 B", "1.0 KiB", "10 KiB", "1023 KiB", "1.0 MiB", "5.0 GiB"
            ]
        );
    }
}
