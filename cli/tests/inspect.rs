//! Commands that show something: tables for people, JSON for programs, exit codes.

mod api;

use api::{Api, DB, WEB, machine};
use serde_json::{Value, json};

#[test]
fn list_is_a_table_for_people() {
    let mut web = machine(WEB, "web", "started");
    web["last_start"] = json!({"kind": "cold_booted", "reason": "checksum mismatch"});
    web["config"]["services"] = json!([{"protocol": "tcp", "internal_port": 80,
                                        "ports": [{"port": 8080}]}]);
    let ran = Api::with(&[web, machine(DB, "db", "suspended")]).mctl(&["list"]);
    let golden = "\
ID              NAME  STATE      IMAGE    CPUS   MEMORY  PORTS     LAST START                      CREATED
148e0d3a00c189  web   started    default     1  256 MiB  8080->80  cold_booted: checksum mismatch  2026-01-31T12:00:00Z
148e77aa00f001  db    suspended  default     1  256 MiB  -         -                               2026-01-31T12:00:00Z
";
    assert_eq!(
        (ran.code, ran.out.as_str(), ran.err.as_str()),
        (0, golden, "")
    );
}

#[test]
fn a_port_that_the_host_chose_is_shown() {
    let mut web = machine(WEB, "web", "started");
    web["config"]["services"] = json!([{"protocol": "tcp", "internal_port": 80,
                                        "ports": [{"port": 0}, {"port": 8080}]}]);
    web["published"] = json!([{"address": "127.0.0.1:8080", "internal_port": 80},
                              {"address": "127.0.0.1:40123", "internal_port": 80}]);
    let ran = Api::with(&[web]).mctl(&["list"]);
    assert!(ran.out.contains(" 40123->80, 8080->80 "), "{}", ran.out);
}

#[test]
fn list_is_json_for_programs() {
    let ran = Api::with_web("started").mctl(&["ls", "--json"]);
    assert_eq!(ran.json()[0]["id"], WEB);
}

#[test]
fn an_empty_list_is_a_message_and_not_data() {
    let ran = Api::with(&[]).mctl(&["list"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, ""));
    assert_eq!(ran.err, "no machines; `mctl run` creates one\n");
}

#[test]
fn colour_is_only_decoration() {
    let api = Api::with_web("started");
    let plain = api.mctl(&["list"]).out;
    let coloured = api.mctl(&["list", "--color", "always"]).out;
    assert!(coloured.contains("\x1b[32mstarted\x1b[0m"), "{coloured:?}");
    let codes = ["\x1b[1m", "\x1b[32m", "\x1b[0m"];
    let stripped = codes
        .iter()
        .fold(coloured, |text, code| text.replace(code, ""));
    assert_eq!(stripped, plain);
}

#[test]
fn status_explains_the_attempts_of_the_last_resume() {
    let mut web = machine(WEB, "web", "started");
    let mut attempts: Vec<Value> = (1_073_741_824_u32..1_073_741_837)
        .map(|port| json!({"local_port": port, "outcome": "reset", "ms": 1.0}))
        .collect();
    attempts.push(json!({"local_port": 1_073_741_837, "outcome": "ok", "ms": 2.0}));
    web["readiness"] = json!(attempts);
    web["last_start"] = json!({"kind": "resumed"});
    let ran = Api::with(&[web]).mctl(&["status", "web"]);
    assert!(ran.out.contains("last start  resumed\n"), "{}", ran.out);
    let line = "readiness   14 attempts, 13 reset on ports 1073741824 to 1073741836: those pairs \
                are still open in the guest\n";
    assert!(ran.out.contains(line), "{}", ran.out);
}

