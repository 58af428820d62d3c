//! Times and sizes as mctl prints them.

use jiff::Timestamp;

/// RFC 3339 of milliseconds since 1970.
pub(crate) fn rfc3339_of_ms(ms: i64) -> String {
    Timestamp::from_millisecond(ms).map_or_else(|_| format!("{ms} ms"), |time| format!("{time:.3}"))
}

/// RFC 3339 of seconds since 1970.
pub(crate) fn rfc3339_of_s(seconds: i64) -> String {
    Timestamp::from_second(seconds).map_or_else(|_| format!("{seconds} s"), |time| time.to_string())
}

/// RFC 3339 without the fraction of a second.
pub(crate) fn without_fraction(time: &str) -> String {
    match time.split_once('.') {
        Some((seconds, _)) if time.ends_with('Z') => format!("{seconds}Z"),
        _ => time.to_owned(),
    }
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

/// A machine's memory: `256 MiB`, `2 GiB`.
pub(crate) fn memory(mib: u32) -> String {
    if mib >= 1024 && mib.is_multiple_of(1024) {
        format!("{} GiB", mib / 1024)
    } else {
        format!("{mib} MiB")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_the_digits_that_matter() {
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
