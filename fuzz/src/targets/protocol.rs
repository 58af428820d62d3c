//! The frames between supervisor and guest-init, at both ends.

use std::path::PathBuf;

use guest_protocol::{
    Call, CpuSample, Decoded, ExecSpec, Exit, FileKind, Frame, HEADER_BYTES, LaunchFile,
    MAX_PAYLOAD_BYTES, OutputRecord, Refusal, RefusalKind, Reply, Request, StreamEnd, TerminalSize,
    Wake, decode, encode,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use supervisor::fuzzing::{QUESTIONS, ask_guest};

use crate::scratch;

/// Frames as such: what decodes encodes to the same bytes, and so do the messages in them.
pub(crate) fn frames(input: &[u8]) {
    let mut rest = input;
    while let Ok(decoded) = decode(rest) {
        let Decoded::Frame(frame, length) = decoded else {
            let Decoded::Incomplete(missing) = decoded else {
                return;
            };
            assert!(missing > 0, "an incomplete frame lacks something");
            assert!(
                rest.len() + missing <= HEADER_BYTES + MAX_PAYLOAD_BYTES,
                "a frame is no longer than the longest"
            );
            return;
        };
        let mut again = Vec::new();
        encode(frame, &mut again).expect("what was decoded is encoded");
        assert_eq!(again, rest[..length], "a frame has one encoding");
        if let Frame::Json(json) = frame {
            messages(json);
        }
        rest = &rest[length..];
    }
}

fn messages(json: &[u8]) {
    stable::<Call>(json);
    stable::<Reply>(json);
    stable::<StreamEnd>(json);
    stable::<OutputRecord>(json);
    stable::<CpuSample>(json);
    stable::<FileKind>(json);
    stable::<TerminalSize>(json);
    if let Ok(Call {
        wake: Some(wake), ..
    }) = serde_json::from_slice(json)
    {
        let _ = wake.entropy();
    }
    if let Ok(text) = std::str::from_utf8(json)
        && let Some(bytes) = guest_protocol::base64::decode(text)
    {
        assert!(
            bytes.len() <= text.len() / 4 * 3,
            "four characters hold three bytes"
        );
    }
}

/// A message that is read is written so that it reads the same.
fn stable<T: Serialize + DeserializeOwned>(json: &[u8]) {
    if let Ok(message) = serde_json::from_slice::<T>(json) {
        let first = serde_json::to_vec(&message).expect("messages are plain JSON");
        let again: T = serde_json::from_slice(&first).expect("what was written is read");
        let second = serde_json::to_vec(&again).expect("messages are plain JSON");
        assert_eq!(first, second, "a message has one encoding");
    }
}

fn folder() -> PathBuf {
    let folder = scratch::path("guest-init");
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::write(folder.join("file"), vec![b'x'; 3000]).expect("a file");
    folder
}

/// guest-init's end: a connection of a supervisor.
pub(crate) fn calls(input: &[u8]) {
    let kinds = guest_init::fuzzing::serve_frames(input, &folder());
    assert!(
        kinds.first().is_none_or(|kind| *kind == "json"),
        "an answer begins with a message"
    );
}

/// The supervisor's end: a connection to a guest.
pub(crate) fn answers(input: &[u8]) {
    let (Ok(text) | Err(text)) = answered(input);
    assert!(!text.is_empty(), "an outcome says what it is");
}

/// Asks the question of the first byte, and returns what came of the rest.
fn answered(input: &[u8]) -> Result<String, String> {
    let (first, rest) = input.split_first().unwrap_or((&0, &[]));
    let question = QUESTIONS[usize::from(*first) % QUESTIONS.len()];
    // The VMM's line, unless the input has one.
    let line: &[u8] = if first & 0x80 == 0 {
        b"OK 1073741824\n"
    } else {
        b""
    };
    ask_guest(question, &[line, rest].concat(), &folder())
}

fn framed(frames: &[Frame<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for frame in frames {
        encode(*frame, &mut bytes).expect("a short frame");
    }
    bytes
}

fn json(message: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(message).expect("messages are plain JSON")
}

fn command() -> ExecSpec {
    ExecSpec {
        argv: vec!["cat".to_owned(), "-n".to_owned()],
        env: [("A".to_owned(), "b".to_owned())].into(),
        cwd: Some("/".to_owned()),
        terminal: None,
    }
}

/// Frames of calls: the requests, and what follows them.
pub(crate) fn call_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let call = |request| json(&Call::new(7, None, request));
    let alone = |request| framed(&[Frame::Json(&call(request))]);
    let terminal = ExecSpec {
        terminal: Some(TerminalSize {
            columns: 80,
            rows: 25,
        }),
        ..command()
    };
    let exec = |exec, timeout_ms| call(Request::Exec { exec, timeout_ms });
    let size = json(&TerminalSize {
        columns: 100,
        rows: 30,
    });
    let launch = Request::Launch {
        main: command(),
        mounts: vec![("/dev/vda".to_owned(), "/data".to_owned(), true)],
        files: vec![LaunchFile {
            path: "/etc/x".to_owned(),
            mode: 0o600,
            content: "aGk=".to_owned(),
        }],
        hostname: "m1".to_owned(),
    };
    let plain = Request::Launch {
        main: command(),
        mounts: Vec::new(),
        files: Vec::new(),
        hostname: String::new(),
    };
    let wake = Wake::new(
        1_700_000_000_000_000_000,
        &[5; guest_protocol::ENTROPY_BYTES],
    );
    let path = || "/etc/x".to_owned();
    vec![
        (
            "status",
            framed(&[Frame::Json(&json(&Call::new(
                7,
                Some(wake),
                Request::Status,
            )))]),
        ),
        ("launch", alone(launch)),
        ("launch_plain", alone(plain)),
        ("cpu_usage", alone(Request::CpuUsage { interval_ms: 10 })),
        ("output", alone(Request::Output { from_sequence: 1 })),
        (
            "exec",
            framed(&[
                Frame::Json(&exec(command(), 0)),
                Frame::Stdin(b"input"),
                Frame::Stdin(b""),
            ]),
        ),
        (
            "terminal",
            framed(&[
                Frame::Json(&exec(terminal, 5)),
                Frame::Json(&size),
                Frame::Stdin(b"a\n\x04"),
                Frame::Stdout(b""),
            ]),
        ),
        ("signal", alone(Request::Signal { signal: 15 })),
        (
            "power_off",
            alone(Request::PowerOff {
                signal: 15,
                timeout_ms: 100,
            }),
        ),
        ("forward", alone(Request::Forward { port: 80 })),
        ("processes", alone(Request::Processes)),
        ("resources", alone(Request::Resources)),
        ("read", alone(Request::ReadFile { path: path() })),
        (
            "write",
            framed(&[
                Frame::Json(&call(Request::WriteFile {
                    path: path(),
                    mode: 0o644,
                })),
                Frame::Data(b"content"),
                Frame::Data(b""),
            ]),
        ),
        (
            "version",
            framed(&[Frame::Json(
                br#"{"version": 2, "generation": 1, "request": {"type": "dance"}}"#,
            )]),
        ),
        ("no_frame", b"GET / HTTP/1.1\r\n".to_vec()),
    ]
}

/// Frames of answers, each after a byte for the question.
pub(crate) fn answer_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let streaming = json(&Reply::Streaming);
    let refusal = Refusal {
        kind: RefusalKind::NotFound,
        message: "no such file".to_owned(),
    };
    let refused = json(&Reply::Refused(refusal.clone()));
    let exited = json(&StreamEnd::Exited(Exit {
        code: Some(3),
        ..Exit::default()
    }));
    let complete = json(&StreamEnd::Complete { bytes: 4 });
    let late = json(&StreamEnd::Refused(refusal));
    let kind = json(&FileKind {
        size_bytes: 4,
        mode: 0o644,
    });
    let status = br#"{"type":"status","boot_id":"b","generation":3,"init_version":"1","uptime_ms":5,"realtime_ns":9,
        "open_vsocks":{"total":1,"older_generations":0,"counts":[{"state":"closed","count":4294967295},{"state":"closed","count":1}],"source":"kernel"},
        "main":{"state":"exited","exit":{"code":1},"next_output_sequence":4}}"#;
    let resources = br#"{"type":"resources","init":{"descriptors":9,"threads":1},"tasks":80,"vsocks":{"established":2}}"#;
    let overloaded = br#"{"uptime_ms":5,"busy_ms":3,"idle_ms":1,"load":[1e39,0,0],"memory_total_kib":5,"memory_available_kib":4}"#;
    let sample = br#"{"uptime_ms":5,"busy_ms":3,"idle_ms":1,"load":[0.5,1e2,0],"memory_total_kib":5,"memory_available_kib":4}"#;
    let first =
        br#"{"sequence":0,"realtime_ns":1700000000000000000,"source":"stdout","text":"hello"}"#;
    let second =
        br#"{"sequence":18446744073709551615,"realtime_ns":1,"source":"stderr","text":"\u0007"}"#;
    let with = |question: u8, frames: &[Frame<'_>]| [vec![question], framed(frames)].concat();
    vec![
        ("status", with(0, &[Frame::Json(status)])),
        ("refused", with(0, &[Frame::Json(&refused)])),
        (
            "exec",
            with(
                1,
                &[
                    Frame::Json(&streaming),
                    Frame::Stdout(b"out"),
                    Frame::Stderr(b"err"),
                    Frame::Json(&exited),
                ],
            ),
        ),
        (
            "exec_late",
            with(1, &[Frame::Json(&streaming), Frame::Json(&late)]),
        ),
        ("resources", with(2, &[Frame::Json(resources)])),
        (
            "file",
            with(
                3,
                &[
                    Frame::Json(&streaming),
                    Frame::Json(&kind),
                    Frame::Data(b"text"),
                    Frame::Data(b""),
                    Frame::Json(&complete),
                ],
            ),
        ),
        (
            "file_late",
            with(
                3,
                &[
                    Frame::Json(&streaming),
                    Frame::Json(&kind),
                    Frame::Json(&late),
                ],
            ),
        ),
        (
            "monitor",
            with(4, &[Frame::Json(&streaming), Frame::Json(sample)]),
        ),
        (
            "overloaded",
            with(4, &[Frame::Json(&streaming), Frame::Json(overloaded)]),
        ),
        (
            "output",
            with(
                5,
                &[
                    Frame::Json(&streaming),
                    Frame::Json(first),
                    Frame::Json(second),
                    Frame::Json(&exited),
                ],
            ),
        ),
        (
            "input",
            with(1, &[Frame::Json(&streaming), Frame::Stdin(b"?")]),
        ),
        ("reset", b"\x80RST 1073741824\n".to_vec()),
        ("gone", b"\x80GONE 5\n".to_vec()),
    ]
}

