//! Which servers the client trusts over https, and its errors and hints for the others.

#[allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "shared by test binaries, each of which uses its own part"
)]
mod fake;

use std::path::Path;

use client::{Client, Command, Error, ErrorKind, ListFilter, Piece, Trust};
use fake::certificates::{Authority, params, self_signed};
use fake::{Answer, Fake};
use futures_util::SinkExt;
use rcgen::{BasicConstraints, IsCa, date_time_ymd};
use serde_json::json;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

fn serve(acceptor: TlsAcceptor) -> Fake {
    Fake::on_tls(acceptor, |_| Answer::json(200, &json!([])))
}

fn client(fake: &Fake, trusted: &Path) -> Client {
    let endpoint = fake.address.parse().expect("its own address");
    Client::new(endpoint).with_trust(Trust::File(trusted.to_owned()))
}

/// The error of a request that must fail, and its hint.
async fn refusal(client: &Client) -> (Error, String) {
    let error = client.list(&ListFilter::default()).await;
    let error = error.expect_err("the request must fail");
    let hint = error.hint().unwrap_or_default();
    (error, hint)
}

#[tokio::test]
async fn a_certificate_of_a_trusted_authority_is_good_for_many_requests() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let fake = serve(authority.acceptor_for("127.0.0.1"));
    let client = client(&fake, &authority.file(folder.path())).with_token(Some("secret".into()));
    for _ in 0..3 {
        client.list(&ListFilter::default()).await.unwrap();
    }
    let seen = fake.request("GET /v1/apps/default/machines");
    assert_eq!(seen.authorization.as_deref(), Some("Bearer secret"));
}

#[tokio::test]
async fn the_servers_own_certificate_may_be_the_one_to_trust() {
    let folder = tempfile::tempdir().unwrap();
    let (acceptor, file) = self_signed(folder.path(), params("127.0.0.1"));
    let fake = serve(acceptor);
    client(&fake, &file)
        .list(&ListFilter::default())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_command_is_run_over_tls() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let fake = Fake::on_tls(authority.acceptor_for("127.0.0.1"), |_| {
        Answer::upgrade(|io| async move {
            let mut socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
            let output = Message::Binary(b"\x01hello"[..].into());
            socket.send(output).await.unwrap();
            let end = r#"{"type":"exit","exit_code":3,"exit_signal":0}"#;
            socket.send(Message::Text(end.into())).await.unwrap();
            let _ = socket.close(None).await;
        })
    });
    let client = client(&fake, &authority.file(folder.path()));
    let command = Command {
        argv: vec!["hello".into()],
        ..Command::default()
    };
    let (_input, mut output) = client.exec_stream("web", &command).await.unwrap();
    assert_eq!(output.next().await.unwrap(), Piece::Stdout("hello".into()));
    let Piece::Ended(end) = output.next().await.unwrap() else {
        panic!("no end");
    };
    assert_eq!(end.exit_code, 3);
}

#[tokio::test]
async fn nothing_is_sent_to_an_untrusted_server() {
    let folder = tempfile::tempdir().unwrap();
    let fake = serve(Authority::new().acceptor_for("127.0.0.1"));
    let other = Authority::new().file(folder.path());
    let (error, hint) = refusal(&client(&fake, &other)).await;
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(
        error.to_string().contains("no secure connection"),
        "{error}"
    );
    assert!(hint.contains("--ca-cert"), "{hint}");
    let endpoint = fake.address.parse().unwrap();
    let (error, _) = refusal(&Client::new(endpoint)).await;
    let refused = matches!(error, Error::Handshake { .. } | Error::Trust { .. });
    assert!(refused, "{error:?}");
    assert!(fake.seen().is_empty());
}

#[tokio::test]
async fn each_unusable_certificate_has_its_own_hint() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let trusted = authority.file(folder.path());
    let mut expired = params("127.0.0.1");
    expired.not_before = date_time_ymd(2020, 1, 1);
    expired.not_after = date_time_ymd(2021, 1, 1);
    let mut early = params("127.0.0.1");
    early.not_before = date_time_ymd(4000, 1, 1);
    let cases = [
        (params("other.example"), "for another name"),
        (expired, "has expired"),
        (early, "not valid yet"),
    ];
    for (params, wanted) in cases {
        let fake = serve(authority.acceptor_with(params));
        let (_, hint) = refusal(&client(&fake, &trusted)).await;
        assert!(hint.contains(wanted), "{wanted}: {hint}");
    }
    let mut authoritys = params("127.0.0.1");
    authoritys.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let (acceptor, file) = self_signed(folder.path(), authoritys);
    let (_, hint) = refusal(&client(&serve(acceptor), &file)).await;
    assert!(hint.contains("CA:FALSE"), "{hint}");
}

#[tokio::test]
async fn a_server_without_tls_gets_its_own_hint() {
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::on_tcp(|_| Answer::json(200, &json!([])));
    let endpoint = fake.address.replace("http://", "https://").parse().unwrap();
    let trusted = Authority::new().file(folder.path());
    let client = Client::new(endpoint).with_trust(Trust::File(trusted));
    let (error, hint) = refusal(&client).await;
    assert!(matches!(error, Error::Handshake { .. }), "{error:?}");
    assert!(hint.contains("write http://"), "{hint}");
}

#[tokio::test]
async fn unusable_files_of_certificates_are_refused_before_anything_is_sent() {
    let folder = tempfile::tempdir().unwrap();
    let fake = serve(Authority::new().acceptor_for("127.0.0.1"));
    let file = folder.path().join("trusted.pem");
    let missing = refusal(&client(&fake, &file)).await;
    std::fs::write(&file, "nonsense").unwrap();
    let empty = refusal(&client(&fake, &file)).await;
    let damaged = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    std::fs::write(&file, damaged).unwrap();
    let damaged = refusal(&client(&fake, &file)).await;
    for (error, hint) in [missing, empty, damaged] {
        assert!(matches!(error, Error::Trust { .. }), "{error:?}");
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(hint.contains("--ca-cert"), "{hint}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_handshake_has_a_deadline() {
    let folder = tempfile::tempdir().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let trusted = Authority::new().file(folder.path());
    let client =
        Client::new(format!("https://{address}").parse().unwrap()).with_trust(Trust::File(trusted));
    let (error, _) = refusal(&client).await;
    assert_eq!(error.kind(), ErrorKind::Deadline, "{error:?}");
}
