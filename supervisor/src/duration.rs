//! Durations as users write them: `5s`, `1m30s`, `250ms`, or a bare number of seconds.

use std::time::Duration;

/// Why a text is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a duration; write it like 5s, 1m30s or 250ms")]
pub(crate) struct InvalidDuration {
    text: String,
}

/// Longest duration accepted, so that sums with it can't overflow.
const MAX: Duration = Duration::from_secs(366 * 86_400);

/// Reads a duration.
pub(crate) fn parse(text: &str) -> Result<Duration, InvalidDuration> {
    let invalid = || InvalidDuration {
        text: text.to_owned(),
    };
    let trimmed = text.trim();
    if let Ok(seconds) = trimmed.parse::<u32>() {
        return Some(Duration::from_secs(seconds.into()))
            .filter(|d| *d <= MAX)
            .ok_or_else(invalid);
    }
    let mut rest = trimmed;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let number_end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(invalid)?;
        let (number, tail) = rest.split_at(number_end);
        let unit_end = tail
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (unit, after) = tail.split_at(unit_end);
        let value: f64 = number.parse().map_err(|_| invalid())?;
        let seconds = value * unit_seconds(unit).ok_or_else(invalid)?;
        let part = Duration::try_from_secs_f64(seconds).map_err(|_| invalid())?;
        total = total
            .checked_add(part)
            .filter(|sum| *sum <= MAX)
            .ok_or_else(invalid)?;
        rest = after;
    }
    if trimmed.is_empty() {
        Err(invalid())
    } else {
        Ok(total)
    }
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
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "s",
            "5",
            "-1s",
            "1 year",
            "1..s",
            "99999999999d",
            "5s5",
            "1e300s",
        ] {
            assert_eq!(parse(text).is_ok(), text == "5", "{text:?}");
        }
    }
}
