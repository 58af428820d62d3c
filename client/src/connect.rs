//! Opens a connection and sends one request on it. Each step has a deadline.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::tls::{self, Tls};

/// The supervisor is on this host or near: if connecting takes longer, something is wrong.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// Body of a request, known beforehand or streamed.
pub(crate) type RequestBody = UnsyncBoxBody<Bytes, io::Error>;

/// Runs `step` for no longer than `after`.
pub(crate) async fn within<T>(
    action: &str,
    waited_for: &'static str,
    after: Duration,
    step: impl Future<Output = T>,
) -> Result<T, Error> {
    tokio::time::timeout(after, step)
        .await
        .map_err(|_| Error::Deadline {
            action: action.to_owned(),
            waited_for,
            after,
        })
}

/// Sends `request` on a new connection. The head of the answer must come within `deadline`; the
/// caller reads the body.
pub(crate) async fn send(
    endpoint: &Endpoint,
    tls: &Tls,
    action: &str,
    deadline: Duration,
    request: Request<RequestBody>,
) -> Result<Response<Incoming>, Error> {
    let broken = |source| Error::Broken {
        action: action.to_owned(),
        source,
    };
    let stream = within(
        action,
        "a connection",
        CONNECT_DEADLINE,
        Stream::open(endpoint, tls, action),
    )
    .await??;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    // The task ends when sender and answer are dropped, or with an upgrade. Its errors are
    // reported through the answer.
    tokio::spawn(connection.with_upgrades());
    within(action, "an answer", deadline, sender.send_request(request))
        .await?
        .map_err(broken)
}

/// A connection to the supervisor.
enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    async fn open(endpoint: &Endpoint, tls: &Tls, action: &str) -> Result<Self, Error> {
        let unreachable = |source| Error::Connect {
            action: action.to_owned(),
            endpoint: endpoint.clone(),
            source,
        };
        let (host, port) = match endpoint {
            Endpoint::Unix(path) => {
                let stream = UnixStream::connect(path).await;
                return stream.map(Self::Unix).map_err(unreachable);
            }
            Endpoint::Tcp { host, port } | Endpoint::Tls { host, port } => (host, *port),
        };
        // Read before connecting: without trusted certificates no server can be accepted.
        let connector = match endpoint {
            Endpoint::Tls { .. } => Some(tls.connector().map_err(|source| Error::Trust {
                action: action.to_owned(),
                source,
            })?),
            Endpoint::Unix(_) | Endpoint::Tcp { .. } => None,
        };
        let stream = TcpStream::connect((host.as_str(), port)).await;
        let stream = stream.map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        let Some(connector) = connector else {
            return Ok(Self::Tcp(stream));
        };
        let secured = tls::secure(connector, host, stream).await;
        secured
            .map(|stream| Self::Tls(Box::new(stream)))
            .map_err(|source| Error::Handshake {
                action: action.to_owned(),
                endpoint: endpoint.clone(),
                source,
            })
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
