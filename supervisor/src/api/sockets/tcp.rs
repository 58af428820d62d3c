//! The API over TCP: bounded connections, a deadline for each step of a client, and TLS if a
//! certificate was given.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use machine_api::ErrorBody;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::api::sockets::ServeError;
use crate::api::sockets::tls::Tls;
use crate::error_chain::error_chain;

/// Most connections at the same time. Further ones wait in the kernel's queue.
const CONNECTIONS: usize = 1_024;
/// Deadline of a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Deadline of a request's head, and of the next request on a connection that is kept.
const HEAD: Duration = Duration::from_secs(30);
/// Silence after which the kernel probes whether the other end still exists.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// Wait after a failed accept, for instance when out of descriptors.
const REACCEPT: Duration = Duration::from_millis(100);
/// First byte of a TLS connection: a record of the handshake.
const TLS_RECORD: u8 = 0x16;

/// The API's TCP socket.
#[derive(Debug)]
pub(crate) struct Network {
    listener: TcpListener,
    bound: SocketAddr,
    tls: Option<Arc<Tls>>,
}

impl Network {
    /// Listens on `address`; port 0 lets the system choose.
    pub(crate) async fn bind(
        address: SocketAddr,
        tls: Option<Arc<Tls>>,
    ) -> Result<Self, ServeError> {
        let fail = |source| ServeError::Address { address, source };
        let listener = TcpListener::bind(address).await.map_err(fail)?;
        let bound = listener.local_addr().map_err(fail)?;
        Ok(Self {
            listener,
            bound,
            tls,
        })
    }

    /// Its URL for clients on this host, with the port that was bound.
    pub(crate) fn address(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.bound)
    }

    /// Serves for ever, each connection in a task of its own.
    pub(crate) async fn serve(self, router: Router) {
        let permits = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(permit) = permits.clone().acquire_owned().await else {
                return;
            };
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    let (tls, router) = (self.tls.clone(), router.clone());
                    tokio::spawn(async move {
                        if let Err(error) = serve_client(stream, tls.as_deref(), router).await {
                            tracing::debug!(%peer, error = error_chain(&error), "a connection failed");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection to the API");
                    sleep(REACCEPT).await;
                }
            }
        }
    }
}

async fn serve_client(stream: TcpStream, tls: Option<&Tls>, router: Router) -> io::Result<()> {
    stream.set_nodelay(true)?;
    // A followed stream may be silent for days; without keep-alive one whose client is gone would stay.
    rustix::net::sockopt::set_socket_keepalive(&stream, true)?;
    rustix::net::sockopt::set_tcp_keepidle(&stream, KEEP_ALIVE)?;
    let Some(tls) = tls else {
        return answer(stream, router).await;
    };
    let late = || io::Error::new(io::ErrorKind::TimedOut, "no TLS handshake in time");
    let mut first = [0];
    let peeked = timeout(HANDSHAKE, stream.peek(&mut first)).await;
    if peeked.map_err(|_| late())?? == 0 {
        return Ok(());
    }
    if first[0] != TLS_RECORD {
        let refused = timeout(HANDSHAKE, refuse_plain(stream)).await;
        return refused.map_err(|_| late())?;
    }
    let secured = timeout(HANDSHAKE, tls.acceptor().accept(stream)).await;
    answer(secured.map_err(|_| late())??, router).await
}

async fn answer(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
) -> io::Result<()> {
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .with_upgrades()
        .await
        .map_err(io::Error::other)
}

/// Answers a client that speaks plain HTTP, in plain HTTP.
async fn refuse_plain(mut stream: TcpStream) -> io::Result<()> {
    let body = ErrorBody {
        error: "this port needs TLS, and the request is plain HTTP".to_owned(),
        status: "tls_required".to_owned(),
        hint: Some("write https:// instead of http://".to_owned()),
        ..ErrorBody::default()
    };
    let body = serde_json::to_string(&body).map_err(io::Error::other)?;
    let head = format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).await?;
    stream.shutdown().await?;
    // Closing while unread bytes are left would reset the connection and lose the answer.
    let mut rest = [0; 4_096];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}
