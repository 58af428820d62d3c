//! A crash at every named step of every transition, and what the next supervisor makes of it.

use serde_json::json;

use crate::stage::{Stage, poll};

const MACHINES: &str = "/v1/apps/default/machines";

/// Where a machine is before the transition under test.
enum Before {
    Started,
    Suspended,
}

/// Crashes at `step` of the request and checks that the machine ends in `expected`, once.
fn crash(before: &Before, step: &str, method: &str, rest: &str, expected: &str) {
    let mut stage = Stage::new();
    let id = stage.started("");
    if matches!(before, Before::Suspended) {
        stage.ask("POST", &id, "/suspend?wait=true", None);
    }
    stage.ask("GET", &id, "/timings", None);
    stage.rearm(step);
    if matches!(before, Before::Started) {
        assert_eq!(stage.exec(&id).0, 200);
    }
    let body = rest
        .is_empty()
        .then(|| json!({"config": {"metadata": {"a": "b"}}}));
    let body = body.filter(|_| method == "POST");
    stage.crash_by(method, &format!("{MACHINES}/{id}{rest}"), body);
    if expected == "destroyed" {
        poll("its end", || {
            let (_, list) = stage.call("GET", MACHINES, None);
            (list == json!([]) && stage.machines_on_disk().is_empty()).then_some(())
        });
    } else {
        stage.reach(&id, expected);
    }
    let vmms = usize::from(expected == "started");
    poll("the right number of VMMs", || {
        (stage.vmms() == vmms).then_some(())
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

/// Crashes at `step` of the start of a suspended machine that has to boot, for `reason`.
fn crash_in_a_cold_boot(behaviour: &str, step: &str, reason: &str) {
    let mut stage = Stage::new();
    let id = stage.started(behaviour);
    let launched = |stage: &Stage, times: usize| {
        poll("the main process", || {
            let log = stage.log(&id);
            let launches = log.iter().filter(|text| *text == "main was started");
            (launches.count() == times).then_some(())
        });
    };
    launched(&stage, 1);
    stage.ask("POST", &id, "/suspend?wait=true", None);
    if reason == "image missing" {
        std::fs::remove_dir_all(stage.directory(&id).join("image")).unwrap();
    }
    stage.ask("GET", &id, "/timings", None);
    stage.rearm(step);
    stage.crash_by("POST", &format!("{MACHINES}/{id}/start"), None);
    let machine = stage.reach(&id, "started");
    let expected = json!({"kind": "cold_booted", "reason": reason});
    assert_eq!(machine["last_start"], expected);
    launched(&stage, 2);
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
    boot_without_image_cut_off_when_stored: "", "start.stored" => "image missing";
    boot_without_image_cut_off_when_spawned: "", "boot.spawned" => "image missing";
    boot_without_image_cut_off_when_ready: "", "start.ready" => "image missing";
    boot_after_a_refusal_cut_off_before: "refuse-image", "start.spawned" => "checksum mismatch";
    boot_after_a_refusal_cut_off_when_stored: "refuse-image", "start.refused" => "checksum mismatch";
    boot_after_a_refusal_cut_off_when_spawned: "refuse-image", "boot.spawned" => "checksum mismatch";
    boot_after_a_refusal_cut_off_when_ready: "refuse-image", "start.ready" => "checksum mismatch";
}

crashes! {
    resume_cut_off_when_stored: Suspended, "start.stored", "POST" "/start" => "started";
    resume_cut_off_when_spawned: Suspended, "start.spawned", "POST" "/start" => "started";
    resume_cut_off_when_ready: Suspended, "start.ready", "POST" "/start" => "started";
    resume_cut_off_when_shown: Suspended, "start.shown", "POST" "/start" => "started";
    suspend_cut_off_when_stored: Started, "suspend.stored", "POST" "/suspend" => "suspended";
    suspend_cut_off_when_saved: Started, "suspend.saved", "POST" "/suspend" => "suspended";
    suspend_cut_off_when_ended: Started, "suspend.ended", "POST" "/suspend" => "suspended";
    stop_cut_off_when_stored: Started, "stop.stored", "POST" "/stop" => "stopped";
    stop_cut_off_when_ended: Started, "stop.ended", "POST" "/stop" => "stopped";
    stop_cut_off_when_dropped: Started, "stop.dropped", "POST" "/stop" => "stopped";
    drop_cut_off_when_stored: Suspended, "stop.stored", "POST" "/stop" => "stopped";
    drop_cut_off_when_dropped: Suspended, "stop.dropped", "POST" "/stop" => "stopped";
    restart_cut_off_when_stored: Started, "restart.stored", "POST" "/restart" => "started";
    restart_cut_off_when_ended: Started, "restart.ended", "POST" "/restart" => "started";
    restart_cut_off_when_spawned: Started, "start.spawned", "POST" "/restart" => "started";
    update_cut_off_when_stored: Started, "update.stored", "POST" "" => "started";
    update_cut_off_when_ended: Started, "update.ended", "POST" "" => "started";
    destroy_cut_off_when_stored: Started, "destroy.stored", "DELETE" "?force=true" => "destroyed";
    destroy_cut_off_when_removed: Started, "destroy.removed", "DELETE" "?force=true" => "destroyed";
}

#[test]
fn a_create_cut_off_before_it_is_stored_leaves_nothing() {
    let mut stage = Stage::new();
    stage.rearm("create.directory");
    stage.crash_by("POST", MACHINES, Some(json!({"config": {}})));
    poll("nothing", || {
        stage.machines_on_disk().is_empty().then_some(())
    });
    assert_eq!(stage.call("GET", MACHINES, None).1, json!([]));
}

#[test]
fn a_create_cut_off_after_it_is_stored_leaves_the_machine() {
    let mut stage = Stage::new();
    stage.rearm("create.stored");
    stage.crash_by("POST", MACHINES, Some(json!({"config": {}})));
    let (_, list) = stage.call("GET", MACHINES, None);
    assert_eq!(
        (list.as_array().unwrap().len(), &list[0]["state"]),
        (1, &json!("created"))
    );
}
