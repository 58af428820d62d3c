//! Event descriptors: creating them, and borrowing them from a type that only gives their number.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use vmm_sys_util::eventfd::EventFd;

/// Creates an eventfd that never blocks and is not inherited.
///
/// # Errors
/// Where the host has no descriptor left.
pub(crate) fn new_event() -> io::Result<EventFd> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
}

/// Borrows an eventfd's descriptor.
#[must_use]
pub(crate) fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the eventfd owns the descriptor and outlives the borrow.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
