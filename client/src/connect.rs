//! Opens a connection and sends one request on it, each step with its deadline.

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

use crate::{Endpoint, Error};

/// A connection is local or near: if it takes longer, something is wrong.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// Body of a request: whole or streamed.
pub(crate) type RequestBody = UnsyncBoxBody<Bytes, io::Error>;

/// Runs `step`, but no longer than `after`.
pub(crate) async fn within<T>(
    what: &str,
    waited_for: &'static str,
    after: Duration,
    step: impl Future<Output = T>,
) -> Result<T, Error> {
    tokio::time::timeout(after, step)
        .await
        .map_err(|_| Error::Deadline {
            what: what.to_owned(),
            waited_for,
            after,
        })
}

/// Sends `request` on a connection of its own. The answer's head must come within `deadline`;
/// its body is the caller's.
pub(crate) async fn send(
    endpoint: &Endpoint,
    what: &str,
    deadline: Duration,
    request: Request<RequestBody>,
) -> Result<Response<Incoming>, Error> {
    let broken = |source| Error::Broken {
        what: what.to_owned(),
        source,
    };
    let stream = within(
        what,
        "a connection",
        CONNECT_DEADLINE,
        Stream::open(endpoint),
    )
    .await?
    .map_err(|source| Error::Connect {
        what: what.to_owned(),
        endpoint: endpoint.clone(),
        source,
    })?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    // Ends when sender and answer are dropped, or with an upgrade; what goes wrong on it is
    // reported through the answer.
    tokio::spawn(connection.with_upgrades());
    within(what, "an answer", deadline, sender.send_request(request))
        .await?
        .map_err(broken)
}

/// Either kind of socket.
enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    async fn open(endpoint: &Endpoint) -> io::Result<Self> {
        match endpoint {
            Endpoint::Unix(path) => Ok(Self::Unix(UnixStream::connect(path).await?)),
            Endpoint::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                Ok(Self::Tcp(stream))
            }
        }
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
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
