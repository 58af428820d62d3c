//! Who reaches a guest, and when: never one that is being put to rest or is not ours yet.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use serde_json::json;

use crate::stage::{Stage, free_port, poll};

const MACHINES: &str = "/v1/apps/default/machines";

#[test]
fn a_connection_that_meets_a_suspend_breaks_it_off_and_is_served() {
    let stage = Stage::new();
    let port = free_port();
    let service = json!({"internal_port": 80, "ports": [{"port": port}], "autostart": true});
    let config = json!({"guest": {"kernel_args": ["slow-suspend"]}, "services": [service]});
    let (_, machine) = stage.call("POST", MACHINES, Some(json!({"config": config})));
    let id = machine["id"].as_str().unwrap();
    stage.reach(id, "started");
    let vmm = stage.vmm(id);
    let mut client = poll("the port", || TcpStream::connect(("127.0.0.1", port)).ok());
    stage.ask("POST", id, "/suspend", None);
    stage.reach(id, "suspending");
    let mut later = TcpStream::connect(("127.0.0.1", port)).unwrap();
    for client in [&mut client, &mut later] {
        client.write_all(b"hello").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "hello");
    }
    let machine = stage.reach(id, "started");
    assert_eq!(machine["last_start"], json!({"kind": "suspend_cancelled"}));
    assert_eq!(stage.vmm(id), vmm);
}

#[test]
fn a_guest_that_is_being_suspended_is_asked_nothing() {
    let stage = Stage::new();
    let id = stage.started("slow-suspend");
    stage.ask("POST", &id, "/suspend", None);
    stage.reach(&id, "suspending");
    let (status, answer) = stage.exec(&id);
    assert_eq!(status, 412, "{answer}");
    assert_eq!(answer["details"]["state"], "suspending");
}

#[test]
fn what_is_asked_right_after_a_crash_waits_until_the_guest_is_taken_over() {
    let mut stage = Stage::new();
    let ids: Vec<String> = (0..4).map(|_| stage.started("")).collect();
    // Answered by the database's thread, behind the notes that they are started.
    stage.ask("GET", &ids[0], "/timings", None);
    stage.kill();
    stage.start(&[]);
    for id in &ids {
        let (status, answer) = stage.exec(id);
        assert_eq!(status, 200, "{answer}");
    }
}

#[test]
fn a_guest_that_a_new_supervisor_can_not_reach_is_left_alone_and_tried_again() {
    let mut stage = Stage::new();
    let id = stage.started("");
    let (vmm, boot) = (stage.vmm(&id), stage.boot_id(&id));
    stage.ask("GET", &id, "/timings", None);
    stage.kill();
    let deaf = stage.directory(&id).join("deaf");
    fs::write(&deaf, "").unwrap();
    stage.start(&["--start-timeout", "1s"]);
    poll("a warning", || {
        let machine = stage.ask("GET", &id, "", None);
        let event = machine["events"][0]["message"].as_str().map(str::to_owned);
        event?.contains("can't be taken over yet").then_some(())
    });
    assert_eq!(stage.ask("GET", &id, "", None)["state"], "started");
    assert_eq!(stage.vmm(&id), vmm);
    fs::remove_file(deaf).unwrap();
    poll("the guest", || (stage.exec(&id).0 == 200).then_some(()));
    assert_eq!((stage.vmm(&id), stage.boot_id(&id)), (vmm, boot));
}

#[test]
fn a_suspend_that_fails_while_a_start_breaks_it_off_leaves_a_guest_that_can_be_used() {
    let mut stage = Stage::new();
    let id = stage.started("slow-suspend break-badly");
    stage.ask("POST", &id, "/suspend", None);
    stage.reach(&id, "suspending");
    stage.kill();
    stage.start(&[]);
    stage.ask("POST", &id, "/start?wait=true", None);
    let (status, answer) = stage.exec(&id);
    assert_eq!(status, 200, "{answer}");
}

#[test]
fn a_deaf_guest_does_not_keep_others_from_starting() {
    let mut stage = Stage::new();
    stage.kill();
    stage.start(&["--concurrent-starts", "1", "--start-timeout", "60s"]);
    let config = json!({"guest": {"kernel_args": ["deaf"]}});
    let (_, deaf) = stage.call("POST", MACHINES, Some(json!({"config": config})));
    let deaf = deaf["id"].as_str().unwrap();
    poll("its VMM", || stage.vmm(deaf));
    stage.started("");
    assert_eq!(stage.ask("GET", deaf, "", None)["state"], "starting");
}
