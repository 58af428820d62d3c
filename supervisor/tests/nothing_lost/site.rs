//! A supervisor process with fake VMMs in a folder of its own, its API, and what the system shows of
//! the process.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::support::processes::{Vmm, vmms};
use crate::support::{
    MACHINES, SUPERVISOR, add_default_image, config_with, end_of_log, fake_vmm, http, is_served_by,
    new_folder, open_log, poll, read_log,
};

/// The supervisor under test.
pub(crate) struct Site {
    folder: PathBuf,
    /// The folder, if it is removed together with the site.
    _temporary: Option<tempfile::TempDir>,
    /// The user that runs the supervisor, if it is not ours.
    user: Option<u32>,
    supervisor: Mutex<Option<Child>>,
}

impl Drop for Site {
    fn drop(&mut self) {
        self.kill();
        for vmm in self.vmms() {
            let _ = vmm.kill();
        }
        if std::thread::panicking() {
            println!("{}", end_of_log(&self.folder));
        }
    }
}

impl Site {
    /// In a new folder.
    pub(crate) fn new() -> Self {
        Self::in_new_folder(None)
    }

    /// In a folder that the test has made.
    pub(crate) fn in_folder(folder: PathBuf) -> Self {
        let site = Self::prepare(folder, None);
        site.start();
        site
    }

    /// With a supervisor without privileges: it runs as `user` if we are root, else as ourselves.
    pub(crate) fn unprivileged(user: u32) -> Self {
        Self::in_new_folder(rustix::process::geteuid().is_root().then_some(user))
    }

    fn in_new_folder(user: Option<u32>) -> Self {
        let folder = new_folder();
        let mut site = Self::prepare(folder.path().to_owned(), user);
        site._temporary = Some(folder);
        site.start();
        site
    }

    fn prepare(folder: PathBuf, user: Option<u32>) -> Self {
        let state = folder.join("state");
        let image = add_default_image(&state);
        let programs = folder.join("bin");
        fs::create_dir_all(&programs).unwrap();
        for program in [PathBuf::from(SUPERVISOR), fake_vmm()] {
            let copy = programs.join(program.file_name().unwrap());
            // Another user may have no access to the build directory.
            if user.is_some() {
                fs::copy(&program, &copy).unwrap();
            } else {
                std::os::unix::fs::symlink(&program, &copy).unwrap();
            }
        }
        if user.is_some() {
            for path in [&folder, &state, &state.join("images")] {
                chown(path, user, user).unwrap();
            }
            fs::set_permissions(&image, fs::Permissions::from_mode(0o755)).unwrap();
        }
        Self {
            folder,
            _temporary: None,
            user,
            supervisor: Mutex::new(None),
        }
    }

    fn supervisor(&self) -> MutexGuard<'_, Option<Child>> {
        self.supervisor
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the next supervisor and waits until it serves.
    pub(crate) fn start(&self) {
        self.start_under(&[]);
    }

    /// Starts the next supervisor as a command of `wrapper`, and waits until it serves.
    pub(crate) fn start_under(&self, wrapper: &[&str]) {
        self.spawn_under(wrapper);
        self.wait_for_api();
    }

    /// Starts the next supervisor with these flags, and waits until it serves.
    pub(crate) fn start_with(&self, flags: &[&str]) {
        self.spawn(&[], flags);
        self.wait_for_api();
    }

    fn wait_for_api(&self) {
        poll("the API", || {
            let exit = self.supervisor().as_mut().unwrap().try_wait().unwrap();
            assert!(exit.is_none(), "the supervisor ended: {exit:?}");
            is_served_by(&self.socket(), self.pid()).then_some(())
        });
    }

    /// Starts a supervisor as a command of `wrapper`, such as `prlimit` and its flags.
    pub(crate) fn spawn_under(&self, wrapper: &[&str]) {
        self.spawn(wrapper, &[]);
    }

    fn spawn(&self, wrapper: &[&str], flags: &[&str]) {
        let supervisor = self.folder.join("bin/mctl-supervisor");
        let mut command = match wrapper {
            [] => Command::new(supervisor),
            [program, arguments @ ..] => {
                let mut command = Command::new(program);
                command.args(arguments).arg(supervisor);
                command
            }
        };
        command
            .arg("--state-dir")
            .arg(self.state())
            .arg("--vmm")
            .arg(self.folder.join("bin/fake_vmm"))
            .args(["--start-timeout", "30s"])
            .args(flags)
            .env("MCTL_LOG", "info")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(open_log(&self.folder));
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        *self.supervisor() = Some(command.spawn().unwrap());
    }

