//! What signal handlers do: calls that are async-signal-safe, and neither allocate nor lock.

use std::ffi::c_int;

/// Writes bytes; a failure is ignored, as nobody could be told.
pub(super) fn write(descriptor: c_int, bytes: &[u8]) {
    // SAFETY: writes from a live buffer of that length; write is async-signal-safe.
    unsafe { libc::write(descriptor, bytes.as_ptr().cast(), bytes.len()) };
}

/// Ends the process without running any more of its code.
pub(super) fn exit(code: c_int) -> ! {
    // SAFETY: returns to nobody; async-signal-safe.
    unsafe { libc::_exit(code) }
}
