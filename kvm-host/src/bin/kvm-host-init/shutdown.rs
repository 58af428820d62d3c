//! The end of the host, and of the programs on it.

use rustix::process::{Pid, Signal};
use rustix::system::RebootCommand;

use crate::console;

/// Signals every process but this one, as kill(2) does for the process id -1.
pub(crate) fn signal_all(signal: Signal) {
    // Fails only if there is no other process.
    let _ = rustix::process::kill_process_group(Pid::INIT, signal);
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
