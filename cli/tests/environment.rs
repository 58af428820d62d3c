//! Settings, the host, leases, reports, help, manual pages and completion scripts.

mod api;

use std::fs;
use std::path::Path;

use api::fake::certificates::Authority;
use api::fake::{Answer, Fake};
use api::{Api, WEB, bare, ran};
use serde_json::{Value, json};

#[test]
fn a_flag_wins_over_the_environment_and_that_over_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mctl.toml");
    fs::write(
        &file,
        "host = \"http://file:1\"\nwait_timeout = \"7s\"\ntoken = \"t\"\n",
    )
    .unwrap();
    let run = |arguments: &[&str], host: Option<&str>| {
        let mut command = bare(arguments);
        command
            .env("MCTL_CONFIG", &file)
            .envs(host.map(|host| ("MCTL_HOST", host)));
        ran(command.output().unwrap()).json()["host"].clone()
    };
    let from = |value: Value| value["from"].as_str().unwrap().to_owned();
    let by_file = run(&["config", "--json"], None);
    assert_eq!(by_file["value"], "http://file:1");
    assert_eq!(from(by_file), format!("file {}", file.display()));
    let by_environment = run(&["config", "--json"], Some("http://env:1"));
    assert_eq!(from(by_environment), "environment MCTL_HOST");
    let by_flag = run(
        &["config", "--json", "--host", "http://flag:1"],
        Some("http://env:1"),
    );
    assert_eq!(from(by_flag), "flag --host");
}

#[test]
fn certificates_to_trust_come_from_flag_environment_or_file() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let trusted = authority.file(folder.path());
    let fake = Fake::on_tls(authority.acceptor_for("127.0.0.1"), |_| {
        Answer::json(200, &json!([]))
    });
    let file = folder.path().join("mctl.toml");
    let call = |flags: &[&str], variable: Option<&Path>| {
        let mut command = bare(&["list", "--host", &fake.address]);
        command.args(flags).env("HOME", folder.path());
        command.envs(variable.map(|path| ("MCTL_CA_CERT", path)));
        ran(command.output().unwrap())
    };
    let nobody = call(&[], None);
    assert!(nobody.code == 5 || nobody.code == 2, "{nobody:?}");
    assert!(
        nobody.err.contains("hint:") && nobody.err.contains("--ca-cert"),
        "{nobody:?}"
    );
    assert_eq!(
        call(&["--ca-cert", trusted.to_str().unwrap()], None).code,
        0
    );
    assert_eq!(call(&[], Some(&trusted)).code, 0);
    fs::write(
        &file,
        format!("ca_cert = {:?}\n", trusted.to_str().unwrap()),
    )
    .unwrap();
    assert_eq!(call(&["--config", file.to_str().unwrap()], None).code, 0);
    let shown = bare(&["config", "--ca-cert", "/x.pem"]).output().unwrap();
    assert!(ran(shown).out.contains("/x.pem"));
}

#[test]
fn config_shows_no_token() {
    let mut command = bare(&["config"]);
    command.env("MCTL_TOKEN", "0123456789abcdef-secret-wxyz");
    let ran = ran(command.output().unwrap());
    assert!(ran.out.contains("…wxyz"), "{}", ran.out);
    assert!(!ran.out.contains("secret"), "{}", ran.out);
}

#[test]
fn a_misspelt_key_in_the_file_is_an_error_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mctl.toml");
    fs::write(&file, "hots = \"http://a:1\"\n").unwrap();
    let ran = ran(bare(&["list", "--config", file.to_str().unwrap()])
        .output()
        .unwrap());
    assert_eq!(ran.code, 2);
    assert!(
        ran.err.contains("hots") && ran.err.contains("hint:"),
        "{}",
        ran.err
    );
}

#[test]
fn an_unreachable_supervisor_exits_with_5_and_a_hint() {
    let folder = tempfile::tempdir().unwrap();
    let host = format!("unix://{}/api.sock", folder.path().display());
    let ran = ran(bare(&["list", "--host", &host]).output().unwrap());
    assert_eq!(ran.code, 5);
    assert!(
        ran.err.contains("hint: is mctl-supervisor running?"),
        "{}",
        ran.err
    );
}

#[test]
fn a_missing_token_exits_with_7() {
    let api = Api::with(&[]);
    api.answers("GET ", 401, json!({"error": "a token is needed"}));
    assert_eq!(api.mctl(&["list"]).code, 7);
}

#[test]
fn usage_errors_exit_with_2() {
    let api = Api::with(&[]);
    let codes = [
        &["frobnicate"][..],
        &["run", "--memory", "lots"],
        &["list", "--state", "sleeping"],
        &["exec", "web"],
        &[],
    ]
    .map(|arguments| api.mctl(arguments).code);
    assert_eq!(codes, [2; 5]);
}

#[test]
fn every_command_has_an_example_in_its_help() {
    let commands = [
        "run",
        "create",
        "list",
        "status",
        "start",
        "stop",
        "suspend",
        "resume",
        "restart",
        "destroy",
        "wait",
        "exec",
        "logs",
        "timings",
        "events",
        "cp",
        "token",
        "top",
        "ps",
        "signal",
        "kill",
        "update",
        "clone",
        "cordon",
        "uncordon",
        "metadata",
        "lease",
        "bench",
        "report",
        "doctor",
        "adopt",
        "set-aside",
        "config",
        "completion",
        "man",
    ];
    let help = |command: &str| ran(bare(&[command, "--help"]).output().unwrap()).out;
    let without: Vec<&str> = commands
        .into_iter()
        .filter(|command| {
            let help = help(command);
            !["Example:\n  ", "Examples:\n  "]
                .iter()
                .any(|words| help.contains(words))
        })
        .collect();
    assert!(without.is_empty(), "{without:?}");
}

