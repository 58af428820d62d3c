//! The whole supervisor over its real API, with fake VMMs in place of real ones.

#![expect(clippy::unwrap_used, reason = "parts of tests")]

mod access;
mod crash;
mod ending;
mod fly_clients;
mod reach;
mod stage;
mod tls;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use stage::{Stage, poll};

#[test]
fn a_machine_lives_through_suspend_and_resume_and_is_destroyed() {
    let stage = Stage::new();
    let id = stage.started("");
    let boot = stage.boot_id(&id);
    stage.ask("POST", &id, "/suspend?wait=true", None);
    assert_eq!(stage.reach(&id, "suspended")["state"], "suspended");
    assert!(stage.vmm(&id).is_none());
    let answer = stage.ask("POST", &id, "/start?wait=true", None);
    assert_eq!(answer["previous_state"], "suspended");
    assert_eq!(answer["start"]["kind"], "resumed");
    assert_eq!(stage.boot_id(&id), boot);
    stage.ask("POST", &id, "/stop?wait=true", None);
    stage.ask("DELETE", &id, "", None);
    assert!(stage.machines_on_disk().is_empty());
    let (_, list) = stage.call("GET", "/v1/apps/default/machines", None);
    assert_eq!(list, json!([]));
}

#[test]
fn phases_of_every_timing_sum_to_its_total() {
    let stage = Stage::new();
    let id = stage.started("");
    stage.ask("POST", &id, "/suspend?wait=true", None);
    stage.ask("POST", &id, "/start?wait=true", None);
    let timings = stage.ask("GET", &id, "/timings", None);
    let operations: Vec<&Value> = timings
        .as_array()
        .unwrap()
        .iter()
        .map(|timing| &timing["operation"])
        .collect();
    assert_eq!(operations, ["resume", "suspend", "start"]);
    for timing in timings.as_array().unwrap() {
        let phases = timing["phases"].as_array().unwrap();
        let sum: f64 = phases
            .iter()
            .map(|phase| phase["ms"].as_f64().unwrap())
            .sum();
        assert!(
            (sum - timing["total_ms"].as_f64().unwrap()).abs() < 0.01,
            "{timing}"
        );
        assert_eq!(phases.last().unwrap()["name"], "unattributed");
    }
    let names: Vec<&str> = timings[0]["phases"]
        .as_array()
        .unwrap()
        .iter()
        .map(|phase| phase["name"].as_str().unwrap())
        .collect();
    for wanted in [
        "admission",
        "spawn",
        "vmm_start",
        "connect",
        "first_status",
        "monitor_reopened",
    ] {
        assert!(names.contains(&wanted), "{wanted} in {names:?}");
    }
}

#[test]
fn refused_attempts_are_shown_with_their_ports() {
    let stage = Stage::new();
    let id = stage.started("rst=3");
    stage.ask("POST", &id, "/suspend?wait=true", None);
    stage.ask("POST", &id, "/start?wait=true", None);
    let machine = stage.ask("GET", &id, "", None);
    let outcomes: Vec<(u64, &str)> = machine["readiness"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| {
            (
                one["local_port"].as_u64().unwrap(),
                one["outcome"].as_str().unwrap(),
            )
        })
        .collect();
    let first = 1 << 30;
    let expected = [
        (first, "reset"),
        (first + 1, "reset"),
        (first + 2, "reset"),
        (first + 3, "ok"),
    ];
    assert_eq!(outcomes, expected);
}

#[test]
fn a_failed_suspend_leaves_the_machine_started_and_says_why() {
    let stage = Stage::new();
    let id = stage.started("fail-suspend");
    let path = format!("/v1/apps/default/machines/{id}/suspend?wait=true");
    let (status, answer) = stage.call("POST", &path, None);
    assert_eq!(status, 409, "{answer}");
    let machine = stage.reach(&id, "started");
    let message = machine["events"][0]["message"].as_str().unwrap();
    assert!(message.contains("no space left"), "{message}");
    stage.boot_id(&id);
}

