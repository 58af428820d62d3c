//! Certificates made for tests, and TLS acceptors that use them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// A certificate authority.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self {
            issuer: CertifiedIssuer::self_signed(params, key).unwrap(),
        }
    }

    /// Its certificate, in a file of `folder`.
    pub fn file(&self, folder: &Path) -> PathBuf {
        write_pem(folder, &self.issuer.pem())
    }

    /// Accepts connections with a certificate for `name`.
    pub fn acceptor_for(&self, name: &str) -> TlsAcceptor {
        self.acceptor_with(params(name))
    }

    /// Accepts connections with a certificate of these parameters.
    pub fn acceptor_with(&self, params: CertificateParams) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        acceptor(certificate.der().clone(), &key)
    }
}

/// Accepts connections with a self-signed certificate; the file contains it.
pub fn self_signed(folder: &Path, params: CertificateParams) -> (TlsAcceptor, PathBuf) {
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let file = write_pem(folder, &certificate.pem());
    (acceptor(certificate.der().clone(), &key), file)
}

/// Parameters of a certificate for `name` that does not expire soon.
pub fn params(name: &str) -> CertificateParams {
    CertificateParams::new(vec![name.to_owned()]).unwrap()
}

fn acceptor(certificate: CertificateDer<'static>, key: &KeyPair) -> TlsAcceptor {
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

fn write_pem(folder: &Path, pem: &str) -> PathBuf {
    let path = folder.join("trusted.pem");
    std::fs::write(&path, pem).unwrap();
    path
}
