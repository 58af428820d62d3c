//! Tests of what the adapters share, without a VMM: its API and a guest's init are simulated on Unix
//! sockets.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cycles::AttemptOutcome;
use guest_protocol::{
    Call, Decoded, Frame, GuestStatus, MainProcess, MainProcessState, OpenVsocks, Reply, Request,
    decode, encode,
};
use hyper::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::api::{self, ApiCall, ApiError};
use super::guest::{self, CallError};
use super::readiness::{LIMITS, Limits, retry};

/// How the simulated vsock socket treats one connection.
#[derive(Debug, Clone, Copy)]
enum Behaviour {
    /// Closes, as VMMs do when the guest answers with RST.
    Refuse,
    /// Neither answers nor closes.
    Silence,
    /// Accepts and closes.
    AcceptAndClose,
    /// Accepts, and answers like init at that generation.
    Answer { generation: u64 },
    /// Answers something other than `OK`.
    NotOk,
}

/// A socket that shows these one after the other, then the last one for ever.
fn vsock(behaviours: &'static [Behaviour]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v.sock");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        let mut held = Vec::new();
        for index in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            let behaviour = behaviours[index.min(behaviours.len() - 1)];
            let local_port = (1 << 30) + u32::try_from(index).unwrap();
            held.extend(serve(stream, behaviour, local_port).await);
        }
    });
    (folder, path)
}

/// Serves one connection. Returns the stream if it must stay open.
async fn serve(
    mut stream: UnixStream,
    behaviour: Behaviour,
    local_port: u32,
) -> Option<UnixStream> {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        line.push(stream.read_u8().await.unwrap());
    }
    assert_eq!(line, b"CONNECT 1024\n");
    let accepted = format!("OK {local_port}\n");
    match behaviour {
        Behaviour::Refuse => return None,
        Behaviour::Silence => return Some(stream),
        Behaviour::NotOk => stream.write_all(b"HTTP/1.1 400\n").await.unwrap(),
        Behaviour::AcceptAndClose => stream.write_all(accepted.as_bytes()).await.unwrap(),
        Behaviour::Answer { generation } => {
            stream.write_all(accepted.as_bytes()).await.unwrap();
            let reply = match call_from(&mut stream).await.request {
                Request::Status => Reply::Status(status(generation)),
                Request::CpuUsage { .. } => Reply::Streaming,
                _ => Reply::Done,
            };
            let mut bytes = Vec::new();
            encode(
                Frame::Json(&serde_json::to_vec(&reply).unwrap()),
                &mut bytes,
            )
            .unwrap();
            stream.write_all(&bytes).await.unwrap();
        }
    }
    // The other end still reads.
    Some(stream).filter(|_| !matches!(behaviour, Behaviour::AcceptAndClose))
}

async fn call_from(stream: &mut UnixStream) -> Call {
    let mut bytes = Vec::new();
    loop {
        if let Decoded::Frame(Frame::Json(json), _) = decode(&bytes).unwrap() {
            return serde_json::from_slice(json).unwrap();
        }
        assert_ne!(stream.read_buf(&mut bytes).await.unwrap(), 0);
    }
}

fn status(generation: u64) -> GuestStatus {
    GuestStatus {
        boot_id: "b".to_owned(),
        generation,
        protocol: guest_protocol::VERSION,
        init_version: "1".to_owned(),
        uptime_ms: 1,
        realtime_ns: 1,
        clock_step_ms: None,
        open_vsocks: OpenVsocks::default(),
        main: MainProcess {
            state: MainProcessState::Running,
            pid: Some(2),
            exit: None,
            next_output_sequence: 0,
        },
    }
}

/// A deadline that is not reached.
const SOON: Duration = Duration::from_secs(20);
/// A deadline for calls that get no answer.
const BRIEF: Duration = Duration::from_millis(50);

#[tokio::test]
async fn an_attempt_returns_its_port_and_its_result() {
    let answers = vsock(&[Behaviour::Answer { generation: 4 }]);
    let (port, result) = guest::status(&answers.1, 4, SOON).await;
    assert_eq!((port, result.unwrap().generation), (Some(1 << 30), 4));

    let refuses = vsock(&[Behaviour::Refuse]);
    let (port, result) = guest::status(&refuses.1, 4, SOON).await;
    assert!(matches!((port, result), (None, Err(CallError::Reset))));

    let silent = vsock(&[Behaviour::Silence]);
    let (_, result) = guest::status(&silent.1, 4, BRIEF).await;
    assert!(matches!(result, Err(CallError::NoReply { .. })));

    let closes = vsock(&[Behaviour::AcceptAndClose]);
    let (port, result) = guest::status(&closes.1, 4, SOON).await;
    assert_eq!(port, Some(1 << 30));
    assert!(matches!(result, Err(CallError::Closed(_))), "{result:?}");

    let (_, result) = guest::status(Path::new("/nonexistent/v.sock"), 4, SOON).await;
    assert!(matches!(result, Err(CallError::Connect { .. })));
}

