//! What a machine has in use: who is asked, what is left out, and that an odd guest spoils nothing.

use serde_json::{Value, json};

use crate::stage::Stage;

fn figure(resources: &Value, name: &str) -> u64 {
    let found = resources.pointer(&format!("/{}", name.replace('.', "/")));
    found
        .and_then(Value::as_u64)
        .unwrap_or_else(|| panic!("no {name} in {resources}"))
}

#[test]
fn a_running_machine_shows_guest_vmm_and_supervisor() {
    let stage = Stage::new();
    let id = stage.start_machine("");
    let resources = stage.ask("GET", &id, "/resources", None);
    for process in ["supervisor", "vmm"] {
        for name in [
            "descriptors",
            "threads",
            "resident_bytes",
            "anonymous_bytes",
        ] {
            assert!(figure(&resources, &format!("{process}.{name}")) > 0);
        }
    }
    assert!(figure(&resources, "supervisor.epoll_entries") > 1);
    assert!(figure(&resources, "supervisor_tasks") > 1);
    assert_eq!(resources["vmm_vsock_connections"]["established"], 3);
    assert_eq!(resources["guest_init"], json!({"descriptors": 11}));
    assert_eq!(resources["guest_tasks"], 70);
    assert_eq!(resources["guest_vsocks"], json!({"established": 2}));
    assert!(figure(&resources, "database_bytes") > 0);
    assert!(figure(&resources, "log_bytes") > 0);
    assert_eq!(resources.get("image_bytes"), None, "{resources}");
}

#[test]
fn a_suspended_machine_shows_its_files_and_the_image_that_was_written() {
    let stage = Stage::new();
    let id = stage.start_machine("");
    stage.ask("POST", &id, "/suspend?wait=true", None);
    let suspended = stage.ask("GET", &id, "/resources", None);
    for absent in ["vmm", "vmm_vsock_connections", "guest_init", "guest_vsocks"] {
        assert_eq!(suspended.get(absent), None, "{suspended}");
    }
    assert_eq!(suspended["image_bytes"], 8192);
    assert!(figure(&suspended, "machine_folder_files") > 2);
    let logs = figure(&suspended, "log_bytes");
    assert!(logs > 0 && figure(&suspended, "machine_folder_bytes") >= logs);
    // The resume consumes the image; what it occupied is known all the same.
    stage.ask("POST", &id, "/start?wait=true", None);
    let resumed = stage.ask("GET", &id, "/resources", None);
    assert_eq!(resumed["image_bytes"], 8192);
    assert!(figure(&resumed, "vmm.threads") > 0);
    assert_eq!(figure(&resumed, "generation"), 2);
}

#[test]
fn a_guest_that_does_not_know_the_question_or_invents_names_shows_nothing() {
    let stage = Stage::new();
    for behaviour in ["old-init", "inventive"] {
        let id = stage.start_machine(behaviour);
        let resources = stage.ask("GET", &id, "/resources", None);
        for absent in ["guest_init", "guest_tasks", "guest_vsocks"] {
            assert_eq!(resources.get(absent), None, "{behaviour}: {resources}");
        }
        assert!(figure(&resources, "vmm.threads") > 0);
    }
}

#[test]
fn asking_again_and_again_leaves_nothing_behind() {
    let stage = Stage::new();
    let id = stage.start_machine("");
    let ask = |times| {
        let mut resources = Value::Null;
        for _ in 0..times {
            resources = stage.ask("GET", &id, "/resources", None);
        }
        resources
    };
    // The first questions may start threads that stay.
    let before = ask(5);
    let after = ask(50);
    for name in ["supervisor.timers", "database_bytes"] {
        assert_eq!(figure(&after, name), figure(&before, name), "{name}");
    }
    // A connection that was just closed may still be open at the other end, and on a busy machine two
    // questions overlap for the first time, which takes one thread more that stays.
    let names = [
        "supervisor.threads",
        "supervisor.descriptors",
        "supervisor_tasks",
    ];
    for name in names {
        assert!(figure(&after, name) < figure(&before, name) + 5, "{name}");
    }
}
