//! What clients of the Fly Machines API send and read, spelled as fly-go, flyctl and that API's
//! documents have it.

use serde_json::json;

use crate::stage::Stage;

const MACHINES: &str = "/v1/apps/default/machines";

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

#[test]
fn what_fly_clients_send_makes_a_machine() {
    let stage = Stage::new();
    let port = crate::stage::free_port();
    let body = json!({
        "region": "ord",
        "config": {
            "image": "registry.fly.io/default:latest",
            "init": {},
            "restart": {"policy": ""},
            "stop_config": {"timeout": "90", "signal": 15},
            "services": [{
                "protocol": "tcp", "internal_port": 80, "autostop": true, "autostart": false,
                "force_instance_key": null,
                "ports": [{"start_port": port, "end_port": port, "handlers": ["http"]}],
            }],
        },
    });
    let (status, machine) = stage.call("POST", MACHINES, Some(body));
    assert_eq!(status, 200, "{machine}");
    let id = machine["id"].as_str().unwrap();
    assert_eq!(machine["region"], "local");
    assert_eq!(machine["image_ref"]["tag"], "latest");
    assert_eq!(machine["config"]["services"][0]["autostop"], true);
    assert_eq!(
        machine["config"]["stop_config"],
        json!({"timeout": "1m30s", "signal": "15"})
    );
    stage.reach(id, "started");
    assert_eq!(crate::echoed(port, "hello"), "hello");
    stage.ask("POST", id, "/signal", Some(json!({"signal": 9})));
}

#[test]
fn what_can_not_be_done_for_fly_clients_says_why() {
    let stage = Stage::new();
    let create = |config| {
        let body = json!({"config": config, "skip_launch": true});
        let (status, answer) = stage.call("POST", MACHINES, Some(body));
        (
            status,
            answer["error"].as_str().unwrap_or_default().to_owned(),
        )
    };
    let port = json!({"port": 443, "handlers": ["tls", "http"]});
    let service = json!({"internal_port": 80, "ports": [port]});
    let (status, error) = create(json!({"services": [service]}));
    assert_eq!(status, 400);
    assert!(error.contains("\"tls\" is not done here"), "{error}");
    let (status, error) = create(json!({"image": "registry.fly.io/shop:v2"}));
    assert_eq!(status, 422);
    assert!(error.contains("no image \"shop:v2\""), "{error}");
    assert_eq!(create(json!({"image": "../shop"})).0, 400);
}

#[test]
fn the_host_has_one_app() {
    let stage = Stage::new();
    let (_, list) = stage.call("GET", "/v1/apps?org_slug=personal", None);
    assert_eq!(
        (&list["total_apps"], &list["apps"][0]["name"]),
        (&json!(1), &json!("default"))
    );
    let (_, app) = stage.call("GET", "/v1/apps/default", None);
    assert_eq!(
        (&app["name"], &app["status"]),
        (&json!("default"), &json!("pending"))
    );
    stage.started("");
    assert_eq!(
        stage.call("GET", "/v1/apps/default", None).1["status"],
        "deployed"
    );
    let (status, answer) = stage.call("GET", "/v1/apps/shop", None);
    assert_eq!((status, &answer["status"]), (404, &json!("not_found")));
}
