//! What the outside asks for while the program of the plan runs: its interruption, the end of the
//! host.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use kvm_host::protocol::Frame;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::channel::Channel;
use crate::{console, shutdown};

/// How long programs may take to end when the outside asks for the end of the host.
const GRACE: Duration = Duration::from_secs(5);

/// What was asked for, and the command that it concerns.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    host_is_ending: AtomicBool,
    command: Mutex<Option<OwnedFd>>,
}

impl Requests {
    /// Starts the thread that receives requests.
    pub(crate) fn receive(channel: &Arc<Channel>) -> anyhow::Result<Arc<Self>> {
        let channel = Arc::clone(channel);
        let requests = Arc::new(Self::default());
        let receiver = Arc::clone(&requests);
        std::thread::Builder::new()
            .name("channel".to_owned())
            .spawn(move || receiver.follow(&channel))
            .context("cannot start a thread")?;
        Ok(requests)
    }

    /// Whether the outside has asked for the end of the host. Known before any program is
    /// signalled.
    pub(crate) fn host_is_ending(&self) -> bool {
        self.host_is_ending.load(Ordering::SeqCst)
    }

    /// From now on an interruption concerns this process, a child that has not been reaped.
    pub(crate) fn interrupt_from_now_on(&self, command: Pid) -> anyhow::Result<()> {
        let pidfd = pidfd_open(command, PidfdFlags::empty()).context("cannot watch the command")?;
        *self.command() = Some(pidfd);
        Ok(())
    }

    fn command(&self) -> std::sync::MutexGuard<'_, Option<OwnedFd>> {
        self.command.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn follow(&self, channel: &Channel) {
        loop {
            match channel.receive() {
                // Its arrival has caused an interrupt, which is all that it is for.
                Ok(Some(Frame::Beat)) => {}
                Ok(Some(Frame::Interrupt)) => self.interrupt_command(),
                Ok(Some(Frame::PowerOff)) => break,
                // QEMU's other end is closed, and QEMU is about to end.
                _ => return,
            }
        }
        self.host_is_ending.store(true, Ordering::SeqCst);
        shutdown::signal_all(Signal::TERM);
        // The main thread powers off as soon as all programs have ended.
        std::thread::sleep(GRACE);
        shutdown::power_off();
    }

    fn interrupt_command(&self) {
        let Some(command) = &*self.command() else {
            return;
        };
        // One that has ended needs no interruption.
        if let Err(errno) = pidfd_send_signal(command, Signal::INT)
            && errno != rustix::io::Errno::SRCH
        {
            console::print(&format!("cannot interrupt the command: {errno}"));
        }
    }
}