#[tokio::test]
async fn init_of_another_generation_and_another_program_are_bad_replies() {
    let older = vsock(&[Behaviour::Answer { generation: 3 }]);
    let (_, result) = guest::status(&older.1, 4, SOON).await;
    assert!(matches!(result, Err(CallError::BadReply { .. })));

    let other = vsock(&[Behaviour::NotOk]);
    let (_, result) = guest::status(&other.1, 4, SOON).await;
    assert!(matches!(result, Err(CallError::BadReply { .. })));
}

#[tokio::test]
async fn a_check_retries_past_leaked_pairs_and_records_each() {
    let (_folder, socket) = vsock(&[
        Behaviour::Refuse,
        Behaviour::Refuse,
        Behaviour::Answer { generation: 2 },
    ]);
    let mut attempts = Vec::new();
    let ask = || guest::status(&socket, 2, LIMITS.attempt);
    retry(&LIMITS, "status", &mut attempts, ask).await.unwrap();
    let outcomes: Vec<AttemptOutcome> = attempts.iter().map(|one| one.outcome).collect();
    let reset = AttemptOutcome::Reset;
    assert_eq!(outcomes, [reset, reset, AttemptOutcome::Ok]);
    assert_eq!(attempts[2].local_port, Some((1 << 30) + 2));
}

#[tokio::test]
async fn a_check_gives_up_and_says_after_how_many_attempts() {
    let (_folder, socket) = vsock(&[Behaviour::Refuse]);
    let limits = Limits {
        total: BRIEF,
        ..LIMITS
    };
    let mut attempts = Vec::new();
    let ask = || guest::monitor(&socket, 2, limits.attempt);
    let error = retry(&limits, "monitor", &mut attempts, ask).await;
    let text = error.unwrap_err().to_string();
    let count = attempts.len();
    assert!(text.starts_with("monitor: not ready"), "{text}");
    assert!(text.ends_with(&format!(" {count} attempts")), "{text}");
}

#[tokio::test]
async fn other_calls_are_retried_past_leaked_pairs() {
    let (_folder, socket) = vsock(&[
        Behaviour::Refuse,
        Behaviour::Refuse,
        Behaviour::Answer { generation: 1 },
    ]);
    let reply = guest::call(&socket, 1, Request::Status, SOON).await;
    assert!(matches!(reply.unwrap(), Reply::Status(_)));
}

/// An API that reads one request and sends `answer`.
fn answering(answer: &'static str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"}") {
            assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0);
        }
        let request = String::from_utf8(request).unwrap();
        assert!(request.starts_with("PATCH /vm HTTP/1.1\r\n"), "{request}");
        stream.write_all(answer.as_bytes()).await.unwrap();
    });
    (folder, path)
}

async fn pause(socket: &Path) -> Result<(), ApiError> {
    let call = ApiCall {
        method: Method::PATCH,
        path: "/vm",
        body: json!({ "state": "Paused" }),
    };
    api::call(socket, &call).await
}

#[tokio::test]
async fn any_success_status_is_success_and_a_refusal_keeps_its_message() {
    let (_folder, socket) = answering("HTTP/1.1 204 \r\n\r\n");
    pause(&socket).await.unwrap();

    let refusal = "HTTP/1.1 400 \r\nContent-Length: 24\r\n\r\n{\"fault_message\":\"no VM\"}";
    let (_folder, socket) = answering(refusal);
    let text = pause(&socket).await.unwrap_err().to_string();
    assert!(text.contains("400") && text.contains("no VM"), "{text}");
}

#[tokio::test]
async fn an_api_that_is_gone_or_breaks_is_an_error_with_its_cause() {
    let (_folder, socket) = answering("HTTP/1.1 2");
    let broken = pause(&socket).await.unwrap_err();
    assert!(matches!(broken, ApiError::Transport { .. }), "{broken:?}");
    let gone = pause(Path::new("/nonexistent/api.sock")).await;
    assert!(matches!(gone, Err(ApiError::Connect { .. })));
}

#[tokio::test]
async fn a_call_without_a_body_sends_none() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("api.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0);
        }
        stream.write_all(b"HTTP/1.1 204 \r\n\r\n").await.unwrap();
        String::from_utf8(request).unwrap()
    });
    let boot = ApiCall {
        method: Method::PUT,
        path: "/api/v1/vm.boot",
        body: serde_json::Value::Null,
    };
    api::call(&socket, &boot).await.unwrap();
    let request = serving.await.unwrap().to_lowercase();
    let length = request
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    assert!(matches!(length, None | Some("0")), "{request}");
}
