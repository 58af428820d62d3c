//! Fields that clients of the Fly Machines API write in more than one way. Each is read into the
//! one form that this API keeps.

use serde::{Deserialize, Deserializer, Serializer};

/// A duration as clients write it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Duration {
    /// Such as `30s`.
    Text(String),
    /// As Go's `time.Duration` is encoded.
    Nanoseconds(u64),
}

/// Reads a duration as text; the supervisor parses it.
pub(crate) fn duration<'de, D: Deserializer<'de>>(body: D) -> Result<Option<String>, D::Error> {
    let written = Option::<Duration>::deserialize(body)?;
    Ok(written.map(|written| match written {
        Duration::Text(text) => text,
        Duration::Nanoseconds(count) => format!("{count}ns"),
    }))
}

/// `autostop` as clients write it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Autostop {
    /// The older form, from before suspend existed.
    Switch(bool),
    /// `off`, `stop` or `suspend`.
    Name(String),
}

/// Reads `autostop` as a name.
pub(crate) fn autostop<'de, D: Deserializer<'de>>(body: D) -> Result<Option<String>, D::Error> {
    let written = Option::<Autostop>::deserialize(body)?;
    Ok(written.map(|written| match written {
        Autostop::Switch(true) => "stop".to_owned(),
        Autostop::Switch(false) => "off".to_owned(),
        Autostop::Name(name) => name,
    }))
}

/// Writes `autostop` as the servers of the Fly Machines API do: older clients know only booleans.
#[expect(clippy::ref_option, reason = "serde passes the field by reference")]
pub(crate) fn write_autostop<S: Serializer>(
    name: &Option<String>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match name.as_deref() {
        Some("off") => serializer.serialize_bool(false),
        Some("stop") => serializer.serialize_bool(true),
        Some(name) => serializer.serialize_str(name),
        None => serializer.serialize_none(),
    }
}

/// A signal as clients write it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Signal {
    /// Such as `SIGTERM`, or a number as text.
    Name(String),
    /// The kernel's number.
    Number(u32),
}

impl Signal {
    fn into_text(self) -> String {
        match self {
            Self::Name(name) => name,
            Self::Number(number) => number.to_string(),
        }
    }
}

/// Reads a required signal as text.
pub(crate) fn signal<'de, D: Deserializer<'de>>(body: D) -> Result<String, D::Error> {
    Signal::deserialize(body).map(Signal::into_text)
}

/// Reads an optional signal as text.
pub(crate) fn optional_signal<'de, D: Deserializer<'de>>(
    body: D,
) -> Result<Option<String>, D::Error> {
    let written = Option::<Signal>::deserialize(body)?;
    Ok(written.map(Signal::into_text))
}

#[cfg(test)]
mod tests {
    use crate::{Restart, RestartPolicy, Service, SignalRequest, StopRequest};
    use serde_json::json;

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

    #[test]
    fn autostop_is_a_switch_or_a_name() {
        for (written, read, echoed) in [
            (json!(true), "stop", json!(true)),
            (json!("stop"), "stop", json!(true)),
            (json!(false), "off", json!(false)),
            (json!("off"), "off", json!(false)),
            (json!("suspend"), "suspend", json!("suspend")),
        ] {
            let body = json!({"internal_port": 80, "autostop": written});
            let service: Service = serde_json::from_value(body).unwrap();
            assert_eq!(service.autostop.as_deref(), Some(read));
            assert_eq!(serde_json::to_value(service).unwrap()["autostop"], echoed);
        }
    }

    #[test]
    fn signals_are_names_or_numbers() {
        let read = |signal| {
            let body = json!({"signal": signal});
            serde_json::from_value::<SignalRequest>(body).map(|request| request.signal)
        };
        assert_eq!(read(json!(9)).unwrap(), "9");
        assert_eq!(read(json!("SIGHUP")).unwrap(), "SIGHUP");
        assert!(read(json!(-1)).is_err());
    }

    #[test]
    fn an_empty_policy_is_the_default() {
        let restart: Restart = serde_json::from_value(json!({"policy": ""})).unwrap();
        assert_eq!(restart.policy, RestartPolicy::default());
    }
}
