//! Named steps at which a test makes the supervisor die as if it had been killed.
//!
//! The hidden flag `--fail-point NAME` arms one of them. Nothing is flushed, dropped or awaited: a
//! new supervisor finds what a crash at that very step leaves.

use std::sync::OnceLock;

use rustix::process::{Signal, getpid, kill_process};

static ARMED: OnceLock<String> = OnceLock::new();

/// Arms the step of that name for the rest of the process.
pub(crate) fn arm(name: String) {
    // Only the first call counts; there is one flag.
    let _ = ARMED.set(name);
}

/// Whether the process dies at the step `name`.
pub(crate) fn is_armed(name: &str) -> bool {
    ARMED.get().is_some_and(|armed| armed == name)
}

/// Marks the step `name`; dies here if it is armed.
pub(crate) fn reach(name: &str) {
    if is_armed(name) {
        let _ = kill_process(getpid(), Signal::KILL);
        // SIGKILL is on its way; nothing may happen until it arrives.
        loop {
            std::thread::park();
        }
    }
}
