//! Many machines on one supervisor: how its costs grow, and how many resumes it works on at a time.
//! Costs are CPU times and counts, compared within one run.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::site::Site;
use crate::support::{MACHINES, config_with, poll};
use crate::usage::{Usage, cpu_time};

/// Machines on one host, and a tenth of them to compare with.
const MANY: usize = 200;
const FEW: usize = MANY / 10;
/// Soft limit of open descriptors that is too low for that many machines.
const DESCRIPTORS: usize = 512;
/// Time between two samples that a guest sends to the supervisor.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(2);

/// Creates `count` machines and waits until all are started. Returns their ids.
fn start_machines(site: &Site, count: usize) -> Vec<String> {
    let body = json!({"config": config_with("")});
    let ids = (0..count).map(|_| {
        let machine = site.ask("POST", MACHINES, Some(&body));
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

/// The supervisor's CPU time for so many lists of all machines.
fn cpu_time_of_lists(site: &Site, lists: u32, machines: usize) -> Duration {
    let before = cpu_time(site.pid());
    for _ in 0..lists {
        assert_eq!(site.list().len(), machines);
    }
    cpu_time(site.pid()).saturating_sub(before)
}

pub(crate) fn costs_of_lists_and_of_idle_machines_grow_no_faster_than_the_number_of_machines() {
    let site = Site::new();
    // The supervisor has to raise the soft limit by itself.
    site.kill();
    site.start_under(&["prlimit", &format!("--nofile={DESCRIPTORS}:")]);
    start_machines(&site, FEW);
    // So many lists that their CPU time is many times the unit in which it is measured.
    let (mut lists, mut few) = (0, Duration::ZERO);
    poll("enough CPU time of lists", || {
        lists += 20;
        few += cpu_time_of_lists(&site, 20, FEW);
        (few >= Duration::from_millis(200)).then_some(())
    });
    start_machines(&site, MANY - FEW);
    poll("more open descriptors than the soft limit", || {
        (site.descriptors().len() > DESCRIPTORS).then_some(())
    });
    let many = cpu_time_of_lists(&site, lists, MANY);
    eprintln!("{lists} lists take {few:?} with {FEW} machines, {many:?} with {MANY}");
    // The text is ten times as long. If each machine were compared with each, it would be 100 times.
    assert!(many < few * 30, "{few:?}, then {many:?}");

    let period = SAMPLE_INTERVAL * 2;
    let idle = Usage::measure(site.pid(), period);
    eprintln!("{MANY} idle machines in {period:?}: {idle:?}");
    // Each sample needs a wake-up or a few. A timer per machine would add to that, a thread that spins
    // would take a whole CPU.
    let samples = 3 * u64::try_from(MANY).unwrap();
    assert!(idle.wake_ups < samples * 10, "{samples} samples: {idle:?}");
    assert!(idle.cpu < idle.spinning / 4, "{idle:?}");

    let begun = Instant::now();
    site.kill();
    site.start();
    assert_eq!(site.list().len(), MANY);
    let served = begun.elapsed();
    poll("all guests to be adopted", || {
        let list = site.list();
        let is_adopted = |machine: &&Value| machine["events"][0]["type"] == "adopt";
        (list.iter().filter(is_adopted).count() == MANY).then_some(())
    });
    let adopted = begun.elapsed();
    eprintln!("a new supervisor serves after {served:?} and has adopted all after {adopted:?}");
}

/// When a resume waited and when it was worked on, in milliseconds.
#[derive(Debug)]
struct Resume {
    /// How long it waited for its turn.
    waited: f64,
    /// When its turn began, on the host's clock.
    begin: f64,
    /// When its last phase had ended, or a little earlier: spans between phases are not counted.
    end: f64,
}

impl Resume {
    /// The latest one of a machine.
    fn latest(site: &Site, id: &str) -> Self {
        let timings = site.ask("GET", &format!("{MACHINES}/{id}/timings"), None);
        let timing = &timings[0];
        assert_eq!(timing["operation"], "resume", "{timing}");
        let sum = |counts: &dyn Fn(&str) -> bool| {
            let phases = timing["phases"].as_array().unwrap().iter();
            let counted = phases.filter(|phase| counts(phase["name"].as_str().unwrap()));
            counted
                .map(|phase| phase["ms"].as_f64().unwrap())
                .sum::<f64>()
        };
        let waited = sum(&|name| ["admission", "queue"].contains(&name));
        let phases = sum(&|name| name != "unattributed");
        let admitted = ms_of_day(timing["started_at"].as_str().unwrap());
        Self {
            waited,
            begin: admitted + waited,
            end: admitted + phases,
        }
    }

    fn duration(&self) -> f64 {
        self.end - self.begin
    }
}

/// The time of day in milliseconds, of a time such as `2026-01-31T12:00:00.000001Z`.
fn ms_of_day(time: &str) -> f64 {
    let of_day = time.split_once('T').unwrap().1.trim_end_matches('Z');
    let fields = of_day.split(':').map(|field| field.parse::<f64>().unwrap());
    fields.fold(0.0, |sum, field| sum * 60.0 + field) * 1e3
}

/// The largest number of resumes that were worked on at the same time.
fn most_at_once(resumes: &[Resume]) -> usize {
    let at_once = |moment: f64| {
        let working = |resume: &&Resume| resume.begin <= moment && moment < resume.end;
        resumes.iter().filter(working).count()
    };
    let begins = resumes.iter().map(|resume| at_once(resume.begin));
    begins.max().unwrap()
}

pub(crate) fn resumes_that_are_requested_together_wait_for_their_turn() {
    const REQUESTED: usize = 40;
    const PERMITS: usize = 2;
    let site = Site::new();
    site.kill();
    site.start_with(&["--concurrent-starts", &PERMITS.to_string()]);
    let ids = start_machines(&site, REQUESTED);
    for id in &ids {
        site.transition(id, "suspend");
    }
    std::thread::scope(|scope| {
        for id in &ids {
            scope.spawn(|| site.transition(id, "start"));
        }
    });
    let resumes: Vec<Resume> = ids.iter().map(|id| Resume::latest(&site, id)).collect();
    let most = most_at_once(&resumes);
    eprintln!("{most} of {} resumes at the same time", ids.len());
    // Twice as many as are permitted: the begin is read from another clock than the phases, at a
    // slightly different moment.
    assert!(most <= 2 * PERMITS, "{most} at the same time: {resumes:?}");
    let longest_wait = resumes.iter().map(|resume| resume.waited);
    let longest_wait = longest_wait.fold(0.0, f64::max);
    let mut durations: Vec<f64> = resumes.iter().map(Resume::duration).collect();
    durations.sort_by(f64::total_cmp);
    let median = durations[durations.len() / 2];
    assert!(longest_wait > median, "no resume waited: {resumes:?}");
}
