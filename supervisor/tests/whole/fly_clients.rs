//! What clients of the Fly Machines API send and read, spelled as fly-go, flyctl and that API's
//! documents have it.

use serde_json::json;

use crate::stage::Stage;

#[test]
fn an_exit_is_told_at_a_moment_that_go_can_read() {
    let stage = Stage::new();
    let id = stage.started("");
    stage.ask("POST", &id, "/exec", Some(json!({"command": ["poweroff"]})));
    let machine = stage.reach(&id, "stopped");
    let exit = &machine["events"][0]["request"]["exit_event"];
    let moment = exit["exited_at"].as_str().unwrap();
    assert!(moment.starts_with("20") && moment.ends_with('Z'), "{exit}");
    assert!(exit["guest_exit_code"].is_i64() && exit["guest_signal"].is_i64());
}

#[test]
fn processes_are_listed_with_their_sockets() {
    let stage = Stage::new();
    let id = stage.started("");
    let expected = json!([{
        "pid": 1, "command": "/init", "directory": "/srv", "cpu": 2, "rss": 3_072,
        "rtime": 7, "stime": 1_800_000_000,
        "listen_sockets": [{"proto": "tcp", "address": "[::]:80"}],
    }]);
    assert_eq!(stage.ask("GET", &id, "/ps", None), expected);
}
