//! The control socket: requests in, replies and events out, one JSON object per line.
//!
//! The caller carries requests out. All sockets are non-blocking and served by its event loop, so no
//! client can delay it: a client that does not read or sends invalid lines loses its connection.

pub mod clients;
pub mod connection;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use self::connection::Connection;

/// Most clients at a time. There are few: the supervisor, its successor, a person with a shell.
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
    #[error("cannot use --control-fd 0: descriptor 0 is not a listening Unix socket")]
    Inherited(#[source] io::Error),
}

/// The listening socket.
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

    /// Accepts a connection, if one is waiting.
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
