//! Preparations of the process before there is a machine: panics, limits, signals.

use rustix::process::{Resource, getrlimit, setrlimit};
use vmm_sys_util::errno;

use crate::log;
use crate::sys::kick::install_kick_handler;

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

/// Prepares the process; once, before any thread is started.
///
/// # Errors
/// [`PreparationError`].
pub fn prepare() -> Result<(), PreparationError> {
    // After a panic, a bug, one thread is missing and the machine can't work, so the process ends.
    let default_hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        default_hook(info);
        std::process::abort();
    }));
    raise_descriptor_limit();
    install_kick_handler().map_err(PreparationError::Signal)
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
