//! How machines end, and what comes of it: restarts, giving up, removal, who is said to be the
//! cause; also where a crash comes in between.

use std::io::Read;

use serde_json::{Value, json};

use crate::stage::{Stage, free_port, poll};

const MACHINES: &str = "/v1/apps/default/machines";

/// A started machine of that configuration, merged into the usual one.
fn started(stage: &Stage, config: &Value) -> String {
    let mut whole = json!({"init": {"exec": ["main"]}, "restart": {"policy": "no"}});
    let fields = config.as_object().unwrap().clone();
    whole.as_object_mut().unwrap().extend(fields);
    let (status, machine) = stage.call("POST", MACHINES, Some(json!({"config": whole})));
    assert_eq!(status, 200, "{machine}");
    let id = machine["id"].as_str().unwrap().to_owned();
    stage.reach(&id, "started");
    id
}

/// The guest's main process ends, with the code 3 as far as anybody hears of it.
fn end_guest(stage: &Stage, id: &str) {
    let path = format!("{MACHINES}/{id}/exec");
    // The answer may be lost with the guest.
    stage.call("POST", &path, Some(json!({"command": ["poweroff"]})));
}

fn kill_guest(stage: &Stage, id: &str) {
    let vmm = stage.vmm(id).unwrap();
    rustix::process::kill_process(vmm, rustix::process::Signal::KILL).unwrap();
}

fn gone(stage: &Stage) {
    poll("its removal", || {
        let (_, list) = stage.call("GET", MACHINES, None);
        (list == json!([]) && stage.machines_on_disk().is_empty()).then_some(())
    });
}

/// Waits for an event whose message contains `words`, and its newest.
fn event(stage: &Stage, id: &str, words: &str) -> Value {
    poll(words, || {
        let machine = stage.ask("GET", id, "", None);
        let events = machine["events"].as_array().unwrap().clone();
        events
            .into_iter()
            .find(|event| event["message"].as_str().unwrap_or("").contains(words))
    })
}

#[test]
fn a_stop_that_meets_a_restart_ends_the_guest_as_it_says() {
    let stage = Stage::new();
    let id = started(&stage, &json!({"guest": {"kernel_args": ["stubborn"]}}));
    stage.ask("POST", &id, "/restart", None);
    stage.reach(&id, "restarting");
    let order = json!({"signal": "SIGTERM", "timeout": "30s"});
    stage.ask("POST", &id, "/stop?wait=true", Some(order));
    assert_eq!(stage.reach(&id, "stopped")["state"], "stopped");
    let report = std::fs::read_to_string(stage.directory(&id).join("exit.json")).unwrap();
    assert!(report.contains("told so by signal 15"), "{report}");
}

#[test]
fn a_stop_of_a_machine_that_waits_for_its_restart_outlives_a_crash() {
    let mut stage = Stage::new();
    let id = started(&stage, &json!({"restart": {"policy": "always"}}));
    // The fourth wait takes 4 s.
    for _ in 0..4 {
        let before = stage.reach(&id, "started")["generation"].clone();
        kill_guest(&stage, &id);
        poll("its end", || {
            let machine = stage.ask("GET", &id, "", None);
            let later = machine["generation"] != before && machine["state"] == "started";
            (machine["state"] == "stopped" || later).then_some(())
        });
    }
    stage.reach(&id, "stopped");
    stage.ask("GET", &id, "/timings", None);
    stage.rearm("stop.forgone");
    stage.crash_by("POST", &format!("{MACHINES}/{id}/stop"), None);
    let machine = stage.ask("GET", &id, "", None);
    assert_eq!(machine["state"], "stopped");
    assert_eq!(restarts_due(&stage), [false]);
}

/// What the database has about planned restarts.
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
    let id = started(&stage, &json!({"restart": policy}));
    let fail_twice = || {
        let first = stage.reach(&id, "started")["generation"].as_u64().unwrap();
        kill_guest(&stage, &id);
        poll("its restart", || {
            let machine = stage.ask("GET", &id, "", None);
            let again = machine["generation"].as_u64().unwrap() > first;
            (again && machine["state"] == "started").then_some(())
        });
        kill_guest(&stage, &id);
    };
    fail_twice();
    let end = event(&stage, &id, "given up after 1 restarts");
    assert_eq!(
        (&end["type"], &end["status"]),
        (&json!("exit"), &json!("stopped"))
    );
    assert_eq!(stage.ask("GET", &id, "", None)["state"], "stopped");
    // A start begins a new row of restarts.
    stage.ask("POST", &id, "/start?wait=true", None);
    fail_twice();
}

#[test]
fn an_ephemeral_machine_is_removed_when_it_ends() {
    let stage = Stage::new();
    let id = started(&stage, &json!({"auto_destroy": true}));
    end_guest(&stage, &id);
    gone(&stage);
}

#[test]
fn an_ephemeral_machine_is_removed_when_it_is_stopped() {
    let stage = Stage::new();
    let id = started(&stage, &json!({"auto_destroy": true}));
    stage.ask("POST", &id, "/stop", None);
    stage.ask("GET", &id, "/wait?state=destroyed", None);
    gone(&stage);
}

