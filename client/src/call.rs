//! A request as data: what it attempts, and its method, path, query and body.

use std::fmt;
use std::fmt::Write as _;
use std::time::Duration;

use hyper::Method;
use hyper::body::Bytes;
use serde::Serialize;

/// Deadline of requests that the supervisor answers from memory or from its database.
pub(crate) const DEFAULT_DEADLINE: Duration = Duration::from_secs(30);

/// A request as data.
pub(crate) struct Call {
    /// What the request attempts; it completes the sentence "could not {action}".
    pub(crate) action: String,
    pub(crate) deadline: Duration,
    pub(crate) method: Method,
    pub(crate) uri: String,
    pub(crate) body: Option<Bytes>,
}

impl Call {
    /// A call without a body on `path`, whose variable parts are [`percent_encoded`] already.
    pub(crate) fn new(method: Method, path: impl Into<String>, action: impl Into<String>) -> Self {
        Self {
            action: action.into(),
            deadline: DEFAULT_DEADLINE,
            method,
            uri: path.into(),
            body: None,
        }
    }

    /// Adds `key=value` to the query.
    pub(crate) fn query(mut self, key: &str, value: impl fmt::Display) -> Self {
        self.uri
            .push(if self.uri.contains('?') { '&' } else { '?' });
        self.uri.push_str(&percent_encoded(key));
        self.uri.push('=');
        self.uri.push_str(&percent_encoded(&value.to_string()));
        self
    }

    /// Adds `key=value` to the query if there is a value.
    pub(crate) fn optional_query(self, key: &str, value: Option<impl fmt::Display>) -> Self {
        match value {
            Some(value) => self.query(key, value),
            None => self,
        }
    }

    /// Sends `body` as JSON.
    pub(crate) fn body(mut self, body: &impl Serialize) -> Self {
        // The types of the API have only string keys and finite numbers.
        let json = serde_json::to_vec(body).expect("the API's types can be written as JSON");
        self.body = Some(Bytes::from(json));
        self
    }

    /// Path and query, for a request whose body is not JSON.
    pub(crate) fn into_uri(self) -> String {
        self.uri
    }

    /// Sets another deadline than [`DEFAULT_DEADLINE`].
    pub(crate) const fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }
}

/// `text` with everything percent-encoded except the unreserved characters of RFC 3986.
pub(crate) fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte));
            }
            _ => write!(encoded, "%{byte:02X}").expect("writing to a String cannot fail"),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_its_path_segment() {
        assert_eq!(
            percent_encoded("a/../b?c=d&e f#ü"),
            "a%2F..%2Fb%3Fc%3Dd%26e%20f%23%C3%BC"
        );
    }

    #[test]
    fn query_parts_are_joined_and_percent_encoded() {
        let call = Call::new(Method::GET, "/v1/x", "look")
            .query("a", "1 2")
            .optional_query("b", None::<u8>)
            .optional_query("metadata.k&", Some("v"));
        assert_eq!(call.uri, "/v1/x?a=1%202&metadata.k%26=v");
    }
}
