//! guest-init through Firecracker's vsock socket: the handshake, one call, its reply.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use guest_protocol::{
    Call, Decoded, Frame, FrameError, GuestStatus, PORT, Reply, Request, VERSION, Wake, decode,
    encode,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::readiness::Tried;

/// Why a call to init did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The vsock socket is not there or does not accept.
    #[error("cannot connect to the vsock socket {}", socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The VMM closed the connection in place of `OK`: the guest answered with RST.
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
    /// init answered with something else.
    #[error("init's answer makes no sense: {what}")]
    BadReply {
        /// What was wrong with it.
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

/// A connection to init that has passed the handshake.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    received: Vec<u8>,
    /// Host end of the pair.
    pub(super) local_port: u32,
}

/// Pause between questions that met a leaked pair.
const ASK_AGAIN: Duration = Duration::from_millis(5);

/// Connects to init's port. Where the guest leaks, this may meet leaked pairs although the
/// readiness check before it met none; the next attempt has another port.
pub(super) async fn connect(socket: &Path, deadline: Duration) -> Result<Connection, CallError> {
    let past_leaked_pairs = async {
        loop {
            match handshake(socket).await {
                Err(CallError::Reset) => tokio::time::sleep(ASK_AGAIN).await,
                other => return other,
            }
        }
    };
    timeout(deadline, past_leaked_pairs)
        .await
        .map_err(|_| CallError::NoReply { deadline })?
}

async fn handshake(socket: &Path) -> Result<Connection, CallError> {
    let mut stream = UnixStream::connect(socket)
        .await
        .map_err(|source| CallError::Connect {
            socket: socket.to_owned(),
            source,
        })?;
    let closed = |source| CallError::Closed(Some(source));
    stream
        .write_all(format!("CONNECT {PORT}\n").as_bytes())
        .await
        .map_err(closed)?;
    let mut line = Vec::new();
    while !line.ends_with(b"\n") && line.len() < 64 {
        match stream.read_u8().await {
            Ok(byte) => line.push(byte),
            Err(_) => return Err(CallError::Reset),
        }
    }
    let line = String::from_utf8_lossy(&line);
    let local_port = line
        .strip_prefix("OK ")
        .and_then(|port| port.trim().parse().ok());
    let local_port = local_port.ok_or_else(|| CallError::BadReply {
        what: format!("{line:?}"),
    })?;
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
        let call = Call {
            version: VERSION,
            generation,
            wake: Some(wake()),
            request,
        };
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

    /// Waits for the next frame and lets `take` copy what it needs of it.
    pub(super) async fn next_frame<T>(
        &mut self,
        take: impl FnOnce(Frame<'_>) -> T,
    ) -> Result<T, CallError> {
        loop {
            if let Decoded::Frame(frame, length) = decode(&self.received)? {
                let taken = take(frame);
                self.received.drain(..length);
                return Ok(taken);
            }
            let read = self.stream.read_buf(&mut self.received).await;
            match read {
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
            other => Err(bad(format!("{other:?} in place of a reply"))),
        })
        .await?
    }
}

/// One attempt at the status, within `deadline`.
pub(super) async fn status(
    socket: &Path,
    generation: u64,
    deadline: Duration,
) -> Tried<GuestStatus> {
    let ask = async |mut connection: Connection| {
        connection.send(generation, Request::Status).await?;
        match connection.reply().await? {
            Reply::Status(status) if status.generation == generation => Ok(status),
            other => Err(unexpected(&other)),
        }
    };
    attempt(socket, deadline, ask).await
}

/// One attempt at the long-lived connection, on which init streams CPU usage.
pub(super) async fn monitor(
    socket: &Path,
    generation: u64,
    deadline: Duration,
) -> Tried<Connection> {
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
) -> Tried<T> {
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

/// One call answered by one reply.
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
    Wake {
        realtime_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
        entropy_hex: format!(
            "{:032x}{:032x}",
            rand::random::<u128>(),
            rand::random::<u128>()
        ),
    }
}