/// Crashes at `step` behind `ending`, which may get no answer.
fn crash_at_the_end(step: &str, config: &Value, ending: impl Fn(&Stage, &str)) -> (Stage, String) {
    let mut stage = Stage::new();
    let id = started(&stage, config);
    stage.ask("GET", &id, "/timings", None);
    stage.rearm(step);
    assert_eq!(stage.exec(&id).0, 200);
    ending(&stage, &id);
    stage.follow_crash();
    (stage, id)
}

#[test]
fn an_ephemeral_machine_is_removed_where_a_crash_follows_its_end() {
    for step in ["end.halted", "end.destroy_due"] {
        let (stage, _) = crash_at_the_end(step, &json!({"auto_destroy": true}), kill_guest);
        gone(&stage);
    }
}

#[test]
fn an_ephemeral_machine_is_removed_where_a_crash_follows_its_stop() {
    let config = json!({"auto_destroy": true});
    let stop = |stage: &Stage, id: &str| {
        // An order goes on without whoever gave it, once it was read.
        let mut request = stage.send("POST", &format!("{MACHINES}/{id}/stop"), None);
        let _ = request.read(&mut [0]);
    };
    let (stage, _) = crash_at_the_end("stop.halted", &config, stop);
    gone(&stage);
}

#[test]
fn a_restart_by_policy_comes_where_a_crash_follows_the_end() {
    for step in ["end.halted", "start.stored", "start.spawned", "start.ready"] {
        let config = json!({"restart": {"policy": "always"}});
        let (stage, id) = crash_at_the_end(step, &config, kill_guest);
        let machine = stage.reach(&id, "started");
        assert!(machine["generation"].as_u64() > Some(1), "{machine}");
        assert_eq!(stage.exec(&id).0, 200);
        assert_eq!(stage.vmms(), 1);
    }
}

#[test]
fn a_machine_that_was_given_up_stays_stopped_over_a_crash() {
    let policy = json!({"policy": "on-failure", "max_retries": 0});
    let config = json!({"restart": policy});
    let (stage, id) = crash_at_the_end("end.halted", &config, kill_guest);
    event(&stage, &id, "given up after 0 restarts");
    assert_eq!(stage.ask("GET", &id, "", None)["state"], "stopped");
    assert_eq!(restarts_due(&stage), [false]);
}

#[test]
fn a_suspend_that_was_broken_off_leaves_a_usable_guest_where_a_crash_follows() {
    let mut stage = Stage::new();
    let id = stage.started("slow-suspend");
    let vmm = stage.vmm(&id);
    stage.ask("GET", &id, "/timings", None);
    stage.rearm("suspend.cancelled");
    assert_eq!(stage.exec(&id).0, 200);
    stage.ask("POST", &id, "/suspend", None);
    stage.reach(&id, "suspending");
    stage.crash_by("POST", &format!("{MACHINES}/{id}/start"), None);
    // What was broken off unseen is begun anew, as it was stored; a start has the last word.
    stage.ask("POST", &id, "/start?wait=true", None);
    assert_eq!(stage.exec(&id).0, 200);
    assert_eq!(stage.vmm(&id), vmm);
}

#[test]
fn a_suspend_that_is_done_at_its_deadline_counts() {
    let mut stage = Stage::new();
    stage.kill();
    stage.start(&["--suspend-timeout", "300ms"]);
    let id = stage.started("slow-suspend commit-late");
    let boot_id = stage.boot_id(&id);
    stage.ask("POST", &id, "/suspend", None);
    stage.reach(&id, "suspended");
    let answer = stage.ask("POST", &id, "/start?wait=true", None);
    assert_eq!(answer["start"]["kind"], "resumed", "{answer}");
    assert_eq!(stage.boot_id(&id), boot_id);
}

#[test]
fn a_take_over_that_a_crash_cut_off_is_begun_anew() {
    let mut stage = Stage::new();
    let id = stage.started("");
    let vmm = stage.vmm(&id);
    stage.ask("GET", &id, "/timings", None);
    stage.kill();
    stage.start_to_die("adopt.ready");
    stage.follow_crash();
    assert_eq!(stage.exec(&id).0, 200);
    assert_eq!(stage.vmm(&id), vmm);
}

#[test]
fn events_tell_whether_a_user_or_the_supervisor_was_the_cause() {
    let stage = Stage::new();
    let port = free_port();
    let service = json!({"internal_port": 80, "ports": [{"port": port}], "autostart": true,
        "autostop": "suspend", "idle_timeout": "200ms"});
    let id = started(&stage, &json!({"services": [service]}));
    stage.reach(&id, "suspended");
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
    let client = poll("the port", || {
        std::net::TcpStream::connect(("127.0.0.1", port)).ok()
    });
    stage.reach(&id, "started");
    assert_eq!(source("starting"), "flyd");
    drop(client);
}

#[test]
fn a_log_that_can_not_be_opened_keeps_no_machine_from_being_taken_over() {
    let mut stage = Stage::new();
    let ids = [stage.started(""), stage.started("")];
    stage.ask("GET", &ids[0], "/timings", None);
    stage.kill();
    let log = stage.directory(&ids[0]).join("log.ndjson");
    std::fs::remove_file(&log).unwrap();
    std::fs::create_dir(&log).unwrap();
    stage.start(&[]);
    for id in &ids {
        assert_eq!(stage.exec(id).0, 200);
    }
    event(&stage, &ids[0], "its log can't be opened");
}
