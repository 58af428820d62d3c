//! Commands and files in guests, and tokens: requests, output and exit codes.

mod api;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use api::{Api, WEB, broken, killed, ran};
use serde_json::json;

fn with_input(mut command: Command, file: &std::path::Path) -> api::Ran {
    let input = fs::File::open(file).expect("the test created the file");
    let output = command.stdin(Stdio::from(input)).output();
    ran(output.expect("mctl runs"))
}

#[test]
fn exec_keeps_output_errors_and_exit_code_apart() {
    let api = Api::with_web("started");
    let ran = api.mctl(&["exec", "web", "--", "cat", "a b"]);
    assert_eq!(
        (ran.code, ran.out.as_str(), ran.err.as_str()),
        (3, "", "oops")
    );
    let request = api.request(&format!("GET /v1/apps/default/machines/{WEB}/exec/stream"));
    assert_eq!(request.query, "command=cat&command=a%20b");
}

#[test]
fn exec_passes_input_on_only_when_asked_to() {
    let api = Api::with_web("started");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("input");
    fs::write(&file, "hello".repeat(20_000)).unwrap();
    let without = with_input(api.command(&["exec", "web", "--", "cat"]), &file);
    let with = with_input(api.command(&["exec", "-i", "web", "--", "cat"]), &file);
    assert_eq!((without.out.len(), with.out.len()), (0, 100_000));
}

#[test]
fn exec_passes_environment_directory_terminal_and_timeout_on() {
    let api = Api::with_web("started");
    let words = [
        "exec",
        "-t",
        "web",
        "-e",
        "A=1",
        "-w",
        "/srv",
        "--timeout",
        "5s",
        "--",
        "sh",
    ];
    assert_eq!(api.mctl(&words).code, 3);
    let request = api.request(&format!("GET /v1/apps/default/machines/{WEB}/exec/stream"));
    let query = "command=sh&env=A%3D1&cwd=%2Fsrv&tty=true&columns=80&rows=24&timeout=5000ms";
    assert_eq!(request.query, query);
}

#[test]
fn exec_of_a_killed_command_exits_as_a_shell_does() {
    let ran = Api::with_web("started")
        .runs(killed)
        .mctl(&["exec", "web", "--", "x"]);
    assert_eq!(
        (ran.code, ran.err.as_str()),
        (137, "warning: the command was killed at its timeout\n")
    );
}

#[test]
fn a_broken_stream_is_not_taken_for_the_commands_end() {
    let ran = Api::with_web("started")
        .runs(broken)
        .mctl(&["exec", "web", "--", "x"]);
    assert_eq!(ran.code, 125);
    assert!(
        ran.err.starts_with("error: could not run \"x\" in"),
        "{}",
        ran.err
    );
}

#[test]
fn own_failures_of_exec_have_an_exit_code_of_their_own() {
    let ran = Api::with_web("started").mctl(&["exec", "nope", "--", "true"]);
    assert_eq!(ran.code, 125);
}

#[test]
fn exec_for_programs_is_one_document() {
    let api = Api::with_web("started");
    let answer = json!({"exit_code": 4, "exit_signal": 0, "stdout": "o", "stderr": "e"});
    api.answers(&format!("POST /{WEB}/exec"), 200, answer.clone());
    let ran = api.mctl(&["exec", "web", "--json", "--", "false"]);
    assert_eq!((ran.code, ran.json()), (4, answer));
}

#[test]
fn a_file_comes_back_as_it_went_in() {
    let api = Api::with_web("started");
    let folder = tempfile::tempdir().unwrap();
    let (there, back) = (folder.path().join("there"), folder.path().join("back"));
    let content: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    fs::write(&there, &content).unwrap();
    fs::set_permissions(&there, fs::Permissions::from_mode(0o750)).unwrap();
    let ran = api.mctl(&["cp", there.to_str().unwrap(), "web:/srv/"]);
    assert_eq!(
        (ran.code, ran.err.as_str()),
        (0, "web:/srv/there: 2.9 MiB written\n")
    );
    let query = "path=%2Fsrv%2Fthere&mode=750";
    assert_eq!(api.request("PUT ").query, query);
    let ran = api.mctl(&["cp", "web:/srv/there", back.to_str().unwrap()]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!(fs::read(&back).unwrap(), content);
}

#[test]
fn a_failed_download_leaves_no_file() {
    let api = Api::with_web("started");
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("target");
    api.answers(
        &format!("GET /{WEB}/files"),
        404,
        json!({"error": "no such file"}),
    );
    let ran = api.mctl(&["cp", "web:/nope", target.to_str().unwrap()]);
    assert_eq!(ran.code, 3);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_copy_has_exactly_one_side_in_a_guest() {
    let api = Api::with_web("started");
    let codes =
        [["a", "b"], ["web:/a", "web:/b"]].map(|[from, to]| api.mctl(&["cp", from, to]).code);
    assert_eq!(codes, [2, 2]);
}

#[test]
fn the_secret_of_a_token_is_all_that_create_prints() {
    let api = Api::with(&[]);
    let created = json!({"id": "t1", "name": "ci", "scope": "read", "created_at": "x",
                         "secret": "s3cret"});
    api.answers("POST /v1/tokens", 200, created);
    let ran = api.mctl(&["token", "create", "ci", "--scope", "read"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "s3cret\n"));
    assert_eq!(
        api.request("POST /v1/tokens").json(),
        json!({"name": "ci", "scope": "read"})
    );
}

#[test]
fn tokens_are_listed_and_revoked() {
    let api = Api::with(&[]);
    let token = json!([{"id": "t1", "name": "ci", "scope": "read",
                        "created_at": "2026-01-31T12:00:00Z"}]);
    api.answers("GET /v1/tokens", 200, token);
    api.answers("DELETE /v1/tokens/t1", 200, json!({"ok": true}));
    let golden = "ID  NAME  SCOPE  CREATED\nt1  ci    read   2026-01-31T12:00:00Z\n";
    assert_eq!(api.mctl(&["token", "list"]).out, golden);
    assert_eq!(api.mctl(&["token", "revoke", "t1"]).code, 2);
    assert_eq!(api.mctl(&["token", "revoke", "t1", "--yes"]).code, 0);
}

#[test]
fn exec_takes_a_command_in_one_string() {
    let api = Api::with_web("started");
    let ran = api.mctl(&["exec", "web", "cat 'a b'"]);
    assert_eq!(ran.code, 3, "{}", ran.err);
    let request = api.request(&format!("GET /v1/apps/default/machines/{WEB}/exec/stream"));
    assert_eq!(request.query, "command=cat&command=a%20b");
    let ran = api.mctl(&["exec", "web", "cat 'a"]);
    assert!(ran.err.contains("a quote is not closed"), "{}", ran.err);
}
