//! Durations in bodies, which stay texts here; the supervisor reads them.

use serde::{Deserialize, Deserializer};

/// A duration as clients of that API write it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    /// Such as `30s`.
    Text(String),
    /// As Go counts time.
    Nanoseconds(u64),
}

/// Reads either spelling as a text.
pub(crate) fn read<'de, D: Deserializer<'de>>(body: D) -> Result<Option<String>, D::Error> {
    let written = Option::<Written>::deserialize(body)?;
    Ok(written.map(|written| match written {
        Written::Text(text) => text,
        Written::Nanoseconds(count) => format!("{count}ns"),
    }))
}

#[cfg(test)]
mod tests {
    use crate::StopRequest;

    #[test]
    fn a_number_is_nanoseconds_as_in_go() {
        let read = |body: &str| serde_json::from_str::<StopRequest>(body).unwrap().timeout;
        assert_eq!(
            read(r#"{"timeout": 5000000000}"#).as_deref(),
            Some("5000000000ns")
        );
        assert_eq!(read(r#"{"timeout": "5s"}"#).as_deref(), Some("5s"));
        assert_eq!(read(r#"{"timeout": null}"#), None);
        assert_eq!(read("{}"), None);
    }
}
