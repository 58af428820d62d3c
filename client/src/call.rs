//! The client and the way from a described call to a typed answer.

use std::fmt;
use std::fmt::Write as _;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::http::request::Builder;
use hyper::{Method, Request, Response, StatusCode};
use machine_api::{ErrorBody, LEASE_NONCE_HEADER};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::connect::{RequestBody, send, within};
use crate::tls::Tls;
use crate::{Endpoint, Error, Trust};

/// For answers that the supervisor gives from memory or its database.
pub(crate) const QUICK: Duration = Duration::from_secs(30);

/// Most bytes of an answer that is not a stream: 200 machines with all their events are 2 MiB.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// A client of the API at one address.
#[derive(Clone)]
pub struct Client {
    endpoint: Endpoint,
    tls: Tls,
    token: Option<String>,
    lease_nonce: Option<String>,
}

impl fmt::Debug for Client {
    /// Leaves out the secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// A client of the API at `endpoint`. Connects with each request, not now.
    #[must_use]
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            tls: Tls::default(),
            token: None,
            lease_nonce: None,
        }
    }

    /// Says whose certificates count over https; those that the system trusts unless said.
    #[must_use]
    pub fn with_trust(mut self, trust: Trust) -> Self {
        self.tls = Tls::new(trust);
        self
    }

    /// Sends `token` as bearer token.
    #[must_use]
    pub fn with_token(mut self, token: Option<String>) -> Self {
        self.token = token;
        self
    }

    /// Sends the nonce of a lease that the caller holds.
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

    /// Calls and decodes the answer.
    pub(crate) async fn json<T: DeserializeOwned>(&self, call: Call) -> Result<T, Error> {
        let what = call.what.clone();
        let deadline = call.deadline;
        let answer = self.open(call).await?;
        self.decode(what, deadline, answer).await
    }

    /// Calls where a success tells nothing.
    pub(crate) async fn done(&self, call: Call) -> Result<(), Error> {
        let (what, deadline) = (call.what.clone(), call.deadline);
        let answer = self.open(call).await?;
        let rest = collect(&what, answer);
        within(&what, "the rest of an answer", deadline, rest)
            .await?
            .map(drop)
    }

    /// Reads a successful answer to its end.
    pub(crate) async fn decode<T: DeserializeOwned>(
        &self,
        what: String,
        deadline: Duration,
        answer: Response<Incoming>,
    ) -> Result<T, Error> {
        let rest = collect(&what, answer);
        let body = within(&what, "the rest of an answer", deadline, rest).await??;
        serde_json::from_slice(&body).map_err(|source| Error::Answer { what, source })
    }

    /// Calls and leaves a successful answer's body to be read by the caller.
    pub(crate) async fn open(&self, call: Call) -> Result<Response<Incoming>, Error> {
        let Call {
            what,
            deadline,
            method,
            uri,
            body,
        } = call;
        let builder = self.head(method, &uri).header(ACCEPT, "application/json");
        let request = match body {
            Some(body) => builder
                .header(CONTENT_TYPE, "application/json")
                .body(whole(body)),
            None => builder.body(whole(Bytes::new())),
        };
        self.dispatch(&what, deadline, request).await
    }

    /// Sends a finished request; an answer that is not a success becomes an error.
    pub(crate) async fn dispatch(
        &self,
        what: &str,
        deadline: Duration,
        request: Result<Request<RequestBody>, hyper::http::Error>,
    ) -> Result<Response<Incoming>, Error> {
        let request = request.map_err(|source| Error::Unsendable {
            what: what.to_owned(),
            source,
        })?;
        let answer = send(&self.endpoint, &self.tls, what, deadline, request).await?;
        let status = answer.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(answer);
        }
        let body = within(
            what,
            "the rest of an answer",
            deadline,
            collect(what, answer),
        )
        .await??;
        Err(refusal(what, status, &body))
    }

    /// Method, address and the headers that every request has.
    pub(crate) fn head(&self, method: Method, uri: &str) -> Builder {
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

fn refusal(what: &str, status: StatusCode, body: &[u8]) -> Error {
    match serde_json::from_slice::<ErrorBody>(body) {
        Ok(body) => {
            let (what, status, body) = (what.to_owned(), status.as_u16(), Box::new(body));
            Error::Refused { what, status, body }
        }
        Err(_) => Error::Foreign {
            what: what.to_owned(),
            status: status.as_u16(),
        },
    }
}

/// A body that is known from the start.
pub(crate) fn whole(bytes: Bytes) -> RequestBody {
    Full::new(bytes)
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// Reads a body to its end, up to [`MAX_ANSWER_BYTES`].
async fn collect(what: &str, answer: Response<Incoming>) -> Result<Vec<u8>, Error> {
    let mut body = answer.into_body();
    let mut bytes = Vec::with_capacity(
        usize::try_from(body.size_hint().lower())
            .unwrap_or(0)
            .min(1 << 20),
    );
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|source| Error::Broken {
            what: what.to_owned(),
            source,
        })?;
        let Some(data) = frame.data_ref() else {
            continue;
        };
        if bytes.len() + data.len() > MAX_ANSWER_BYTES {
            return Err(Error::TooLong {
                what: what.to_owned(),
                limit_bytes: MAX_ANSWER_BYTES,
            });
        }
        bytes.extend_from_slice(data);
    }
    Ok(bytes)
}

