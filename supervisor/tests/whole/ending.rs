//! How machines end and what follows: a restart, giving up, removal; and which source their events
//! have. Also if a crash comes in between.

use std::io::Read;

use serde_json::{Value, json};

use crate::published_ports::connect;
use crate::stage::{Stage, free_port};
use crate::support::{MACHINES, config_with, poll};

/// Starts a machine whose configuration has the fields of `changes` in place of the usual ones.
fn start_machine(stage: &Stage, changes: &Value) -> String {
    let mut config = config_with("");
    let changes = changes.as_object().unwrap().clone();
    config.as_object_mut().unwrap().extend(changes);
    stage.start_machine_of(&config)
}

/// Ends the guest's main process. Its exit code is 3, if anybody receives it.
fn end_guest(stage: &Stage, id: &str) {
    let path = format!("{MACHINES}/{id}/exec");
    // The guest may end before it has answered, so any status will do.
    stage.call("POST", &path, Some(json!({"command": ["poweroff"]})));
}

/// Waits for an event whose message contains `words`; the newest of them.
fn wait_for_event(stage: &Stage, id: &str, words: &str) -> Value {
    poll(words, || {
        let machine = stage.ask("GET", id, "", None);
        let events = machine["events"].as_array().unwrap().clone();
        events
            .into_iter()
            .find(|event| event["message"].as_str().unwrap_or("").contains(words))
    })
}

#[test]
fn a_stop_during_a_restart_ends_the_guest_with_its_own_signal() {
    let stage = Stage::new();
    let id = start_machine(&stage, &json!({"guest": {"kernel_args": ["stubborn"]}}));
    stage.ask("POST", &id, "/restart", None);
    stage.wait_for(&id, "restarting");
    let stop = json!({"signal": "SIGTERM", "timeout": "30s"});
    stage.ask("POST", &id, "/stop?wait=true", Some(stop));
    assert_eq!(stage.wait_for(&id, "stopped")["state"], "stopped");
    let report = std::fs::read_to_string(stage.machine_dir(&id).join("exit.json")).unwrap();
    assert!(report.contains("on signal 15"), "{report}");
}

#[test]
fn a_stop_of_a_machine_that_waits_for_its_restart_survives_a_crash() {
    let mut stage = Stage::new();
    let id = start_machine(&stage, &json!({"restart": {"policy": "always"}}));
    // The fourth restart comes after 4 s, so that there is time for a stop.
    for _ in 0..4 {
        let before = stage.wait_for(&id, "started")["generation"].clone();
        stage.kill_vmm(&id);
        poll("the end, or a restart", || {
            let machine = stage.ask("GET", &id, "", None);
            let restarted = machine["generation"] != before && machine["state"] == "started";
            (machine["state"] == "stopped" || restarted).then_some(())
        });
    }
    stage.wait_for(&id, "stopped");
    stage.wait_for_database(&id);
    stage.restart_with_fail_point("stop.forgone");
    stage.crash_during("POST", &format!("{MACHINES}/{id}/stop"), None);
    let machine = stage.ask("GET", &id, "", None);
    assert_eq!(machine["state"], "stopped");
    assert_eq!(restarts_due(&stage), [false]);
}

/// Of each machine in the database, whether it is due to be restarted.
fn restarts_due(stage: &Stage) -> Vec<bool> {
    let database = stage.folder().join("state/mctl.db");
    let connection = rusqlite::Connection::open(database).unwrap();
    let mut facts = connection.prepare("SELECT facts FROM machines").unwrap();
    let rows = facts.query_map([], |row| row.get::<_, String>(0)).unwrap();
    rows.map(|text| {
        let facts: Value = serde_json::from_str(&text.unwrap()).unwrap();
        facts["restart_due"].as_bool().unwrap()
    })
    .collect()
}

#[test]
fn a_machine_that_keeps_failing_is_given_up_and_stays_stopped_until_it_is_started() {
    let stage = Stage::new();
    let policy = json!({"policy": "on-failure", "max_retries": 1});
    let id = start_machine(&stage, &json!({"restart": policy}));
    let fail_twice = || {
        let first = stage.wait_for(&id, "started")["generation"]
            .as_u64()
            .unwrap();
        stage.kill_vmm(&id);
        poll("the restart", || {
            let machine = stage.ask("GET", &id, "", None);
            let restarted = machine["generation"].as_u64().unwrap() > first;
            (restarted && machine["state"] == "started").then_some(())
        });
        stage.kill_vmm(&id);
    };
    fail_twice();
    let end = wait_for_event(&stage, &id, "given up after 1 restarts");
    assert_eq!(
        (&end["type"], &end["status"]),
        (&json!("exit"), &json!("stopped"))
    );
    assert_eq!(stage.ask("GET", &id, "", None)["state"], "stopped");
    // After a start, restarts are counted from zero again.
    stage.ask("POST", &id, "/start?wait=true", None);
    fail_twice();
}

