//! Finding a process by its identity, without mistaking another one under the same pid for it.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::model::process_identity::ProcessIdentity;

impl ProcessIdentity {
    /// Opens the process that has `pid` now, and returns its identity.
    ///
    /// The descriptor is opened before the identity is read: if the pid moved to another process
    /// in between, the descriptor belongs to the dead one, and reports its end at once.
    pub(crate) fn open_pid(pid: i32) -> io::Result<(Self, OwnedFd)> {
        let handle = Pid::from_raw(pid)
            .filter(|_| pid > 0)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no process id"))?;
        let pidfd = pidfd_open(handle, PidfdFlags::empty())?;
        let start_ticks = start_ticks(pid)?;
        Ok((
            Self {
                pid,
                start_ticks,
                boot_id: host_boot_id().to_owned(),
            },
            pidfd,
        ))
    }

    /// Opens this very process; none if it has ended. After an error its state is unknown.
    pub(crate) fn open(&self) -> io::Result<Option<OwnedFd>> {
        match Self::open_pid(self.pid) {
            Ok((found, pidfd)) => Ok((found == *self).then_some(pidfd)),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Whether an error means that there is no such process.
pub(super) fn is_gone(error: &io::Error) -> bool {
    use rustix::io::Errno;
    error.kind() == io::ErrorKind::NotFound
        || matches!(
            Errno::from_io_error(error),
            Some(Errno::SRCH | Errno::INVAL)
        )
}

/// Field 22 of `/proc/<pid>/stat`. The name in field 2 may hold spaces and parentheses.
fn start_ticks(pid: i32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    stat.rsplit_once(')')
        .and_then(|(_, fields)| fields.split_whitespace().nth(19))
        .and_then(|ticks| ticks.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unreadable /proc/<pid>/stat"))
}

fn host_boot_id() -> &'static str {
    static BOOT_ID: OnceLock<String> = OnceLock::new();
    BOOT_ID.get_or_init(|| {
        fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map(|text| text.trim().to_owned())
            .unwrap_or_default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_again_by_its_identity() {
        let own = i32::try_from(std::process::id()).unwrap();
        let (identity, _pidfd) = ProcessIdentity::open_pid(own).unwrap();
        assert!(identity.open().unwrap().is_some());
    }

    #[test]
    fn another_process_under_the_same_number_is_not_taken_for_it() {
        let own = i32::try_from(std::process::id()).unwrap();
        let (identity, _pidfd) = ProcessIdentity::open_pid(own).unwrap();
        let older = ProcessIdentity {
            start_ticks: identity.start_ticks + 1,
            ..identity.clone()
        };
        let other_boot = ProcessIdentity {
            boot_id: "another".to_owned(),
            ..identity
        };
        assert!(older.open().unwrap().is_none());
        assert!(other_boot.open().unwrap().is_none());
    }
}
