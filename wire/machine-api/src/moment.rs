//! Points in time in bodies: RFC 3339 in UTC. Events that earlier supervisors stored have
//! milliseconds since 1970 instead; these are read, too.

use serde::{Deserialize, Deserializer};

/// A point in time as it may be stored.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    /// RFC 3339.
    Text(String),
    /// Milliseconds since 1970.
    Milliseconds(i64),
}

/// Reads either form as RFC 3339.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(body: D) -> Result<String, D::Error> {
    Ok(match Written::deserialize(body)? {
        Written::Text(text) => text,
        Written::Milliseconds(count) => rfc3339(count),
    })
}

/// RFC 3339 of milliseconds since 1970.
fn rfc3339(milliseconds: i64) -> String {
    let days = milliseconds.div_euclid(86_400_000);
    let ms_of_day = milliseconds.rem_euclid(86_400_000);
    let (year, month, day) = civil_date(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        ms_of_day / 3_600_000,
        ms_of_day / 60_000 % 60,
        ms_of_day / 1_000 % 60,
        ms_of_day % 1_000,
    )
}

/// Year, month and day of a number of days since 1970. The calendar repeats every 400 years
/// (146,097 days). Years begin in March here, so that the leap day is the last day of a year.
fn civil_date(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (cycle, day_of_cycle) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day_of_cycle - day_of_cycle / 1_460 + day_of_cycle / 36_524
        - day_of_cycle / 146_096)
        / 365;
    let day_of_year = day_of_cycle - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
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