/// Frames of both directions.
pub(crate) fn frame_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let mut all = call_seeds();
    all.extend(
        answer_seeds()
            .into_iter()
            .map(|(_, bytes)| ("", bytes[1..].to_vec())),
    );
    let joined: Vec<u8> = all
        .iter()
        .filter(|(name, _)| *name != "no_frame")
        .flat_map(|(_, bytes)| bytes.clone())
        .collect();
    vec![
        ("all", joined),
        (
            "base64",
            framed(&[
                Frame::Json(b"aGVsbG8="),
                Frame::Json(b"YQ=="),
                Frame::Json(b"YQ"),
            ]),
        ),
        (
            "long",
            [
                &[1][..],
                &u32::try_from(MAX_PAYLOAD_BYTES)
                    .expect("1 MiB")
                    .to_le_bytes(),
                b"{}",
            ]
            .concat(),
        ),
        ("too_long", [&[5][..], &u32::MAX.to_le_bytes()].concat()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_among_the_seeds_are_served() {
        let served = |wanted: &str| {
            let mut seeds = call_seeds().into_iter();
            let (_, input) = seeds.find(|(name, _)| *name == wanted).expect("a seed");
            guest_init::fuzzing::serve_frames(&input, &folder())
        };
        assert_eq!(served("status"), ["json"]);
        assert_eq!(served("read"), ["json", "json", "data", "data", "json"]);
        assert_eq!(served("write"), ["json", "json"]);
        // Its deadline may pass before its output comes.
        let exec = served("exec");
        assert!(
            exec.len() >= 2 && exec.first() == exec.last(),
            "{exec:?}: not from the reply to the exit"
        );
        assert_eq!(served("no_frame"), [""; 0]);
    }

    #[test]
    fn answers_among_the_seeds_are_believed() {
        let believed = answer_seeds()
            .into_iter()
            .filter(|(_, input)| answered(input).is_ok());
        let names: Vec<_> = believed.map(|(name, _)| name).collect();
        let expected = ["status", "exec", "resources", "file", "monitor", "output"];
        assert_eq!(names, expected);
    }
}
