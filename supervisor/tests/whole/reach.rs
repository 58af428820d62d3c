//! When requests and connections reach a guest: not while it is suspended, and not before the
//! supervisor is connected to it; how many may wait.

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::json;

use crate::published_ports::{connect, echo};
use crate::stage::{Stage, free_port};
use crate::support::{MACHINES, config_with, poll, poll_within};

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

#[test]
fn only_so_many_requests_wait_for_the_same_transition_and_none_for_clients_that_have_gone() {
    let stage = Stage::new();
    let id = stage.start_machine("slow-suspend");
    stage.ask("POST", &id, "/suspend", None);
    stage.wait_for(&id, "suspending");
    let path = format!("{MACHINES}/{id}/suspend?wait=true");
    let ask = || {
        let stream = stage.send("POST", &path, None);
        stream.set_nonblocking(true).unwrap();
        stream
    };
    let is_refused = |stream: &mut UnixStream| {
        let mut answer = [0; 12];
        let read = stream.read(&mut answer).unwrap_or(0);
        read > 0 && answer[..read] == *b"HTTP/1.1 429"
    };
    let mut waiting: Vec<UnixStream> = (0..300).map(|_| ask()).collect();
    let refused = poll("refusals", || {
        let refused = waiting
            .iter_mut()
            .filter_map(|stream| is_refused(stream).then_some(()));
        Some(refused.count()).filter(|count| *count > 0)
    });
    assert!(refused <= 300 - 256, "{refused}");
    drop(waiting);
    // Their places are free once the supervisor has noticed.
    poll("a place", || {
        let mut late = ask();
        let read = poll_within(Duration::from_millis(200), || late.read(&mut [0; 1]).ok());
        read.is_none().then_some(())
    });
}
