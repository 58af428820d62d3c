//! The end of the host: powers it off, also when the outside asks for that.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use kvm_host::protocol::Frame;
use rustix::process::Signal;
use rustix::system::RebootCommand;

use crate::channel::Channel;
use crate::{console, program};

/// How long programs may take to end when the outside asks for the end of the host.
const GRACE: Duration = Duration::from_secs(5);

/// Starts the thread that waits for the outside to ask for the end. The flag is set before any
/// program is signalled.
pub(crate) fn watch(channel: &Arc<Channel>) -> anyhow::Result<Arc<AtomicBool>> {
    let channel = Arc::clone(channel);
    let requested = Arc::new(AtomicBool::new(false));
    let request = Arc::clone(&requested);
    std::thread::Builder::new()
        .name("channel".to_owned())
        .spawn(move || {
            let last = loop {
                match channel.receive() {
                    // Its arrival has caused an interrupt, which is all that it is for.
                    Ok(Some(Frame::Beat)) => {}
                    other => break other,
                }
            };
            if let Ok(Some(Frame::PowerOff)) = last {
                request.store(true, Ordering::SeqCst);
                program::signal_all(Signal::TERM);
                // The main thread powers off as soon as all programs have ended.
                std::thread::sleep(GRACE);
                power_off();
            }
            // Anything else means that QEMU's other end is closed, and QEMU is about to end.
        })
        .context("cannot start a thread")?;
    Ok(requested)
}

/// Ends the host, and QEMU with it.
pub(crate) fn power_off() -> ! {
    rustix::fs::sync();
    if let Err(errno) = rustix::system::reboot(RebootCommand::PowerOff) {
        console::print(&format!("cannot power off: {errno}"));
    }
    // The end of PID 1 panics the kernel, which ends QEMU as well.
    std::process::exit(1);
}
