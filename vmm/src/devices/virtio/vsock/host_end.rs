//! The host's end of a connection: a non-blocking stream, and the backlog that it has not taken yet.
//!
//! Knows bytes and directions; the caller knows credit, packets and phases, and bounds the backlog by
//! the guest's credit.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Result, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

/// A non-blocking stream.
pub(super) trait HostStream: Read + Write + std::fmt::Debug {
    /// Closes one direction.
    ///
    /// # Errors
    /// The other end has closed the stream.
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
    /// Received together with the handshake, not yet read.
    early: Vec<u8>,
    /// Data that the stream has not taken yet.
    backlog: VecDeque<u8>,
    readable: bool,
    sends: bool,
    receives: bool,
    /// The stream's writing direction is shut down.
    writing_ended: bool,
}

impl<S: HostStream> HostEnd<S> {
    pub(super) fn new(stream: S, early: Vec<u8>) -> Self {
        // The edge-triggered event may have come before this existed, so it starts as readable.
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

    /// Whether the host may send more.
    pub(super) fn sends(&self) -> bool {
        self.sends
    }

    /// Whether the host may take more.
    pub(super) fn receives(&self) -> bool {
        self.receives
    }

    /// Whether [`HostEnd::read`] may find data or the end.
    pub(super) fn is_readable(&self) -> bool {
        self.sends && (self.readable || !self.early.is_empty())
    }

    pub(super) fn set_readable(&mut self) {
        self.readable = true;
    }

    /// Whether there is data that the stream has not taken yet.
    pub(super) fn has_backlog(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Reads the data that is there, 0 bytes if none; the end changes [`HostEnd::sends`].
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

    /// Writes data or adds it to the backlog; returns the number of bytes that need no room any more.
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

    /// Writes as much of the backlog as the stream takes; returns the number of bytes that need no room any
    /// more.
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
        // An idle connection keeps no memory for a backlog.
        if left > 0 {
            self.backlog = backlog;
        }
        before - left
    }

    /// The host won't read any more: drops the backlog and returns its length.
    pub(super) fn stop_receiving(&mut self) -> usize {
        self.receives = false;
        std::mem::take(&mut self.backlog).len()
    }

    /// The guest does not read any more, so the host is not read either.
    pub(super) fn stop_reading(&mut self) {
        self.sends = false;
        self.early = Vec::new();
        // Fails only if the other end has closed the stream, which a hang-up reports.
        let _ = self.stream.shut_down(Shutdown::Read);
    }

    /// The guest won't send any more, so the host gets end-of-file. Only once: each shutdown causes an event
    /// of the stream (net/unix/af_unix.c: unix_shutdown), which would lead to the next shutdown, for ever.
    pub(super) fn end_writing(&mut self) {
        if !std::mem::replace(&mut self.writing_ended, true) {
            let _ = self.stream.shut_down(Shutdown::Write);
        }
    }

    /// Writes a line of the handshake, for which there is room, since nothing was written before. False if
    /// the host has closed the stream.
    pub(super) fn write_handshake_line(&mut self, word: &str, local_port: u32) -> bool {
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
