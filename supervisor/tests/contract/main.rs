//! The API's contract, held by programs that are not ours: two public clients of the Fly Machines
//! API, and schemathesis, which tries every operation of the description with good and bad input.
//!
//! `./just` installs them from npm and PyPI, pinned by `package-lock.json` and `requirements.txt`.

#![expect(clippy::unwrap_used, reason = "parts of tests")]

#[path = "../whole/stage.rs"]
#[expect(dead_code, reason = "shared with other tests, which use more of it")]
mod stage;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use stage::Stage;

/// Where `./just` puts what these tests need.
fn tools() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let usual = root.join("target/test-tools");
    let tools = std::env::var_os("MCTL_TEST_TOOLS").map_or(usual, PathBuf::from);
    assert!(
        tools.join("complete").exists(),
        "the clients and tools of this test are not in {} (MCTL_TEST_TOOLS names another place): \
         `./just contract` gets them from PyPI and npm, once, with network access",
        tools.display()
    );
    tools
}

/// A supervisor that serves over TCP, with its address and a token.
fn stage() -> (Stage, String, String) {
    let mut stage = Stage::new();
    stage.kill();
    let token = stage.folder().join("token");
    stage.start(&[
        "--listen",
        "127.0.0.1:0",
        "--bootstrap-token-file",
        token.to_str().unwrap(),
    ]);
    let (_, host) = stage.call("GET", "/v1/host", None);
    let address = host["address"].as_str().unwrap().to_owned();
    let token = fs::read_to_string(token).unwrap().trim().to_owned();
    (stage, address, token)
}

/// Runs a program of `tools` with what a client of Fly is told by its environment.
fn run(tools: &Path, program: &str, arguments: &[&str], address: &str, token: &str) -> Output {
    Command::new(tools.join("bin").join(program))
        .args(arguments)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/contract"))
        .env("MCTL_TEST_TOOLS", tools)
        .env("MCTL_TEST_IMAGE", "default")
        .env("MCTL_TEST_MAIN", r#"["main"]"#)
        .env("MCTL_TEST_EXIT_CODE", "3")
        .env("MCTL_TEST_URL", address)
        .env("MCTL_TEST_TOKEN", token)
        .env("FLY_API_TOKEN", token)
        .env("FLY_API_HOSTNAME", address)
        .env("FLY_APP_NAME", "default")
        .env("FLY_REGION", "local")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("PYTHONPATH", ".")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn assert_success(output: &Output) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{}\n{}\n{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
}

#[test]
fn a_public_client_from_npm_drives_a_whole_life() {
    let tools = tools();
    let (_stage, address, token) = stage();
    let output = run(&tools, "node", &["fly_admin.js"], &address, &token);
    assert_success(&output);
    assert_eq!(output.stdout, b"done\n");
}

#[test]
fn a_public_client_from_pypi_suspends_and_resumes() {
    let tools = tools();
    let (_stage, address, token) = stage();
    let output = run(
        &tools,
        "python3",
        &["sandboxer_client.py"],
        &address,
        &token,
    );
    assert_success(&output);
    assert_eq!(output.stdout, b"done\n");
}

#[test]
fn every_operation_keeps_to_its_description() {
    let tools = tools();
    let (stage, address, token) = stage();
    let setting = |name: &str, usual: &str| std::env::var(name).unwrap_or(usual.to_owned());
    let seconds = setting("MCTL_CONTRACT_SECONDS", "45");
    let seed = setting("MCTL_CONTRACT_SEED", "1");
    let description = format!("{address}/openapi.json");
    let arguments = [
        "--config-file",
        "schemathesis.toml",
        "run",
        &description,
        "--checks=all",
        "--no-color",
        "--generation-database=none",
        "--max-time",
        &seconds,
        "--seed",
        &seed,
    ];
    let output = run(&tools, "schemathesis", &arguments, &address, &token);
    assert_success(&output);
    println!("{}", String::from_utf8_lossy(&output.stdout));
    // The machines that it did not destroy are still driven.
    let (status, _) = stage.call("GET", "/v1/apps/default/machines", None);
    assert_eq!(status, 200);
}