/// Creates a machine whose first boot fails, as all boots do until the returned file is removed.
fn create_unbootable(stage: &Stage, config: &Value) -> (String, std::path::PathBuf) {
    let file = stage.state().join("fail-boots");
    std::fs::write(&file, "").unwrap();
    let body = json!({"config": config, "skip_launch": true});
    let (status, machine) = stage.call("POST", MACHINES, Some(body));
    assert_eq!(status, 200, "{machine}");
    let id = machine["id"].as_str().unwrap().to_owned();
    stage.call("POST", &format!("{MACHINES}/{id}/start?wait=true"), None);
    (id, file)
}

#[test]
fn a_failed_first_boot_is_retried_by_the_restart_policy() {
    let stage = Stage::new();
    let config = json!({"restart": {"policy": "on-failure"}});
    let (id, file) = create_unbootable(&stage, &config);
    wait_for_event(&stage, &id, "cannot open /dev/kvm");
    std::fs::remove_file(file).unwrap();
    stage.wait_for(&id, "started");
}

#[test]
fn a_machine_that_never_boots_is_given_up() {
    let stage = Stage::new();
    let policy = json!({"policy": "on-failure", "max_retries": 2});
    let (id, _) = create_unbootable(&stage, &json!({"restart": policy}));
    wait_for_event(&stage, &id, "given up after 2 restarts");
    assert_eq!(stage.ask("GET", &id, "", None)["state"], "failed");
}

#[test]
fn a_connection_starts_a_machine_whose_first_boot_failed() {
    let stage = Stage::new();
    let port = free_port();
    let service = json!({"internal_port": 80, "ports": [{"port": port}], "autostart": true});
    let config = json!({"services": [service], "restart": {"policy": "no"}});
    let (id, file) = create_unbootable(&stage, &config);
    assert_eq!(stage.wait_for(&id, "failed")["state"], "failed");
    std::fs::remove_file(file).unwrap();
    let begun = std::time::Instant::now();
    assert_eq!(
        crate::published_ports::echo(connect(port), "hello"),
        "hello"
    );
    // It had failed just before, so the connection was held for a moment.
    assert!(begun.elapsed() < std::time::Duration::from_secs(30));
    assert_eq!(stage.ask("GET", &id, "", None)["state"], "started");
}

#[test]
fn an_ephemeral_machine_is_removed_when_it_ends() {
    let stage = Stage::new();
    let id = start_machine(&stage, &json!({"auto_destroy": true}));
    end_guest(&stage, &id);
    stage.wait_until_empty();
}

#[test]
fn an_ephemeral_machine_is_removed_when_it_is_stopped() {
    let stage = Stage::new();
    let id = start_machine(&stage, &json!({"auto_destroy": true}));
    stage.ask("POST", &id, "/stop", None);
    stage.ask("GET", &id, "/wait?state=destroyed", None);
    stage.wait_until_empty();
}

/// Ends the machine by `end` and crashes at `step`, which comes after that.
fn crash_at_the_end(step: &str, config: &Value, end: impl Fn(&Stage, &str)) -> (Stage, String) {
    let mut stage = Stage::new();
    let id = start_machine(&stage, config);
    stage.wait_for_database(&id);
    stage.restart_with_fail_point(step);
    assert_eq!(stage.exec(&id).0, 200);
    end(&stage, &id);
    stage.restart_after_crash();
    (stage, id)
}

#[test]
fn an_ephemeral_machine_is_removed_even_if_a_crash_follows_its_end() {
    for step in ["end.halted", "end.destroy_due"] {
        let (stage, _) = crash_at_the_end(step, &json!({"auto_destroy": true}), Stage::kill_vmm);
        stage.wait_until_empty();
    }
}

#[test]
fn an_ephemeral_machine_is_removed_even_if_a_crash_follows_its_stop() {
    let config = json!({"auto_destroy": true});
    let stop = |stage: &Stage, id: &str| {
        // The stop goes on without its client, once the supervisor has read the request.
        let mut connection = stage.send("POST", &format!("{MACHINES}/{id}/stop"), None);
        let _ = connection.read(&mut [0]);
    };
    let (stage, _) = crash_at_the_end("stop.halted", &config, stop);
    stage.wait_until_empty();
}