    /// Whether the supervisor succeeded; none while it runs.
    pub(crate) fn exit_success(&self) -> Option<bool> {
        let exit = self.supervisor().as_mut()?.try_wait().unwrap();
        exit.map(|status| status.success())
    }

    /// Kills the supervisor as a crash would.
    pub(crate) fn kill(&self) {
        if let Some(mut supervisor) = self.supervisor().take() {
            let _ = supervisor.kill();
            let _ = supervisor.wait();
        }
    }

    /// Asks the supervisor to end, and waits until it has.
    pub(crate) fn terminate(&self) {
        kill_process(self.pid(), Signal::TERM).unwrap();
        poll("the end of the supervisor", || self.exit_success());
        self.kill();
    }

    /// The log of all supervisors of this site.
    pub(crate) fn log(&self) -> String {
        read_log(&self.folder)
    }

    /// The state directory.
    pub(crate) fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// The API's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.state().join("api.sock")
    }

    /// The supervisor's pid.
    pub(crate) fn pid(&self) -> Pid {
        let id = self.supervisor().as_ref().unwrap().id();
        Pid::from_raw(i32::try_from(id).unwrap()).unwrap()
    }

    /// Sets a soft limit of the running supervisor: `resource` as prlimit names it, such as `nofile`,
    /// and a number or `unlimited`.
    pub(crate) fn set_limit(&self, resource: &str, limit: &str) {
        let mut command = Command::new("prlimit");
        // In some containers root lacks the capability to do it for other users, but each user may do
        // it for its own processes.
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        let pid = self.pid().as_raw_nonzero().to_string();
        let status = command
            .args(["--pid", &pid, &format!("--{resource}={limit}:")])
            .status();
        assert!(status.unwrap().success(), "prlimit {resource}={limit}");
    }

    /// The supervisor's open descriptors: numbers, and what each refers to.
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

    /// All VMMs of this site.
    pub(crate) fn vmms(&self) -> Vec<Vmm> {
        vmms(&self.state())
    }

    /// The names of all machines' directories.
    pub(crate) fn machine_dirs(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(self.state().join("machines")).unwrap();
        entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    }

    /// Makes a request, which must be answered; status and body.
    pub(crate) fn call(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        self.try_call(method, path, body).unwrap()
    }

    /// Makes a request that a crash may interrupt.
    pub(crate) fn try_call(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> io::Result<(u16, Value)> {
        http::request(&self.socket(), &[], method, path, body)
    }

    /// Makes a request that must succeed with the status 200; the body of the answer.
    pub(crate) fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let (status, answer) = self.call(method, path, body);
        assert_eq!(status, 200, "{method} {path}: {answer}");
        answer
    }

    /// All machines that are not destroyed.
    pub(crate) fn list(&self) -> Vec<Value> {
        let list = self.ask("GET", MACHINES, None);
        list.as_array().unwrap().clone()
    }

    /// A machine.
    pub(crate) fn machine(&self, id: &str) -> Value {
        self.ask("GET", &format!("{MACHINES}/{id}"), None)
    }

    /// Creates a machine without starting it; returns its id.
    pub(crate) fn create(&self, behaviour: &str) -> String {
        let machine = self.ask("POST", MACHINES, Some(&new_machine(behaviour)));
        machine["id"].as_str().unwrap().to_owned()
    }

    /// Makes a transition of a machine, which must succeed.
    pub(crate) fn transition(&self, id: &str, verb: &str) {
        let (status, answer) = self.try_transition(id, verb);
        assert_eq!(status, 200, "{verb}: {answer}");
    }

    /// Asks for a transition of a machine and waits for its end; status and body of the answer.
    pub(crate) fn try_transition(&self, id: &str, verb: &str) -> (u16, Value) {
        match verb {
            "destroy" => self.call("DELETE", &format!("{MACHINES}/{id}?force=true"), None),
            verb => self.call("POST", &format!("{MACHINES}/{id}/{verb}?wait=true"), None),
        }
    }

    /// The boot id that the guest reports.
    pub(crate) fn boot_id(&self, id: &str) -> String {
        let answer = self.ask("GET", &format!("{MACHINES}/{id}/vsock"), None);
        answer["guest"]["boot_id"].as_str().unwrap().to_owned()
    }

    /// Checks that nothing is left of any machine.
    pub(crate) fn assert_empty(&self) {
        poll("an empty list", || self.list().is_empty().then_some(()));
        poll("the end of all VMMs", || {
            self.vmms().is_empty().then_some(())
        });
        assert_eq!(self.machine_dirs(), BTreeSet::new());
    }
}

/// The body of a request that creates a machine without starting it.
pub(crate) fn new_machine(behaviour: &str) -> Value {
    json!({"config": config_with(behaviour), "skip_launch": true})
}
