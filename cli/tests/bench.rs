//! `mctl bench resume` against an API whose machine takes as long as the test wants, and
//! `mctl report` of the report of a matrix.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, not only test functions"
)]

mod api;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;

use api::fake::{Answer, Fake, Seen};
use api::{Ran, WEB, bare, machine, ran};
use cycles::{
    Cell, CellKey, Clock, GuestKind, Host, KvmKind, Matrix, Peer, PortPolicy, Report, Run, RunEnd,
    ScaleRun, Setting, SubjectDescription,
};
use serde_json::{Value, json};

/// A started machine; the resume into generation n takes as long as the function says.
struct Subject {
    generation: u64,
    state: &'static str,
    resume_ms: fn(u64) -> f64,
}

impl Subject {
    fn machine(&self) -> Value {
        let mut machine = machine(WEB, "web", self.state);
        machine["generation"] = json!(self.generation);
        machine["last_start"] = json!({"kind": "resumed"});
        machine
    }

    fn timing(&self, operation: &str, ms: f64) -> Value {
        json!({
            "operation": operation, "generation": self.generation, "total_ms": ms,
            "started_at": "2026-01-31T12:00:00Z",
            "phases": [{"name": "spawn", "ms": ms}],
            "readiness": [{"local_port": 1_073_741_824, "outcome": "ok", "ms": 1.0}],
        })
    }

    fn vsock(&self) -> Value {
        json!({
            "host": {}, "last_readiness": [],
            "guest": {
                "boot_id": "b", "generation": self.generation, "init_version": "1",
                "uptime_ms": 1,
                "sockets": {"total": 1, "older_generations": 0, "counts": [], "source": "init"},
            },
            "diagnosis": {
                "verdict": "healthy", "leaked_pairs": 0, "expected_failed_attempts": 0.0,
                "expected_delay_ms": 0.0, "findings": [],
            },
        })
    }

    fn answer(&mut self, seen: &Seen) -> Answer {
        let done = json!({"ok": true, "previous_state": self.state});
        let body = match (seen.method.as_str(), seen.path.rsplit('/').next()) {
            ("GET", Some("host")) => json!({
                "version": "1", "kvm": "virtual", "kvm_detail": "", "cpu": "", "kernel": "",
                "cpus": 1, "memory_mib": 1, "images": [], "state_dir": "", "vmm": "",
            }),
            ("GET", Some("machines")) => json!([self.machine()]),
            ("GET", Some("timings")) => json!([
                self.timing("resume", (self.resume_ms)(self.generation)),
                self.timing("suspend", 5.0),
            ]),
            ("GET", Some("vsock")) => self.vsock(),
            ("GET", Some("resources")) => json!({
                "generation": self.generation, "supervisor": {"descriptors": 20},
                "guest_vsocks": {"established": 1},
            }),
            ("GET", Some("wait")) => done,
            ("POST", Some("suspend")) => {
                self.state = "suspended";
                done
            }
            ("POST", Some("start")) => {
                self.state = "started";
                self.generation += 1;
                done
            }
            _ => self.machine(),
        };
        Answer::json(200, &body)
    }
}

fn bench(resume_ms: fn(u64) -> f64, output: &Path) -> Ran {
    let subject = Mutex::new(Subject {
        generation: 1,
        state: "started",
        resume_ms,
    });
    let fake = Fake::on_tcp(move |seen| subject.lock().unwrap().answer(seen));
    let output = output.display().to_string();
    let arguments = ["bench", "resume", "web", "--cycles", "60", "--assert-flat"];
    let mut command = bare(&arguments);
    command.args(["--output", &output]);
    ran(command.env("MCTL_HOST", &fake.address).output().unwrap())
}

/// What a platform has that is not ours: machines that are suspended, started and waited for, and
/// commands in them. Nothing describes the host, and there are no timings.
struct Platform {
    state: &'static str,
    /// Questions to the endpoint that are refused after each start.
    refused: u32,
    questions: u32,
}

