//! A supervisor process with fake VMMs in a folder of its own, and its API.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "parts of tests")]

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::support::processes::{Vmm, vmms};
use crate::support::{
    self, DEADLINE, MACHINES, SUPERVISOR, config_with, end_of_log, http, poll, poll_within,
};

/// A free TCP port that no other test is given. It is below the range from which the kernel takes
/// ports for connections: there a port that was free a moment ago may have another owner now.
pub(crate) fn free_port() -> u16 {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const FIRST: u16 = 10_000;
    const COUNT: u16 = 20_000;
    // Each test process begins at a random port, so that two rarely try the same one.
    let _ = NEXT.compare_exchange(
        0,
        rand::random_range(1..COUNT),
        Ordering::Relaxed,
        Ordering::Relaxed,
    );
    (0..COUNT)
        .map(|_| FIRST + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT)
        .find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .unwrap()
}

/// The supervisor under test.
pub(crate) struct Stage {
    folder: tempfile::TempDir,
    supervisor: Option<Child>,
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.kill();
        for vmm in self.vmms() {
            let _ = vmm.kill();
        }
        if std::thread::panicking() {
            println!("{}", end_of_log(self.folder()));
        }
    }
}

impl Stage {
    /// Starts a supervisor in a new folder.
    pub(crate) fn new() -> Self {
        let mut stage = Self {
            folder: support::new_folder(),
            supervisor: None,
        };
        support::add_default_image(&stage.state());
        stage.start(&[]);
        stage
    }

    /// Starts the next supervisor on the same state, and waits until it serves.
    pub(crate) fn start(&mut self, flags: &[&str]) {
        self.spawn(flags);
        let pid = self.pid();
        poll("the API", || {
            support::is_served_by(&self.socket(), pid).then_some(())
        });
    }

    /// Starts a supervisor that dies at `step`, which may be before it serves.
    pub(crate) fn start_with_fail_point(&mut self, step: &str) {
        self.spawn(&["--fail-point", step]);
    }

    fn spawn(&mut self, flags: &[&str]) {
        let mut command = Command::new(SUPERVISOR);
        command.arg("--state-dir").arg(self.state());
        if !flags.contains(&"--vmm") {
            command.arg("--vmm").arg(support::fake_vmm());
        }
        if !flags.contains(&"--start-timeout") {
            command.args(["--start-timeout", "30s"]);
        }
        command
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(support::open_log(self.folder()));
        self.supervisor = Some(command.spawn().unwrap());
    }

    /// Replaces the supervisor by one that serves, and dies at `step`.
    pub(crate) fn restart_with_fail_point(&mut self, step: &str) {
        self.kill();
        self.start(&["--fail-point", step]);
    }

    /// Sends a request during which the supervisor dies, and starts the next supervisor.
    pub(crate) fn crash_during(&mut self, method: &str, path: &str, body: Option<Value>) {
        let _connection = self.send(method, path, body);
        self.restart_after_crash();
    }

    /// Sends a request whose answer may never come. The connection is open until the returned stream
    /// is dropped.
    pub(crate) fn send(&self, method: &str, path: &str, body: Option<Value>) -> UnixStream {
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let length = body.len();
        let head =
            format!("{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n");
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        // It fails if the supervisor dies early, which the caller waits for.
        let _ = stream.write_all((head + &body).as_bytes());
        stream
    }

    /// Waits until the supervisor has died.
    pub(crate) fn wait_for_crash(&mut self) {
        let mut supervisor = self.supervisor.take().unwrap();
        poll("the crash", || supervisor.try_wait().unwrap());
    }

    /// Waits until the supervisor has died, and starts the next one.
    pub(crate) fn restart_after_crash(&mut self) {
        self.wait_for_crash();
        self.start(&[]);
    }

