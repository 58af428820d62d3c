//! A supervisor process with fake VMMs in a folder of its own, and what the system knows of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// How long anything may take here. A sync of a busy disk alone has been seen to take 20 s.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
/// Where machines are.
pub(crate) const MACHINES: &str = "/v1/apps/default/machines";

/// The supervisor under test.
pub(crate) struct Site {
    folder: PathBuf,
    /// Removed with the site, where it is ours.
    _temporary: Option<tempfile::TempDir>,
    /// Another user than ours, whose limits count for the supervisor.
    user: Option<u32>,
    child: Mutex<Option<Child>>,
}

/// A living VMM.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Vmm {
    pub(crate) machine: String,
    pub(crate) pid: i32,
}

impl Drop for Site {
    fn drop(&mut self) {
        self.kill();
        for vmm in self.vmms() {
            let _ = kill_process(Pid::from_raw(vmm.pid).unwrap(), Signal::KILL);
        }
        if std::thread::panicking() {
            println!("end of supervisor.log:\n{}", self.end_of_log());
        }
    }
}

impl Site {
    /// In a folder of its own.
    pub(crate) fn new() -> Self {
        let folder = temporary();
        let mut site = Self::prepared(folder.path().to_owned(), None);
        site._temporary = Some(folder);
        site.start();
        site
    }

    /// In a folder that the test has made.
    pub(crate) fn within(folder: PathBuf) -> Self {
        let site = Self::prepared(folder, None);
        site.start();
        site
    }

    /// As a user without privileges: that one where we are root, else ourselves.
    pub(crate) fn unprivileged(user: u32) -> Self {
        let folder = temporary();
        let user = rustix::process::geteuid().is_root().then_some(user);
        let mut site = Self::prepared(folder.path().to_owned(), user);
        site._temporary = Some(folder);
        site.start();
        site
    }

    fn prepared(folder: PathBuf, user: Option<u32>) -> Self {
        let image = folder.join("state/images/default");
        fs::create_dir_all(&image).unwrap();
        let description = json!({"schema": 1, "kernel": "kernel", "initramfs": "initramfs"});
        fs::write(image.join("image.json"), description.to_string()).unwrap();
        let programs = folder.join("bin");
        fs::create_dir_all(&programs).unwrap();
        // Copies: another user may not be let into our build directory.
        for program in [supervisor(), fake_vmm()] {
            let copy = programs.join(program.file_name().unwrap());
            if user.is_some() {
                fs::copy(&program, &copy).unwrap();
            } else {
                std::os::unix::fs::symlink(&program, &copy).unwrap();
            }
        }
        if user.is_some() {
            for path in [&folder, &folder.join("state"), &folder.join("state/images")] {
                chown(path, user, user).unwrap();
            }
            fs::set_permissions(&image, fs::Permissions::from_mode(0o755)).unwrap();
        }
        Self {
            folder,
            _temporary: None,
            user,
            child: Mutex::new(None),
        }
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a (further) supervisor and waits until it serves.
    pub(crate) fn start(&self) {
        self.start_behind(&[]);
    }

    /// The same behind the words of `before`.
    pub(crate) fn start_behind(&self, before: &[&str]) {
        self.spawn(before);
        poll("the API", || {
            let mut child = self.child();
            let ended = child.as_mut().unwrap().try_wait().unwrap();
            assert!(
                ended.is_none(),
                "it ended: {ended:?}\n{}",
                self.end_of_log()
            );
            UnixStream::connect(self.socket()).ok()
        });
    }

    /// Runs a supervisor behind the words of `before`, such as `prlimit`.
    pub(crate) fn spawn(&self, before: &[&str]) {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.folder.join("supervisor.log"))
            .unwrap();
        let supervisor = self.folder.join("bin").join("mctl-supervisor");
        let (program, rest) = match before {
            [] => (supervisor, None),
            [first, ..] => (PathBuf::from(first), Some(supervisor)),
        };
        let mut command = Command::new(program);
        command
            .args(before.iter().skip(1))
            .args(rest)
            .arg("--state-dir")
            .arg(self.state())
            .arg("--vmm")
            .arg(self.folder.join("bin/fake_vmm"))
            .args(["--start-timeout", "15s"])
            .env("MCTL_LOG", "info")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        *self.child() = Some(command.spawn().unwrap());
    }

