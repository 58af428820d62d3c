//! The sole caller of waitpid.
//!
//! Whoever spawns a process registers its pid here and awaits the answer; nobody waits for a
//! process itself. Spawning and registering happen without an await in between, on the one
//! thread of the runtime, so that the reaper can't come first. Orphans, which the kernel makes
//! children of process 1, are reaped and forgotten.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::rc::Rc;

use guest_protocol::Exit;
use nix::unistd::Pid;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::sys;

/// Resolves to how the process ended.
pub(crate) type ExitReceiver = oneshot::Receiver<Exit>;

/// What a round of reaping has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Children {
    Left,
    None,
}

/// Those who wait for a process.
#[derive(Debug, Default)]
pub(crate) struct Reaper {
    waiting: RefCell<HashMap<Pid, oneshot::Sender<Exit>>>,
}

impl Reaper {
    pub(crate) fn new() -> Rc<Self> {
        Rc::default()
    }

    /// To be called right after `pid` was spawned, before anything is awaited.
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
                Ok(None) => return Children::Left,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // ECHILD, the only other failure of this call.
                Err(_) => return Children::None,
            }
        }
    }

    fn report(&self, pid: Pid, exit: Exit) {
        if let Some(sender) = self.waiting.borrow_mut().remove(&pid) {
            // Nobody may want to know any more.
            let _unwanted = sender.send(exit);
        }
    }
}

/// Takes apart what waitpid tells. Real-time signals included, which nix has no names for.
fn to_exit(status: i32) -> Exit {
    let exited = libc::WIFEXITED(status);
    let signaled = libc::WIFSIGNALED(status);
    Exit {
        code: exited.then(|| libc::WEXITSTATUS(status)),
        signal: signaled.then(|| libc::WTERMSIG(status)),
        ..Exit::default()
    }
}

/// Subscribes to SIGCHLD; must precede the first spawn.
pub(crate) fn child_signals() -> io::Result<Signal> {
    signal(SignalKind::child())
}
