//! The only caller of waitpid.
//!
//! Code that spawns a process registers the pid here and awaits its exit. Spawning and registering
//! happen without an await in between, on the one thread of the runtime, so that the reaper cannot
//! run before the pid is registered. Orphans, which the kernel makes children of process 1, are
//! reaped and ignored.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::rc::Rc;

use guest_protocol::Exit;
use nix::unistd::Pid;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::os::sys;

/// Resolves to how the process ended.
pub(crate) type ExitReceiver = oneshot::Receiver<Exit>;

/// Whether children remain after a round of reaping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Children {
    Remain,
    None,
}

/// The receivers of exits, by pid.
#[derive(Debug, Default)]
pub(crate) struct Reaper {
    waiting: RefCell<HashMap<Pid, oneshot::Sender<Exit>>>,
}

impl Reaper {
    pub(crate) fn new() -> Rc<Self> {
        Rc::default()
    }

    /// Call it right after `pid` was spawned, before anything is awaited.
    pub(crate) fn register(&self, pid: Pid) -> ExitReceiver {
        let (sender, receiver) = oneshot::channel();
        self.waiting.borrow_mut().insert(pid, sender);
        receiver
    }

    /// Reaps on every SIGCHLD, for ever.
    pub(crate) async fn run(self: Rc<Self>, mut child_ended: Signal) {
        loop {
            self.reap_ended();
            if child_ended.recv().await.is_none() {
                return;
            }
        }
    }

    /// Reaps every process that has ended. One SIGCHLD may stand for many.
    pub(crate) fn reap_ended(&self) -> Children {
        loop {
            match sys::wait_for_any() {
                Ok(Some((pid, status))) => self.report(pid, to_exit(status)),
                Ok(None) => return Children::Remain,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // ECHILD, the only other failure of this call.
                Err(_) => return Children::None,
            }
        }
    }

    fn report(&self, pid: Pid, exit: Exit) {
        if let Some(sender) = self.waiting.borrow_mut().remove(&pid) {
            // The receiver may be gone.
            let _unwanted = sender.send(exit);
        }
    }
}

/// Decodes waitpid's status by hand: nix has no names for real-time signals.
fn to_exit(status: i32) -> Exit {
    let exited = libc::WIFEXITED(status);
    let signaled = libc::WIFSIGNALED(status);
    Exit {
        code: exited.then(|| libc::WEXITSTATUS(status)),
        signal: signaled.then(|| libc::WTERMSIG(status)),
        ..Exit::default()
    }
}

/// Subscribes to SIGCHLD. Call it before the first spawn.
pub(crate) fn child_signals() -> io::Result<Signal> {
    signal(SignalKind::child())
}