    /// Sends the supervisor a signal.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(self.pid(), signal).unwrap();
    }

    fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(self.supervisor.as_ref().unwrap())
    }

    /// Kills the supervisor as a crash would.
    pub(crate) fn kill(&mut self) {
        if let Some(mut supervisor) = self.supervisor.take() {
            let _ = supervisor.kill();
            let _ = supervisor.wait();
        }
    }

    /// The state directory.
    pub(crate) fn state(&self) -> PathBuf {
        self.folder().join("state")
    }

    /// The API's Unix socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.state().join("api.sock")
    }

    /// The folder of all files of this stage.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The machine's directory.
    pub(crate) fn machine_dir(&self, id: &str) -> PathBuf {
        self.state().join("machines").join(id)
    }

    /// The directories of all machines.
    pub(crate) fn machine_dirs(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.state().join("machines"))
            .into_iter()
            .flatten();
        entries.flatten().map(|entry| entry.path()).collect()
    }

    /// All VMMs of this stage.
    pub(crate) fn vmms(&self) -> Vec<Vmm> {
        vmms(&self.state())
    }

    /// Waits until no VMM is left.
    pub(crate) fn wait_for_the_end_of_vmms(&self) {
        poll("the end of the VMM", || {
            self.vmms().is_empty().then_some(())
        });
    }

    /// The machine's VMM, if it has one.
    pub(crate) fn vmm(&self, id: &str) -> Option<Vmm> {
        self.vmms().into_iter().find(|vmm| vmm.machine == id)
    }

    /// Kills the machine's VMM, which must exist.
    pub(crate) fn kill_vmm(&self, id: &str) {
        self.vmm(id).unwrap().kill().unwrap();
    }

    /// Makes a request and returns status and body.
    pub(crate) fn call(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        self.call_with(&[], method, path, body)
    }

    /// Makes a request with further headers.
    pub(crate) fn call_with(
        &self,
        headers: &[(&str, &str)],
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> (u16, Value) {
        http::request(&self.socket(), headers, method, path, body.as_ref()).unwrap()
    }

    /// Makes a request about a machine, which must succeed. `rest` is the path below the machine's.
    pub(crate) fn ask(&self, method: &str, id: &str, rest: &str, body: Option<Value>) -> Value {
        let path = format!("{MACHINES}/{id}{rest}");
        let (status, answer) = self.call(method, &path, body);
        assert!(
            (200..300).contains(&status),
            "{method} {path}: {status} {answer}"
        );
        answer
    }

    /// Creates a machine, which starts, and returns its id.
    pub(crate) fn create(&self, config: &Value) -> String {
        let body = json!({"config": config});
        let (status, machine) = self.call("POST", MACHINES, Some(body));
        assert_eq!(status, 200, "{machine}");
        machine["id"].as_str().unwrap().to_owned()
    }

    /// Creates a machine of that configuration and waits until it is started.
    pub(crate) fn start_machine_of(&self, config: &Value) -> String {
        let id = self.create(config);
        self.wait_for(&id, "started");
        id
    }

    /// Creates a machine whose fake VMM has that `behaviour`, and waits until it is started.
    pub(crate) fn start_machine(&self, behaviour: &str) -> String {
        self.start_machine_of(&config_with(behaviour))
    }

    /// Waits until the machine is in `state`, and returns it.
    pub(crate) fn wait_for(&self, id: &str, state: &str) -> Value {
        let mut machine = Value::Null;
        let reached = poll_within(DEADLINE, || {
            machine = self.ask("GET", id, "", None);
            (machine["state"] == state).then_some(())
        });
        assert!(
            reached.is_some(),
            "waited for machine {id} to be {state}: {machine}"
        );
        machine
    }

    /// Waits until everything is in the database that was handed to its thread up to now, such as that
    /// a machine is started. That thread also reads timings, in its turn.
    pub(crate) fn wait_for_database(&self, id: &str) {
        self.ask("GET", id, "/timings", None);
    }

    /// Waits until there is no machine, and no directory of one.
    pub(crate) fn wait_until_empty(&self) {
        poll("the end of all machines", || {
            let (_, list) = self.call("GET", MACHINES, None);
            (list == json!([]) && self.machine_dirs().is_empty()).then_some(())
        });
    }

    /// Runs a command in the guest; status and body of the answer.
    pub(crate) fn exec(&self, id: &str) -> (u16, Value) {
        let path = format!("{MACHINES}/{id}/exec");
        self.call("POST", &path, Some(json!({"command": ["true"]})))
    }

    /// The boot id that the guest reports.
    pub(crate) fn boot_id(&self, id: &str) -> String {
        self.ask("GET", id, "/vsock", None)["guest"]["boot_id"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// The texts of the machine's log.
    pub(crate) fn log_texts(&self, id: &str) -> Vec<String> {
        let text = match self.ask("GET", id, "/logs", None) {
            Value::String(text) => text,
            // A log of a single line is read as JSON.
            line => line.to_string(),
        };
        let lines = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines
            .map(|line| line["text"].as_str().unwrap_or_default().to_owned())
            .collect()
    }
}
