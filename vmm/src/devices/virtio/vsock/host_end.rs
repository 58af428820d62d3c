//! The host's end of a connection: a non-blocking stream, and what it has not taken yet.
//!
//! Knows bytes and directions; credit, packets and phases are the connection's business. The
//! backlog is bounded by whoever writes: by the credit that the guest was given.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Result, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

/// A non-blocking stream.
pub(super) trait HostStream: Read + Write + std::fmt::Debug {
    /// Closes one direction.
    ///
    /// # Errors
    /// The other end has gone already.
    fn shut_down(&self, how: Shutdown) -> Result<()>;
}

impl HostStream for UnixStream {
    fn shut_down(&self, how: Shutdown) -> Result<()> {
        self.shutdown(how)
    }
}

/// The host's end of a connection.
#[derive(Debug)]
pub(super) struct HostEnd<S> {
    stream: S,
    /// Came along with the handshake, not yet read.
    early: Vec<u8>,
    /// Written, but not yet taken by the stream.
    backlog: VecDeque<u8>,
    readable: bool,
    sends: bool,
    receives: bool,
    /// It was told that nothing more comes.
    writing_ended: bool,
}

impl<S: HostStream> HostEnd<S> {
    pub(super) fn new(stream: S, early: Vec<u8>) -> Self {
        // Edge-triggered readiness may have come before this existed, hence readable.
        let backlog = VecDeque::new();
        Self {
            stream,
            early,
            backlog,
            readable: true,
            sends: true,
            receives: true,
            writing_ended: false,
        }
    }

    /// Whether more may come from the host.
    pub(super) fn sends(&self) -> bool {
        self.sends
    }

    /// Whether the host may take more.
    pub(super) fn receives(&self) -> bool {
        self.receives
    }

    /// Whether [`HostEnd::read`] may find something, be it the end.
    pub(super) fn is_readable(&self) -> bool {
        self.sends && (self.readable || !self.early.is_empty())
    }

    pub(super) fn set_readable(&mut self) {
        self.readable = true;
    }

    /// Whether the stream has not taken everything.
    pub(super) fn has_backlog(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Reads what there is, 0 if nothing; the end shows in [`HostEnd::sends`].
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> usize {
        if buffer.is_empty() {
            return 0;
        }
        if !self.early.is_empty() {
            let bytes = buffer.len().min(self.early.len());
            buffer[..bytes].copy_from_slice(&self.early[..bytes]);
            self.early.drain(..bytes);
            return bytes;
        }
        loop {
            match self.stream.read(buffer) {
                Ok(0) => self.sends = false,
                Ok(bytes) => return bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => {
                    self.sends = false;
                    self.receives = false;
                }
            }
            self.readable = false;
            return 0;
        }
    }

    /// Writes, or keeps for later; the number of bytes that need no more room here.
    pub(super) fn write(&mut self, bytes: &[u8]) -> usize {
        if !self.receives {
            return bytes.len();
        }
        let written = if self.backlog.is_empty() {
            self.write_now(bytes)
        } else {
            0
        };
        if !self.receives {
            return bytes.len();
        }
        self.backlog.extend(&bytes[written..]);
        written
    }

    /// Writes what the stream takes of the backlog; the number of bytes that need no more room.
    pub(super) fn flush(&mut self) -> usize {
        let mut backlog = std::mem::take(&mut self.backlog);
        let before = backlog.len();
        while !backlog.is_empty() && self.receives {
            let written = self.write_now(backlog.as_slices().0);
            if written == 0 {
                break;
            }
            backlog.drain(..written);
        }
        if !self.receives {
            return before;
        }
        let left = backlog.len();
        // An idle connection holds no memory for a backlog that it once had.
        if left > 0 {
            self.backlog = backlog;
        }
        before - left
    }

    /// The host won't read any more; the number of bytes that were in vain.
    pub(super) fn stop_receiving(&mut self) -> usize {
        self.receives = false;
        std::mem::take(&mut self.backlog).len()
    }

    /// Nobody wants to read from the host any more.
    pub(super) fn refuse_to_read(&mut self) {
        self.sends = false;
        self.early = Vec::new();
        // An end that has gone meanwhile shows as hang-up; there is nothing else to learn here.
        let _ = self.stream.shut_down(Shutdown::Read);
    }

    /// Nobody will write to the host any more, so it sees end-of-file. Said once: each time is an event
    /// of the stream in its turn (net/unix/af_unix.c: unix_shutdown), upon which this would be called
    /// again, for ever.
    pub(super) fn end_writing(&mut self) {
        if !std::mem::replace(&mut self.writing_ended, true) {
            let _ = self.stream.shut_down(Shutdown::Write);
        }
    }

    /// Writes a line of the handshake. Nothing has been written before, so that there is room for
    /// it; false if the host has gone.
    pub(super) fn say(&mut self, word: &str, local_port: u32) -> bool {
        let line = format!("{word} {local_port}\n");
        matches!(self.stream.write(line.as_bytes()), Ok(written) if written == line.len())
    }

    fn write_now(&mut self, bytes: &[u8]) -> usize {
        let mut written = 0;
        while written < bytes.len() {
            match self.stream.write(&bytes[written..]) {
                Ok(0) => break,
                Ok(count) => written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.receives = false;
                    break;
                }
            }
        }
        written
    }
}
