//! Client of guest-init: connects through the VMM's vsock host socket, asks, streams.
//!
//! The guest is not trusted: its lines and frames are bounded, and whatever does not fit ends the
//! connection. Deadlines and retries are the caller's.

pub(crate) mod exec;
mod file;
mod permits;
mod reader;
mod resources;
mod status;
#[cfg(test)]
pub(crate) mod testing;

use std::io;
use std::path::{Path, PathBuf};

use guest_protocol::{
    Call, Frame, FrameError, MAX_PAYLOAD_BYTES, Refusal, RefusalKind, Reply, Request, Wake,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;

pub(crate) use permits::{CallPermits, SharedPace};
pub(crate) use reader::{GuestReader, OwnedFrame};

use crate::model::guest_share::bounded_text;

/// Longest answer to `CONNECT`.
const HANDSHAKE_BYTES: usize = 64;

/// A call to guest-init failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GuestError {
    /// The VMM's host socket cannot be reached.
    #[error("cannot connect to the VMM's vsock socket")]
    Dial(#[source] io::Error),
    /// The guest answered with RST.
    #[error("the guest refused the connection from local port {local_port}")]
    Reset {
        /// Host end of the pair.
        local_port: u32,
    },
    /// The guest did not answer the connection request.
    #[error("the guest did not answer the connection from local port {local_port}")]
    NoReply {
        /// Host end of the pair.
        local_port: u32,
    },
    /// The connection broke.
    #[error("the connection to guest-init broke")]
    Closed {
        /// Host end of the pair, if it was known.
        local_port: Option<u32>,
        /// The system's reason, if it gave one.
        source: Option<io::Error>,
    },
    /// The other end does not speak our protocol.
    #[error("guest-init sent something that is not a frame")]
    Frame(#[from] FrameError),
    /// A message of an unexpected kind.
    #[error("guest-init did not answer with {expected}")]
    BadReply {
        /// The expected message.
        expected: &'static str,
        /// Host end of the pair.
        local_port: u32,
    },
    /// guest-init refused the call.
    #[error("guest-init refused: {}", .0.message)]
    Refused(Refusal),
    /// As many calls as a machine may have are under way.
    #[error("{most} {what} of this machine are under way, the most that there may be at once")]
    TooMany {
        /// What is counted.
        what: &'static str,
        /// How many there may be.
        most: u32,
    },
}

impl GuestError {
    /// A refusal, whose text is the guest's: it may be stored and shown, so it is made short and plain.
    pub(crate) fn refused(refusal: Refusal) -> Self {
        Self::Refused(Refusal {
            message: bounded_text(&refusal.message),
            ..refusal
        })
    }

    /// Whether guest-init does not speak the version of the protocol in which it was called.
    pub(crate) fn is_of_another_version(&self) -> bool {
        matches!(self, Self::Refused(refusal) if refusal.kind == RefusalKind::Version)
    }

    /// Host end of the pair, if it is known.
    pub(crate) fn local_port(&self) -> Option<u32> {
        match self {
            Self::Reset { local_port }
            | Self::NoReply { local_port }
            | Self::BadReply { local_port, .. } => Some(*local_port),
            Self::Closed { local_port, .. } => *local_port,
            Self::Dial(_) | Self::Frame(_) | Self::Refused(_) | Self::TooMany { .. } => None,
        }
    }
}

/// Where a machine's guest-init is reached, in one generation.
#[derive(Debug, Clone)]
pub(crate) struct GuestAddress {
    /// The VMM's host socket.
    socket: PathBuf,
    /// The generation that runs.
    pub(crate) generation: u64,
    /// The version of the protocol in which it is called.
    version: u32,
    gate: Option<OutputGate>,
    permits: Option<CallPermits>,
}

/// Says true once what comes out of the guest may be used; ends with the VMM. Until then a power failure
/// would bring the image back that the guest was resumed from, and it would do the same again.
pub(crate) type OutputGate = watch::Receiver<bool>;

impl GuestAddress {
    /// Of the guest behind that host socket.
    pub(crate) fn new(socket: PathBuf, generation: u64) -> Self {
        Self {
            socket,
            generation,
            version: guest_protocol::VERSION,
            gate: None,
            permits: None,
        }
    }

    /// The same, for a guest-init whose version of the protocol is `protocol`. If there is no version in
    /// common it will say so itself.
    pub(crate) fn speaking(self, protocol: u32) -> Self {
        let version = guest_protocol::common_version(protocol);
        Self {
            version: version.unwrap_or(guest_protocol::VERSION),
            ..self
        }
    }

    /// The same, called in that version.
    #[cfg(test)]
    pub(crate) fn calling_in(self, version: u32) -> Self {
        Self { version, ..self }
    }

    /// The version of the protocol in which it is called.
    pub(crate) fn version(&self) -> u32 {
        self.version
    }

    /// The call that carries `request`.
    pub(crate) fn call_with(&self, request: Request, wake: Option<Wake>) -> Call {
        Call {
            version: self.version,
            ..Call::new(self.generation, wake, request)
        }
    }

    /// The same, but calls return nothing before `gate` opens. The guest works on them meanwhile.
    pub(crate) fn holding_answers(self, gate: OutputGate) -> Self {
        Self {
            gate: Some(gate),
            ..self
        }
    }

    /// The same, but there are only so many calls at once as `permits` allows.
    pub(crate) fn with_permits(self, permits: CallPermits) -> Self {
        Self {
            permits: Some(permits),
            ..self
        }
    }

    /// The same, for calls that are bounded in another way, and must not fail because clients make many.
    pub(crate) fn without_permits(self) -> Self {
        Self {
            permits: self.permits.map(CallPermits::not_counting),
            ..self
        }
    }

    /// Connects, without a call.
    pub(crate) async fn connect(&self) -> Result<GuestStream, GuestError> {
        GuestStream::connect(&self.socket).await
    }

    /// Connects, makes one call and returns the first reply with the stream behind it.
    pub(crate) async fn call(
        &self,
        request: Request,
        wake: Option<Wake>,
    ) -> Result<(Reply, GuestStream), GuestError> {
        let permit = match &self.permits {
            Some(permits) => permits.take(&request)?,
            None => None,
        };
        let mut stream = self.connect().await?;
        stream.reader.permit = permit;
        stream.reader.pace = self.permits.as_ref().map(CallPermits::pace).cloned();
        let asked = stream.ask(&self.call_with(request, wake)).await;
        if let Err(GuestError::Refused(_)) | Ok(_) = &asked
            && let Some(mut gate) = self.gate.clone()
        {
            let opened = gate.wait_for(|open| *open).await;
            opened.map_err(|_| stream.reader.closed(None))?;
        }
        Ok((asked?, stream))
    }

    /// Makes a call that returns nothing: guest-init answers it with [`Reply::Done`].
    pub(crate) async fn execute(&self, request: Request) -> Result<(), GuestError> {
        match self.call(request, None).await? {
            (Reply::Done, _) => Ok(()),
            (_, stream) => Err(stream.reader.bad_reply("done")),
        }
    }

    /// Makes a call that opens a stream.
    pub(crate) async fn open(&self, request: Request) -> Result<GuestStream, GuestError> {
        match self.call(request, None).await? {
            (Reply::Streaming, stream) => Ok(stream),
            (_, stream) => Err(stream.reader.bad_reply("a stream")),
        }
    }
}

/// A connection to guest-init.
#[derive(Debug)]
pub(crate) struct GuestStream {
    /// The receiving half.
    pub(crate) reader: GuestReader,
    /// The sending half.
    pub(crate) writer: GuestWriter,
}

/// The sending half of a connection.
#[derive(Debug)]
pub(crate) struct GuestWriter {
    half: OwnedWriteHalf,
    local_port: u32,
}

impl GuestStream {
    /// Connects to the port of guest-init.
    async fn connect(socket: &Path) -> Result<Self, GuestError> {
        let mut stream = UnixStream::connect(socket)
            .await
            .map_err(GuestError::Dial)?;
        let line = format!("CONNECT {}\n", guest_protocol::PORT);
        let closed = |source| GuestError::Closed {
            local_port: None,
            source,
        };
        stream
            .write_all(line.as_bytes())
            .await
            .map_err(|error| closed(Some(error)))?;
        let mut buffer = Vec::with_capacity(4096);
        let end = loop {
            if let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                break end;
            }
            let room = buffer.len() < HANDSHAKE_BYTES;
            if !room
                || stream
                    .read_buf(&mut buffer)
                    .await
                    .map_err(|e| closed(Some(e)))?
                    == 0
            {
                return Err(closed(None));
            }
        };
        let rest = buffer.split_off(end + 1);
        let local_port = parse_handshake(&buffer[..end])?;
        let (read, write) = stream.into_split();
        Ok(Self {
            reader: GuestReader::new(read, rest, local_port),
            writer: GuestWriter {
                half: write,
                local_port,
            },
        })
    }

    /// Host end of the pair.
    pub(crate) fn local_port(&self) -> u32 {
        self.reader.local_port()
    }

    /// Makes a call and waits for its first reply; a refusal becomes an error.
    pub(crate) async fn ask(&mut self, call: &Call) -> Result<Reply, GuestError> {
        self.reader.bound_payloads(longest_reply(&call.request));
        self.writer.send_json(call).await?;
        let reply = self.message::<Reply>("a reply").await?;
        self.reader.bound_payloads(MAX_PAYLOAD_BYTES);
        match reply {
            Reply::Refused(refusal) => Err(GuestError::refused(refusal)),
            Reply::Status(status) if !status::is_plausible(&status) => {
                Err(self.reader.bad_reply("a status that a guest can have"))
            }
            reply => Ok(reply),
        }
    }

    /// How fast bytes may be exchanged, if that is bounded.
    pub(crate) fn pace(&self) -> Option<SharedPace> {
        self.reader.pace.clone()
    }

    /// Both halves for raw bytes, and the bytes that have arrived already.
    pub(crate) fn into_raw(self) -> (OwnedReadHalf, OwnedWriteHalf, Vec<u8>) {
        let (half, early) = self.reader.into_raw();
        (half, self.writer.half, early)
    }

    /// Waits for a message of that type.
    pub(crate) async fn message<T: DeserializeOwned>(
        &mut self,
        expected: &'static str,
    ) -> Result<T, GuestError> {
        self.reader.message(expected).await
    }
}

impl GuestWriter {
    /// Sends a message.
    pub(crate) async fn send_json(&mut self, message: &impl Serialize) -> Result<(), GuestError> {
        let payload = serde_json::to_vec(message).expect("messages are plain JSON");
        self.send(Frame::Json(&payload)).await
    }

    /// Sends a frame.
    pub(crate) async fn send(&mut self, frame: Frame<'_>) -> Result<(), GuestError> {
        let mut bytes = Vec::new();
        guest_protocol::encode(frame, &mut bytes)?;
        let local_port = Some(self.local_port);
        self.half
            .write_all(&bytes)
            .await
            .map_err(|source| GuestError::Closed {
                local_port,
                source: Some(source),
            })
    }
}

/// Most bytes of the answer to `request`. A guest that answers with more gets no memory for it: it may hold
/// thousands of connections.
fn longest_reply(request: &Request) -> usize {
    match request {
        Request::Processes => MAX_PAYLOAD_BYTES,
        // With a count for each generation that has left sockets open.
        Request::Status | Request::Resources => 256 << 10,
        // A word, or a refusal, which may name a path.
        _ => 16 << 10,
    }
}

/// Reads the VMM's answer to `CONNECT`.
fn parse_handshake(line: &[u8]) -> Result<u32, GuestError> {
    let text = std::str::from_utf8(line).unwrap_or("");
    let (word, port) = text.split_once(' ').unwrap_or((text, ""));
    let closed = |local_port| GuestError::Closed {
        local_port,
        source: None,
    };
    let local_port: u32 = port.trim_end().parse().map_err(|_| closed(None))?;
    match word {
        "OK" => Ok(local_port),
        "RST" => Err(GuestError::Reset { local_port }),
        "NOREPLY" => Err(GuestError::NoReply { local_port }),
        _ => Err(closed(Some(local_port))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_to_connect_keeps_its_port() {
        assert!(matches!(
            parse_handshake(b"OK 1073741824"),
            Ok(1_073_741_824)
        ));
        assert!(matches!(
            parse_handshake(b"RST 7"),
            Err(GuestError::Reset { local_port: 7 })
        ));
        assert!(matches!(
            parse_handshake(b"NOREPLY 8"),
            Err(GuestError::NoReply { local_port: 8 })
        ));
        let gone = parse_handshake(b"GONE 9").unwrap_err();
        assert_eq!(gone.local_port(), Some(9));
        for line in [&b""[..], b"OK", b"OK x", b"OK 99999999999", b"\xff\xfe"] {
            assert!(
                matches!(parse_handshake(line), Err(GuestError::Closed { .. })),
                "{line:?}"
            );
        }
    }
}
