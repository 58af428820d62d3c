//! Many machines, several clients, random requests, and random hardships: deaths of the supervisor and of VMMs,
//! power failures, a full disk, no descriptors left.
//!
//! `MCTL_SOAK_SECONDS` is the length of a run (30), `MCTL_SOAK_MACHINES` the number of machines at a
//! time (24), `MCTL_SOAK_SEED` repeats a run. With the same seed each client makes the same requests in
//! the same order; what happens at the same time depends on the clock.

mod hardships;
mod invariants;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use crate::exhaustion::space;
use crate::site::Site;
use crate::support::{MACHINES, poll_within};

/// Clients at the same time.
const CLIENTS: u64 = 6;
/// Size of the disk that becomes full.
const DISK_MIB: u32 = 192;

/// What the run knows of a machine. Each has a name that no other machine ever has.
#[derive(Debug, Clone, Default)]
struct Known {
    id: Option<String>,
    /// It may disappear: a destroy was requested, or it is removed when it ends.
    may_disappear: bool,
}

/// One run.
struct Soak {
    site: Site,
    /// The small disk that holds everything, if one could be mounted.
    disk: Option<PathBuf>,
    end: Instant,
    machines: u64,
    known: Mutex<BTreeMap<String, Known>>,
    /// Counts the starts and ends of supervisors; odd while there is no supervisor.
    epoch: AtomicU64,
    /// Counts the beginnings and ends of exhaustion; odd while there is one.
    exhaustions: AtomicU64,
    /// Held for writing while the supervisor or VMMs are killed, and for reading while nothing may be
    /// killed.
    kills: RwLock<()>,
    failed: AtomicBool,
    failures: Mutex<Vec<String>>,
    counts: Mutex<BTreeMap<String, u64>>,
}

/// The number in the environment variable `name`, or else `default`.
fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}={text} is not a number")),
        Err(_) => default,
    }
}

pub(crate) fn no_machine_is_lost_or_runs_twice_whatever_dies_and_when() {
    let disk = match space::obstacle() {
        None => {
            let name = "soak::no_machine_is_lost_or_runs_twice_whatever_dies_and_when";
            let tell = |text: &str| {
                let figures = text.lines().filter(|line| line.starts_with("seed "));
                figures.for_each(|line| eprintln!("{line}"));
            };
            let Some(disk) = space::small_disk_of(name, DISK_MIB, tell) else {
                return;
            };
            Some(disk)
        }
        Some(obstacle) => {
            eprintln!("the disk is never full: {obstacle}");
            None
        }
    };
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let seed = setting("MCTL_SOAK_SEED", u64::from(now.subsec_nanos()));
    let seconds = setting("MCTL_SOAK_SECONDS", 30);
    eprintln!("soak of {seconds} s; MCTL_SOAK_SEED={seed} repeats its decisions");
    let soak = Soak {
        site: disk.clone().map_or_else(Site::new, Site::in_folder),
        disk,
        end: Instant::now() + Duration::from_secs(seconds),
        machines: setting("MCTL_SOAK_MACHINES", 24),
        known: Mutex::default(),
        epoch: AtomicU64::new(0),
        exhaustions: AtomicU64::new(0),
        kills: RwLock::new(()),
        failed: AtomicBool::new(false),
        failures: Mutex::default(),
        counts: Mutex::default(),
    };
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let soak = &soak;
            scope.spawn(move || soak.client(client, SmallRng::seed_from_u64(seed + client)));
        }
        scope.spawn(|| soak.make_hard(SmallRng::seed_from_u64(seed + 1_000)));
        scope.spawn(|| {
            while soak.is_running() {
                soak.check();
                pause(200);
            }
        });
    });
    if soak.failures.lock().unwrap().is_empty() {
        soak.finish();
    }
    let counts = soak.counts.lock().unwrap().clone();
    eprintln!("seed {seed}, {seconds} s: {counts:?}");
    let failures = soak.failures.lock().unwrap();
    assert!(failures.is_empty(), "seed {seed}: {}", failures.join("\n"));
}

fn pause(ms: u64) {
    std::thread::park_timeout(Duration::from_millis(ms));
}

/// Whether the last thing that happened to a machine is an end after which it is started again.
fn will_be_restarted(machine: &Value) -> bool {
    let events = machine["events"].as_array().into_iter().flatten();
    let mut with_status = events.filter(|event| event["status"] != "");
    let last = with_status.next();
    last.is_some_and(|event| event["request"]["exit_event"]["restarting"] == true)
}

impl Soak {
    fn is_running(&self) -> bool {
        Instant::now() < self.end && !self.failed.load(Ordering::SeqCst)
    }

    fn fail(&self, what: String) {
        self.failed.store(true, Ordering::SeqCst);
        self.failures.lock().unwrap().push(what);
    }

    fn count(&self, what: &str) {
        *self
            .counts
            .lock()
            .unwrap()
            .entry(what.to_owned())
            .or_default() += 1;
    }

