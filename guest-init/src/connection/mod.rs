//! One accepted connection: frames over a stream. The meaning of a message is the caller's.

use std::cell::RefCell;
use std::io;
use std::time::Duration;

use guest_protocol::{Decoded, Frame, FrameError, decode, encode};
use nix::errno::Errno;
use serde::Serialize;

use crate::os::stream::Stream;

pub(crate) mod registry;

use registry::Ticket;

/// How long a connection stays open after its last message, so that the peer can close it first.
/// That shows that the message has arrived.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A frame that owns its payload.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Message {
    Json(Vec<u8>),
    Stdin(Vec<u8>),
    Data(Vec<u8>),
    /// A frame that only guest-init may send.
    Misplaced,
}

/// Why nothing more can be received or sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectionError {
    /// Closed or reset. Neither is a failure, and guest-init does the same for both.
    #[error("the connection has ended")]
    Ended,
    #[error("cannot encode or decode a frame")]
    Frame(#[from] FrameError),
    #[error("the socket failed")]
    Socket(#[source] io::Error),
    #[error("cannot encode or decode a message")]
    Json(#[from] serde_json::Error),
}

impl From<io::Error> for ConnectionError {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOTCONN | Errno::ECONNRESET | Errno::EPIPE) => Self::Ended,
            _ => Self::Socket(error),
        }
    }
}

/// One accepted connection. One task owns it, so dropping that task's future closes the socket. The
/// ticket is declared last, so it is dropped after the socket.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: Stream,
    inbox: RefCell<Vec<u8>>,
    ticket: Ticket,
}

impl Connection {
    pub(crate) fn new(stream: Stream, ticket: Ticket) -> Self {
        Self {
            stream,
            inbox: RefCell::default(),
            ticket,
        }
    }

    pub(crate) fn ticket(&self) -> &Ticket {
        &self.ticket
    }

    /// The stream below the frames.
    pub(crate) fn stream(&self) -> &Stream {
        &self.stream
    }

    /// The stream and its ticket, for a service that uses neither frames nor cancellation.
    #[cfg(feature = "leaky")]
    pub(crate) fn into_parts(self) -> (Stream, Ticket) {
        (self.stream, self.ticket)
    }

    /// Bytes that arrived after the last message.
    pub(crate) fn take_unread(&self) -> Vec<u8> {
        self.inbox.take()
    }

    /// Waits for the next message. Cancelling loses nothing.
    pub(crate) async fn receive(&self) -> Result<Message, ConnectionError> {
        loop {
            if let Some(message) = self.take_message()? {
                return Ok(message);
            }
            let chunk = self.stream.read_chunk().await?;
            if chunk.is_empty() {
                return Err(ConnectionError::Ended);
            }
            self.inbox.borrow_mut().extend_from_slice(&chunk);
        }
    }

    fn take_message(&self) -> Result<Option<Message>, FrameError> {
        let mut inbox = self.inbox.borrow_mut();
        let (message, length) = match decode(&inbox)? {
            Decoded::Incomplete(_) => return Ok(None),
            Decoded::Frame(frame, length) => {
                let message = match frame {
                    Frame::Json(payload) => Message::Json(payload.to_vec()),
                    Frame::Stdin(payload) => Message::Stdin(payload.to_vec()),
                    Frame::Data(payload) => Message::Data(payload.to_vec()),
                    Frame::Stdout(_) | Frame::Stderr(_) => Message::Misplaced,
                };
                (message, length)
            }
        };
        inbox.drain(..length);
        if inbox.is_empty() {
            *inbox = Vec::new();
        }
        Ok(Some(message))
    }

    pub(crate) async fn send(&self, frame: Frame<'_>) -> Result<(), ConnectionError> {
        let mut bytes = Vec::new();
        encode(frame, &mut bytes)?;
        self.stream.write_all(&bytes).await?;
        Ok(())
    }

    pub(crate) async fn send_json<T: Serialize>(&self, message: &T) -> Result<(), ConnectionError> {
        let json = serde_json::to_vec(message)?;
        self.send(Frame::Json(&json)).await
    }

    /// Waits until the peer closes, at most for [`CLOSE_TIMEOUT`]. A peer closes when it has read
    /// everything, or no longer wants to.
    pub(crate) async fn wait_for_close(&self) {
        let _late = tokio::time::timeout(CLOSE_TIMEOUT, self.stream.ended()).await;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::registry::Registry;
    use super::*;

    fn connection() -> (Connection, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let registry = Registry::new(1);
        let stream = Stream::new(ours.into()).unwrap();
        let ticket = registry.admit(&stream).unwrap();
        (Connection::new(stream, ticket), theirs)
    }

    #[tokio::test]
    async fn frames_that_arrive_in_pieces_are_put_together() {
        let (connection, theirs) = connection();
        let mut bytes = Vec::new();
        encode(Frame::Json(b"{}"), &mut bytes).unwrap();
        encode(Frame::Stdin(b"in"), &mut bytes).unwrap();
        encode(Frame::Stdout(b""), &mut bytes).unwrap();
        let pieces = async {
            for piece in bytes.chunks(3) {
                nix::unistd::write(&theirs, piece).unwrap();
                tokio::task::yield_now().await;
            }
        };
        let received = async {
            let mut messages = Vec::new();
            for _ in 0..3 {
                messages.push(connection.receive().await.unwrap());
            }
            messages
        };

        let (received, ()) = tokio::join!(received, pieces);

        assert_eq!(
            received,
            [
                Message::Json(b"{}".to_vec()),
                Message::Stdin(b"in".to_vec()),
                Message::Misplaced
            ]
        );
    }

    #[tokio::test]
    async fn what_is_no_frame_ends_the_conversation() {
        let (connection, theirs) = connection();
        nix::unistd::write(&theirs, b"GET / HTTP/1.1\r\n").unwrap();

        let error = connection.receive().await.unwrap_err();

        assert!(matches!(
            error,
            ConnectionError::Frame(FrameError::UnknownKind(b'G'))
        ));
    }

    #[test]
    fn all_ways_in_which_a_connection_ends_are_one() {
        for errno in [Errno::ENOTCONN, Errno::ECONNRESET, Errno::EPIPE] {
            let error = ConnectionError::from(io::Error::from(errno));
            assert!(matches!(error, ConnectionError::Ended), "{errno}");
        }
    }
}
