//! A listening vsock socket that never puts this process to sleep.
//!
//! If no connection waits, accept(2) on a non-blocking vsock socket sleeps until the next timer tick
//! before it fails with `EAGAIN` (Linux, `net/vmw_vsock/af_vsock.c`, `vsock_accept`, which calls
//! `schedule_timeout(0)`): up to 4 ms where HZ is 250, and with it sleeps everything else in this
//! process of one thread. Every ready-made listener accepts until `EAGAIN`, so that each connection
//! would cost that. This one asks poll(2) first, which does not sleep.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::libc::VMADDR_CID_ANY;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, listen, socket,
};
use tokio::io::unix::AsyncFd;

use crate::os::sys;

/// Connections that may wait to be accepted. The kernel answers any further one with a reset,
/// and a published port can bring hundreds at once.
const BACKLOG: i32 = 1024;

/// A listening socket, usually of vsock.
#[derive(Debug)]
pub(crate) struct VsockListener {
    fd: AsyncFd<OwnedFd>,
}

impl VsockListener {
    /// Listens on `port` for connections to any CID: the guest's CID may change with a resume.
    pub(crate) fn bind(port: u32) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
        bind(socket.as_raw_fd(), &VsockAddr::new(VMADDR_CID_ANY, port))?;
        listen(&socket, Backlog::new(BACKLOG)?)?;
        Self::new(socket)
    }

    fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            fd: sys::register(socket)?,
        })
    }

    /// Waits for the next connection. Cancelling loses none.
    pub(crate) async fn accept(&self) -> io::Result<OwnedFd> {
        loop {
            let mut guard = self.fd.readable().await?;
            if self.has_waiting()? {
                return sys::accept(self.fd.get_ref().as_fd());
            }
            // A connection that comes after the poll wakes the next wait.
            guard.clear_ready();
        }
    }

    /// Whether accept(2) would not sleep. An error counts: accept(2) tells which.
    fn has_waiting(&self) -> io::Result<bool> {
        let mut polled = [PollFd::new(self.fd.get_ref().as_fd(), PollFlags::POLLIN)];
        Ok(poll(&mut polled, PollTimeout::ZERO)? > 0)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);

    fn listen_in(folder: &std::path::Path) -> VsockListener {
        let listener = UnixListener::bind(folder.join("socket")).unwrap();
        listener.set_nonblocking(true).unwrap();
        VsockListener::new(listener.into()).unwrap()
    }

    #[tokio::test]
    async fn connections_that_came_together_are_accepted_one_after_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let listener = listen_in(folder.path());
        let _clients = [(); 3].map(|()| UnixStream::connect(folder.path().join("socket")).unwrap());
        for _ in 0..3 {
            timeout(DEADLINE, listener.accept()).await.unwrap().unwrap();
        }
        assert!(!listener.has_waiting().unwrap());
    }

    #[tokio::test]
    async fn a_connection_that_comes_later_wakes_the_wait() {
        let folder = tempfile::tempdir().unwrap();
        let listener = listen_in(folder.path());
        for _ in 0..3 {
            let connect = async {
                tokio::task::yield_now().await;
                UnixStream::connect(folder.path().join("socket")).unwrap()
            };
            let accept = timeout(DEADLINE, listener.accept());
            let (accepted, _client) = tokio::join!(accept, connect);
            accepted.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn a_listener_without_a_connection_waits_and_accepts_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let listener = listen_in(folder.path());
        assert!(!listener.has_waiting().unwrap());
        let waiting = timeout(Duration::from_millis(20), listener.accept()).await;
        assert!(waiting.is_err());
    }
}
