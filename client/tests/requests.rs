//! The requests that the client sends, and how it reads answers.

#[allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "shared by test binaries, each of which uses its own part"
)]
mod fake;

use std::time::Duration;

use client::{Client, Error, ErrorKind, ListFilter, LogFilter};
use fake::{Answer, Fake, Seen};
use machine_api::{CreateMachine, MachineState, StopRequest};
use serde_json::{Value, json};

fn machine(state: &str) -> Value {
    json!({
        "id": "148e0d3a00c189", "name": "web", "state": state, "region": "local",
        "instance_id": "01", "config": {}, "private_ip": "", "host_status": "ok",
        "image_ref": {"registry": "local", "repository": "default", "tag": "latest", "digest": ""},
        "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z",
        "events": [{"id": "1", "type": "start", "status": state, "source": "flyd",
                    "timestamp": 0, "message": "kernel missing"}],
    })
}

fn fake(decide: impl Fn(&Seen) -> Answer + Send + Sync + 'static) -> (Fake, Client) {
    let fake = Fake::on_tcp(decide);
    let client = Client::new(fake.address.parse().expect("its own address"));
    (fake, client)
}

#[tokio::test]
async fn token_and_lease_go_with_every_request() {
    let (fake, client) = fake(|_| Answer::json(200, &json!([])));
    let client = client
        .with_token(Some("secret".into()))
        .with_lease_nonce(Some("n1".into()));
    client.list(&ListFilter::default()).await.unwrap();
    let seen = fake.request("GET /v1/apps/default/machines");
    assert_eq!(seen.authorization.as_deref(), Some("Bearer secret"));
    assert_eq!(seen.lease.as_deref(), Some("n1"));
}

#[tokio::test]
async fn debug_output_holds_no_secret() {
    let (_fake, client) = fake(|_| Answer::Silence);
    let client = client
        .with_token(Some("secret".into()))
        .with_lease_nonce(Some("n1".into()));
    let text = format!("{client:?}");
    assert!(!text.contains("secret") && !text.contains("n1"), "{text}");
}

#[tokio::test]
async fn a_unix_socket_serves_as_well_as_tcp() {
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::on_unix(&folder.path().join("api.sock"), |_| {
        Answer::json(200, &json!([machine("started")]))
    });
    let client = Client::new(fake.address.parse().unwrap());
    let machines = client.list(&ListFilter::default()).await.unwrap();
    assert_eq!(machines[0].state, MachineState::Started);
}

#[tokio::test]
async fn filters_become_the_query() {
    let (fake, client) = fake(|_| Answer::json(200, &json!([])));
    let filter = ListFilter {
        states: vec![MachineState::Started, MachineState::Suspended],
        metadata: vec![("team".into(), "a&b".into())],
        include_deleted: true,
    };
    client.list(&filter).await.unwrap();
    let query = "state=started%2Csuspended&metadata.team=a%26b&include_deleted=true";
    assert_eq!(
        fake.lines(),
        [format!("GET /v1/apps/default/machines?{query}")]
    );
}

#[tokio::test]
async fn a_hostile_id_stays_one_path_segment() {
    let (fake, client) = fake(|_| Answer::json(404, &json!({"error": "no such machine"})));
    client.machine("../../host?x=").await.unwrap_err();
    assert_eq!(
        fake.lines(),
        ["GET /v1/apps/default/machines/..%2F..%2Fhost%3Fx%3D"]
    );
}

#[tokio::test]
async fn an_error_carries_the_servers_message_and_hint() {
    let (_fake, client) = fake(|_| {
        let body = json!({"error": "machine is suspended", "status": "wrong_state",
                          "hint": "start it first"});
        Answer::json(412, &body)
    });
    let error = client
        .stop("abc", &StopRequest::default())
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "could not stop machine abc: machine is suspended"
    );
    assert_eq!(error.hint().as_deref(), Some("start it first"));
    assert_eq!(error.kind(), ErrorKind::Conflict);
}

#[tokio::test]
async fn another_server_at_that_address_is_recognised() {
    let (_fake, client) = fake(|_| Answer::Bytes(404, b"<html>".to_vec()));
    let error = client.machine("abc").await.unwrap_err();
    assert!(
        matches!(error, Error::NotTheApi { status: 404, .. }),
        "{error}"
    );
    assert_eq!(error.kind(), ErrorKind::Protocol);
}

#[tokio::test]
async fn an_answer_of_another_shape_is_a_protocol_error() {
    let (_fake, client) = fake(|_| Answer::json(200, &json!({"id": 5})));
    let error = client.machine("abc").await.unwrap_err();
    assert!(matches!(error, Error::UnexpectedAnswer { .. }), "{error}");
}

