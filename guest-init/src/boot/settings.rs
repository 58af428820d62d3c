//! Settings of the kernel and of process 1 that are made at boot.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::reboot::set_cad_enabled;
use nix::sys::resource::{Resource, setrlimit};

/// Control group of the main process.
pub(crate) const MAIN_CGROUP: &str = "/sys/fs/cgroup/main";

/// Open descriptors of guest-init and, unless they lower the limit, of its children: two for each
/// connection that the server admits, and room for the sockets that the scale test leaks.
const OPEN_FILES: u64 = 65_536;

/// Limit to which children may raise that: the kernel's own (fs.nr_open).
const OPEN_FILES_LIMIT: u64 = 1_048_576;

/// On a panic or an oops the guest ends at once, so that the supervisor sees it and restarts it.
/// Listeners may have long queues, as guest-init's own has.
const SYSCTLS: [(&str, &str); 3] = [
    ("/proc/sys/kernel/panic", "-1"),
    ("/proc/sys/kernel/panic_on_oops", "1"),
    ("/proc/sys/net/core/somaxconn", "4096"),
];

/// Controllers of the main process's control group.
const CONTROLLERS: [&str; 2] = ["+memory", "+pids"];

/// Why a setting was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingError {
    #[error("cannot write {value} to {path:?}")]
    Write {
        path: PathBuf,
        value: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot create control group {MAIN_CGROUP}")]
    CreateGroup(#[source] io::Error),
    #[error("cannot raise the limit of open files to {OPEN_FILES}")]
    OpenFiles(#[source] Errno),
    #[error("cannot route ctrl-alt-del to process 1")]
    CtrlAltDel(#[source] Errno),
    #[error("cannot set the host name")]
    Hostname(#[source] Errno),
}

/// Writes the kernel's settings; tries all of them and reports the first failure.
pub(crate) fn write_sysctls() -> Result<(), SettingError> {
    let written = SYSCTLS.map(|(path, value)| write(path.as_ref(), value));
    let routed = set_cad_enabled(false).map_err(SettingError::CtrlAltDel);
    written.into_iter().chain([routed]).collect()
}

pub(crate) fn raise_open_files() -> Result<(), SettingError> {
    setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES_LIMIT)
        .map_err(SettingError::OpenFiles)
}

pub(crate) fn set_first_hostname() -> Result<(), SettingError> {
    nix::unistd::sethostname("localhost").map_err(SettingError::Hostname)
}

/// Creates the control group of the main process. Its counters show whether the main process ran
/// out of memory.
pub(crate) fn create_main_cgroup() -> Result<(), SettingError> {
    let control = Path::new("/sys/fs/cgroup/cgroup.subtree_control");
    let enabled = CONTROLLERS.map(|controller| write(control, controller));
    fs::create_dir_all(MAIN_CGROUP).map_err(SettingError::CreateGroup)?;
    enabled.into_iter().collect()
}

/// The control group of the main process, where the kernel has one.
pub(crate) fn main_cgroup() -> Option<PathBuf> {
    let group = PathBuf::from(MAIN_CGROUP);
    group.join("cgroup.procs").exists().then_some(group)
}

fn write(path: &Path, value: &'static str) -> Result<(), SettingError> {
    fs::write(path, value).map_err(|source| SettingError::Write {
        path: path.to_owned(),
        value,
        source,
    })
}