#[test]
fn status_shows_events_with_duration_and_exit() {
    let mut web = machine(WEB, "web", "stopped");
    let exit = json!({"exit_code": 137, "signal": 9, "oom_killed": true, "requested_stop": false,
                      "restarting": false, "exited_at": "1970-01-01T00:00:01Z"});
    web["events"] = json!([
        {"id": "2", "type": "exit", "status": "stopped", "source": "guest", "timestamp": 1000,
         "request": {"exit_event": exit}},
        {"id": "1", "type": "start", "status": "started", "source": "user", "timestamp": 0,
         "duration_ms": 212.0, "start": {"kind": "booted"}},
    ]);
    let ran = Api::with(&[web]).mctl(&["status"]);
    let golden = "
Events
TIME                      EVENT  STATE    SOURCE  DURATION  DETAILS
1970-01-01T00:00:01.000Z  exit   stopped  guest          -  killed by signal 9, out of memory
1970-01-01T00:00:00.000Z  start  started  user      212 ms  booted
";
    assert!(ran.out.ends_with(golden), "{}", ran.out);
}

#[test]
fn resources_are_a_table_of_processes_and_a_list_of_the_rest() {
    let api = Api::with_web("started");
    let found = json!({
        "generation": 4,
        "guest_init": {"descriptors": 14, "threads": 1, "resident_bytes": 1 << 20,
                       "anonymous_bytes": 300 << 10, "epoll_entries": 9, "timers": 0},
        "vmm": {"descriptors": 31, "threads": 3, "resident_bytes": 80 << 20},
        "supervisor": {"descriptors": 25, "threads": 6, "resident_bytes": 20 << 20},
        "supervisor_tasks": 40, "guest_tasks": 70,
        "guest_vsocks": {"established": 2, "listening": 1},
        "vmm_vsock_connections": {"established": 0},
        "image_bytes": 50 << 20, "database_bytes": 9 << 20, "log_bytes": 4096,
        "machine_folder_bytes": 51 << 20, "machine_folder_files": 12,
    });
    api.answers(&format!("GET /{WEB}/resources"), 200, found.clone());
    let golden = "\
IN USE         GUEST-INIT     VMM  SUPERVISOR
descriptors            14      31          25
threads                 1       3           6
memory            1.0 MiB  80 MiB      20 MiB
  anonymous       300 KiB       -           -
epoll entries           9       -           -
timers                  0       -           -
tasks                  70       -          40

vsocks in the guest                    2 established, 1 listening
vsocks in the VMM                      none
guest memory written since the resume  -
last image                             50 MiB
logs                                   4.0 KiB
folder, with these                     51 MiB in 12 files and folders
database                               9.0 MiB
";
    assert_eq!(api.mctl(&["resources", "web"]).out, golden);
    assert_eq!(api.mctl(&["resources", "web", "--json"]).json(), found);
}

fn timing(generation: u64, unattributed: f64) -> Value {
    let phases = json!([{"name": "vmm_spawn", "ms": 2.5}, {"name": "connect", "ms": 1.25},
                        {"name": "unattributed", "ms": unattributed}]);
    json!({"operation": "resume", "generation": generation, "started_at": "2026-01-31T12:00:00Z",
           "total_ms": 3.75 + unattributed, "phases": phases, "start": {"kind": "resumed"},
           "readiness": [{"local_port": 7, "outcome": "ok", "ms": 0.5}]})
}

#[test]
fn timings_show_phases_that_sum_to_their_total() {
    let api = Api::with_web("started");
    api.answers(
        &format!("GET /{WEB}/timings"),
        200,
        json!([timing(3, 0.25), timing(2, 0.5)]),
    );
    let ran = api.mctl(&["timings", "web"]);
    let golden = "\
resume (ms)
PHASE                        GEN 3                 GEN 2
started at    2026-01-31T12:00:00Z  2026-01-31T12:00:00Z
vmm_spawn                    2.500                 2.500
connect                      1.250                 1.250
unattributed                 0.250                 0.500
total                        4.000                 4.250
newest: resumed
readiness: 1 attempt, ok on port 7 after 0.50 ms
";
    assert_eq!((ran.code, ran.out.as_str()), (0, golden));
}

#[test]
fn logs_cannot_control_the_terminal() {
    let api = Api::with_web("started");
    let line = json!([{"time": "2026-01-31T12:00:00.000001Z", "source": "stderr",
                       "text": "\u{1b}[2Jgone"}]);
    api.answers(&format!("GET /{WEB}/logs"), 200, line);
    let ran = api.mctl(&["logs", "web", "--tail", "5"]);
    assert_eq!(
        ran.out,
        "2026-01-31T12:00:00.000001Z stderr     \\x1b[2Jgone\n"
    );
    let request = api.request(&format!("GET /v1/apps/default/machines/{WEB}/logs"));
    assert_eq!(request.query, "follow=false&tail=5");
}

