//! Addresses of supervisors: `unix:///path`, `http://host:port` or `https://host:port`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// An address of the Machines API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A Unix stream socket.
    Unix(PathBuf),
    /// TCP without encryption.
    Tcp {
        /// Host name or IP address; an IPv6 address without brackets.
        host: String,
        /// Port.
        port: u16,
    },
    /// TCP with TLS.
    Tls {
        /// Host name or IP address that the certificate must be for; an IPv6 address without
        /// brackets.
        host: String,
        /// Port.
        port: u16,
    },
}

/// Why a text is not an [`Endpoint`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// It has none of the known schemes.
    #[error("{0:?} is not an API address: it must begin with unix://, http:// or https://")]
    Scheme(String),
    /// The path of the socket is not absolute.
    #[error("{0:?} has no absolute path: write unix:///path/to/api.sock")]
    RelativePath(String),
    /// The port is missing or not valid.
    #[error("{0:?} has no valid port: write http://host:port or https://host:port")]
    Port(String),
    /// Something follows the port.
    #[error("{0:?} has a path: the address must end with the port")]
    Path(String),
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        if let Some(path) = text.strip_prefix("unix://") {
            if !path.starts_with('/') {
                return Err(EndpointError::RelativePath(text.to_owned()));
            }
            return Ok(Self::Unix(PathBuf::from(path)));
        }
        let secured = text.strip_prefix("https://");
        let Some(rest) = secured.or_else(|| text.strip_prefix("http://")) else {
            return Err(EndpointError::Scheme(text.to_owned()));
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains('/') {
            return Err(EndpointError::Path(text.to_owned()));
        }
        let bad_port = || EndpointError::Port(text.to_owned());
        let (host, port) = authority.rsplit_once(':').ok_or_else(bad_port)?;
        let port = port.parse().map_err(|_| bad_port())?;
        let host = host
            .strip_prefix('[')
            .and_then(|h| h.strip_suffix(']'))
            .unwrap_or(host);
        if host.is_empty() || port == 0 {
            return Err(bad_port());
        }
        let host = host.to_owned();
        Ok(if secured.is_some() {
            Self::Tls { host, port }
        } else {
            Self::Tcp { host, port }
        })
    }
}

impl Endpoint {
    /// The value of the `host` header.
    pub(crate) fn authority(&self) -> String {
        match self {
            Self::Unix(_) => "localhost".to_owned(),
            Self::Tcp { host, port } | Self::Tls { host, port } if host.contains(':') => {
                format!("[{host}]:{port}")
            }
            Self::Tcp { host, port } | Self::Tls { host, port } => format!("{host}:{port}"),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp { .. } => write!(f, "http://{}", self.authority()),
            Self::Tls { .. } => write!(f, "https://{}", self.authority()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_prints_as_it_is_written() {
        let texts = [
            "unix:///run/mctl/api.sock",
            "http://10.0.0.1:8080",
            "http://[::1]:4280",
            "https://mctl.example:4280",
            "https://[::1]:4280",
        ];
        let printed = texts.map(|text| text.parse::<Endpoint>().unwrap().to_string());
        assert_eq!(printed, texts);
    }

    #[test]
    fn each_wrong_address_is_refused_with_its_own_reason() {
        let reasons = [
            "api.sock",
            "unix://relative",
            "http://host",
            "https://host",
            "http://host:99999",
            "http://host:0",
            "http://host:1/v1",
        ]
        .map(|text| text.parse::<Endpoint>().unwrap_err());
        let text = |index: usize| reasons[index].to_string();
        assert!(
            matches!(reasons[0], EndpointError::Scheme(_)),
            "{}",
            text(0)
        );
        assert!(
            matches!(reasons[1], EndpointError::RelativePath(_)),
            "{}",
            text(1)
        );
        assert!(matches!(reasons[2], EndpointError::Port(_)), "{}", text(2));
        assert!(matches!(reasons[3], EndpointError::Port(_)), "{}", text(3));
        assert!(matches!(reasons[4], EndpointError::Port(_)), "{}", text(4));
        assert!(matches!(reasons[5], EndpointError::Port(_)), "{}", text(5));
        assert!(matches!(reasons[6], EndpointError::Path(_)), "{}", text(6));
    }
}
