//! Requests and answers of the Fly Machines API, spelled as fly-go, flyctl and the documentation of
//! that API have it.

use serde_json::{Value, json};

use crate::published_ports::{connect, echo};
use crate::stage::{Stage, free_port};
use crate::support::{MACHINES, poll};

fn status_and_error((status, answer): (u16, Value)) -> (u16, String) {
    let error = answer["error"].as_str().unwrap_or_default();
    (status, error.to_owned())
}

/// Tries to create a machine of a configuration that is refused.
fn refused_create(stage: &Stage, config: &Value) -> (u16, String) {
    let body = json!({"config": config, "skip_launch": true});
    status_and_error(stage.call("POST", MACHINES, Some(body)))
}

#[test]
fn the_time_of_an_exit_has_a_format_that_go_can_parse() {
    let stage = Stage::new();
    let id = stage.start_machine("");
    stage.ask("POST", &id, "/exec", Some(json!({"command": ["poweroff"]})));
    let machine = stage.wait_for(&id, "stopped");
    let exit = &machine["events"][0]["request"]["exit_event"];
    let time = exit["exited_at"].as_str().unwrap();
    assert!(time.starts_with("20") && time.ends_with('Z'), "{exit}");
    assert!(exit["guest_exit_code"].is_i64() && exit["guest_signal"].is_i64());
}

#[test]
fn processes_are_listed_with_their_sockets() {
    let stage = Stage::new();
    let id = stage.start_machine("");
    let expected = json!([{
        "pid": 1, "command": "/init", "directory": "/srv", "cpu": 2, "rss": 3_072,
        "rtime": 7, "stime": 1_800_000_000,
        "listen_sockets": [{"proto": "tcp", "address": "[::]:80"}],
    }]);
    assert_eq!(stage.ask("GET", &id, "/ps", None), expected);
}

#[test]
fn a_request_of_fly_clients_creates_a_machine() {
    let stage = Stage::new();
    let port = free_port();
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
    stage.wait_for(id, "started");
    assert_eq!(echo(connect(port), "hello"), "hello");
    stage.ask("POST", id, "/signal", Some(json!({"signal": 9})));
}

#[test]
fn unsupported_requests_of_fly_clients_are_refused_with_the_reason() {
    let stage = Stage::new();
    let create = |config: Value| refused_create(&stage, &config);
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
    stage.start_machine("");
    assert_eq!(
        stage.call("GET", "/v1/apps/default", None).1["status"],
        "deployed"
    );
    let (status, answer) = stage.call("GET", "/v1/apps/shop", None);
    assert_eq!((status, &answer["status"]), (404, &json!("not_found")));
}

#[test]
fn a_wait_takes_versions_states_and_events_as_fly_clients_send_them() {
    let stage = Stage::new();
    let id = stage.start_machine("");
    let wait = |query: &str| {
        let path = format!("{MACHINES}/{id}/wait?timeout=0.05&{query}");
        status_and_error(stage.call("GET", &path, None))
    };
    let machine = stage.ask("GET", &id, "", None);
    let version = machine["instance_id"].as_str().unwrap();
    assert_eq!(wait(&format!("version={version}")).0, 200);
    assert_eq!(wait("version=another").0, 408);
    assert_eq!(wait("state=stopped&state=started").0, 200);
    assert_eq!(wait("state=settled").0, 200);
    let (status, error) = wait("state=stopped&state=suspended");
    assert_eq!(status, 408);
    assert!(
        error.contains("was not stopped or suspended within"),
        "{error}"
    );
    assert_eq!(wait("state=nowhere").0, 400);
    let newest = machine["events"][0]["id"].as_str().unwrap();
    assert_eq!(wait(&format!("from_event_id={newest}")).0, 408);
    stage.ask("POST", &id, "/suspend?wait=true", None);
    stage.ask("POST", &id, "/start?wait=true", None);
    assert_eq!(wait(&format!("from_event_id={newest}")).0, 200);
    assert_eq!(
        wait(&format!("from_event_id={newest}&state=suspended")).0,
        200
    );
    assert_eq!(wait("state=suspended").0, 408);
    // The event of a new version has the status created, but the machine is not in that state.
    let newest = stage.ask("GET", &id, "", None)["events"][0]["id"].clone();
    let update = json!({"config": {}, "skip_launch": true});
    stage.ask("POST", &id, "", Some(update));
    let since = format!("from_event_id={}", newest.as_str().unwrap());
    assert_eq!(wait(&format!("{since}&state=created")).0, 408);
}

