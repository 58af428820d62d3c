//! The API over TLS: real certificates, made here, and clients that misbehave.

use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::Value;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::stage::Stage;
use crate::support::{DEADLINE, MACHINES, SUPERVISOR, http, poll, read_log};

type TlsStream = StreamOwned<ClientConnection, TcpStream>;

/// A certificate authority, and the files of the certificate that it has issued and its key.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    certificate: PathBuf,
    key: PathBuf,
}

impl Authority {
    /// Issues a certificate for 127.0.0.1, in files of `folder`.
    fn new(folder: &Path) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = Self {
            issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap(),
            certificate: folder.join("tls.crt"),
            key: folder.join("tls.key"),
        };
        authority.issue();
        authority
    }

    /// Writes a new certificate and key over the old ones.
    fn issue(&self) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(&self.certificate, certificate.pem()).unwrap();
        fs::write(&self.key, key.serialize_pem()).unwrap();
    }

    /// Replaces the supervisor by one that serves with that certificate. Returns its port and a token.
    fn serve(&self, stage: &mut Stage) -> (u16, String) {
        stage.kill();
        let token = stage.folder().join("token");
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        stage.start(&[
            "--listen",
            "127.0.0.1:0",
            "--bootstrap-token-file",
            &text(&token),
            "--tls-cert",
            &text(&self.certificate),
            "--tls-key",
            &text(&self.key),
        ]);
        let (_, host) = stage.call("GET", "/v1/host", None);
        let port = host["address"].as_str().unwrap();
        let port = port.strip_prefix("https://127.0.0.1:").unwrap().parse();
        let token = fs::read_to_string(token).unwrap().trim().to_owned();
        (port.unwrap(), token)
    }

    /// A connection that trusts only this authority, after its handshake.
    fn connect(&self, port: u16) -> TlsStream {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let connection = ClientConnection::new(Arc::new(config), name).unwrap();
        let stream = connect(port);
        let mut tls = StreamOwned::new(connection, stream);
        tls.conn.complete_io(&mut tls.sock).unwrap();
        tls
    }
}

/// A connection without TLS.
fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// Lists the machines; status and body of the answer.
fn list(stream: impl Read + Write, token: &str) -> (u16, String) {
    let authorization = format!("Bearer {token}");
    let headers = [("authorization", authorization.as_str())];
    http::exchange(stream, &headers, "GET", MACHINES, "").unwrap()
}

#[test]
fn the_api_is_served_over_tls_and_still_requires_a_token() {
    let mut stage = Stage::new();
    let authority = Authority::new(stage.folder());
    let (port, token) = authority.serve(&mut stage);
    assert_eq!(
        list(authority.connect(port), &token),
        (200, "[]".to_owned())
    );
    assert_eq!(list(authority.connect(port), "wrong").0, 401);
}

