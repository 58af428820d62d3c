//! Commands that change the state of machines: requests, output and exit codes.

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
fn run_reports_how_long_the_start_took() {
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
fn flags_become_fields_of_the_configuration() {
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
fn a_machine_is_given_by_name_id_or_start_of_an_id() {
    let api = Api::with(&[machine(WEB, "web", "started"), machine(DB, "db", "started")]);
    let codes = ["web", WEB, "148e0"].map(|given| api.mctl(&["suspend", given]).code);
    assert_eq!(codes, [0, 0, 0]);
    let suspend = format!("POST /v1/apps/default/machines/{WEB}/suspend");
    assert_eq!(api.changes(), [suspend.clone(), suspend.clone(), suspend]);
}

#[test]
fn an_ambiguous_start_of_an_id_is_refused_with_all_ids() {
    let api = Api::with(&[machine(WEB, "web", "started"), machine(DB, "db", "started")]);
    let ran = api.mctl(&["stop", "148e"]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains(WEB) && ran.err.contains(DB), "{}", ran.err);
    assert!(api.changes().is_empty());
}

#[test]
fn the_only_machine_may_be_left_out_and_is_reported() {
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
    let said = "error: there is no machine \"nope\"\nhint: `mctl list` shows all machines\n";
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
        ran.err.ends_with("error: 1 of 2 machines failed\n"),
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
fn wait_exits_with_6_at_its_timeout() {
    let ran = Api::with_web("starting").mctl(&["wait", "web", "--timeout", "10ms"]);
    assert_eq!(ran.code, 6);
    assert!(
        ran.err.contains("did not become started within 10ms"),
        "{}",
        ran.err
    );
}

#[test]
fn nothing_is_destroyed_without_a_confirmation() {
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
    let api = Api::with_web("started");
    api.answers(&format!("POST /{WEB}"), 200, machine(WEB, "web", "started"));
    let ran = api.mctl(&[
        "update",
        "web",
        "-a",
        "default",
        "--metadata",
        "foo=bar",
        "--yes",
    ]);
    assert!(
        ran.err.contains("starting with the new configuration"),
        "{}",
        ran.err
    );
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
fn a_clone_has_the_configuration_of_the_original() {
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

#[test]
fn a_clone_takes_no_ports_of_the_original() {
    let mut db = machine(DB, "db", "started");
    let port = json!({"port": 5432, "address": "127.0.0.1"});
    db["config"]["services"] = json!([{"protocol": "tcp", "internal_port": 5432, "ports": [port]}]);
    db["config"]["auto_destroy"] = json!(true);
    let cloned = |arguments: &[&str]| {
        let api = Api::with(std::slice::from_ref(&db));
        let ran = api.mctl(&[&["clone", "db", "--skip-start"], arguments].concat());
        assert_eq!(ran.code, 0, "{}", ran.err);
        api.request("POST /v1/apps/default/machines").json()["config"].clone()
    };
    let config = cloned(&[
        "--override-cmd",
        "postgres -D '/my data'",
        "--clear-auto-destroy",
    ]);
    let expected = json!([{"port": 0, "address": "127.0.0.1"}]);
    assert_eq!(config["services"][0]["ports"], expected);
    assert_eq!(config["init"]["cmd"], json!(["postgres", "-D", "/my data"]));
    assert_eq!(config.get("auto_destroy"), None);
    let config = cloned(&["--port", "6000:5432"]);
    assert_eq!(config["services"][0]["ports"], json!([{"port": 6000}]));
}

#[test]
fn run_takes_a_command_files_and_a_region_as_flyctl_does() {
    let api = Api::with(&[]);
    let ran = api.mctl(&[
        "run",
        "default",
        "sleep",
        "9",
        "--region",
        "ord",
        "--file-literal",
        "/etc/motd=hello",
    ]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let body = api.request("POST /v1/apps/default/machines").json();
    assert_eq!(body["region"], "ord");
    assert_eq!(body["config"]["image"], "default");
    assert_eq!(body["config"]["init"]["cmd"], json!(["sleep", "9"]));
    let file = json!({"guest_path": "/etc/motd", "raw_value": "aGVsbG8="});
    assert_eq!(body["config"]["files"], json!([file]));
}

#[test]
fn update_takes_a_command_in_one_string() {
    let api = Api::with_web("started");
    api.answers(&format!("POST /{WEB}"), 200, machine(WEB, "web", "started"));
    let ran = api.mctl(&[
        "update",
        "web",
        "-C",
        "sh -c 'echo hi'",
        "--skip-start",
        "--yes",
    ]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let body = api
        .request(&format!("POST /v1/apps/default/machines/{WEB}"))
        .json();
    assert_eq!(
        body["config"]["init"]["cmd"],
        json!(["sh", "-c", "echo hi"])
    );
}

#[test]
fn restart_takes_flyctls_flags() {
    let api = Api::with_web("started");
    let ran = api.mctl(&["restart", "web", "--time", "7", "--skip-health-checks"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let restart =
        format!("POST /v1/apps/default/machines/{WEB}/restart?force_stop=false&timeout=7s");
    assert_eq!(api.changes(), [restart]);
}

#[test]
fn wait_respects_the_global_wait_timeout() {
    let ran = Api::with_web("starting").mctl(&["wait", "web", "--wait-timeout", "10ms"]);
    assert_eq!(ran.code, 6);
    assert!(ran.err.contains("within 10ms"), "{}", ran.err);
}

#[test]
fn a_lease_is_cleared_with_the_nonce_that_is_shown() {
    let api = Api::with_web("started");
    let lease =
        json!({"nonce": "n0nce", "expires_at": 1, "owner": "x", "description": "", "version": "1"});
    api.answers(
        &format!("GET /{WEB}/lease"),
        200,
        json!({"status": "success", "data": lease}),
    );
    let ran = api.mctl(&["lease", "clear", "web"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!(
        api.changes(),
        [format!("DELETE /v1/apps/default/machines/{WEB}/lease")]
    );
    let missing = json!({"error": "machine x: lease not found", "status": "no_lease"});
    api.answers(&format!("GET /{WEB}/lease"), 404, missing);
    let ran = api.mctl(&["lease", "clear", "web"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.err.contains("not leased"), "{}", ran.err);
}

#[test]
fn the_app_is_that_of_the_flag() {
    let api = Api::with_web("started");
    api.answers("GET /v1/apps/shop%2F1/machines", 200, json!([]));
    assert_eq!(api.mctl(&["list", "-a", "default"]).code, 0);
    let ran = api.mctl(&["list", "--app", "shop/1"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    api.request("GET /v1/apps/default/machines");
    api.request("GET /v1/apps/shop%2F1/machines");
}
