//! A supervisor process with fake VMMs in a directory of its own, and its API.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "parts of tests")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How long anything may take here. A sync of a busy disk alone has been seen to take 20 s.
const DEADLINE: Duration = Duration::from_secs(60);

/// A free TCP port that no other test is given. Below the range from which the kernel takes ports for
/// connections: a port that was free a moment ago may be anybody's there.
pub(crate) fn free_port() -> u16 {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const FIRST: u16 = 10_000;
    const COUNT: u16 = 20_000;
    // Other test processes begin elsewhere.
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
    child: Option<Child>,
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.kill();
        for machine in self.machines_on_disk() {
            if let Some(pid) = vmm_of(&machine) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        if std::thread::panicking() {
            let log = fs::read_to_string(self.folder.path().join("supervisor.log"));
            println!("supervisor.log:\n{}", log.unwrap_or_default());
        }
    }
}

/// The living VMM that serves that directory, found by its command line.
fn vmm_of(machine: &Path) -> Option<rustix::process::Pid> {
    let wanted = machine.join("exit.json");
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let mut words = line.split(|byte| *byte == 0);
        let found = words.any(|word| word == wanted.as_os_str().as_encoded_bytes());
        found.then(|| rustix::process::Pid::from_raw(pid))?
    })
}

impl Stage {
    /// Starts a supervisor.
    pub(crate) fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("mctl")
            .tempdir_in("/tmp")
            .unwrap();
        let image = folder.path().join("state/images/default");
        fs::create_dir_all(&image).unwrap();
        let description = json!({"schema": 1, "kernel": "kernel", "initramfs": "initramfs"});
        fs::write(image.join("image.json"), description.to_string()).unwrap();
        let mut stage = Self {
            folder,
            child: None,
        };
        stage.start(&[]);
        stage
    }

    /// Starts a (further) supervisor on the same state.
    pub(crate) fn start(&mut self, flags: &[&str]) {
        self.spawn(flags);
        poll("the API", || {
            UnixStream::connect(self.state().join("api.sock")).ok()
        });
    }

    /// Starts one that dies at that step, maybe before it serves.
    pub(crate) fn start_to_die(&mut self, step: &str) {
        self.spawn(&["--fail-point", step]);
    }

    fn spawn(&mut self, flags: &[&str]) {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.folder.path().join("supervisor.log"))
            .unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_mctl-supervisor"))
            .arg("--state-dir")
            .arg(self.state())
            .args(
                (!flags.contains(&"--vmm"))
                    .then(|| [PathBuf::from("--vmm"), fake_vmm()])
                    .into_iter()
                    .flatten(),
            )
            .args(
                (!flags.contains(&"--start-timeout"))
                    .then_some(["--start-timeout", "5s"])
                    .into_iter()
                    .flatten(),
            )
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    /// Kills the supervisor and starts one that dies at that step.
    pub(crate) fn rearm(&mut self, step: &str) {
        self.kill();
        self.start(&["--fail-point", step]);
    }

    /// Sends a request that may get no answer, waits for the death and starts a new supervisor.
    pub(crate) fn crash_by(&mut self, method: &str, path: &str, body: Option<Value>) {
        let _request = self.send(method, path, body);
        self.follow_crash();
    }

    /// Sends a request that may get no answer; it stands as long as what is returned.
    pub(crate) fn send(&self, method: &str, path: &str, body: Option<Value>) -> UnixStream {
        let socket = self.state().join("api.sock");
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let length = body.len();
        let head =
            format!("{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n");
        let mut stream = UnixStream::connect(socket).unwrap();
        let _ = stream.write_all((head + &body).as_bytes());
        stream
    }

    /// Waits for the death and starts a new supervisor.
    pub(crate) fn follow_crash(&mut self) {
        let mut child = self.child.take().unwrap();
        poll("the crash", || child.try_wait().unwrap());
        self.start(&[]);
    }

    /// CPU time that the supervisor has used, in clock ticks.
    pub(crate) fn cpu_ticks(&self) -> u64 {
        let pid = self.child.as_ref().unwrap().id();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields = stat.rsplit_once(')').unwrap().1.split_whitespace();
        fields
            .skip(11)
            .take(2)
            .map(|ticks| ticks.parse::<u64>().unwrap())
            .sum()
    }

    /// All VMMs of this stage.
    pub(crate) fn vmms(&self) -> usize {
        let machines = self.state().join("machines");
        let mine = |line: &[u8]| {
            let needle = machines.as_os_str().as_encoded_bytes();
            line.split(|byte| *byte == 0)
                .any(|word| word.starts_with(needle))
        };
        let entries = fs::read_dir("/proc").unwrap().flatten();
        entries
            .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
            .filter(|line| mine(line))
            .count()
    }

    /// Sends the supervisor a signal.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = i32::try_from(self.child.as_ref().unwrap().id()).unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Kills the supervisor as a crash would.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// Where it keeps everything.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The machine's directory.
    pub(crate) fn directory(&self, id: &str) -> PathBuf {
        self.state().join("machines").join(id)
    }

    /// Directories of machines.
    pub(crate) fn machines_on_disk(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.state().join("machines"))
            .into_iter()
            .flatten();
        entries.flatten().map(|entry| entry.path()).collect()
    }

    /// The pid of the machine's VMM, if one lives.
    pub(crate) fn vmm(&self, id: &str) -> Option<rustix::process::Pid> {
        vmm_of(&self.directory(id))
    }

    /// A request; status and body.
    pub(crate) fn call(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        self.call_with(&[], method, path, body)
    }

    /// The same with further headers.
    pub(crate) fn call_with(
        &self,
        headers: &[(&str, &str)],
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> (u16, Value) {
        let headers = headers
            .iter()
            .map(|(name, value)| format!("{name}: {value}\r\n"));
        let further: String = headers.collect();
        let mut stream = UnixStream::connect(self.state().join("api.sock")).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{further}content-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (
            status,
            serde_json::from_str(body).unwrap_or(Value::String(body.to_owned())),
        )
    }

    /// A request about a machine that must succeed.
    pub(crate) fn ask(&self, method: &str, id: &str, rest: &str, body: Option<Value>) -> Value {
        let path = format!("/v1/apps/default/machines/{id}{rest}");
        let (status, answer) = self.call(method, &path, body);
        assert!(
            (200..300).contains(&status),
            "{method} {path}: {status} {answer}"
        );
        answer
    }

    /// Makes a machine whose guest behaves so, and waits until it is started.
    pub(crate) fn started(&self, behaviour: &str) -> String {
        let config = json!({
            "guest": {"kernel_args": [behaviour]},
            "init": {"exec": ["main"]},
            "restart": {"policy": "no"},
        });
        let (status, machine) = self.call(
            "POST",
            "/v1/apps/default/machines",
            Some(json!({"config": config})),
        );
        assert_eq!(status, 200, "{machine}");
        let id = machine["id"].as_str().unwrap().to_owned();
        self.reach(&id, "started");
        id
    }

    /// Waits for a state.
    pub(crate) fn reach(&self, id: &str, state: &str) -> Value {
        let mut last = Value::Null;
        let begun = Instant::now();
        while begun.elapsed() < DEADLINE {
            last = self.ask("GET", id, "", None);
            if last["state"] == state {
                return last;
            }
            std::thread::yield_now();
        }
        panic!("machine is not {state} but {last}");
    }

    /// Runs a command in the guest, at once; its status.
    pub(crate) fn exec(&self, id: &str) -> (u16, Value) {
        let path = format!("/v1/apps/default/machines/{id}/exec");
        self.call("POST", &path, Some(json!({"command": ["true"]})))
    }

    /// The boot id that the guest tells.
    pub(crate) fn boot_id(&self, id: &str) -> String {
        self.ask("GET", id, "/vsock", None)["guest"]["boot_id"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// Texts of the log.
    pub(crate) fn log(&self, id: &str) -> Vec<String> {
        let body = self.ask("GET", id, "/logs", None);
        let text = match body {
            Value::String(text) => text,
            one => one.to_string(),
        };
        let line = |line: &str| serde_json::from_str::<Value>(line).ok();
        text.lines()
            .filter_map(line)
            .map(|line| line["text"].as_str().unwrap_or_default().to_owned())
            .collect()
    }
}

/// Repeats `look` until it finds something.
pub(crate) fn poll<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < DEADLINE, "{what} did not come");
        std::thread::yield_now();
    }
}

/// Built beside the tests as an example.
fn fake_vmm() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let built = own
        .parent()
        .unwrap()
        .parent()
        .unwrap()
        .join("examples/fake_vmm");
    assert!(
        built.exists(),
        "{} is missing; cargo test -p supervisor builds it",
        built.display()
    );
    built
}
