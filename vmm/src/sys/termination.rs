//! Turns SIGTERM and SIGINT into an event that the event loop can wait for.

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicI32, Ordering};

use libc::siginfo_t;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::register_signal_handler;

use super::fd::new_event;
use super::in_handler;

/// The descriptor that the handler writes to; it stays open until the process ends.
static WAKE: AtomicI32 = AtomicI32::new(-1);

/// An eventfd that becomes readable when the process gets one of the two signals. Once per process.
///
/// # Errors
/// Where the host gives no descriptor or no handler.
pub(crate) fn termination_event() -> io::Result<EventFd> {
    let event = new_event()?;
    let handler_event = event.try_clone()?;
    WAKE.store(handler_event.as_raw_fd(), Ordering::SeqCst);
    // The handler may run until the end of the process.
    std::mem::forget(handler_event);
    for signal in [libc::SIGTERM, libc::SIGINT] {
        register_signal_handler(signal, on_termination)
            .map_err(|errno| io::Error::from_raw_os_error(errno.errno()))?;
    }
    Ok(event)
}

extern "C" fn on_termination(_signal: c_int, _info: *mut siginfo_t, _context: *mut c_void) {
    in_handler::write(WAKE.load(Ordering::SeqCst), &1_u64.to_ne_bytes());
}
