//! Published ports: what is carried, what is held, and what counts as use of a machine.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::stage::{Stage, free_port};
use crate::support::{DEADLINE, poll};

/// Creates a machine with `service`, which publishes its port 80. Returns the machine's id and the
/// port on the host.
fn create_with_service(stage: &Stage, service: &Value) -> (String, u16) {
    let port = free_port();
    let mut service = service.clone();
    service["internal_port"] = json!(80);
    service["ports"] = json!([{"port": port}]);
    (stage.create(&json!({"services": [service]})), port)
}

/// Connects to a published port as soon as the supervisor listens on it.
pub(crate) fn connect(port: u16) -> TcpStream {
    let stream = poll("the port", || TcpStream::connect(("127.0.0.1", port)).ok());
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// Sends `text` to the guest, which echoes it up to its end, and returns the echo.
pub(crate) fn echo(mut stream: TcpStream, text: &str) -> String {
    stream.write_all(text.as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_published_port_carries_bytes_both_ways_and_half_closes() {
    let stage = Stage::new();
    let (id, port) = create_with_service(&stage, &json!({"protocol": "tcp"}));
    stage.wait_for(&id, "started");
    let text = "x".repeat(300_000);
    assert_eq!(echo(connect(port), &text).len(), text.len());
}

#[test]
fn connections_beyond_a_machines_share_wait_whatever_their_port() {
    let mut stage = Stage::new();
    stage.kill();
    stage.start(&["--guest-connections", "1"]);
    let ports = [free_port(), free_port()];
    let services = ports.map(|port| json!({"internal_port": 80, "ports": [{"port": port}]}));
    let id = stage.start_machine_of(&json!({"services": services}));
    let [mut first, mut second] = ports.map(|port| {
        let mut stream = connect(port);
        stream.write_all(b"x").unwrap();
        stream
    });
    // Which of them comes first is not said.
    let limit = Some(Duration::from_millis(300));
    first.set_read_timeout(limit).unwrap();
    second.set_read_timeout(limit).unwrap();
    let served = poll("one of them", || {
        let served = [first.read(&mut [0]).is_ok(), second.read(&mut [0]).is_ok()];
        served.contains(&true).then_some(served)
    });
    assert_ne!(served[0], served[1], "both of machine {id}");
    let (done, mut held) = if served[0] {
        (first, second)
    } else {
        (second, first)
    };
    drop(done);
    poll("the other", || held.read(&mut [0]).ok());
}

#[test]
fn a_connection_to_a_suspended_machine_is_held_until_it_runs() {
    let stage = Stage::new();
    let (id, port) = create_with_service(&stage, &json!({"autostart": true}));
    stage.wait_for(&id, "started");
    stage.ask("POST", &id, "/suspend?wait=true", None);
    assert_eq!(echo(connect(port), "hello"), "hello");
    let machine = stage.ask("GET", &id, "", None);
    assert_eq!(machine["last_start"]["kind"], "resumed");
}

#[test]
fn an_idle_machine_is_suspended_but_not_while_a_connection_uses_it() {
    let stage = Stage::new();
    let idle_timeout = Duration::from_millis(300);
    let service = json!({"autostop": "suspend", "idle_timeout": "300ms", "autostart": true});
    let (id, port) = create_with_service(&stage, &service);
    stage.wait_for(&id, "suspended");
    // The connection starts the machine.
    let mut stream = connect(port);
    let begun = Instant::now();
    while begun.elapsed() < idle_timeout * 3 {
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
    }
    assert_eq!(stage.ask("GET", &id, "", None)["state"], "started");
    drop(stream);
    stage.wait_for(&id, "suspended");
}

#[test]
fn check_results_are_shown_and_a_failing_readiness_check_holds_connections() {
    let stage = Stage::new();
    let (id, port) = create_with_service(&stage, &json!({}));
    let mut config = stage.wait_for(&id, "started")["config"].clone();
    config["checks"] = json!({
        "web": {"type": "tcp", "port": 80, "interval": "200ms"},
        "never": {"type": "exec", "command": ["false"], "interval": "200ms", "kind": "readiness"},
    });
    stage.ask("POST", &id, "", Some(json!({"config": config})));
    let check = |name: &str| {
        let machine = stage.ask("GET", &id, "", None);
        let checks = machine["checks"].as_array().unwrap();
        checks.iter().find(|check| check["name"] == name).cloned()
    };
    poll("both results", || {
        (check("web")?["status"] == "passing" && check("never")?["status"] == "critical")
            .then_some(())
    });
    let mut stream = connect(port);
    stream.write_all(b"x").unwrap();
    // While nothing comes back the check fails again, more than once.
    for _ in 0..2 {
        let before = check("never").unwrap()["updated_at"].clone();
        poll("the next result", || {
            (check("never")?["updated_at"] != before).then_some(())
        });
    }
    stream.set_nonblocking(true).unwrap();
    let held = stream.read(&mut [0]).unwrap_err();
    assert_eq!(held.kind(), io::ErrorKind::WouldBlock);
}
