//! [`Client`]: sends a [`Call`] and reads its answer, as JSON or as a body that the caller reads.

use std::fmt;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::http::request::Builder;
use hyper::{Method, Request, Response, StatusCode};
use machine_api::{DEFAULT_APP, ErrorBody, LEASE_NONCE_HEADER, Ok as Done};
use serde::de::DeserializeOwned;

use crate::call::Call;
use crate::connect::{RequestBody, send, within};
use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::tls::{Tls, Trust};

/// The most bytes of an answer that is not a stream. 200 machines with all their events are 2 MiB.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// A client of the API at one address.
#[derive(Clone)]
pub struct Client {
    endpoint: Endpoint,
    tls: Tls,
    token: Option<String>,
    lease_nonce: Option<String>,
    /// The app of all machines that are named in requests.
    pub(crate) app: String,
}

impl fmt::Debug for Client {
    /// Does not show secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// A client of the API at `endpoint`. It connects anew for each request.
    #[must_use]
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            tls: Tls::default(),
            token: None,
            lease_nonce: None,
            app: DEFAULT_APP.to_owned(),
        }
    }

    /// Sets the app of the machines; without it, the one that every host has.
    #[must_use]
    pub fn with_app(mut self, app: impl Into<String>) -> Self {
        self.app = app.into();
        self
    }

    /// Sets which certificates are trusted over https. Without it, those that the system trusts.
    #[must_use]
    pub fn with_trust(mut self, trust: Trust) -> Self {
        self.tls = Tls::new(trust);
        self
    }

    /// Sends `token` as a bearer token with each request.
    #[must_use]
    pub fn with_token(mut self, token: Option<String>) -> Self {
        self.token = token;
        self
    }

    /// With each request, sends the nonce of a lease that the caller holds.
    #[must_use]
    pub fn with_lease_nonce(mut self, nonce: Option<String>) -> Self {
        self.lease_nonce = nonce;
        self
    }

    /// Where the API is.
    #[must_use]
    pub const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Sends `call` and decodes the JSON of the answer.
    pub(crate) async fn json<T: DeserializeOwned>(&self, call: Call) -> Result<T, Error> {
        let action = call.action.clone();
        let deadline = call.deadline;
        let answer = self.open(call).await?;
        decode(action, deadline, answer).await
    }

    /// Sends `call`, whose success is answered with [`Done`].
    pub(crate) async fn ok(&self, call: Call) -> Result<(), Error> {
        self.json::<Done>(call).await.map(drop)
    }

    /// Sends `call`, whose success has a body of no interest, or none.
    pub(crate) async fn ignore_body(&self, call: Call) -> Result<(), Error> {
        let (action, deadline) = (call.action.clone(), call.deadline);
        let answer = self.open(call).await?;
        read_to_end(&action, deadline, answer).await.map(drop)
    }

    /// Sends `call`; the caller reads the body of a successful answer.
    pub(crate) async fn open(&self, call: Call) -> Result<Response<Incoming>, Error> {
        let Call {
            action,
            deadline,
            method,
            uri,
            body,
        } = call;
        let builder = self
            .request_head(method, &uri)
            .header(ACCEPT, "application/json");
        let request = match body {
            Some(body) => builder
                .header(CONTENT_TYPE, "application/json")
                .body(full_body(body)),
            None => builder.body(full_body(Bytes::new())),
        };
        self.dispatch(&action, deadline, request).await
    }

    /// Sends a request that is built already. An answer that is not a success becomes an error.
    pub(crate) async fn dispatch(
        &self,
        action: &str,
        deadline: Duration,
        request: Result<Request<RequestBody>, hyper::http::Error>,
    ) -> Result<Response<Incoming>, Error> {
        let request = request.map_err(|source| Error::Unsendable {
            action: action.to_owned(),
            source,
        })?;
        let answer = send(&self.endpoint, &self.tls, action, deadline, request).await?;
        let status = answer.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(answer);
        }
        let body = read_to_end(action, deadline, answer).await?;
        Err(refusal(action, status, &body))
    }

    /// Begins a request: method, address, and the headers that every request has.
    pub(crate) fn request_head(&self, method: Method, uri: &str) -> Builder {
        let mut builder = Request::builder()
            .method(method)
            .uri(uri)
            .header(HOST, self.endpoint.authority());
        if let Some(token) = &self.token {
            builder = builder.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(nonce) = &self.lease_nonce {
            builder = builder.header(LEASE_NONCE_HEADER, nonce);
        }
        builder
    }
}

fn refusal(action: &str, status: StatusCode, body: &[u8]) -> Error {
    match serde_json::from_slice::<ErrorBody>(body) {
        Ok(body) => {
            let (action, status, body) = (action.to_owned(), status.as_u16(), Box::new(body));
            Error::Refused {
                action,
                status,
                body,
            }
        }
        Err(_) => Error::NotTheApi {
            action: action.to_owned(),
            status: status.as_u16(),
        },
    }
}

/// Reads a successful answer to its end and decodes its JSON.
pub(crate) async fn decode<T: DeserializeOwned>(
    action: String,
    deadline: Duration,
    answer: Response<Incoming>,
) -> Result<T, Error> {
    let body = read_to_end(&action, deadline, answer).await?;
    serde_json::from_slice(&body).map_err(|source| Error::UnexpectedAnswer { action, source })
}

/// A body of these bytes.
pub(crate) fn full_body(bytes: Bytes) -> RequestBody {
    Full::new(bytes)
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// Reads a body to its end, for no longer than `deadline`.
async fn read_to_end(
    action: &str,
    deadline: Duration,
    answer: Response<Incoming>,
) -> Result<Vec<u8>, Error> {
    let body = collect(action, answer);
    within(action, "the rest of an answer", deadline, body).await?
}

/// Reads a body to its end, up to [`MAX_ANSWER_BYTES`].
async fn collect(action: &str, answer: Response<Incoming>) -> Result<Vec<u8>, Error> {
    let mut body = answer.into_body();
    let mut bytes = Vec::with_capacity(
        usize::try_from(body.size_hint().lower())
            .unwrap_or(0)
            .min(1 << 20),
    );
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|source| Error::Broken {
            action: action.to_owned(),
            source,
        })?;
        let Some(data) = frame.data_ref() else {
            continue;
        };
        if bytes.len() + data.len() > MAX_ANSWER_BYTES {
            return Err(Error::TooLong {
                action: action.to_owned(),
                limit_bytes: MAX_ANSWER_BYTES,
            });
        }
        bytes.extend_from_slice(data);
    }
    Ok(bytes)
}
