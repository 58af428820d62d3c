//! The built `mctl` against a small Machines API in memory. Machines change state at once; answers
//! that need more than a state are set by the test.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "shared by test binaries, each of which uses its own part"
)]

#[path = "../../../client/tests/fake/mod.rs"]
pub mod fake;

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use futures_util::{SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use fake::{Answer, Fake, Seen};
use serde_json::{Value, json};

pub const WEB: &str = "148e0d3a00c189";
pub const DB: &str = "148e77aa00f001";

/// A machine as the API shows it.
pub fn machine(id: &str, name: &str, state: &str) -> Value {
    json!({
        "id": id, "name": name, "state": state, "region": "local", "instance_id": "01ABC",
        "config": {"guest": {"cpus": 1, "memory_mb": 256}},
        "image_ref": {"registry": "local", "repository": "default", "tag": "latest",
                      "digest": "sha256:00"},
        "private_ip": "", "created_at": "2026-01-31T12:00:00.123456Z",
        "updated_at": "2026-01-31T12:00:01Z", "host_status": "ok", "generation": 3,
    })
}

/// A command in the guest that copies its input to standard output, writes "oops" to standard
/// error, and exits with code 3.
fn copy_input(io: Socket) -> BoxFuture {
    Box::pin(async move {
        let mut socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
        let mut read = vec![1];
        while let Some(Ok(message)) = socket.next().await {
            match message {
                Message::Binary(bytes) => read.extend_from_slice(&bytes[1..]),
                _ => break,
            }
        }
        let end = r#"{"type":"exit","exit_code":3,"exit_signal":0}"#;
        let messages = [
            Message::Binary(read.into()),
            Message::Binary(b"\x02oops"[..].into()),
            Message::Text(end.into()),
        ];
        for message in messages {
            socket.send(message).await.unwrap();
        }
        let _ = socket.close(None).await;
    })
}

/// A command in the guest that is killed by a signal at its timeout.
pub fn killed(io: Socket) -> BoxFuture {
    Box::pin(async move {
        let mut socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
        let end = r#"{"type":"exit","exit_code":-1,"exit_signal":9,"timed_out":true}"#;
        socket.send(Message::Text(end.into())).await.unwrap();
        let _ = socket.close(None).await;
    })
}

/// A command in the guest whose stream breaks while it runs.
pub fn broken(io: Socket) -> BoxFuture {
    Box::pin(async move {
        drop(WebSocketStream::from_raw_socket(io, Role::Server, None).await);
    })
}

pub type Socket = TokioIo<Upgraded>;
pub type BoxFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

struct State {
    command: fn(Socket) -> BoxFuture,
    content: Vec<u8>,
    machines: Vec<Value>,
    answers: BTreeMap<String, (u16, Value)>,
}

/// A running API, and `mctl` for it.
pub struct Api {
    fake: Fake,
    state: Arc<Mutex<State>>,
    folder: tempfile::TempDir,
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fake.fmt(f)
    }
}

/// Exit code and output of a finished `mctl`.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// Standard output as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl Api {
    /// An API with these machines.
    pub fn with(machines: &[Value]) -> Self {
        let state = Arc::new(Mutex::new(State {
            command: copy_input,
            content: vec![],
            machines: machines.to_vec(),
            answers: BTreeMap::new(),
        }));
        let shared = Arc::clone(&state);
        let fake = Fake::on_tcp(move |seen| shared.lock().unwrap().answer(seen));
        let folder = tempfile::tempdir().unwrap();
        Self {
            fake,
            state,
            folder,
        }
    }

    /// An API with one machine.
    pub fn with_web(state: &str) -> Self {
        Self::with(&[machine(WEB, "web", state)])
    }

    /// Sets the answer to `METHOD /path-below-machines`.
    pub fn answers(&self, request: &str, status: u16, body: Value) -> &Self {
        self.state
            .lock()
            .unwrap()
            .answers
            .insert(request.to_owned(), (status, body));
        self
    }

    /// Sets what commands in guests do.
    pub fn runs(&self, command: fn(Socket) -> BoxFuture) -> &Self {
        self.state.lock().unwrap().command = command;
        self
    }

    /// Runs `mctl` without a terminal.
    pub fn mctl(&self, arguments: &[&str]) -> Ran {
        ran(self.command(arguments).output().unwrap())
    }

    /// `mctl` with an environment of its own, so that the user's has no effect.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = bare(arguments);
        command
            .env("MCTL_HOST", &self.fake.address)
            .env("HOME", self.folder.path());
        command
    }

    /// Requests so far, except for GET.
    pub fn changes(&self) -> Vec<String> {
        self.fake
            .lines()
            .into_iter()
            .filter(|line| !line.starts_with("GET "))
            .collect()
    }

    /// The first request that starts with `prefix`.
    pub fn request(&self, prefix: &str) -> Seen {
        self.fake.request(prefix)
    }
}

