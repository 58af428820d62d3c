//! Preparations of the process before there is a machine: panics, limits, signals.

use std::ffi::CString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit, setrlimit};
use vmm_control::ExitReport;
use vmm_sys_util::errno;

use crate::log;
use crate::sys::kick::install_kick_handler;
use crate::sys::memory_error::{self, LastWords};

/// Why the process can't prepare itself.
#[derive(Debug, thiserror::Error)]
pub enum PreparationError {
    /// The console's output.
    #[error("cannot open the console output")]
    Console(#[source] std::io::Error),
    /// The signal that halts vCPUs.
    #[error("cannot install a signal handler")]
    Signal(#[source] errno::Error),
}

/// Prepares the process; once, before any thread is started, on the thread that is going to run the
/// machine. `memory_error` is what it reports, and where, if the host cannot provide its memory.
///
/// # Errors
/// [`PreparationError`].
pub fn prepare(memory_error: Option<(&Path, &ExitReport)>) -> Result<(), PreparationError> {
    // After a panic, a bug, one thread is missing and the machine can't work, so the process ends.
    let default_hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        default_hook(info);
        std::process::abort();
    }));
    raise_descriptor_limit();
    install_kick_handler().map_err(PreparationError::Signal)?;
    let last_words = memory_error.and_then(|(path, report)| last_words(path, report));
    memory_error::install_handler(last_words).map_err(PreparationError::Signal)
}

/// None only for a path with a zero byte, under which there can be no file.
fn last_words(path: &Path, report: &ExitReport) -> Option<LastWords> {
    let mut text = serde_json::to_vec(report).ok()?;
    text.push(b'\n');
    Some(LastWords {
        unfinished: CString::new(unfinished(path).into_os_string().into_vec()).ok()?,
        path: CString::new(path.as_os_str().as_bytes()).ok()?,
        text,
    })
}

/// The name of an exit report that is not whole yet.
#[must_use]
pub fn unfinished(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    name.into()
}

/// Each vsock connection needs a descriptor, and the usual soft limit is 1024.
fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        log::line(format_args!(
            "cannot raise the limit of open files: {error}"
        ));
    }
}
