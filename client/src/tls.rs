//! Whose certificates count when a supervisor is spoken to over TLS.

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

/// Whose certificates count.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Trust {
    /// Those of the authorities that this system trusts.
    #[default]
    System,
    /// Those of the authorities in this file (PEM), and no others.
    File(PathBuf),
}

/// Why it is not known whose certificates count.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The file can't be read, or has something else in it.
    #[error("cannot read the certificates in {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: pem::Error,
    },
    /// There is none in the file.
    #[error("no certificate in {}: it has to be PEM (-----BEGIN CERTIFICATE-----)", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// One of the file's can't be used.
    #[error("cannot use a certificate in {}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
    /// The system trusts nobody.
    #[error("this system has no certificates of authorities")]
    NoSystem,
}

/// The way to secure connections; what it needs is read with the first of them.
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

    /// Reads whose certificates count, unless that is known already.
    pub(crate) fn connector(&self) -> Result<TlsConnector, TrustError> {
        let config = match self.config.get() {
            Some(config) => config.clone(),
            None => {
                let made = Arc::new(configure(roots(&self.trust)?));
                self.config.get_or_init(|| made).clone()
            }
        };
        Ok(TlsConnector::from(config))
    }
}

/// Secures a connection to `host`, whose certificate has to be for that name.
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
        .expect("ring has what these versions need")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

fn roots(trust: &Trust) -> Result<RootCertStore, TrustError> {
    let mut roots = RootCertStore::empty();
    let Trust::File(path) = trust else {
        // What a system has collected is not all of use; one that is counts.
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

/// What to do about a handshake that failed, where that is known.
pub(crate) fn hint(source: &io::Error) -> Option<&'static str> {
    use rustls::CertificateError as Certificate;
    let error = source.get_ref()?.downcast_ref::<rustls::Error>()?;
    Some(match error {
        rustls::Error::InvalidCertificate(problem) => match problem {
            Certificate::UnknownIssuer | Certificate::BadSignature => {
                "nobody whom this client trusts vouches for that certificate: --ca-cert or \
                 MCTL_CA_CERT names a file with the authority's, or with the certificate itself"
            }
            Certificate::NotValidForName | Certificate::NotValidForNameContext { .. } => {
                "the certificate is for another name: use a name or address that stands in it"
            }
            Certificate::Expired | Certificate::ExpiredContext { .. } => {
                "the certificate has expired: renew it and send the supervisor SIGHUP"
            }
            Certificate::NotValidYet | Certificate::NotValidYetContext { .. } => {
                "the certificate is not valid yet: are the clocks right?"
            }
            Certificate::Other(_) => {
                "a certificate that is an authority's can't be the supervisor's own: make it with \
                 basicConstraints=CA:FALSE"
            }
            _ => "the supervisor's certificate can't be used",
        },
        rustls::Error::InvalidMessage(_) => "that port speaks without TLS: write http://",
        _ => return None,
    })
}
