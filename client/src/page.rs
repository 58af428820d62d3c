//! [`Page`]: a page of any web server, asked for its status. It serves to tell whether something
//! that a machine serves answers.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use hyper::body::Bytes;
use hyper::header::{HOST, USER_AGENT};
use hyper::{Method, Request};

use crate::client::full_body;
use crate::connect::send;
use crate::endpoint::{Endpoint, EndpointError};
use crate::error::Error;
use crate::tls::{Tls, Trust};

/// The address of a page: `http://host[:port][/path]` or `https://…`.
#[derive(Clone)]
pub struct Page {
    endpoint: Endpoint,
    path: String,
    tls: Tls,
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Page").field(&self.to_string()).finish()
    }
}

impl fmt::Display for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.endpoint, self.path)
    }
}

/// Why a text is not a [`Page`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// It has neither of the known schemes.
    #[error("{0:?} must begin with http:// or https://")]
    Scheme(String),
    /// Host or port are not valid.
    #[error("{0:?} has no valid host and port")]
    Host(String, #[source] EndpointError),
    /// The path cannot be sent.
    #[error("the path of {0:?} may not have spaces or other characters that must be encoded")]
    Path(String),
}

impl FromStr for Page {
    type Err = PageError;

    fn from_str(text: &str) -> Result<Self, PageError> {
        let (scheme, rest, usual_port) = match text.split_once("://") {
            Some(("http", rest)) => ("http", rest, 80),
            Some(("https", rest)) => ("https", rest, 443),
            _ => return Err(PageError::Scheme(text.to_owned())),
        };
        let path_at = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(path_at);
        let has_port = authority
            .rsplit_once(':')
            .is_some_and(|(_, port)| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
            && !authority.ends_with(']');
        let address = if has_port {
            format!("{scheme}://{authority}")
        } else {
            format!("{scheme}://{authority}:{usual_port}")
        };
        let endpoint = address
            .parse()
            .map_err(|error| PageError::Host(text.to_owned(), error))?;
        if !path.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(PageError::Path(text.to_owned()));
        }
        let path = if path.starts_with('/') {
            path.to_owned()
        } else {
            format!("/{path}")
        };
        Ok(Self {
            endpoint,
            path,
            tls: Tls::default(),
        })
    }
}

impl Page {
    /// Sets which certificates are trusted over https. Without it, those that the system trusts.
    #[must_use]
    pub fn with_trust(mut self, trust: Trust) -> Self {
        self.tls = Tls::new(trust);
        self
    }

    /// Asks for the page, and returns the status of the answer, which must come within `deadline`.
    ///
    /// # Errors
    /// [`Error`] if there is no answer.
    pub async fn status(&self, deadline: Duration) -> Result<u16, Error> {
        let action = format!("ask for {self}");
        let request = Request::builder()
            .method(Method::GET)
            .uri(&self.path)
            .header(HOST, self.endpoint.authority())
            .header(USER_AGENT, concat!("mctl/", env!("CARGO_PKG_VERSION")))
            .body(full_body(Bytes::new()))
            .map_err(|source| Error::Unsendable {
                action: action.clone(),
                source,
            })?;
        let answer = send(&self.endpoint, &self.tls, &action, deadline, request).await?;
        Ok(answer.status().as_u16())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_the_usual_port_and_path_unless_it_names_them() {
        for (text, printed) in [
            ("http://web", "http://web:80/"),
            ("https://web.example", "https://web.example:443/"),
            (
                "http://web:8080/health?full=1",
                "http://web:8080/health?full=1",
            ),
            ("http://web?full=1", "http://web:80/?full=1"),
            ("http://[::1]/x", "http://[::1]:80/x"),
            ("http://[::1]:81", "http://[::1]:81/"),
        ] {
            assert_eq!(text.parse::<Page>().unwrap().to_string(), printed);
        }
    }

    #[test]
    fn each_wrong_page_is_refused_with_its_own_reason() {
        let error = |text: &str| text.parse::<Page>().unwrap_err();
        assert!(matches!(error("web"), PageError::Scheme(_)));
        assert!(matches!(error("ftp://web"), PageError::Scheme(_)));
        assert!(matches!(error("http://"), PageError::Host(..)));
        assert!(matches!(error("http://web:99999/"), PageError::Host(..)));
        assert!(matches!(error("http://web/a b"), PageError::Path(_)));
    }
}
