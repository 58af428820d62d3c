//! One guest does what it can, and its clients help it, while another machine is used as usual.

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::site::Site;
use crate::support::{MACHINES, config_with, poll};

/// Commands of the hostile guest that its clients run at the same time: more than there may be.
const CLIENTS: usize = 48;
/// Its commands, all of which last until the supervisor ends them.
const COMMANDS: [&str; 3] = ["endless", "huge", "silent"];
/// Further connections to it that nobody reads, of each kind.
const UNREAD: usize = 10;
/// How often the other machine is created, used and destroyed.
const ROUNDS: usize = 5;
/// Longest that any of its steps may take: the shortest deadline that the supervisor has for one.
const STEP_LIMIT: Duration = Duration::from_secs(10);

/// What the supervisor may have in use, and its state directory. All commands keep the most output that is
/// collected, and each connection a frame and its copy.
const MOST_RESIDENT_KIB: u64 = 320 << 10;
const MOST_DESCRIPTORS: usize = 300;
const MOST_DATABASE_BYTES: u64 = 24 << 20;
const MOST_LOG_BYTES: u64 = 20 << 20;
const MOST_CONSOLE_BYTES: u64 = 80 << 20;

/// The largest figures that were seen.
#[derive(Debug, Default)]
struct Peak {
    resident_kib: u64,
    descriptors: usize,
}

impl Peak {
    fn update(&mut self, site: &Site) {
        let path = format!("/proc/{}/status", site.pid().as_raw_nonzero());
        let status = fs::read_to_string(path).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib: u64 = line
            .unwrap()
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .unwrap();
        self.resident_kib = self.resident_kib.max(kib);
        self.descriptors = self.descriptors.max(site.descriptors().len());
    }
}

pub(crate) fn a_guest_that_floods_its_supervisor_harms_no_other_machine_and_fills_nothing() {
    let site = Site::new();
    let quiet = use_a_machine(&site);
    let (hostile, address) = start_hostile(&site);
    let path = format!("{MACHINES}/{hostile}");
    let (done, refused) = (AtomicBool::new(false), AtomicBool::new(false));
    let peak = Mutex::new(Peak::default());
    let begun = Instant::now();
    let slowest = thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (site, path, done, refused) = (&site, &path, &done, &refused);
            scope.spawn(move || {
                let command = COMMANDS[client % COMMANDS.len()];
                let body = json!({"command": [command], "timeout": 1});
                while !done.load(Ordering::SeqCst) {
                    let (status, answer) = site.call("POST", &format!("{path}/exec"), Some(&body));
                    if status == 429 {
                        assert_eq!(answer["status"], "too_many");
                        assert!(answer["hint"].as_str().unwrap().contains("--guest-execs"));
                        refused.store(true, Ordering::SeqCst);
                        thread::park_timeout(Duration::from_millis(100));
                    }
                }
            });
        }
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                peak.lock().unwrap().update(&site);
                thread::park_timeout(Duration::from_millis(50));
            }
        });
        let _unread: Vec<_> = (0..UNREAD)
            .map(|_| {
                let port = TcpStream::connect(&address).unwrap();
                let file = get(&site, &format!("{path}/files?path=/endless"));
                let logs = get(&site, &format!("{path}/logs?follow=true"));
                let events = get(&site, &format!("{path}/events?follow=true"));
                (port, file, logs, events)
            })
            .collect();
        let mut slowest = Duration::ZERO;
        for _ in 0..ROUNDS {
            slowest = slowest.max(use_a_machine(&site));
        }
        poll("a refused command", || {
            refused.load(Ordering::SeqCst).then_some(())
        });
        done.store(true, Ordering::SeqCst);
        slowest
    });
    let peak = peak.into_inner().unwrap();
    eprintln!("slowest step: {quiet:?} before, {slowest:?} beside it; {peak:?}");
    assert!(slowest < STEP_LIMIT, "{slowest:?}");
    assert!(peak.resident_kib < MOST_RESIDENT_KIB, "{peak:?}");
    assert!(peak.descriptors < MOST_DESCRIPTORS, "{peak:?}");
    assert_bounded_files(&site, &hostile);
    assert_bounded_texts(&site, &path, begun);
    site.transition(&hostile, "destroy");
    site.assert_empty();
}