impl Platform {
    fn answer(&mut self, seen: &Seen) -> Answer {
        let body = match (seen.method.as_str(), seen.path.rsplit('/').next()) {
            ("GET", Some("health")) => {
                self.questions += 1;
                let is_ready = self.state == "started" && self.questions > self.refused;
                return Answer::json(if is_ready { 200 } else { 503 }, &json!({}));
            }
            ("GET", Some("machines")) => json!([machine(WEB, "web", self.state)]),
            ("GET", Some(WEB)) => machine(WEB, "web", self.state),
            ("GET", Some("wait")) => json!({"ok": true}),
            ("POST", Some("suspend")) => {
                self.state = "suspended";
                json!({"ok": true})
            }
            ("POST", Some("start")) => {
                self.state = "started";
                self.questions = 0;
                json!({"ok": true, "previous_state": "suspended"})
            }
            ("POST", Some("exec")) => json!({
                "exit_code": 0, "exit_signal": 0, "stdout": "b-1\n", "stderr": "",
            }),
            _ => return Answer::json(404, &json!({"error": "page not found"})),
        };
        Answer::json(200, &body)
    }
}

/// A platform whose endpoint refuses `refused` questions after each start, and its report.
fn probe(refused: u32, probe: impl Fn(&str) -> String, more: &[&str]) -> (Ran, Option<Report>) {
    let platform = Mutex::new(Platform {
        state: "started",
        refused,
        questions: u32::MAX / 2,
    });
    let fake = Fake::on_tcp(move |seen| platform.lock().unwrap().answer(seen));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("report.json");
    let mut command = bare(&["bench", "resume", "web", "--app", "shop", "--cycles", "20"]);
    command
        .args(["--probe", &probe(&fake.address)])
        .args(more)
        .arg("--output")
        .arg(&file);
    let ran = ran(command.env("MCTL_HOST", &fake.address).output().unwrap());
    (ran, cycles::load(&file).ok())
}

#[test]
fn a_probe_measures_until_the_first_answer_on_a_platform_that_is_not_ours() {
    let (ran, report) = probe(3, |address| format!("http={address}/health"), &[]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let report = report.unwrap();
    assert_eq!(report.cycles.len(), 20);
    for cycle in &report.cycles {
        // Three refused questions, with a pause of 5 ms after each.
        let phases: BTreeMap<&str, f64> = cycle.resume_phases_ms.iter().collect();
        assert!(phases["unanswered"] >= 15.0, "{phases:?}");
        assert_eq!(cycle.readiness.len(), 1);
    }
    assert_eq!(report.host.kvm, KvmKind::Unknown);
}

#[test]
fn a_command_in_the_machine_is_a_probe() {
    let (ran, report) = probe(0, |_| "exec=pg_isready".to_owned(), &[]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(report.unwrap().cycles.len(), 20);
}

#[test]
fn a_tcp_probe_says_what_it_is_told_and_needs_a_byte() {
    // The API itself is the endpoint: HTTP answers only after a request.
    let of_address = |address: &str| format!("tcp={}", address.trim_start_matches("http://"));
    let said = ["--probe-send", r"GET /health HTTP/1.1\r\nhost: web\r\n\r\n"];
    let (ran, report) = probe(0, of_address, &said);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(report.unwrap().cycles.len(), 20);
}

#[test]
fn a_probe_without_an_answer_ends_the_run_and_says_what_the_last_one_was() {
    let of_address = |address: &str| format!("http={address}/health");
    let (ran, report) = probe(u32::MAX, of_address, &["--step-timeout", "200ms"]);
    assert_eq!(ran.code, 8, "{ran:?}");
    assert!(ran.err.contains("had no answer within"), "{}", ran.err);
    assert!(ran.err.contains("status is 503"), "{}", ran.err);
    assert_eq!(report.unwrap().cycles.len(), 0);
}

#[test]
fn a_probe_that_is_not_one_is_refused_with_the_way_to_write_it() {
    let ran = ran(bare(&["bench", "resume", "--probe", "udp=a:1"])
        .output()
        .unwrap());
    assert_eq!(ran.code, 2);
    assert!(
        ran.err.contains("tcp=HOST:PORT, http=URL or exec=COMMAND"),
        "{}",
        ran.err
    );
}

#[test]
fn a_machine_that_stays_flat_passes_and_leaves_its_report() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("report.json");
    let ran = bench(|_| 10.0, &file);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.out.contains("verdict: flat"), "{}", ran.out);
    let report = cycles::load(&file).unwrap();
    assert!(report.flatness.is_flat());
    assert_eq!(report.cycles.len(), 60);
}

