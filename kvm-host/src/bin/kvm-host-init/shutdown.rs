//! The end of the host.

use rustix::system::RebootCommand;

use crate::console;

/// Ends the host, and QEMU with it.
pub(crate) fn power_off() -> ! {
    rustix::fs::sync();
    if let Err(errno) = rustix::system::reboot(RebootCommand::PowerOff) {
        console::print(&format!("cannot power off: {errno}"));
    }
    // The end of PID 1 panics the kernel, which ends QEMU as well.
    std::process::exit(1);
}