#[test]
fn processes_are_a_table() {
    let api = Api::with_web("started");
    let process = json!([{"pid": 1, "command": "/init", "cpu": 2, "rss": 3_145_728,
                          "listen_sockets": [{"proto": "tcp", "address": "[::]:80"}]}]);
    api.answers(&format!("GET /{WEB}/ps"), 200, process);
    let golden = "PID  CPU   MEMORY  LISTENS  COMMAND\n  1   2s  3.0 MiB  [::]:80  /init\n";
    assert_eq!(api.mctl(&["ps", "web"]).out, golden);
}

#[test]
fn events_are_shown_oldest_first() {
    let api = Api::with_web("started");
    let event = |id: &str, kind: &str| json!({"id": id, "type": kind, "status": "started", "source": "user", "timestamp": 0});
    let events = json!([event("2", "start"), event("1", "launch")]);
    api.answers(&format!("GET /{WEB}/events"), 200, events);
    let ran = api.mctl(&["events", "web", "--json"]);
    assert_eq!(
        (&ran.json()[0]["type"], &ran.json()[1]["type"]),
        (&json!("launch"), &json!("start"))
    );
}

#[test]
fn a_destroyed_machine_is_found_by_its_id() {
    let api = Api::with_web("started");
    api.answers(&format!("GET /{DB}"), 200, machine(DB, "web", "destroyed"));
    let event = json!([{"id": "1", "type": "destroy", "status": "destroyed", "source": "user",
                        "timestamp": 0}]);
    api.answers(&format!("GET /{DB}/events"), 200, event);
    assert!(api.mctl(&["events", DB]).out.contains("destroyed"));
    assert_eq!(api.mctl(&["events", "nobody"]).code, 3);
}

#[test]
fn followed_events_come_from_one_stream() {
    let api = Api::with_web("started");
    let event = |id: &str, kind: &str| json!({"id": id, "type": kind, "status": "started", "source": "user", "timestamp": 0});
    let events = json!([event("1", "launch"), event("2", "start")]);
    api.answers(&format!("GET /{WEB}/events"), 200, events);
    let ran = api.mctl(&["events", "web", "--follow", "--limit", "7"]);
    let golden = "\
1970-01-01T00:00:00.000Z launch started by user
1970-01-01T00:00:00.000Z start started by user
";
    assert_eq!((ran.code, ran.out.as_str()), (0, golden));
    let request = api.request(&format!("GET /v1/apps/default/machines/{WEB}/events"));
    assert_eq!(request.query, "follow=true&limit=7");
}

fn view(verdict: &str, leaked: u32) -> Value {
    let diagnosis = json!({"verdict": verdict, "leaked_pairs": leaked, "since_generation": 2,
        "expected_failed_attempts": f64::from(leaked), "expected_delay_ms": 130.0,
        "findings": ["update guest-init"]});
    json!({"host": {"requests_reset": 13}, "last_readiness": [], "diagnosis": diagnosis})
}

#[test]
fn doctor_vsock_finds_a_leak_and_exits_with_8() {
    let api = Api::with_web("started");
    api.answers(&format!("GET /{WEB}/vsock"), 200, view("colliding", 13));
    let ran = api.mctl(&["doctor", "vsock", "web"]);
    let golden = "\
verdict              colliding
leaked pairs         13
leaking since        generation 2
next resume          13.0 failed attempts expected, 130 ms
host requests reset  13
- update guest-init
";
    assert_eq!((ran.code, ran.out.as_str()), (8, golden));
}

#[test]
fn doctor_vsock_exits_with_0_for_a_healthy_machine() {
    let api = Api::with_web("started");
    api.answers(&format!("GET /{WEB}/vsock"), 200, view("healthy", 0));
    assert_eq!(api.mctl(&["doctor", "vsock"]).code, 0);
}
