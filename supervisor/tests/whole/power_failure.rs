//! What a power failure leaves, and what the next supervisor makes of it. The file system's part is
//! played here: what was not durable is put back. That the VMM's files become durable in the right order
//! is shown by `vmm/tests/image`, and all of it on a disk that loses its cache by `e2e/tests/host_disks`.

use std::fs;
use std::io::{ErrorKind, Read};
use std::time::Duration;

use serde_json::json;

use crate::stage::Stage;
use crate::support::{MACHINES, poll};

/// A machine that was resumed, and whose image would be back after a power failure; its id and its
/// guest's.
fn resumed_on_a_slow_disk(stage: &Stage) -> (String, String) {
    let id = stage.start_machine("");
    let boot_id = stage.boot_id(&id);
    stage.ask("POST", &id, "/suspend?wait=true", None);
    fs::write(stage.machine_dir(&id).join("slow-disk"), "").unwrap();
    let answer = stage.ask("POST", &id, "/start?wait=true", None);
    assert_eq!(answer["start"]["kind"], "resumed");
    (id, boot_id)
}

/// Undoes what the last VMM did to the image's name.
fn put_image_back(stage: &Stage, id: &str) {
    let image = stage.machine_dir(id).join("image");
    fs::rename(image.join("manifest.consumed"), image.join("manifest.json")).unwrap();
}

#[test]
fn nothing_comes_out_of_a_resumed_guest_before_its_image_is_durably_consumed() {
    let stage = Stage::new();
    let (id, _) = resumed_on_a_slow_disk(&stage);
    let path = format!("{MACHINES}/{id}/exec");
    let mut stream = stage.send("POST", &path, Some(json!({"command": ["true"]})));
    stream
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let early = stream.read(&mut [0; 64]).unwrap_err();
    assert_eq!(early.kind(), ErrorKind::WouldBlock, "no answer yet");
    fs::remove_file(stage.machine_dir(&id).join("slow-disk")).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
}

#[test]
fn a_machine_whose_resume_was_not_durable_is_resumed_again() {
    let mut stage = Stage::new();
    let (id, boot_id) = resumed_on_a_slow_disk(&stage);
    let generation = stage.ask("GET", &id, "", None)["generation"].clone();
    stage.wait_for_database(&id);
    stage.kill();
    stage.vmm(&id).unwrap().kill().unwrap();
    stage.wait_for_the_end_of_vmms();
    put_image_back(&stage, &id);
    fs::remove_file(stage.machine_dir(&id).join("slow-disk")).unwrap();
    stage.start(&[]);
    let machine = poll("the machine to be resumed again", || {
        let machine = stage.ask("GET", &id, "", None);
        (machine["state"] == "started" && machine["generation"] != generation).then_some(machine)
    });
    assert_eq!(machine["last_start"]["kind"], "resumed");
    assert_eq!(stage.boot_id(&id), boot_id, "it is the same guest");
}

#[test]
fn a_vmm_that_cannot_make_its_resume_durable_leaves_a_suspended_machine() {
    let stage = Stage::new();
    let (id, boot_id) = resumed_on_a_slow_disk(&stage);
    put_image_back(&stage, &id);
    stage.vmm(&id).unwrap().kill().unwrap();
    stage.wait_for(&id, "suspended");
    fs::remove_file(stage.machine_dir(&id).join("slow-disk")).unwrap();
    let answer = stage.ask("POST", &id, "/start?wait=true", None);
    assert_eq!(answer["start"]["kind"], "resumed");
    assert_eq!(stage.boot_id(&id), boot_id, "it is the same guest");
}

#[test]
fn a_suspend_is_complete_with_its_image_though_the_exit_report_is_lost() {
    let mut stage = Stage::new();
    let id = stage.start_machine("");
    stage.wait_for_database(&id);
    stage.restart_with_fail_point("suspend.ended");
    assert_eq!(stage.exec(&id).0, 200);
    let _connection = stage.send("POST", &format!("{MACHINES}/{id}/suspend"), None);
    stage.wait_for_the_end_of_vmms();
    fs::remove_file(stage.machine_dir(&id).join("exit.json")).unwrap();
    stage.restart_after_crash();
    stage.wait_for(&id, "suspended");
    let answer = stage.ask("POST", &id, "/start?wait=true", None);
    assert_eq!(answer["start"]["kind"], "resumed");
}

#[test]
fn an_image_that_is_back_after_a_stop_is_gone_before_the_machine_boots() {
    let stage = Stage::new();
    let id = stage.start_machine("");
    stage.ask("POST", &id, "/suspend?wait=true", None);
    let (image, copy) = (
        stage.machine_dir(&id).join("image"),
        stage.folder().join("copy"),
    );
    fs::create_dir(&copy).unwrap();
    fs::copy(image.join("manifest.json"), copy.join("manifest.json")).unwrap();
    stage.ask("POST", &id, "/stop?wait=true", None);
    assert!(!image.exists());
    fs::rename(&copy, &image).unwrap();
    let answer = stage.ask("POST", &id, "/start?wait=true", None);
    assert_eq!(answer["start"]["kind"], "booted");
    assert!(!image.exists());
}
