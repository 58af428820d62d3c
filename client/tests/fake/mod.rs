//! A small HTTP server for tests: a closure chooses each answer, and every request is recorded.
//!
//! It knows nothing about the Machines API. The tests of `mctl` use it, too.

pub mod certificates;

use std::convert::Infallible;
use std::fmt;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::header::{CONTENT_TYPE, SEC_WEBSOCKET_KEY, UPGRADE};
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub query: String,
    pub authorization: Option<String>,
    pub lease: Option<String>,
    pub body: Vec<u8>,
}

impl Seen {
    /// Method, path and query as one text.
    pub fn line(&self) -> String {
        match self.query.as_str() {
            "" => format!("{} {}", self.method, self.path),
            query => format!("{} {}?{query}", self.method, self.path),
        }
    }

    /// The body as JSON; null if it is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// Value of one key of the query, still percent-encoded.
    pub fn query(&self, key: &str) -> Option<&str> {
        self.query
            .split('&')
            .find_map(|part| part.strip_prefix(key)?.strip_prefix('='))
    }
}

type ServeUpgraded =
    Box<dyn FnOnce(TokioIo<Upgraded>) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

/// The answer to a request.
pub enum Answer {
    /// Status and body.
    Bytes(u16, Vec<u8>),
    /// These pieces, then the end.
    Pieces(Vec<Vec<u8>>),
    /// These pieces, then nothing more, but no end either.
    Endless(Vec<Vec<u8>>),
    /// These pieces, then the connection breaks.
    Broken(Vec<Vec<u8>>),
    /// No answer at all.
    Silence,
    /// A WebSocket that this closure serves.
    Upgrade(ServeUpgraded),
}

impl Answer {
    pub fn json(status: u16, value: &Value) -> Self {
        Self::Bytes(status, value.to_string().into_bytes())
    }

    /// One object per line.
    pub fn lines(values: &[Value]) -> Self {
        Self::Pieces(
            values
                .iter()
                .map(|value| format!("{value}\n").into_bytes())
                .collect(),
        )
    }

    pub fn upgrade<F: Future<Output = ()> + Send + 'static>(
        serve: impl FnOnce(TokioIo<Upgraded>) -> F + Send + 'static,
    ) -> Self {
        Self::Upgrade(Box::new(|io| Box::pin(serve(io))))
    }
}

type Decide = Arc<dyn Fn(&Seen) -> Answer + Send + Sync>;

/// A running server; it stops when it is dropped.
pub struct Fake {
    pub address: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl fmt::Debug for Fake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fake")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Fake {
    /// Serves on a free TCP port.
    pub fn on_tcp(decide: impl Fn(&Seen) -> Answer + Send + Sync + 'static) -> Self {
        Self::serve(None, None, Arc::new(decide))
    }

    /// Serves on a free TCP port over TLS.
    pub fn on_tls(
        acceptor: TlsAcceptor,
        decide: impl Fn(&Seen) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::serve(None, Some(acceptor), Arc::new(decide))
    }

    /// Serves on a Unix socket.
    pub fn on_unix(path: &Path, decide: impl Fn(&Seen) -> Answer + Send + Sync + 'static) -> Self {
        Self::serve(Some(path), None, Arc::new(decide))
    }

    fn serve(path: Option<&Path>, tls: Option<TlsAcceptor>, decide: Decide) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (stop, stopped) = oneshot::channel();
        let (ready, address) = std::sync::mpsc::channel();
        let path = path.map(Path::to_owned);
        let recorded = seen.clone();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let listener = Listener::bind(path.as_deref(), tls).await;
                ready.send(listener.address()).unwrap();
                tokio::select! {
                    () = listener.accept_all(decide, recorded) => {}
                    _ = stopped => {}
                }
            });
        });
        let address = address.recv_timeout(Duration::from_secs(10)).unwrap();
        Self {
            address,
            seen,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Method, path and query of all requests so far.
    pub fn lines(&self) -> Vec<String> {
        self.seen().iter().map(Seen::line).collect()
    }

    /// The first request whose line starts with `prefix`; waits for it.
    pub fn request(&self, prefix: &str) -> Seen {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(seen) = self
                .seen()
                .into_iter()
                .find(|s| s.line().starts_with(prefix))
            {
                return seen;
            }
            assert!(
                Instant::now() < deadline,
                "no {prefix:?} among {:#?}",
                self.lines()
            );
            thread::yield_now();
        }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

enum Listener {
    Tcp(TcpListener, SocketAddr),
    Tls(TcpListener, SocketAddr, TlsAcceptor),
    Unix(UnixListener, String),
}

impl Listener {
    async fn bind(path: Option<&Path>, tls: Option<TlsAcceptor>) -> Self {
        match path {
            Some(path) => Self::Unix(
                UnixListener::bind(path).unwrap(),
                format!("unix://{}", path.display()),
            ),
            None => {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let address = listener.local_addr().unwrap();
                match tls {
                    Some(acceptor) => Self::Tls(listener, address, acceptor),
                    None => Self::Tcp(listener, address),
                }
            }
        }
    }

    fn address(&self) -> String {
        match self {
            Self::Tcp(_, address) => format!("http://{address}"),
            Self::Tls(_, address, _) => format!("https://{address}"),
            Self::Unix(_, address) => address.clone(),
        }
    }

    async fn accept_all(self, decide: Decide, seen: Arc<Mutex<Vec<Seen>>>) {
        loop {
            let (decide, seen) = (decide.clone(), seen.clone());
            match &self {
                Self::Tcp(listener, _) => {
                    let (stream, _) = listener.accept().await.unwrap();
                    tokio::spawn(serve_connection(stream, decide, seen));
                }
                Self::Tls(listener, _, acceptor) => {
                    let (stream, _) = listener.accept().await.unwrap();
                    let acceptor = acceptor.clone();
                    tokio::spawn(async move {
                        if let Ok(stream) = acceptor.accept(stream).await {
                            serve_connection(stream, decide, seen).await;
                        }
                    });
                }
                Self::Unix(listener, _) => {
                    let (stream, _) = listener.accept().await.unwrap();
                    tokio::spawn(serve_connection(stream, decide, seen));
                }
            }
        }
    }
}

async fn serve_connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    decide: Decide,
    seen: Arc<Mutex<Vec<Seen>>>,
) {
    let service = service_fn(move |request| answer(request, decide.clone(), seen.clone()));
    // Some tests close the connection early, so an error is expected.
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
}

