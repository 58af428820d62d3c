//! Suspends and resumes: what they keep, what they report, and how they fail.

use std::fs;

use serde_json::{Value, json};

use crate::stage::Stage;
use crate::support::{MACHINES, config_with, poll};

#[test]
fn a_machine_is_suspended_resumed_stopped_and_destroyed() {
    let stage = Stage::new();
    let id = stage.start_machine("");
    let boot_id = stage.boot_id(&id);
    stage.ask("POST", &id, "/suspend?wait=true", None);
    assert_eq!(stage.wait_for(&id, "suspended")["state"], "suspended");
    assert!(stage.vmm(&id).is_none());
    let answer = stage.ask("POST", &id, "/start?wait=true", None);
    assert_eq!(answer["previous_state"], "suspended");
    assert_eq!(answer["start"]["kind"], "resumed");
    assert_eq!(stage.boot_id(&id), boot_id);
    stage.ask("POST", &id, "/stop?wait=true", None);
    stage.ask("DELETE", &id, "", None);
    assert!(stage.machine_dirs().is_empty());
    let (_, list) = stage.call("GET", MACHINES, None);
    assert_eq!(list, json!([]));
}

/// The text `field` of each object of a list.
fn texts<'a>(list: &'a Value, field: &str) -> Vec<&'a str> {
    let objects = list.as_array().unwrap().iter();
    objects
        .map(|object| object[field].as_str().unwrap())
        .collect()
}

#[test]
fn phases_of_every_timing_sum_to_its_total() {
    let stage = Stage::new();
    let id = stage.start_machine("");
    stage.ask("POST", &id, "/suspend?wait=true", None);
    stage.ask("POST", &id, "/start?wait=true", None);
    let timings = stage.ask("GET", &id, "/timings", None);
    assert_eq!(texts(&timings, "operation"), ["resume", "suspend", "start"]);
    for timing in timings.as_array().unwrap() {
        let phases = timing["phases"].as_array().unwrap().iter();
        let sum: f64 = phases.map(|phase| phase["ms"].as_f64().unwrap()).sum();
        let total = timing["total_ms"].as_f64().unwrap();
        assert!((sum - total).abs() < 0.01, "{timing}");
        let names = texts(&timing["phases"], "name");
        assert_eq!(names.last(), Some(&"unattributed"));
    }
    let found = texts(&timings[0]["phases"], "name");
    for expected in [
        "admission",
        "spawn",
        "vmm_start",
        "connect",
        "first_status",
        "monitor_reopened",
    ] {
        assert!(found.contains(&expected), "{expected} in {found:?}");
    }
}

/// Outcomes of the readiness attempts of a machine's last start.
fn outcomes(machine: &Value) -> Vec<&str> {
    texts(&machine["readiness"], "outcome")
}

#[test]
fn refused_attempts_are_shown_with_their_ports() {
    let stage = Stage::new();
    let id = stage.start_machine("rst=3");
    stage.ask("POST", &id, "/suspend?wait=true", None);
    stage.ask("POST", &id, "/start?wait=true", None);
    let machine = stage.ask("GET", &id, "", None);
    assert_eq!(outcomes(&machine), ["reset", "reset", "reset", "ok"]);
    let attempts = machine["readiness"].as_array().unwrap().iter();
    let ports: Vec<u64> = attempts
        .map(|attempt| attempt["local_port"].as_u64().unwrap())
        .collect();
    let first = 1 << 30;
    assert_eq!(ports, [first, first + 1, first + 2, first + 3]);
}

#[test]
fn if_the_monitor_opens_first_its_failed_attempts_come_before_the_status_check() {
    let stage = Stage::new();
    let mut config = config_with("rst=3");
    config["vsock"] = json!({"monitor_first": true});
    let id = stage.start_machine_of(&config);
    stage.ask("POST", &id, "/suspend?wait=true", None);
    stage.ask("POST", &id, "/start?wait=true", None);
    let machine = stage.ask("GET", &id, "", None);
    assert_eq!(outcomes(&machine), ["reset", "reset", "reset", "ok", "ok"]);
}