#[tokio::test]
async fn a_missing_supervisor_is_reported_with_a_hint() {
    let folder = tempfile::tempdir().unwrap();
    let address = format!("unix://{}/api.sock", folder.path().display());
    let error = Client::new(address.parse().unwrap())
        .host()
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("could not ask about the host: no connection to {address}")
    );
    assert!(
        error
            .hint()
            .unwrap()
            .starts_with("is mctl-supervisor running?")
    );
}

#[tokio::test(start_paused = true)]
async fn a_server_that_never_answers_runs_into_the_deadline() {
    let (_fake, client) = fake(|_| Answer::Silence);
    let error = client.machine("abc").await.unwrap_err();
    let text = "could not look up machine abc: an answer did not come within 30s";
    assert_eq!(error.to_string(), text);
    assert_eq!(error.kind(), ErrorKind::Deadline);
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_an_error() {
    let (_fake, client) = fake(|_| Answer::Broken(vec![b"[{".to_vec()]));
    let error = client.list(&ListFilter::default()).await.unwrap_err();
    assert!(matches!(error, Error::Broken { .. }), "{error}");
}

#[tokio::test]
async fn lines_are_put_together_across_pieces() {
    let (_fake, client) = fake(|_| {
        let text = r#"{"time":"t","source":"stdout","text":"één"}"#;
        let bytes = format!("{text}\n\n{text}").into_bytes();
        Answer::Pieces(bytes.chunks(7).map(<[u8]>::to_vec).collect())
    });
    let mut lines = client.logs("abc", &LogFilter::default()).await.unwrap();
    let mut texts = vec![];
    while let Some(line) = lines.next().await.unwrap() {
        texts.push(line.text);
    }
    assert_eq!(texts, ["één", "één"]);
}

#[tokio::test]
async fn a_stream_that_breaks_off_is_not_taken_for_its_end() {
    let (_fake, client) = fake(|_| {
        let line = r#"{"time":"t","source":"stdout","text":"one"}"#;
        Answer::Broken(vec![format!("{line}\n").into_bytes()])
    });
    let mut lines = client.logs("abc", &LogFilter::default()).await.unwrap();
    assert_eq!(lines.next().await.unwrap().unwrap().text, "one");
    assert!(matches!(lines.next().await, Err(Error::Broken { .. })));
}

#[tokio::test]
async fn a_line_that_is_too_long_is_an_error() {
    let (_fake, client) = fake(|_| Answer::Endless(vec![vec![b'x'; 1 << 19]; 3]));
    let filter = LogFilter {
        follow: true,
        ..LogFilter::default()
    };
    let mut lines = client.logs("abc", &filter).await.unwrap();
    assert!(matches!(lines.next().await, Err(Error::TooLong { .. })));
}

#[tokio::test]
async fn a_finite_stream_that_stalls_runs_into_the_deadline() {
    let (_fake, client) = fake(|_| Answer::Endless(vec![b"\n".to_vec()]));
    let mut lines = client.logs("abc", &LogFilter::default()).await.unwrap();
    tokio::time::pause();
    assert!(matches!(lines.next().await, Err(Error::Deadline { .. })));
}

#[tokio::test]
async fn an_unnamed_machine_is_created_without_naming_it() {
    let (fake, client) = fake(|_| Answer::json(200, &machine("created")));
    client
        .create(&CreateMachine {
            skip_launch: true,
            ..CreateMachine::default()
        })
        .await
        .unwrap();
    let body = fake.request("POST /v1/apps/default/machines").json();
    assert_eq!(body, json!({"config": {}, "skip_launch": true}));
}

#[tokio::test]
async fn a_machine_that_stays_in_another_state_ends_the_wait() {
    let (_fake, client) = fake(|seen| match seen.path.ends_with("/wait") {
        true => Answer::json(408, &json!({"error": "timeout"})),
        false => Answer::json(200, &machine("failed")),
    });
    let reached = client
        .reach("abc", MachineState::Started, Duration::from_secs(60))
        .await;
    let error = reached.unwrap_err();
    assert_eq!(
        error.to_string(),
        "machine 148e0d3a00c189 did not become started: it is failed (kernel missing)"
    );
}

#[tokio::test]
async fn a_machine_on_its_way_is_waited_for_until_the_deadline() {
    let (_fake, client) = fake(|seen| match seen.path.ends_with("/wait") {
        true => Answer::json(408, &json!({"error": "timeout"})),
        false => Answer::json(200, &machine("starting")),
    });
    let reached = client
        .reach("abc", MachineState::Started, Duration::from_millis(50))
        .await;
    let error = reached.unwrap_err();
    assert!(matches!(error, Error::StateDeadline { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Deadline);
}