/// `mctl` with nothing in its environment.
pub fn bare(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mctl"));
    command.args(arguments).env_clear().stdin(Stdio::null());
    command
}

/// Exit code and output of a finished `mctl`.
pub fn ran(output: Output) -> Ran {
    Ran {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

impl State {
    fn answer(&mut self, seen: &Seen) -> Answer {
        let path = seen
            .path
            .strip_prefix("/v1/apps/default/machines")
            .unwrap_or(&seen.path);
        if let Some((status, body)) = self.answers.get(&format!("{} {path}", seen.method)) {
            return match body {
                Value::Array(lines)
                    if path.ends_with("/logs") || seen.query("follow") == Some("true") =>
                {
                    Answer::lines(lines)
                }
                body => Answer::json(*status, body),
            };
        }
        if path.ends_with("/exec/stream") {
            return Answer::upgrade(self.command);
        }
        if path.ends_with("/files") {
            return self.file(seen);
        }
        if path.is_empty() && seen.method == "POST" {
            return self.create(&seen.json());
        }
        if path.is_empty() {
            return Answer::json(200, &Value::Array(self.machines.clone()));
        }
        let (id, verb) = path[1..].split_once('/').unwrap_or((&path[1..], ""));
        let Some(index) = self.machines.iter().position(|machine| machine["id"] == id) else {
            return Answer::json(404, &json!({"error": format!("no machine {id:?}")}));
        };
        match (seen.method.as_str(), verb) {
            ("GET", "") => Answer::json(200, &self.machines[index]),
            ("GET", "wait") => self.wait(index, seen.query("state").unwrap()),
            ("GET", "timings" | "events") => Answer::json(200, &json!([])),
            ("DELETE", "") => {
                self.machines.remove(index);
                Answer::json(200, &json!({"ok": true}))
            }
            ("POST", "start" | "restart") => self.become_state(index, "started"),
            ("POST", "stop") => self.become_state(index, "stopped"),
            ("POST", "suspend") => self.become_state(index, "suspended"),
            ("POST" | "DELETE", _) => Answer::json(200, &json!({"ok": true})),
            _ => Answer::json(405, &json!({"error": "no such method"})),
        }
    }

    /// Stores one file, whatever its path.
    fn file(&mut self, seen: &Seen) -> Answer {
        if seen.method == "GET" {
            return Answer::Bytes(200, self.content.clone());
        }
        self.content = seen.body.clone();
        Answer::json(200, &json!({"bytes": seen.body.len()}))
    }

    fn create(&mut self, request: &Value) -> Answer {
        let state = if request["skip_launch"] == true {
            "created"
        } else {
            "started"
        };
        let name = request["name"].as_str().unwrap_or("quiet-owl");
        let mut created = machine(WEB, name, state);
        created["config"] = request["config"].clone();
        self.machines.push(created.clone());
        Answer::json(200, &created)
    }

    fn become_state(&mut self, index: usize, state: &str) -> Answer {
        let machine = &mut self.machines[index];
        let previous = machine["state"].clone();
        machine["state"] = json!(state);
        Answer::json(200, &json!({"ok": true, "previous_state": previous}))
    }

    fn wait(&self, index: usize, wanted: &str) -> Answer {
        if self.machines[index]["state"] == wanted {
            return Answer::json(200, &json!({"ok": true}));
        }
        Answer::json(408, &json!({"error": "not yet"}))
    }
}
