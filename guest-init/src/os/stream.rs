//! A non-blocking byte stream that notices when its connection has been reset.
//!
//! After a transport reset a vsock socket polls `EPOLLERR | EPOLLOUT` and neither readable nor
//! hung up. A read that waits for readability alone, as that of every ready-made stream does,
//! sleeps for ever, and its owner never closes the socket. Therefore every wait here is for the
//! error state too. Works on any pollable descriptor: vsock, TCP and Unix sockets, pipes and
//! terminals. Frames are the connection's part.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{MsgFlags, Shutdown, getsockopt, send, shutdown, sockopt};
use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, Ready};

use crate::os::sys;

/// Most bytes that one read returns. A buffer lives only while it holds data: an idle connection
/// has none.
pub(crate) const CHUNK_BYTES: usize = 64 * 1024;

/// Owner of one descriptor; dropping it closes the descriptor.
#[derive(Debug)]
pub(crate) struct Stream {
    fd: AsyncFd<OwnedFd>,
}

impl Stream {
    /// Takes over `fd` and makes it non-blocking.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Self {
            fd: sys::register(fd)?,
        })
    }

    /// Reads available bytes, at most [`CHUNK_BYTES`]; waits if there are none. An empty result
    /// is the end of the stream. Cancelling loses no bytes.
    pub(crate) async fn read_chunk(&self) -> io::Result<Vec<u8>> {
        self.when_ready(Interest::READABLE, || self.try_read())
            .await
    }

    /// Reads available bytes, or fails with `WouldBlock` if there are none.
    pub(crate) fn try_read(&self) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; CHUNK_BYTES];
        let length = nix::unistd::read(self.fd.get_ref(), &mut buffer)?;
        buffer.truncate(length);
        buffer.shrink_to_fit();
        Ok(buffer)
    }

    /// Writes some of `bytes`, waiting until that is possible. Cancelling writes nothing.
    pub(crate) async fn write_some(&self, bytes: &[u8]) -> io::Result<usize> {
        let write = || Ok(nix::unistd::write(self.fd.get_ref(), bytes)?);
        self.when_ready(Interest::WRITABLE, write).await
    }

    /// Writes all of `bytes`.
    pub(crate) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self.write_some(bytes).await?;
            bytes = bytes.get(written..).unwrap_or_default();
        }
        Ok(())
    }

    /// Waits until the other end is gone or will send no more, without reading anything.
    pub(crate) async fn ended(&self) -> io::Result<()> {
        loop {
            let mut guard = self.fd.ready(Interest::READABLE | Interest::ERROR).await?;
            if guard.ready().is_error() || guard.ready().is_read_closed() {
                return Ok(());
            }
            // Readiness that comes from unread data only: wait for the next change.
            guard.clear_ready_matching(Ready::READABLE);
        }
    }

    /// Waits until nothing can be written any more. Sockets only.
    ///
    /// A peer that closed both directions polls at first like one that only stopped sending. A
    /// write of zero bytes tells them apart and has no effect.
    pub(crate) async fn unwritable(&self) -> io::Result<()> {
        loop {
            let mut guard = self.fd.ready(Interest::WRITABLE | Interest::ERROR).await?;
            if self.write_nothing().is_err() {
                return Ok(());
            }
            guard.clear_ready();
        }
    }

    /// Tells the other end that nothing more will be sent. Sockets only.
    pub(crate) fn end_sending(&self) -> io::Result<()> {
        shutdown(self.raw(), Shutdown::Write)?;
        Ok(())
    }

    /// Whether the connection is known to be dead already.
    pub(crate) fn is_dead(&self) -> bool {
        self.pending_error().is_err() || self.write_nothing().is_err()
    }

    /// Makes a call that may block, and repeats it each time that the descriptor has become ready
    /// or failed.
    ///
    /// The first call comes before the wait, because [`Stream::ended`] and [`Stream::unwritable`]
    /// clear readiness without using it.
    async fn when_ready<T>(
        &self,
        interest: Interest,
        mut call: impl FnMut() -> io::Result<T>,
    ) -> io::Result<T> {
        if let Some(result) = unless_blocked(call())? {
            return Ok(result);
        }
        loop {
            let mut guard = self.fd.ready(interest | Interest::ERROR).await?;
            if let Some(result) = unless_blocked(call())? {
                return Ok(result);
            }
            self.pending_error()?;
            guard.clear_ready();
        }
    }

    fn write_nothing(&self) -> Result<(), Errno> {
        match send(self.raw(), &[], MsgFlags::MSG_NOSIGNAL) {
            Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Takes the socket's pending error. Other descriptors have none.
    fn pending_error(&self) -> io::Result<()> {
        match getsockopt(self.fd.get_ref(), sockopt::SocketError) {
            Ok(0) | Err(_) => Ok(()),
            Ok(errno) => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    fn raw(&self) -> std::os::fd::RawFd {
        use std::os::fd::AsRawFd;
        self.fd.get_ref().as_raw_fd()
    }
}

/// None if the call has to be repeated once the descriptor is ready.
fn unless_blocked<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        result => result.map(Some),
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.get_ref().as_fd()
    }
}

impl From<Stream> for OwnedFd {
    fn from(stream: Stream) -> Self {
        stream.fd.into_inner()
    }
}

/// TCP connections for the tests of this crate.
#[cfg(test)]
pub(crate) mod tcp {
    use std::net::{TcpListener, TcpStream};

    use nix::sys::socket::{setsockopt, sockopt};

    /// Both ends of a connection.
    pub(crate) fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (listener.accept().unwrap().0, theirs)
    }

    /// Closes the connection with a reset.
    pub(crate) fn reset(socket: TcpStream) {
        let linger = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        setsockopt(&socket, sockopt::Linger, &linger).unwrap();
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    const DEADLINE: Duration = Duration::from_secs(10);

    fn revents(fd: BorrowedFd<'_>) -> PollFlags {
        let wanted =
            PollFlags::POLLIN | PollFlags::POLLOUT | PollFlags::from_bits_retain(libc::POLLRDHUP);
        let mut fds = [PollFd::new(fd, wanted)];
        poll(&mut fds, PollTimeout::ZERO).unwrap();
        fds[0].revents().unwrap()
    }

    /// A connected UDP socket whose peer does not exist polls exactly like a reset vsock
    /// socket: error and writable, neither readable nor hung up.
    #[tokio::test]
    async fn a_waiting_read_is_woken_by_an_error_that_makes_nothing_readable() {
        let absent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(absent.local_addr().unwrap()).unwrap();
        drop(absent);
        let watched = OwnedFd::from(socket.try_clone().unwrap());
        let stream = Stream::new(watched).unwrap();

        let provoke = async {
            tokio::task::yield_now().await;
            socket.send(b"x").unwrap();
            revents(socket.as_fd())
        };
        let (read, polled) =
            tokio::join!(tokio::time::timeout(DEADLINE, stream.read_chunk()), provoke);

        assert_eq!(polled, PollFlags::POLLERR | PollFlags::POLLOUT);
        let error = read.expect("the read was never woken").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED));
    }

    #[tokio::test]
    async fn a_connection_reset_ends_a_waiting_read() {
        let (ours, theirs) = tcp::pair();
        let stream = Stream::new(ours.into()).unwrap();

        let reset = async { tcp::reset(theirs) };
        let (read, ()) = tokio::join!(tokio::time::timeout(DEADLINE, stream.read_chunk()), reset);

        let error = read.expect("the read was never woken").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ECONNRESET));
        assert!(stream.is_dead());
    }

    #[tokio::test]
    async fn a_peer_that_only_stops_sending_can_still_be_written_to() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let stream = Stream::new(ours.into()).unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();

        assert!(stream.read_chunk().await.unwrap().is_empty());
        assert!(!stream.is_dead());
        let mut unwritable = std::pin::pin!(stream.unwritable());
        assert!(
            tokio::time::timeout(Duration::ZERO, &mut unwritable)
                .await
                .is_err()
        );
        drop(theirs);
        tokio::time::timeout(DEADLINE, unwritable)
            .await
            .expect("the full close went unnoticed")
            .unwrap();
    }

    #[tokio::test]
    async fn the_end_is_noticed_behind_unread_data() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let stream = Stream::new(ours.into()).unwrap();
        nix::unistd::write(&theirs, b"unread").unwrap();
        let mut ended = std::pin::pin!(stream.ended());
        assert!(
            tokio::time::timeout(Duration::ZERO, &mut ended)
                .await
                .is_err()
        );

        drop(theirs);

        tokio::time::timeout(DEADLINE, ended)
            .await
            .expect("the end went unnoticed")
            .unwrap();
        assert_eq!(stream.read_chunk().await.unwrap(), b"unread");
    }

    #[tokio::test]
    async fn data_that_was_there_while_only_the_end_was_waited_for_is_read() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let stream = Stream::new(ours.into()).unwrap();
        nix::unistd::write(&theirs, b"data").unwrap();
        let ended = tokio::time::timeout(Duration::ZERO, stream.ended()).await;
        assert!(ended.is_err());

        let read = tokio::time::timeout(DEADLINE, stream.read_chunk()).await;

        assert_eq!(read.expect("the data went unnoticed").unwrap(), b"data");
    }
}
