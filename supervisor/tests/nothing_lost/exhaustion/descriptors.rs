//! The supervisor is out of file descriptors.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::process::Resource;
use serde_json::json;

use super::Outcome::{Done, Fails};
use super::{Step, limit_text, try_all};
use crate::site::Site;
use crate::support::{DEADLINE, MACHINES, poll};
use crate::usage::Usage;

/// Words of each error.
const WORDS: &[&str] = &["no file descriptor left", "LimitNOFILE"];

/// Limits the running supervisor to `free` more descriptors than it has open.
fn leave_descriptors(site: &Site, free: usize) {
    // Some come and go by themselves, such as that of a connection that was just closed: until then
    // nothing changes for a while.
    let mut open = site.descriptors();
    let mut since = Instant::now();
    poll("the open descriptors to stay the same", || {
        let now = site.descriptors();
        if now != open {
            (open, since) = (now, Instant::now());
        }
        (since.elapsed() > Duration::from_millis(300)).then_some(())
    });
    let mut unused = (0..).filter(|number| !open.contains_key(number));
    // The limit is the lowest number that cannot be used.
    let limit = unused.nth(free).unwrap();
    site.set_limit("nofile", &limit.to_string());
}

/// Sets the limit with which a supervisor begins.
pub(crate) fn restore_limit(site: &Site) {
    site.set_limit("nofile", &limit_text(Resource::Nofile));
}

pub(crate) fn when_out_of_descriptors_each_transition_says_so_and_loses_nothing() {
    let site = Site::new();
    let steps = [
        (Step::Create, Fails(WORDS, "")),
        (Step::Start, Fails(WORDS, "stopped")),
        (Step::Resume, Fails(WORDS, "suspended")),
        (Step::Suspend, Done),
        // The guest cannot be asked to end, and is killed at the deadline.
        (Step::Stop, Done),
        // It needs no more descriptors than the machine has just released.
        (Step::Destroy, Done),
    ];
    // One is for the connection of a request.
    let exhaust = || leave_descriptors(&site, 1);
    try_all(&site, &steps, exhaust, || restore_limit(&site));
}

pub(crate) fn when_out_of_descriptors_nothing_spins_and_waiting_clients_are_served_later() {
    let site = Site::new();
    let service = json!({"internal_port": 80, "ports": [{"port": 0}]});
    let body = json!({"config": {"services": [service]}});
    let machine = site.ask("POST", MACHINES, Some(&body));
    let id = machine["id"].as_str().unwrap();
    let published = poll("a published port", || {
        let machine = site.machine(id);
        let address = machine["published"][0]["address"].as_str()?.to_owned();
        (machine["state"] == "started").then_some(address)
    });
    leave_descriptors(&site, 0);
    let mut api_client = UnixStream::connect(site.socket()).unwrap();
    let request = format!("GET {MACHINES} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    api_client.write_all(request.as_bytes()).unwrap();
    let mut port_client = TcpStream::connect(&published).unwrap();
    port_client.write_all(b"hello").unwrap();
    // Two loops cannot accept their connections. If one of them spun, it would take about as much CPU
    // time as a thread that spins; if it tried again without a pause, it would be woken all the time.
    let usage = Usage::measure(site.pid(), Duration::from_secs(3));
    assert!(usage.cpu < usage.spinning / 4, "{usage:?}");
    assert!(usage.wake_ups < 1_000, "{usage:?}");
    restore_limit(&site);
    api_client.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut answer = String::new();
    api_client.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    port_client.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut echo = [0; 5];
    port_client.read_exact(&mut echo).unwrap();
    assert_eq!(&echo, b"hello");
}

pub(crate) fn a_supervisor_that_has_too_few_descriptors_to_start_harms_no_machine() {
    let site = Site::new();
    let machines: Vec<(String, String)> = (0..3)
        .map(|_| {
            let id = site.create("");
            site.transition(&id, "start");
            let boot_id = site.boot_id(&id);
            (id, boot_id)
        })
        .collect();
    let vmms = site.vmms();
    let needed = site.descriptors().len();
    let mut refused = 0;
    for limit in (4..=needed + 4).step_by(2) {
        site.kill();
        let logged = site.log().len();
        site.spawn_under(&["prlimit", &format!("--nofile={limit}:{limit}")]);
        let ended = poll("the end of the supervisor, or the API", || {
            match site.exit_success() {
                Some(_) => Some(true),
                // It may have no descriptor left to accept a connection.
                None => site.log()[logged..]
                    .contains("serving the API")
                    .then_some(false),
            }
        });
        refused += usize::from(ended);
        // Time for a first attempt to adopt each machine.
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(400) {
            assert_eq!(site.vmms(), vmms, "with {limit} descriptors");
        }
    }
    assert!(refused > 0, "none of these limits was too low");
    assert!(site.log().contains("Too many open files"), "{}", site.log());
    site.kill();
    site.start();
    for (id, boot_id) in machines {
        poll("the guest", || {
            let path = format!("{MACHINES}/{id}/vsock");
            (site.call("GET", &path, None).0 == 200).then_some(())
        });
        assert_eq!(site.boot_id(&id), boot_id);
    }
    assert_eq!(site.vmms(), vmms);
}
