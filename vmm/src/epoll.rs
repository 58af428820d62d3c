//! Asking an epoll instance what is ready, without waiting.

use std::io;
use std::os::fd::AsFd;

use rustix::event::Timespec;
use rustix::event::epoll::{self, Event};
use rustix::io::Errno;

/// A wait that ends at once.
pub(crate) const NO_WAIT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// Up to `most` events that have happened. A signal in between counts as none.
///
/// # Errors
/// The errno of epoll_wait.
pub(crate) fn ready_now(epoll: impl AsFd, most: usize) -> io::Result<Vec<Event>> {
    let mut ready = Vec::with_capacity(most);
    let buffer = rustix::buffer::spare_capacity(&mut ready);
    match epoll::wait(epoll, buffer, Some(&NO_WAIT)) {
        Ok(_) | Err(Errno::INTR) => Ok(ready),
        Err(errno) => Err(errno.into()),
    }
}