#[test]
fn a_restart_by_policy_happens_even_if_a_crash_follows_the_end() {
    for step in ["end.halted", "start.stored", "start.spawned", "start.ready"] {
        let config = json!({"restart": {"policy": "always"}});
        let (stage, id) = crash_at_the_end(step, &config, Stage::kill_vmm);
        let machine = stage.wait_for(&id, "started");
        assert!(machine["generation"].as_u64() > Some(1), "{machine}");
        assert_eq!(stage.exec(&id).0, 200);
        assert_eq!(stage.vmms().len(), 1);
    }
}

#[test]
fn a_machine_that_was_given_up_stays_stopped_after_a_crash() {
    let policy = json!({"policy": "on-failure", "max_retries": 0});
    let config = json!({"restart": policy});
    let (stage, id) = crash_at_the_end("end.halted", &config, Stage::kill_vmm);
    wait_for_event(&stage, &id, "given up after 0 restarts");
    assert_eq!(stage.ask("GET", &id, "", None)["state"], "stopped");
    assert_eq!(restarts_due(&stage), [false]);
}

#[test]
fn a_cancelled_suspend_leaves_a_usable_guest_even_if_a_crash_follows() {
    let mut stage = Stage::new();
    let id = stage.start_machine("slow-suspend");
    let vmm = stage.vmm(&id);
    stage.wait_for_database(&id);
    stage.restart_with_fail_point("suspend.cancelled");
    assert_eq!(stage.exec(&id).0, 200);
    stage.ask("POST", &id, "/suspend", None);
    stage.wait_for(&id, "suspending");
    stage.crash_during("POST", &format!("{MACHINES}/{id}/start"), None);
    // The cancellation was not stored, so the new supervisor begins the suspend again. A start cancels
    // it.
    stage.ask("POST", &id, "/start?wait=true", None);
    assert_eq!(stage.exec(&id).0, 200);
    assert_eq!(stage.vmm(&id), vmm);
}

#[test]
fn a_suspend_that_completes_at_its_deadline_counts() {
    let mut stage = Stage::new();
    stage.kill();
    stage.start(&["--suspend-timeout", "300ms"]);
    let id = stage.start_machine("slow-suspend commit-late");
    let boot_id = stage.boot_id(&id);
    stage.ask("POST", &id, "/suspend", None);
    stage.wait_for(&id, "suspended");
    let answer = stage.ask("POST", &id, "/start?wait=true", None);
    assert_eq!(answer["start"]["kind"], "resumed", "{answer}");
    assert_eq!(stage.boot_id(&id), boot_id);
}

#[test]
fn an_adoption_that_a_crash_interrupted_begins_again() {
    let mut stage = Stage::new();
    let id = stage.start_machine("");
    let vmm = stage.vmm(&id);
    stage.wait_for_database(&id);
    stage.kill();
    stage.start_with_fail_point("adopt.ready");
    stage.restart_after_crash();
    assert_eq!(stage.exec(&id).0, 200);
    assert_eq!(stage.vmm(&id), vmm);
}

#[test]
fn events_name_the_user_or_the_supervisor_as_their_source() {
    let stage = Stage::new();
    let port = free_port();
    let service = json!({"internal_port": 80, "ports": [{"port": port}], "autostart": true,
        "autostop": "suspend", "idle_timeout": "200ms"});
    let id = start_machine(&stage, &json!({"services": [service]}));
    stage.wait_for(&id, "suspended");
    let source = |status: &str| {
        let machine = stage.ask("GET", &id, "", None);
        let events = machine["events"].as_array().unwrap().clone();
        let found = events.into_iter().find(|event| event["status"] == status);
        found.unwrap()["source"].clone()
    };
    assert_eq!(source("suspending"), "flyd");
    stage.ask("POST", &id, "/start?wait=true", None);
    assert_eq!(source("starting"), "user");
    stage.ask("POST", &id, "/stop?wait=true", None);
    assert_eq!(source("stopping"), "user");
    let client = connect(port);
    stage.wait_for(&id, "started");
    assert_eq!(source("starting"), "flyd");
    drop(client);
}

#[test]
fn machines_are_adopted_even_if_a_log_cannot_be_opened() {
    let mut stage = Stage::new();
    let ids = [stage.start_machine(""), stage.start_machine("")];
    stage.wait_for_database(&ids[0]);
    stage.kill();
    let log = stage.machine_dir(&ids[0]).join("log.ndjson");
    std::fs::remove_file(&log).unwrap();
    std::fs::create_dir(&log).unwrap();
    stage.start(&[]);
    for id in &ids {
        assert_eq!(stage.exec(id).0, 200);
    }
    wait_for_event(&stage, &ids[0], "its log cannot be opened");
}
