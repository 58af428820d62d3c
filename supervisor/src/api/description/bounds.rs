//! Bounds and spellings of what clients send, as keywords of JSON Schema. They are checked in
//! `model::config_check`, `duration` and the handlers; here they are only described.

use serde_json::{Map, Value, json};

use crate::model::config_check::{METADATA_PAIRS, MOUNTS};
use crate::model::graceful_stop::signal_names;

pub(crate) use crate::model::config_check::METADATA_CHARACTERS;

/// No zero byte, which cannot be part of a C string.
const C_STRING: &str = r"^[^\x00]*$";

/// Schemas of what clients send. Null means there that a property is not given, as Go writes it.
const SENT: &[&str] = &[
    "Check",
    "CheckHeader",
    "CreateMachine",
    "CreateToken",
    "ExecRequest",
    "File",
    "Guest",
    "Init",
    "LeaseRequest",
    "MachineConfig",
    "Mount",
    "Port",
    "Restart",
    "Service",
    "ServiceCheck",
    "ServiceConcurrency",
    "StopConfig",
    "StopRequest",
    "UpdateMachine",
    "VsockOptions",
];

/// Adds all of them.
pub(crate) fn add(schemas: &mut Map<String, Value>) {
    for (schema, property, keywords) in of_configurations().into_iter().chain(of_requests()) {
        if let Some(schema) = schemas.get_mut(schema) {
            merge(&mut schema["properties"][property], &keywords);
        }
    }
    // One type, but two schemas: a check of a service need not name its port.
    if let Some(check) = schemas.get("Check").cloned() {
        schemas.insert("ServiceCheck".to_owned(), check);
    }
    for (name, keywords) in choices() {
        if let Some(schema) = schemas.get_mut(name) {
            merge(schema, &keywords);
        }
    }
    for name in SENT {
        if let Some(schema) = schemas.get_mut(*name) {
            accept_null(schema);
        }
    }
}

/// A duration as a text.
pub(crate) fn duration() -> Value {
    let number = r"([0-9]+\.?[0-9]*|\.[0-9]+)";
    let pattern = format!("^({number}|({number}(ns|us|µs|ms|s|m|h|d))+)$");
    json!({"type": "string", "pattern": pattern})
}

/// A duration in a body: a text, or nanoseconds, as Go's clients may write it.
fn body_duration() -> Value {
    let nanoseconds = json!({"type": "integer", "minimum": 0, "maximum": u64::MAX});
    json!({"type": null, "anyOf": [duration(), nanoseconds]})
}

/// A signal's name or number.
pub(crate) fn signal() -> Value {
    let names: Vec<String> = signal_names().map(|name| format!("SIG{name}")).collect();
    let number = "^([1-9]|[1-5][0-9]|6[0-4])$";
    json!({"type": null, "anyOf": [
        {"type": "string", "enum": names},
        {"type": "string", "pattern": number},
        {"type": "integer", "minimum": 1, "maximum": 64},
    ]})
}

/// Which properties have to be given together, by schema.
fn choices() -> Vec<(&'static str, Value)> {
    let named = named_command();
    let runs = json!({
        "properties": {"type": {"const": "exec"}, "command": {"type": "array", "minItems": 1}},
        "required": ["command"],
    });
    let asks = json!({"type": {"enum": ["tcp", "http"]}});
    let at_port = json!({
        "properties": {"type": asks["type"], "port": {"type": "integer"}},
        "required": ["port"],
    });
    let command = json!({"properties": {"command": named}, "required": ["command"]});
    let cmd = json!({
        "properties": {
            "command": {"anyOf": [{"type": "null"}, {"type": "array", "maxItems": 0}]},
            "cmd": {"type": "string", "pattern": command_line()},
        },
        "required": ["cmd"],
    });
    let begins = json!({"type": "array", "prefixItems": [{"type": "string", "minLength": 1}]});
    let absent = json!({"anyOf": [{"type": "null"}, begins]});
    let exec = json!({"properties": {"exec": absent}});
    let entrypoint = json!({"properties": {"entrypoint": absent}});
    let given = |list: &str| {
        let some = json!({"type": "array", "minItems": 1});
        json!({"properties": {list: some}, "required": [list]})
    };
    let named_by = json!({"anyOf": [
        given("exec"),
        given("entrypoint"),
        {"properties": {"cmd": absent}},
    ]});
    vec![
        ("Check", json!({"oneOf": [at_port, runs]})),
        (
            "ServiceCheck",
            json!({"oneOf": [{"properties": asks}, runs]}),
        ),
        ("ExecRequest", json!({"anyOf": [command, cmd]})),
        ("Init", json!({"allOf": [exec, entrypoint, named_by]})),
    ]
}

