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
use std::process::{Command, Stdio};

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

/// A supervisor that serves over TCP, and what its clients need.
struct Served {
    tools: PathBuf,
    stage: Stage,
    address: String,
    token: String,
}

impl Served {
    fn new() -> Self {
        let tools = tools();
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
        Self {
            tools,
            stage,
            address,
            token,
        }
    }

    /// Runs a program of the tools with what a client of Fly is told by its environment; it has
    /// to succeed. Returns what it printed.
    fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = Command::new(self.tools.join("bin").join(program))
            .args(arguments)
            // They may leave files behind.
            .current_dir(self.stage.folder())
            .env("MCTL_TEST_TOOLS", &self.tools)
            .env("MCTL_TEST_IMAGE", "default")
            .env("MCTL_TEST_MAIN", r#"["main"]"#)
            .env("MCTL_TEST_EXIT_CODE", "3")
            .env("MCTL_TEST_URL", &self.address)
            .env("MCTL_TEST_TOKEN", &self.token)
            .env("FLY_API_TOKEN", &self.token)
            .env("FLY_API_HOSTNAME", &self.address)
            .env("FLY_APP_NAME", "default")
            .env("FLY_REGION", "local")
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("PYTHONPATH", script(""))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let printed = text(&output.stdout);
        let failed = format!("{}\n{printed}\n{}", output.status, text(&output.stderr));
        assert!(output.status.success(), "{failed}");
        printed
    }
}

/// A file beside this one.
fn script(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/contract");
    folder.join(name).to_str().unwrap().to_owned()
}

#[test]
fn a_public_client_from_npm_drives_a_whole_life() {
    let printed = Served::new().run("node", &[&script("fly_admin.js")]);
    assert_eq!(printed, "done\n");
}

#[test]
fn a_public_client_from_pypi_suspends_and_resumes() {
    let printed = Served::new().run("python3", &[&script("sandboxer_client.py")]);
    assert_eq!(printed, "done\n");
}

#[test]
fn every_operation_keeps_to_its_description() {
    let served = Served::new();
    let setting = |name: &str, usual: &str| std::env::var(name).unwrap_or(usual.to_owned());
    let printed = served.run(
        "schemathesis",
        &[
            "--config-file",
            &script("schemathesis.toml"),
            "run",
            &format!("{}/openapi.json", served.address),
            "--checks=all",
            "--no-color",
            "--generation-database=none",
            "--max-time",
            &setting("MCTL_CONTRACT_SECONDS", "45"),
            "--seed",
            &setting("MCTL_CONTRACT_SEED", "1"),
        ],
    );
    println!("{printed}");
    // It came to all of them, and the supervisor still answers.
    let (_, description) = served.stage.call("GET", "/openapi.json", None);
    let paths = description["paths"].as_object().unwrap().values();
    let operations: usize = paths.map(|item| item.as_object().unwrap().len()).sum();
    let tested = format!("Tested: {operations}\n");
    assert!(printed.contains(&tested), "not {operations} operations");
}