#[test]
fn a_machine_that_gets_slower_exits_with_8_and_leaves_its_report() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("report.json");
    let ran = bench(|generation| 10.0 * generation as f64, &file);
    assert_eq!(ran.code, 8, "{ran:?}");
    assert!(ran.err.contains("the verdict is rising"), "{}", ran.err);
    assert!(ran.out.contains("verdict: rising"), "{}", ran.out);
    assert_eq!(cycles::load(&file).unwrap().cycles.len(), 60);
}

#[test]
fn cycles_that_decide_nothing_exit_with_9_and_say_how_many_would() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("report.json");
    let ran = bench(
        |generation| 10.0 + (generation * 7919 % 101) as f64 / 5.0,
        &file,
    );
    assert_eq!(ran.code, 9, "{ran:?}");
    assert!(ran.err.contains("--most-cycles"), "{}", ran.err);
    assert!(ran.out.contains("verdict: undecided"), "{}", ran.out);
    assert!(ran.out.contains("the noise asks for about"), "{}", ran.out);
    assert_eq!(cycles::load(&file).unwrap().cycles.len(), 60);
}

fn no_run(name: &str) -> Run {
    Run {
        subject: SubjectDescription {
            name: name.to_owned(),
            ..SubjectDescription::default()
        },
        cycles_wanted: 30,
        looks: Vec::new(),
        cycles: Vec::new(),
        end: RunEnd::Complete,
        vsocks_before: None,
    }
}

fn matrix_report() -> Report {
    let host = Host {
        kvm: KvmKind::Virtual,
        details: BTreeMap::new(),
    };
    let key = CellKey {
        guest: GuestKind::Leaky,
        port_policy: PortPolicy::Continue,
        eviction: false,
        monitor_first: true,
    };
    let matrix = Matrix {
        cycles_per_cell: 30,
        cells: vec![Cell::of_run(key, &no_run("mctl"), Clock::Real)],
    };
    let mut report = Report::of_matrix(
        Setting {
            host,
            clock: Clock::Real,
            started_at: String::new(),
        },
        matrix,
    );
    report
        .peers
        .push(Peer::of_run(no_run("Firecracker v9"), Clock::Real));
    report.scale.push(ScaleRun {
        port_policy: PortPolicy::Fixed,
        eviction: false,
        leaked_pairs: 4321,
        resume_ms: Vec::new(),
        resumes: Vec::new(),
        attempts_max: 71,
        error: Some("not ready within 60 s".to_owned()),
    });
    report
}

#[test]
fn a_report_without_a_run_shows_matrix_scale_and_peers_but_no_verdict() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("matrix.json");
    std::fs::write(&file, serde_json::to_vec(&matrix_report()).unwrap()).unwrap();
    let ran = ran(bare(&["report", &file.display().to_string()])
        .output()
        .unwrap());
    assert_eq!(ran.code, 0, "{ran:?}");
    for part in [
        "flat: NO, must be flat",
        "matrix: NOT as expected",
        "Firecracker v9",
        "4321",
        "not ready within 60 s",
    ] {
        assert!(ran.out.contains(part), "no {part:?} in\n{}", ran.out);
    }
    assert!(!ran.out.contains("verdict: "), "{}", ran.out);
}

/// The `resources` of the first cycle in the report, on a supervisor that answers the question for
/// them with that `answer`.
fn recorded_resources(answer: Option<fn() -> Answer>) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("report.json");
    let subject = Mutex::new(Subject {
        generation: 1,
        state: "started",
        resume_ms: |_| 10.0,
    });
    let fake = Fake::on_tcp(move |seen| match answer {
        Some(answer) if seen.path.ends_with("/resources") => answer(),
        _ => subject.lock().unwrap().answer(seen),
    });
    let mut command = bare(&["bench", "resume", "web", "--cycles", "20", "--output"]);
    command.arg(&file).env("MCTL_HOST", &fake.address);
    let ran = ran(command.output().unwrap());
    assert_eq!(ran.code, 0, "{ran:?}");
    let report: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    report["cycles"][0]["resources"].clone()
}

#[test]
fn a_cycle_records_what_is_in_use() {
    assert_eq!(
        recorded_resources(None),
        json!({"guest_vsocks_established": 1, "supervisor_descriptors": 20})
    );
}

#[test]
fn a_supervisor_that_cannot_say_what_is_in_use_is_measured_all_the_same() {
    let unknown = || Answer::json(404, &json!({"error": "no such path"}));
    assert_eq!(recorded_resources(Some(unknown)), Value::Null);
}