    /// Makes a request; none if a death of the supervisor may have interrupted it.
    fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Option<(u16, Value)> {
        let before = self.epoch.load(Ordering::SeqCst);
        match self.site.try_call(method, path, body) {
            Ok((status, answer)) => {
                if status == 500 || !(200..=599).contains(&status) {
                    self.fail(format!("{method} {path}: {status} {answer}"));
                }
                Some((status, answer))
            }
            Err(error) => {
                let after = self.epoch.load(Ordering::SeqCst);
                if before == after && before.is_multiple_of(2) {
                    let ended = self.site.exit_success();
                    self.fail(format!(
                        "{method} {path} got no answer: {error} (has the supervisor ended: {ended:?})"
                    ));
                }
                self.count("interrupted");
                pause(20);
                None
            }
        }
    }

    fn client(&self, client: u64, mut rng: SmallRng) {
        let mut made = 0;
        while self.is_running() {
            let machines = self.machines_to_keep();
            if machines.len() < usize::try_from(self.machines).unwrap() && rng.random_bool(0.3) {
                made += 1;
                self.create(&format!("c{client}-{made}"), &mut rng);
            } else if !machines.is_empty() {
                let (name, id) = &machines[rng.random_range(0..machines.len())];
                self.operate(name, id, &mut rng);
            }
            pause(rng.random_range(0..40));
        }
    }

    /// Names and ids of the machines that must not disappear.
    fn machines_to_keep(&self) -> Vec<(String, String)> {
        let known = self.known.lock().unwrap();
        let to_keep = known.iter().filter(|(_, known)| !known.may_disappear);
        to_keep
            .filter_map(|(name, known)| Some((name.clone(), known.id.clone()?)))
            .collect()
    }

    fn create(&self, name: &str, rng: &mut SmallRng) {
        let behaviours = ["", "", "", "", "rst=2", "fail-suspend", "slow-suspend"];
        let policies = ["no", "always", "on-failure"];
        // It is removed when it ends, so its policy must not restart it.
        let ephemeral = rng.random_bool(0.15);
        let policies = if ephemeral { &policies[..1] } else { &policies };
        let body = json!({
            "name": name,
            "skip_launch": rng.random_bool(0.2),
            "config": {
                "guest": {"kernel_args": [behaviours[rng.random_range(0..behaviours.len())]]},
                "init": {"exec": ["main"]},
                "restart": {"policy": policies[rng.random_range(0..policies.len())]},
                "stop_config": {"timeout": "1s"},
                "auto_destroy": ephemeral,
            },
        });
        let known = Known {
            may_disappear: ephemeral,
            ..Known::default()
        };
        self.known.lock().unwrap().insert(name.to_owned(), known);
        self.count("create");
        let before = self.exhaustions.load(Ordering::SeqCst);
        match self.call("POST", MACHINES, Some(&body)) {
            Some((200, machine)) => {
                let id = machine["id"].as_str().unwrap().to_owned();
                let mut known = self.known.lock().unwrap();
                known.get_mut(name).unwrap().id = Some(id);
            }
            Some((status, _)) if self.was_exhausted_since(before) => {
                self.count(&format!("creates refused with {status}"));
            }
            Some((status, answer)) => self.fail(format!("create {name}: {status} {answer}")),
            // It may exist or not, but not twice. The check at the end finds out.
            None => {}
        }
    }

    fn operate(&self, name: &str, id: &str, rng: &mut SmallRng) {
        let verbs = [
            "start", "start", "start", "start", "suspend", "suspend", "suspend", "stop", "restart",
            "update", "exec", "exec", "metadata", "read", "timings", "leave", "destroy", "slow",
        ];
        let verb = verbs[rng.random_range(0..verbs.len())];
        let wait = if rng.random_bool(0.5) {
            "?wait=true"
        } else {
            ""
        };
        let update = json!({"config": {
            "init": {"exec": ["main"]},
            "restart": {"policy": "no"},
            "stop_config": {"timeout": "1s"},
            "metadata": {"n": rng.random_range(0..1_000_u32).to_string()},
        }, "skip_launch": rng.random_bool(0.2)});
        let destroys = rng.random_bool(0.3);
        let force = if rng.random_bool(0.7) {
            "?force=true"
        } else {
            ""
        };
        if verb == "destroy" {
            // Most machines have to exist for long.
            if !destroys {
                return;
            }
            self.set_may_disappear(name, true);
        }
        self.count(verb);
        let path = |rest: &str| format!("{MACHINES}/{id}{rest}");
        let answer = match verb {
            "start" | "suspend" | "stop" | "restart" => {
                self.call("POST", &path(&format!("/{verb}{wait}")), None)
            }
            "update" => self.call("POST", &path(""), Some(&update)),
            "exec" => {
                let body = json!({"command": ["say", "hello"], "timeout": 5});
                self.call("POST", &path("/exec"), Some(&body))
            }
            "metadata" => self.call("POST", &path("/metadata/k"), Some(&json!({"value": "v"}))),
            "timings" => self.call("GET", &path("/timings"), None),
            // A client that disconnects during its request.
            "leave" => {
                self.disconnect_during(&path("/suspend?wait=true"));
                None
            }
            // A resume on a disk that takes its time.
            "slow" => self.on_a_slow_disk(id, rng.random_range(50..2_000), || {
                self.call("POST", &path(&format!("/start{wait}")), None)
            }),
            "destroy" => self.call("DELETE", &path(force), None),
            _ => self.call("GET", &path(""), None),
        };
        match answer {
            Some((404, answer)) if verb != "destroy" && !self.may_disappear(name) => {
                self.fail(format!("{verb} {name} {id}: {answer}"));
            }
            // It was refused, for instance without force.
            Some((status, _)) if verb == "destroy" && status != 200 => {
                self.set_may_disappear(name, status != 412);
            }
            Some((200, _)) => self.count("granted"),
            Some((status, answer)) => {
                let code = answer["status"].as_str().unwrap_or_default();
                self.count(&format!("{status} {code}"));
            }
            None => {}
        }
    }