/// A request as data: what it attempts, and how it is put on the wire.
pub(crate) struct Call {
    /// Reads as in "could not {what}".
    pub(crate) what: String,
    deadline: Duration,
    method: Method,
    uri: String,
    body: Option<Bytes>,
}

impl Call {
    /// A call without a body on `path`, whose variable parts are already [`escaped`].
    pub(crate) fn new(method: Method, path: impl Into<String>, what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            deadline: QUICK,
            method,
            uri: path.into(),
            body: None,
        }
    }

    /// Adds `key=value` to the query.
    pub(crate) fn query(mut self, key: &str, value: impl fmt::Display) -> Self {
        self.uri
            .push(if self.uri.contains('?') { '&' } else { '?' });
        self.uri.push_str(&escaped(key));
        self.uri.push('=');
        self.uri.push_str(&escaped(&value.to_string()));
        self
    }

    /// Adds `key=value` to the query, if there is a value.
    pub(crate) fn maybe_query(self, key: &str, value: Option<impl fmt::Display>) -> Self {
        match value {
            Some(value) => self.query(key, value),
            None => self,
        }
    }

    /// Sends `body` as JSON.
    pub(crate) fn body(mut self, body: &impl Serialize) -> Self {
        // Our wire types have string keys and finite numbers only.
        let json = serde_json::to_vec(body).expect("wire types are always expressible in JSON");
        self.body = Some(Bytes::from(json));
        self
    }

    /// Its path and query, for requests with other bodies than JSON.
    pub(crate) fn into_uri(self) -> String {
        self.uri
    }

    /// Gives the server longer than [`QUICK`].
    pub(crate) const fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }
}

/// Percent-encodes everything but RFC 3986's unreserved characters.
pub(crate) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                escaped.push(char::from(byte));
            }
            _ => write!(escaped, "%{byte:02X}").expect("a String takes all text"),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_name_can_leave_its_path_segment() {
        assert_eq!(
            escaped("a/../b?c=d&e f#ü"),
            "a%2F..%2Fb%3Fc%3Dd%26e%20f%23%C3%BC"
        );
    }

    #[test]
    fn query_parts_are_joined_and_escaped() {
        let call = Call::new(Method::GET, "/v1/x", "look")
            .query("a", "1 2")
            .maybe_query("b", None::<u8>)
            .maybe_query("metadata.k&", Some("v"));
        assert_eq!(call.uri, "/v1/x?a=1%202&metadata.k%26=v");
    }
}
