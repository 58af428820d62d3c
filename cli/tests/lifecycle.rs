//! Verbs that move machines: what they ask of the API, print, and exit with.

mod api;

use api::{Api, DB, WEB, machine};
use serde_json::json;

#[test]
fn run_prints_the_id_alone_on_standard_output() {
    let api = Api::with(&[]);
    let ran = api.mctl(&[
        "run", "--name", "web", "--memory", "512mb", "--", "sleep", "9",
    ]);
    assert_eq!(
        (ran.code, ran.out.as_str()),
        (0, "148e0d3a00c189\n"),
        "{}",
        ran.err
    );
    let body = api.request("POST /v1/apps/default/machines").json();
    let config = json!({"image": "default", "guest": {"cpus": 1, "memory_mb": 512},
                        "init": {"cmd": ["sleep", "9"]}});
    assert_eq!(
        body,
        json!({"name": "web", "config": config, "skip_launch": false})
    );
}

#[test]
fn run_tells_how_long_the_start_took() {
    let api = Api::with(&[]);
    let phases = json!([{"name": "vmm_spawn", "ms": 2.0}, {"name": "unattributed", "ms": 210.0}]);
    let timing = json!([{"operation": "start", "generation": 1, "started_at": "x",
                         "total_ms": 212.0, "phases": phases, "start": {"kind": "booted"}}]);
    api.answers(&format!("GET /{WEB}/timings"), 200, timing);
    let ran = api.mctl(&["run", "--name", "web"]);
    let said = format!("web ({WEB}): booted in 212 ms (2 phases: `mctl timings`)\n");
    assert_eq!(ran.err, said);
}

