//! Starts, restarts, updates and leases, and the requests that are refused.

use serde_json::{Value, json};

use crate::stage::Stage;
use crate::support::{MACHINES, config_with, poll};

#[test]
fn a_start_fails_if_the_guest_never_answers() {
    let mut stage = Stage::new();
    stage.kill();
    stage.start(&["--start-timeout", "2s"]);
    let id = stage.create(&config_with("deaf"));
    let machine = stage.wait_for(&id, "failed");
    let message = machine["events"][0]["message"].as_str().unwrap();
    assert!(message.contains("did not become ready"), "{message}");
    assert!(stage.vmm(&id).is_none());
}

#[test]
fn a_machine_whose_vmm_was_killed_is_restarted_by_its_policy() {
    let stage = Stage::new();
    let id = stage.start_machine_of(&json!({"restart": {"policy": "always"}}));
    let generation = |machine: &Value| machine["generation"].as_u64().unwrap();
    let first = generation(&stage.ask("GET", &id, "", None));
    stage.kill_vmm(&id);
    poll("the next generation", || {
        let machine = stage.ask("GET", &id, "", None);
        (generation(&machine) > first && machine["state"] == "started").then_some(())
    });
}

#[test]
fn a_leased_machine_refuses_requests_without_the_nonce() {
    let stage = Stage::new();
    let id = stage.start_machine("");
    let lease = stage.ask("POST", &id, "/lease", Some(json!({"ttl": 60})));
    let nonce = lease["data"]["nonce"].as_str();
    assert!(nonce.is_some_and(|nonce| !nonce.is_empty()), "{lease}");
    let path = format!("{MACHINES}/{id}/stop");
    let (status, answer) = stage.call("POST", &path, None);
    assert_eq!((status, &answer["status"]), (409, &json!("lease_held")));
}

#[test]
fn an_update_makes_a_new_version_and_boots_it() {
    let stage = Stage::new();
    let id = stage.start_machine("");
    let before = stage.ask("GET", &id, "", None);
    let config = json!({"metadata": {"foo": "bar"}});
    stage.ask("POST", &id, "", Some(json!({"config": config})));
    let after = poll("the new version", || {
        let machine = stage.ask("GET", &id, "", None);
        (machine["state"] == "started" && machine["generation"] != before["generation"])
            .then_some(machine)
    });
    assert_ne!(after["instance_id"], before["instance_id"]);
    let versions = stage.ask("GET", &id, "/versions", None);
    assert_eq!(versions.as_array().unwrap().len(), 2);
}

#[test]
fn impossible_requests_are_refused_each_with_its_own_status() {
    let stage = Stage::new();
    let id = stage.start_machine("");
    let path = format!("{MACHINES}/{id}");
    let (status, answer) = stage.call("DELETE", &path, None);
    assert_eq!(
        (status, &answer["details"]["state"]),
        (412, &json!("started"))
    );
    let status = |method: &str, path: &str, body| stage.call(method, path, body).0;
    assert_eq!(status("GET", &format!("{MACHINES}/none"), None), 404);
    assert_eq!(status("GET", "/v1/apps/other/machines", None), 404);
    assert_eq!(status("POST", MACHINES, Some(json!({}))), 400);
    assert_eq!(status("PUT", &path, None), 405);
}