#[test]
fn doctor_reads_the_supervisors_view_of_its_host() {
    let api = Api::with(&[]);
    let info = json!({"version": env!("CARGO_PKG_VERSION"), "kvm": "hardware",
        "kvm_detail": "hardware KVM (900.0 million)", "cpu": "EPYC", "kernel": "6.1", "cpus": 2, "memory_mib": 4096,
        "images": ["default"], "image_kernels": {"default": "6.1.0-56"}, "state_dir": "/s",
        "vmm": "/bin/mctl-vmm"});
    api.answers("GET /v1/host", 200, info);
    let ran = api.mctl(&["doctor"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(
        ran.out
            .contains("kvm         ok     hardware KVM (900.0 million)\n"),
        "{}",
        ran.out
    );
    assert!(
        ran.out.contains("default (Linux 6.1.0-56) in /s\n"),
        "{}",
        ran.out
    );
}

#[test]
fn doctor_reports_a_missing_vmm() {
    let api = Api::with(&[]);
    let info = json!({"version": env!("CARGO_PKG_VERSION"), "kvm": "hardware", "kvm_detail": "", "cpu": "",
        "kernel": "6.1", "cpus": 2, "memory_mib": 4096, "images": ["default"], "state_dir": "/s",
        "vmm": "/bin/mctl-vmm", "vmm_there": false});
    api.answers("GET /v1/host", 200, info);
    let ran = api.mctl(&["doctor"]);
    assert_eq!(ran.code, 8, "{}", ran.out);
    assert!(
        ran.out.contains("/bin/mctl-vmm does not exist"),
        "{}",
        ran.out
    );
}

#[test]
fn doctor_without_a_supervisor_exits_with_8_and_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let host = format!("unix://{}/api.sock", folder.path().display());
    let ran = ran(bare(&["doctor", "--json", "--host", &host])
        .output()
        .unwrap());
    assert_eq!(ran.code, 8);
    let checks = ran.json()["checks"].clone();
    assert_eq!(
        (&checks[0]["check"], &checks[0]["grade"]),
        (&json!("supervisor"), &json!("problem"))
    );
    assert_eq!(checks[2]["advice"], "create it with `./just images`");
}

#[test]
fn a_lease_is_acquired_and_sent_by_later_calls() {
    let api = Api::with_web("started");
    let lease = json!({"status": "success", "data": {"nonce": "n123", "expires_at": 60}});
    api.answers(&format!("POST /{WEB}/lease"), 200, lease);
    let ran = api.mctl(&["lease", "acquire", "web", "--ttl", "5m"]);
    assert_eq!(
        (ran.out.as_str(), ran.err.as_str()),
        ("n123\n", "the lease lasts until 1970-01-01T00:01:00Z\n")
    );
    assert_eq!(
        api.mctl(&["lease", "release", "web", "--lease", "n123"])
            .code,
        0
    );
    assert_eq!(api.request("DELETE ").lease.as_deref(), Some("n123"));
}

#[test]
fn without_its_nonce_a_lease_cannot_be_released() {
    let ran = Api::with_web("started").mctl(&["lease", "release", "web"]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("MCTL_LEASE"), "{}", ran.err);
}

#[test]
fn metadata_are_read_and_written_one_at_a_time() {
    let api = Api::with_web("started");
    api.answers(
        &format!("GET /{WEB}/metadata"),
        200,
        json!({"team": "shop"}),
    );
    assert_eq!(api.mctl(&["metadata", "get", "web", "team"]).out, "shop\n");
    assert_eq!(api.mctl(&["metadata", "get", "web", "nope"]).code, 3);
    assert_eq!(api.mctl(&["metadata", "set", "web", "a/b=1"]).code, 0);
    let path = format!("POST /v1/apps/default/machines/{WEB}/metadata/a%2Fb");
    assert_eq!(api.request(&path).json(), json!({"value": "1"}));
}

#[test]
fn a_file_that_is_not_a_report_gets_a_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("report.json");
    fs::write(&file, "{\"hello\": 1}").unwrap();
    let ran = ran(bare(&["report", file.to_str().unwrap()]).output().unwrap());
    assert_eq!(ran.code, 1);
    assert!(
        ran.err.contains("is not a report") && ran.err.contains("hint:"),
        "{}",
        ran.err
    );
    assert!(!folder.path().join("report.html").exists());
}

#[test]
fn manual_pages_and_completions_come_from_the_definition() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("man1");
    let ran_man = ran(bare(&["man", "--output", output.to_str().unwrap()])
        .output()
        .unwrap());
    assert_eq!(ran_man.code, 0, "{}", ran_man.err);
    let page = fs::read_to_string(output.join("mctl-suspend.1")).unwrap();
    assert!(page.contains("Suspend machines"), "{page}");
    let script = ran(bare(&["completion", "bash"]).output().unwrap()).out;
    assert!(script.contains("suspend"), "no command in the script");
}