/// Creates, uses, suspends, resumes and destroys a machine; how long the slowest of these took.
fn use_a_machine(site: &Site) -> Duration {
    let mut slowest = Duration::ZERO;
    let mut step = |work: &mut dyn FnMut()| {
        let begun = Instant::now();
        work();
        slowest = slowest.max(begun.elapsed());
    };
    let mut id = String::new();
    step(&mut || id = site.create(""));
    step(&mut || site.transition(&id, "start"));
    for _ in 0..2 {
        step(&mut || {
            let path = format!("{MACHINES}/{id}/exec");
            let body = json!({"command": ["true"]});
            assert_eq!(site.ask("POST", &path, Some(&body))["stdout"], "true");
        });
        step(&mut || site.transition(&id, "suspend"));
        step(&mut || site.transition(&id, "start"));
    }
    step(&mut || site.transition(&id, "destroy"));
    slowest
}

/// Starts the hostile machine. Returns its id and the address of its published port.
fn start_hostile(site: &Site) -> (String, String) {
    let mut config = config_with("hostile");
    config["services"] = json!([{"internal_port": 80, "ports": [{"port": 0}]}]);
    let flip =
        json!({"type": "exec", "command": ["flip"], "interval": "100ms", "grace_period": "0s"});
    config["checks"] = json!({"one": flip, "two": flip, "three": flip});
    let machine = site.ask("POST", MACHINES, Some(&json!({"config": config})));
    let id = machine["id"].as_str().unwrap().to_owned();
    let address = poll("a published port", || {
        let machine = site.machine(&id);
        let address = machine["published"][0]["address"].as_str()?.to_owned();
        (machine["state"] == "started").then_some(address)
    });
    (id, address)
}

/// Asks for something that is not read.
fn get(site: &Site, path: &str) -> UnixStream {
    let mut stream = UnixStream::connect(site.socket()).unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    stream
}

fn assert_bounded_files(site: &Site, hostile: &str) {
    let folder = site.state().join("machines").join(hostile);
    let bytes = |name: &str| fs::metadata(folder.join(name)).map_or(0, |file| file.blocks() * 512);
    let resources = site.ask("GET", &format!("{MACHINES}/{hostile}/resources"), None);
    let database = resources["database_bytes"].as_u64().unwrap();
    let (log, console) = (
        bytes("log.ndjson") + bytes("log.ndjson.1"),
        bytes("console.log"),
    );
    eprintln!("database {database}, log {log}, console {console} bytes");
    assert!(database < MOST_DATABASE_BYTES, "{database}");
    assert!(log > 0 && log < MOST_LOG_BYTES, "{log}");
    assert!(console > 0 && console < MOST_CONSOLE_BYTES, "{console}");
}

fn assert_bounded_texts(site: &Site, path: &str, begun: Instant) {
    let events = poll("an event that tells of others", || {
        let events = site.ask("GET", &format!("{path}/events?limit=5000"), None);
        let events = events.as_array().unwrap().clone();
        let mut told = events.iter().filter_map(|event| event["message"].as_str());
        let found = told.any(|message| message.contains("are not listed"));
        found.then_some(events)
    });
    let checks = events.iter().filter(|event| event["type"] == "check");
    let checks = checks.count() as u64;
    // The first results of all three, a burst, and one more in ten seconds; the machine was started a moment
    // before.
    let most = 25 + begun.elapsed().as_secs() / 10;
    assert!((20..=most).contains(&checks), "{checks}");
    let longest = events.iter().map(|event| event.to_string().len()).max();
    assert!(longest < Some(10_000), "{longest:?}");
    let (_, refusal) = site.call("GET", &format!("{path}/ps"), None);
    assert!(refusal.to_string().len() < 2_000, "{refusal}");
    let log = site.ask("GET", &format!("{path}/logs"), None).to_string();
    assert!(log.contains("lines were dropped"), "{} bytes", log.len());
    // One machine's log is not the supervisor's.
    assert!(site.log().len() < 100_000, "{}", site.log().len());
}
