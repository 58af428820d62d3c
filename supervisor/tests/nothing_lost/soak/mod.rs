//! Many machines, several clients, random requests, random deaths of supervisor and VMMs.
//!
//! `MCTL_SOAK_SECONDS` says how long (30), `MCTL_SOAK_SEED` repeats a run's decisions,
//! `MCTL_SOAK_MACHINES` says how many machines there are at a time (24). The same seed makes the
//! same requests in the same order; how they meet is up to the clock.

mod invariants;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::site::{MACHINES, Site};

/// Clients at the same time.
const CLIENTS: u64 = 6;

/// What the run knows of a machine, by its name, which no other machine ever has.
#[derive(Debug, Clone, Default)]
struct Known {
    id: Option<String>,
    /// A destroy was asked for, or comes with its end: from then on it may be gone.
    doomed: bool,
}

/// A run.
struct Soak {
    site: Site,
    end: Instant,
    machines: u64,
    known: Mutex<BTreeMap<String, Known>>,
    /// Odd while there is no supervisor.
    epoch: AtomicU64,
    /// Held for writing while supervisor or VMMs are killed.
    calm: RwLock<()>,
    failed: AtomicBool,
    failures: Mutex<Vec<String>>,
    counts: Mutex<BTreeMap<String, u64>>,
}

fn setting(name: &str, usual: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
        Err(_) => usual,
    }
}

#[test]
fn no_machine_is_lost_or_doubled_whatever_dies_when() {
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let seed = setting("MCTL_SOAK_SEED", u64::from(now.subsec_nanos()));
    let seconds = setting("MCTL_SOAK_SECONDS", 30);
    eprintln!("soak of {seconds} s; MCTL_SOAK_SEED={seed} repeats its decisions");
    let soak = Soak {
        site: Site::new(),
        end: Instant::now() + Duration::from_secs(seconds),
        machines: setting("MCTL_SOAK_MACHINES", 24),
        known: Mutex::default(),
        epoch: AtomicU64::new(0),
        calm: RwLock::new(()),
        failed: AtomicBool::new(false),
        failures: Mutex::default(),
        counts: Mutex::default(),
    };
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let soak = &soak;
            scope.spawn(move || soak.client(client, SmallRng::seed_from_u64(seed + client)));
        }
        scope.spawn(|| soak.chaos(SmallRng::seed_from_u64(seed + 1_000)));
        scope.spawn(|| {
            while soak.goes_on() {
                soak.check();
                pause(200);
            }
        });
    });
    if soak.failures.lock().unwrap().is_empty() {
        soak.wind_up();
    }
    let counts = soak.counts.lock().unwrap().clone();
    eprintln!("seed {seed}, {seconds} s: {counts:?}");
    let failures = soak.failures.lock().unwrap();
    assert!(failures.is_empty(), "seed {seed}: {}", failures.join("\n"));
}

fn pause(ms: u64) {
    std::thread::park_timeout(Duration::from_millis(ms));
}

