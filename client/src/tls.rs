//! TLS: which certificates are trusted, and how a connection is secured.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, pem};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

/// Which certificates are trusted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Trust {
    /// Those signed by an authority that this system trusts.
    #[default]
    System,
    /// Those signed by an authority in this PEM file, or contained in it; no others.
    File(PathBuf),
}

/// Why there are no trusted certificates.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The file cannot be read or is not PEM.
    #[error("cannot read the certificates in {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: pem::Error,
    },
    /// The file has no certificate.
    #[error("no certificate in {}: it must be PEM (-----BEGIN CERTIFICATE-----)", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A certificate of the file cannot be used.
    #[error("cannot use a certificate in {}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The system has no certificates of authorities.
    #[error("this system has no certificates of authorities")]
    NoSystem,
}

/// Secures connections. The trusted certificates are read for the first of them.
#[derive(Clone, Default)]
pub(crate) struct Tls {
    trust: Trust,
    config: Arc<OnceLock<Arc<ClientConfig>>>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.trust.fmt(f)
    }
}

impl Tls {
    pub(crate) fn new(trust: Trust) -> Self {
        Self {
            trust,
            config: Arc::default(),
        }
    }

    /// What secures a connection. Reads the trusted certificates if they are not read yet.
    pub(crate) fn connector(&self) -> Result<TlsConnector, TrustError> {
        let config = match self.config.get() {
            Some(config) => config.clone(),
            None => {
                let new = Arc::new(configure(roots(&self.trust)?));
                self.config.get_or_init(|| new).clone()
            }
        };
        Ok(TlsConnector::from(config))
    }
}

/// Secures a connection to `host`. The server's certificate must be for that name.
pub(crate) async fn secure(
    connector: TlsConnector,
    host: &str,
    stream: TcpStream,
) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(host.to_owned())
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    connector.connect(name, stream).await
}

fn configure(roots: RootCertStore) -> ClientConfig {
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring supports the default versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

fn roots(trust: &Trust) -> Result<RootCertStore, TrustError> {
    let mut roots = RootCertStore::empty();
    let Trust::File(path) = trust else {
        // Some of a system's certificates may be unusable; one usable certificate is enough.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return match roots.is_empty() {
            true => Err(TrustError::NoSystem),
            false => Ok(roots),
        };
    };
    let path = || path.clone();
    let unreadable = |source| TrustError::Unreadable {
        path: path(),
        source,
    };
    for certificate in CertificateDer::pem_file_iter(path()).map_err(unreadable)? {
        roots
            .add(certificate.map_err(unreadable)?)
            .map_err(|source| TrustError::Unusable {
                path: path(),
                source,
            })?;
    }
    if roots.is_empty() {
        return Err(TrustError::Empty { path: path() });
    }
    Ok(roots)
}

/// What to do about a failed handshake, if that is known.
pub(crate) fn hint(source: &io::Error) -> Option<&'static str> {
    use rustls::CertificateError as Certificate;
    let error = source.get_ref()?.downcast_ref::<rustls::Error>()?;
    Some(match error {
        rustls::Error::InvalidCertificate(problem) => match problem {
            Certificate::UnknownIssuer | Certificate::BadSignature => {
                "the certificate is not signed by an authority that this client trusts: give a file \
                 with the authority's certificate, or with this one, as --ca-cert or MCTL_CA_CERT"
            }
            Certificate::NotValidForName | Certificate::NotValidForNameContext { .. } => {
                "the certificate is for another name: use a name or address that it contains"
            }
            Certificate::Expired | Certificate::ExpiredContext { .. } => {
                "the certificate has expired: renew it and send the supervisor SIGHUP"
            }
            Certificate::NotValidYet | Certificate::NotValidYetContext { .. } => {
                "the certificate is not valid yet: check the clocks of both hosts"
            }
            Certificate::Other(_) => {
                "the supervisor cannot use the certificate of an authority as its own: create one with \
                 basicConstraints=CA:FALSE"
            }
            _ => "the supervisor's certificate cannot be used",
        },
        rustls::Error::InvalidMessage(_) => "that port does not use TLS: write http://",
        _ => return None,
    })
}
