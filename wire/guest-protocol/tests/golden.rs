//! The exact JSON of every message. A change here changes the protocol: raise `VERSION`, or make
//! sure that both ends understand the old and the new form.

use std::collections::BTreeMap;
use std::fmt::Debug;

use guest_protocol::{
    Call, CpuSample, ENTROPY_BYTES, ExecSpec, Exit, FileKind, GuestResources, GuestStatus,
    InitUsage, LaunchFile, ListeningSocket, MainProcess, MainProcessState, OpenVsocks,
    OutputRecord, OutputSource, ProcessEntry, Refusal, RefusalKind, Reply, Request, StreamEnd,
    TerminalSize, VERSION, VsockCount, Wake,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Checks both directions: the message as JSON, and the JSON as message.
#[track_caller]
fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(message: &T, json: &str) {
    assert_eq!(serde_json::to_string(message).expect("serialises"), json);
    assert_eq!(
        &serde_json::from_str::<T>(json).expect("is understood"),
        message
    );
}

fn exec_spec() -> ExecSpec {
    ExecSpec {
        argv: vec!["sh".into(), "-c".into(), "true".into()],
        env: BTreeMap::from([("KEY".into(), "value".into())]),
        cwd: Some("/srv".into()),
        terminal: Some(TerminalSize {
            columns: 80,
            rows: 24,
        }),
    }
}

#[test]
fn this_file_is_about_version_1() {
    assert_eq!(VERSION, 1);
}

#[test]
fn calls_look_like_this() {
    let bare = Call {
        version: 1,
        generation: 3,
        wake: None,
        request: Request::Status,
    };
    let waking = Call {
        wake: Some(Wake {
            realtime_ns: 1_800_000_000_000_000_000,
            entropy_hex: "00ff".into(),
        }),
        ..bare.clone()
    };
    check(
        &bare,
        r#"{"version":1,"generation":3,"request":{"type":"status"}}"#,
    );
    check(
        &waking,
        concat!(
            r#"{"version":1,"generation":3,"#,
            r#""wake":{"realtime_ns":1800000000000000000,"entropy_hex":"00ff"},"#,
            r#""request":{"type":"status"}}"#
        ),
    );
}

#[test]
fn a_new_call_is_of_this_version_and_entropy_is_sent_in_hexadecimal() {
    let mut entropy = [0; 32];
    entropy[31] = 0xab;
    let wake = Wake::new(7, &entropy);
    assert_eq!(wake.realtime_ns, 7);
    assert_eq!(wake.entropy_hex, format!("{:0>62}ab", ""));
    assert_eq!(wake.entropy(), Some(entropy));
    let call = Call::new(3, Some(wake.clone()), Request::Status);
    let fields = Call {
        version: VERSION,
        generation: 3,
        wake: Some(wake),
        request: Request::Status,
    };
    assert_eq!(call, fields);
}

#[test]
fn entropy_of_the_wrong_length_or_alphabet_is_none() {
    let decode = |entropy_hex: &str| {
        let wake = Wake {
            realtime_ns: 0,
            entropy_hex: entropy_hex.to_owned(),
        };
        wake.entropy()
    };
    let good = "0f".repeat(ENTROPY_BYTES);
    assert_eq!(decode(&good), Some([0x0f; ENTROPY_BYTES]));
    assert_eq!(decode(&good[1..]), None);
    assert_eq!(decode(&"é".repeat(ENTROPY_BYTES)), None);
    assert_eq!(decode(&"0x".repeat(ENTROPY_BYTES)), None);
}

#[test]
fn requests_for_processes_look_like_this() {
    let spec = concat!(
        r#"{"argv":["sh","-c","true"],"env":{"KEY":"value"},"cwd":"/srv","#,
        r#""terminal":{"columns":80,"rows":24}}"#
    );
    check(
        &Request::Launch {
            main: exec_spec(),
            mounts: vec![("/dev/vda".into(), "/data".into(), true)],
            files: vec![LaunchFile {
                path: "/etc/motd".into(),
                mode: 0o644,
                content: "aGVsbG8=".into(),
            }],
            hostname: "web".into(),
        },
        &format!(
            concat!(
                r#"{{"type":"launch","main":{},"mounts":[["/dev/vda","/data",true]],"#,
                r#""files":[{{"path":"/etc/motd","mode":420,"content":"aGVsbG8="}}],"#,
                r#""hostname":"web"}}"#
            ),
            spec
        ),
    );
    check(
        &Request::Exec {
            exec: exec_spec(),
            timeout_ms: 500,
        },
        &format!(r#"{{"type":"exec","exec":{spec},"timeout_ms":500}}"#),
    );
    check(
        &Request::Exec {
            exec: ExecSpec::default(),
            timeout_ms: 0,
        },
        r#"{"type":"exec","exec":{"argv":[]},"timeout_ms":0}"#,
    );
    check(
        &Request::Signal { signal: 15 },
        r#"{"type":"signal","signal":15}"#,
    );
    check(
        &Request::PowerOff {
            signal: 2,
            timeout_ms: 5000,
        },
        r#"{"type":"power_off","signal":2,"timeout_ms":5000}"#,
    );
    check(&Request::Processes, r#"{"type":"processes"}"#);
    check(&Request::Resources, r#"{"type":"resources"}"#);
}

#[test]
fn requests_for_streams_look_like_this() {
    check(
        &Request::CpuUsage { interval_ms: 1000 },
        r#"{"type":"cpu_usage","interval_ms":1000}"#,
    );
    check(
        &Request::Output { from_sequence: 7 },
        r#"{"type":"output","from_sequence":7}"#,
    );
    check(
        &Request::Forward { port: 8080 },
        r#"{"type":"forward","port":8080}"#,
    );
    check(
        &Request::ReadFile {
            path: "/etc/hosts".into(),
        },
        r#"{"type":"read_file","path":"/etc/hosts"}"#,
    );
    check(
        &Request::WriteFile {
            path: "/etc/hosts".into(),
            mode: 0o644,
        },
        r#"{"type":"write_file","path":"/etc/hosts","mode":420}"#,
    );
}

#[test]
fn fields_that_may_be_missing_have_their_defaults() {
    let request: Request =
        serde_json::from_str(r#"{"type":"exec","exec":{"argv":["true"]}}"#).unwrap();
    let exec = ExecSpec {
        argv: vec!["true".into()],
        ..ExecSpec::default()
    };
    assert_eq!(
        request,
        Request::Exec {
            exec,
            timeout_ms: 0
        }
    );
}

#[test]
fn a_status_looks_like_this() {
    let status = GuestStatus {
        boot_id: "b".into(),
        generation: 3,
        protocol: 1,
        init_version: "0.1.0".into(),
        uptime_ms: 12,
        realtime_ns: 34,
        clock_step_ms: Some(-5),
        open_vsocks: OpenVsocks {
            total: 2,
            older_generations: 1,
            counts: vec![
                VsockCount {
                    state: "closed".into(),
                    generation: Some(2),
                    count: 1,
                },
                VsockCount {
                    state: "established".into(),
                    generation: None,
                    count: 1,
                },
            ],
            source: "vsock_diag".into(),
        },
        main: MainProcess {
            state: MainProcessState::Exited,
            pid: None,
            exit: Some(Exit {
                signal: Some(9),
                oom_killed: true,
                ..Exit::default()
            }),
            next_output_sequence: 6,
        },
    };
    check(
        &Reply::Status(status),
        concat!(
            r#"{"type":"status","boot_id":"b","generation":3,"protocol":1,"init_version":"0.1.0","#,
            r#""uptime_ms":12,"realtime_ns":34,"clock_step_ms":-5,"#,
            r#""open_vsocks":{"total":2,"older_generations":1,"counts":["#,
            r#"{"state":"closed","generation":2,"count":1},{"state":"established","count":1}],"#,
            r#""source":"vsock_diag"},"#,
            r#""main":{"state":"exited","exit":{"signal":9,"oom_killed":true,"timed_out":false},"#,
            r#""next_output_sequence":6}}"#
        ),
    );
}

#[test]
fn the_other_replies_look_like_this() {
    check(&Reply::Done, r#"{"type":"done"}"#);
    check(&Reply::Streaming, r#"{"type":"streaming"}"#);
    check(
        &Reply::Processes {
            processes: vec![ProcessEntry {
                pid: 2,
                parent_pid: 1,
                command: "nginx".into(),
                state: "S".into(),
                cpu_ms: 10,
                rss_kib: 400,
                directory: "/srv".into(),
                started_at_s: 1_800_000_000,
                running_s: 7,
                listening: vec![ListeningSocket {
                    protocol: "tcp".into(),
                    address: "0.0.0.0:80".into(),
                }],
            }],
        },
        concat!(
            r#"{"type":"processes","processes":[{"pid":2,"parent_pid":1,"command":"nginx","#,
            r#""state":"S","cpu_ms":10,"rss_kib":400,"directory":"/srv","#,
            r#""started_at_s":1800000000,"running_s":7,"#,
            r#""listening":[{"protocol":"tcp","address":"0.0.0.0:80"}]}]}"#
        ),
    );
}

#[test]
fn resources_look_like_this_and_what_is_not_known_is_absent() {
    check(
        &Reply::Resources(GuestResources {
            init: InitUsage {
                descriptors: Some(1),
                threads: Some(2),
                resident_bytes: Some(3),
                anonymous_bytes: Some(4),
                epoll_entries: Some(5),
                timers: Some(6),
            },
            tasks: Some(7),
            vsocks: Some(BTreeMap::from([("established".into(), 8)])),
        }),
        concat!(
            r#"{"type":"resources","init":{"descriptors":1,"threads":2,"resident_bytes":3,"#,
            r#""anonymous_bytes":4,"epoll_entries":5,"timers":6},"tasks":7,"#,
            r#""vsocks":{"established":8}}"#
        ),
    );
    check(
        &Reply::Resources(GuestResources::default()),
        r#"{"type":"resources","init":{}}"#,
    );
}

#[test]
fn every_kind_of_refusal_has_its_name() {
    let kinds = [
        (RefusalKind::Version, "version"),
        (RefusalKind::StaleGeneration, "stale_generation"),
        (RefusalKind::Invalid, "invalid"),
        (RefusalKind::NotFound, "not_found"),
        (RefusalKind::Conflict, "conflict"),
        (RefusalKind::Failed, "failed"),
    ];
    for (kind, name) in kinds {
        let message = "why".to_owned();
        check(
            &Reply::Refused(Refusal { kind, message }),
            &format!(r#"{{"type":"refused","kind":"{name}","message":"why"}}"#),
        );
    }
}

#[test]
fn messages_of_streams_look_like_this() {
    check(
        &CpuSample {
            uptime_ms: 1,
            busy_ms: 2,
            idle_ms: 3,
            load: [0.5, 0.25, 0.0],
            memory_total_kib: 4,
            memory_available_kib: 5,
        },
        concat!(
            r#"{"uptime_ms":1,"busy_ms":2,"idle_ms":3,"load":[0.5,0.25,0.0],"#,
            r#""memory_total_kib":4,"memory_available_kib":5}"#
        ),
    );
    check(
        &OutputRecord {
            sequence: 1,
            realtime_ns: 2,
            source: OutputSource::Stderr,
            text: "x".into(),
        },
        r#"{"sequence":1,"realtime_ns":2,"source":"stderr","text":"x"}"#,
    );
    check(
        &TerminalSize {
            columns: 80,
            rows: 24,
        },
        r#"{"columns":80,"rows":24}"#,
    );
    check(
        &FileKind {
            size_bytes: 9,
            mode: 0o600,
        },
        r#"{"size_bytes":9,"mode":384}"#,
    );
}

#[test]
fn streams_end_like_this() {
    check(
        &StreamEnd::Exited(Exit {
            code: Some(0),
            ..Exit::default()
        }),
        r#"{"type":"exited","code":0,"oom_killed":false,"timed_out":false}"#,
    );
    check(
        &StreamEnd::Complete { bytes: 9 },
        r#"{"type":"complete","bytes":9}"#,
    );
    check(
        &StreamEnd::Refused(Refusal {
            kind: RefusalKind::Failed,
            message: "no space".into(),
        }),
        r#"{"type":"refused","kind":"failed","message":"no space"}"#,
    );
}

#[test]
fn a_load_that_has_no_form_in_json_is_refused() {
    let sample = |load: &str| {
        let json = format!(
            r#"{{"uptime_ms":1,"busy_ms":2,"idle_ms":3,"load":[{load},0,0],"memory_total_kib":4,"memory_available_kib":5}}"#
        );
        serde_json::from_str::<CpuSample>(&json)
    };
    assert_eq!(sample("0.5").unwrap().load, [0.5, 0.0, 0.0]);
    assert!(sample("1e39").is_err());
    assert!(sample("-1e39").is_err());
}
