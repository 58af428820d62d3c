//! A database that is lost, or older than the machines' folders: nothing is removed, and everything can
//! be taken back.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::stage::Stage;
use crate::support::{MACHINES, poll};

const UNLISTED: &str = "/v1/unlisted";

/// The files of the database.
fn database(stage: &Stage) -> Vec<PathBuf> {
    let files = ["mctl.db", "mctl.db-wal", "mctl.db-shm"];
    let paths = files.map(|name| stage.state().join(name));
    paths.into_iter().filter(|path| path.exists()).collect()
}

/// Kills the supervisor, takes its database away, and starts the next one.
fn lose_database(stage: &mut Stage) {
    stage.kill();
    for path in database(stage) {
        fs::remove_file(path).unwrap();
    }
    stage.start(&[]);
}

fn copy_database(stage: &Stage, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for path in database(stage) {
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

fn unlisted(stage: &Stage) -> Vec<Value> {
    let (status, list) = stage.call("GET", UNLISTED, None);
    assert_eq!(status, 200, "{list}");
    list.as_array().unwrap().clone()
}

fn adopt(stage: &Stage, id: &str, body: Value) -> (u16, Value) {
    stage.call("POST", &format!("{UNLISTED}/{id}/adopt"), Some(body))
}

#[test]
fn machines_of_a_lost_database_are_taken_back_as_they_were() {
    let mut stage = Stage::new();
    let started = stage.start_machine("");
    let suspended = stage.start_machine("");
    let stopped = stage.start_machine("");
    stage.ask(
        "POST",
        &suspended,
        "/metadata/a",
        Some(json!({"value": "b"})),
    );
    stage.ask("POST", &suspended, "/suspend?wait=true", None);
    stage.ask("POST", &stopped, "/stop?wait=true", None);
    let before: Vec<Value> = [&started, &suspended, &stopped]
        .map(|id| stage.ask("GET", id, "", None))
        .into();
    let (vmm, boot_id) = (stage.vmm(&started).unwrap(), stage.boot_id(&started));
    lose_database(&mut stage);

    assert_eq!(stage.call("GET", MACHINES, None).1, json!([]));
    assert_eq!(stage.machine_dirs().len(), 3, "nothing was removed");
    for machine in &before {
        let id = &machine["id"];
        let found = unlisted(&stage)
            .into_iter()
            .find(|one| one["folder"] == *id)
            .unwrap();
        assert_eq!(found["name"], machine["name"]);
        assert_eq!(found["state"], machine["state"]);
        assert_eq!(found["problem"], Value::Null);
        let pid = (*id == started).then_some(vmm.pid);
        assert_eq!(found["vmm_pid"].as_i64(), pid.map(i64::from));
    }
    for machine in &before {
        let id = machine["id"].as_str().unwrap();
        let (status, answer) = adopt(&stage, id, json!({}));
        assert_eq!(status, 200, "{answer}");
        let (status, again) = adopt(&stage, id, json!({}));
        assert_eq!(status, 404, "{again}");
        let now = stage.wait_for(id, machine["state"].as_str().unwrap());
        for field in ["name", "config", "image_ref", "instance_id", "created_at"] {
            assert_eq!(now[field], machine[field], "{field}");
        }
    }
    assert_eq!(unlisted(&stage), Vec::<Value>::new());
    assert_eq!(stage.vmm(&started), Some(vmm));
    assert_eq!(stage.exec(&started).0, 200);
    assert_eq!(stage.boot_id(&started), boot_id);
    let resumed = stage.ask("POST", &suspended, "/start?wait=true", None);
    assert_eq!(resumed["start"]["kind"], "resumed", "{resumed}");
}

#[test]
fn a_database_from_a_backup_catches_up_with_the_machines() {
    let mut stage = Stage::new();
    let backup = stage.folder().join("backup");
    let ids = ["", ""].map(|behaviour| stage.start_machine(behaviour));
    let [running, suspended] = &ids;
    for id in &ids {
        stage.ask("POST", id, "/suspend?wait=true", None);
        stage.wait_for_database(id);
    }
    stage.kill();
    copy_database(&stage, &backup);
    stage.start(&[]);
    for id in &ids {
        stage.ask("POST", id, "/start?wait=true", None);
    }
    stage.ask("POST", suspended, "/suspend?wait=true", None);
    let boot_id = stage.boot_id(running);
    let vmm = stage.vmm(running).unwrap();

    stage.kill();
    for path in database(&stage) {
        fs::remove_file(path).unwrap();
    }
    for file in fs::read_dir(&backup).unwrap().flatten() {
        fs::copy(file.path(), stage.state().join(file.file_name())).unwrap();
    }
    stage.start(&[]);
    let machine = stage.wait_for(running, "started");
    assert_eq!(stage.vmm(running), Some(vmm), "the guest runs on");
    assert_eq!(stage.exec(running).0, 200);
    assert_eq!(stage.boot_id(running), boot_id);
    let told = machine["events"].as_array().unwrap().iter();
    let told = told.filter_map(|event| event["message"].as_str());
    assert_eq!(
        told.filter(|message| message.contains("older than the machine's folder"))
            .count(),
        1
    );
    // The backup has the machine suspended, with an image that was consumed since.
    stage.wait_for(suspended, "suspended");
    let resumed = stage.ask("POST", suspended, "/start?wait=true", None);
    assert_eq!(resumed["start"]["kind"], "resumed", "{resumed}");
}

#[test]
fn what_cannot_be_taken_back_is_shown_with_the_reason_and_kept() {
    let mut stage = Stage::new();
    let id = stage.start_machine("");
    stage.ask("POST", &id, "/stop?wait=true", None);
    let file = stage.machine_dir(&id).join("machine.json");
    let good = fs::read(&file).unwrap();
    let notes = stage.machine_dir("notes");
    fs::create_dir(&notes).unwrap();
    fs::write(notes.join("mine.txt"), "mine").unwrap();
    fs::write(&file, "{").unwrap();
    lose_database(&mut stage);

    let problems = unlisted(&stage);
    assert_eq!(problems.len(), 2);
    for one in &problems {
        assert!(one["problem"].is_string(), "{one}");
        let folder = one["folder"].as_str().unwrap();
        let (status, answer) = adopt(&stage, folder, json!({}));
        assert_eq!((status, &answer["status"]), (422, &json!("not_described")));
    }
    assert!(notes.join("mine.txt").exists());

    let (status, _) = adopt(&stage, "../x", json!({}));
    assert_eq!(status, 404);
    fs::write(&file, good).unwrap();
    let taken = stage.call(
        "POST",
        MACHINES,
        Some(json!({"name": "other", "config": {}})),
    );
    assert_eq!(taken.0, 200);
    let (status, answer) = adopt(&stage, &id, json!({"name": "other"}));
    assert_eq!((status, &answer["status"]), (409, &json!("name_taken")));
    let (status, answer) = adopt(&stage, &id, json!({"name": "mine"}));
    assert_eq!((status, &answer["name"]), (200, &json!("mine")), "{answer}");
}

#[test]
fn an_unlisted_machine_is_removed_only_on_request_and_one_that_runs_only_by_force() {
    let mut stage = Stage::new();
    let id = stage.start_machine("");
    lose_database(&mut stage);
    let path = format!("{UNLISTED}/{id}");
    let (status, answer) = stage.call("DELETE", &path, None);
    assert_eq!((status, &answer["status"]), (412, &json!("wrong_state")));
    assert!(stage.vmm(&id).is_some() && stage.machine_dir(&id).exists());
    let (status, answer) = stage.call("DELETE", &format!("{path}?force=true"), None);
    assert_eq!(status, 200, "{answer}");
    assert!(!stage.machine_dir(&id).exists());
    poll("the end of the VMM", || {
        stage.vmm(&id).is_none().then_some(())
    });
    assert_eq!(unlisted(&stage), Vec::<Value>::new());
    assert_eq!(stage.call("DELETE", &path, None).0, 404);
}

#[test]
fn the_vmm_of_a_machine_whose_folder_is_gone_is_shown() {
    let mut stage = Stage::new();
    let id = stage.start_machine("");
    stage.kill();
    fs::remove_dir_all(stage.machine_dir(&id)).unwrap();
    lose_database(&mut stage);
    let found = unlisted(&stage);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0]["folder"], id);
    assert_eq!(
        found[0]["vmm_pid"].as_i64(),
        stage.vmm(&id).map(|vmm| i64::from(vmm.pid))
    );
    assert!(found[0]["problem"].is_string());
}

#[test]
fn an_update_is_in_the_machines_folder() {
    let mut stage = Stage::new();
    let id = stage.start_machine("");
    let changed = json!({"config": {"env": {"NEW": "1"}}, "name": "renamed"});
    let (status, answer) = stage.call("POST", &format!("{MACHINES}/{id}"), Some(changed));
    assert_eq!(status, 200, "{answer}");
    let updated = stage.wait_for(&id, "started");
    lose_database(&mut stage);
    let (status, answer) = adopt(&stage, &id, json!({}));
    assert_eq!(status, 200, "{answer}");
    for field in ["name", "config", "instance_id"] {
        assert_eq!(answer[field], updated[field], "{field}");
    }
    assert_eq!(answer["config"]["env"]["NEW"], "1");
}
