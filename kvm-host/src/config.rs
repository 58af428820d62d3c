//! What a virtual host is made of, and what it is to run.

use std::path::PathBuf;
use std::sync::mpsc::Sender;

use crate::clock::Clock;
use crate::emulator::Emulator;
use crate::pack::{HostFile, Parts};
use crate::plan::Program;
use crate::storage::Storage;

/// The port of the supervisor inside.
pub const INSIDE_API_PORT: u16 = 8080;
/// Where a supervisor inside keeps its state.
pub const INSIDE_STATE_DIR: &str = "/var/lib/mctl";
pub(crate) const INSIDE_TOKEN_PATH: &str = "/etc/mctl/token";

/// What a virtual host runs.
#[derive(Debug, Clone)]
pub enum Run {
    /// `mctl-supervisor`, its API forwarded to a port of 127.0.0.1. The files must include it in
    /// `/usr/bin`, and the programs that it needs.
    Supervisor {
        token: String,
        /// The port of 127.0.0.1; a free one if not given.
        port: Option<u16>,
    },
    /// A program that runs once. Its output becomes the output of this process.
    Command {
        argv: Vec<String>,
        env: Vec<(String, String)>,
        /// Receives its standard output instead, in pieces of any length.
        stdout: Option<Sender<Vec<u8>>>,
        /// A folder inside, and the folder outside that it is copied to at the end.
        export: Option<(String, PathBuf)>,
    },
    /// A shell on this terminal.
    Shell,
}

/// How to start a virtual host.
#[derive(Debug)]
pub struct Config {
    pub parts: Parts,
    pub memory_mib: u32,
    pub cpus: u32,
    pub emulator: Emulator,
    pub clock: Clock,
    pub files: Vec<HostFile>,
    /// Without it, all is in memory, and the start is faster.
    pub storage: Option<Storage>,
    pub run: Run,
    /// Where `console.log` and `qemu.log` go.
    pub log_folder: PathBuf,
}

/// What the inside is told to run.
pub(crate) fn program_of(run: &Run) -> Program {
    match run {
        Run::Supervisor { .. } => Program::Service {
            argv: [
                "/usr/bin/mctl-supervisor",
                "--state-dir",
                INSIDE_STATE_DIR,
                "--listen",
                &format!("0.0.0.0:{INSIDE_API_PORT}"),
                "--bootstrap-token-file",
                INSIDE_TOKEN_PATH,
            ]
            .map(str::to_owned)
            .to_vec(),
            ready_port: INSIDE_API_PORT,
        },
        Run::Command {
            argv, env, export, ..
        } => Program::Command {
            argv: argv.clone(),
            env: env.clone(),
            export: export.as_ref().map(|(inside, _)| inside.clone()),
        },
        Run::Shell => Program::Shell,
    }
}
