//! A public client of the Fly Machines API, from npm, drives machines with real guests.
//!
//! It runs the same script as the supervisor's contract tests, where guests are simulated. `./just`
//! installs the client, in the version that the files there pin.

#![expect(clippy::unwrap_used, reason = "test helpers, not only test functions")]

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use e2e::artifacts::{GuestImage, binaries};
use e2e::host::KvmHost;
use tokio::process::Command;
use tokio::time::timeout;

/// Longest that the script may take; emulated hosts are slow.
const DEADLINE: Duration = Duration::from_secs(1800);
/// A main process that survives the signal that the client sends.
const MAIN: &str = r#"["/bin/sh", "-c", "trap : USR1; while :; do sleep 0.2; done"]"#;

/// The folder of the workspace.
fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The folder in which `./just` installs public clients.
fn tools() -> PathBuf {
    let default = project().join("target/test-tools");
    let tools = std::env::var_os("MCTL_TEST_TOOLS").map_or(default, PathBuf::from);
    assert!(
        tools.join("complete").exists(),
        "the client of this test is not in {}, or in the folder that MCTL_TEST_TOOLS names: \
         `./just contract` installs it from npm, once, with network access",
        tools.display()
    );
    tools
}

#[tokio::test]
async fn a_public_client_from_npm_drives_machines_with_real_guests() {
    let tools = tools();
    let folder = binaries().unwrap().join("public-client");
    let host = KvmHost::start(&folder, &[GuestImage::Default])
        .await
        .unwrap();
    let (address, token) = host.tcp_access().await.unwrap();

    let client = Command::new(tools.join("bin/node"))
        .arg(project().join("supervisor/tests/contract/fly_admin.js"))
        .env("MCTL_TEST_TOOLS", &tools)
        .env("MCTL_TEST_IMAGE", "default")
        .env("MCTL_TEST_MAIN", MAIN)
        .env("MCTL_TEST_EXIT_CODE", "0")
        .env("FLY_API_TOKEN", token)
        .env("FLY_API_HOSTNAME", address)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(DEADLINE, client)
        .await
        .expect("the client did not end in time")
        .unwrap();

    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{stderr}");
    assert_eq!(stdout, "done\n");
    host.stop().unwrap();
}
