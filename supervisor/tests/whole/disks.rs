//! Whose a disk is, while machines run, are suspended, and stop.

use serde_json::{Value, json};

use crate::stage::Stage;
use crate::support::MACHINES;

/// A machine with the disk, not started.
fn machine_with_disk(stage: &Stage, read_only: bool) -> String {
    let disk = stage.folder().join("disk");
    if !disk.exists() {
        std::fs::write(&disk, [0; 512]).unwrap();
    }
    let mount = json!({"volume": disk, "path": "/data", "read_only": read_only});
    let body = json!({"config": {"mounts": [mount]}, "skip_launch": true});
    let (status, machine) = stage.call("POST", MACHINES, Some(body));
    assert_eq!(status, 200, "{machine}");
    machine["id"].as_str().unwrap().to_owned()
}

fn start(stage: &Stage, id: &str) -> (u16, Value) {
    stage.call("POST", &format!("{MACHINES}/{id}/start?wait=true"), None)
}

#[test]
fn the_disk_of_a_suspended_machine_is_free_once_that_is_stopped() {
    let mut stage = Stage::new();
    let first = machine_with_disk(&stage, false);
    assert_eq!(start(&stage, &first).0, 200);
    stage.ask("POST", &first, "/suspend?wait=true", None);
    let second = machine_with_disk(&stage, false);
    let (status, answer) = start(&stage, &second);
    assert_eq!(status, 409, "{answer}");
    assert!(
        answer["error"].as_str().unwrap().contains(&first),
        "{answer}"
    );
    // A reader would see a file system in the middle of a change.
    let reader = machine_with_disk(&stage, true);
    assert_eq!(start(&stage, &reader).0, 409);

    stage.kill();
    stage.start(&[]);
    assert_eq!(start(&stage, &second).0, 409, "also for a new supervisor");

    let resumed = stage.ask("POST", &first, "/start?wait=true", None);
    assert_eq!(resumed["start"]["kind"], "resumed");
    stage.ask("POST", &first, "/suspend?wait=true", None);
    stage.ask("POST", &first, "/stop?wait=true", None);
    assert_eq!(start(&stage, &second).0, 200);
    assert_eq!(start(&stage, &first).0, 409);
}

#[test]
fn a_disk_has_many_readers_and_no_writer_meanwhile() {
    let stage = Stage::new();
    let readers = [true, true].map(|_| machine_with_disk(&stage, true));
    for reader in &readers {
        assert_eq!(start(&stage, reader).0, 200);
    }
    stage.ask("POST", &readers[0], "/suspend?wait=true", None);
    stage.ask("POST", &readers[1], "/stop?wait=true", None);
    let writer = machine_with_disk(&stage, false);
    assert_eq!(start(&stage, &writer).0, 409);
    let (_, answer) = start(&stage, &writer);
    assert!(
        answer["hint"].as_str().unwrap().contains("one writer"),
        "{answer}"
    );
}
