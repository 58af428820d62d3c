//! Access to the API and what it shows: sockets, tokens, events that are followed, destroyed machines,
//! ports that the host chose, files.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::published_ports::{connect, echo};
use crate::stage::{Stage, free_port};
use crate::support::{DEADLINE, MACHINES, http, poll};

/// Opens a stream of JSON lines and returns them up to its end.
fn follow(stage: &Stage, path: &str) -> impl Iterator<Item = Value> + use<> {
    let mut stream = UnixStream::connect(stage.socket()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    // The head and the lengths of chunks are left out: they are no JSON objects. A chunk of length 0
    // is the end.
    let lines = BufReader::new(stream).lines().map(Result::unwrap);
    lines
        .take_while(|line| line != "0")
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str(&line).unwrap())
}

fn ids(events: &[Value]) -> Vec<String> {
    let id = |event: &Value| event["id"].as_str().unwrap().to_owned();
    events.iter().map(id).collect()
}

#[test]
fn a_follower_gets_each_event_once_until_the_machine_is_destroyed() {
    let stage = Stage::new();
    let id = stage.start_machine("");
    let events = stage.ask("GET", &id, "/events", None);
    let earlier = events.as_array().unwrap().len();
    let mut followed = follow(&stage, &format!("{MACHINES}/{id}/events?follow=true"));
    let mut seen: Vec<Value> = followed.by_ref().take(earlier).collect();
    assert_eq!(seen.last().unwrap()["status"], "started");
    stage.ask("POST", &id, "/suspend?wait=true", None);
    seen.extend(followed.by_ref().take(2));
    assert_eq!(seen.last().unwrap()["status"], "suspended");
    stage.ask("DELETE", &id, "?force=true", None);
    seen.extend(followed);
    assert_eq!(seen.last().unwrap()["status"], "destroyed");
    let mut all = stage.ask("GET", &id, "/events", None);
    all.as_array_mut().unwrap().reverse();
    assert_eq!(ids(&seen), ids(all.as_array().unwrap()));
}

#[test]
fn a_follower_misses_no_event_of_a_burst() {
    let stage = Stage::new();
    let config = json!({"checks": (0..60).map(|number| {
        let check = json!({"type": "exec", "command": ["false"], "interval": "1h"});
        (format!("check-{number}"), check)
    }).collect::<serde_json::Map<_, _>>()});
    let body = json!({"config": config, "skip_launch": true});
    let (_, machine) = stage.call("POST", MACHINES, Some(body));
    let id = machine["id"].as_str().unwrap();
    let followed = follow(
        &stage,
        &format!("{MACHINES}/{id}/events?follow=true&limit=1"),
    );
    stage.ask("POST", id, "/start?wait=true", None);
    poll("all checks", || {
        let machine = stage.ask("GET", id, "", None);
        (machine["checks"].as_array().unwrap().len() == 60).then_some(())
    });
    stage.ask("DELETE", id, "?force=true", None);
    let seen: Vec<Value> = followed.collect();
    let checks = seen.iter().filter(|event| event["type"] == "check");
    assert_eq!(checks.count(), 60);
    let mut distinct = ids(&seen);
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), seen.len());
}

#[test]
fn a_destroyed_machine_is_known_to_the_next_supervisor() {
    let mut stage = Stage::new();
    let id = stage.start_machine("");
    stage.ask("DELETE", &id, "?force=true", None);
    stage.kill();
    stage.start(&[]);
    let all = format!("{MACHINES}?include_deleted=true");
    let (_, list) = stage.call("GET", &all, None);
    assert_eq!(
        (&list[0]["id"], &list[0]["state"]),
        (&json!(id), &json!("destroyed"))
    );
    assert_eq!(stage.call("GET", MACHINES, None).1, json!([]));
    assert_eq!(
        stage.ask("GET", &id, "", None)["events"][0]["type"],
        "destroy"
    );
    assert_eq!(
        stage.ask("GET", &id, "/wait?state=destroyed", None)["ok"],
        true
    );
    let refused = |method: &str, rest: &str| {
        let (status, answer) = stage.call(method, &format!("{MACHINES}/{id}{rest}"), None);
        (status, answer["details"]["state"].clone())
    };
    for (method, rest) in [("POST", "/start"), ("GET", "/logs"), ("GET", "/ps")] {
        assert_eq!(refused(method, rest), (412, json!("destroyed")), "{rest}");
    }
    assert_eq!(stage.ask("DELETE", &id, "", None)["ok"], true);
}

#[test]
fn a_port_that_the_host_chose_is_shown_and_used_again() {
    let mut stage = Stage::new();
    let service = json!({"protocol": "tcp", "internal_port": 80, "ports": [{"port": 0}]});
    let config = json!({"services": [service]});
    let id = stage.start_machine_of(&config);
    let published = |stage: &Stage| {
        poll("the published port", || {
            let shown = stage.ask("GET", &id, "", None)["published"].clone();
            shown.is_array().then_some(shown)
        })
    };
    let first = published(&stage);
    assert_eq!(first[0]["internal_port"], 80);
    let address = first[0]["address"].as_str().unwrap();
    let port: u16 = address.strip_prefix("127.0.0.1:").unwrap().parse().unwrap();
    assert_eq!(echo(connect(port), "hello"), "hello");
    stage.kill();
    stage.start(&[]);
    connect(port);
    assert_eq!(published(&stage), first);
}

#[test]
fn the_api_reports_its_tcp_port_that_the_host_chose() {
    let mut stage = Stage::new();
    let address = |stage: &Stage| stage.call("GET", "/v1/host", None).1["address"].clone();
    assert_eq!(address(&stage), Value::Null);
    stage.kill();
    stage.start(&["--listen", "127.0.0.1:0"]);
    let address = address(&stage);
    let port = address.as_str().unwrap().strip_prefix("http://127.0.0.1:");
    let port: u16 = port.unwrap().parse().unwrap();
    assert!(TcpStream::connect(("127.0.0.1", port)).is_ok());
}

