//! Durations as users write them: `5s`, `1m30s`, `250ms`, or a bare number of seconds.
//!
//! `api::bounds` describes this grammar to clients. More than a year counts as a year.

use std::time::Duration;

/// A text is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a duration; write it like 5s, 1m30s or 250ms")]
pub(crate) struct InvalidDuration {
    text: String,
}

/// Longer ones count as this, so that sums cannot overflow.
const MAX: Duration = Duration::from_secs(366 * 86_400);

/// Reads a duration.
pub(crate) fn parse(text: &str) -> Result<Duration, InvalidDuration> {
    let invalid = || InvalidDuration {
        text: text.to_owned(),
    };
    if let Some(seconds) = number(text) {
        return Ok(bounded(seconds));
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let number_end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(invalid)?;
        let (value, tail) = rest.split_at(number_end);
        let unit_end = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, after) = tail.split_at(unit_end);
        let value = number(value).ok_or_else(invalid)?;
        let part = bounded(value * unit_seconds(unit).ok_or_else(invalid)?);
        total = total.saturating_add(part).min(MAX);
        rest = after;
    }
    if text.is_empty() {
        Err(invalid())
    } else {
        Ok(total)
    }
}

/// A duration as Go's `Duration.String` writes it. [`parse`] reads it back.
pub(crate) fn format_like_go(duration: Duration) -> String {
    let (seconds, nanoseconds) = (duration.as_secs(), duration.subsec_nanos());
    if seconds == 0 {
        let part = |unit: u32, digits: usize| {
            let text = format!("{}.{:0digits$}", nanoseconds / unit, nanoseconds % unit);
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        };
        return match nanoseconds {
            0 => "0s".to_owned(),
            1..1_000 => format!("{nanoseconds}ns"),
            1_000..1_000_000 => format!("{}µs", part(1_000, 3)),
            _ => format!("{}ms", part(1_000_000, 6)),
        };
    }
    let (hours, minutes) = (seconds / 3_600, seconds / 60 % 60);
    let rest = format!("{}.{nanoseconds:09}", seconds % 60);
    let rest = rest.trim_end_matches('0').trim_end_matches('.');
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, minutes) => format!("{minutes}m{rest}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{rest}s"),
    }
}

/// Digits with at most one point among them.
fn number(text: &str) -> Option<f64> {
    let plain = text
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.');
    plain.then(|| text.parse().ok()).flatten()
}

fn bounded(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).map_or(MAX, |duration| duration.min(MAX))
}

fn unit_seconds(unit: &str) -> Option<f64> {
    Some(match unit {
        "ns" => 1e-9,
        "us" | "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        "d" => 86_400.0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_spellings_are_read() {
        assert_eq!(parse("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(parse("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse("1.5h"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse("15"), Ok(Duration::from_secs(15)));
        assert_eq!(parse("1.5"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse(".5s1.s"), Ok(Duration::from_millis(1500)));
    }

    #[test]
    fn more_than_a_year_is_a_year() {
        for text in ["99999999999d", "300d300d", &"9".repeat(400)] {
            assert_eq!(parse(text), Ok(MAX), "{text:?}");
        }
    }

    #[test]
    fn gos_spelling_is_written_and_read_back() {
        for (nanoseconds, text) in [
            (0, "0s"),
            (7, "7ns"),
            (1_500, "1.5µs"),
            (250_000_000, "250ms"),
            (1_500_000_000, "1.5s"),
            (10_000_000_000, "10s"),
            (90_000_000_000, "1m30s"),
            (3_600_000_000_000, "1h0m0s"),
        ] {
            let duration = Duration::from_nanos(nanoseconds);
            assert_eq!(format_like_go(duration), text);
            assert_eq!(parse(text), Ok(duration));
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "", "s", "5", "-1s", "1 year", "1..s", ".", " 5s", "+5", "5s5", "1e300s",
        ] {
            assert_eq!(parse(text).is_ok(), text == "5", "{text:?}");
        }
    }
}
