//! Moments in bodies, which are RFC 3339 in UTC. Events stored by earlier supervisors hold them as
//! milliseconds since 1970; those are read, too.

use serde::{Deserialize, Deserializer};

/// A moment as it may be stored.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    /// RFC 3339.
    Text(String),
    /// Milliseconds since 1970.
    Milliseconds(i64),
}

/// Reads either spelling as RFC 3339.
pub(crate) fn read<'de, D: Deserializer<'de>>(body: D) -> Result<String, D::Error> {
    Ok(match Written::deserialize(body)? {
        Written::Text(text) => text,
        Written::Milliseconds(count) => rfc3339(count),
    })
}

/// Text of a count of milliseconds since 1970.
fn rfc3339(milliseconds: i64) -> String {
    let days = milliseconds.div_euclid(86_400_000);
    let of_day = milliseconds.rem_euclid(86_400_000);
    let (year, month, day) = civil_date(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        of_day / 3_600_000,
        of_day / 60_000 % 60,
        of_day / 1_000 % 60,
        of_day % 1_000,
    )
}

/// Year, month and day of a count of days since 1970, by the calendar's cycle of 400 years. Years
/// begin in March here, so that the leap day is a year's last.
fn civil_date(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (cycle, of_cycle) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_cycle - of_cycle / 1_460 + of_cycle / 36_524 - of_cycle / 146_096) / 365;
    let of_year = of_cycle - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (cycle * 400 + year + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_become_dates() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(951_782_400_007), "2000-02-29T00:00:00.007Z");
        assert_eq!(rfc3339(1_653_047_897_299), "2022-05-20T11:58:17.299Z");
    }
}
