//! What the release before this one has written, byte for byte, for the tests of whoever reads it: messages
//! of each protocol, answers of the API, an image, the state of a machine, a database.
//!
//! Machines outlive their supervisor, and an update may be taken back. So what the release before has written
//! must be understood, and what is written now must have everything that it looks for. The files never change;
//! those of another release get a folder of their own, and [`NAME`] says which one is played.
//!
//! `./just upgrade` does the same with the programs themselves, and leaves the database and an image of the
//! release before in `target/upgrade/logs/handover`. Messages are those of that release's own tests of its
//! protocols.

use std::fs;
use std::path::PathBuf;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The release.
pub const NAME: &str = "v0.1.0";

/// A file that it has written.
#[must_use]
pub fn path(file: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), NAME, file].iter().collect()
}

/// The contents of such a file.
///
/// # Panics
/// If it cannot be read.
#[must_use]
pub fn bytes(file: &str) -> Vec<u8> {
    let path = path(file);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A message, or another piece of JSON.
#[derive(Debug, Clone)]
pub struct Message {
    /// The name of its type.
    pub kind: String,
    /// As it was sent.
    pub json: Value,
}

/// The messages in a file: one object in each line, whose only key is the name of the type.
///
/// # Panics
/// If the file is not of this form.
#[must_use]
pub fn messages(file: &str) -> Vec<Message> {
    let bytes = bytes(file);
    let text = std::str::from_utf8(&bytes).unwrap_or_else(|error| panic!("{file}: {error}"));
    text.lines()
        .map(|line| {
            let object: serde_json::Map<String, Value> =
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{file}: {error}"));
            let message = object.into_iter().next();
            let (kind, json) = message.unwrap_or_else(|| panic!("{file}: an empty object"));
            Message { kind, json }
        })
        .collect()
}

/// Reads a message as the type of today, and writes it again: the release before must find all in it that it
/// had written itself.
///
/// # Panics
/// If it is not understood, or something is missing or has another value.
pub fn play<T: Serialize + DeserializeOwned>(message: &Message) {
    let Message { kind, json } = message;
    let read: T = serde_json::from_value(json.clone())
        .unwrap_or_else(|error| panic!("a {kind} of {NAME} is not understood: {error}: {json}"));
    let written = serde_json::to_value(&read)
        .unwrap_or_else(|error| panic!("a {kind} cannot be written: {error}"));
    if let Some(what) = missing(json, &written) {
        panic!("{NAME} does not find {what} in a {kind} of today: {written}");
    }
}

/// Where `written` does not say what `expected` says. What it says beyond that is ignored by its reader.
#[must_use]
pub fn missing(expected: &Value, written: &Value) -> Option<String> {
    match (expected, written) {
        (Value::Object(expected), Value::Object(written)) => {
            expected.iter().find_map(|(key, value)| {
                let found = written.get(key).unwrap_or(&Value::Null);
                missing(value, found).map(|what| format!("{key}/{what}"))
            })
        }
        (Value::Array(expected), Value::Array(written)) if expected.len() == written.len() => {
            let mut pairs = expected.iter().zip(written).enumerate();
            pairs.find_map(|(number, (expected, written))| {
                missing(expected, written).map(|what| format!("{number}/{what}"))
            })
        }
        _ if expected == written => None,
        _ => Some(expected.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_added_is_not_missed_and_what_is_changed_is() {
        let before = json!({"a": [1, {"b": "c"}], "d": null});
        assert_eq!(missing(&before, &before), None);
        let more = json!({"a": [1, {"b": "c", "x": 1}], "d": null, "y": 2});
        assert_eq!(missing(&before, &more), None);
        for less in [
            json!({"a": [1, {"b": "other"}]}),
            json!({"a": [1, {}]}),
            json!({"a": [1]}),
            json!({"a": [1, {"b": "c"}], "d": 0}),
            json!([]),
        ] {
            assert!(missing(&before, &less).is_some(), "{less}");
        }
    }
}