#[test]
fn a_start_breaks_a_suspend_off_and_the_same_guest_goes_on() {
    let stage = Stage::new();
    let id = stage.started("slow-suspend");
    let vmm = stage.vmm(&id);
    stage.ask("POST", &id, "/suspend", None);
    stage.reach(&id, "suspending");
    let answer = stage.ask("POST", &id, "/start?wait=true", None);
    assert_eq!(answer["start"]["kind"], "suspend_cancelled");
    assert_eq!(stage.reach(&id, "started")["state"], "started");
    assert_eq!(stage.vmm(&id), vmm);
}

#[test]
fn a_refused_image_becomes_a_cold_boot_with_its_reason() {
    let stage = Stage::new();
    let id = stage.started("refuse-image");
    stage.ask("POST", &id, "/suspend?wait=true", None);
    let answer = stage.ask("POST", &id, "/start?wait=true", None);
    let expected = json!({"kind": "cold_booted", "reason": "checksum mismatch"});
    assert_eq!(answer["start"], expected);
}

#[test]
fn a_missing_image_becomes_a_cold_boot_with_its_reason() {
    let stage = Stage::new();
    let id = stage.started("");
    stage.ask("POST", &id, "/suspend?wait=true", None);
    fs::remove_dir_all(stage.directory(&id).join("image")).unwrap();
    let answer = stage.ask("POST", &id, "/start?wait=true", None);
    assert_eq!(
        answer["start"],
        json!({"kind": "cold_booted", "reason": "image missing"})
    );
}

#[test]
fn a_guest_that_never_answers_fails_its_start() {
    let stage = Stage::new();
    let config = json!({"guest": {"kernel_args": ["deaf"]}});
    let (_, machine) = stage.call(
        "POST",
        "/v1/apps/default/machines",
        Some(json!({"config": config})),
    );
    let id = machine["id"].as_str().unwrap();
    let machine = stage.reach(id, "failed");
    assert!(
        machine["events"][0]["message"]
            .as_str()
            .unwrap()
            .contains("did not become ready")
    );
    assert!(stage.vmm(id).is_none());
}

#[test]
fn a_new_supervisor_adopts_what_a_killed_one_left() {
    let mut stage = Stage::new();
    let started = stage.started("");
    let suspended = stage.started("");
    stage.ask("POST", &suspended, "/suspend?wait=true", None);
    let (vmm, boot) = (stage.vmm(&started), stage.boot_id(&started));
    stage.kill();
    assert_eq!(stage.vmm(&started), vmm);
    stage.start(&[]);
    assert_eq!((stage.vmm(&started), stage.boot_id(&started)), (vmm, boot));
    assert_eq!(stage.ask("GET", &suspended, "", None)["state"], "suspended");
}

#[test]
fn a_killed_vmm_is_noticed_and_restarted_by_its_policy() {
    let stage = Stage::new();
    let config = json!({"restart": {"policy": "always"}});
    let (_, machine) = stage.call(
        "POST",
        "/v1/apps/default/machines",
        Some(json!({"config": config})),
    );
    let id = machine["id"].as_str().unwrap();
    let generation = stage.reach(id, "started")["generation"].as_u64().unwrap();
    let vmm = stage.vmm(id).unwrap();
    rustix::process::kill_process(vmm, rustix::process::Signal::KILL).unwrap();
    poll("the next generation", || {
        let machine = stage.ask("GET", id, "", None);
        let later = machine["generation"].as_u64().unwrap() > generation;
        (later && machine["state"] == "started").then_some(())
    });
}

#[test]
fn killed_together_the_machine_is_found_ended() {
    let mut stage = Stage::new();
    let id = stage.started("");
    // Answered by the database's thread, behind the note that the machine is started.
    stage.ask("GET", &id, "/timings", None);
    stage.kill();
    let vmm = stage.vmm(&id).unwrap();
    rustix::process::kill_process(vmm, rustix::process::Signal::KILL).unwrap();
    poll("its end", || stage.vmm(&id).is_none().then_some(()));
    stage.start(&[]);
    let machine = stage.reach(&id, "stopped");
    assert_eq!(machine["events"][0]["type"], "exit");
}