    /// Whether the supervisor has ended, and well.
    pub(crate) fn ended(&self) -> Option<bool> {
        let ended = self.child().as_mut()?.try_wait().unwrap();
        ended.map(|status| status.success())
    }

    /// Kills the supervisor as a crash would.
    pub(crate) fn kill(&self) {
        if let Some(mut child) = self.child().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Asks the supervisor to end and waits until it has.
    pub(crate) fn terminate(&self) {
        kill_process(self.pid(), Signal::TERM).unwrap();
        poll("its end", || self.ended());
        self.kill();
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.join("supervisor.log")).unwrap_or_default()
    }

    fn end_of_log(&self) -> String {
        let log = self.log();
        let mut from = log.len().saturating_sub(8_000);
        while !log.is_char_boundary(from) {
            from += 1;
        }
        log[from..].to_owned()
    }

    /// Its state directory.
    pub(crate) fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// The API's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.state().join("api.sock")
    }

    /// Its pid.
    pub(crate) fn pid(&self) -> Pid {
        let id = self.child().as_ref().unwrap().id();
        Pid::from_raw(i32::try_from(id).unwrap()).unwrap()
    }

    /// Sets a soft limit of the running supervisor, such as `nofile`; `unlimited` where there is
    /// none.
    pub(crate) fn limit(&self, resource: &str, most: &str) {
        let mut command = Command::new("prlimit");
        // The same user may do so even where root lacks the capability, as in some containers.
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        let pid = self.pid().as_raw_nonzero().to_string();
        let set = command
            .args(["--pid", &pid, &format!("--{resource}={most}:")])
            .status();
        assert!(set.unwrap().success(), "{resource}={most}");
    }

    /// Its open descriptors: number and what it is.
    pub(crate) fn descriptors(&self) -> BTreeMap<u64, String> {
        let folder = format!("/proc/{}/fd", self.pid().as_raw_nonzero());
        let entries = fs::read_dir(folder).unwrap().flatten();
        entries
            .filter_map(|entry| {
                let number = entry.file_name().to_str()?.parse().ok()?;
                let target = fs::read_link(entry.path()).ok()?;
                Some((number, target.display().to_string()))
            })
            .collect()
    }

    /// CPU time that the supervisor has used, in clock ticks.
    pub(crate) fn cpu_ticks(&self) -> u64 {
        let stat =
            fs::read_to_string(format!("/proc/{}/stat", self.pid().as_raw_nonzero())).unwrap();
        let fields = stat.rsplit_once(')').unwrap().1.split_whitespace();
        fields
            .skip(11)
            .take(2)
            .map(|ticks| ticks.parse::<u64>().unwrap())
            .sum()
    }

    /// All living VMMs below this state directory.
    pub(crate) fn vmms(&self) -> Vec<Vmm> {
        let machines = self.state().join("machines");
        let machine = |line: &[u8]| {
            line.split(|byte| *byte == 0).find_map(|word| {
                let path = Path::new(std::str::from_utf8(word).ok()?);
                let below = path.strip_prefix(&machines).ok()?;
                (path.file_name()? == "exit.json")
                    .then(|| below.parent())?
                    .map(|id| id.display().to_string())
            })
        };
        let mut found: Vec<Vmm> = fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|entry| {
                let pid = entry.file_name().to_str()?.parse().ok()?;
                let line = fs::read(entry.path().join("cmdline")).ok()?;
                let machine = machine(&line)?;
                Some(Vmm { machine, pid })
            })
            .collect();
        found.sort();
        found
    }

    /// Names of machines' directories.
    pub(crate) fn directories(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(self.state().join("machines")).unwrap();
        entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    }

    /// A request whose answer must come.
    pub(crate) fn call(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        self.try_call(method, path, body).unwrap()
    }

    /// A request that a crash may cut off.
    pub(crate) fn try_call(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> io::Result<(u16, Value)> {
        let mut stream = UnixStream::connect(self.socket())?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let body = body.map(Value::to_string).unwrap_or_default();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
             content-length: {length}\r\n\r\n"
        );
        stream.write_all((head + &body).as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let cut_off = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(cut_off)?;
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
        let status = status.ok_or_else(cut_off)?;
        let value = serde_json::from_str(body).unwrap_or(Value::String(body.to_owned()));
        Ok((status, value))
    }

    /// All machines that are not destroyed.
    pub(crate) fn list(&self) -> Vec<Value> {
        let (status, list) = self.call("GET", MACHINES, None);
        assert_eq!(status, 200, "{list}");
        list.as_array().unwrap().clone()
    }

    /// A machine.
    pub(crate) fn machine(&self, id: &str) -> Value {
        let (status, machine) = self.call("GET", &format!("{MACHINES}/{id}"), None);
        assert_eq!(status, 200, "{machine}");
        machine
    }

    /// Makes a machine that is not started.
    pub(crate) fn created(&self, behaviour: &str) -> String {
        let (status, machine) = self.call("POST", MACHINES, Some(&new_machine(behaviour)));
        assert_eq!(status, 200, "{machine}");
        machine["id"].as_str().unwrap().to_owned()
    }

    /// A transition that must succeed.
    pub(crate) fn bring(&self, id: &str, verb: &str) {
        let (status, answer) = self.ask(id, verb);
        assert_eq!(status, 200, "{verb}: {answer}");
    }

    /// A transition, awaited.
    pub(crate) fn ask(&self, id: &str, verb: &str) -> (u16, Value) {
        match verb {
            "destroy" => self.call("DELETE", &format!("{MACHINES}/{id}?force=true"), None),
            verb => self.call("POST", &format!("{MACHINES}/{id}/{verb}?wait=true"), None),
        }
    }

    /// The boot id that the guest tells.
    pub(crate) fn boot_id(&self, id: &str) -> String {
        let path = format!("{MACHINES}/{id}/vsock");
        let (status, answer) = self.call("GET", &path, None);
        assert_eq!(status, 200, "{answer}");
        answer["guest"]["boot_id"].as_str().unwrap().to_owned()
    }

    /// Nothing is left of any machine.
    pub(crate) fn assert_empty(&self) {
        poll("an empty list", || self.list().is_empty().then_some(()));
        poll("the end of all VMMs", || {
            self.vmms().is_empty().then_some(())
        });
        assert_eq!(self.directories(), BTreeSet::new());
    }
}

/// The body of a create that does not start.
pub(crate) fn new_machine(behaviour: &str) -> Value {
    let config = json!({
        "guest": {"kernel_args": [behaviour]},
        "init": {"exec": ["main"]},
        "restart": {"policy": "no"},
    });
    json!({"config": config, "skip_launch": true})
}

/// Repeats `look` until it finds something.
pub(crate) fn poll<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < DEADLINE, "{what} did not come");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// Short enough for sockets below it.
pub(crate) fn temporary() -> tempfile::TempDir {
    let mut builder = tempfile::Builder::new();
    builder.prefix("mctl").tempdir_in("/tmp").unwrap()
}

fn supervisor() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_mctl-supervisor"))
}

/// Built beside the tests as an example.
fn fake_vmm() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let built = own.parent().unwrap().parent().unwrap();
    let built = built.join("examples/fake_vmm");
    let missing = format!(
        "{} is missing; cargo test -p supervisor builds it",
        built.display()
    );
    assert!(built.exists(), "{missing}");
    built
}
