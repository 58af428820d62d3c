//! A crash at every named step of every transition, and what the next supervisor makes of it.

use serde_json::json;

use crate::stage::Stage;
use crate::support::{MACHINES, poll};

/// The state of the machine before the transition under test.
#[derive(PartialEq)]
enum Before {
    Started,
    Suspended,
}

/// Crashes at `step` of a request about a machine; `rest` is the request's path below the machine's.
/// Checks that the machine gets to the state `expected`, and that there is one machine, with one VMM if
/// it is started.
fn crash(before: &Before, step: &str, method: &str, rest: &str, expected: &str) {
    let mut stage = Stage::new();
    let id = stage.start_machine("");
    if *before == Before::Suspended {
        stage.ask("POST", &id, "/suspend?wait=true", None);
    }
    stage.wait_for_database(&id);
    stage.restart_with_fail_point(step);
    if *before == Before::Started {
        assert_eq!(stage.exec(&id).0, 200);
    }
    let updates = method == "POST" && rest.is_empty();
    let body = updates.then(|| json!({"config": {"metadata": {"a": "b"}}}));
    stage.crash_during(method, &format!("{MACHINES}/{id}{rest}"), body);
    if expected == "destroyed" {
        stage.wait_until_empty();
    } else {
        stage.wait_for(&id, expected);
    }
    let vmms = usize::from(expected == "started");
    poll("the right number of VMMs", || {
        (stage.vmms().len() == vmms).then_some(())
    });
    let (_, list) = stage.call("GET", MACHINES, None);
    assert_eq!(
        list.as_array().unwrap().len(),
        usize::from(expected != "destroyed")
    );
    if expected == "started" {
        assert_eq!(stage.exec(&id).0, 200);
    }
}

macro_rules! crashes {
    ($($name:ident: $before:ident, $step:literal, $method:literal $rest:literal => $expected:literal;)*) => {
        $(#[test]
        fn $name() {
            crash(&Before::$before, $step, $method, $rest, $expected);
        })*
    };
}

/// Crashes at `step` of the start of a suspended machine that has to boot, for `reason`. Checks that
/// the next supervisor boots it for the same reason.
fn crash_in_a_cold_boot(behaviour: &str, step: &str, reason: &str) {
    let mut stage = Stage::new();
    let id = stage.start_machine(behaviour);
    let wait_for_launches = |stage: &Stage, expected: usize| {
        poll("the main process to be launched", || {
            let texts = stage.log_texts(&id);
            let launches = texts.iter().filter(|text| *text == "main was started");
            (launches.count() == expected).then_some(())
        });
    };
    wait_for_launches(&stage, 1);
    stage.ask("POST", &id, "/suspend?wait=true", None);
    if reason == "image missing" {
        std::fs::remove_dir_all(stage.machine_dir(&id).join("image")).unwrap();
    }
    stage.wait_for_database(&id);
    stage.restart_with_fail_point(step);
    stage.crash_during("POST", &format!("{MACHINES}/{id}/start"), None);
    let machine = stage.wait_for(&id, "started");
    let expected = json!({"kind": "cold_booted", "reason": reason});
    assert_eq!(machine["last_start"], expected);
    wait_for_launches(&stage, 2);
}

macro_rules! cold_boots {
    ($($name:ident: $behaviour:literal, $step:literal => $reason:literal;)*) => {
        $(#[test]
        fn $name() {
            crash_in_a_cold_boot($behaviour, $step, $reason);
        })*
    };
}

cold_boots! {
    boot_without_image_interrupted_when_stored: "", "start.stored" => "image missing";
    boot_without_image_interrupted_when_spawned: "", "boot.spawned" => "image missing";
    boot_without_image_interrupted_when_ready: "", "start.ready" => "image missing";
    boot_after_a_refusal_interrupted_before_the_refusal: "refuse-image", "start.spawned" => "checksum mismatch";
    boot_after_a_refusal_interrupted_when_stored: "refuse-image", "start.refused" => "checksum mismatch";
    boot_after_a_refusal_interrupted_when_spawned: "refuse-image", "boot.spawned" => "checksum mismatch";
    boot_after_a_refusal_interrupted_when_ready: "refuse-image", "start.ready" => "checksum mismatch";
}

crashes! {
    resume_interrupted_when_stored: Suspended, "start.stored", "POST" "/start" => "started";
    resume_interrupted_when_spawned: Suspended, "start.spawned", "POST" "/start" => "started";
    resume_interrupted_when_ready: Suspended, "start.ready", "POST" "/start" => "started";
    resume_interrupted_when_shown: Suspended, "start.shown", "POST" "/start" => "started";
    suspend_interrupted_when_stored: Started, "suspend.stored", "POST" "/suspend" => "suspended";
    suspend_interrupted_when_saved: Started, "suspend.saved", "POST" "/suspend" => "suspended";
    suspend_interrupted_when_vmm_ended: Started, "suspend.ended", "POST" "/suspend" => "suspended";
    stop_interrupted_when_stored: Started, "stop.stored", "POST" "/stop" => "stopped";
    stop_interrupted_when_vmm_ended: Started, "stop.ended", "POST" "/stop" => "stopped";
    stop_interrupted_when_image_removed: Started, "stop.dropped", "POST" "/stop" => "stopped";
    stop_of_suspended_interrupted_when_stored: Suspended, "stop.stored", "POST" "/stop" => "stopped";
    stop_of_suspended_interrupted_when_image_removed: Suspended, "stop.dropped", "POST" "/stop" => "stopped";
    restart_interrupted_when_stored: Started, "restart.stored", "POST" "/restart" => "started";
    restart_interrupted_when_vmm_ended: Started, "restart.ended", "POST" "/restart" => "started";
    restart_interrupted_when_spawned: Started, "start.spawned", "POST" "/restart" => "started";
    update_interrupted_when_stored: Started, "update.stored", "POST" "" => "started";
    update_interrupted_when_vmm_ended: Started, "update.ended", "POST" "" => "started";
    destroy_interrupted_when_stored: Started, "destroy.stored", "DELETE" "?force=true" => "destroyed";
    destroy_interrupted_when_files_removed: Started, "destroy.removed", "DELETE" "?force=true" => "destroyed";
}