/// Program and arguments; the program has a name.
pub(crate) fn named_command() -> Value {
    json!({
        "type": "array",
        "minItems": 1,
        "prefixItems": [{"type": "string", "minLength": 1}],
        "items": {"type": "string", "pattern": C_STRING},
    })
}

/// The same in one string, split as `machine_api::split_words` splits it.
fn command_line() -> String {
    let plain = r#"[^ \t\n\f\r'"\\\x00]|\\[^\x00]"#;
    let quoted = |times: char| format!(r#"'[^'\x00]{times}'|"([^"\\\x00]|\\[^\x00]){times}""#);
    // Empty quotes are no name.
    format!(
        r#"^[ \t\n\f\r]*(''|"")*({plain}|{})({plain}|[ \t\n\f\r]|{})*$"#,
        quoted('+'),
        quoted('*')
    )
}

/// Base64 as `guest_protocol::base64` reads it.
fn base64() -> String {
    let digit = r"[A-Za-z0-9+/][\r\n]*";
    format!(r"^[\r\n]*(({digit}){{4}})*(({digit}){{2}}(=[\r\n]*){{2}}|({digit}){{3}}=[\r\n]*)?$")
}

/// An image, as `images::Reference` reads it.
fn image() -> String {
    let name = "[A-Za-z0-9][A-Za-z0-9._-]{0,127}";
    let path = format!("({name}(:[0-9]{{1,5}})?/({name}/)*)?");
    let digest = r"@[A-Za-z0-9]+:[A-Za-z0-9]+(\+[A-Za-z0-9]+)*";
    format!("^({path}{name}(:{name})?({digest})?)?$")
}

/// Keywords of a machine's configuration, by schema and property.
fn of_configurations() -> Vec<(&'static str, &'static str, Value)> {
    let port = json!({"minimum": 1, "maximum": u16::MAX});
    let words = json!({"items": {"pattern": C_STRING}});
    let printable = json!({"pattern": "^[!-~]*$"});
    let env = json!({
        "propertyNames": {"pattern": r"^[^=\x00]+$"},
        "additionalProperties": {"pattern": C_STRING},
    });
    let metadata = json!({
        "maxProperties": METADATA_PAIRS,
        "propertyNames": {"minLength": 1, "maxLength": METADATA_CHARACTERS},
        "additionalProperties": {"maxLength": METADATA_CHARACTERS},
    });
    let address = json!({"type": null, "anyOf": [
        {"type": "string", "format": "ipv4"},
        {"type": "string", "format": "ipv6"},
    ]});
    let line = json!({"items": {"pattern": r"^[^\x00\n]*$"}});
    vec![
        ("Check", "grace_period", body_duration()),
        ("Check", "interval", body_duration()),
        (
            "Check",
            "kind",
            json!({"enum": ["informational", "readiness", null]}),
        ),
        ("Check", "method", printable.clone()),
        ("Check", "path", printable),
        ("Check", "port", port.clone()),
        ("Check", "protocol", json!({"enum": ["", "http", null]})),
        (
            "CheckHeader",
            "name",
            json!({"pattern": "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"}),
        ),
        (
            "CheckHeader",
            "values",
            json!({"items": {"pattern": "^[ -~]*$"}}),
        ),
        ("Check", "timeout", body_duration()),
        (
            "File",
            "guest_path",
            json!({"pattern": r"^/([^\x00]*[^\x00/])$"}),
        ),
        ("File", "raw_value", json!({"pattern": base64()})),
        ("Guest", "kernel_args", line),
        ("Init", "cmd", words.clone()),
        ("Init", "entrypoint", words.clone()),
        ("Init", "exec", words),
        ("MachineConfig", "env", env),
        ("MachineConfig", "image", json!({"pattern": image()})),
        ("MachineConfig", "metadata", metadata),
        ("MachineConfig", "mounts", json!({"maxItems": MOUNTS})),
        ("Mount", "path", json!({"pattern": r"^/[^\x00]+$"})),
        (
            "Mount",
            "volume",
            json!({"pattern": r"^/[^\x00]*$", "not": {"pattern": ":ro$"}}),
        ),
        ("Port", "address", address),
        ("ServiceConcurrency", "hard_limit", json!({"minimum": 1})),
        ("Port", "end_port", port.clone()),
        ("Port", "handlers", json!({"items": {"enum": ["http"]}})),
        ("Port", "port", json!({"maximum": u16::MAX})),
        ("Port", "start_port", port.clone()),
        (
            "Service",
            "autostop",
            json!({"type": null, "enum": [true, false, "off", "stop", "suspend", null]}),
        ),
        (
            "Service",
            "checks",
            json!({"items": {"$ref": "#/components/schemas/ServiceCheck"}}),
        ),
        ("Service", "idle_timeout", body_duration()),
        (
            "Restart",
            "policy",
            json!({"$ref": null, "oneOf": null, "enum": ["", "no", "always", "on-failure", null]}),
        ),
        ("Service", "internal_port", port),
        ("Service", "protocol", json!({"enum": ["", "tcp"]})),
        (
            "ServiceConcurrency",
            "type",
            json!({"enum": ["", "connections"]}),
        ),
        ("StopConfig", "signal", signal()),
        ("StopConfig", "timeout", body_duration()),
    ]
}

/// Keywords of requests, by schema and property.
fn of_requests() -> Vec<(&'static str, &'static str, Value)> {
    let name = json!({"pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"});
    let ttl = json!({"minimum": 1, "maximum": 86_400});
    vec![
        ("CreateMachine", "lease_ttl", json!({"maximum": 86_400})),
        ("CreateMachine", "name", name.clone()),
        (
            "CreateToken",
            "name",
            json!({"minLength": 1, "maxLength": 128}),
        ),
        ("LeaseRequest", "ttl", ttl),
        (
            "MetadataValue",
            "value",
            json!({"maxLength": METADATA_CHARACTERS}),
        ),
        ("SignalRequest", "signal", signal()),
        ("StopRequest", "signal", signal()),
        ("StopRequest", "timeout", body_duration()),
        ("UpdateMachine", "lease_ttl", json!({"maximum": 86_400})),
        ("UpdateMachine", "name", name),
    ]
}

/// Merges keywords into a schema, as RFC 7386 does: null removes.
pub(crate) fn merge(schema: &mut Value, keywords: &Value) {
    let Some(keywords) = keywords.as_object() else {
        *schema = keywords.clone();
        return;
    };
    if !schema.is_object() {
        *schema = json!({});
    }
    for (keyword, value) in keywords {
        if value.is_null() {
            schema
                .as_object_mut()
                .and_then(|schema| schema.remove(keyword));
        } else {
            merge(&mut schema[keyword.as_str()], value);
        }
    }
}

/// Makes optional properties accept null.
fn accept_null(schema: &mut Value) {
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    let properties = schema.get_mut("properties").and_then(Value::as_object_mut);
    for (name, property) in properties.into_iter().flatten() {
        let nullable = property["type"]
            .as_array()
            .is_some_and(|types| types.contains(&json!("null")));
        if !nullable && !required.iter().any(|one| one == name) {
            *property = json!({"anyOf": [{"type": "null"}, property.take()]});
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_adds_replaces_and_removes() {
        let mut schema = json!({"type": "string", "items": {"type": "string"}});
        merge(
            &mut schema,
            &json!({"type": null, "items": {"pattern": "^a"}}),
        );
        assert_eq!(
            schema,
            json!({"items": {"type": "string", "pattern": "^a"}})
        );
    }

    #[test]
    fn only_optional_properties_accept_null() {
        let mut schema = json!({"required": ["a"], "properties": {
            "a": {"type": "string"}, "b": {"type": "string"}, "c": {"type": ["string", "null"]},
        }});
        accept_null(&mut schema);
        assert_eq!(schema["properties"]["a"], json!({"type": "string"}));
        assert_eq!(
            schema["properties"]["b"]["anyOf"][0],
            json!({"type": "null"})
        );
        assert_eq!(
            schema["properties"]["c"],
            json!({"type": ["string", "null"]})
        );
    }
}
