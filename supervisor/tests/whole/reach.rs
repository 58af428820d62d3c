//! When requests and connections reach a guest: not while it is suspended, and not before the
//! supervisor is connected to it.

use std::fs;

use serde_json::json;

use crate::published_ports::{connect, echo};
use crate::stage::{Stage, free_port};
use crate::support::{config_with, poll};

#[test]
fn a_connection_during_a_suspend_cancels_it_and_is_served() {
    let stage = Stage::new();
    let port = free_port();
    let service = json!({"internal_port": 80, "ports": [{"port": port}], "autostart": true});
    let mut config = config_with("slow-suspend");
    config["services"] = json!([service]);
    let id = stage.start_machine_of(&config);
    let vmm = stage.vmm(&id);
    let before = connect(port);
    stage.ask("POST", &id, "/suspend", None);
    stage.wait_for(&id, "suspending");
    let during = connect(port);
    for client in [before, during] {
        assert_eq!(echo(client, "hello"), "hello");
    }
    let machine = stage.wait_for(&id, "started");
    assert_eq!(machine["last_start"], json!({"kind": "suspend_cancelled"}));
    assert_eq!(stage.vmm(&id), vmm);
}

#[test]
fn a_guest_that_is_being_suspended_gets_no_requests() {
    let stage = Stage::new();
    let id = stage.start_machine("slow-suspend");
    stage.ask("POST", &id, "/suspend", None);
    stage.wait_for(&id, "suspending");
    let (status, answer) = stage.exec(&id);
    assert_eq!(status, 412, "{answer}");
    assert_eq!(answer["details"]["state"], "suspending");
}

#[test]
fn a_request_right_after_a_crash_waits_until_the_guest_is_adopted() {
    let mut stage = Stage::new();
    let ids: Vec<String> = (0..4).map(|_| stage.start_machine("")).collect();
    stage.wait_for_database(&ids[0]);
    stage.kill();
    stage.start(&[]);
    for id in &ids {
        let (status, answer) = stage.exec(id);
        assert_eq!(status, 200, "{answer}");
    }
}

#[test]
fn a_guest_that_a_new_supervisor_cannot_reach_runs_on_and_is_tried_again() {
    let mut stage = Stage::new();
    let id = stage.start_machine("");
    let (vmm, boot_id) = (stage.vmm(&id), stage.boot_id(&id));
    stage.wait_for_database(&id);
    stage.kill();
    let deaf_file = stage.machine_dir(&id).join("deaf");
    fs::write(&deaf_file, "").unwrap();
    stage.start(&["--start-timeout", "1s"]);
    poll("the warning", || {
        let machine = stage.ask("GET", &id, "", None);
        let message = machine["events"][0]["message"].as_str()?;
        message.contains("cannot be taken over yet").then_some(())
    });
    assert_eq!(stage.ask("GET", &id, "", None)["state"], "started");
    assert_eq!(stage.vmm(&id), vmm);
    fs::remove_file(deaf_file).unwrap();
    poll("the guest", || (stage.exec(&id).0 == 200).then_some(()));
    assert_eq!((stage.vmm(&id), stage.boot_id(&id)), (vmm, boot_id));
}

#[test]
fn a_suspend_that_fails_while_a_start_cancels_it_leaves_a_usable_guest() {
    let mut stage = Stage::new();
    let id = stage.start_machine("slow-suspend fail-cancel");
    stage.ask("POST", &id, "/suspend", None);
    stage.wait_for(&id, "suspending");
    stage.kill();
    stage.start(&[]);
    stage.ask("POST", &id, "/start?wait=true", None);
    let (status, answer) = stage.exec(&id);
    assert_eq!(status, 200, "{answer}");
}

#[test]
fn a_deaf_guest_does_not_block_the_starts_of_others() {
    let mut stage = Stage::new();
    stage.kill();
    stage.start(&["--concurrent-starts", "1", "--start-timeout", "120s"]);
    let deaf = stage.create(&config_with("deaf"));
    poll("the VMM of the deaf guest", || stage.vmm(&deaf));
    stage.start_machine("");
    assert_eq!(stage.ask("GET", &deaf, "", None)["state"], "starting");
}