#[test]
fn a_command_runs_over_a_websocket_with_tls() {
    let mut stage = Stage::new();
    let authority = Authority::new(stage.folder());
    let (port, token) = authority.serve(&mut stage);
    let id = stage.start_machine("");
    let mut stream = authority.connect(port);
    write!(
        stream,
        "GET {MACHINES}/{id}/exec/stream?command=say&command=aloud HTTP/1.1\r\nhost: x\r\n\
         authorization: Bearer {token}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    .unwrap();
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    while !String::from_utf8_lossy(&answer).contains("\"exit_code\":3") {
        let read = stream.read(&mut piece).unwrap();
        assert!(read > 0, "{}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&piece[..read]);
    }
    let answer = String::from_utf8_lossy(&answer);
    assert!(
        answer.starts_with("HTTP/1.1 101 ") && answer.contains("say aloud"),
        "{answer}"
    );
}

#[test]
fn a_request_without_tls_is_refused_with_a_hint() {
    let mut stage = Stage::new();
    let authority = Authority::new(stage.folder());
    let (port, token) = authority.serve(&mut stage);
    let (status, body) = list(connect(port), &token);
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (status, body["status"].as_str()),
        (400, Some("tls_required"))
    );
    assert_eq!(body["hint"], "write https:// instead of http://");
}

#[test]
fn unfinished_handshakes_block_no_other_client_and_are_closed() {
    let mut stage = Stage::new();
    let authority = Authority::new(stage.folder());
    let (port, token) = authority.serve(&mut stage);
    // All of them are open when the answer comes: it did not wait for their deadlines. On a slow host
    // a deadline may pass meanwhile, so it is tried again.
    let unfinished = poll("an answer while all handshakes are unfinished", || {
        let unfinished = begin_handshakes(port);
        assert_eq!(list(authority.connect(port), &token).0, 200);
        unfinished.iter().all(is_open).then_some(unfinished)
    });
    for mut stream in unfinished {
        // The server closes it, with or without an alert.
        let _ = stream.read(&mut [0; 64]).map_err(|error| {
            assert_ne!(error.kind(), io::ErrorKind::WouldBlock, "still open");
        });
    }
}

/// Connections whose handshake does not go on: half of them send a part of it, the others nothing.
fn begin_handshakes(port: u16) -> Vec<TcpStream> {
    let mut streams: Vec<TcpStream> = (0..64).map(|_| connect(port)).collect();
    for stream in streams.iter_mut().step_by(2) {
        stream.write_all(&[0x16, 3, 1, 2, 0]).unwrap();
    }
    streams
}

/// Whether the other end has neither sent anything nor closed the connection.
fn is_open(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let peeked = stream.peek(&mut [0]);
    stream.set_nonblocking(false).unwrap();
    peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

/// The certificate that the supervisor presents.
fn presented(authority: &Authority, port: u16) -> Vec<u8> {
    let stream = authority.connect(port);
    stream.conn.peer_certificates().unwrap()[0].to_vec()
}

#[test]
fn sighup_reloads_the_certificate_and_an_invalid_one_changes_nothing() {
    let mut stage = Stage::new();
    let authority = Authority::new(stage.folder());
    let (port, token) = authority.serve(&mut stage);
    let first = presented(&authority, port);
    let earlier = authority.connect(port);
    authority.issue();
    stage.signal(rustix::process::Signal::HUP);
    let second = poll("the new certificate", || {
        Some(presented(&authority, port)).filter(|found| *found != first)
    });
    assert_eq!(list(earlier, &token).0, 200);
    fs::write(&authority.key, "nonsense").unwrap();
    stage.signal(rustix::process::Signal::HUP);
    poll("the warning", || {
        let log = read_log(stage.folder());
        let warned = log.lines().any(|line| {
            line.contains("could not be read again") && line.contains("no private key in")
        });
        warned.then_some(())
    });
    assert_eq!(presented(&authority, port), second);
}

/// Starts a supervisor that cannot serve, and returns its error output.
fn refusal(stage: &Stage, flags: &[&str]) -> String {
    let output = Command::new(SUPERVISOR)
        .arg("--state-dir")
        .arg(stage.folder().join("other"))
        .args(["--listen", "127.0.0.1:0"])
        .args(flags)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn each_unusable_certificate_or_key_is_refused_with_its_own_reason() {
    let mut stage = Stage::new();
    stage.kill();
    Authority::new(stage.folder());
    let path = |name: &str| stage.folder().join(name).to_str().unwrap().to_owned();
    let (certificate, key) = (path("tls.crt"), path("tls.key"));
    fs::write(path("empty"), "").unwrap();
    fs::write(
        path("other.key"),
        KeyPair::generate().unwrap().serialize_pem(),
    )
    .unwrap();
    let damaged = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    fs::write(path("damaged.crt"), damaged).unwrap();
    let cases = [
        (
            path("none"),
            key.clone(),
            "cannot read the TLS certificate in",
        ),
        (
            certificate.clone(),
            path("none"),
            "cannot read the TLS key in",
        ),
        (path("empty"), key.clone(), "no certificate in"),
        (certificate.clone(), path("empty"), "no private key in"),
        (key.clone(), certificate.clone(), "no certificate in"),
        (
            certificate.clone(),
            path("other.key"),
            "is not that of the certificate",
        ),
        (
            path("damaged.crt"),
            key.clone(),
            "cannot use the TLS certificate",
        ),
    ];
    for (certificate, key, reason) in cases {
        let error = refusal(&stage, &["--tls-cert", &certificate, "--tls-key", &key]);
        assert!(error.contains(reason), "{reason}: {error}");
    }
    let error = refusal(&stage, &["--tls-cert", &certificate]);
    assert!(error.contains("--tls-key"), "{error}");
}