#[test]
fn a_failed_suspend_leaves_the_machine_started_and_gives_the_reason() {
    let stage = Stage::new();
    let id = stage.start_machine("fail-suspend");
    let path = format!("{MACHINES}/{id}/suspend?wait=true");
    let (status, answer) = stage.call("POST", &path, None);
    assert_eq!(status, 409, "{answer}");
    let machine = stage.wait_for(&id, "started");
    let message = machine["events"][0]["message"].as_str().unwrap();
    assert!(message.contains("no space left"), "{message}");
    // The guest still answers.
    stage.boot_id(&id);
}

#[test]
fn a_start_cancels_a_suspend_and_the_same_guest_runs_on() {
    let stage = Stage::new();
    let id = stage.start_machine("slow-suspend");
    let vmm = stage.vmm(&id);
    stage.ask("POST", &id, "/suspend", None);
    stage.wait_for(&id, "suspending");
    let answer = stage.ask("POST", &id, "/start?wait=true", None);
    assert_eq!(answer["start"]["kind"], "suspend_cancelled");
    assert_eq!(stage.wait_for(&id, "started")["state"], "started");
    assert_eq!(stage.vmm(&id), vmm);
}

#[test]
fn a_machine_whose_image_is_refused_is_cold_booted_with_the_reason() {
    let stage = Stage::new();
    let id = stage.start_machine("refuse-image");
    stage.ask("POST", &id, "/suspend?wait=true", None);
    let answer = stage.ask("POST", &id, "/start?wait=true", None);
    let expected = json!({"kind": "cold_booted", "reason": "checksum mismatch"});
    assert_eq!(answer["start"], expected);
    let aside = stage
        .machine_dir(&id)
        .join("set-aside/image-1/manifest.json");
    assert!(aside.exists(), "the image can still be looked at");
    assert!(!stage.machine_dir(&id).join("image").exists());
}

/// The state of a machine after a start that must fail, and why it failed.
fn failed_start(stage: &Stage, id: &str) -> (Value, String) {
    let path = format!("{MACHINES}/{id}/start?wait=true");
    let (status, answer) = stage.call("POST", &path, None);
    assert_eq!(status, 409, "{answer}");
    let state = stage.ask("GET", id, "", None)["state"].clone();
    (state, answer["error"].as_str().unwrap().to_owned())
}

#[test]
fn a_machine_whose_image_does_not_fit_the_host_keeps_it_until_its_user_decides() {
    let stage = Stage::new();
    let id = stage.start_machine("unfit-image");
    stage.ask("POST", &id, "/suspend?wait=true", None);
    for _ in 0..2 {
        let (state, why) = failed_start(&stage, &id);
        assert_eq!(state, "suspended");
        assert!(
            why.contains("lacks avx2") && why.contains("--cold"),
            "{why}"
        );
        assert!(stage.machine_dir(&id).join("image/manifest.json").exists());
    }
    let answer = stage.ask("POST", &id, "/start?wait=true&cold=true", None);
    let expected = json!({"kind": "cold_booted", "reason": "a cold start was requested"});
    assert_eq!(answer["start"], expected);
    let (_, list) = stage.call("GET", "/v1/set-aside", None);
    assert_eq!(list.as_array().unwrap().len(), 1, "{list}");
    assert_eq!(list[0]["machine_id"], json!(id));
    assert_eq!(list[0]["generation"], 1);
    assert!(
        list[0]["path"]
            .as_str()
            .unwrap()
            .ends_with("set-aside/image-1")
    );
    stage.ask("DELETE", &id, "/set-aside/1", None);
    assert_eq!(stage.call("GET", "/v1/set-aside", None).1, json!([]));
    let again = format!("{MACHINES}/{id}/set-aside/1");
    assert_eq!(stage.call("DELETE", &again, None).0, 404);
}

