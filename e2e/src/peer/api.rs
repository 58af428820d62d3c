//! A VMM's HTTP API: one JSON request per connection to its Unix socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// Longest that one call may take. The slowest is a full snapshot under emulation.
const CALL_DEADLINE: Duration = Duration::from_secs(120);

/// Why a call to the API failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The socket does not accept.
    #[error("cannot connect to the VMM's API at {}", socket.display())]
    Connect {
        /// The API socket.
        socket: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The connection broke.
    #[error("{what}: the connection to the VMM's API broke")]
    Transport {
        /// Method and path.
        what: String,
        /// How.
        source: hyper::Error,
    },
    /// It did not answer.
    #[error("{what}: no answer within {} s", CALL_DEADLINE.as_secs())]
    Deadline {
        /// Method and path.
        what: String,
    },
    /// It answered with an error.
    #[error("{what}: the VMM answered {status}: {body}")]
    Refused {
        /// Method and path.
        what: String,
        /// HTTP status.
        status: StatusCode,
        /// The VMM's message.
        body: String,
    },
}

/// A request.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ApiCall {
    pub(super) method: Method,
    pub(super) path: &'static str,
    /// The JSON body; there is none if this is null.
    pub(super) body: Value,
}

impl ApiCall {
    /// A PUT, which most calls of both APIs are.
    pub(super) fn put(path: &'static str, body: Value) -> Self {
        Self {
            method: Method::PUT,
            path,
            body,
        }
    }
}

/// Sends `call` and expects success.
///
/// # Errors
/// [`ApiError`], with the VMM's own message where it refused.
pub(super) async fn call(socket: &Path, call: &ApiCall) -> Result<(), ApiError> {
    let what = format!("{} {}", call.method, call.path);
    timeout(CALL_DEADLINE, exchange(socket, call, &what))
        .await
        .map_err(|_| ApiError::Deadline { what: what.clone() })?
}

async fn exchange(socket: &Path, call: &ApiCall, what: &str) -> Result<(), ApiError> {
    let transport = |source| ApiError::Transport {
        what: what.to_owned(),
        source,
    };
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|source| ApiError::Connect {
            socket: socket.to_owned(),
            source,
        })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(transport)?;
    let body = match &call.body {
        Value::Null => String::new(),
        json => json.to_string(),
    };
    let request = Request::builder()
        .method(&call.method)
        .uri(call.path)
        .header("Host", "localhost")
        .header("Content-Type", "application/json")
        .body(Full::new(Bytes::from(body)))
        .expect("a request of constant parts is well formed");
    let driver = tokio::spawn(connection);
    let response = sender.send_request(request).await.map_err(transport)?;
    let status = response.status();
    let bytes = response
        .into_body()
        .collect()
        .await
        .map_err(transport)?
        .to_bytes();
    driver.abort();
    if status.is_success() {
        return Ok(());
    }
    let body = String::from_utf8_lossy(&bytes).into_owned();
    Err(ApiError::Refused {
        what: what.to_owned(),
        status,
        body,
    })
}
