//! Programs that are not ours use the API: two public clients of the Fly Machines API, and
//! schemathesis, which tries every operation of the API's description with valid and invalid input.
//!
//! `./just` installs them from npm and PyPI. Their versions are pinned by `package-lock.json` and
//! `requirements.txt`.

#![expect(clippy::unwrap_used, reason = "parts of tests")]

#[path = "../whole/stage.rs"]
#[expect(dead_code, reason = "shared with other tests, which use more of it")]
mod stage;
#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use stage::Stage;

/// The folder into which `./just` installs the clients and tools.
fn tools() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let default = root.join("target/test-tools");
    let tools = std::env::var_os("MCTL_TEST_TOOLS").map_or(default, PathBuf::from);
    assert!(
        tools.join("complete").exists(),
        "the clients and tools of this test are not in {} (MCTL_TEST_TOOLS names another place): \
         `./just contract` gets them from PyPI and npm, once, with network access",
        tools.display()
    );
    tools
}

/// A supervisor that serves over TCP, and what its clients need to know.
struct NetworkStage {
    tools: PathBuf,
    stage: Stage,
    address: String,
    token: String,
}

impl NetworkStage {
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

    /// Runs one of the tools, which must succeed, and returns its output. The environment has what a
    /// client of Fly reads there.
    fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = Command::new(self.tools.join("bin").join(program))
            .args(arguments)
            // The tools may write files there.
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
        assert!(
            output.status.success(),
            "{}\n{printed}\n{}",
            output.status,
            text(&output.stderr)
        );
        printed
    }
}

/// The path of a file in the folder of this one.
fn script(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/contract");
    folder.join(name).to_str().unwrap().to_owned()
}

#[test]
fn a_public_client_from_npm_takes_a_machine_from_create_to_destroy() {
    let printed = NetworkStage::new().run("node", &[&script("fly_admin.js")]);
    assert_eq!(printed, "done\n");
}

#[test]
fn a_public_client_from_pypi_suspends_and_resumes() {
    let printed = NetworkStage::new().run("python3", &[&script("sandboxer_client.py")]);
    assert_eq!(printed, "done\n");
}

#[test]
fn every_operation_behaves_as_described() {
    let network = NetworkStage::new();
    let setting = |name: &str, default: &str| std::env::var(name).unwrap_or(default.to_owned());
    let printed = network.run(
        "schemathesis",
        &[
            "--config-file",
            &script("schemathesis.toml"),
            "run",
            &format!("{}/openapi.json", network.address),
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
    // All operations were tested, and the supervisor still answers.
    let (_, description) = network.stage.call("GET", "/openapi.json", None);
    let paths = description["paths"].as_object().unwrap().values();
    let operations: usize = paths.map(|item| item.as_object().unwrap().len()).sum();
    let tested = format!("Tested: {operations}\n");
    assert!(printed.contains(&tested), "not {operations} operations");
}
