//! What utoipa's macros cannot say about the API: bounds that other modules check, the refusals of
//! each operation, and which operations need a token.
//!
//! The contract test (`tests/contract`) checks that the supervisor keeps to all of it.

use axum::http::StatusCode;
use machine_api::{DEFAULT_APP, LEASE_NONCE_HEADER, MachineState};
use serde_json::{Map, Value, json};

use crate::api::description::bounds;
use crate::api::handlers::wait::SETTLED;

/// Completes the description that the macros generated.
pub(crate) fn complete(mut description: Value) -> Value {
    description["components"]["securitySchemes"] =
        json!({"token": {"type": "http", "scheme": "bearer"}});
    if let Some(schemas) = description["components"]["schemas"].as_object_mut() {
        bounds::add(schemas);
    }
    let paths = description["paths"].as_object_mut();
    for (path, item) in paths.into_iter().flatten() {
        for (method, operation) in item.as_object_mut().into_iter().flatten() {
            let facts = Operation::of(path, method, operation);
            operation["responses"] = facts.responses(&operation["responses"]);
            if facts.is_guarded() {
                operation["security"] = json!([{"token": []}]);
            }
            if facts.respects_leases() {
                add_nonce(operation);
            }
            bound_parameters(operation);
        }
    }
    widen_unsigned(&mut description);
    describe_files_as_binary(&mut description);
    description
}

/// The facts about an operation that decide which refusals it can answer with.
struct Operation<'a> {
    path: &'a str,
    method: &'a str,
    tag: String,
    id: String,
    has_body: bool,
    has_parameters: bool,
}

impl<'a> Operation<'a> {
    fn of(path: &'a str, method: &'a str, operation: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Self {
            path,
            method,
            tag: text(&operation["tags"][0]),
            id: text(&operation["operationId"]),
            has_body: operation["requestBody"].is_object(),
            has_parameters: operation["parameters"].is_array(),
        }
    }

    fn is_guarded(&self) -> bool {
        self.path.starts_with("/v1/") || self.path == "/metrics"
    }

    /// Whether a lease in force can refuse it.
    fn respects_leases(&self) -> bool {
        let guests = ["Machines_exec", "Files_write"];
        let free = self.tag == "metadata" || guests.contains(&&*self.id);
        self.path.contains("{machine}") && self.method != "get" && !free
    }

    /// The successes that the macros know, and the refusals that the handlers can answer with.
    fn responses(&self, known: &Value) -> Value {
        let mut responses: Map<String, Value> = known.as_object().cloned().unwrap_or_default();
        responses.remove("default");
        let mut refuse = |status: StatusCode, when: &str| {
            responses.insert(status.as_str().to_owned(), refusal(when));
        };
        if !self.is_guarded() {
            return Value::Object(responses);
        }
        let looks = self.method == "get";
        let machine = self.path.contains("{machine}");
        let guest = self.tag == "guest";
        let transition = matches!(self.tag.as_str(), "machines" | "lifecycle") && !looks;
        refuse(StatusCode::UNAUTHORIZED, "no token, or not a valid one");
        if !looks || self.path.contains("tokens") || guest {
            refuse(StatusCode::FORBIDDEN, "the token only allows reading");
        }
        if self.has_body || self.has_parameters {
            refuse(StatusCode::BAD_REQUEST, "the request is invalid");
        }
        if self.path.contains('{') {
            refuse(StatusCode::NOT_FOUND, "what it names does not exist");
        }
        if self.has_body {
            refuse(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large");
        }
        if self.has_body || guest || self.id == WAIT {
            refuse(
                StatusCode::REQUEST_TIMEOUT,
                "something did not arrive in time",
            );
        }
        if (machine && !looks) || transition {
            refuse(
                StatusCode::CONFLICT,
                "leased, taken, or the operation failed",
            );
        }
        if machine && (!looks || guest || self.tag == "inspect") {
            refuse(
                StatusCode::PRECONDITION_FAILED,
                "not possible in this state",
            );
        }
        if guest || transition {
            refuse(
                StatusCode::UNPROCESSABLE_ENTITY,
                "the image or the guest cannot do it",
            );
        }
        if self.id == EXEC_STREAM {
            refuse(StatusCode::UPGRADE_REQUIRED, "this is a WebSocket");
        }
        if guest || transition {
            refuse(
                StatusCode::TOO_MANY_REQUESTS,
                "as many as may be at once are under way",
            );
        }
        // The exact status may change; the body says why.
        let failed = refusal("the supervisor, the disk or the guest failed");
        responses.insert("5XX".to_owned(), failed);
        Value::Object(responses)
    }
}

const WAIT: &str = "Machines_wait";
const EXEC_STREAM: &str = "Machines_exec_stream_open";
const LIST: &str = "Machines_list";

fn refusal(when: &str) -> Value {
    json!({
        "description": when,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}},
    })
}

