//! Values as users write them in flags, variables and the configuration file. Each function returns
//! the value, or says how to write it. Only [`since`] reads a clock.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use machine_api::{MachineState, Operation};

/// Parses `90`, `90s`, `1m30s`, `500ms`; a bare number means seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse::<u32>() {
        return Ok(Duration::from_secs(seconds.into()));
    }
    let duration: SignedDuration = text
        .parse()
        .map_err(|_| format!("{text:?} is not a time such as 30s, 1m30s or 500ms"))?;
    Duration::try_from(duration).map_err(|_| format!("{text:?} is negative"))
}

/// Parses a duration and writes it as the API reads it: always with a unit.
pub(crate) fn api_duration(text: &str) -> Result<String, String> {
    let duration = duration(text)?;
    Ok(match duration.subsec_millis() {
        0 => format!("{}s", duration.as_secs()),
        _ => format!("{}ms", duration.as_millis()),
    })
}

/// Parses a point in time, RFC 3339 or how long ago. Returns RFC 3339.
pub(crate) fn since(text: &str) -> Result<String, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(with_microseconds(time));
    }
    let ago = duration(text)
        .map_err(|_| format!("{text:?} is neither a time such as 2026-01-31T12:00:00Z nor 10m"))?;
    let time = Timestamp::now()
        .checked_sub(ago)
        .map_err(|_| format!("{text:?} is too long ago"))?;
    Ok(with_microseconds(time))
}

/// As log lines have it: supervisors up to v0.1.0 compare the two as text.
fn with_microseconds(time: Timestamp) -> String {
    format!("{time:.6}")
}

/// Parses `KEY=VALUE`.
pub(crate) fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write it as NAME=VALUE".to_owned()),
    }
}

/// Splits a command in one string into words, as a shell does.
pub(crate) fn words(line: &str) -> Result<Vec<String>, String> {
    machine_api::split_words(line).ok_or_else(|| "a quote is not closed".to_owned())
}

/// Parses a signal: `term` and `SIGTERM` become `SIGTERM`, a number stays a number.
pub(crate) fn signal(text: &str) -> Result<String, String> {
    let upper = text.to_ascii_uppercase();
    if upper
        .parse::<u8>()
        .is_ok_and(|number| (1..=64).contains(&number))
        || (upper.starts_with("SIG") && upper.len() > 3)
    {
        return Ok(upper);
    }
    if !upper.is_empty() && upper.chars().all(|c| c.is_ascii_alphanumeric()) && !is_number(&upper) {
        return Ok(format!("SIG{upper}"));
    }
    Err("write it as SIGTERM, TERM or 15".to_owned())
}

fn is_number(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Parses the name of a state.
pub(crate) fn state(text: &str) -> Result<MachineState, String> {
    one_of(MachineState::ALL, MachineState::name, text)
}

/// Parses the name of an operation.
pub(crate) fn operation(text: &str) -> Result<Operation, String> {
    one_of(Operation::ALL, Operation::name, text)
}

/// The one of `values` whose name is `text`.
fn one_of<T: Copy, const N: usize>(
    values: [T; N],
    name: fn(T) -> &'static str,
    text: &str,
) -> Result<T, String> {
    let found = values.into_iter().find(|value| name(*value) == text);
    found.ok_or_else(|| format!("write one of {}", values.map(name).join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_and_without_units() {
        let read = ["90", "1m30s", "500ms", "2h"].map(|text| duration(text).unwrap());
        assert_eq!(
            read.map(|d| d.as_millis()),
            [90_000, 90_000, 500, 7_200_000]
        );
    }

    #[test]
    fn a_wrong_duration_is_named() {
        let errors = ["soon", "-5s", "", "5 apples"].map(|text| duration(text).unwrap_err());
        assert!(errors[0].contains("\"soon\""), "{}", errors[0]);
        assert!(errors[1].contains("negative"), "{}", errors[1]);
    }

    #[test]
    fn the_api_gets_durations_with_their_unit() {
        let sent = ["5", "1m", "500ms"].map(|text| api_duration(text).unwrap());
        assert_eq!(sent, ["5s", "60s", "500ms"]);
    }

    #[test]
    fn a_point_in_time_is_sent_with_all_of_its_digits() {
        for (written, sent) in [
            ("2026-11-27T20:29:13.22955Z", "2026-11-27T20:29:13.229550Z"),
            ("2026-11-27T20:29:13Z", "2026-11-27T20:29:13.000000Z"),
        ] {
            assert_eq!(since(written).unwrap(), sent);
        }
        assert_eq!(
            since("10m").unwrap().len(),
            "2026-11-27T20:29:13.000000Z".len()
        );
    }

    #[test]
    fn signals_may_be_written_in_three_ways() {
        let names = ["SIGTERM", "int", "9"].map(|text| signal(text).unwrap());
        assert_eq!(names, ["SIGTERM", "SIGINT", "9"]);
        assert!(
            ["", "0", "65", "a b"]
                .iter()
                .all(|text| signal(text).is_err())
        );
    }
}