#[test]
fn a_suspend_that_a_crash_cut_off_is_finished() {
    let mut stage = Stage::new();
    let id = stage.started("slow-suspend");
    stage.ask("POST", &id, "/suspend", None);
    stage.reach(&id, "suspending");
    stage.kill();
    stage.start(&[]);
    // The fake saves for 20 s unless broken off; a start does that and proves who drives it.
    let answer = stage.ask("POST", &id, "/start?wait=true", None);
    assert_eq!(answer["start"]["kind"], "suspend_cancelled", "{answer}");
}

#[test]
fn no_line_of_output_is_lost_or_doubled_over_a_suspend() {
    let stage = Stage::new();
    let id = stage.started("");
    let say = |text: &str| {
        stage.ask(
            "POST",
            &id,
            "/exec",
            Some(json!({"command": ["say", text]})),
        );
        poll(text, || {
            stage.log(&id).contains(&text.to_owned()).then_some(())
        });
    };
    say("one");
    stage.ask("POST", &id, "/suspend?wait=true", None);
    stage.ask("POST", &id, "/start?wait=true", None);
    say("two");
    let said: Vec<String> = stage
        .log(&id)
        .into_iter()
        .filter(|text| ["main was started", "one", "two"].contains(&text.as_str()))
        .collect();
    assert_eq!(said, ["main was started", "one", "two"]);
}

#[test]
fn a_lease_keeps_others_out() {
    let stage = Stage::new();
    let id = stage.started("");
    let lease = stage.ask("POST", &id, "/lease", Some(json!({"ttl": 60})));
    assert!(
        lease["data"]["nonce"]
            .as_str()
            .is_some_and(|nonce| !nonce.is_empty())
    );
    let path = format!("/v1/apps/default/machines/{id}/stop");
    let (status, answer) = stage.call("POST", &path, None);
    assert_eq!((status, &answer["status"]), (409, &json!("lease_held")));
}

#[test]
fn an_update_makes_a_new_version_and_boots_it() {
    let stage = Stage::new();
    let id = stage.started("");
    let before = stage.ask("GET", &id, "", None);
    let config = json!({"metadata": {"foo": "bar"}});
    stage.ask("POST", &id, "", Some(json!({"config": config})));
    let after = poll("the new version", || {
        let machine = stage.ask("GET", &id, "", None);
        (machine["state"] == "started" && machine["generation"] != before["generation"])
            .then_some(machine)
    });
    assert_ne!(after["instance_id"], before["instance_id"]);
    assert_eq!(
        stage
            .ask("GET", &id, "/versions", None)
            .as_array()
            .unwrap()
            .len(),
        2
    );
}

#[test]
fn what_can_not_be_done_is_refused_with_state_and_reason() {
    let stage = Stage::new();
    let id = stage.started("");
    let path = format!("/v1/apps/default/machines/{id}");
    let (status, answer) = stage.call("DELETE", &path, None);
    assert_eq!(
        (status, &answer["details"]["state"]),
        (412, &json!("started"))
    );
    assert_eq!(
        stage.call("GET", "/v1/apps/default/machines/none", None).0,
        404
    );
    assert_eq!(stage.call("GET", "/v1/apps/other/machines", None).0, 404);
    assert_eq!(
        stage
            .call("POST", "/v1/apps/default/machines", Some(json!({})))
            .0,
        400
    );
    assert_eq!(stage.call("PUT", &path, None).0, 405);
}

/// A started machine that publishes its port 80 on the answer's port.
fn publishing(stage: &Stage, service: &Value) -> (String, u16) {
    let port = stage::free_port();
    let mut service = service.clone();
    service["internal_port"] = json!(80);
    service["ports"] = json!([{"port": port}]);
    let config = json!({"services": [service]});
    let (_, machine) = stage.call(
        "POST",
        "/v1/apps/default/machines",
        Some(json!({"config": config})),
    );
    let id = machine["id"].as_str().unwrap().to_owned();
    stage.reach(&id, "started");
    (id, port)
}

