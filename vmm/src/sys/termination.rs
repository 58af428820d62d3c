//! Turns SIGTERM and SIGINT into something that the event loop can wait for.

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicI32, Ordering};

use libc::siginfo_t;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::register_signal_handler;

/// Descriptor that the handler writes to; it stays open to the end of the process.
static WAKE: AtomicI32 = AtomicI32::new(-1);

/// An eventfd that becomes readable when the process is asked to end. Once per process.
///
/// # Errors
/// Where the host gives no descriptor or no handler.
pub(crate) fn termination_event() -> io::Result<EventFd> {
    let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
    let kept = event.try_clone()?;
    WAKE.store(kept.as_raw_fd(), Ordering::SeqCst);
    // The handler may use it until the very end.
    std::mem::forget(kept);
    for signal in [libc::SIGTERM, libc::SIGINT] {
        register_signal_handler(signal, on_termination)
            .map_err(|errno| io::Error::from_raw_os_error(errno.errno()))?;
    }
    Ok(event)
}

extern "C" fn on_termination(_signal: c_int, _info: *mut siginfo_t, _context: *mut c_void) {
    let one = 1_u64.to_ne_bytes();
    // SAFETY: writes from a live buffer of that length; write is async-signal-safe.
    unsafe { libc::write(WAKE.load(Ordering::SeqCst), one.as_ptr().cast(), one.len()) };
}
