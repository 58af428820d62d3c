//! One connection of the control socket: lines in, lines out, both bounded.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use vmm_control::{MAX_LINE_BYTES, Message, Reply, Request};

/// Bytes that may wait for a slow reader before it loses its connection.
const MAX_WAITING_BYTES: usize = 1 << 20;

/// Most bytes that are read from a client before others have their turn.
const TURN_BYTES: usize = 64 << 10;

/// A connected client.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    /// No more is read; the connection closes once all output is written.
    ending: bool,
}

/// What was received.
#[derive(Debug, Default)]
pub struct Received {
    /// Whole requests.
    pub requests: Vec<Request>,
    /// The client has disconnected, or the connection is to be closed.
    pub ended: bool,
}

impl Connection {
    /// Makes a connection of a stream.
    ///
    /// # Errors
    /// Where it can't be made non-blocking.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            inbox: Vec::new(),
            outbox: Vec::new(),
            ending: false,
        })
    }

    /// Reads what is there, but no more than a turn's worth: the descriptor stays ready for the rest. A line that
    /// is no request gets a reply and ends the connection.
    pub fn receive(&mut self) -> Received {
        let mut received = Received::default();
        if self.ending {
            received.ended = self.outbox.is_empty();
            return received;
        }
        let mut chunk = [0; 4096];
        let mut turn = 0;
        while turn < TURN_BYTES {
            match self.stream.read(&mut chunk) {
                Ok(0) => {
                    received.ended = true;
                    return received;
                }
                Ok(count) => {
                    turn += count;
                    self.inbox.extend_from_slice(&chunk[..count]);
                    self.take_requests(&mut received.requests);
                    if self.ending {
                        received.ended = self.outbox.is_empty();
                        return received;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return received,
                Err(_) => {
                    received.ended = true;
                    return received;
                }
            }
        }
        received
    }

    /// Queues a message and writes as much as possible at once. False if the connection is to be closed.
    #[must_use]
    pub fn send(&mut self, message: &Message) -> bool {
        // Cannot fail: the message is plain data without maps.
        let Ok(mut line) = serde_json::to_vec(message) else {
            return true;
        };
        line.push(b'\n');
        if self.outbox.len() + line.len() > MAX_WAITING_BYTES {
            return false;
        }
        self.outbox.append(&mut line);
        self.flush()
    }

    /// Writes as much queued output as possible. False if the connection is to be closed.
    #[must_use]
    pub fn flush(&mut self) -> bool {
        while !self.outbox.is_empty() {
            match self.stream.write(&self.outbox) {
                Ok(0) => return false,
                Ok(count) => drop(self.outbox.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(_) => return false,
            }
        }
        !self.ending
    }

    /// Whether output waits for the client to read.
    #[must_use]
    pub fn has_waiting_output(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Whether input of the client is still read.
    #[must_use]
    pub fn reads(&self) -> bool {
        !self.ending
    }

    fn take_requests(&mut self, requests: &mut Vec<Request>) {
        let mut start = 0;
        while let Some(length) = self.inbox[start..].iter().position(|byte| *byte == b'\n') {
            let line = &self.inbox[start..start + length];
            start += length + 1;
            match serde_json::from_slice(line) {
                Ok(request) => requests.push(request),
                Err(error) => {
                    let id = request_id(line);
                    return self.end(id, &format!("invalid request: {error}"));
                }
            }
        }
        self.inbox.drain(..start);
        if self.inbox.len() > MAX_LINE_BYTES {
            self.end(0, &format!("a line has more than {MAX_LINE_BYTES} bytes"));
        }
    }

    fn end(&mut self, id: u64, message: &str) {
        self.inbox = Vec::new();
        let reply = Reply::Failed {
            kind: "invalid".to_owned(),
            message: message.to_owned(),
        };
        // The connection ends, whether or not this succeeds.
        let _ = self.send(&Message::Reply { id, reply });
        self.ending = true;
    }
}

/// The id of a line that is no request, where it has one.
fn request_id(line: &[u8]) -> u64 {
    #[derive(serde::Deserialize)]
    struct Id {
        id: u64,
    }
    serde_json::from_slice(line).map_or(0, |Id { id }| id)
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};

    use vmm_control::RequestBody;

    use super::*;

    fn pair() -> (Connection, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Connection::new(ours).unwrap(), theirs)
    }

    #[test]
    fn requests_are_cut_at_line_ends_only() {
        let (mut connection, mut client) = pair();
        client
            .write_all(b"{\"id\":1,\"request\":\"pause\"}\n{\"id\":2,")
            .unwrap();
        let first = connection.receive().requests;
        assert_eq!(
            first,
            [Request {
                id: 1,
                body: RequestBody::Pause
            }]
        );
        client.write_all(b"\"request\":\"counters\"}\n").unwrap();
        let second = connection.receive().requests;
        assert_eq!(
            second,
            [Request {
                id: 2,
                body: RequestBody::Counters
            }]
        );
    }

    #[test]
    fn an_invalid_line_is_answered_and_ends_the_connection() {
        let (mut connection, mut client) = pair();
        client
            .write_all(b"{\"id\":7,\"request\":\"dance\"}\n")
            .unwrap();
        assert!(connection.receive().requests.is_empty());
        let mut line = String::new();
        BufReader::new(&client).read_line(&mut line).unwrap();
        assert!(
            line.contains("\"id\":7") && line.contains("invalid"),
            "{line}"
        );
        assert!(connection.receive().ended);
    }

    #[test]
    fn a_line_without_end_is_not_collected_for_ever() {
        let (mut connection, mut client) = pair();
        client.set_nonblocking(true).unwrap();
        let mut ended = false;
        for _ in 0..64 {
            let _ = client.write(&[b'x'; 64 << 10]);
            ended |= connection.receive().ended;
        }
        assert!(ended);
    }

    #[test]
    fn a_client_that_has_written_much_has_turns_as_others_do() {
        let (mut connection, mut client) = pair();
        client.set_nonblocking(true).unwrap();
        let line = b"{\"id\":1,\"request\":\"pause\"}\n";
        let block = line.repeat(1_000);
        let mut written = 0;
        while let Ok(count) = client.write(&block[written % line.len()..]) {
            written += count;
        }
        assert!(written > 2 * TURN_BYTES, "{written}");
        let mut requests = 0;
        while requests < written / line.len() {
            let turn = connection.receive().requests.len();
            assert!(turn > 0 && turn <= (TURN_BYTES + 4_096) / line.len() + 1);
            requests += turn;
        }
    }

    #[test]
    fn a_client_that_does_not_read_loses_its_connection() {
        let (mut connection, _client) = pair();
        let reply = Reply::Failed {
            kind: "io".to_owned(),
            message: "x".repeat(MAX_WAITING_BYTES / 4),
        };
        let message = Message::Reply { id: 1, reply };
        let kept = (0..64).take_while(|_| connection.send(&message)).count();
        assert!(kept < 64);
    }
}
