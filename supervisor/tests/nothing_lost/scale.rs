//! Two hundred machines on one supervisor: claims about how costs grow, as ratios within one run.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::site::{MACHINES, Site, poll};

/// Linux tells CPU times of processes in these.
const TICKS_PER_SECOND: f64 = 100.0;
/// Machines on one host.
const MANY: usize = 200;

fn add(site: &Site, count: usize) -> Vec<String> {
    let config = json!({"init": {"exec": ["main"]}, "restart": {"policy": "no"}});
    let body = json!({"config": config});
    let ids = (0..count).map(|_| {
        let (status, machine) = site.call("POST", MACHINES, Some(&body));
        assert_eq!(status, 200, "{machine}");
        machine["id"].as_str().unwrap().to_owned()
    });
    let ids: Vec<String> = ids.collect();
    for id in &ids {
        poll("a start", || {
            (site.machine(id)["state"] == "started").then_some(())
        });
    }
    ids
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// How long a list takes, in milliseconds.
fn listing(site: &Site, machines: usize) -> f64 {
    let once = || {
        let begun = Instant::now();
        assert_eq!(site.list().len(), machines);
        begun.elapsed().as_secs_f64() * 1e3
    };
    median((0..21).map(|_| once()).collect())
}

#[test]
fn with_two_hundred_machines_a_list_costs_no_more_per_machine_and_idling_costs_next_to_nothing() {
    let site = Site::new();
    // A soft limit that is too little for so many: the supervisor raises it by itself.
    site.kill();
    site.start_behind(&["prlimit", "--nofile=512:"]);
    add(&site, MANY / 10);
    let few = listing(&site, MANY / 10);
    add(&site, MANY - MANY / 10);
    let many = listing(&site, MANY);
    poll("more descriptors than that", || {
        (site.descriptors().len() > 512).then_some(())
    });
    eprintln!(
        "a list takes {few:.2} ms with {} machines, {many:.2} ms with {MANY}",
        MANY / 10
    );
    // Ten times the machines: ten times the text, and as much again for noise.
    assert!(many < few * 20.0, "{few} ms, then {many} ms");

    let window = Duration::from_secs(10);
    let before = site.cpu_ticks();
    let begun = Instant::now();
    while begun.elapsed() < window {
        std::thread::park_timeout(window - begun.elapsed());
    }
    let used = site.cpu_ticks() - before;
    let share = used as f64 / TICKS_PER_SECOND / begun.elapsed().as_secs_f64();
    eprintln!(
        "{MANY} idle machines take {:.2} % of one CPU ({used} ticks)",
        share * 1e2
    );
    // Two hundred monitors tell of themselves every two seconds.
    assert!(share < 0.05, "{used} ticks in {window:?}");

    let begun = Instant::now();
    site.kill();
    site.start();
    assert_eq!(site.list().len(), MANY);
    let found = begun.elapsed();
    poll("all guests to be taken over", || {
        let list = site.list();
        let adopted = |machine: &&Value| machine["events"][0]["type"] == "adopt";
        (list.iter().filter(adopted).count() == MANY).then_some(())
    });
    eprintln!(
        "a new supervisor serves after {found:?} and has them all after {:?}",
        begun.elapsed()
    );
}

/// When a transition began to be worked on and when it ended, in milliseconds since 1970, and how
/// long that took.
fn worked(timing: &Value) -> (f64, f64, f64) {
    let phase = |name: &str| {
        let phases = timing["phases"].as_array().unwrap().iter();
        let ms = phases.filter(|phase| phase["name"] == name);
        ms.map(|phase| phase["ms"].as_f64().unwrap()).sum::<f64>()
    };
    let total = timing["total_ms"].as_f64().unwrap();
    let waited = phase("admission") + phase("queue");
    (waited, total, total - waited)
}

#[test]
fn resumes_that_come_together_wait_their_turn_and_each_is_as_fast_as_alone() {
    let site = Site::new();
    let ids = add(&site, 40);
    let resume_alone = |id: &String| {
        site.bring(id, "suspend");
        site.bring(id, "start");
        newest(&site, id)
    };
    let alone = median(
        ids.iter()
            .take(11)
            .map(|id| worked(&resume_alone(id)).2)
            .collect(),
    );
    for id in &ids {
        site.bring(id, "suspend");
    }
    std::thread::scope(|scope| {
        for id in &ids {
            scope.spawn(|| site.bring(id, "start"));
        }
    });
    let timings: Vec<Value> = ids.iter().map(|id| newest(&site, id)).collect();
    let each: Vec<f64> = timings.iter().map(|timing| worked(timing).2).collect();
    let waits: Vec<f64> = timings.iter().map(|timing| worked(timing).0).collect();
    let longest = waits.iter().copied().fold(0.0, f64::max);
    let together = median(each);
    eprintln!(
        "a resume takes {alone:.2} ms alone, {together:.2} ms among {}; the last one waited {longest:.1} ms",
        ids.len()
    );
    // Without admission forty would share the CPUs, and each would take as long as all of them.
    assert!(
        together < alone * 10.0,
        "{alone} ms alone, {together} ms together"
    );
    assert!(longest > together, "nobody waited: {waits:?}");
}

fn newest(site: &Site, id: &str) -> Value {
    let (status, timings) = site.call("GET", &format!("{MACHINES}/{id}/timings"), None);
    assert_eq!(status, 200, "{timings}");
    let newest = timings[0].clone();
    assert_eq!(newest["operation"], "resume", "{newest}");
    newest
}
