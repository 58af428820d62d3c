//! The exact JSON of the bodies that clients of the Fly Machines API depend on.
//!
//! A change here is a change of the API: fields may be added, but none may be renamed or removed.

use machine_api::{
    CheckStatus, CreateMachine, CreatedToken, ErrorBody, EventRequest, EventType, ExecRequest,
    ExitEvent, Machine, MachineEvent, MachineState, Operation, RestartPolicy, StartKind,
    StartResponse, Token, TokenScope,
};
use serde_json::{Value, json};

fn machine() -> Value {
    json!({
        "id": "0123456789abcd",
        "name": "calm-lake-0001",
        "state": "started",
        "region": "local",
        "instance_id": "01ARZ3NDEKTSV4RRFFQ69G5FAV",
        "config": {
            "image": "default",
            "guest": {"cpus": 2, "memory_mb": 512},
            "restart": {"policy": "on-failure", "max_retries": 3},
            "metadata": {"a": "b"}
        },
        "image_ref": {
            "registry": "local", "repository": "default", "tag": "latest", "digest": "sha256:0"
        },
        "private_ip": "",
        "created_at": "2026-11-23T12:00:00.000000Z",
        "updated_at": "2026-11-23T12:00:01.000000Z",
        "events": [{
            "id": "01", "type": "exit", "status": "stopped", "source": "guest", "timestamp": 5,
            "request": {"exit_event": {
                "exit_code": 137, "signal": 9, "guest_exit_code": 137, "guest_signal": 9,
                "oom_killed": true, "requested_stop": false, "restarting": true,
                "exited_at": "2026-11-23T12:00:00.000000Z"
            }, "restart_count": 1}
        }],
        "checks": [{"name": "web", "status": "passing", "output": "", "updated_at": "x"}],
        "host_status": "ok",
        "cordoned": false,
        "published": [{"address": "127.0.0.1:8080", "internal_port": 80}],
        "generation": 7,
        "last_start": {"kind": "cold_booted", "reason": "checksum mismatch"}
    })
}

#[test]
fn a_machine_is_read_and_written_without_a_change() {
    let read: Machine = serde_json::from_value(machine()).unwrap();
    assert_eq!(read.state, MachineState::Started);
    assert_eq!(
        read.config.restart.clone().unwrap().policy,
        RestartPolicy::OnFailure
    );
    assert_eq!(serde_json::to_value(&read).unwrap(), machine());
}

#[test]
fn exit_information_is_nested_as_in_the_fly_machines_api() {
    let exit = ExitEvent {
        exit_code: -1,
        signal: 15,
        guest_exit_code: -1,
        guest_signal: 15,
        exited_at: "2026-11-23T12:00:00.000000Z".to_owned(),
        ..ExitEvent::default()
    };
    let event = MachineEvent {
        id: "02".to_owned(),
        kind: EventType::Exit,
        status: "stopped".to_owned(),
        source: "guest".to_owned(),
        timestamp: 9,
        request: Some(EventRequest {
            exit_event: Some(exit),
            restart_count: None,
        }),
        duration_ms: None,
        phases: Vec::new(),
        start: Some(StartKind::Resumed),
        message: None,
    };
    let expected = json!({
        "id": "02", "type": "exit", "status": "stopped", "source": "guest", "timestamp": 9,
        "request": {"exit_event": {
            "exit_code": -1, "signal": 15, "guest_exit_code": -1, "guest_signal": 15,
            "oom_killed": false, "requested_stop": false, "restarting": false,
            "exited_at": "2026-11-23T12:00:00.000000Z"
        }},
        "start": {"kind": "resumed"}
    });
    assert_eq!(serde_json::to_value(&event).unwrap(), expected);
}

#[test]
fn exits_that_an_earlier_supervisor_stored_are_read() {
    let stored = json!({
        "exit_code": 137, "signal": 9, "oom_killed": true, "requested_stop": false,
        "restarting": false, "exited_at": 1_653_047_897_299_i64
    });
    let exit: ExitEvent = serde_json::from_value(stored).unwrap();
    assert_eq!(exit.exited_at, "2022-05-20T11:58:17.299Z");
    assert_eq!((exit.guest_exit_code, exit.guest_signal), (-1, -1));
}

#[test]
fn unknown_fields_of_a_create_are_ignored() {
    let body = json!({
        "name": "web",
        "region": "local",
        "config": {
            "image": "default",
            "guest": {"cpu_kind": "shared", "cpus": 1, "memory_mb": 256},
            "init": {"exec": ["/bin/sleep", "inf"]},
            "services": [{
                "protocol": "tcp", "internal_port": 8080, "autostop": "suspend",
                "autostart": true, "min_machines_running": 0,
                "ports": [{"port": 80}],
                "concurrency": {"type": "connections", "hard_limit": 25, "soft_limit": 20}
            }],
            "checks": {"alive": {
                "type": "http", "port": 8080, "method": "get", "path": "/", "interval": "15s",
                "timeout": "2s", "grace_period": "5s"
            }},
            "dns": {"skip_registration": true}
        },
        "skip_service_registration": true
    });
    let read: CreateMachine = serde_json::from_value(body).unwrap();
    assert_eq!(read.config.services[0].ports[0].port, 80);
    assert_eq!(read.config.checks["alive"].port, Some(8080));
    assert!(!read.skip_launch);
}

#[test]
fn small_answers_have_these_exact_fields() {
    let start = StartResponse {
        previous_state: MachineState::Suspended,
        migrated: false,
        new_host: String::new(),
        start: None,
    };
    assert_eq!(
        serde_json::to_value(&start).unwrap(),
        json!({"previous_state": "suspended", "migrated": false, "new_host": ""})
    );
    let error = ErrorBody {
        error: "machine x is stopped: it has no running guest".to_owned(),
        status: "wrong_state".to_owned(),
        ..ErrorBody::default()
    };
    assert_eq!(
        serde_json::to_value(&error).unwrap(),
        json!({"error": "machine x is stopped: it has no running guest", "status": "wrong_state"})
    );
    let check = CheckStatus {
        name: "web".to_owned(),
        status: "critical".to_owned(),
        output: "503".to_owned(),
        updated_at: "x".to_owned(),
    };
    assert_eq!(
        serde_json::to_value(&check).unwrap(),
        json!({"name": "web", "status": "critical", "output": "503", "updated_at": "x"})
    );
}

#[test]
fn a_command_may_be_one_string() {
    let read: ExecRequest = serde_json::from_value(json!({"cmd": "ls -l", "timeout": 5})).unwrap();
    assert_eq!(
        (read.cmd.as_deref(), read.timeout),
        (Some("ls -l"), Some(5))
    );
    assert!(read.command.is_empty());
}

#[test]
fn a_new_token_is_one_flat_object() {
    let token = Token {
        id: "1".to_owned(),
        name: "ci".to_owned(),
        scope: TokenScope::Read,
        created_at: "x".to_owned(),
    };
    let made = CreatedToken {
        token,
        secret: "s".to_owned(),
    };
    assert_eq!(
        serde_json::to_value(&made).unwrap(),
        json!({"id": "1", "name": "ci", "scope": "read", "created_at": "x", "secret": "s"})
    );
}

#[test]
fn states_and_operations_are_written_by_their_names() {
    for state in MachineState::ALL {
        assert_eq!(serde_json::to_value(state).unwrap(), state.name());
    }
    for operation in Operation::ALL {
        assert_eq!(serde_json::to_value(operation).unwrap(), operation.name());
    }
}