#[test]
fn a_machine_whose_image_cannot_be_looked_at_keeps_it() {
    let stage = Stage::new();
    let id = stage.start_machine("unreadable-image");
    let boot_id = stage.boot_id(&id);
    stage.ask("POST", &id, "/suspend?wait=true", None);
    let obstacle = stage.machine_dir(&id).join("image/unreadable");
    fs::write(&obstacle, "").unwrap();
    let (state, why) = failed_start(&stage, &id);
    assert_eq!(state, "suspended");
    assert!(why.contains("EIO"), "{why}");
    fs::remove_file(obstacle).unwrap();
    let answer = stage.ask("POST", &id, "/start?wait=true", None);
    assert_eq!(answer["start"]["kind"], "resumed", "{answer}");
    assert_eq!(stage.boot_id(&id), boot_id);
}

#[test]
fn a_cold_start_of_a_machine_without_an_image_is_a_start() {
    let stage = Stage::new();
    let id = stage.start_machine("");
    stage.ask("POST", &id, "/stop?wait=true", None);
    let answer = stage.ask("POST", &id, "/start?wait=true&cold=true", None);
    assert_eq!(answer["start"]["kind"], "booted", "{answer}");
    let (status, answer) = stage.call("POST", &format!("{MACHINES}/{id}/start?cold=maybe"), None);
    assert_eq!(status, 400, "{answer}");
}

#[test]
fn a_machine_whose_image_is_missing_is_cold_booted_with_the_reason() {
    let stage = Stage::new();
    let id = stage.start_machine("");
    stage.ask("POST", &id, "/suspend?wait=true", None);
    fs::remove_dir_all(stage.machine_dir(&id).join("image")).unwrap();
    let answer = stage.ask("POST", &id, "/start?wait=true", None);
    let expected = json!({"kind": "cold_booted", "reason": "image missing"});
    assert_eq!(answer["start"], expected);
}

#[test]
fn a_resume_whose_vmm_cannot_be_run_leaves_the_machine_suspended() {
    let mut stage = Stage::new();
    let id = stage.start_machine("");
    stage.ask("POST", &id, "/suspend?wait=true", None);
    let boot_id = stage.ask("GET", &id, "/timings", None)[1]["guest"]["boot_id"].clone();
    stage.kill();
    stage.start(&["--vmm", "/nowhere/mctl-vmm"]);
    let path = format!("{MACHINES}/{id}/start?wait=true");
    let (status, answer) = stage.call("POST", &path, None);
    assert_eq!(
        (status, &answer["details"]["state"]),
        (409, &json!("suspended"))
    );
    let error = answer["error"].as_str().unwrap();
    assert!(error.contains("cannot run /nowhere/mctl-vmm"), "{error}");
    stage.kill();
    stage.start(&[]);
    let answer = stage.ask("POST", &id, "/start?wait=true", None);
    assert_eq!(answer["start"]["kind"], "resumed");
    assert_eq!(stage.boot_id(&id), boot_id.as_str().unwrap());
}

#[test]
fn a_stop_of_a_suspended_machine_removes_its_image() {
    let stage = Stage::new();
    let id = stage.start_machine("");
    stage.ask("POST", &id, "/suspend?wait=true", None);
    stage.ask("POST", &id, "/stop?wait=true", None);
    assert!(!stage.machine_dir(&id).join("image").exists());
    let answer = stage.ask("POST", &id, "/start?wait=true", None);
    assert_eq!(answer["start"]["kind"], "booted");
}

#[test]
fn a_suspend_neither_loses_nor_repeats_a_line_of_output() {
    let stage = Stage::new();
    let id = stage.start_machine("");
    let print = |text: &str| {
        let body = json!({"command": ["say", text]});
        stage.ask("POST", &id, "/exec", Some(body));
        poll(text, || {
            stage
                .log_texts(&id)
                .contains(&text.to_owned())
                .then_some(())
        });
    };
    print("one");
    stage.ask("POST", &id, "/suspend?wait=true", None);
    stage.ask("POST", &id, "/start?wait=true", None);
    print("two");
    let expected = ["main was started", "one", "two"];
    let mut lines = stage.log_texts(&id);
    lines.retain(|text| expected.contains(&text.as_str()));
    assert_eq!(lines, expected);
}