impl Soak {
    fn goes_on(&self) -> bool {
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

    /// A request. None where a death of the supervisor may have cut it off.
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
                    self.fail(format!("{method} {path} got no answer: {error}"));
                }
                self.count("cut off");
                pause(20);
                None
            }
        }
    }

    fn client(&self, client: u64, mut rng: SmallRng) {
        let mut made = 0;
        while self.goes_on() {
            let standing = self.standing();
            if standing.len() < usize::try_from(self.machines).unwrap() && rng.random_bool(0.3) {
                made += 1;
                self.create(&format!("c{client}-{made}"), &mut rng);
            } else if !standing.is_empty() {
                let (name, id) = &standing[rng.random_range(0..standing.len())];
                self.operate(name, id, &mut rng);
            }
            pause(rng.random_range(0..40));
        }
    }

    /// Names and ids of machines that were not given up.
    fn standing(&self) -> Vec<(String, String)> {
        let known = self.known.lock().unwrap();
        let named = known.iter().filter(|(_, known)| !known.doomed);
        named
            .filter_map(|(name, known)| Some((name.clone(), known.id.clone()?)))
            .collect()
    }

    fn create(&self, name: &str, rng: &mut SmallRng) {
        let behaviour = ["", "", "", "", "rst=2", "fail-suspend", "slow-suspend"];
        let policy = ["no", "always", "on-failure"];
        // Left to itself, it goes when it ends.
        let ephemeral = rng.random_bool(0.15);
        let policy = if ephemeral { &policy[..1] } else { &policy };
        let body = json!({
            "name": name,
            "skip_launch": rng.random_bool(0.2),
            "config": {
                "guest": {"kernel_args": [behaviour[rng.random_range(0..behaviour.len())]]},
                "init": {"exec": ["main"]},
                "restart": {"policy": policy[rng.random_range(0..policy.len())]},
                "stop_config": {"timeout": "1s"},
                "auto_destroy": ephemeral,
            },
        });
        let known = Known {
            doomed: ephemeral,
            ..Known::default()
        };
        self.known.lock().unwrap().insert(name.to_owned(), known);
        self.count("create");
        match self.call("POST", MACHINES, Some(&body)) {
            Some((200, machine)) => {
                let id = machine["id"].as_str().unwrap().to_owned();
                let mut known = self.known.lock().unwrap();
                known.get_mut(name).unwrap().id = Some(id);
            }
            Some((status, answer)) => self.fail(format!("create {name}: {status} {answer}")),
            // It may be there or not, but not twice: the end tells.
            None => {}
        }
    }

    fn operate(&self, name: &str, id: &str, rng: &mut SmallRng) {
        let verbs = [
            "start", "start", "start", "start", "suspend", "suspend", "suspend", "stop", "restart",
            "update", "exec", "exec", "metadata", "look", "events", "leave", "destroy",
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
        let gone_for_good = rng.random_bool(0.3);
        let force = if rng.random_bool(0.7) {
            "?force=true"
        } else {
            ""
        };
        if verb == "destroy" {
            // Most machines are to live long.
            if !gone_for_good {
                return;
            }
            self.known.lock().unwrap().get_mut(name).unwrap().doomed = true;
        }
        self.count(verb);
        let at = |rest: &str| format!("{MACHINES}/{id}{rest}");
        let answer = match verb {
            "start" | "suspend" | "stop" | "restart" => {
                self.call("POST", &at(&format!("/{verb}{wait}")), None)
            }
            "update" => self.call("POST", &at(""), Some(&update)),
            "exec" => {
                let body = json!({"command": ["say", "hello"], "timeout": 5});
                self.call("POST", &at("/exec"), Some(&body))
            }
            "metadata" => self.call("POST", &at("/metadata/k"), Some(&json!({"value": "v"}))),
            "events" => self.call("GET", &at("/timings"), None),
            // A client that goes away in the middle of its request.
            "leave" => {
                self.leave(&at("/suspend?wait=true"));
                None
            }
            "destroy" => self.call("DELETE", &at(force), None),
            _ => self.call("GET", &at(""), None),
        };
        match answer {
            Some((404, answer)) if verb != "destroy" && !self.is_doomed(name) => {
                self.fail(format!("{verb} {name} {id}: {answer}"));
            }
            // Refused, for instance without force: it lives on.
            Some((status, _)) if verb == "destroy" && status != 200 => {
                self.known.lock().unwrap().get_mut(name).unwrap().doomed = status != 412;
            }
            Some((200, _)) => self.count("granted"),
            Some((status, answer)) => {
                let code = answer["status"].as_str().unwrap_or_default();
                self.count(&format!("{status} {code}"));
            }
            None => {}
        }
    }

    fn is_doomed(&self, name: &str) -> bool {
        self.known.lock().unwrap()[name].doomed
    }

    fn leave(&self, path: &str) {
        use std::io::Write;
        if let Ok(mut stream) = std::os::unix::net::UnixStream::connect(self.site.socket()) {
            let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n");
            let _ = stream.write_all(head.as_bytes());
        }
    }

    fn chaos(&self, mut rng: SmallRng) {
        while self.goes_on() {
            pause(rng.random_range(100..1_500));
            let _calm = self.calm.write().unwrap();
            match rng.random_range(0..10_u32) {
                0..=4 => self.kill_vmm(&mut rng),
                5..=7 => self.replace_supervisor(&mut rng, 0),
                _ => {
                    let deaths = rng.random_range(1..4);
                    self.replace_supervisor(&mut rng, deaths);
                }
            }
        }
    }

    fn kill_vmm(&self, rng: &mut SmallRng) {
        let vmms = self.site.vmms();
        if vmms.is_empty() {
            return;
        }
        let vmm = &vmms[rng.random_range(0..vmms.len())];
        // A number may have gone to somebody else since: whose it is now decides.
        if self.site.vmms().contains(vmm) {
            let _ = kill_process(Pid::from_raw(vmm.pid).unwrap(), Signal::KILL);
            self.count("VMMs killed");
        }
    }

    /// Kills the supervisor, that many VMMs while there is none, and starts the next one.
    fn replace_supervisor(&self, rng: &mut SmallRng, vmms: u32) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
        if rng.random_bool(0.2) {
            // An orderly end, which leaves machines alone just the same.
            self.site.terminate();
        } else {
            self.site.kill();
        }
        for _ in 0..vmms {
            self.kill_vmm(rng);
        }
        pause(rng.random_range(0..200));
        self.site.start();
        self.epoch.fetch_add(1, Ordering::SeqCst);
        self.count("supervisors killed");
    }

    /// The end: every machine comes to rest, is usable, and goes without a trace.
    fn wind_up(&self) {
        self.check();
        self.rest();
        let list = self.site.list();
        self.count_to("machines at the end", list.len());
        self.check_files(&list);
        for machine in &list {
            self.use_and_destroy(machine);
        }
        if self.failures.lock().unwrap().is_empty() {
            self.site.assert_empty();
            let open = self.site.descriptors();
            // The supervisor's own, and none of a machine.
            assert!(open.len() < 30, "{open:?}");
        }
        for word in ["panicked at", "impossible step", "outlives SIGKILL"] {
            if self.site.log().contains(word) {
                self.fail(format!("the log says {word:?}"));
            }
        }
    }

    fn count_to(&self, what: &str, number: usize) {
        let mut counts = self.counts.lock().unwrap();
        counts.insert(what.to_owned(), u64::try_from(number).unwrap());
    }

    fn rest(&self) {
        let begun = Instant::now();
        // A slow suspend takes 20 s by itself, and may have just begun.
        poll_for(
            Duration::from_secs(120),
            "all machines to come to rest",
            || {
                let list = self.site.list();
                let vmms = self.site.vmms();
                let working = |machine: &&Value| {
                    let (id, state) = (&machine["id"], machine["state"].as_str().unwrap());
                    // The end of one that was killed at last takes a moment to be told.
                    let ended = state == "started" && !vmms.iter().any(|vmm| vmm.machine == *id);
                    state.ends_with("ing") || ended
                };
                (list.iter().filter(working).count() == 0).then_some(())
            },
        );
        self.count_to(
            "ms to rest",
            usize::try_from(begun.elapsed().as_millis()).unwrap(),
        );
    }

    fn use_and_destroy(&self, machine: &Value) {
        let (id, state) = (machine["id"].as_str().unwrap(), &machine["state"]);
        let (status, answer) = self.site.ask(id, "start");
        if status != 200 {
            let now = self.site.machine(id);
            return self.fail(format!(
                "{id} was {state} and can't be started: {answer}\n{now}"
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
            self.fail(format!("{id} can't be used: {status} {answer}"));
        }
        self.check_events(&self.site.machine(id));
        let (status, answer) = self.site.ask(id, "destroy");
        if status != 200 {
            self.fail(format!("{id} can't be destroyed: {answer}"));
        }
    }
}

fn poll_for(limit: Duration, what: &str, mut look: impl FnMut() -> Option<()>) {
    let begun = Instant::now();
    while look().is_none() {
        assert!(begun.elapsed() < limit, "{what} did not come");
        pause(50);
    }
}