#[test]
fn a_read_token_cannot_change_anything_and_a_revoked_one_cannot_read() {
    let mut stage = Stage::new();
    stage.kill();
    let port = free_port();
    stage.start(&["--listen", &format!("127.0.0.1:{port}")]);
    let token = json!({"name": "ci", "scope": "read"});
    let (_, created) = stage.call("POST", "/v1/tokens", Some(token));
    let secret = created["secret"].as_str().unwrap();
    let status = |method: &str, token: &str| {
        let authorization = format!("Bearer {token}");
        let headers = [("authorization", authorization.as_str())];
        http::exchange(connect(port), &headers, method, MACHINES, "")
            .unwrap()
            .0
    };
    assert_eq!(status("GET", secret), 200);
    assert_eq!(status("POST", secret), 403);
    assert_eq!(status("GET", "wrong"), 401);
    let path = format!("/v1/tokens/{}", created["id"].as_str().unwrap());
    assert_eq!(stage.call("DELETE", &path, None).0, 200);
    assert_eq!(status("GET", secret), 401);
}

#[test]
fn an_update_cannot_give_a_machine_the_name_of_another() {
    let stage = Stage::new();
    for name in ["one", "two"] {
        let body = json!({"name": name, "config": {}, "skip_launch": true});
        assert_eq!(stage.call("POST", MACHINES, Some(body)).0, 200);
    }
    let rename = |to: &str| {
        let body = json!({"name": to, "config": {}, "skip_launch": true});
        let (status, answer) = stage.call("POST", &format!("{MACHINES}/two"), Some(body));
        (status, answer["status"].clone())
    };
    assert_eq!(rename("one"), (409, json!("name_taken")));
    assert_eq!(rename("../two"), (400, json!("invalid_argument")));
    assert_eq!(rename("two").0, 200);
}

#[test]
fn a_file_that_was_written_can_be_read() {
    let stage = Stage::new();
    let id = stage.start_machine("");
    let path = format!("{MACHINES}/{id}/files?path=/etc/motd");
    let (status, answer) = stage.call("PUT", &path, Some(json!("hello")));
    assert_eq!((status, &answer["bytes"]), (200, &json!(7)));
    assert_eq!(stage.call("GET", &path, None).0, 200);
    let missing = format!("{MACHINES}/{id}/files?path=/none");
    assert_eq!(stage.call("GET", &missing, None).0, 422);
}

#[test]
fn the_socket_is_open_to_its_owner_and_to_a_group_that_was_named() {
    use std::os::unix::fs::MetadataExt;
    let mut stage = Stage::new();
    let socket = stage.socket();
    let mode_and_group = || {
        let metadata = std::fs::metadata(&socket).unwrap();
        (metadata.mode() & 0o777, metadata.gid())
    };
    assert_eq!(mode_and_group().0, 0o600);
    let group = rustix::process::getgroups()
        .unwrap()
        .last()
        .map_or(rustix::process::getgid().as_raw(), |group| group.as_raw());
    stage.kill();
    stage.start(&["--socket-group", &group.to_string()]);
    assert_eq!(mode_and_group(), (0o660, group));
}

#[test]
fn a_body_that_is_too_large_is_refused() {
    let stage = Stage::new();
    let body = json!({"config": {"env": {"X": "x".repeat(1 << 20)}}});
    let (status, answer) = stage.call("POST", MACHINES, Some(body));
    assert_eq!((status, &answer["status"]), (413, &json!("too_large")));
    assert_eq!(stage.call("GET", MACHINES, None).1, json!([]));
}

/// A connection that a guest opens to a port of the host ends at a Unix socket in the machine's
/// directory, whose name ends in the port. The API trusts whoever connects to its Unix socket, so the
/// supervisor must have none there.
#[test]
fn no_socket_exists_to_which_guests_could_connect() {
    let stage = Stage::new();
    let id = stage.start_machine("");
    let sockets = || {
        let entries = std::fs::read_dir(stage.machine_dir(&id)).unwrap().flatten();
        let names = entries.map(|entry| entry.file_name().into_string().unwrap());
        let ends_in_a_port = |name: &str| {
            name.rsplit_once('_')
                .is_some_and(|(_, port)| port.parse::<u32>().is_ok())
        };
        names
            .filter(|name| ends_in_a_port(name))
            .collect::<Vec<_>>()
    };
    assert_eq!(sockets(), [""; 0]);
    stage.ask("POST", &id, "/suspend?wait=true", None);
    stage.ask("POST", &id, "/start?wait=true", None);
    assert_eq!(sockets(), [""; 0]);
}

#[test]
fn a_file_transfer_keeps_a_machine_from_being_suspended() {
    let stage = Stage::new();
    let service = json!({"internal_port": 80, "autostop": "suspend", "idle_timeout": "1s"});
    let id = stage.create(&json!({"services": [service]}));
    stage.ask("POST", &id, "/start?wait=true", None);
    let mut stream = UnixStream::connect(stage.socket()).unwrap();
    let path = format!("{MACHINES}/{id}/files?path=/data");
    write!(
        stream,
        "PUT {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 40\r\nconnection: close\r\n\r\n"
    )
    .unwrap();
    // The transfer takes three times as long as an idle machine runs.
    for _ in 0..40 {
        std::thread::park_timeout(Duration::from_millis(75));
        stream.write_all(b"x").unwrap();
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    stage.wait_for(&id, "suspended");
}