#[test]
fn a_lease_is_acquired_shown_and_released_as_fly_clients_do_it() {
    let stage = Stage::new();
    let id = stage.start_machine("");
    let lease = format!("{MACHINES}/{id}/lease");
    let (status, answer) = stage.call("GET", &lease, None);
    assert_eq!(status, 404);
    assert!(
        answer["error"]
            .as_str()
            .unwrap()
            .contains(" lease not found")
    );
    let (status, acquired) = stage.call("POST", &format!("{lease}?ttl=600"), None);
    assert_eq!((status, &acquired["status"]), (201, &json!("success")));
    let before = stage.ask("GET", &id, "", None);
    let (_, shown) = stage.call("GET", &lease, None);
    assert_eq!(shown, acquired);
    // Neither a read of the lease nor a refused signal changes the machine.
    let signalled = stage.call(
        "POST",
        &format!("{MACHINES}/{id}/signal"),
        Some(json!({"signal": 10})),
    );
    assert_eq!(
        (signalled.0, &signalled.1["status"]),
        (409, &json!("lease_held"))
    );
    assert_eq!(stage.ask("GET", &id, "", None), before);
    assert_eq!(stage.call("POST", &format!("{lease}?ttl=0"), None).0, 400);
    // Metadata can be changed without the nonce.
    let key = format!("{MACHINES}/{id}/metadata/team");
    assert_eq!(
        stage.call("POST", &key, Some(json!({"value": "shop"}))).0,
        204
    );
    assert_eq!(stage.call("GET", &key, None).1["value"], "shop");
    assert_eq!(stage.call("DELETE", &key, None).0, 204);
    let nonce = acquired["data"]["nonce"].as_str().unwrap();
    let (status, refreshed) =
        stage.call_with(&[("fly-machine-lease-nonce", nonce)], "POST", &lease, None);
    assert_eq!((status, &refreshed["data"]["nonce"]), (200, &json!(nonce)));
    let (status, released) = stage.call_with(
        &[("fly-machine-lease-nonce", nonce)],
        "DELETE",
        &lease,
        None,
    );
    assert_eq!(status, 200);
    assert_eq!(released, json!({"status": "success", "data": {"ok": true}}));
}

#[test]
fn a_signal_does_not_change_the_machine() {
    let stage = Stage::new();
    let id = stage.start_machine("");
    let before = stage.ask("GET", &id, "", None);
    stage.ask("POST", &id, "/signal", Some(json!({"signal": "SIGUSR1"})));
    assert_eq!(stage.ask("GET", &id, "", None), before);
}

#[test]
fn a_version_begins_with_a_launch_event() {
    let stage = Stage::new();
    let id = stage.start_machine("");
    let lines = |events: &Value| -> Vec<String> {
        let events = events.as_array().unwrap().iter();
        let line = |event: &Value| {
            let text = |name: &str| event[name].as_str().unwrap().to_owned();
            format!("{} {} {}", text("type"), text("status"), text("source"))
        };
        events.map(line).collect()
    };
    let events = lines(&stage.ask("GET", &id, "/events", None));
    assert_eq!(events.last().unwrap(), "launch created user");
    stage.ask("POST", &id, "", Some(json!({"config": {}})));
    let machine = stage.wait_for(&id, "started");
    let events = lines(&machine["events"]);
    let launch = events.iter().position(|line| line == "launch created user");
    let start = events
        .iter()
        .position(|line| line.starts_with("start started"));
    assert!(start.unwrap() < launch.unwrap(), "{events:?}");
    assert_eq!(lines(&stage.ask("GET", &id, "/events", None)), events);
}

#[test]
fn a_create_with_an_invalid_lease_creates_no_machine() {
    let stage = Stage::new();
    let create = |ttl: u32| {
        let body = json!({"config": {}, "skip_launch": true, "lease_ttl": ttl});
        stage.call("POST", MACHINES, Some(body))
    };
    let (status, answer) = create(86_401);
    assert_eq!(status, 400);
    assert!(answer["error"].as_str().unwrap().starts_with("lease_ttl"));
    assert_eq!(stage.call("GET", MACHINES, None).1, json!([]));
    let (status, machine) = create(0);
    assert_eq!((status, &machine["nonce"]), (200, &json!(null)));
    let id = machine["id"].as_str().unwrap();
    assert!(create(60).1["nonce"].is_string());
    let update = json!({"config": {}, "skip_launch": true, "lease_ttl": 60});
    assert!(stage.ask("POST", id, "", Some(update))["nonce"].is_string());
}

#[test]
fn configured_files_are_in_the_guest_and_checks_of_services_run() {
    let stage = Stage::new();
    let config = json!({
        "files": [{"guest_path": "/etc/motd", "raw_value": "ImhlbGxvIg=="}],
        "services": [{"internal_port": 80, "checks": [{"type": "tcp", "interval": "200ms"}]}],
    });
    let body = json!({"config": config, "skip_service_registration": true});
    let (status, machine) = stage.call("POST", MACHINES, Some(body));
    assert_eq!(
        (status, &machine["cordoned"]),
        (200, &json!(true)),
        "{machine}"
    );
    let id = machine["id"].as_str().unwrap();
    stage.wait_for(id, "started");
    let content = stage.ask("GET", id, "/files?path=/etc/motd", None);
    assert!(content.as_str().unwrap().contains("\"hello\""), "{content}");
    let check = poll("the check", || {
        let machine = stage.ask("GET", id, "", None);
        machine["checks"].get(0).cloned()
    });
    assert_eq!(check["name"], "servicecheck-00-tcp-80");
    assert_eq!(check["status"], "passing");
}

#[test]
fn an_unsupported_field_is_refused_by_its_name() {
    let stage = Stage::new();
    let refused_field = |config: Value| {
        let (status, error) = refused_create(&stage, &config);
        assert_eq!(status, 400, "{error}");
        error.split(": ").next().unwrap().to_owned()
    };
    assert_eq!(
        refused_field(json!({"schedule": "daily"})),
        "config.schedule"
    );
    let file = json!({"guest_path": "/etc/motd", "raw_value": "%"});
    assert_eq!(
        refused_field(json!({"files": [file]})),
        "config.files[0].raw_value"
    );
    let check = json!({"type": "http", "port": 443, "protocol": "https"});
    assert_eq!(
        refused_field(json!({"checks": {"web": check}})),
        "config.checks.web.protocol"
    );
}
