//! Calls to guest-init through a VMM's vsock socket.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use guest_protocol::{
    Call, Decoded, Frame, FrameError, GuestStatus, PORT, Reply, Request, Wake, decode, encode,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::host_socket::{self, HandshakeError};

/// Why a call to init did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The vsock socket does not exist or does not accept.
    #[error("cannot connect to the vsock socket {}", socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The VMM closed the connection instead of answering `OK`: the guest answered with RST.
    #[error("the guest refused the connection")]
    Reset,
    /// No answer.
    #[error("no answer within {} ms", deadline.as_millis())]
    NoReply {
        /// The attempt's deadline.
        deadline: Duration,
    },
    /// The connection broke after it was made.
    #[error("the connection broke after it was made")]
    Closed(#[source] Option<std::io::Error>),
    /// The answer is not the expected one.
    #[error("unexpected answer: {what}")]
    BadReply {
        /// The answer, or what is wrong with it.
        what: String,
    },
}

impl From<FrameError> for CallError {
    fn from(error: FrameError) -> Self {
        Self::BadReply {
            what: error.to_string(),
        }
    }
}

impl From<HandshakeError> for CallError {
    fn from(error: HandshakeError) -> Self {
        match error {
            HandshakeError::Connect { socket, source } => Self::Connect { socket, source },
            HandshakeError::Send(source) => Self::Closed(Some(source)),
            HandshakeError::Closed => Self::Reset,
            HandshakeError::NotOk { answer } => Self::BadReply {
                what: format!("{answer:?}"),
            },
        }
    }
}

/// A connection to init after the handshake.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    received: Vec<u8>,
    /// Host end of the pair.
    pub(super) local_port: u32,
}

/// Pause after a collision with a leaked pair.
const RETRY_PAUSE: Duration = Duration::from_millis(5);

/// Connects to init's port. If the guest leaks, this can collide with leaked pairs although the
/// readiness check before it did not. The next attempt has another port.
pub(super) async fn connect(socket: &Path, deadline: Duration) -> Result<Connection, CallError> {
    let with_retries = async {
        loop {
            match handshake(socket).await {
                Err(CallError::Reset) => tokio::time::sleep(RETRY_PAUSE).await,
                other => return other,
            }
        }
    };
    timeout(deadline, with_retries)
        .await
        .map_err(|_| CallError::NoReply { deadline })?
}

async fn handshake(socket: &Path) -> Result<Connection, CallError> {
    let (stream, local_port) = host_socket::connect(socket, PORT).await?;
    Ok(Connection {
        stream,
        received: Vec::new(),
        local_port,
    })
}

impl Connection {
    /// Sends one request.
    pub(super) async fn send(
        &mut self,
        generation: u64,
        request: Request,
    ) -> Result<(), CallError> {
        let call = Call::new(generation, Some(wake()), request);
        let json = serde_json::to_vec(&call).map_err(|error| CallError::BadReply {
            what: error.to_string(),
        })?;
        let mut bytes = Vec::new();
        encode(Frame::Json(&json), &mut bytes)?;
        self.stream
            .write_all(&bytes)
            .await
            .map_err(|source| CallError::Closed(Some(source)))
    }

    /// Waits for the next frame and passes it to `read`.
    pub(super) async fn next_frame<T>(
        &mut self,
        read: impl FnOnce(Frame<'_>) -> T,
    ) -> Result<T, CallError> {
        loop {
            if let Decoded::Frame(frame, length) = decode(&self.received)? {
                let value = read(frame);
                self.received.drain(..length);
                return Ok(value);
            }
            match self.stream.read_buf(&mut self.received).await {
                Ok(0) => return Err(CallError::Closed(None)),
                Ok(_) => {}
                Err(source) => return Err(CallError::Closed(Some(source))),
            }
        }
    }

    /// Waits for init's reply.
    pub(super) async fn reply(&mut self) -> Result<Reply, CallError> {
        let bad = |what: String| CallError::BadReply { what };
        self.next_frame(|frame| match frame {
            Frame::Json(json) => {
                serde_json::from_slice::<Reply>(json).map_err(|error| bad(error.to_string()))
            }
            other => Err(bad(format!("{other:?} instead of a reply"))),
        })
        .await?
    }
}

/// The local port of one attempt, if one was chosen, and the attempt's result.
pub(super) type AttemptResult<T> = (Option<u32>, Result<T, CallError>);

/// One attempt to read the status, within `deadline`.
pub(super) async fn status(
    socket: &Path,
    generation: u64,
    deadline: Duration,
) -> AttemptResult<GuestStatus> {
    let ask = async |mut connection: Connection| {
        connection.send(generation, Request::Status).await?;
        match connection.reply().await? {
            Reply::Status(status) if status.generation == generation => Ok(status),
            other => Err(unexpected(&other)),
        }
    };
    attempt(socket, deadline, ask).await
}

/// One attempt to open the long-lived connection, on which init streams CPU usage.
pub(super) async fn monitor(
    socket: &Path,
    generation: u64,
    deadline: Duration,
) -> AttemptResult<Connection> {
    let ask = async |mut connection: Connection| {
        let request = Request::CpuUsage { interval_ms: 1000 };
        connection.send(generation, request).await?;
        match connection.reply().await? {
            Reply::Streaming => Ok(connection),
            other => Err(unexpected(&other)),
        }
    };
    attempt(socket, deadline, ask).await
}

async fn attempt<T>(
    socket: &Path,
    deadline: Duration,
    ask: impl AsyncFnOnce(Connection) -> Result<T, CallError>,
) -> AttemptResult<T> {
    let mut local_port = None;
    let attempt = async {
        let connection = handshake(socket).await?;
        local_port = Some(connection.local_port);
        ask(connection).await
    };
    let result = timeout(deadline, attempt).await;
    let result = result.unwrap_or(Err(CallError::NoReply { deadline }));
    (local_port, result)
}

fn unexpected(reply: &Reply) -> CallError {
    CallError::BadReply {
        what: format!("{reply:?}"),
    }
}

/// One call and its reply.
pub(super) async fn call(
    socket: &Path,
    generation: u64,
    request: Request,
    deadline: Duration,
) -> Result<Reply, CallError> {
    let exchange = async {
        let mut connection = connect(socket, deadline).await?;
        connection.send(generation, request).await?;
        connection.reply().await
    };
    timeout(deadline, exchange)
        .await
        .map_err(|_| CallError::NoReply { deadline })?
}

fn wake() -> Wake {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let realtime_ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
    Wake::new(realtime_ns, &rand::random())
}