type AnswerBody = BoxBody<Bytes, io::Error>;

async fn answer(
    mut request: Request<Incoming>,
    decide: Decide,
    recorded: Arc<Mutex<Vec<Seen>>>,
) -> Result<Response<AnswerBody>, Infallible> {
    let header = |name: &str| {
        request
            .headers()
            .get(name)
            .map(|value| value.to_str().unwrap().to_owned())
    };
    let (authorization, lease) = (header("authorization"), header("fly-machine-lease-nonce"));
    let key = header(SEC_WEBSOCKET_KEY.as_str());
    let upgrading = key.is_some().then(|| hyper::upgrade::on(&mut request));
    let method = request.method().to_string();
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let body = request
        .into_body()
        .collect()
        .await
        .map_or(vec![], |b| b.to_bytes().to_vec());
    let seen = Seen {
        method,
        path,
        query,
        authorization,
        lease,
        body,
    };
    recorded.lock().unwrap().push(seen.clone());
    Ok(match decide(&seen) {
        Answer::Bytes(status, bytes) => Response::builder()
            .status(status)
            .header(CONTENT_TYPE, "application/json")
            .body(whole(bytes))
            .unwrap(),
        Answer::Pieces(pieces) => Response::new(Pieces::body(pieces, Ending::End)),
        Answer::Endless(pieces) => Response::new(Pieces::body(pieces, Ending::Never)),
        Answer::Broken(pieces) => Response::new(Pieces::body(pieces, Ending::Break)),
        Answer::Silence => pending().await,
        Answer::Upgrade(serve) => {
            let accept = accept_key(key.expect("a WebSocket request").as_bytes());
            let upgrading = upgrading.expect("a WebSocket request");
            tokio::spawn(async move { serve(TokioIo::new(upgrading.await.unwrap())).await });
            Response::builder()
                .status(StatusCode::SWITCHING_PROTOCOLS)
                .header(UPGRADE, "websocket")
                .header("connection", "upgrade")
                .header("sec-websocket-accept", accept)
                .body(whole(vec![]))
                .unwrap()
        }
    })
}

fn accept_key(key: &[u8]) -> String {
    tokio_tungstenite::tungstenite::handshake::derive_accept_key(key)
}

fn whole(bytes: Vec<u8>) -> AnswerBody {
    Full::new(Bytes::from(bytes))
        .map_err(|never| match never {})
        .boxed()
}

enum Ending {
    End,
    Never,
    Break,
}

struct Pieces {
    pieces: std::vec::IntoIter<Vec<u8>>,
    ending: Ending,
    flushed: bool,
}

impl Pieces {
    fn body(pieces: Vec<Vec<u8>>, ending: Ending) -> AnswerBody {
        Self {
            pieces: pieces.into_iter(),
            ending,
            flushed: false,
        }
        .boxed()
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match (self.pieces.next(), &self.ending) {
            (Some(piece), _) => Poll::Ready(Some(Ok(Frame::data(Bytes::from(piece))))),
            (None, Ending::End) => Poll::Ready(None),
            (None, Ending::Never) => Poll::Pending,
            // The pieces are flushed only when the body has nothing more to send.
            (None, Ending::Break) if !self.flushed => {
                self.flushed = true;
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            (None, Ending::Break) => Poll::Ready(Some(Err(io::Error::other("broken on purpose")))),
        }
    }
}
