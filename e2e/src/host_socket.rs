//! The handshake on a VMM's vsock host socket: `CONNECT <port>`, answered by `OK <local port>`.
//!
//! mctl's VMM, Firecracker and Cloud Hypervisor have such a socket. Deadlines and retries are left to callers.

use std::path::{Path, PathBuf};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// The longest answer that is read.
const MAX_ANSWER_BYTES: usize = 64;

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The socket does not exist or does not accept.
    #[error("cannot connect to the vsock socket {}", socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The request could not be sent.
    #[error("cannot send CONNECT to the VMM")]
    Send(#[source] std::io::Error),
    /// The VMM closed the connection without an answer.
    #[error("the VMM closed the connection without an answer")]
    Closed,
    /// The answer is not `OK <local port>`.
    #[error("the VMM answered {answer:?}")]
    NotOk {
        /// Its line.
        answer: String,
    },
}

/// Connects to `port` of the guest. Returns the stream and its local port.
///
/// # Errors
/// [`HandshakeError`] of the step that failed.
pub async fn connect(socket: &Path, port: u32) -> Result<(UnixStream, u32), HandshakeError> {
    let mut stream =
        UnixStream::connect(socket)
            .await
            .map_err(|source| HandshakeError::Connect {
                socket: socket.to_owned(),
                source,
            })?;
    stream
        .write_all(format!("CONNECT {port}\n").as_bytes())
        .await
        .map_err(HandshakeError::Send)?;
    let mut line = Vec::new();
    while !line.ends_with(b"\n") && line.len() < MAX_ANSWER_BYTES {
        match stream.read_u8().await {
            Ok(byte) => line.push(byte),
            Err(_) => return Err(HandshakeError::Closed),
        }
    }
    let answer = String::from_utf8_lossy(&line).into_owned();
    let local_port = answer
        .strip_prefix("OK ")
        .and_then(|port| port.trim().parse().ok());
    match local_port {
        Some(local_port) => Ok((stream, local_port)),
        None => Err(HandshakeError::NotOk { answer }),
    }
}
