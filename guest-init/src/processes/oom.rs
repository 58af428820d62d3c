//! Whether the kernel's out-of-memory killer ended a process. The signal alone does not show it.

use std::path::{Path, PathBuf};

use guest_protocol::Exit;
use nix::sys::signal::Signal;

use crate::os::procfs;

/// Exit code of a shell whose command was ended by SIGKILL.
const SHELL_SIGKILL: i32 = 128 + 9;

/// Counts the kills of the kernel's out-of-memory killer from [`OomCounter::start`] on.
#[derive(Debug)]
pub(crate) struct OomCounter {
    source: PathBuf,
    before: u64,
}

impl OomCounter {
    /// Counts in the control group, or in the whole guest where there is none.
    pub(crate) fn start(cgroup: Option<&Path>) -> Self {
        let source = cgroup
            .map(|group| group.join("memory.events"))
            .filter(|events| events.exists())
            .unwrap_or_else(|| "/proc/vmstat".into());
        let before = procfs::read_counter(&source, "oom_kill").unwrap_or(0);
        Self { source, before }
    }

    /// Whether the killer is the cause of `exit`: a kill was counted, and `exit` is one by SIGKILL.
    pub(crate) fn explains(&self, exit: Exit) -> bool {
        let was_killed =
            exit.signal == Some(Signal::SIGKILL as i32) || exit.code == Some(SHELL_SIGKILL);
        let now = procfs::read_counter(&self.source, "oom_kill").unwrap_or(0);
        was_killed && now > self.before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_kill_during_an_oom_event_counts_as_oom_killed() {
        let group = tempfile::tempdir().unwrap();
        let events = group.path().join("memory.events");
        std::fs::write(&events, "oom 1\noom_kill 2\n").unwrap();
        let oom = OomCounter::start(Some(group.path()));
        let killed = Exit {
            signal: Some(9),
            ..Exit::default()
        };
        let failed = Exit {
            code: Some(1),
            ..Exit::default()
        };

        assert!(!oom.explains(killed));
        std::fs::write(&events, "oom 2\noom_kill 3\n").unwrap();

        assert!(oom.explains(killed));
        assert!(!oom.explains(failed));
    }
}
