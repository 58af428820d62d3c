//! Ways to the API and what it tells: events that are followed, machines that are gone, ports that
//! the host chose.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::stage::{Stage, poll};

const MACHINES: &str = "/v1/apps/default/machines";

/// Opens a stream of JSON lines.
fn follow(stage: &Stage, path: &str) -> impl Iterator<Item = Value> + use<> {
    let mut stream = UnixStream::connect(stage.folder().join("state/api.sock")).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    // Heads and lengths of pieces are no JSON objects.
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
fn events_are_followed_each_once_until_the_machine_is_gone() {
    let stage = Stage::new();
    let id = stage.started("");
    let before = stage.ask("GET", &id, "/events", None);
    let before = before.as_array().unwrap().len();
    let mut followed = follow(&stage, &format!("{MACHINES}/{id}/events?follow=true"));
    let mut seen: Vec<Value> = followed.by_ref().take(before).collect();
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
fn a_follower_misses_nothing_however_much_happens_at_once() {
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
    let mut once = ids(&seen);
    once.sort();
    once.dedup();
    assert_eq!(once.len(), seen.len());
}

#[test]
fn a_destroyed_machine_is_known_to_the_next_supervisor() {
    let mut stage = Stage::new();
    let id = stage.started("");
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
fn a_port_that_the_host_chose_is_shown_and_kept() {
    let mut stage = Stage::new();
    let service = json!({"protocol": "tcp", "internal_port": 80, "ports": [{"port": 0}]});
    let config = json!({"services": [service]});
    let (_, machine) = stage.call("POST", MACHINES, Some(json!({"config": config})));
    let id = machine["id"].as_str().unwrap().to_owned();
    stage.reach(&id, "started");
    let published = |stage: &Stage| {
        poll("a port", || {
            let shown = stage.ask("GET", &id, "", None)["published"].clone();
            shown.is_array().then_some(shown)
        })
    };
    let first = published(&stage);
    assert_eq!(first[0]["internal_port"], 80);
    let address = first[0]["address"].as_str().unwrap();
    let port: u16 = address.strip_prefix("127.0.0.1:").unwrap().parse().unwrap();
    assert_eq!(crate::echoed(port, "hello"), "hello");
    stage.kill();
    stage.start(&[]);
    poll("the port", || {
        std::net::TcpStream::connect(("127.0.0.1", port)).ok()
    });
    assert_eq!(published(&stage), first);
}

#[test]
fn a_tcp_port_that_the_host_chose_is_told() {
    let mut stage = Stage::new();
    let host = |stage: &Stage| stage.call("GET", "/v1/host", None).1["address"].clone();
    assert_eq!(host(&stage), Value::Null);
    stage.kill();
    stage.start(&["--listen", "127.0.0.1:0"]);
    let address = host(&stage);
    let port = address.as_str().unwrap().strip_prefix("http://127.0.0.1:");
    let port: u16 = port.unwrap().parse().unwrap();
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
}

#[test]
fn an_update_can_not_take_another_machines_name() {
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
fn what_is_stored_as_a_file_comes_back() {
    let stage = Stage::new();
    let id = stage.started("");
    let path = format!("{MACHINES}/{id}/files?path=/etc/motd");
    let (status, answer) = stage.call("PUT", &path, Some(json!("hello")));
    assert_eq!((status, &answer["bytes"]), (200, &json!(7)));
    assert_eq!(stage.call("GET", &path, None).0, 200);
    let missing = format!("{MACHINES}/{id}/files?path=/none");
    assert_eq!(stage.call("GET", &missing, None).0, 422);
}

#[test]
fn the_socket_is_its_owners_or_its_groups() {
    use std::os::unix::fs::MetadataExt;
    let mut stage = Stage::new();
    let socket = stage.folder().join("state/api.sock");
    let look = || {
        let metadata = std::fs::metadata(&socket).unwrap();
        (metadata.mode() & 0o777, metadata.gid())
    };
    assert_eq!(look().0, 0o600);
    let group = rustix::process::getgroups()
        .unwrap()
        .last()
        .map_or(rustix::process::getgid().as_raw(), |group| group.as_raw());
    stage.kill();
    stage.start(&["--socket-group", &group.to_string()]);
    assert_eq!(look(), (0o660, group));
}

#[test]
fn a_body_beyond_the_bound_is_refused() {
    let stage = Stage::new();
    let body = json!({"config": {"env": {"X": "x".repeat(1 << 20)}}});
    let (status, answer) = stage.call("POST", MACHINES, Some(body));
    assert_eq!((status, &answer["status"]), (413, &json!("too_large")));
    assert_eq!(stage.call("GET", MACHINES, None).1, json!([]));
}

/// A connection that a guest opens to a port of the host ends at a socket of that port beside the
/// machine's own. The supervisor, whose API is trusted over Unix sockets, has none there.
#[test]
fn nobody_listens_where_guests_connect_to() {
    let stage = Stage::new();
    let id = stage.started("");
    let sockets = || {
        let entries = std::fs::read_dir(stage.directory(&id)).unwrap().flatten();
        let names = entries.map(|entry| entry.file_name().into_string().unwrap());
        let port = |name: &str| {
            name.rsplit_once('_')
                .is_some_and(|(_, port)| port.parse::<u32>().is_ok())
        };
        names.filter(|name| port(name)).collect::<Vec<_>>()
    };
    assert_eq!(sockets(), [""; 0]);
    stage.ask("POST", &id, "/suspend?wait=true", None);
    stage.ask("POST", &id, "/start?wait=true", None);
    assert_eq!(sockets(), [""; 0]);
}

#[test]
fn a_transfer_of_a_file_keeps_a_machine_awake() {
    let stage = Stage::new();
    let service = json!({"internal_port": 80, "autostop": "suspend", "idle_timeout": "300ms"});
    let (_, machine) = stage.call(
        "POST",
        MACHINES,
        Some(json!({"config": {"services": [service]}})),
    );
    let id = machine["id"].as_str().unwrap().to_owned();
    stage.ask("POST", &id, "/start?wait=true", None);
    let mut stream = UnixStream::connect(stage.folder().join("state/api.sock")).unwrap();
    let path = format!("{MACHINES}/{id}/files?path=/data");
    write!(
        stream,
        "PUT {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 40\r\nconnection: close\r\n\r\n"
    )
    .unwrap();
    for _ in 0..40 {
        std::thread::park_timeout(Duration::from_millis(25));
        stream.write_all(b"x").unwrap();
    }
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut stream, &mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    stage.reach(&id, "suspended");
}