    fn may_disappear(&self, name: &str) -> bool {
        self.known.lock().unwrap()[name].may_disappear
    }

    fn set_may_disappear(&self, name: &str, may_disappear: bool) {
        let mut known = self.known.lock().unwrap();
        known.get_mut(name).unwrap().may_disappear = may_disappear;
    }

    fn disconnect_during(&self, path: &str) {
        use std::io::Write;
        if let Ok(mut stream) = std::os::unix::net::UnixStream::connect(self.site.socket()) {
            let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n");
            let _ = stream.write_all(head.as_bytes());
        }
    }

    /// After the run: every machine gets to a resting state and can be used, and its destroy leaves
    /// nothing.
    fn finish(&self) {
        self.check();
        self.wait_for_rest();
        let list = self.site.list();
        self.set_count("machines at the end", list.len());
        self.check_files(&list);
        for machine in &list {
            self.use_and_destroy(machine);
        }
        if self.failures.lock().unwrap().is_empty() {
            self.site.assert_empty();
            let open = self.site.descriptors();
            // They are the supervisor's own; none belongs to a machine.
            assert!(open.len() < 30, "{open:?}");
        }
        for word in ["panicked at", "a step is impossible", "survives SIGKILL"] {
            if self.site.log().contains(word) {
                self.fail(format!("the log says {word:?}"));
            }
        }
    }

    fn set_count(&self, what: &str, number: usize) {
        let mut counts = self.counts.lock().unwrap();
        counts.insert(what.to_owned(), u64::try_from(number).unwrap());
    }

    fn wait_for_rest(&self) {
        let begun = Instant::now();
        let mut working = Vec::new();
        // A slow suspend takes 20 s by itself, and may have just begun.
        let rest = poll_within(Duration::from_secs(120), || {
            working = self.site.list();
            let vmms = self.site.vmms();
            working.retain(|machine| {
                let (id, state) = (&machine["id"], machine["state"].as_str().unwrap());
                // The end of a VMM that was killed last may not be reported yet.
                let ended = state == "started" && !vmms.iter().any(|vmm| vmm.machine == *id);
                // It waits until it is started again, by its policy.
                let waits = state == "stopped" && will_be_restarted(machine);
                state.ends_with("ing") || ended || waits
            });
            working.is_empty().then_some(())
        });
        for machine in working.iter().filter(|_| rest.is_none()) {
            self.fail(format!("waited for a resting state: {machine}"));
        }
        self.set_count(
            "ms to rest",
            usize::try_from(begun.elapsed().as_millis()).unwrap(),
        );
    }

    fn use_and_destroy(&self, machine: &Value) {
        let (id, state) = (machine["id"].as_str().unwrap(), &machine["state"]);
        let (status, answer) = self.site.try_transition(id, "start");
        if status != 200 {
            let machine = self.site.machine(id);
            return self.fail(format!(
                "{id} was {state} and cannot be started: {answer}\n{machine}"
            ));
        }
        if state == "suspended" && answer["start"]["kind"] != "resumed" {
            self.fail(format!(
                "{id} was suspended and lost its image: {answer}\n{machine}"
            ));
        }
        let body = json!({"command": ["say", "hello"]});
        let path = format!("{MACHINES}/{id}/exec");
        let (status, answer) = self.site.call("POST", &path, Some(&body));
        if status != 200 || answer["exit_code"] != 3 {
            self.fail(format!("{id} cannot be used: {status} {answer}"));
        }
        self.check_events(&self.site.machine(id));
        let (status, answer) = self.site.try_transition(id, "destroy");
        if status != 200 {
            self.fail(format!("{id} cannot be destroyed: {answer}"));
        }
    }
}
