//! Fields that clients of that API write in more than one way, read as the one that is kept here.

use serde::{Deserialize, Deserializer, Serializer};

/// What autostop may be called.
#[derive(Deserialize)]
#[serde(untagged)]
enum Autostop {
    /// Before there was a suspend.
    Switch(bool),
    /// `off`, `stop` or `suspend`.
    Name(String),
}

/// Reads what happens to an idle machine as a name.
pub(crate) fn autostop<'de, D: Deserializer<'de>>(body: D) -> Result<Option<String>, D::Error> {
    let written = Option::<Autostop>::deserialize(body)?;
    Ok(written.map(|written| match written {
        Autostop::Switch(true) => "stop".to_owned(),
        Autostop::Switch(false) => "off".to_owned(),
        Autostop::Name(name) => name,
    }))
}

/// Writes it as that API's servers do: its older clients know booleans only.
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

/// What a signal may be called.
#[derive(Deserialize)]
#[serde(untagged)]
enum Signal {
    /// Such as `SIGTERM`, or a number as a text.
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

/// Reads a signal by name or number.
pub(crate) fn signal<'de, D: Deserializer<'de>>(body: D) -> Result<String, D::Error> {
    Signal::deserialize(body).map(Signal::into_text)
}

/// The same where it need not be given.
pub(crate) fn maybe_signal<'de, D: Deserializer<'de>>(body: D) -> Result<Option<String>, D::Error> {
    let written = Option::<Signal>::deserialize(body)?;
    Ok(written.map(Signal::into_text))
}

#[cfg(test)]
mod tests {
    use crate::{Restart, RestartPolicy, Service, SignalRequest};
    use serde_json::json;

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
    fn a_policy_that_is_not_chosen_is_the_default() {
        let restart: Restart = serde_json::from_value(json!({"policy": ""})).unwrap();
        assert_eq!(restart.policy, RestartPolicy::default());
    }
}
