//! Guests of other releases.

use std::fs;

use guest_protocol::VERSION;

use crate::stage::Stage;
use crate::support::poll;

/// The release after ours speaks our version too, the one after that does not.
const NEXT: u32 = VERSION + 1;
const UNKNOWN: u32 = VERSION + 2;

fn speak(stage: &Stage, id: &str, version: u32) {
    fs::write(stage.machine_dir(id).join("protocol"), version.to_string()).unwrap();
}

/// What a supervisor of the guest's own release has left in the database.
fn note_protocol(stage: &Stage, id: &str, version: u32) {
    let connection = rusqlite::Connection::open(stage.state().join("mctl.db")).unwrap();
    let changed = connection
        .execute(
            "UPDATE machines SET facts = json_set(facts, '$.guest_protocol', ?1) WHERE id = ?2",
            rusqlite::params![version, id],
        )
        .unwrap();
    assert_eq!(changed, 1);
}

#[test]
fn a_guest_of_the_release_after_ours_is_used_in_our_version() {
    let stage = Stage::new();
    let id = stage.start_machine("");
    stage.ask("POST", &id, "/stop?wait=true", None);
    stage.wait_for(&id, "stopped");
    speak(&stage, &id, NEXT);
    stage.ask("POST", &id, "/start?wait=true", None);
    stage.ask("POST", &id, "/suspend?wait=true", None);
    let answer = stage.ask("POST", &id, "/start?wait=true", None);
    assert_eq!(answer["start"]["kind"], "resumed", "{answer}");
    assert_eq!(stage.exec(&id).0, 200);
}

#[test]
fn a_guest_that_we_cannot_speak_to_keeps_its_image_and_can_be_resumed_by_who_can() {
    let mut stage = Stage::new();
    let id = stage.start_machine("");
    let boot_id = stage.boot_id(&id);
    stage.ask("POST", &id, "/suspend?wait=true", None);
    stage.wait_for_database(&id);
    stage.kill();
    note_protocol(&stage, &id, UNKNOWN);
    stage.start(&[]);
    let path = format!("/v1/apps/default/machines/{id}/start?wait=true");
    let (_, answer) = stage.call("POST", &path, None);
    let text = answer.to_string();
    assert!(
        text.contains(&format!("version {UNKNOWN} of the protocol")),
        "{text}"
    );
    assert!(text.contains("mctl start --cold"), "{text}");
    let machine = stage.ask("GET", &id, "", None);
    assert_eq!(machine["state"], "suspended");
    stage.kill();
    note_protocol(&stage, &id, NEXT);
    stage.start(&[]);
    stage.ask("POST", &id, "/start?wait=true", None);
    assert_eq!(stage.boot_id(&id), boot_id);
}

#[test]
fn a_running_guest_that_a_new_supervisor_cannot_speak_to_runs_on() {
    let mut stage = Stage::new();
    // One was started, and of the other it was not yet known.
    let started = stage.start_machine("");
    let resumed = stage.start_machine("");
    stage.ask("POST", &resumed, "/suspend?wait=true", None);
    stage.restart_with_fail_point("start.ready");
    let path = format!("/v1/apps/default/machines/{resumed}/start");
    let _connection = stage.send("POST", &path, None);
    stage.wait_for_crash();
    let vmms = [stage.vmm(&started), stage.vmm(&resumed)];
    assert!(vmms.iter().all(Option::is_some), "{vmms:?}");
    for id in [&started, &resumed] {
        speak(&stage, id, UNKNOWN);
    }
    stage.start(&["--start-timeout", "1s"]);
    for id in [&started, &resumed] {
        poll("the event that tells it", || {
            let machine = stage.ask("GET", id, "", None).to_string();
            machine.contains("cannot be taken over yet").then_some(())
        });
    }
    assert_eq!([stage.vmm(&started), stage.vmm(&resumed)], vmms);
    for id in [&started, &resumed] {
        speak(&stage, id, VERSION);
        poll("the machine to be taken over", || {
            (stage.exec(id).0 == 200).then_some(())
        });
    }
    assert_eq!([stage.vmm(&started), stage.vmm(&resumed)], vmms);
}