#[test]
fn flags_become_the_fields_of_that_api() {
    let api = Api::with(&[]);
    let ran = api.mctl(&[
        "create",
        "--env",
        "A=1",
        "--metadata",
        "team=x",
        "--restart",
        "on-fail:3",
        "--port",
        "8080:80",
        "--autostop",
        "suspend",
        "--disk",
        "/d.img:/data:ro",
        "--rm",
        "--vsock-port-policy",
        "fixed",
        "--vsock-eviction=false",
        "--monitor-first",
    ]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let body = api.request("POST /v1/apps/default/machines").json();
    assert_eq!(body["skip_launch"], true);
    let service = json!({"protocol": "tcp", "internal_port": 80, "ports": [{"port": 8080}],
                         "autostop": "suspend"});
    let expected = json!({
        "image": "default", "env": {"A": "1"}, "metadata": {"team": "x"}, "auto_destroy": true,
        "restart": {"policy": "on-failure", "max_retries": 3}, "services": [service],
        "mounts": [{"volume": "/d.img", "path": "/data", "read_only": true}],
        "vsock": {"port_policy": "fixed", "eviction": false, "monitor_first": true},
    });
    assert_eq!(body["config"], expected);
}

#[test]
fn a_machine_is_meant_by_name_id_or_beginning_of_an_id() {
    let api = Api::with(&[machine(WEB, "web", "started"), machine(DB, "db", "started")]);
    let codes = ["web", WEB, "148e0"].map(|given| api.mctl(&["suspend", given]).code);
    assert_eq!(codes, [0, 0, 0]);
    let suspend = format!("POST /v1/apps/default/machines/{WEB}/suspend");
    assert_eq!(api.changes(), [suspend.clone(), suspend.clone(), suspend]);
}

#[test]
fn an_ambiguous_beginning_is_refused_with_what_it_could_mean() {
    let api = Api::with(&[machine(WEB, "web", "started"), machine(DB, "db", "started")]);
    let ran = api.mctl(&["stop", "148e"]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains(WEB) && ran.err.contains(DB), "{}", ran.err);
    assert!(api.changes().is_empty());
}

#[test]
fn the_only_machine_need_not_be_named_and_is_told() {
    let api = Api::with_web("stopped");
    let ran = api.mctl(&["start"]);
    assert_eq!(ran.out, format!("{WEB}\n"));
    assert!(
        ran.err.starts_with(&format!("using machine web ({WEB})\n")),
        "{}",
        ran.err
    );
}

#[test]
fn an_unknown_machine_exits_with_3_and_a_hint() {
    let ran = Api::with_web("started").mctl(&["stop", "nope"]);
    assert_eq!((ran.code, ran.out.as_str()), (3, ""));
    let said = "error: there is no machine \"nope\"\nhint: `mctl list` shows all of them\n";
    assert_eq!(ran.err, said);
}

#[test]
fn stop_passes_signal_and_timeout_on() {
    let api = Api::with_web("started");
    assert_eq!(
        api.mctl(&["stop", "web", "--signal", "int", "--timeout", "1m"])
            .code,
        0
    );
    let body = api
        .request(&format!("POST /v1/apps/default/machines/{WEB}/stop"))
        .json();
    assert_eq!(body, json!({"signal": "SIGINT", "timeout": "60s"}));
}

#[test]
fn resume_is_for_suspended_machines_only() {
    let api = Api::with_web("stopped");
    let ran = api.mctl(&["resume", "web"]);
    assert_eq!(ran.code, 4);
    assert!(ran.err.contains("is stopped, not suspended"), "{}", ran.err);
    assert!(api.changes().is_empty());
}

#[test]
fn a_cold_boot_of_a_suspended_machine_is_never_silent() {
    let mut web = machine(WEB, "web", "suspended");
    web["last_start"] = json!({"kind": "cold_booted", "reason": "image missing"});
    let ran = Api::with(&[web]).mctl(&["start", "web"]);
    assert_eq!(ran.code, 0);
    assert!(
        ran.err
            .contains("warning: web (148e0d3a00c189) was suspended"),
        "{}",
        ran.err
    );
    assert!(ran.err.contains("image missing"), "{}", ran.err);
}

#[test]
fn one_failure_does_not_keep_other_machines_from_being_tried() {
    let api = Api::with(&[machine(WEB, "web", "started"), machine(DB, "db", "started")]);
    let refusal = json!({"error": "lease held", "status": "lease_held"});
    api.answers(&format!("POST /{WEB}/suspend"), 409, refusal);
    let ran = api.mctl(&["suspend", "web", "db"]);
    assert_eq!((ran.code, ran.out), (4, format!("{DB}\n")));
    assert!(ran.err.contains("lease held"), "{}", ran.err);
    assert!(
        ran.err.ends_with("error: 1 of 2 machines: not done\n"),
        "{}",
        ran.err
    );
}

#[test]
fn a_machine_that_fails_on_its_way_is_an_error_with_its_message() {
    let mut web = machine(WEB, "web", "failed");
    web["events"] = json!([{"id": "1", "type": "start", "status": "failed", "source": "flyd",
                            "timestamp": 0, "message": "kernel missing"}]);
    let api = Api::with(&[web]);
    api.answers(
        &format!("POST /{WEB}/start"),
        200,
        json!({"previous_state": "stopped"}),
    );
    let ran = api.mctl(&["start", "web"]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.err.contains("it is failed (kernel missing)"),
        "{}",
        ran.err
    );
}

#[test]
fn a_waiting_time_of_zero_returns_at_once() {
    let api = Api::with_web("started");
    api.answers(&format!("POST /{WEB}/suspend"), 200, json!({"ok": true}));
    let ran = api.mctl(&["suspend", "web", "--wait-timeout", "0"]);
    assert_eq!((ran.code, ran.out), (0, format!("{WEB}\n")));
    assert!(ran.err.contains("not waiting"), "{}", ran.err);
}

#[test]
fn wait_that_runs_out_of_time_exits_with_6() {
    let ran = Api::with_web("starting").mctl(&["wait", "web", "--timeout", "10ms"]);
    assert_eq!(ran.code, 6);
    assert!(
        ran.err.contains("did not become started within 10ms"),
        "{}",
        ran.err
    );
}

#[test]
fn nothing_is_destroyed_unless_somebody_confirms() {
    let api = Api::with_web("stopped");
    let ran = api.mctl(&["destroy", "web"]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("--yes"), "{}", ran.err);
    assert!(api.changes().is_empty());
}

#[test]
fn destroy_with_yes_and_force_goes_through() {
    let api = Api::with_web("started");
    let ran = api.mctl(&["rm", "web", "--force", "--yes"]);
    assert_eq!((ran.code, ran.out), (0, format!("{WEB}\n")));
    let request = format!("DELETE /v1/apps/default/machines/{WEB}?force=true");
    assert_eq!(api.changes(), [request]);
}

#[test]
fn update_of_metadata_alone_sends_the_whole_configuration() {
    let api = Api::with_web("stopped");
    api.answers(&format!("POST /{WEB}"), 200, machine(WEB, "web", "stopped"));
    let ran = api.mctl(&["update", "web", "--metadata", "foo=bar", "--yes"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let body = api
        .request(&format!("POST /v1/apps/default/machines/{WEB}"))
        .json();
    assert_eq!(body["config"]["metadata"], json!({"foo": "bar"}));
    assert_eq!(
        body["config"]["guest"],
        json!({"cpus": 1, "memory_mb": 256})
    );
    assert_eq!(body["current_version"], "01ABC");
}

#[test]
fn a_clone_has_the_configuration_of_its_model() {
    let api = Api::with(&[machine(DB, "db", "started")]);
    let ran = api.mctl(&["clone", "db", "--name", "db2", "--skip-start"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let body = api.request("POST /v1/apps/default/machines").json();
    assert_eq!(body["name"], "db2");
    assert_eq!(
        body["config"]["guest"],
        json!({"cpus": 1, "memory_mb": 256})
    );
}
