//! What the process arranges for itself before there is a machine.

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

/// Prepares the process. Once, before any thread.
///
/// # Errors
/// [`PreparationError`].
pub fn prepare() -> Result<(), PreparationError> {
    // A panic in one thread would leave a machine with a dead part. It is a bug of ours: better to end.
    let default_hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        default_hook(info);
        std::process::abort();
    }));
    raise_descriptor_limit();
    install_kick_handler().map_err(PreparationError::Signal)
}

/// A thousand vsock connections need a descriptor each, and the usual soft limit is 1024.
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
