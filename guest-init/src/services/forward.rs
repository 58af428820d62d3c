//! Carries raw bytes between a connection and a TCP port on the guest's loopback, both ways at
//! once, each direction with its own end.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;
use std::{io, net};

use guest_protocol::{RefusalKind, Reply};
use tokio::net::TcpStream;

use crate::connection::{Connection, ConnectionError};
use crate::os::stream::Stream;
use crate::services::refusal::{ServiceError, refusal};

/// How long connecting may take. The loopback answers at once, unless the listener's queue is full.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a port cannot be connected to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ForwardError {
    #[error("nothing listens on TCP port {0} of the guest's loopback")]
    NobodyListens(u16),
    #[error("TCP port {0} of the guest's loopback did not accept within {CONNECT_TIMEOUT:?}")]
    Timeout(u16),
    #[error("cannot connect to TCP port {port} of the guest's loopback")]
    Connect {
        port: u16,
        #[source]
        source: io::Error,
    },
}

impl ForwardError {
    fn kind(&self) -> RefusalKind {
        match self {
            Self::NobodyListens(_) => RefusalKind::NotFound,
            Self::Timeout(_) | Self::Connect { .. } => RefusalKind::Failed,
        }
    }
}

/// Connects to `port` and carries bytes until both directions have ended or either side is
/// reset.
pub(crate) async fn serve(connection: &Connection, port: u16) -> Result<(), ServiceError> {
    let connected = connect(port).await;
    let local = connected.map_err(|error| refusal(error.kind(), &error))?;
    connection.send_json(&Reply::Streaming).await?;
    carry(connection, &local).await?;
    Ok(())
}

async fn carry(connection: &Connection, local: &Stream) -> Result<(), ConnectionError> {
    let remote = connection.stream();
    let unread = connection.take_unread();
    let inward = async {
        local.write_all(&unread).await?;
        copy(remote, local).await?;
        Ok::<(), io::Error>(())
    };
    let both = async { tokio::try_join!(inward, copy(local, remote)) };
    tokio::select! {
        copied = both => {
            copied?;
            Ok(())
        }
        // The remote end closed both directions: nobody reads what the local end sends.
        gone = remote.unwritable() => Ok(gone?),
    }
}

async fn connect(port: u16) -> Result<Stream, ForwardError> {
    let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
    let addresses = [v4, v6];
    let connected =
        match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(&addresses[..])).await {
            Err(_elapsed) => return Err(ForwardError::Timeout(port)),
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                return Err(ForwardError::NobodyListens(port));
            }
            Ok(connected) => connected,
        };
    let to_stream = |connected: TcpStream| -> io::Result<Stream> {
        connected.set_nodelay(true)?;
        let socket: net::TcpStream = connected.into_std()?;
        Stream::new(OwnedFd::from(socket))
    };
    connected
        .and_then(to_stream)
        .map_err(|source| ForwardError::Connect { port, source })
}

/// Copies until `from` ends, then ends `to` as well. Reads no more of `from` while `to` accepts
/// nothing, so that each side holds the other back.
async fn copy(from: &Stream, to: &Stream) -> io::Result<()> {
    loop {
        let chunk = from.read_chunk().await?;
        if chunk.is_empty() {
            return to.end_sending();
        }
        to.write_all(&chunk).await?;
    }
}
