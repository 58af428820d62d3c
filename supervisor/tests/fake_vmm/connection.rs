//! A connection to guest-init, from the guest's end: frames and messages.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use guest_protocol::{Decoded, Frame};
use serde::Serialize;

pub(crate) struct Connection {
    pub(crate) stream: UnixStream,
    /// Bytes that arrived and belong to no frame that was read yet.
    pub(crate) buffer: Vec<u8>,
}

impl Connection {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
        }
    }

    /// Sends a frame; false if the other end is gone.
    fn send_frame(&mut self, frame: Frame<'_>) -> bool {
        let mut bytes = Vec::new();
        guest_protocol::encode(frame, &mut bytes).unwrap();
        self.stream.write_all(&bytes).is_ok()
    }

    /// Sends a message; false if the other end is gone.
    pub(crate) fn send(&mut self, message: &impl Serialize) -> bool {
        let payload = serde_json::to_vec(message).unwrap();
        self.send_frame(Frame::Json(&payload))
    }

    /// Sends output of an exec.
    pub(crate) fn send_stdout(&mut self, text: &str) {
        self.send_frame(Frame::Stdout(text.as_bytes()));
    }

    /// Sends a file. The empty frame is its end.
    pub(crate) fn send_data(&mut self, content: &[u8]) {
        for piece in content.chunks(64 << 10).chain([&[][..]]) {
            self.send_piece(piece);
        }
    }

    /// Sends a piece of a file; false if the other end is gone.
    pub(crate) fn send_piece(&mut self, piece: &[u8]) -> bool {
        self.send_frame(Frame::Data(piece))
    }

    /// Receives a file up to its end; none if the connection ends before.
    pub(crate) fn receive_data(&mut self) -> Option<Vec<u8>> {
        let mut content = Vec::new();
        loop {
            if let Ok(Decoded::Frame(Frame::Data(piece), taken)) =
                guest_protocol::decode(&self.buffer)
            {
                let ended = piece.is_empty();
                content.extend_from_slice(piece);
                self.buffer.drain(..taken);
                if ended {
                    return Some(content);
                }
                continue;
            }
            self.read_more()?;
        }
    }

    fn read_more(&mut self) -> Option<()> {
        let mut chunk = [0; 4096];
        let read = self.stream.read(&mut chunk).ok().filter(|read| *read > 0)?;
        self.buffer.extend_from_slice(&chunk[..read]);
        Some(())
    }

    /// Receives a message; none if the connection ends before.
    pub(crate) fn next_json(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Ok(Decoded::Frame(Frame::Json(payload), taken)) =
                guest_protocol::decode(&self.buffer)
            {
                let payload = payload.to_vec();
                self.buffer.drain(..taken);
                return Some(payload);
            }
            self.read_more()?;
        }
    }
}
