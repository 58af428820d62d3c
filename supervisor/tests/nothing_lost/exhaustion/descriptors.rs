//! The supervisor's file descriptors run out.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::process::Resource;
use serde_json::json;

use super::Outcome::{Done, Fails};
use super::{Step, try_all};
use crate::site::{MACHINES, Site, poll};

/// What an error says.
const WORDS: &[&str] = &["no file descriptor left", "LimitNOFILE"];

/// Leaves the running supervisor `free` descriptors.
fn leave(site: &Site, free: usize) {
    // What comes and goes by itself, such as a connection that was just closed, is waited for.
    let mut seen = site.descriptors();
    let mut since = Instant::now();
    poll("descriptors at rest", || {
        let now = site.descriptors();
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
        (since.elapsed() > Duration::from_millis(300)).then_some(())
    });
    let mut unused = (0..).filter(|number| !seen.contains_key(number));
    let first_beyond = unused.nth(free).unwrap();
    site.limit("nofile", &first_beyond.to_string());
}

/// The limit that a supervisor begins with.
fn usual() -> String {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    limit
        .current
        .map_or("unlimited".to_owned(), |most| most.to_string())
}

#[test]
fn without_descriptors_each_transition_says_so_and_loses_nothing() {
    let site = Site::new();
    let steps = [
        (Step::Create, Fails(WORDS, "")),
        (Step::Start, Fails(WORDS, "stopped")),
        (Step::Resume, Fails(WORDS, "suspended")),
        (Step::Suspend, Done),
        // The guest can't be asked: it is killed when its time is over.
        (Step::Stop, Done),
        // What it needs is what the machine has just given back.
        (Step::Destroy, Done),
    ];
    // One is for the API's connection.
    let take = || leave(&site, 1);
    let give = || site.limit("nofile", &usual());
    try_all(&site, &steps, take, give);
}

#[test]
fn without_descriptors_nothing_spins_and_who_waited_is_served_afterwards() {
    let site = Site::new();
    let service = json!({"internal_port": 80, "ports": [{"port": 0}]});
    let body = json!({"config": {"services": [service]}});
    let (status, machine) = site.call("POST", MACHINES, Some(&body));
    assert_eq!(status, 200, "{machine}");
    let id = machine["id"].as_str().unwrap();
    let published = poll("a published port", || {
        let machine = site.machine(id);
        let address = machine["published"][0]["address"].as_str()?.to_owned();
        (machine["state"] == "started").then_some(address)
    });
    leave(&site, 0);
    let mut asking = UnixStream::connect(site.socket()).unwrap();
    let request = format!("GET {MACHINES} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    asking.write_all(request.as_bytes()).unwrap();
    let mut carried = TcpStream::connect(&published).unwrap();
    carried.write_all(b"hello").unwrap();
    let before = site.cpu_ticks();
    let window = Instant::now();
    while window.elapsed() < Duration::from_secs(3) {
        std::thread::park_timeout(Duration::from_millis(100));
    }
    // Two loops that spin would have had three seconds of CPU.
    let used = site.cpu_ticks() - before;
    assert!(used < 60, "{used} ticks in 3 s");
    site.limit("nofile", &usual());
    asking
        .set_read_timeout(Some(crate::site::DEADLINE))
        .unwrap();
    let mut answer = String::new();
    asking.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    carried
        .set_read_timeout(Some(crate::site::DEADLINE))
        .unwrap();
    let mut echo = [0; 5];
    carried.read_exact(&mut echo).unwrap();
    assert_eq!(&echo, b"hello");
}

#[test]
fn a_supervisor_that_has_too_few_descriptors_to_begin_harms_no_machine() {
    let site = Site::new();
    let machines: Vec<(String, String)> = (0..3)
        .map(|_| {
            let id = site.created("");
            site.bring(&id, "start");
            let boot = site.boot_id(&id);
            (id, boot)
        })
        .collect();
    let running = site.vmms();
    let needed = site.descriptors().len();
    let mut refused = 0;
    for most in (4..=needed + 4).step_by(2) {
        site.kill();
        let said = site.log().len();
        site.spawn(&["prlimit", &format!("--nofile={most}:{most}")]);
        let ended = poll("an end, or service", || match site.ended() {
            Some(_) => Some(true),
            // It may have no descriptor to accept a connection with.
            None => site.log()[said..]
                .contains("serving the API")
                .then_some(false),
        });
        refused += usize::from(ended);
        // Long enough for a first attempt at each machine.
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(400) {
            assert_eq!(site.vmms(), running, "with {most} descriptors");
        }
    }
    assert!(refused > 0, "none of these limits was too low");
    assert!(site.log().contains("Too many open files"), "{}", site.log());
    site.kill();
    site.start();
    for (id, boot) in machines {
        poll("its guest", || {
            let path = format!("{MACHINES}/{id}/vsock");
            (site.call("GET", &path, None).0 == 200).then_some(())
        });
        assert_eq!(site.boot_id(&id), boot);
    }
    assert_eq!(site.vmms(), running);
}