fn echoed(port: u16, text: &str) -> String {
    let mut stream = poll("the port", || TcpStream::connect(("127.0.0.1", port)).ok());
    stream.write_all(text.as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_published_port_carries_bytes_both_ways_and_half_closes() {
    let stage = Stage::new();
    let (_, port) = publishing(&stage, &json!({"protocol": "tcp"}));
    let text = "x".repeat(300_000);
    assert_eq!(echoed(port, &text).len(), text.len());
}

#[test]
fn a_connection_to_a_suspended_machine_is_held_until_it_runs() {
    let stage = Stage::new();
    let (id, port) = publishing(&stage, &json!({"autostart": true}));
    stage.ask("POST", &id, "/suspend?wait=true", None);
    assert_eq!(echoed(port, "hello"), "hello");
    assert_eq!(
        stage.ask("GET", &id, "", None)["last_start"]["kind"],
        "resumed"
    );
}

#[test]
fn an_idle_machine_is_suspended_but_not_while_it_is_used() {
    let stage = Stage::new();
    let service = json!({"autostop": "suspend", "idle_timeout": "300ms"});
    let (id, port) = publishing(&stage, &service);
    stage.reach(&id, "suspended");
    stage.ask("POST", &id, "/start?wait=true", None);
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let begun = std::time::Instant::now();
    while begun.elapsed() < std::time::Duration::from_millis(900) {
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
    }
    assert_eq!(stage.ask("GET", &id, "", None)["state"], "started");
    drop(stream);
    stage.reach(&id, "suspended");
}

#[test]
fn a_token_of_the_reading_scope_changes_nothing_and_a_revoked_one_sees_nothing() {
    let mut stage = Stage::new();
    stage.kill();
    let port = stage::free_port();
    stage.start(&["--listen", &format!("127.0.0.1:{port}")]);
    let (_, made) = stage.call(
        "POST",
        "/v1/tokens",
        Some(json!({"name": "ci", "scope": "read"})),
    );
    let secret = made["secret"].as_str().unwrap();
    let status = |method: &str, token: &str| {
        let mut stream = poll("the port", || TcpStream::connect(("127.0.0.1", port)).ok());
        let head = format!(
            "{method} /v1/apps/default/machines HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
             authorization: Bearer {token}\r\ncontent-length: 0\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split(' ').nth(1).unwrap().to_owned()
    };
    assert_eq!(status("GET", secret), "200");
    assert_eq!(status("POST", secret), "403");
    assert_eq!(status("GET", "wrong"), "401");
    let path = format!("/v1/tokens/{}", made["id"].as_str().unwrap());
    assert_eq!(stage.call("DELETE", &path, None).0, 200);
    assert_eq!(status("GET", secret), "401");
}

#[test]
fn checks_are_shown_and_a_readiness_check_holds_connections_back() {
    let stage = Stage::new();
    let (id, port) = publishing(&stage, &json!({}));
    let mut config = stage.ask("GET", &id, "", None)["config"].clone();
    config["checks"] = json!({
        "web": {"type": "tcp", "port": 80, "interval": "200ms"},
        "never": {"type": "exec", "command": ["false"], "interval": "200ms", "kind": "readiness"},
    });
    stage.ask("POST", &id, "", Some(json!({"config": config})));
    poll("both results", || {
        let machine = stage.ask("GET", &id, "", None);
        let status = |name: &str| {
            let checks = machine["checks"].as_array().unwrap();
            let found = checks.iter().find(|check| check["name"] == name);
            found.map(|check| check["status"].clone())
        };
        (status("web")? == "passing" && status("never")? == "critical").then_some(())
    });
    let mut stream = poll("the port", || TcpStream::connect(("127.0.0.1", port)).ok());
    stream
        .set_read_timeout(Some(std::time::Duration::from_millis(300)))
        .unwrap();
    stream.write_all(b"x").unwrap();
    let held = stream.read(&mut [0]).unwrap_err();
    assert_eq!(held.kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn two_hundred_machines_are_listed_fast_and_idle_without_work() {
    let stage = Stage::new();
    let config = json!({"config": {}});
    for _ in 0..200 {
        let (status, answer) =
            stage.call("POST", "/v1/apps/default/machines", Some(config.clone()));
        assert_eq!(status, 200, "{answer}");
    }
    let started = |stage: &Stage| {
        let (_, list) = stage.call("GET", "/v1/apps/default/machines?state=started", None);
        list.as_array().unwrap().len()
    };
    poll("all of them", || (started(&stage) == 200).then_some(()));
    let begun = std::time::Instant::now();
    assert_eq!(started(&stage), 200);
    let listing = begun.elapsed();
    assert!(
        listing < std::time::Duration::from_millis(500),
        "{listing:?}"
    );
    let before = stage.cpu_ticks();
    let window = std::time::Instant::now();
    while window.elapsed() < std::time::Duration::from_secs(2) {
        std::thread::park_timeout(std::time::Duration::from_millis(100));
    }
    // A hundredth of a second each: less than a tenth of one CPU for two hundred monitors.
    let used = stage.cpu_ticks() - before;
    println!("listing took {listing:?}; idle used {used} ticks in 2 s");
    assert!(used < 20, "{used} ticks in 2 s");
}

#[test]
fn a_resume_that_can_not_run_its_vmm_leaves_the_machine_suspended() {
    let mut stage = Stage::new();
    let id = stage.started("");
    stage.ask("POST", &id, "/suspend?wait=true", None);
    let boot = stage.ask("GET", &id, "/timings", None)[1]["guest"]["boot_id"].clone();
    stage.kill();
    stage.start(&["--vmm", "/nowhere/mctl-vmm"]);
    let path = format!("/v1/apps/default/machines/{id}/start?wait=true");
    let (status, answer) = stage.call("POST", &path, None);
    assert_eq!(
        (status, &answer["details"]["state"]),
        (409, &json!("suspended"))
    );
    assert!(
        answer["error"]
            .as_str()
            .unwrap()
            .contains("cannot run /nowhere/mctl-vmm")
    );
    stage.kill();
    stage.start(&[]);
    assert_eq!(
        stage.ask("POST", &id, "/start?wait=true", None)["start"]["kind"],
        "resumed"
    );
    assert_eq!(stage.boot_id(&id), boot.as_str().unwrap());
}

#[test]
fn stopping_a_suspended_machine_drops_its_image() {
    let stage = Stage::new();
    let id = stage.started("");
    stage.ask("POST", &id, "/suspend?wait=true", None);
    stage.ask("POST", &id, "/stop?wait=true", None);
    assert!(!stage.directory(&id).join("image").exists());
    assert_eq!(
        stage.ask("POST", &id, "/start?wait=true", None)["start"]["kind"],
        "booted"
    );
}

#[test]
fn with_the_monitor_first_its_failures_come_before_the_status_check() {
    let stage = Stage::new();
    let config = json!({"guest": {"kernel_args": ["rst=3"]}, "vsock": {"monitor_first": true}});
    let (_, machine) = stage.call(
        "POST",
        "/v1/apps/default/machines",
        Some(json!({"config": config})),
    );
    let id = machine["id"].as_str().unwrap();
    stage.reach(id, "started");
    stage.ask("POST", id, "/suspend?wait=true", None);
    stage.ask("POST", id, "/start?wait=true", None);
    let machine = stage.ask("GET", id, "", None);
    let outcomes: Vec<&str> = machine["readiness"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["outcome"].as_str().unwrap())
        .collect();
    assert_eq!(outcomes, ["reset", "reset", "reset", "ok", "ok"]);
}