/// Adds the header that every change of a leased machine needs.
fn add_nonce(operation: &mut Value) {
    let nonce = json!({
        "name": LEASE_NONCE_HEADER,
        "in": "header",
        "description": "of the lease that the client holds",
        "schema": {"type": "string"},
    });
    if let Some(parameters) = operation["parameters"].as_array_mut() {
        parameters.push(nonce);
    }
}

/// The macros describe bytes as lists of numbers.
fn describe_files_as_binary(value: &mut Value) {
    match value {
        Value::Object(object) => {
            if let Some(content) = object.get_mut("application/octet-stream") {
                content["schema"] = json!({"type": "string", "format": "binary"});
            }
            object.values_mut().for_each(describe_files_as_binary);
        }
        Value::Array(items) => items.iter_mut().for_each(describe_files_as_binary),
        _ => {}
    }
}

/// Adds keywords to parameters. A parameter's name means the same in all operations.
fn bound_parameters(operation: &mut Value) {
    let id = operation["operationId"].clone();
    let parameters = operation
        .get_mut("parameters")
        .and_then(Value::as_array_mut);
    for parameter in parameters.into_iter().flatten() {
        let keywords = match parameter["name"].as_str().unwrap_or_default() {
            "app" => json!({"enum": [DEFAULT_APP]}),
            "command" => bounds::named_command(),
            "env" => json!({"items": {"pattern": r"^[^=\x00]+=[^\x00]*$"}}),
            "cwd" => json!({"pattern": r"^[^\x00]*$"}),
            "columns" | "rows" => json!({"maximum": u16::MAX}),
            "key" => json!({"minLength": 1, "maxLength": bounds::METADATA_CHARACTERS}),
            "mode" => json!({"pattern": "^[0-7]{1,4}$"}),
            "path" => json!({"pattern": r"^/[^\x00]*$"}),
            "since" => json!({"format": "date-time"}),
            "signal" => bounds::signal(),
            "state" if id == LIST => {
                let states = MachineState::ALL.map(MachineState::name).join("|");
                json!({"pattern": format!("^({states})?(,({states})?)*$")})
            }
            "state" => {
                let states = MachineState::ALL.map(MachineState::name);
                let names: Vec<&str> = states.into_iter().chain([SETTLED]).collect();
                json!({"type": "array", "items": {"type": "string", "enum": names}})
            }
            "ttl" => json!({"type": "integer", "minimum": 1, "maximum": 86_400}),
            "timeout" => bounds::duration(),
            _ => continue,
        };
        bounds::merge(&mut parameter["schema"], &keywords);
    }
}

/// The macros give unsigned numbers the formats of signed ones, which have other bounds.
fn widen_unsigned(value: &mut Value) {
    match value {
        Value::Object(object) => {
            let most = match object.get("format").and_then(Value::as_str) {
                Some("int32") => u64::from(u32::MAX),
                Some("int64") => u64::MAX,
                _ => 0,
            };
            if most > 0 && object.contains_key("minimum") {
                object.remove("format");
                object.entry("maximum").or_insert(json!(most));
            }
            object.values_mut().for_each(widen_unsigned);
        }
        Value::Array(items) => items.iter_mut().for_each(widen_unsigned),
        _ => {}
    }
}
