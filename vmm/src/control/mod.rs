//! The control socket: requests in, replies and events out, one JSON object per line.
//!
//! What a request means is decided in `machine::run`; here is only the talking. All sockets are
//! non-blocking and served by the machine's event loop, so no client can hold it up: one that does not read
//! or sends nonsense loses its connection.

pub mod clients;
pub mod connection;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use self::connection::Connection;

/// Supervisor, its successor, a person with a shell: a handful.
pub const MAX_CONNECTIONS: usize = 16;

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The path is taken or not writable.
    #[error("cannot listen on control socket {path}")]
    Bind {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The inherited descriptor is no listening socket.
    #[error("descriptor 0 is not a listening Unix socket, which --control-fd 0 says it is")]
    Inherited(#[source] io::Error),
}

/// Where connections arrive.
#[derive(Debug)]
pub struct ControlListener {
    listener: UnixListener,
}

impl ControlListener {
    /// Binds a path; a stale socket there is replaced.
    ///
    /// # Errors
    /// [`ControlError::Bind`].
    pub fn bind(path: &Path) -> Result<Self, ControlError> {
        let failed = |source| ControlError::Bind {
            path: path.into(),
            source,
        };
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Self { listener })
    }

    /// Takes the listener that the supervisor passed as standard input.
    ///
    /// # Errors
    /// [`ControlError::Inherited`].
    pub fn inherited() -> Result<Self, ControlError> {
        let fd = io::stdin()
            .as_fd()
            .try_clone_to_owned()
            .map_err(ControlError::Inherited)?;
        if !rustix::net::sockopt::socket_acceptconn(&fd)
            .map_err(|errno| ControlError::Inherited(errno.into()))?
        {
            return Err(ControlError::Inherited(io::ErrorKind::InvalidInput.into()));
        }
        let listener = UnixListener::from(fd);
        listener
            .set_nonblocking(true)
            .map_err(ControlError::Inherited)?;
        Ok(Self { listener })
    }

    /// The next connection that waits, if there is one.
    pub fn accept(&self) -> Option<Connection> {
        let (stream, _) = self.listener.accept().ok()?;
        Connection::new(stream).ok()
    }
}

impl AsFd for ControlListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}
