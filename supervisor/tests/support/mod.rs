//! What every test of a whole supervisor process needs: a folder with an image, the fake VMM, a
//! machine's configuration, waits with a deadline.
//!
//! `http` makes requests, `processes` finds the VMMs. How supervisors are started and killed is
//! up to the test programs that include this.

pub(crate) mod http;
pub(crate) mod processes;

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::sockopt::socket_peercred;
use rustix::process::Pid;
use serde_json::{Value, json};

/// Longest that any wait of these tests may take. A sync of a busy disk alone has taken 20 s.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
/// Pause between two looks at a condition.
const POLL_PAUSE: Duration = Duration::from_millis(5);
/// The API's path of all machines.
pub(crate) const MACHINES: &str = "/v1/apps/default/machines";
/// The program under test.
pub(crate) const SUPERVISOR: &str = env!("CARGO_BIN_EXE_mctl-supervisor");

/// A new folder whose path is short enough for Unix sockets below it.
pub(crate) fn new_folder() -> tempfile::TempDir {
    let mut builder = tempfile::Builder::new();
    builder.prefix("mctl").tempdir_in("/tmp").unwrap()
}

/// Puts the image `default` into the state directory `state`, and returns the image's directory. The
/// fake VMM needs none of the files that the image names.
pub(crate) fn add_default_image(state: &Path) -> PathBuf {
    let image = state.join("images/default");
    fs::create_dir_all(&image).unwrap();
    let description = json!({"schema": 1, "kernel": "kernel", "initramfs": "initramfs"});
    fs::write(image.join("image.json"), description.to_string()).unwrap();
    image
}

/// The configuration of a machine with a main process and no restarts. `behaviour` is for the fake
/// VMM, which lists the words that it knows.
pub(crate) fn config_with(behaviour: &str) -> Value {
    json!({
        "guest": {"kernel_args": [behaviour]},
        "init": {"exec": ["main"]},
        "restart": {"policy": "no"},
    })
}

/// The fake VMM, an example that cargo builds beside the tests.
pub(crate) fn fake_vmm() -> PathBuf {
    let this_test = std::env::current_exe().unwrap();
    let profile = this_test.parent().unwrap().parent().unwrap();
    let fake_vmm = profile.join("examples/fake_vmm");
    assert!(
        fake_vmm.exists(),
        "{} is missing; cargo test -p supervisor builds it",
        fake_vmm.display()
    );
    fake_vmm
}

/// The file to which the supervisors of `folder` log, for appending.
pub(crate) fn open_log(folder: &Path) -> File {
    let mut options = File::options();
    let appending = options.create(true).append(true);
    appending.open(log_path(folder)).unwrap()
}

/// What the supervisors of `folder` have logged.
pub(crate) fn read_log(folder: &Path) -> String {
    fs::read_to_string(log_path(folder)).unwrap_or_default()
}

fn log_path(folder: &Path) -> PathBuf {
    folder.join("supervisor.log")
}

/// The end of that log, to show why a test failed.
pub(crate) fn end_of_log(folder: &Path) -> String {
    let log = read_log(folder);
    let mut from = log.len().saturating_sub(8_000);
    while !log.is_char_boundary(from) {
        from += 1;
    }
    format!("end of supervisor.log:\n{}", &log[from..])
}

/// Whether the process `pid` itself listens on the socket. A supervisor that was killed while it launched a VMM
/// leaves a child that listens until it has become that VMM.
pub(crate) fn is_served_by(socket: &Path, pid: Pid) -> bool {
    let stream = UnixStream::connect(socket);
    stream.is_ok_and(|stream| socket_peercred(&stream).unwrap().pid == pid)
}

/// Repeats `look` until it finds something. Fails after [`DEADLINE`], naming `what` it waited for.
pub(crate) fn poll<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    let found = poll_within(DEADLINE, look);
    found.unwrap_or_else(|| panic!("waited {} s for {what}", DEADLINE.as_secs()))
}

/// Repeats `look` until it finds something; none if it has found nothing within `limit`.
pub(crate) fn poll_within<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if begun.elapsed() >= limit {
            return None;
        }
        std::thread::park_timeout(POLL_PAUSE);
    }
}