#[test]
fn a_create_interrupted_before_it_is_stored_leaves_nothing() {
    let mut stage = Stage::new();
    stage.restart_with_fail_point("create.begun");
    stage.crash_during("POST", MACHINES, Some(json!({"config": {}})));
    assert_eq!(stage.machine_dirs(), Vec::<std::path::PathBuf>::new());
    assert_eq!(stage.call("GET", MACHINES, None).1, json!([]));
}

#[test]
fn a_create_interrupted_after_it_is_stored_is_carried_out_whole() {
    let mut stage = Stage::new();
    stage.restart_with_fail_point("create.stored");
    let body = json!({"config": {}, "lease_ttl": 600, "skip_service_registration": true});
    stage.crash_during("POST", MACHINES, Some(body));
    let (_, list) = stage.call("GET", MACHINES, None);
    assert_eq!(list.as_array().unwrap().len(), 1);
    let id = list[0]["id"].as_str().unwrap();
    let machine = stage.wait_for(id, "started");
    assert_eq!(machine["cordoned"], true);
    let (status, answer) = stage.call("POST", &format!("{MACHINES}/{id}/stop"), None);
    assert_eq!(
        (status, &answer["status"]),
        (409, &json!("lease_held")),
        "its lease is in force: {answer}"
    );
    assert!(stage.machine_dir(id).join("machine.json").exists());
}

#[test]
fn a_create_that_shall_not_start_is_not_started_after_a_crash_either() {
    let mut stage = Stage::new();
    stage.restart_with_fail_point("create.stored");
    let body = json!({"config": {}, "skip_launch": true});
    stage.crash_during("POST", MACHINES, Some(body));
    let (_, list) = stage.call("GET", MACHINES, None);
    assert_eq!(list[0]["state"], "created");
}

/// What the last VMM of a machine says about its end.
fn exit_report(stage: &Stage, id: &str) -> String {
    std::fs::read_to_string(stage.machine_dir(id).join("exit.json")).unwrap()
}

#[test]
fn a_stop_keeps_its_own_signal_over_a_crash() {
    let mut stage = Stage::new();
    let id = stage.start_machine("");
    stage.wait_for_database(&id);
    stage.restart_with_fail_point("stop.stored");
    assert_eq!(stage.exec(&id).0, 200);
    let stop = json!({"signal": "SIGTERM", "timeout": "30s"});
    stage.crash_during("POST", &format!("{MACHINES}/{id}/stop"), Some(stop));
    stage.wait_for(&id, "stopped");
    let report = exit_report(&stage, &id);
    assert!(report.contains("on signal 15"), "{report}");
}

#[test]
fn an_update_ends_the_guest_as_its_old_configuration_says() {
    for crash in [false, true] {
        let mut stage = Stage::new();
        let mut config = crate::support::config_with("");
        config["stop_config"] = json!({"signal": "SIGTERM"});
        let id = stage.start_machine_of(&config);
        stage.wait_for_database(&id);
        config["stop_config"] = json!({"signal": "SIGUSR1"});
        let body = Some(json!({"config": config, "skip_launch": true}));
        if crash {
            stage.restart_with_fail_point("update.stored");
            assert_eq!(stage.exec(&id).0, 200);
            stage.crash_during("POST", &format!("{MACHINES}/{id}"), body);
        } else {
            stage.ask("POST", &id, "", body);
        }
        stage.wait_for(&id, "stopped");
        let report = exit_report(&stage, &id);
        assert!(report.contains("on signal 15"), "crash {crash}: {report}");
    }
}

#[test]
fn a_job_that_was_finished_before_it_was_seen_to_run_is_not_run_again() {
    let mut stage = Stage::new();
    stage.restart_with_fail_point("start.ready");
    let body = json!({"config": crate::support::config_with("")});
    let _connection = stage.send("POST", MACHINES, Some(body));
    let vmm = poll("the VMM", || stage.vmms().into_iter().next());
    let id = vmm.machine.clone();
    stage.wait_for_crash();
    vmm.kill().unwrap();
    stage.wait_for_the_end_of_vmms();
    let report = json!({"machine_id": id, "generation": 1, "reason": "guest_power_off",
        "message": "the guest powered itself off"});
    std::fs::write(stage.machine_dir(&id).join("exit.json"), report.to_string()).unwrap();
    stage.start(&[]);
    let machine = stage.wait_for(&id, "stopped");
    assert_eq!(machine["generation"], 1, "there was no second launch");
    assert_eq!(stage.vmms().len(), 0);
}
