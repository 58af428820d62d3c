//! The API over TLS: real certificates, made here, and clients that do not behave.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::Value;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::stage::{Stage, poll};

const DEADLINE: Duration = Duration::from_secs(20);

type Secured = StreamOwned<ClientConnection, TcpStream>;

/// An authority, and the files of what it certified.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    certificate: PathBuf,
    key: PathBuf,
}

impl Authority {
    /// Certifies 127.0.0.1, in files of `folder`.
    fn new(folder: &Path) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = Self {
            issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap(),
            certificate: folder.join("tls.crt"),
            key: folder.join("tls.key"),
        };
        authority.certify();
        authority
    }

    /// Writes a new certificate and key over the old ones.
    fn certify(&self) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(&self.certificate, certificate.pem()).unwrap();
        fs::write(&self.key, key.serialize_pem()).unwrap();
    }

    /// A supervisor with that certificate, its port and a token.
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

    /// A connection that trusts this authority only, after its handshake.
    fn connect(&self, port: u16) -> Secured {
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
        let mut secured = StreamOwned::new(connection, stream);
        secured.conn.complete_io(&mut secured.sock).unwrap();
        secured
    }
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// The status of a request, and the answer's body.
fn ask(mut stream: impl Read + Write, request: &str, token: &str) -> (u16, String) {
    write!(
        stream,
        "{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {token}\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (
        head.split(' ').nth(1).unwrap().parse().unwrap(),
        body.to_owned(),
    )
}

const LIST: &str = "GET /v1/apps/default/machines";

#[test]
fn the_api_is_served_over_tls_and_still_wants_a_token() {
    let mut stage = Stage::new();
    let authority = Authority::new(stage.folder());
    let (port, token) = authority.serve(&mut stage);
    assert_eq!(
        ask(authority.connect(port), LIST, &token),
        (200, "[]".to_owned())
    );
    assert_eq!(ask(authority.connect(port), LIST, "wrong").0, 401);
}

#[test]
fn a_command_runs_over_a_websocket_in_tls() {
    let mut stage = Stage::new();
    let authority = Authority::new(stage.folder());
    let (port, token) = authority.serve(&mut stage);
    let id = stage.started("");
    let mut stream = authority.connect(port);
    write!(
        stream,
        "{LIST}/{id}/exec/stream?command=say&command=aloud HTTP/1.1\r\nhost: x\r\n\
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
fn a_request_without_tls_is_told_to_use_it() {
    let mut stage = Stage::new();
    let authority = Authority::new(stage.folder());
    let (port, token) = authority.serve(&mut stage);
    let (status, body) = ask(connect(port), LIST, &token);
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (status, body["status"].as_str()),
        (400, Some("tls_required"))
    );
    assert_eq!(body["hint"], "write https:// instead of http://");
}

#[test]
fn handshakes_that_do_not_end_hold_up_nobody_and_are_ended() {
    let mut stage = Stage::new();
    let authority = Authority::new(stage.folder());
    let (port, token) = authority.serve(&mut stage);
    let mut silent: Vec<TcpStream> = (0..64).map(|_| connect(port)).collect();
    for (index, stream) in silent.iter_mut().enumerate() {
        // Half of them begin a handshake.
        if index % 2 == 0 {
            stream.write_all(&[0x16, 3, 1, 2, 0]).unwrap();
        }
    }
    let begun = Instant::now();
    assert_eq!(ask(authority.connect(port), LIST, &token).0, 200);
    assert!(
        begun.elapsed() < Duration::from_secs(4),
        "{:?}",
        begun.elapsed()
    );
    for mut stream in silent {
        // Ended by the server, with or without a word.
        let _ = stream.read(&mut [0; 64]).map_err(|error| {
            assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "still open");
        });
    }
}

/// What the peer's certificate is.
fn served(authority: &Authority, port: u16) -> Vec<u8> {
    let stream = authority.connect(port);
    stream.conn.peer_certificates().unwrap()[0].to_vec()
}

#[test]
fn a_hangup_reads_the_certificate_again_and_a_bad_one_changes_nothing() {
    let mut stage = Stage::new();
    let authority = Authority::new(stage.folder());
    let (port, token) = authority.serve(&mut stage);
    let first = served(&authority, port);
    let kept = authority.connect(port);
    authority.certify();
    stage.signal(rustix::process::Signal::HUP);
    let second = poll("the new certificate", || {
        Some(served(&authority, port)).filter(|found| *found != first)
    });
    assert_eq!(ask(kept, LIST, &token).0, 200);
    fs::write(&authority.key, "nonsense").unwrap();
    stage.signal(rustix::process::Signal::HUP);
    poll("the complaint", || {
        let log = fs::read_to_string(stage.folder().join("supervisor.log")).unwrap();
        let said = log.lines().any(|line| {
            line.contains("could not be read again") && line.contains("no private key in")
        });
        said.then_some(())
    });
    assert_eq!(served(&authority, port), second);
}

/// Starts a supervisor that can't serve and returns what it says.
fn refusal(stage: &Stage, flags: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_mctl-supervisor"))
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
fn each_unusable_pair_is_refused_with_its_own_reason() {
    let mut stage = Stage::new();
    stage.kill();
    let authority = Authority::new(stage.folder());
    let path = |name: &str| stage.folder().join(name).to_str().unwrap().to_owned();
    let (certificate, key) = (path("tls.crt"), path("tls.key"));
    fs::write(path("empty"), "").unwrap();
    fs::write(
        path("other.key"),
        KeyPair::generate().unwrap().serialize_pem(),
    )
    .unwrap();
    let begun = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    fs::write(path("damaged.crt"), begun).unwrap();
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
        let said = refusal(&stage, &["--tls-cert", &certificate, "--tls-key", &key]);
        assert!(said.contains(reason), "{reason}: {said}");
    }
    let said = refusal(&stage, &["--tls-cert", &certificate]);
    assert!(said.contains("--tls-key"), "{said}");
    drop(authority);
}
