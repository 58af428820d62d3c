//! A process that never outlives this one.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal};
use thiserror::Error;

use crate::sys;

/// How long a killed process may take to end.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// Why a process could not be kept.
#[derive(Debug, Error)]
pub enum KeepError {
    #[error("cannot start it")]
    Spawn(#[source] io::Error),
    #[error("cannot watch it")]
    Watch(#[source] io::Error),
}

/// A running process. Dropping it kills it and waits until it is gone.
#[derive(Debug)]
pub(crate) struct Kept {
    pid: u32,
    pidfd: OwnedFd,
    end: Arc<End>,
}

#[derive(Debug, Default)]
struct End {
    status: Mutex<Option<ExitStatus>>,
    changed: Condvar,
}

impl Kept {
    /// Spawns it from a thread of its own, which then waits for it. It dies with that thread, and
    /// the thread ends only after it or with this whole process. So it never outlives this process,
    /// whichever thread asked for it. It inherits the descriptors, which end here.
    pub(crate) fn start(mut command: Command, inherited: Vec<OwnedFd>) -> Result<Self, KeepError> {
        let end = Arc::new(End::default());
        let keeper_end = Arc::clone(&end);
        let (sender, receiver) = mpsc::channel();
        std::thread::Builder::new()
            .name("kvm-host-keeper".to_owned())
            .spawn(move || {
                sys::tie_to_this_thread(&mut command, inherited);
                let mut child = match command.spawn() {
                    Ok(child) => child,
                    Err(error) => {
                        let _ = sender.send(Err(KeepError::Spawn(error)));
                        return;
                    }
                };
                // Drops our copies of its descriptors, so that connections end when it does.
                drop(command);
                let pidfd =
                    rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::empty())
                        .map_err(|errno| KeepError::Watch(errno.into()));
                let _ = sender.send(pidfd.map(|pidfd| (child.id(), pidfd)));
                let status = child.wait().ok();
                *keeper_end
                    .status
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner) = status;
                keeper_end.changed.notify_all();
            })
            .map_err(KeepError::Watch)?;
        let (pid, pidfd) = receiver
            .recv()
            .map_err(|_| KeepError::Watch(io::Error::from(io::ErrorKind::BrokenPipe)))??;
        Ok(Self { pid, pidfd, end })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for its end; `None` at the deadline.
    pub(crate) fn wait_until(&self, deadline: Instant) -> Option<ExitStatus> {
        let mut status = self
            .end
            .status
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        while status.is_none() {
            let left = deadline.checked_duration_since(Instant::now())?;
            (status, _) = self
                .end
                .changed
                .wait_timeout(status, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
        *status
    }

    /// Kills it if it still runs, and waits until it is gone.
    pub(crate) fn kill(&self) {
        // The only failure is that it has ended already.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        self.wait_until(Instant::now() + KILL_DEADLINE);
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.kill();
    }
}
